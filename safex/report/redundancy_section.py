"""What a redundancy curve says, as a section: its conclusion, the order, figures, tables, notes."""

from __future__ import annotations

from typing import Any

from .content import Block, Prose, Section
from .redundancy_figures import redundancy_figures
from .redundancy_tables import evidence_table, redundancy_tables
from .values import items, listing, part, plural

Found = dict[str, Any]

BY = {"listed": "in the order of their list", "active": "the most selected first"}
SEARCHES_NOT = "The order was fixed beforehand: no mask depends on what another one did."
NAMED = 40  # experts


def redundancy_section(found: Found, number_: str = "", label: str = "") -> Section:
    """One section; ``number_`` and ``label`` tell several curves apart."""
    notes = [f"Note: {note}" for note in items(found.get("notes"))]
    evidence = evidence_table(found)
    blocks: list[Block] = [
        Prose([text for text in (str(found.get("conclusion") or ""), _order(found)) if text]),
        *([evidence] if evidence.rows else []),
        *redundancy_figures(found, f"-{label}" if label else ""),
        *redundancy_tables(found),
        *([Prose(notes)] if notes else []),
    ]
    anchor = f"redundancy-{number_}" if number_ else "redundancy"
    title = "How many experts until refusal is halved"
    return Section(anchor, f"{title}: {label}" if label else title, blocks)


def _order(found: Found) -> str:
    """Which experts, in which order, masked how."""
    experts, parameters = items(found.get("experts")), part(found, "parameters")
    if not experts:
        return ""
    mode, gain = parameters.get("mode"), parameters.get("gain")
    how = f"; mode {mode}{f', gain {gain}' if mode == 'zero' else ''}" if mode else ""
    by = BY.get(str(parameters.get("order")), "")
    more = f" and {len(experts) - NAMED:,} more" if len(experts) > NAMED else ""
    return (
        f"Masked: {plural(len(experts), 'expert')}{f', {by}' if by else ''} ({listing(experts[:NAMED])}{more}){how}. "
        f"{SEARCHES_NOT}"
    )
