"""The figures of docs/reproduction.md, as SVG: the same numbers give the same bytes."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt

from .page import Row, label, main_mask

STYLE = {
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "svg.hashsalt": "safex-native",
    "svg.fonttype": "none",
    "text.parse_math": False,
}
BLUE, ORANGE, GREEN, GREY = "#0072b2", "#d55e00", "#009e73", "#777777"


def write(found: Row, folder: Path) -> None:
    """All of them."""
    folder.mkdir(parents=True, exist_ok=True)
    with plt.rc_context(STYLE):
        _save(_masking(found["masking"]), folder / "masking.svg")
        _save(_redundancy(found["redundancy"]), folder / "redundancy.svg")


def _save(figure: Any, path: Path) -> None:
    figure.savefig(path, bbox_inches="tight", metadata={"Date": None})
    plt.close(figure)


def _masking(rows: list[Row]) -> Any:
    """Refusal of regular prompts by model: no mask, the groups masked, jailbreak."""
    figure, axes = plt.subplots(figsize=(7.5, 0.42 * len(rows) + 1))
    wanted = [("ctrl", ORANGE, "s"), ("contrast ctrl", GREEN, "D"), ("planted", "#cc79a7", "v")]
    for place, row in enumerate(reversed(rows)):
        _point(axes, row["before"]["regular"], place + 0.3, BLUE, "o")
        for number, (group, colour, shape) in enumerate(wanted):
            if (mask := main_mask(row, group)) is not None:
                _point(axes, mask["regular"], place + 0.15 - 0.15 * number, colour, shape)
        _point(axes, row["before"]["jailbreak"], place - 0.3, GREY, "x")
    for name, colour, shape in [
        ("no mask", BLUE, "o"),
        *((f"{g} masked", c, s) for g, c, s in wanted),
        ("jailbreak", GREY, "x"),
    ]:
        axes.plot([], [], shape, color=colour, label=name)
    axes.set_yticks(range(len(rows)), [label(row) for row in reversed(rows)])
    axes.set_xlim(-2, 102)
    axes.set_xlabel("refused, %")
    axes.legend(ncols=5, loc="lower center", bbox_to_anchor=(0.3, 1.0), fontsize=8)
    return figure


def _point(axes: Any, rate: list[float], height: float, colour: str, shape: str) -> None:
    value, low, high = (100 * one for one in rate)
    axes.plot([low, high], [height, height], color=colour, linewidth=1)
    axes.plot([value], [height], shape, color=colour, markersize=4)


def _redundancy(rows: list[Row]) -> Any:
    """Refusal and compliance by how many experts are masked, a panel a model."""
    figure, grid = plt.subplots(2, 4, figsize=(9, 4.6), sharey=True, squeeze=False)
    for axes in grid.flat[len(rows) :]:
        axes.set_visible(False)
    for axes, row in zip(grid.flat, rows, strict=False):
        for name, colour in (("refuse", BLUE), ("comply", ORANGE)):
            value, low, high = zip(*row[name], strict=True)
            axes.plot(row["sizes"], value, "o-", color=colour, markersize=3, label=name)
            axes.fill_between(row["sizes"], low, high, color=colour, alpha=0.15, linewidth=0)
        axes.set_xscale("symlog", base=2, linthresh=1)
        sizes = [a for a, b in pairwise([*row["sizes"], 1e9]) if b > 1.3 * a]  # room for the numbers
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_title(label(row), fontsize=8)
        axes.set_ylim(-0.03, 1.03)
    grid[0][0].legend(fontsize=8)
    figure.supxlabel("experts masked", fontsize=9)
    figure.tight_layout()
    return figure
