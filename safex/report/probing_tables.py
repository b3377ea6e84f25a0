"""Tables of a probing: what holds, probes of groups, random experts, transfer, experts alone, layers, curves."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from statistics import fmean
from typing import Any, TypeAlias

from .content import Cell, Column, Table, expert_cell, number_cell, p_cell, small_table, text_cell
from .evaluation_tables import points_cell, rate_cell
from .values import (
    MISSING,
    items,
    listing,
    number,
    numbers,
    part,
    percent,
    percents,
    rows,
    whole_number,
)

Probing: TypeAlias = dict[str, Any]
Task: TypeAlias = dict[str, Any]
Row: TypeAlias = dict[str, Any]

RATES = {
    "accuracy": "accuracy, %",
    "balanced_accuracy": "balanced accuracy, %",
    "precision": "precision, %",
    "recall": "recall, %",
    "specificity": "specificity, %",
    "f1": "F1, %",
}
PLACED = {
    "auc": "AUC",
    "accuracy": "accuracy, %",
    "mean_single_auc": "AUC, mean of experts alone",
    "transfer_auc": "AUC of the transfer",
}
KINDS = {"layer": "same layers", "frequency": "selected as often", "uniform": "any layer"}
EVIDENCE = {"signal": "signal", "specific": "specific", "beyond_words": "beyond the words"}
UNKNOWN = {"signal": "can't be told", "specific": "too few draws", "beyond_words": "no words to compare"}


def auc_cell(estimate: Any) -> Cell:
    """An AUC, its interval below it.

    >>> auc_cell({"value": 0.5, "interval": [0.25, 0.75]}).note
    '0.250 to 0.750'
    """
    found = part(estimate)
    return number_cell(found.get("value"), 3, found.get("interval"))


def kind_name(kind: Any) -> str:
    """Which random experts a kind of control draws."""
    return KINDS.get(str(kind), str(kind or MISSING))


def group_name(group: Row) -> str:
    """Its name, as a text."""
    return str(group.get("group", ""))


def _measures(row: Row) -> list[Cell]:
    """Number of prompts, AUC and rates."""
    return [number_cell(row.get("n"), 0), auc_cell(row.get("auc")), *(rate_cell(row.get(k)) for k in RATES)]


def _measure_columns() -> list[Column]:
    found = [Column("prompts", True), Column("AUC", True, intervals=True)]
    return [*found, *(Column(title, True, intervals=True) for title in RATES.values())]


def _blank(n: int) -> list[Cell]:
    return [text_cell(MISSING)] * n


# --- what holds


def evidence_table(probing: Probing) -> Table:
    """One row a task and group: whether there is a signal, and whether it is special."""
    body = [
        [text_cell(task.get("task", "")), text_cell(group_name(group)), *_answers(group)]
        for task in rows(probing.get("tasks"))
        for group in rows(task.get("groups"))
    ]
    caption = (
        "What holds. Signal: an AUC above that of shuffled labels, p ≤ 0.05 (where there are fewer than 19 shuffles: "
        "its interval lies above 0.5). Specific: an AUC above that of random experts of every kind, p ≤ 0.05. Beyond "
        "the words: more right answers than a bag of words gives, by the interval of the difference."
    )
    columns = [Column("task"), Column("group"), *(Column(title) for title in EVIDENCE.values())]
    return Table(caption, columns, body, tools=False)


def _answers(group: Row) -> list[Cell]:
    probed = number(part(group, "auc").get("value")) is not None
    return [text_cell(_answer(group, name) if probed else "not probed") for name in EVIDENCE]


def _answer(group: Row, name: str) -> str:
    evidence = part(group, "evidence")
    found = evidence.get(name)
    if isinstance(found, bool):
        return "yes" if found else "no"
    if name == "specific" and not rows(group.get("controls")):
        return "no random experts"
    return UNKNOWN[name] if found is None and name in evidence else MISSING


# --- probes of groups


def probes_table(task: Task) -> Table:
    """One row a group, then the bag of words and the larger class."""
    body = [[_probe_cell(group), *_measures(group), *_versus(group)] for group in rows(task.get("groups"))]
    if words := part(task, "words"):
        body.append([text_cell("bag of words"), *_measures(words), *_blank(3)])
    if part(task, "majority"):
        known = [number_cell(task.get("n"), 0), *_blank(1), rate_cell(task["majority"])]
        body.append([text_cell("larger class"), *known, *_blank(len(RATES) - 1 + 3)])
    caption = (
        "Probes on all experts of a group together, below the numbers their 95 % intervals. Shuffled: mean AUC of "
        "shuffled labels, below it the range of 95 % of them; p: share of shuffles with an AUC at least as high, the "
        "real labels counted in. Less words: accuracy less that of the bag of words on the same prompts, in points. "
        "Larger class: what always naming it gets right."
    )
    versus = [Column("shuffled: AUC", True, intervals=True), Column("p", True)]
    columns = [Column("probe"), *_measure_columns(), *versus, Column("less words", True, intervals=True)]
    return small_table(caption, columns, body)


def _probe_cell(row: Row) -> Cell:
    """A group's name; below it why it was not probed."""
    return Cell(group_name(row), note=f"not probed: {row['skipped']}" if row.get("skipped") else "")


