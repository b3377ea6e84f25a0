"""Figures as plotly.js takes them, and maps in the compact form that report.js draws."""

from __future__ import annotations

import base64
import html
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from .activation import ExpertMap, Mark
from .panels import LONG, AnyPanel, Cloud, Dots, Grid, Line, Numbers, Panel, Plane, RowPanel
from .values import interval, number, part

# Okabe and Ito's colours, which colour-blind readers can tell apart; those that vanish on white or black are left out.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#b58900")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x")
DASHES = ("solid", "dash", "dashdot", "longdash", "solid", "dash")
MARK_COLOURS = ("#d55e00", "#cc2a8f", "#009e73", "#0072b2", "#000000", "#8a5a00")
MARK_SYMBOLS = ("square", "diamond", "circle", "triangle-up", "triangle-down", "hexagram")
DIVERGING = (
    "#2166ac",
    "#92c5de",
    "#f7f7f7",
    "#f4a582",
    "#b2182b",
)  # ColorBrewer RdBu: safe for colour-blind readers
NICE_LIMIT = 9  # significant digits of numbers in the page
BAR = 0.34  # height of a bar in rows
GREY, QUIET_OPACITY = "#7a828e", 0.5
CLOUD_OPACITY = 0.9
BAND_ALPHA = 0x30  # of 0xff

Drawn: TypeAlias = tuple[list[dict[str, Any]], dict[str, Any], int]  # traces, axes, names for a legend


def style_of(values: tuple[str, ...], style: int) -> str:
    """The colour or symbol of a style; they repeat after the last."""
    return values[style % len(values)]


def scale(colours: tuple[str, ...]) -> list[tuple[float, str]]:
    """Evenly spaced stops.

    >>> scale(("red", "blue"))
    [(0.0, 'red'), (1.0, 'blue')]
    """
    return [(i / (len(colours) - 1), colour) for i, colour in enumerate(colours)]


def verbatim(text: str) -> str:
    """A text that plotly.js shows as it is: it would read markup in it."""
    return html.escape(text, quote=False)


def panel_spec(panel: AnyPanel) -> dict[str, Any]:
    """``data``, ``layout`` and ``height`` of a panel."""
    if isinstance(panel, Panel):
        traces, axes, shown = _line_panel(panel)
    elif isinstance(panel, RowPanel):
        traces, axes, shown = _row_panel(panel)
    elif isinstance(panel, Plane):
        traces, axes, shown = _plane(panel)
    else:
        traces, axes, shown = _grid(panel)
    layout = {"title": {"text": verbatim(panel.title)}, **axes, "showlegend": shown > 1}
    return {"data": traces, "layout": layout, "height": panel.height}


def _axis(title: str) -> dict[str, Any]:
    return {"title": {"text": verbatim(title), "standoff": 8}}


# --- lines


def _line_panel(panel: Panel) -> Drawn:
    x_axis = {**_axis(panel.x_title), "type": "log" if panel.log_x else "linear"}
    y_axis = {**_axis(panel.y_title), "rangemode": "tozero"}
    if panel.x_ticks is not None:
        x_axis |= {"tickvals": panel.x_ticks, "ticktext": [panel.x_name(x) for x in panel.x_ticks]}
    if panel.y_range:
        y_axis["range"] = list(panel.y_range)
    traces = [trace for line in panel.lines for trace in (*_band(line), _trace(line, panel))]
    return traces, {"xaxis": x_axis, "yaxis": y_axis}, sum(line.legend for line in panel.lines)


def _trace(line: Line, panel: Panel | None = None) -> dict[str, Any]:
    colour = line_colour(line)
    name = verbatim(line.name)
    main: dict[str, Any] = {
        "type": "scatter",
        "mode": "lines" if line.quiet else "lines+markers",
        "name": name,
        "x": _rounded(line.x),
        "y": _rounded(line.y),
        "showlegend": line.legend,
        "line": {"color": colour, "width": 1.2 if line.quiet else 1.6, "dash": _dash(line)},
        "marker": {"symbol": style_of(SYMBOLS, line.style), "size": 5 if len(line.x) <= LONG else 3},
        "hovertemplate": f"{name}<br>%{{x}}: %{{y:.4~g}}<extra></extra>",
    }
    if panel and panel.x_names:
        main |= {
            "hovertext": [panel.x_name(x) for x in line.x],
            "hovertemplate": f"{name}<br>%{{hovertext}}: %{{y:.4~g}}<extra></extra>",
        }
    if line.low is not None and line.high is not None and not line.band:
        main["error_y"] = _bars(line.y, line.low, line.high)
    return main


