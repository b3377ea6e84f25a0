"""Figures of a sweep: the strongest effects with their intervals, all effects as a map."""

from __future__ import annotations

from typing import Any

import numpy as np

from .activation import robust_scale
from .figures import set_styles
from .panels import Dots, Figure, Grid, Numbers, RowPanel
from .sweep_tables import sets_of, swept_all
from .values import interval, number, part, plural, rows, whole_numbers

Sweep = dict[str, Any]
Row = dict[str, Any]

SHOWN = 40  # experts in the figure
APART = 0.24  # rows between the points of two sets
EFFECT = "effect on the refusal logit"


def sweep_figures(sweep: Sweep, tail: str = "") -> list[Figure]:
    """The strongest effects, and the map where every expert was swept; ``tail`` ends the names of their PNG files."""
    found = [effects_figure(sweep, f"effects{tail}"), map_figure(sweep, f"effects-map{tail}")]
    return [figure for figure in found if figure]


# --- the strongest


def effects_figure(sweep: Sweep, name: str) -> Figure | None:
    """A row an expert, the most refusal-lowering first, a point and interval a set; None without experts."""
    found = rows(sweep.get("rows"))
    shown, sets = found[:SHOWN], sets_of(sweep)
    if not shown or not sets:
        return None
    labels = [f"{row['layer']}:{row['expert']}" for row in shown]
    styles = set_styles(sets)
    dots = [_points(shown, set_, styles[set_], i - (len(sets) - 1) / 2) for i, set_ in enumerate(sets)]
    title = f"The {len(shown)} most refusal-lowering of {plural(len(found), 'expert')}"
    panel = RowPanel(
        title if len(found) > len(shown) else "Effect of each expert", EFFECT, labels, dots, row_height=17
    )
    caption = (
        "What masking one expert alone does to the refusal logit, with 95 % intervals. Left of 0: a refusal becomes "
        "less probable. An expert that moves benign prompts as far as regular ones is not one of safety."
    )
    return Figure(name, caption, [panel])


def _points(shown: list[Row], name: str, style: int, place: float) -> Dots:
    ends = [interval(part(row, "interval").get(name)) for row in shown]
    low, high = ([pair[i] if pair else None for pair in ends] for i in (0, 1))
    return Dots(
        name,
        [row + APART * place for row in range(len(shown))],
        [number(part(row, "effect").get(name)) for row in shown],
        low,
        high,
        style,
        notes=[f"{row['layer']}:{row['expert']}" for row in shown],
    )


# --- all of them


def map_figure(sweep: Sweep, name: str) -> Figure | None:
    """A panel a set, a cell an expert; None unless every expert of the model was swept."""
    if not swept_all(sweep):
        return None
    layers = whole_numbers(part(sweep, "model")["layers"])
    values = {set_: _cells(sweep, set_, layers) for set_ in sets_of(sweep)}
    limit = robust_scale(np.nan_to_num(np.array(list(values.values()), float))).limit or 1.0
    panels = [
        Grid(f"Effect on {set_} prompts", EFFECT, layers, of_set, limit) for set_, of_set in values.items()
    ]
    caption = (
        "Every expert masked alone: column its number, row its layer. Blue: masking it makes a refusal less probable; "
        "red: more probable; near white: no effect. The panels share their colours, which end where few cells lie "
        "beyond."
    )
    return Figure(name, caption, panels) if panels else None


def _cells(sweep: Sweep, set_: str, layers: list[int]) -> list[Numbers]:
    place = {layer: i for i, layer in enumerate(layers)}
    cells: list[list[float | None]] = [[None] * sweep["model"]["n_experts"] for _ in layers]
    for row in rows(sweep.get("rows")):
        cells[place[row["layer"]]][row["expert"]] = number(part(row, "effect").get(set_))
    return [*cells]
