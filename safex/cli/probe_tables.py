"""What ``safex-native probe`` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from .output import Output, table

if TYPE_CHECKING:
    from rich.table import Table

    from safex.probing import Probing

SHOWN = 20  # experts in the printed table; the file holds all
PLAIN = ("balanced_accuracy", "precision", "recall", "f1")  # their intervals are in the file
COLUMNS = ("accuracy %", "balanced", "prec.", "recall", "F1", "AUC")


def show(out: Output, probing: Probing) -> None:
    """For each task its probes, controls and single experts; then the conclusion."""
    for note in probing.notes:
        out.note(f"note: {note}")
    for task in probing.tasks:
        sides = (" and ".join(task[side]) for side in ("positive", "negative"))
        n = f"{task['n']} prompts, {task['n_positive']} positive"
        out.text(f"Task {task['task']}: {' against '.join(sides)} ({n}; {PROBES})", probes_table(task))
        if task["transfer"]:
            out.text(transfer_heading(task), transfer_table(task))
        if any(row["controls"] for row in task["groups"]):
            out.text(CONTROLS, controls_table(task))
        if task["experts"]:
            out.text(EXPERTS, *experts_parts(task))
    out.text(f"Conclusion: {probing.conclusion}")


PROBES = "95 % intervals; shuffled: mean AUC of shuffled labels"
CONTROLS = (
    "Groups among random experts (mean, least to most; p = share of draws as good, the group itself counted)"
)
EXPERTS = "Experts alone, the best first, and random experts of their layers"


def probes_table(task: dict[str, Any]) -> Table:
    """One line a group, then the bag of words and the larger class."""
    body = [[row["group"], *_measured(row), *_shuffled(row)] for row in task["groups"]]
    if task["words"]:
        body.append(["words", *_measured(task["words"]), "", ""])
    body.append(["majority", str(task["n"]), _percent(task["majority"]), *[""] * 7])
    columns = ["probe", "n", *COLUMNS, "shuffled", "p"]
    return table(columns, body, right=range(1, len(columns)))


def transfer_heading(task: dict[str, Any]) -> str:
    """What the same probes are tried on."""
    sides = (" and ".join(task[side]) for side in ("transfer", "negative"))
    return f"The same probes on {' against '.join(sides)}, none of which they saw, nor their twins"


def transfer_table(task: dict[str, Any]) -> Table:
    """One line a group, then the words."""
    rows = [(row["group"], row.get("transfer")) for row in task["groups"]]
    rows.append(("words", (task["words"] or {}).get("transfer")))
    body = [[name, *_measured(row)] for name, row in rows if row]
    columns = ["probe", "n", *COLUMNS]
    return table(columns, body, right=range(1, len(columns)))


def controls_table(task: dict[str, Any]) -> Table:
    """One line a group and kind of control."""
    body = [
        [
            group["group"],
            row["kind"],
            str(row["n"]),
            *_placed(row["auc"], 1),
            *_placed(row["accuracy"], 100),
            *_placed(row["mean_single_auc"], 1),
        ]
        for group in task["groups"]
        for row in group["controls"]
    ]
    columns = ["group", "kind", "n", "AUC", "p", "accuracy %", "p", "AUC of single experts", "p"]
    return table(columns, body, right=range(2, len(columns)))


def experts_parts(task: dict[str, Any]) -> Iterator[Table | str]:
    """One line an expert, by AUC."""
    rows = sorted(task["experts"], key=lambda row: -(row.get("auc") or {"value": -1})["value"])
    body = [
        [
            f"{row['layer']}:{row['expert']}",
            ", ".join(row["groups"]),
            str(row["n"]),
            _percent(row.get("accuracy")),
            _estimate(row.get("auc")),
            *_shuffled(row),
            *_placed(row["controls"]["auc"], 1),
        ]
        for row in rows[:SHOWN]
    ]
    columns = ["expert", "group", "n", "accuracy %", "AUC", "shuffled", "p", "random: AUC", "p"]
    yield table(columns, body, right=range(2, len(columns)))
    if len(rows) > SHOWN:
        yield f"  and {len(rows) - SHOWN} more in the file\n"


def _measured(row: dict[str, Any]) -> list[str]:
    if row.get("skipped"):
        return [str(row["n"]), row["skipped"], *[""] * 5]
    plain = ("-" if row[name] is None else f"{100 * row[name]['value']:.1f}" for name in PLAIN)
    return [str(row["n"]), _percent(row["accuracy"]), *plain, _estimate(row["auc"])]


def _percent(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    low, high = estimate["interval"]
    return f"{100 * estimate['value']:.1f} [{100 * low:.0f}, {100 * high:.0f}]"


def _estimate(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return "-"
    low, high = estimate["interval"]
    return f"{estimate['value']:.3f} [{low:.3f}, {high:.3f}]"


def _shuffled(row: dict[str, Any]) -> list[str]:
    """Mean AUC of shuffled labels, and the p-value of the real ones."""
    null = (row.get("shuffled") or {}).get("auc")
    return [f"{null['mean']:.2f}", f"{null['p_value']:.2g}"] if null else ["", ""]


def _placed(placed: dict[str, Any] | None, factor: float) -> list[str]:
    if placed is None:
        return ["-", ""]
    digits = 1 if factor > 1 else 3
    mean, low, high = (f"{factor * placed[name]:.{digits}f}" for name in ("mean", "min", "max"))
    return [f"{mean} ({low}-{high})", f"{placed['p_value']:.2g}"]