def _versus(row: Row) -> list[Cell]:
    return [*_shuffled(row), points_cell(row.get("versus_words"))]


def _shuffled(row: Row) -> list[Cell]:
    """Mean AUC of shuffled labels with its range, and p."""
    null = part(row, "shuffled", "auc")
    return [number_cell(null.get("mean"), 3, null.get("interval")), p_cell(null.get("p_value"))]


# --- random experts


def controls_table(task: Task) -> Table:
    """For each group, kind of random experts and measure: where the group falls among the draws."""
    body = [
        [
            text_cell(group_name(group)),
            text_cell(kind_name(row.get("kind"))),
            text_cell(title),
            *_placed(row, key),
            number_cell(row.get("n"), 0),
        ]
        for group in rows(task.get("groups"))
        for row in rows(group.get("controls"))
        for key, title in PLACED.items()
        if part(row, key)
    ]
    caption = (
        "Groups among random experts, draws of as many others: the group, in the repeats that the draws have too; the "
        "draws' mean, below it the least and the most; p: share of draws at least as good, the group counted in, its "
        "smallest value is 1 / (1 + draws). Experts alone: means of probes that read one expert each."
    )
    columns = [Column("group"), Column("random experts"), Column("measure"), Column("group's value", True)]
    columns += [Column("random: mean", True, intervals=True), Column("p", True), Column("draws", True)]
    return small_table(caption, columns, body)


def _placed(row: Row, key: str) -> list[Cell]:
    """Value, mean and range of the draws, p."""
    found, in_percent = part(row, key), key == "accuracy"
    values = numbers([found.get(name) for name in ("value", "mean", "min", "max")])
    value, mean, *ends = percents(values) if in_percent else values
    digits = 1 if in_percent else 3
    return [number_cell(value, digits), number_cell(mean, digits, ends), p_cell(found.get("p_value"))]


# --- transfer


def transfer_table(task: Task) -> Table:
    """One row a group, then the bag of words: the same probes on other prompts."""
    found = [(group_name(group), part(group, "transfer")) for group in rows(task.get("groups"))]
    found.append(("bag of words", part(task, "words", "transfer")))
    body = [
        [text_cell(name), *_measures(row), points_cell(row.get("versus_words"))] for name, row in found if row
    ]
    sides = " and ".join(map(str, items(task.get("transfer"))))
    caption = (
        f"Transfer: the same probes on the {sides} prompts, as positive ones, and on negative prompts; none of them, "
        "nor their twins, trained the probe. Recall: how many of the positive ones it calls so."
    )
    columns = [Column("probe"), *_measure_columns(), Column("less words", True, intervals=True)]
    return small_table(caption, columns, body)


# --- experts alone, layers, curves


