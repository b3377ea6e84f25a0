"""What ``safex-native redundancy`` prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .eval_tables import READINGS, UNKNOWN, say_policy
from .output import Output, table

if TYPE_CHECKING:
    from rich.table import Table

    from safex.redundancy_curve import Redundancy

CURVE = (
    "Rates in % of the answers that could be read, with 95 % intervals; the first experts of the order masked"
)
AREAS = (
    "Area under the curve, mean (least to most): refusal relative to no mask (1 = nothing lost), compliance as it is; "
    "half = masked experts that halve refusal, of the control orders how many, and their median"
)


def show(out: Output, found: Redundancy, output: Path) -> None:
    """The curve of each set, areas of the order and its controls, cost, conclusion."""
    for note in found.notes:
        out.note(f"note: {note}")
    say_policy(out, found.parameters)
    out.text(CURVE, curve_table(found))
    if found.area:
        out.text(AREAS, areas_table(found))
    out.text(f"Conclusion: {found.conclusion}", f"Answers: {found.responses}", f"Result: {output}")


def curve_table(found: Redundancy) -> Table:
    """One line a set and size; what it costs stands beside the first set."""
    cost = {row["size"]: row for row in found.utility}
    body = [
        [
            of_set["set"] if step["size"] == 0 else "",
            str(step["size"]),
            "" if step["size"] == 0 or of_set is not found.sets[0] else found.experts[step["size"] - 1],
            *(_rate(step[reading]) for reading in READINGS[:2]),
            f"{100 * step['other']['value']:.1f}" if step["other"] else UNKNOWN,
            str(step["readable"]),
            *(_cost(cost.get(step["size"]) if of_set is found.sets[0] else None) if cost else ()),
        ]
        for of_set in found.sets
        for step in of_set["curve"]
    ]
    columns = ["set", "masked", "last", *READINGS, "read", *(("KL", "ppl x") if cost else ())]
    return table(columns, body, right=range(1, len(columns)))


def _rate(estimate: dict[str, Any] | None) -> str:
    if estimate is None:
        return UNKNOWN
    low, high = estimate["interval"]
    return f"{100 * estimate['value']:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _cost(row: dict[str, Any] | None) -> Sequence[str]:
    return ("", "") if row is None else (f"{row['kl']['value']:.4f}", f"{row['ratio']['value']:.3f}")


def areas_table(found: Redundancy) -> Table:
    """The order itself, then one line a kind of control."""
    from safex.redundancy_curve.conclusion import span

    half = found.half
    own = "not reached" if half["value"] is None else f"{half['value']:.1f} [{span(half['interval'])}]"
    spans = [f"{found.area[r]['value']:.2f} [{_ends(found.area[r]['interval'])}]" for r in READINGS[:2]]
    body = [["the order", "", spans[0], "", "", spans[1], own]]
    body += [_control_line(row) for row in found.controls]
    columns = ["order", "n", "refusal", "order less these", "p", "compliance", "half"]
    return table(columns, body, right=range(1, len(columns)))


def _control_line(row: dict[str, Any]) -> list[str]:
    refuse, comply, half = row["refuse"], row["comply"], row["half"]
    difference = refuse["difference"]
    middle = "" if half["median"] is None else f", {half['median']:.1f}"
    return [
        row["kind"],
        str(row["n"]),
        _mean(refuse),
        f"{difference['value']:+.2f} [{_ends(difference['interval'], '+.2f')}]",
        f"{refuse['placement']['p_value']:.3f}" if row["n"] > 1 else "",
        _mean(comply),
        f"{half['reached']} of {row['n']}{middle}",
    ]


def _mean(values: dict[str, Any]) -> str:
    mean, low, high = (f"{values[name]:.2f}" for name in ("mean", "min", "max"))
    return mean if low == high else f"{mean} ({low}-{high})"


def _ends(interval: Sequence[float], form: str = ".2f") -> str:
    return ", ".join(format(end, form) for end in interval)
