"""Figures of a probing: groups among random experts and words, experts by layer, learning curves, the plane."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple, TypeAlias

from .figures import set_styles
from .panels import Cloud, Dots, Figure, Line, Numbers, Panel, Plane, RowPanel, side_by_side
from .probing_tables import Probing, Row, Task, group_layers, group_name, kind_name, place_of
from .values import fixed, interval, items, listing, number, part, percent, plural, rows

GROUP, RANDOM, WORDS, SHUFFLED = range(4)  # styles, the same in all figures of a probing but the plane
NAMES = {  # in the order in which they are drawn: what matters most covers the others
    SHUFFLED: "shuffled labels",
    RANDOM: "their mean",
    WORDS: "bag of words",
    GROUP: "group",
}
ALONE_NAMES = {RANDOM: "their mean", GROUP: "group's expert"}
LINES = (0, 2, 4, 5)  # styles of several groups: none is that of random experts or of chance
CHANCE = 0.5
ROW_HEIGHT = 26
SHOWN = 40  # experts in the figure
APART = 0.2  # rows between an expert and the middle of its row, where random ones lie on the other side
ROOM = 0.04  # share of an axis that is left free at its ends

Shown: TypeAlias = Callable[[Any], float | None]
Values: TypeAlias = Sequence[float | None]


class Entry(NamedTuple):
    """What lies in a row of a figure: ``of`` holds its estimates, ``draws`` those of random experts."""

    row: float
    label: str
    style: int
    of: Row
    draws: Sequence[Row] = ()


class Measure(NamedTuple):
    """What a panel shows: the key in the file, the axis, and what is reached without any knowledge."""

    key: str
    title: str
    x_title: str
    show: Shown = number
    reference: tuple[str, float | None] = ("chance", CHANCE)
    names: dict[int, str] = NAMES


# --- groups


def probes_figure(task: Task, name: str) -> Figure | None:
    """AUC and accuracy: a row a group, its shuffled labels, each kind of random experts, and the words."""
    larger = percent(part(task, "majority").get("value"))
    measures = [
        Measure("auc", "AUC", "AUC"),
        Measure("accuracy", "Accuracy", "% right", percent, ("larger class", larger)),
    ]
    caption = (
        "How well the classes are told apart, with 95 % intervals; of shuffled labels the mean and the range of 95 % "
        "of them. A small circle is one draw of as many random experts: a group that is special lies right of them. "
        "Dotted: what chance gives, and what always naming the larger class gives."
    )
    return _figure(name, caption, list(_entries(task)), measures)


def transfer_figure(task: Task, name: str) -> Figure | None:
    """The AUC of the same probes on the transfer's prompts."""
    sides = [" and ".join(map(str, items(task.get(side)))) for side in ("transfer", "negative")]
    caption = (
        f"Transfer: the same probes on {' against '.join(sides)} prompts. They never trained on {sides[0]} prompts, "
        "nor on twins of those they are tried on. Intervals and random experts as above."
    )
    return _figure(name, caption, list(_transferred(task)), [Measure("auc", "AUC of the transfer", "AUC")])


def _entries(task: Task) -> Iterator[Entry]:
    """The rows from the top down."""
    found = [line for group in rows(task.get("groups")) for line in _of_group(task, group)]
    words = part(task, "words")
    found += [("bag of words", WORDS, words, [])] if words else []
    yield from (Entry(row, *line) for row, line in enumerate(found))


def _of_group(task: Task, group: Row) -> Iterator[tuple[str, int, Row, list[Row]]]:
    """The group, and what it is compared with."""
    name = group_name(group)
    yield name, GROUP, group, []
    if null := part(group, "shuffled"):
        yield f"{name}: shuffled labels", SHUFFLED, null, []
    for control in rows(group.get("controls")):
        draws = _draws(task, name, control.get("kind"))
        yield f"{name}: {kind_name(control.get('kind'))}", RANDOM, control, draws


def _draws(task: Task, group: str, kind: Any) -> list[Row]:
    """What each draw of a kind gave."""
    found = rows(task.get("control_groups"))
    return [row for row in found if group_name(row) == group and row.get("kind") == kind]


def _transferred(task: Task) -> Iterator[Entry]:
    """The rows that were tried on the transfer's prompts."""
    moved = []
    for entry in _entries(task):
        if entry.style == RANDOM and part(entry.of, "transfer_auc"):
            draws = [{**draw, "auc": draw.get("transfer_auc")} for draw in entry.draws]
            moved.append(entry._replace(of={"auc": entry.of["transfer_auc"]}, draws=draws))
        elif found := part(entry.of, "transfer"):
            moved.append(entry._replace(of=found))
    yield from (entry._replace(row=row) for row, entry in enumerate(moved))


# --- rows


