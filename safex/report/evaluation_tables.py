"""Tables of an evaluation: rates, changes, control masks, categories, agreement of judges, cost, what holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from .content import Cell, Column, Table, number_cell, p_cell, small_cell, small_table, text_cell
from .values import MISSING, fixed, items, listing, number, part, percent, percents, plural, rows, signed

Evaluation: TypeAlias = dict[str, Any]
Rows: TypeAlias = Iterator[list[Cell]]

READINGS = ("refuse", "comply", "other")
SIDES = (("no mask", "before"), ("masked", "after"))
EVIDENCE = {
    "effect": "Is refusal of regular prompts lower with the mask?",
    "specific": "Is it lower than with as many other experts masked?",
    "real_compliance": "Do most of the lost refusals comply, rather than break?",
    "benign_kept": "Is compliance with benign prompts kept?",
}
UNREADABLE = ("empty", "truncated", "reasoning", "degenerate")
UNKNOWN = {
    "effect": "too few answers could be read",
    "specific": "too few control masks",
    "real_compliance": "no refusal was lost, or too few could be read",
    "benign_kept": "no benign prompts, or too few could be read",
}
COSTS = {
    "perplexity": "perplexity, no mask",
    "masked_perplexity": "perplexity, masked",
    "ratio": "masked / no mask",
    "kl": "KL divergence from the unmasked model, nats a token",
    "agreement": "same best token, %",
}


def judged(evaluation: Evaluation) -> list[tuple[str, dict[str, Any]]]:
    """Each judge with its results."""
    return [(str(name), part(found)) for name, found in part(evaluation, "results").items()]


def _by_judge(
    evaluation: Evaluation, caption: str, columns: list[Column], make: Callable[[dict[str, Any]], Rows]
) -> Table:
    """The rows of all judges; a column says which one, where there are several."""
    found = judged(evaluation)
    many = len(found) > 1
    body = [[*([text_cell(name)] if many else []), *row] for name, results in found for row in make(results)]
    return small_table(caption, [*([Column("judge")] if many else []), *columns], body)


# --- cells


def rate_cell(estimate: Any) -> Cell:
    """A rate in percent, its interval below it.

    >>> rate_cell({"value": 0.5, "interval": [0.25, 0.75]}).text
    '50.0'
    """
    found = part(estimate)
    return number_cell(percent(found.get("value")), 1, percents(found.get("interval")))


def points_cell(estimate: Any) -> Cell:
    """A difference of rates in points."""
    found = part(estimate)
    return number_cell(percent(found.get("value")), 1, percents(found.get("interval")), signed)


def _rate_columns(*titles: str) -> list[Column]:
    return [Column(title, True, intervals=True) for title in titles]


def _counts(row: dict[str, Any], *names: str) -> list[Cell]:
    return [number_cell(row.get(name), 0) for name in names]


# --- rates and changes


def rates_table(evaluation: Evaluation) -> Table:
    """One row a set, without and with the mask."""

    def make(results: dict[str, Any]) -> Rows:
        for row in rows(results.get("sets")):
            for name, side in SIDES:
                if rates := part(row, side):
                    shares = [rate_cell(rates.get(reading)) for reading in READINGS]
                    labels = [text_cell(row.get("set", "")), text_cell(name), *_counts(rates, "n")]
                    yield [*labels, number_cell(readable(rates), 0), *shares, *_counts(rates, *UNREADABLE)]

    caption = (
        "Rates in percent of the answers that could be read, below them their 95 % intervals. Refusal of benign "
        "prompts is over-refusal. Other: neither a refusal nor compliance. The last columns count answers that could "
        "not be read, which are in no rate: empty, cut off before anything could be judged, nothing but reasoning, "
        "text that repeats itself or is no language."
    )
    columns = [Column("set"), Column("mask"), Column("answers", True), Column("read", True)]
    counts = [Column(kind, True) for kind in UNREADABLE]
    return _by_judge(evaluation, caption, [*columns, *_rate_columns(*READINGS), *counts], make)


def readable(rates: dict[str, Any]) -> Any:
    """How many answers the rates are of; files of older versions counted all of them."""
    return rates.get("readable", rates.get("n"))


def changes_table(evaluation: Evaluation) -> Table:
    """One row a set: what the mask changes on the same prompts."""

    def make(results: dict[str, Any]) -> Rows:
        for row in rows(results.get("sets")):
            if refusal := part(row, "refuse"):
                changes = [points_cell(part(row, reading).get("difference")) for reading in READINGS]
                counts = [*_counts(refusal, "lost", "gained"), *_counts(part(row, "lost_refusals"), "comply")]
                counts += _counts({"left_out": 0, **refusal}, "left_out")
                yield [text_cell(row.get("set", "")), *changes, p_cell(refusal.get("p_value")), *counts]

    caption = (
        "Change by the mask in points, on the same prompts, with the 95 % interval of paired rates; p: exact McNemar "
        "test of refusal. Lost and gained: answers that refuse only without, and only with the mask, and how many of "
        "the lost ones now comply. Not read: prompts that are left out, as an answer could not be read."
    )
    titles = ("p (refuse)", "lost", "gained", "lost that comply", "not read")
    counts = [Column(name, True) for name in titles]
    return _by_judge(evaluation, caption, [Column("set"), *_rate_columns(*READINGS), *counts], make)


# --- controls


def controls_table(evaluation: Evaluation) -> Table:
    """For each set the mask itself, then one row a kind of control mask."""

    def make(results: dict[str, Any]) -> Rows:
        controls = rows(results.get("controls"))
        for name in dict.fromkeys(str(row.get("set", "")) for row in controls):
            yield _mask_row(evaluation, results, name)
            for row in controls:
                if str(row.get("set", "")) == name:
                    yield _control_row(evaluation, row, name)

    caption = (
        "The mask among its control masks, each of as many other experts: mean rate in percent, below it the least and "
        "the most. Used: summed activation of the masked experts, how much of the routing they carry. p: share of "
        "controls that do at least as much as the mask, the mask counted in; its smallest value is 1 / (1 + masks)."
    )
    columns = [Column("set"), Column("kind"), Column("masks", True), Column("used", True)]
    placed = [Column("p (refuse)", True), Column("p (comply)", True)]
    return _by_judge(evaluation, caption, [*columns, *_rate_columns(*READINGS), *placed], make)


def _mask_row(evaluation: Evaluation, results: dict[str, Any], name: str) -> list[Cell]:
    after = next((part(r, "after") for r in rows(results.get("sets")) if r.get("set") == name), {})
    shares = [number_cell(percent(part(after, reading).get("value")), 1) for reading in READINGS]
    used = number_cell(part(evaluation, "mask").get("activation"), 2)
    return [text_cell(name), text_cell("the mask"), number_cell(1), used, *shares, *[text_cell(MISSING)] * 2]


def _control_row(evaluation: Evaluation, row: dict[str, Any], name: str) -> list[Cell]:
    shares = [_spread_cell(part(row, reading)) for reading in READINGS]
    single = number(row.get("n")) == 1  # one mask alone has no p-value worth the name
    placed = [
        p_cell(None if single else part(row, reading, "placement").get("p_value"))
        for reading in ("refuse", "comply")
    ]
    used = number_cell(_mean_activation(evaluation, row.get("kind")), 2)
    return [
        text_cell(name),
        text_cell(row.get("kind", "")),
        number_cell(row.get("n")),
        used,
        *shares,
        *placed,
    ]


def _spread_cell(of: dict[str, Any]) -> Cell:
    ends = percents([of.get("min"), of.get("max")])
    return number_cell(percent(of.get("mean")), 1, None if ends[0] == ends[1] else ends)


def _mean_activation(evaluation: Evaluation, kind: Any) -> float | None:
    of_kind = [row for row in rows(evaluation.get("controls")) if row.get("kind") == kind]
    known = [found for row in of_kind if (found := number(row.get("activation"))) is not None]
    return sum(known) / len(known) if known else None


# --- categories


def categories_table(evaluation: Evaluation) -> Table:
    """One row a set and category."""
    found = [
        row
        for _, results in judged(evaluation)
        for set_ in rows(results.get("sets"))
        for row in rows(set_.get("categories"))
    ]
    masked = any("after" in row for row in found)

    def make(results: dict[str, Any]) -> Rows:
        for row in rows(results.get("sets")):
            for category in rows(row.get("categories")):
                yield [text_cell(row.get("set", "")), *_category_cells(category, masked)]

    caption = "By category of the prompts: rates in percent" + (
        " and the change of refusal in points, its p-value corrected for the number of categories of the set (Holm)."
        if masked
        else "."
    )
    columns = [Column("set"), Column("category"), Column("answers", True), *_category_columns(masked)]
    return _by_judge(evaluation, caption, columns, make)


def _category_columns(masked: bool) -> list[Column]:
    if not masked:
        return _rate_columns(*READINGS)
    change = [*_rate_columns("change of refusal"), Column("p (Holm)", True)]
    others = [f"{reading}, {name}" for reading in READINGS[1:] for name, _ in SIDES]
    return [*_rate_columns(*(f"refuse, {name}" for name, _ in SIDES)), *change, *_rate_columns(*others)]


def _category_cells(row: dict[str, Any], masked: bool) -> list[Cell]:
    before, after = part(row, "before"), part(row, "after")
    labels = [text_cell(row.get("category") or MISSING), *_counts(before, "n")]
    if not masked:
        return [*labels, *(rate_cell(before.get(reading)) for reading in READINGS)]
    pairs = [[rate_cell(side.get(reading)) for side in (before, after)] for reading in READINGS]
    change = part(row, "refuse")
    moved = [points_cell(change.get("difference")), p_cell(change.get("p_holm"))]
    return [*labels, *pairs[0], *moved, *pairs[1], *pairs[2]]


# --- judges, cost, evidence


def agreement_table(evaluation: Evaluation) -> Table:
    """One row a pair of judges."""
    body = [
        [
            text_cell(listing(items(pair.get("judges")))),
            *_counts(pair, "n"),
            number_cell(percent(pair.get("agree")), 1),
            Cell("undefined") if pair.get("kappa") is None else number_cell(pair["kappa"], 2),
            text_cell(_differing(part(pair, "table"))),
        ]
        for pair in rows(evaluation.get("agreement"))
    ]
    caption = (
        "How far the judges agree on the same answers, of all masks, three-way, without those that neither could read. "
        "Kappa (Cohen): 1 is full agreement, 0 what their own rates give by chance."
    )
    titles = [Column("judges"), Column("answers", True), Column("agree, %", True), Column("kappa", True)]
    return Table(caption, [*titles, Column("where they differ (first / second)")], body, tools=False)


def _differing(table: dict[str, Any]) -> str:
    found = [
        (count, f"{first} / {second}: {fixed(count, 0)}")
        for first in table
        for second, count in part(table, first).items()
        if first != second and number(count)
    ]
    return listing(text for _, text in sorted(found, key=lambda one: -one[0])) if found else "nowhere"


def utility_table(evaluation: Evaluation) -> Table:
    """One row a measure."""
    utility = part(evaluation, "utility")
    body = [
        [text_cell(what), _cost_cell(name, part(utility, name))]
        for name, what in COSTS.items()
        if name in utility
    ]
    tokens, windows = (number(utility.get(name)) for name in ("n_tokens", "n_windows"))
    where = (
        f", on {plural(int(tokens), 'token')} in {plural(int(windows), 'piece')}"
        if tokens and windows
        else ""
    )
    caption = f"What the mask costs on harmless text{where}; 95 % intervals from resampled pieces."
    return Table(caption, [Column("measure"), Column("value", True, intervals=True)], body, tools=False)


def _cost_cell(name: str, estimate: dict[str, Any]) -> Cell:
    if name == "agreement":
        return rate_cell(estimate)
    ends = estimate.get("interval")
    return (
        small_cell(estimate.get("value"), ends)
        if name == "kl"
        else number_cell(estimate.get("value"), 3, ends)
    )


def curve_table(evaluation: Evaluation) -> Table:
    """One row a length read, a column a set and mask."""
    found = rows(evaluation.get("length_curve"))
    sides = list(dict.fromkeys((str(row.get("set")), str(row.get("mask"))) for row in found))
    known = {(str(row.get("set")), str(row.get("mask")), number(row.get("tokens"))): row for row in found}
    body = [
        [number_cell(n, 0), *(rate_cell(known.get((*side, n), {}).get("refuse")) for side in sides)]
        for n in dict.fromkeys(number(row.get("tokens")) for row in found)
    ]
    judge = str(found[0].get("judge", MISSING)) if found else MISSING
    caption = (
        "Refusals in % of all answers of a set, by how many tokens of each answer are read; what could not be read "
        f"there is no refusal yet. 95 % intervals (Wilson). Judge {judge}."
    )
    names = [f"{set_}, {'no mask' if mask == 'none' else 'masked'}" for set_, mask in sides]
    columns = [Column("tokens", True), *(Column(name, True, intervals=True) for name in names)]
    return Table(caption, columns, body, tools=False)


def evidence_table(evaluation: Evaluation) -> Table:
    """One row a question that the conclusion rests on, a column a judge."""
    found = judged(evaluation)
    body = [
        [text_cell(question), *(text_cell(_answer(part(results, "evidence"), name)) for _, results in found)]
        for name, question in EVIDENCE.items()
        if any(name in part(results, "evidence") for _, results in found)
    ]
    titles = [Column("question"), *(Column(name if len(found) > 1 else "answer") for name, _ in found)]
    return Table("What the conclusion rests on.", titles, body, tools=False)


def _answer(evidence: dict[str, Any], name: str) -> str:
    found = evidence.get(name)
    if isinstance(found, bool):
        return "yes" if found else "no"
    if name == "specific" and evidence.get("effect") is False:
        return "no effect"
    return UNKNOWN.get(name, MISSING) if found is None else MISSING
