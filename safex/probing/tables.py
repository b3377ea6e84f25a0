"""A probing as plain tables, for CSV and parquet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from safex.probing.result import Probing
from safex.probing.scores import METRICS, Row
from safex.tables import Tables, make_tables

NAMES = ("probes", "probe_comparisons", "probe_controls", "probe_curves", "probe_layers", "projection")
COMPARED = ("accuracy", "balanced_accuracy", "auc")


def probing_tables(probing: Probing) -> Tables:
    """Tables ``NAMES``, those that there are rows for. Raises InputError for parts of another layout.

    ``probes``: a row for each task, probe ("group", "expert", "words", "majority"), what it was tested on ("task" or
    "transfer") and measure. ``probe_comparisons``: where a group's or an expert's measure falls among shuffled labels
    or controls. ``probe_controls``: a row for each control draw and random expert. ``probe_curves``: groups by number
    of training prompts. ``probe_layers``: means of single experts. ``projection``: a row for each group and prompt.
    """
    tasks = probing.tasks
    return make_tables(
        {
            "probes": lambda: (row for task in tasks for row in _probes(task)),
            "probe_comparisons": lambda: (row for task in tasks for row in _comparisons(task)),
            "probe_controls": lambda: (row for task in tasks for row in _controls(task)),
            "probe_curves": lambda: (row for task in tasks for row in _curves(task)),
            "probe_layers": lambda: (
                {"task": task["task"], **row} for task in tasks for row in task["layers"]
            ),
            "projection": lambda: _points(probing),
        },
        "probing",
    )


def _subjects(task: Row) -> Iterator[tuple[Row, Row]]:
    """Labels and row of every real probe."""
    for row in task["groups"]:
        yield (
            {"task": task["task"], "probe": "group", "group": row["group"], "layer": None, "expert": None},
            row,
        )
    for row in task["experts"]:
        place = {"layer": row["layer"], "expert": row["expert"]}
        yield {"task": task["task"], "probe": "expert", "group": ", ".join(row["groups"]), **place}, row


def _probes(task: Row) -> Iterator[Row]:
    for labels, row in _subjects(task):
        yield from _measures({**labels, "tested": "task"}, row)
        yield from _measures({**labels, "tested": "transfer"}, row.get("transfer") or {})
    none = {"task": task["task"], "group": None, "layer": None, "expert": None}
    words = task["words"] or {}
    yield from _measures({**none, "probe": "words", "tested": "task"}, words)
    yield from _measures({**none, "probe": "words", "tested": "transfer"}, words.get("transfer") or {})
    yield from _measures(
        {**none, "probe": "majority", "tested": "task"}, {"n": task["n"], "accuracy": task["majority"]}
    )


def _measures(labels: Row, row: Mapping[str, Any]) -> Iterator[Row]:
    for name in METRICS:
        if row.get(name) is not None:
            yield {**labels, "measure": name, "n": row["n"], **_with_ends(row[name])}


def _comparisons(task: Row) -> Iterator[Row]:
    for labels, row in _subjects(task):
        if row.get("shuffled"):
            yield from _placements(
                {**labels, "among": "shuffled labels"}, row["shuffled"], ("accuracy", "auc")
            )
        controls = row["controls"] if isinstance(row["controls"], list) else [row["controls"]]
        for control in controls:
            among = f"controls: {control['kind']}" if "kind" in control else "random experts of the layer"
            names = [*COMPARED, *(f"mean_single_{name}" for name in COMPARED), "transfer_auc"]
            yield from _placements({**labels, "among": among}, control, names)


def _placements(labels: Row, row: Row, names: Any) -> Iterator[Row]:
    for name in names:
        if row.get(name) is not None:
            yield {**labels, "measure": name, "n": row["n"], **_with_ends(row[name])}


def _with_ends(estimate: Row) -> Row:
    """``interval`` as ``low`` and ``high``."""
    low, high = estimate["interval"]
    return {key: value for key, value in estimate.items() if key != "interval"} | {"low": low, "high": high}


def _controls(task: Row) -> Iterator[Row]:
    for row in task["control_groups"]:
        experts = ", ".join(row["experts"])
        yield {"task": task["task"], "layer": None, "expert": None, **row, "experts": experts}
    for row in task["control_experts"]:
        labels = {"group": None, "kind": "expert", "draw": None, "experts": f"{row['layer']}:{row['expert']}"}
        yield {"task": task["task"], **labels, **row}


def _curves(task: Row) -> Iterator[Row]:
    for row in task["groups"]:
        for point in row.get("curve", []):
            yield {"task": task["task"], "group": row["group"], **point}


def _points(probing: Probing) -> Iterator[Row]:
    for row in probing.projection:
        for point in row["points"]:
            yield {"group": row["group"], **point}
