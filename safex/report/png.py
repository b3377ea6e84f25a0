"""The page's pictures as PNG files for papers: light, 300 dpi, colours that colour-blind readers can tell apart."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from safex import disk

from .activation import ExpertMap, View
from .content import Map
from .panels import LONG, AnyPanel, Dots, Figure, Grid, Line, Panel, Plane, RowPanel
from .plotly_figures import (
    BAND_ALPHA,
    BAR,
    CLOUD_OPACITY,
    COLOURS,
    DIVERGING,
    GREY,
    MARK_COLOURS,
    QUIET_OPACITY,
    line_colour,
    style_of,
)
from .sections import Page

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure as Canvas

DPI = 300
WIDTH = 7.2  # inches, two columns of a paper
PIXELS = 107.5  # of the page, in an inch of the paper
AROUND = 78  # pixels of a panel's title and x axis
GRID_HEIGHT = 320  # pixels that cells get at most: a figure may have several panels of them
INK = "#1b1d21"
MARKERS = ("o", "s", "D", "^", "P", "X")
MARK_SHAPES = ("s", "D", "o", "^", "v", "*")
DASHES = ("-", "--", "-.", (0, (8, 3)), "-", "--")
STYLE: Any = {
    "font.size": 8,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "legend.frameon": False,
    "legend.fontsize": 7,
    "text.parse_math": False,  # a name may hold a dollar sign
    "svg.fonttype": "none",
}


@dataclass(frozen=True)
class Picture:
    """A file to be: its name, and a map's view or a figure."""

    name: str
    content: Figure | tuple[ExpertMap, View, str]


def pictures(page: Page) -> list[Picture]:
    """All pictures of a page, under distinct names that any file system takes."""
    found: list[Picture] = []
    for block in (block for section in page.sections for block in section.blocks):
        if isinstance(block, Figure):
            found.append(Picture(block.name, block))
        elif isinstance(block, Map):
            found += [picture for of in block.maps for picture in _views(of, len(block.maps) > 1)]
    return _with_file_names(found)


def _views(of: ExpertMap, many: bool) -> Iterator[Picture]:
    first = f"heatmap-{of.label}-" if many else "heatmap-"
    for phase in of.sums:
        for view in of.views:
            if of.scale(view, phase):
                shown = view.a if view.b is None else f"{view.a}-minus-{view.b}"
                yield Picture(first + shown + ("" if phase == "prompt" else f"-{phase}"), (of, view, phase))


def _with_file_names(found: list[Picture]) -> list[Picture]:
    taken: dict[str, int] = {}
    named = []
    for picture in found:
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", picture.name)[:100]
        n = taken[name.lower()] = taken.get(name.lower(), 0) + 1
        named.append(Picture(f"{name}.png" if n == 1 else f"{name}-{n}.png", picture.content))
    return named


def write_pictures(page: Page, folder: Path) -> list[Path]:
    """Write every picture, and make the folder where it is missing. Raises DiskError, InputError."""
    import matplotlib as mpl

    with disk.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(STYLE):
        for picture in pictures(page):
            path = folder / picture.name
            content = picture.content
            canvas = _figure(content) if isinstance(content, Figure) else _heatmap(*content)
            with disk.replacing(path) as (fd, _):
                disk.write_at(fd, 0, _png(canvas))
            paths.append(path)
    return paths


def _png(canvas: Canvas) -> bytes:
    file = io.BytesIO()
    canvas.savefig(file, format="png", dpi=DPI, facecolor="white", metadata={"Software": "safex-native"})
    return file.getvalue()


# --- figures


