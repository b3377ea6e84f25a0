"""Line figures of an expert set and a profile: stability, divergence of sets by layer, stability of clusters."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .divergence import Divergence
from .panels import Figure, Line, Numbers, Panel
from .values import items, number, numbers, part, rows

KNOWN_SETS = {"regular": 0, "jailbreak": 1, "benign": 2}
AXES = (("top", "by_top", "N, experts that count as the top"), ("resamples", "by_resamples", "S, resamples"))


def set_styles(names: Iterable[str]) -> dict[str, int]:
    """The style of each set, the same in all figures.

    >>> set_styles(["benign", "other"])
    {'regular': 0, 'jailbreak': 1, 'benign': 2, 'other': 3}
    """
    styles = dict(KNOWN_SETS)
    for name in names:
        styles.setdefault(name, len(styles))
    return styles


# --- stability


def stability_figures(curves: dict[str, Any], name: str) -> list[Figure]:
    """Against N and S: how many experts are stable in each set; how often each expert of a group is in the top N."""
    sizes = [panel for axis in AXES if (panel := _size_panel(curves, *axis))]
    frequencies = [
        panel
        for group in part(curves, "groups")
        for axis in AXES
        if (panel := _frequency_panel(curves, group, *axis))
    ]
    sizes_caption = (
        "How many experts are in the top N of enough resamples to be called stable. Where the curve against S is "
        "flat, more resamples would not change the set."
    )
    frequencies_caption = (
        "One line an expert: the share of resamples in which it is among the top N. An expert that is stable for any "
        "reasonable N stays at 1; one that hangs on the choice of N rises late."
    )
    figures = [
        Figure(f"{name}-sizes", sizes_caption, sizes),
        Figure(f"{name}-frequencies", frequencies_caption, frequencies),
    ]
    return [figure for figure in figures if figure.panels]


def _size_panel(curves: dict[str, Any], axis: str, key: str, title: str) -> Panel | None:
    x = _axis(curves, axis)
    stable = part(curves, "stable")
    styles = set_styles(stable)
    lines = [
        Line(name, x, numbers(part(found).get(key)), style=styles[name])
        for name, found in stable.items()
        if _fits(x, part(found).get(key))
    ]
    return (
        Panel(f"Stable experts against {title[0]}", title, "experts", lines, log_x=_wide(x))
        if lines
        else None
    )


def _frequency_panel(curves: dict[str, Any], group: str, axis: str, key: str, title: str) -> Panel | None:
    x = _axis(curves, axis)
    lines = [
        Line(f"{row.get('layer')}:{row.get('expert')}", x, numbers(row.get(key)), style=i, legend=False)
        for i, row in enumerate(rows(part(curves, "groups").get(group)))
        if _fits(x, row.get(key))
    ]
    heading = f"Group {group} against {title[0]}"
    return Panel(heading, title, "frequency", lines, (0, 1.03), _wide(x)) if lines else None


def _axis(curves: dict[str, Any], axis: str) -> list[float]:
    return [found for value in items(curves.get(axis)) if (found := number(value)) is not None]


def _fits(x: list[float], values: Any) -> bool:
    return bool(x) and len(items(values)) == len(x)


def _wide(x: list[float]) -> bool:
    return min(x) > 0 and max(x) / min(x) >= 30


# --- divergence


def divergence_figure(
    by_phase: dict[str, list[Divergence]], layers: list[int], profile: str
) -> Figure | None:
    """One panel a phase, one line a pair of sets; None where there is one set only.

    ``profile`` names the profile where there are several, or is empty.
    """
    x = [float(layer) for layer in layers]
    panels = [
        Panel(f"Phase {phase}", "layer", "JS divergence (bits)", _divergence_lines(found, x))
        for phase, found in by_phase.items()
        if found
    ]
    caption = (
        "Where the sets are routed differently: Jensen-Shannon divergence of their expert use in each layer, 0 (the "
        "same) to 1 bit (no expert in common). Dotted: what 95 of 100 random shuffles of the set labels stay below; a "
        "line that does not rise above its dotted one shows no difference. The scales of the panels differ."
    )
    if profile:
        caption = f"Profile {profile}. {caption}"
    return Figure(f"divergence-{profile}".rstrip("-"), caption, panels) if panels else None


def _divergence_lines(found: list[Divergence], x: list[float]) -> list[Line]:
    lines = []
    for i, pair in enumerate(found):
        name = f"{pair.a} and {pair.b}"
        lines.append(Line(name, x, _values(pair.observed), style=i))
        lines.append(Line(f"{name}, shuffled", x, _values(pair.chance), style=i, quiet=True, legend=False))
    return lines


def _values(array: Any) -> Numbers:
    return [number(value) for value in array.tolist()]


# --- clusters


def cluster_figure(clusters: dict[str, Any], name: str) -> Figure | None:
    """Agreement of two clusterings from disjoint halves of the prompts, by number of clusters."""
    found = [row for row in rows(clusters.get("stability")) if number(row.get("k")) is not None]
    if not found:
        return None
    x = [float(row["k"]) for row in found]
    ends = [numbers(row.get("interval")) for row in found]
    low, high = ([end[i] if len(end) == 2 else None for end in ends] for i in (0, 1))
    lines = [
        Line("halves of the prompts", x, [number(row.get("ari")) for row in found], low, high),
        Line("null", x, [number(row.get("null")) for row in found], quiet=True),
    ]
    caption = (
        "How well two clusterings of the experts, made from different halves of the prompts, agree: adjusted Rand "
        "index, 1 means the same clusters, 0 no more than chance. Dotted: the same without structure in the prompts."
    )
    panel = Panel("Stability of the clusters", "number of clusters", "adjusted Rand index", lines)
    return Figure(name, caption, [panel])
