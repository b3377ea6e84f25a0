"""Tables and figures of a comparison of two profiles or of two expert sets."""

from __future__ import annotations

from typing import Any

from .content import Cell, Column, Table, number_cell, p_cell, small_cell, small_table, text_cell
from .panels import Figure, Line, Panel
from .values import fixed, items, listing, number, part, rows

Comparison = dict[str, Any]


def comparison_tables(comparison: Comparison) -> list[Table]:
    """Overall measures, stable sets, groups; those that the file holds."""
    tables = [_overall(comparison), _stable(comparison), _groups(comparison)]
    return [table for table in tables if table.rows]


def _overall(comparison: Comparison) -> Table:
    columns = [
        Column("set"),
        Column("agreement", True, intervals=True),
        Column("rank correlation", True),
        Column("JS divergence", True, intervals=True),
        Column("JS floor (sampling)", True),
    ]
    body = [
        [
            text_cell(row.get("set", "")),
            number_cell(row.get("agreement"), ends=row.get("agreement_interval")),
            number_cell(row.get("rank_correlation")),
            small_cell(row.get("js_divergence"), row.get("js_interval")),
            small_cell(row.get("js_floor")),
        ]
        for row in rows(comparison.get("overall"))
    ]
    caption = (
        "Over all layers. Agreement: the share of selections that coincide, prompt by prompt. Rank correlation: "
        "Spearman, of activation. JS divergence: of the distributions of expert use, in bits, 0 (equal) to 1. Floor: "
        "the divergence between two random halves of A's prompts, which sampling alone gives."
    )
    return small_table(caption, columns, body)


def _stable(comparison: Comparison) -> Table:
    body = [
        [
            text_cell(row.get("set", "")),
            number_cell(row.get("n_a")),
            number_cell(row.get("n_b")),
            number_cell(row.get("jaccard"), 3, row.get("interval")),
            *_moved(row),
        ]
        for row in rows(comparison.get("stable_sets"))
    ]
    caption = (
        "Stable experts of each set, in A and in B. The range below a Jaccard is that of the two top lists over the "
        "resamples; it need not hold the value, which is that of the stable experts."
    )
    columns = [
        Column("set"),
        Column("in A", True),
        Column("in B", True),
        Column("Jaccard", True, intervals=True),
    ]
    return small_table(caption, columns + _MOVED, body)


def _groups(comparison: Comparison) -> Table:
    body = [
        [
            text_cell(name),
            number_cell(part(group).get("n_a")),
            number_cell(part(group).get("n_b")),
            number_cell(part(group).get("jaccard"), 3),
            number_cell(part(group).get("chance"), 3),
            p_cell(part(group).get("p_value")),
            *_moved(part(group)),
        ]
        for name, group in part(comparison, "groups").items()
    ]
    columns = [Column("group"), Column("in A", True), Column("in B", True)]
    columns += [Column(title, True) for title in ("Jaccard", "Jaccard by chance", "p-value")]
    caption = (
        "Groups in A and in B; p is the probability of an overlap this large between groups drawn at random."
    )
    return small_table(caption, columns + _MOVED, body)


_MOVED = [Column("in both"), Column("only in B"), Column("only in A")]


def _moved(row: dict[str, Any]) -> list[Cell]:
    return [text_cell(listing(items(row.get(key)))) for key in ("stayed", "entered", "left")]


def comparison_figure(comparison: Comparison, name: str, styles: dict[str, int]) -> Figure | None:
    """Agreement, rank correlation and divergence of each layer; None where the file has no layers."""
    found = rows(comparison.get("per_layer"))
    by_set: dict[str, list[dict[str, Any]]] = {}
    for row in found:
        if number(row.get("layer")) is not None:
            by_set.setdefault(str(row.get("set", "")), []).append(row)
    if not by_set:
        return None
    panels = [
        _near_one("Agreement", "share", _lines(by_set, "agreement", styles)),
        _near_one("Rank correlation", "Spearman", _lines(by_set, "rank_correlation", styles)),
        Panel(
            "Divergence",
            "layer",
            "JS divergence (bits)",
            [*_lines(by_set, "js_divergence", styles, "js_interval"), *_floors(by_set, styles)],
        ),
    ]
    panels = [panel for panel in panels if any(y is not None for line in panel.lines for y in line.y)]
    caption = (
        "Each layer in A and in B. Agreement and rank correlation: 1 means the two route alike; the axis does not "
        "start at 0. Divergence: 0 means alike; where the bars of a line reach its dotted floor, A and B differ no "
        "more than two random halves of the prompts do."
    )
    return Figure(name, caption, panels) if panels else None


def _lines(
    by_set: dict[str, list[dict[str, Any]]], key: str, styles: dict[str, int], ends: str = ""
) -> list[Line]:
    def at(row: dict[str, Any], end: int) -> float | None:
        pair = items(row.get(ends))
        return number(pair[end]) if len(pair) == 2 else None

    return [
        Line(
            name,
            [float(row["layer"]) for row in found],
            [number(row.get(key)) for row in found],
            [at(row, 0) for row in found] if ends else None,
            [at(row, 1) for row in found] if ends else None,
            style=styles.setdefault(name, len(styles)),
        )
        for name, found in by_set.items()
    ]


def _near_one(title: str, y_title: str, lines: list[Line]) -> Panel:
    """A panel whose axis ends a little above 1 and a little below the smallest value."""
    low = min((y for line in lines for y in line.y if y is not None), default=0.0)
    room = max(1 - low, 0.02)
    return Panel(title, "layer", y_title, lines, (low - 0.1 * room, 1 + 0.1 * room))


def _floors(by_set: dict[str, list[dict[str, Any]]], styles: dict[str, int]) -> list[Line]:
    return [
        Line(
            f"floor, {name}",
            [float(row["layer"]) for row in found],
            [number(row.get("js_floor")) for row in found],
            style=styles[name],
            quiet=True,
            legend=False,
        )
        for name, found in by_set.items()
    ]


def facts(side: dict[str, Any]) -> str:
    """One side of a comparison in a line."""
    quant = side.get("quant_types")
    parts = [
        side.get("name") or side.get("path"),
        side.get("architecture"),
        listing(quant) if isinstance(quant, list) and quant else quant,
        f"fingerprint {str(side['fingerprint'])[:12]}" if side.get("fingerprint") else None,
        side.get("path"),
    ]
    return ", ".join(str(p) for p in dict.fromkeys(parts) if p)


def prompts_line(comparison: Comparison) -> str:
    """How many prompts the two have in common."""
    prompts = part(comparison, "prompts")
    if number(prompts.get("common")) is None:
        return ""
    return (
        f"Prompts: {fixed(prompts['common'], 0)} in both, {fixed(prompts.get('only_a'), 0)} in A only, "
        f"{fixed(prompts.get('only_b'), 0)} in B only."
    )
