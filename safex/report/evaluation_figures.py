"""Figures of an evaluation: rates of each set without and with the mask, the mask among its control masks."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

from .evaluation_tables import READINGS, SIDES, judged
from .panels import Dots, Figure, Line, RowPanel, side_by_side
from .values import interval, part, percent, rows

PERCENT = (-3.0, 103.0)  # of an axis from 0 to 100, so that points at its ends are whole
APART = 0.42  # rows between the bars of one set, without and with the mask
SET_HEIGHT, KIND_HEIGHT = 38, 40  # pixels of a row
VERBS = {"refuse": "Refusal", "comply": "Compliance", "other": "Neither"}

Results = dict[str, Any]


Maker = Callable[
    [Results, str, str], "Figure | None"
]  # of results, name, and what its caption says of the judge


def by_judge(evaluation: dict[str, Any], make: Maker, name: str, tail: str = "") -> list[Figure]:
    """One figure a judge; ``tail`` ends the names of their PNG files."""
    found = judged(evaluation)
    if len(found) == 1:
        figures = [make(found[0][1], f"{name}{tail}", "")]
    else:
        figures = [make(results, f"{name}-{judge}{tail}", f" Judge {judge}.") for judge, results in found]
    return [figure for figure in figures if figure]


# --- rates


def rates_figure(results: Results, name: str, by: str = "") -> Figure | None:
    """One panel a reading, one row a set, a bar without and one with the mask; None without sets."""
    sets = [row for row in rows(results.get("sets")) if part(row, "before")]
    if not sets:
        return None
    names = [str(row.get("set", "")) for row in sets]
    panels = [
        RowPanel(
            VERBS[reading],
            "% of readable answers",
            names,
            _bars(sets, reading),
            x_range=PERCENT,
            row_height=SET_HEIGHT,
        )
        for reading in READINGS
    ]
    masked = any(part(row, "after") for row in sets)
    caption = (
        f"How the answers to each set of prompts read{', without and with the mask' if masked else ''}, in percent of "
        f"those that could be read (no bar: none could). Thin lines: 95 % intervals (Wilson).{by}"
    )
    return Figure(name, caption, panels)


def _bars(sets: list[Results], reading: str) -> list[Dots]:
    sides = [
        (i, title, side) for i, (title, side) in enumerate(SIDES) if any(part(row, side) for row in sets)
    ]
    return [
        _bar(sets, reading, title, side, i, APART * (i - 0.5) if len(sides) > 1 else 0.0)
        for i, title, side in sides
    ]


def _bar(sets: list[Results], reading: str, title: str, side: str, style: int, shift: float) -> Dots:
    estimates = [part(row, side, reading) for row in sets]
    ends = [interval(estimate.get("interval")) for estimate in estimates]
    low, high = ([percent(pair[i]) if pair else None for pair in ends] for i in (0, 1))
    return Dots(
        title,
        [row + shift for row in range(len(sets))],
        [percent(estimate.get("value")) for estimate in estimates],
        low,
        high,
        style,
        bars=True,
        notes=[str(row.get("set", "")) for row in sets],
    )


# --- controls


def controls_figure(results: Results, name: str, by: str = "") -> Figure | None:
    """Two panels a set, refusal and compliance: a point each control mask, a row a kind; None without controls."""
    by_set: dict[str, list[Results]] = defaultdict(list)
    for row in rows(results.get("controls")):
        by_set[str(row.get("set", ""))].append(row)
    panels = [
        _strip(results, set_, controls, reading)
        for set_, controls in by_set.items()
        for reading in ("refuse", "comply")
    ]
    caption = (
        "Where the mask falls among control masks of as many other experts. A small circle is one control mask (equal "
        "ones stand above each other), the square is the mask, the dotted line no mask at all. A mask that does what "
        f"any mask would do lies among the circles.{by}"
    )
    return Figure(name, caption, panels) if panels else None


def _strip(results: Results, set_: str, controls: list[Results], reading: str) -> RowPanel:
    of_set: Results = next((r for r in rows(results.get("sets")) if str(r.get("set", "")) == set_), {})
    kinds = [str(row.get("kind", "")) for row in controls]
    before, after = (percent(part(of_set, side, reading).get("value")) for side in ("before", "after"))
    real = Dots("the mask", range(len(kinds)), [after] * len(kinds), style=1, notes=kinds)
    title = f"{VERBS[reading]}, {set_} prompts"
    panel = RowPanel(title, "% of answers", kinds, [], x_range=PERCENT, row_height=KIND_HEIGHT)
    panel.dots.extend([_draws(controls, reading), real])
    panel.lines.extend(_no_mask(panel, before))
    return panel


def _no_mask(panel: RowPanel, before: float | None) -> list[Line]:
    return [] if before is None else [panel.upright("no mask", before)]


def _draws(controls: list[Results], reading: str) -> Dots:
    points = [
        (row + shift, value, str(mask.get("mask", "")))
        for row, control in enumerate(controls)
        for mask, value, shift in _placed(rows(control.get("masks")), reading)
    ]
    places, values, names = zip(*points, strict=True) if points else ((), (), ())
    return Dots("control masks", places, values, quiet=True, notes=names)


def _placed(masks: list[Results], reading: str) -> list[tuple[Results, float | None, float]]:
    """Each mask with its value and how far from the middle of its row it is drawn."""
    values = [percent(mask.get(reading)) for mask in masks]
    return list(zip(masks, values, side_by_side(values), strict=True))
