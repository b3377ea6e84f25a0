"""What a sweep says, as a section: its conclusion, how refusals begin, figures, tables."""

from __future__ import annotations

from typing import Any

from .content import Block, Prose, Section
from .sweep_figures import sweep_figures
from .sweep_tables import baseline_table, sweep_tables
from .values import fixed, listing, number, part, percent, plural, rows

Sweep = dict[str, Any]

FEW_STARTS = 12  # starts that are named
SIDES = (("refuse", "Refusals"), ("comply", "Compliant answers"))


def sweep_section(sweep: Sweep, number_: str = "", label: str = "") -> Section:
    """One section; ``number_`` and ``label`` tell several sweeps apart."""
    baseline = baseline_table(sweep)
    texts = [str(sweep.get("conclusion") or ""), _how(sweep), *(_starts(sweep, *side) for side in SIDES)]
    blocks: list[Block] = [
        Prose([text for text in texts if text]),
        *([baseline] if baseline.rows else []),
        *sweep_figures(sweep, f"-{label}" if label else ""),
        *sweep_tables(sweep),
    ]
    anchor = f"sweep-{number_}" if number_ else "sweep"
    title = "Which experts cause it"
    return Section(anchor, f"{title}: {label}" if label else title, blocks)


def _how(sweep: Sweep) -> str:
    """How many experts, masked how."""
    parameters, found = part(sweep, "parameters"), rows(sweep.get("rows"))
    mode, gain = parameters.get("mode"), parameters.get("gain")
    how = f" (mode {mode}{f', gain {gain}' if mode == 'zero' else ''})" if mode else ""
    neighbours = sum(row.get("role") == "neighbour" for row in found)
    near = f", {plural(neighbours, 'neighbour')} in activation among them" if neighbours else ""
    return f"{plural(len(found), 'expert')} masked, each alone{how}{near}."


def _starts(sweep: Sweep, side: str, what: str) -> str:
    """How the answers of a side begin, and how many of them so."""
    starts = part(sweep, "starts")
    texts = [repr(row.get("text", "")) for row in rows(starts.get(side))]
    if not texts:
        return ""
    share, n = (part(starts, key).get(side) for key in ("coverage", "answers"))
    known = number(share) is not None and number(n) is not None
    found = f" ({fixed(percent(share), 0)} % of {fixed(n, 0)})" if known else " (named by hand)"
    more = f" and {len(texts) - FEW_STARTS} more" if len(texts) > FEW_STARTS else ""
    return f"{what} begin with {listing(texts[:FEW_STARTS])}{more}{found}."