def line_colour(line: Line) -> str:
    """The colour of a line."""
    return GREY if line.grey else style_of(COLOURS, line.style)


def _band(line: Line) -> list[dict[str, Any]]:
    """The two edges of a line's interval, the area between them filled; nothing where it isn't drawn so."""
    if not line.band or line.low is None or line.high is None:
        return []
    edge: dict[str, Any] = {"type": "scatter", "mode": "lines", "x": _rounded(line.x), "line": {"width": 0}}
    edge |= {"showlegend": False, "hoverinfo": "skip"}
    fill = {"fill": "tonexty", "fillcolor": f"{line_colour(line)}{BAND_ALPHA:02x}"}
    return [{**edge, "y": _rounded(line.low)}, {**edge, **fill, "y": _rounded(line.high)}]


def _dash(line: Line) -> str:
    return "dot" if line.quiet else style_of(DASHES, line.style)


def _bars(values: Numbers, low: Numbers, high: Numbers) -> dict[str, Any]:
    up = [_minus(end, value) for end, value in zip(high, values, strict=True)]
    down = [_minus(value, end) for end, value in zip(low, values, strict=True)]
    return {
        "type": "data",
        "symmetric": False,
        "array": _rounded(up),
        "arrayminus": _rounded(down),
        "thickness": 1,
        "width": 2,
    }


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else max(0.0, a - b)


def _rounded(values: Any) -> list[float | None]:
    return [None if value is None else float(f"{value:.{NICE_LIMIT}g}") for value in values]


# --- rows


def _row_panel(panel: RowPanel) -> Drawn:
    n = len(panel.rows)
    y_axis = {
        "tickvals": list(range(n)),
        "ticktext": [*map(verbatim, panel.labels)],
        "range": [n - 0.5, -0.5],
    }
    x_axis = {**_axis(panel.x_title), "zeroline": True}
    if panel.x_range:
        x_axis["range"] = list(panel.x_range)
    references = [{**_trace(line), "hoverinfo": "skip", "hovertemplate": ""} for line in panel.lines]
    traces = [*references, *(_dots(dots) for dots in panel.dots)]
    return (
        traces,
        {"xaxis": x_axis, "yaxis": {**y_axis, "showgrid": False}, "barmode": "overlay"},
        len(traces),
    )


def _dots(dots: Dots) -> dict[str, Any]:
    """Points, or bars that lie."""
    colour = style_of(COLOURS, dots.style)
    name = verbatim(dots.name)
    trace: dict[str, Any] = {
        "name": name,
        "x": _rounded(dots.x),
        "y": _rounded(dots.rows),
        "showlegend": True,
        "hovertext": [*map(verbatim, dots.notes)],
        "hovertemplate": f"{name}<br>%{{hovertext}}: %{{x:.4~g}}<extra></extra>",
        **(_bar_look(colour) if dots.bars else _point_look(dots)),
    }
    if dots.low is not None and dots.high is not None:
        trace["error_x"] = _bars(dots.x, dots.low, dots.high) | {"color": colour}
    return trace


def _bar_look(colour: str) -> dict[str, Any]:
    """The outline shows where a bar of nothing is."""
    marker = {"color": colour, "line": {"color": colour, "width": 2}}
    return {"type": "bar", "orientation": "h", "width": BAR, "marker": marker}


def _point_look(dots: Dots) -> dict[str, Any]:
    look = {"color": style_of(COLOURS, dots.style), "size": 7, "symbol": style_of(SYMBOLS, dots.style)}
    quiet = {"color": GREY, "size": 5, "symbol": "circle", "opacity": QUIET_OPACITY}
    return {"type": "scatter", "mode": "markers", "marker": quiet if dots.quiet else look}


