"""Figures of a redundancy curve: refusal and compliance by the number of masked experts, the cost on harmless text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from .panels import Figure, Line, Numbers, Panel
from .values import interval, items, number, part, percent, percents, plural, rows, whole_numbers

Found = dict[str, Any]
Row = dict[str, Any]

PERCENT = (-3.0, 103.0)  # of an axis from 0 to 100, so that points at its ends are whole
MASKED = "experts masked"
VERBS = {"refuse": "Refusal", "comply": "Compliance"}
MARGIN = 0.08  # of a cost above its largest interval


def redundancy_figures(found: Found, tail: str = "") -> list[Figure]:
    """The curve, and the cost where it was measured; ``tail`` ends the names of their PNG files."""
    made = [curve_figure(found, f"redundancy{tail}"), cost_figure(found, f"redundancy-cost{tail}")]
    return [figure for figure in made if figure]


def curve_of(found: Found, name: str) -> list[Row]:
    """The rows of a set, one a size."""
    return next((rows(row.get("curve")) for row in rows(found.get("sets")) if row.get("set") == name), [])


def _place(size: float) -> float:
    return math.log2(1 + size)


def _names(sizes: Sequence[float]) -> dict[float, str]:
    return {_place(size): f"{size:,g}" for size in sizes}


# --- the curve


def curve_figure(found: Found, name: str) -> Figure | None:
    """Two panels, refusal and compliance on regular prompts; None without a curve."""
    curve = curve_of(found, "regular")
    sizes = [float(row["size"]) for row in curve if number(row.get("size")) is not None]
    if len(sizes) < 2 or len(sizes) != len(curve):
        return None
    panels = [_panel(found, curve, sizes, reading) for reading in VERBS]
    caption = (
        "Answers to regular prompts that could be read, with the first experts of the order masked; 95 % intervals "
        "(Wilson). Grey: "
        "control orders of each kind, their mean and the range of all. Diamonds: where refusal is halved, and the ends "
        "of its interval. Experts are counted on a logarithmic axis of 1 + their number, along which the area is taken."
    )
    return Figure(name, caption, panels)


def _panel(found: Found, curve: list[Row], sizes: list[float], reading: str) -> Panel:
    x = [_place(size) for size in sizes]
    ends = [interval(part(row, reading).get("interval")) for row in curve]
    low, high = ([percent(pair[i]) if pair else None for pair in ends] for i in (0, 1))
    values = [percent(part(row, reading).get("value")) for row in curve]
    lines = [
        *_controls(found, x, reading),
        Line("the order", x, values, low, high, band=True),
        *(_half(found, values[0], x) if reading == "refuse" else []),
    ]
    return Panel(
        f"{VERBS[reading]}, regular prompts", MASKED, "% of answers", lines, PERCENT, x_names=_names(sizes)
    )


def _controls(found: Found, x: list[float], reading: str) -> list[Line]:
    lines = []
    for i, kind in enumerate(rows(found.get("controls"))):
        curves = [percents(one.get(reading)) for one in rows(kind.get("orders"))]
        sizes = x[: max(map(len, curves), default=0)]  # fewer where the largest masks left nothing to read
        known = [
            [y for y in of if y is not None] for of in curves if len(of) == len(sizes) and None not in of
        ]
        if known and sizes:
            name = f"{plural(len(known), 'order')}, {kind.get('kind', '')}"
            lines.append(_control(name, sizes, known, i))
    return lines


def _control(name: str, x: list[float], curves: list[list[float]], style: int) -> Line:
    at_sizes = list(zip(*curves, strict=True))
    mean: Numbers = [sum(values) / len(values) for values in at_sizes]
    low, high = ([end(values) for values in at_sizes] for end in (min, max))
    if len(curves) == 1:
        return Line(name, x, mean, style=style, grey=True)
    return Line(name, x, mean, low, high, style, grey=True, band=True)


def _half(found: Found, unmasked: float | None, x: list[float]) -> list[Line]:
    """The level of one half, the half-point and the ends of its interval; an end that isn't reached is left out."""
    if unmasked is None:
        return []
    level = unmasked / 2
    half = part(found, "half")
    low, high = [*items(half.get("interval")), None, None][:2]
    points = [number(value) for value in (low, half.get("value"), high)]
    known = [_place(point) for point in points if point is not None]
    reference = Line("half of unmasked", [x[0], x[-1]], [level, level], quiet=True, grey=True)
    return [reference, *([Line("half-point", known, [level] * len(known), style=2)] if known else [])]


# --- cost


def cost_figure(found: Found, name: str) -> Figure | None:
    """Two panels, divergence and perplexity on harmless text; None where they weren't measured."""
    measured = [row for row in rows(found.get("utility")) if number(row.get("size")) is not None]
    if not measured:
        return None
    sizes = whole_numbers([0, *(row["size"] for row in measured)])
    x = [_place(size) for size in sizes]
    panels = [
        _cost_panel(title, y_title, key, unmasked, measured, x, sizes)
        for title, y_title, key, unmasked in (
            ("Divergence on harmless text", "KL, nats a token", "kl", 0.0),
            ("Perplexity on harmless text", "masked / unmasked", "ratio", 1.0),
        )
    ]
    caption = (
        "What the same masks cost on harmless text, with 95 % intervals: where refusal falls and this stays low, the "
        "model was opened up; where both move, it was broken."
    )
    return Figure(name, caption, panels)


def _cost_panel(
    title: str, y_title: str, key: str, unmasked: float, measured: list[Row], x: list[float], sizes: list[int]
) -> Panel:
    values = [unmasked, *(number(part(row, key).get("value")) for row in measured)]
    ends = [(unmasked, unmasked), *(interval(part(row, key).get("interval")) for row in measured)]
    low, high = ([pair[i] if pair else None for pair in ends] for i in (0, 1))
    top = (1 + MARGIN) * max((y for y in (*values, *high) if y is not None), default=1.0)
    lines = [Line("the order", x, values, low, high, band=True)]
    return Panel(title, MASKED, y_title, lines, (0.0, top or 1.0), x_names=_names(sizes))