def experts_table(task: Task) -> Table:
    """One row an expert of a group, the highest AUC first."""
    found = sorted(
        rows(task.get("experts")), key=lambda row: -(number(part(row, "auc").get("value")) or -1.0)
    )
    body = [
        [
            expert_cell(*place),
            text_cell(listing(items(row.get("groups")))),
            number_cell(row.get("n"), 0),
            auc_cell(row.get("auc")),
            rate_cell(row.get("accuracy")),
            *_shuffled(row),
            *_placed(part(row, "controls"), "auc")[1:],
            number_cell(part(row, "controls").get("n"), 0),
        ]
        for row in found
        if (place := place_of(row))
    ]
    caption = (
        "Experts of the groups, each probed alone, the highest AUC first; random: single random experts of its layer, "
        "their mean, below it the least and the most, and the share of them at least as good, the expert counted in. "
        "p-values are not corrected for the number of experts."
    )
    columns = [
        Column("expert", True),
        Column("group"),
        Column("prompts", True),
        Column("AUC", True, intervals=True),
    ]
    columns += [Column("accuracy, %", True, intervals=True), Column("shuffled: AUC", True, intervals=True)]
    columns += [Column("p", True), Column("random: AUC", True, intervals=True), Column("p", True)]
    return small_table(caption, [*columns, Column("random experts", True)], body)


def place_of(row: Row) -> tuple[int, int] | None:
    """Layer and number of an expert, where the row names one."""
    layer, expert = whole_number(row.get("layer")), whole_number(row.get("expert"))
    return None if layer is None or expert is None else (layer, expert)


def group_layers(task: Task) -> dict[str, dict[int, float]]:
    """Mean AUC of each group's experts alone, by layer; in the repeats of random experts, where there are any."""
    found: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows(task.get("experts")):
        place = place_of(row)
        known = [number(part(one, "auc").get("value")) for one in (part(row, "controls"), row)]
        value = next((one for one in known if one is not None), None)
        if place and value is not None:
            for name in items(row.get("groups")):
                found[str(name)][place[0]].append(value)
    return {name: {layer: fmean(of) for layer, of in layers.items()} for name, layers in found.items()}


def layers_table(task: Task) -> Table:
    """One row a layer: means over single experts."""
    groups = group_layers(task) if len(rows(task.get("groups"))) > 1 else {}
    body = [
        [
            number_cell(row.get("layer"), 0),
            number_cell(row.get("n"), 0),
            number_cell(row.get("auc"), 3),
            number_cell(percent(row.get("accuracy")), 1),
            *(number_cell(_at(of, row.get("layer")), 3) for of in groups.values()),
            number_cell(row.get("n_controls"), 0),
            number_cell(row.get("control_auc"), 3),
            number_cell(percent(row.get("control_accuracy")), 1),
        ]
        for row in rows(task.get("layers"))
    ]
    own = ("layer", "experts of groups", "AUC", "accuracy, %", *(f"AUC, {name}" for name in groups))
    titles = (*own, "random experts", "random: AUC", "random: accuracy, %")
    caption = "Means over experts probed alone, by layer: those of the groups, and random ones."
    return small_table(caption, [Column(title, True) for title in titles], body)


def _at(of: dict[int, float], layer: Any) -> float | None:
    found = whole_number(layer)
    return None if found is None else of.get(found)


def curve_table(task: Task) -> Table:
    """One row a group and number of training prompts."""
    body = [row for group in rows(task.get("groups")) for row in _curve_rows(group)]
    caption = "Groups by number of training prompts, tested on the same prompts."
    columns = [Column("group"), Column("training prompts", True), Column("AUC", True, intervals=True)]
    return small_table(caption, [*columns, Column("accuracy, %", True, intervals=True)], body)


def _curve_rows(group: Row) -> Iterator[list[Cell]]:
    for point in rows(group.get("curve")):
        n = number_cell(point.get("n_train"), 1)
        yield [text_cell(group_name(group)), n, auc_cell(point.get("auc")), rate_cell(point.get("accuracy"))]