# --- cells


def _grid(panel: Grid) -> Drawn:
    trace = {
        "type": "heatmap",
        "z": [_rounded(row) for row in panel.values],
        "y": [*map(str, panel.layers)],
        "zmin": -panel.limit,
        "zmax": panel.limit,
        "colorscale": scale(DIVERGING),
        "colorbar": {"thickness": 9, "xpad": 6, "outlinewidth": 0, "nticks": 5, "tickfont": {"size": 11}},
        "hovertemplate": "%{y}:%{x}<br>%{z:.4~g}<extra></extra>",
    }
    y_axis = {**_axis("layer"), "type": "category", "autorange": "reversed", "showgrid": False}
    return [trace], {"xaxis": {**_axis("expert"), "showgrid": False}, "yaxis": y_axis}, 0


# --- planes


def _plane(panel: Plane) -> Drawn:
    y_axis = {**_axis(panel.y_title), "scaleanchor": "x", "scaleratio": 1}
    traces = [_cloud(cloud) for cloud in panel.clouds]
    return traces, {"xaxis": _axis(panel.x_title), "yaxis": y_axis}, len(traces)


def _cloud(cloud: Cloud) -> dict[str, Any]:
    name = verbatim(cloud.name)
    look = {"color": style_of(COLOURS, cloud.style), "symbol": style_of(SYMBOLS, cloud.style)}
    return {
        "type": "scatter",
        "mode": "markers",
        "name": name,
        "x": _rounded(cloud.x),
        "y": _rounded(cloud.y),
        "showlegend": True,
        "marker": {**look, "size": 7, "opacity": CLOUD_OPACITY, "line": {"width": 0.6, "color": "#ffffff"}},
        "hovertext": [*map(verbatim, cloud.notes)],
        "hovertemplate": f"{name}<br>%{{hovertext}}<extra></extra>",
    }


# --- maps


def map_spec(of: ExpertMap) -> dict[str, Any]:
    """Selections and tokens as integers, so that the page computes the very numbers of the profile."""
    return {
        "label": of.label,
        "layers": of.layers,
        "experts": of.n_experts,
        "topK": of.top_k,
        "sets": of.sets,
        "phases": list(of.sums),
        "tokens": {phase: tokens.tolist() for phase, tokens in of.tokens.items()},
        "sums": {phase: [pack(sums) for sums in by_set] for phase, by_set in of.sums.items()},
        "views": [{"label": v.label, "a": v.a, "b": v.b} for v in of.views],
        "scales": {phase: [of.scale(view, phase) for view in of.views] for phase in of.sums},
        "marks": [_mark(mark, of) for mark in of.marks],
    }


def pack(values: npt.NDArray[np.int64]) -> dict[str, Any]:
    """Whole numbers of at least 0 as base64 of little-endian integers of the fewest bytes that hold them.

    >>> pack(np.array([1, 256]))
    {'bytes': 2, 'data': 'AQAAAQ=='}
    """
    width = max(1, (int(values.max(initial=0)).bit_length() + 7) // 8)
    raw = np.ascontiguousarray(values, "<i8").view(np.uint8).reshape(-1, 8)[:, :width]
    return {"bytes": width, "data": base64.b64encode(raw.tobytes()).decode()}


def _mark(mark: Mark, of: ExpertMap) -> dict[str, Any]:
    row = {layer: i for i, layer in enumerate(of.layers)}
    return {
        "name": mark.name,
        "phase": mark.phase,
        "colour": style_of(MARK_COLOURS, mark.style),
        "symbol": style_of(MARK_SYMBOLS, mark.style),
        "experts": [
            {
                "row": row[entry["layer"]],
                "expert": entry["expert"],
                "frequency": number(entry.get("frequency")),
                "intervals": {name: interval(ends) for name, ends in part(entry, "interval").items()},
            }
            for entry in mark.entries
        ],
    }