def _figure(name: str, caption: str, entries: list[Entry], measures: list[Measure]) -> Figure | None:
    labels = [entry.label for entry in entries]
    panels = [panel for measure in measures if (panel := _panel(labels, entries, measure))]
    return Figure(name, caption, panels) if panels else None


def _panel(labels: list[str], entries: list[Entry], measure: Measure) -> RowPanel | None:
    """None where nothing was measured."""
    dots = [_single_draws(entries, measure), *(_of_style(entries, measure, style) for style in measure.names)]
    dots = [found for found in dots if _any(found.x)]
    if not dots:
        return None
    name, reference = measure.reference
    extents = [[*found.x, *(found.low or ()), *(found.high or ())] for found in dots]
    ends = _axis([*extents, [reference]])
    panel = RowPanel(measure.title, measure.x_title, labels, dots, x_range=ends, row_height=ROW_HEIGHT)
    panel.lines.extend([] if reference is None else [panel.upright(name, reference, SHUFFLED)])
    return panel


def _any(values: Values) -> bool:
    return any(value is not None for value in values)


def _of_style(entries: list[Entry], measure: Measure, style: int) -> Dots:
    """The points of one style with their intervals; how random experts spread is shown by their draws."""
    own = [entry for entry in entries if entry.style == style]
    found = [part(entry.of, measure.key) for entry in own]
    low, high = (None, None) if style == RANDOM else _ends(found, measure.show)
    return Dots(
        measure.names[style],
        [entry.row for entry in own],
        [measure.show(one.get("value" if style in (GROUP, WORDS) else "mean")) for one in found],
        low,
        high,
        style,
        notes=[entry.label for entry in own],
    )


def _ends(found: list[Row], show: Shown) -> tuple[Numbers, Numbers]:
    """Low and high ends of the intervals of estimates."""
    pairs = [interval(one.get("interval")) for one in found]
    low, high = ([show(pair[i]) if pair else None for pair in pairs] for i in (0, 1))
    return low, high


def _single_draws(entries: list[Entry], measure: Measure) -> Dots:
    """A point for each draw of random experts."""
    points = [
        (entry.row + shift, value, f"{entry.label}, {_drawn(draw)}")
        for entry in entries
        for draw, value, shift in _placed(entry.draws, measure)
    ]
    places, values, notes = zip(*points, strict=True) if points else ((), (), ())
    return Dots("random experts", places, values, quiet=True, notes=notes)


def _placed(draws: Sequence[Row], measure: Measure) -> list[tuple[Row, float | None, float]]:
    values = [measure.show(draw.get(measure.key)) for draw in draws]
    rounded = [None if value is None else round(value, 6) for value in values]
    return list(zip(draws, values, side_by_side(rounded), strict=True))


def _drawn(draw: Row) -> str:
    """Which experts a draw holds."""
    place = place_of(draw)
    if place:
        return "expert {}:{}".format(*place)
    return f"draw {fixed(draw.get('draw'), 0)}: {listing(items(draw.get('experts')))}"


def _axis(values: Sequence[Values]) -> tuple[float, float] | None:
    """The ends of an axis that holds all values, with some room."""
    known = [value for several in values for value in several if value is not None]
    if not known:
        return None
    room = ROOM * ((max(known) - min(known)) or 1.0)
    return min(known) - room, max(known) + room


# --- experts alone


def layers_figure(task: Task, name: str) -> Figure | None:
    """By layer, the means of the groups' experts and of random ones; beside it each expert of the groups."""
    panels = [panel for panel in (_layers_panel(task), _alone_panel(task)) if panel]
    caption = (
        "Which layers carry the signal: probes that read one expert each. By layer: mean AUC of a group's experts, "
        "and of random ones, whose bars reach from the least to the most of them, in the repeats that both have. By "
        "expert: its AUC in all repeats with the 95 % interval, below it single random experts of its layer."
    )
    return Figure(name, caption, panels) if panels else None


def _layers_panel(task: Task) -> Panel | None:
    found = [row for row in rows(task.get("layers")) if number(row.get("layer")) is not None]
    x = [float(row["layer"]) for row in found]
    drawn = [[number(one.get("auc")) for one in _random_of(task, row["layer"])] for row in found]
    known = [[value for value in values if value is not None] for values in drawn]
    low, high = ([end(values, default=None) for values in known] for end in (min, max))
    random = [number(row.get("control_auc")) for row in found]
    lines = [*_group_lines(task), Line("random experts", x, random, low, high, RANDOM)]
    return _with_chance("Mean AUC of experts alone by layer", "layer", lines)


def _group_lines(task: Task) -> list[Line]:
    """A line a group over the layers that it has experts in."""
    return [
        Line(name, [float(layer) for layer in sorted(of)], [of[layer] for layer in sorted(of)], style=style)
        for (name, of), style in zip(group_layers(task).items(), itertools.cycle(LINES), strict=False)
    ]