def _figure(figure: Figure) -> Canvas:
    from matplotlib.figure import Figure as Canvas

    columns = figure.columns
    heights = [
        max(_pixels(panel) for panel in figure.panels[i : i + columns]) / PIXELS
        for i in range(0, len(figure.panels), columns)
    ]
    canvas = Canvas(figsize=(WIDTH, max(2.0, sum(heights))), layout="constrained")
    grid = canvas.add_gridspec(len(heights), columns, height_ratios=heights)
    for i, panel in enumerate(figure.panels):
        _draw(canvas.add_subplot(grid[i // columns, i % columns]), panel)
    _legend(canvas)
    return canvas


def _pixels(panel: AnyPanel) -> int:
    return AROUND + (min(panel.height, GRID_HEIGHT) if isinstance(panel, Grid) else panel.height)


def _draw(axes: Axes, panel: AnyPanel) -> None:
    axes.set_title(panel.title)
    if isinstance(panel, Grid):
        _cells(axes, panel)
        return
    axes.grid(color="#e6e8ec", linewidth=0.6)
    axes.set_axisbelow(True)
    if isinstance(panel, RowPanel):
        _rows(axes, panel)
    elif isinstance(panel, Plane):
        _plane(axes, panel)
    else:
        _panel(axes, panel)


def _legend(canvas: Canvas) -> None:
    """One legend below all panels: a line of one name looks the same in each."""
    found: dict[str, Any] = {}
    for axes in canvas.axes:
        for handle, name in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    if len(found) > 1:
        canvas.legend(found.values(), found.keys(), loc="outside lower center", ncols=min(4, len(found)))


# --- lines


def _panel(axes: Axes, panel: Panel) -> None:
    from matplotlib.ticker import NullLocator

    for line in panel.lines:
        _line(axes, line)
    axes.set(xlabel=panel.x_title, ylabel=panel.y_title)
    if panel.log_x:
        axes.set_xscale("log")
    if panel.x_ticks is not None:
        axes.set_xticks(panel.x_ticks, [panel.x_name(x) for x in panel.x_ticks])
        axes.xaxis.set_minor_locator(NullLocator())
    if panel.y_range:
        axes.set_ylim(*panel.y_range)
    else:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))


def _line(axes: Axes, line: Line) -> None:
    colour = line_colour(line)
    x, y = np.array(line.x), _floats(line.y)
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=":" if line.quiet else DASHES[line.style % len(DASHES)],
        linewidth=0.9 if line.quiet else 1.2,
        marker="" if line.quiet else style_of(MARKERS, line.style),
        markersize=3 if len(x) <= LONG else 1.8,
        label=line.name if line.legend else "_nolegend_",
    )
    if line.low is not None and line.high is not None and line.band:
        low, high = _floats(line.low), _floats(line.high)
        axes.fill_between(x, low, high, color=colour, alpha=BAND_ALPHA / 0xFF, linewidth=0)
    elif line.low is not None and line.high is not None:
        ends = np.maximum(0, [y - _floats(line.low), _floats(line.high) - y])
        axes.errorbar(x, y, ends, fmt="none", ecolor=colour, elinewidth=0.7, capsize=1.5)


def _floats(values: Any) -> Any:
    return np.array([np.nan if value is None else value for value in values], float)


# --- rows, planes and cells


def _rows(axes: Axes, panel: RowPanel) -> None:
    axes.axvline(0, color=INK, linewidth=0.7, zorder=0.5)
    for line in panel.lines:
        _line(axes, line)
    for dots in panel.dots:
        _dots(axes, dots)
    n = len(panel.rows)
    axes.set(xlabel=panel.x_title, yticks=range(n), yticklabels=panel.labels, ylim=(n - 0.5, -0.5))
    axes.grid(False, axis="y")
    if panel.x_range:
        axes.set_xlim(*panel.x_range)


def _dots(axes: Axes, dots: Dots) -> None:
    colour = style_of(COLOURS, dots.style)
    rows, x = np.array(dots.rows), _floats(dots.x)
    if dots.bars:
        axes.barh(rows, x, BAR, color=colour, edgecolor=colour, label=dots.name)
    elif dots.quiet:
        axes.plot(x, rows, "o", color=GREY, ms=2.5, mew=0, alpha=QUIET_OPACITY, label=dots.name)
    else:
        axes.plot(x, rows, style_of(MARKERS, dots.style), color=colour, ms=4, mew=0, label=dots.name)
    if dots.low is not None and dots.high is not None:
        ends = np.maximum(0, [x - _floats(dots.low), _floats(dots.high) - x])
        axes.errorbar(
            x, rows, xerr=ends, fmt="none", ecolor=INK if dots.bars else colour, elinewidth=0.8, capsize=1.5
        )


