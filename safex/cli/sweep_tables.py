"""What ``safex-native sweep`` prints."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .output import Output, number, table

if TYPE_CHECKING:
    from rich.table import Table

    from safex.attribution import Sweep

SHOWN = 20  # experts in the printed table; the file holds all


def show(out: Output, sweep: Sweep, seconds: float, n_before: int) -> None:
    """Starts, unmasked logits, experts, pairs, conclusion."""
    out.text(*starts_lines(sweep))
    out.text("Refusal logit without a mask", baseline_table(sweep))
    mode = sweep.parameters["mode"]
    how = f"mode {mode}, gain {sweep.parameters['gain']:g}" if mode == "zero" else f"mode {mode}"
    out.text(f"Effect of masking one expert on the refusal logit ({how}), most refusal-lowering first")
    out.text(experts_table(sweep))
    if sweep.pairs:
        out.text("Interactions: effect of both beyond the sum of their effects (regular)", pairs_table(sweep))
    out.text(sweep.conclusion, speed(sweep, seconds, n_before))


def starts_lines(sweep: Sweep) -> list[str]:
    """How refusals and compliant answers begin, and how many of the answers so."""
    lines = []
    for side, what in (("refuse", "Refusals"), ("comply", "Compliant answers")):
        shown = ", ".join(repr(start["text"]) for start in sweep.starts[side][:8])
        more = ", ..." if len(sweep.starts[side]) > 8 else ""
        share = sweep.starts["coverage"].get(side)
        found = f" ({share:.0%} of {sweep.starts['answers'][side]})" if share is not None else ""
        lines.append(f"{what} begin with {shown}{more}{found}")
    return lines


def baseline_table(sweep: Sweep) -> Table:
    """One line a set."""
    body = [
        [name, str(row["prompts"]), f"{row['logit']:+.2f}", _span(row["interval"])]
        for name, row in sweep.baseline.items()
    ]
    return table(["set", "prompts", "logit", "95 %"], body, right=(1, 2, 3))


def experts_table(sweep: Sweep) -> Table:
    """One line an expert."""
    others = [name for name in sweep.baseline if name != "regular"]
    last = [name for name in ("specificity", "gradient") if name in sweep.rows[0]]
    columns = ["expert", "role", "regular", "95 %", *others, "used", "p adjusted", *last]
    body = [
        [
            f"{row['layer']}:{row['expert']}",
            row["role"],
            f"{row['effect']['regular']:+.3f}",
            _span(row["interval"]["regular"]),
            *(f"{row['effect'][name]:+.3f}" for name in others),
            f"{row['used']:.0%}",
            f"{row['p_adjusted']:.2g}",
            *(f"{row[name]:+.3f}" for name in last),
        ]
        for row in sweep.rows[:SHOWN]
    ]
    return table(columns, body, right=range(2, len(columns)))


def pairs_table(sweep: Sweep) -> Table:
    """One line a pair."""
    body = [
        [
            " and ".join(row["experts"]),
            f"{row['effect']:+.3f}",
            f"{row['interaction']:+.3f}",
            _span(row["interaction_interval"]),
            f"{row['p_adjusted']:.2g}",
        ]
        for row in sweep.pairs[:SHOWN]
    ]
    return table(["experts", "effect of both", "interaction", "95 %", "p adjusted"], body, right=(1, 2, 3, 4))


def _span(bounds: list[float]) -> str:
    return f"{bounds[0]:+.2f} to {bounds[1]:+.2f}"


def speed(sweep: Sweep, seconds: float, n_before: int) -> str:
    """How many runs it took; ``n_before``: those of an earlier run that this one went on with."""
    computed, skipped = sweep.parameters["computed"] - n_before, sweep.parameters["skipped"]
    before = f"; {number(n_before)} more were done before" if n_before else ""
    rate = computed / seconds
    return (
        f"Speed: {number(computed)} masked prompts in {seconds:.1f} s, "
        f"{number(rate) if rate >= 10 else f'{rate:.2g}'} a second{before}; "
        f"{number(skipped)} more needed no run: no token of theirs selects the masked expert"
    )
