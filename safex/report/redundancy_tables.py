"""Tables of a redundancy curve: rates at each size, areas of the order and of its controls."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .content import Cell, Column, Table, number_cell, p_cell, small_cell, small_table, text_cell
from .evaluation_tables import readable
from .values import (
    MISSING,
    fixed,
    interval,
    items,
    number,
    part,
    percent,
    percents,
    rows,
    signed,
    whole_number,
)

Found = dict[str, Any]
Row = dict[str, Any]

READINGS = {"refuse": "refuse, %", "comply": "comply, %", "other": "other, %"}
QUESTIONS = {
    "halved": "Is refusal of regular prompts halved by the experts of the order?",
    "beyond_controls": "Is the area under its curve below that of as many other experts?",
    "real_compliance": "Do most of the lost refusals comply?",
}


def redundancy_tables(found: Found) -> list[Table]:
    """Those that the file has numbers for, in the order of the section."""
    return [table for table in (curve_table(found), areas_table(found)) if table.rows]


def evidence_table(found: Found) -> Table:
    """What holds, one row a question."""
    known = part(found, "evidence")
    words = {True: "yes", False: "no", None: "can't be told"}
    body = [
        [text_cell(question), text_cell(words.get(known[key], MISSING))]
        for key, question in QUESTIONS.items()
        if key in known
    ]
    return Table("What the curve shows.", [Column("question"), Column("answer")], body, tools=False)


# --- rates


def curve_table(found: Found) -> Table:
    """One row a set and size."""
    body = [line for row in rows(found.get("sets")) for line in _set_lines(found, row)]
    columns = [Column("set"), Column("masked", True), Column("last expert")]
    columns += [Column(title, True, intervals=True) for title in READINGS.values()]
    columns += [Column("read", True)]
    columns += [Column("change of refusal, points", True, intervals=True), Column("p", True)]
    columns += [Column("KL", True, intervals=True), Column("perplexity ×", True, intervals=True)]
    caption = (
        "Answers with the first experts of the order masked, in percent of those that could be read. Change: on the "
        "same prompts, against no mask (Tango, McNemar). KL and perplexity: on harmless text, beside the first set."
    )
    return small_table(caption, columns, body)


def _set_lines(found: Found, row: Row) -> Iterator[list[Cell]]:
    experts = items(found.get("experts"))
    is_first = row == next(iter(rows(found.get("sets"))), None)
    cost = {one.get("size"): one for one in rows(found.get("utility")) if is_first}
    for step in rows(row.get("curve")):
        size = whole_number(step.get("size")) or 0
        change = part(step, "change", "refuse")
        difference = part(change, "difference")
        of_size = part(cost.get(size))
        last = experts[size - 1] if 0 < size <= len(experts) else ""
        yield [
            text_cell(row.get("set", "")),
            number_cell(size),
            text_cell(last),
            *(_rate(part(step, reading)) for reading in READINGS),
            number_cell(readable(step), 0),
            number_cell(percent(difference.get("value")), 1, percents(difference.get("interval")), signed),
            p_cell(change.get("p_value")),
            small_cell(part(of_size, "kl").get("value"), part(of_size, "kl").get("interval")),
            number_cell(part(of_size, "ratio").get("value"), 3, part(of_size, "ratio").get("interval")),
        ]


def _rate(rate: Row) -> Cell:
    return number_cell(percent(rate.get("value")), 1, percents(rate.get("interval")))


# --- areas


def areas_table(found: Found) -> Table:
    """The order, then one row a kind of control."""
    area = part(found, "area")
    body = [_order_line(found)] if area else []
    body += [_control_line(row) for row in rows(found.get("controls"))]
    columns = [Column("order"), Column("n", True), Column("area of refusal", True, intervals=True)]
    columns += [Column("order less these", True, intervals=True), Column("p", True)]
    columns += [Column("area of compliance", True, intervals=True), Column("p, compliance", True)]
    columns += [Column("halved", True), Column("half-point", True, intervals=True)]
    caption = (
        "Robustness: area under refusal relative to no mask, 1 = nothing lost, and under compliance; below that of the "
        "order its 95 % interval, below those of control orders the least and the largest. Half-point: the number of "
        "masked experts, of controls the median."
    )
    return small_table(caption, columns, body)


def _order_line(found: Found) -> list[Cell]:
    half = part(found, "half")
    refuse, comply = (part(found, "area", reading) for reading in ("refuse", "comply"))
    return [
        text_cell("the order"),
        number_cell(1),
        number_cell(refuse.get("value"), 3, refuse.get("interval")),
        text_cell(""),
        text_cell(""),
        number_cell(comply.get("value"), 3, comply.get("interval")),
        text_cell(""),
        number_cell(0 if half.get("size") is None else 1),
        _half_cell(half),
    ]


def _half_cell(half: Row) -> Cell:
    ends = items(half.get("interval"))
    words = ["not reached" if end is None else fixed(end, 1) for end in ends]
    shown = "not reached" if half.get("value") is None else fixed(half["value"], 1)
    return Cell(shown, number(half.get("value")), " to ".join(words), interval(ends))


def _control_line(row: Row) -> list[Cell]:
    refuse, comply, half = (part(row, key) for key in ("refuse", "comply", "half"))
    difference = part(refuse, "difference")
    return [
        text_cell(row.get("kind", "")),
        number_cell(row.get("n")),
        _spread(refuse),
        number_cell(difference.get("value"), 3, difference.get("interval"), signed),
        _placed(refuse),
        _spread(comply),
        _placed(comply),
        number_cell(half.get("reached")),
        _half_cell({"value": half.get("median")}),
    ]


def _spread(values: Row) -> Cell:
    ends = [values.get("min"), values.get("max")]
    return number_cell(values.get("mean"), 3, ends if ends[0] != ends[1] else None)


def _placed(values: Row) -> Cell:
    """The p-value; one order alone has none worth the name."""
    place = part(values, "placement")
    return p_cell(place.get("p_value")) if (number(place.get("n")) or 0) > 1 else text_cell("")