def _plane(axes: Axes, panel: Plane) -> None:
    for cloud in panel.clouds:
        axes.plot(
            _floats(cloud.x),
            _floats(cloud.y),
            style_of(MARKERS, cloud.style),
            color=style_of(COLOURS, cloud.style),
            ms=3.4,
            mew=0.3,
            mec="white",
            alpha=CLOUD_OPACITY,
            label=cloud.name,
        )
    axes.set(xlabel=panel.x_title, ylabel=panel.y_title)
    axes.set_aspect("equal", adjustable="datalim")


def _cells(axes: Axes, panel: Grid) -> None:
    image = axes.imshow(
        np.array([_floats(row) for row in panel.values]),
        cmap=_diverging(),
        vmin=-panel.limit,
        vmax=panel.limit,
        aspect="auto",
        interpolation="nearest",
    )
    axes.set(xlabel="expert", ylabel="layer")
    axes.figure.colorbar(image, ax=axes, pad=0.01, aspect=20).set_label(panel.what)
    _layer_ticks(axes, panel.layers)


# --- maps


def _heatmap(of: ExpertMap, view: View, phase: str) -> Canvas:
    from matplotlib.figure import Figure as Canvas

    values, scale = of.values(view, phase), of.scale(view, phase)
    assert values is not None and scale is not None  # `pictures` leaves out the others
    canvas = Canvas(figsize=(WIDTH, 1.5 + min(7.5, max(0.9, 0.13 * len(of.layers)))), layout="constrained")
    axes = canvas.add_subplot()
    low = 0.0 if view.b is None else -scale.limit
    image = axes.imshow(
        values,
        cmap="cividis" if view.b is None else _diverging(),
        vmin=low,
        vmax=scale.limit or 1.0,
        aspect="auto",
        interpolation="nearest",
    )
    bar = canvas.colorbar(image, ax=axes, pad=0.01, aspect=50, extend=_extend(scale.clipped, view))
    bar.set_label("activation" if view.b is None else "difference of activation")
    axes.set(title=f"{view.label}, phase {phase}", xlabel="expert", ylabel="layer")
    _layer_ticks(axes, of.layers)
    _marks(canvas, axes, of)
    return canvas


def _diverging() -> Any:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("diverging", DIVERGING)


def _extend(clipped: int, view: View) -> str:
    if not clipped:
        return "neither"
    return "max" if view.b is None else "both"


def _layer_ticks(axes: Axes, layers: list[int]) -> None:
    step = -(-len(layers) // 24)
    rows = list(range(0, len(layers), step))
    axes.set_yticks(rows, [str(layers[row]) for row in rows])


def _marks(canvas: Canvas, axes: Axes, of: ExpertMap) -> None:
    from matplotlib.patheffects import Normal, withStroke

    row = {layer: i for i, layer in enumerate(of.layers)}
    size = float(np.clip(900 / of.n_experts, 18, 40))
    marks = [mark for mark in of.marks if mark.entries]
    for mark in marks:
        points = axes.scatter(
            [entry["expert"] for entry in mark.entries],
            [row[entry["layer"]] for entry in mark.entries],
            s=size,
            marker=style_of(MARK_SHAPES, mark.style),
            facecolors="none",
            edgecolors=style_of(MARK_COLOURS, mark.style),
            linewidths=1.0,
            label=f"{mark.name} ({len(mark.entries)})",
        )
        points.set_path_effects([withStroke(linewidth=2.2, foreground="white"), Normal()])
    if marks:
        canvas.legend(loc="outside lower center", ncols=min(4, len(marks)))