def _with_chance(title: str, x_title: str, lines: list[Line]) -> Panel | None:
    """A panel of those lines that hold values, and chance; None where none does."""
    lines = [line for line in lines if _any(line.y)]
    if not lines:
        return None
    x = [place for line in lines for place in line.x]
    ends = _axis([[CHANCE], *([*line.y, *(line.low or ()), *(line.high or ())] for line in lines)])
    chance = Line("chance", [min(x), max(x)], [CHANCE] * 2, style=SHUFFLED, quiet=True)
    return Panel(title, x_title, "AUC", [*lines, chance], ends)


def _random_of(task: Task, layer: Any) -> list[Row]:
    """Single random experts of a layer."""
    return [row for row in rows(task.get("control_experts")) if row.get("layer") == layer]


def _alone_panel(task: Task) -> RowPanel | None:
    """A row an expert, in the order of layers; the best ones where they are many."""
    probed = [row for row in rows(task.get("experts")) if place_of(row) and _value(row) is not None]
    best = sorted(probed, key=lambda row: -(_value(row) or 0.0))[:SHOWN]
    shown = sorted(best, key=lambda row: place_of(row) or (0, 0))
    labels = ["{}:{}".format(*(place_of(row) or ())) for row in shown]
    entries = [e for i, row in enumerate(shown) for e in _alone(task, row, i, labels[i])]
    few = f"The {len(best)} highest of {plural(len(probed), 'expert')}"
    title = few if len(best) < len(probed) else "AUC of each expert alone"
    return _panel(labels, entries, Measure("auc", title, "AUC", names=ALONE_NAMES))


def _value(row: Row) -> float | None:
    return number(part(row, "auc").get("value"))


def _alone(task: Task, row: Row, place: int, label: str) -> Iterator[Entry]:
    """An expert, and below it the random ones of its layer, where there are any."""
    others = _random_of(task, row["layer"])
    apart = APART if others else 0.0
    yield Entry(place - apart, label, GROUP, row)
    if others:
        yield Entry(place + apart, f"layer {row['layer']}", RANDOM, part(row, "controls"), others)


# --- learning curves


def curve_figure(task: Task, name: str) -> Figure | None:
    """A panel a group, to one scale: AUC by number of training prompts; None where there is one number only."""
    panels = [panel for group in rows(task.get("groups")) if (panel := _curve(group))]
    ends = _axis([panel.y_range for panel in panels if panel.y_range])
    caption = (
        "Learning curves with 95 % intervals, tested on the same prompts: where a curve still rises at its end, more "
        "prompts would tell more."
    )
    return Figure(name, caption, [replace(panel, y_range=ends) for panel in panels]) if panels else None


def _curve(group: Row) -> Panel | None:
    points = [row for row in rows(group.get("curve")) if number(row.get("n_train")) is not None]
    if len(points) < 2:
        return None
    found = [part(row, "auc") for row in points]
    low, high = _ends(found, number)
    x, y = [float(row["n_train"]) for row in points], [number(one.get("value")) for one in found]
    line = Line("group", x, y, low, high, GROUP)
    return _with_chance(f"Group {group_name(group)}", "training prompts", [line])


# --- the plane


def plane_figure(probing: Probing, name: str) -> Figure | None:
    """A panel a group, a point a prompt, coloured by set; None without projections."""
    drawn = [row for row in rows(probing.get("projection")) if rows(row.get("points"))]
    names = dict.fromkeys(str(point.get("set", "")) for row in drawn for point in rows(row.get("points")))
    styles = set_styles(names)
    panels = [_plane(row, styles) for row in drawn]
    caption = (
        "How the sets lie among each other: the features of a group's experts on their first two principal components, "
        "a point a prompt. The plane is chosen without regard to the sets and holds only the share of the variance "
        "that its axes say. It measures nothing: sets that overlap here may be told apart by a probe, and a gap seen "
        "here has no interval and no control."
    )
    return Figure(name, caption, panels) if panels else None


def _plane(row: Row, styles: dict[str, int]) -> Plane:
    by_set: dict[str, list[Row]] = defaultdict(list)
    for point in rows(row.get("points")):
        by_set[str(point.get("set", ""))].append(point)
    clouds = [_cloud(name, points, styles[name]) for name, points in by_set.items()]
    return Plane(f"Group {group_name(row)}", _component(row, 0), _component(row, 1), clouds)


def _component(row: Row, i: int) -> str:
    explained = items(row.get("explained"))
    share = percent(explained[i]) if len(explained) > i else None
    return f"component {i + 1}" + ("" if share is None else f" ({fixed(share, 1)} % of the variance)")


def _cloud(name: str, points: list[Row], style: int) -> Cloud:
    x, y = ([number(point.get(key)) for point in points] for key in ("x", "y"))
    return Cloud(name, x, y, style, [str(point.get("id", "")) for point in points])
