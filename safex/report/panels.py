"""What a figure is made of: panels of lines, of rows with points or bars, of cells, of points on a plane."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, TypeAlias

LONG = 24  # points of a line that need the whole width
SHORT = 12  # an axis of whole numbers up to this length has a tick at each
LABEL = 28  # characters of a row's name
STACK = 0.76  # rows that equal points of a row may take
CLOSE = 0.09  # their distance where they are few

Numbers: TypeAlias = Sequence[float | None]


@dataclass(frozen=True)
class Line:
    """One line of a panel; ``low`` and ``high`` are the ends of its interval at each x.

    ``style`` numbers colour and marker; a ``quiet`` line is thin and dotted (a reference, a null), a ``grey`` one has
    no colour (controls). The interval is drawn as a ``band`` or as bars.
    """

    name: str
    x: Sequence[float]
    y: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    style: int = 0
    quiet: bool = False
    legend: bool = True
    grey: bool = False
    band: bool = False


def log_ticks(low: float, high: float) -> list[float]:
    """The numbers 1, 2, 5 times a power of ten from low to high.

    >>> log_ticks(4, 60)
    [5, 10, 20, 50]
    """
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10**power for power in powers for step in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


@dataclass(frozen=True)
class Panel:
    """Lines over one pair of axes. ``height`` of any panel: that of its plot, in pixels of the page."""

    height: ClassVar[int] = 180
    title: str
    x_title: str
    y_title: str
    lines: list[Line]
    y_range: tuple[float, float] | None = None  # None: from zero to the largest value
    log_x: bool = False
    x_names: Mapping[float, str] = field(
        default_factory=dict
    )  # of the ticks, where x is no number to be read

    @property
    def x_ticks(self) -> list[float] | None:
        """Where to write numbers on a logarithmic axis or a short one of whole numbers; None: anywhere."""
        if self.x_names:
            return list(self.x_names)
        values = [x for line in self.lines for x in line.x]
        if self.log_x:
            return log_ticks(min(values), max(values))
        return sorted(set(values)) if max(values) - min(values) <= SHORT else None

    def x_name(self, x: float) -> str:
        """What is written at a tick."""
        return self.x_names.get(x, f"{x:,g}")

    @property
    def is_wide(self) -> bool:
        """Whether it needs the whole width."""
        return any(len(line.x) > LONG for line in self.lines)

    @property
    def spoken(self) -> str:
        """What it shows, for readers who don't see it."""
        return f"{self.title}: {self.y_title} by {self.x_title}"


@dataclass(frozen=True)
class Dots:
    """Points of one name, each at ``x`` in a row; ``rows`` are row numbers, 1.2 lies a little below row 1.

    ``low`` and ``high`` are the ends of the interval of each. ``bars`` reach from zero to each point; ``quiet`` points
    are small and see-through (draws of a control). ``notes`` name each point where a pointer rests on it.
    """

    name: str
    rows: Sequence[float]
    x: Numbers
    low: Numbers | None = None
    high: Numbers | None = None
    style: int = 0
    quiet: bool = False
    bars: bool = False
    notes: Sequence[str] = ()


def side_by_side(values: Numbers) -> list[float]:
    """How far from the middle of its row each point is drawn, so that none of equal value hides another.

    >>> side_by_side([0.5, 0.7, 0.5])
    [-0.045, 0.0, 0.045]
    """
    total, seen = Counter(values), Counter[float | None]()
    shifts = []
    for value in values:
        step = min(CLOSE, STACK / max(1, total[value] - 1))
        shifts.append(step * (seen[value] - (total[value] - 1) / 2))
        seen[value] += 1
    return shifts


@dataclass(frozen=True)
class RowPanel:
    """Rows with a name each, from the top down, and points along x; ``lines`` are references, upright over all rows."""

    title: str
    x_title: str
    rows: list[str]
    dots: list[Dots]
    lines: list[Line] = field(default_factory=list)
    x_range: tuple[float, float] | None = None
    row_height: int = 16

    @property
    def labels(self) -> list[str]:
        """The rows' names, cut where they are long."""
        return [name if len(name) <= LABEL else f"{name[: LABEL - 1]}…" for name in self.rows]

    @property
    def height(self) -> int:
        """Pixels of the plot."""
        return self.row_height * len(self.rows) + 8

    @property
    def is_wide(self) -> bool:
        """Whether it needs the whole width."""
        return len(self.rows) > LONG

    @property
    def spoken(self) -> str:
        """What it shows, for readers who don't see it."""
        return f"{self.title}: {self.x_title}, {len(self.rows)} rows"

    def upright(self, name: str, x: float, style: int = 0) -> Line:
        """A reference at ``x``, from the first row to the last."""
        return Line(name, [x, x], [-0.5, len(self.rows) - 0.5], style=style, quiet=True)


@dataclass(frozen=True)
class Grid:
    """A cell for each layer (row) and expert (column), coloured by its value around zero, up to ``limit``."""

    title: str
    what: str
    layers: list[int]
    values: list[Numbers]
    limit: float

    @property
    def height(self) -> int:
        """Pixels of the plot."""
        return round(len(self.layers) * min(24.0, max(8.0, 720 / len(self.layers))))

    @property
    def is_wide(self) -> bool:
        """Whether it needs the whole width."""
        return len(self.values[0]) > 2 * LONG

    @property
    def spoken(self) -> str:
        """What it shows, for readers who don't see it."""
        return f"{self.title}: {self.what} by layer and expert"


@dataclass(frozen=True)
class Cloud:
    """Points of one name on a plane; ``notes`` name each where a pointer rests on it."""

    name: str
    x: Numbers
    y: Numbers
    style: int = 0
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Plane:
    """Clouds of points over two axes of one scale, so that distances can be compared in every direction."""

    height: ClassVar[int] = 320
    is_wide: ClassVar[bool] = False
    title: str
    x_title: str
    y_title: str
    clouds: list[Cloud]

    @property
    def spoken(self) -> str:
        """What it shows, for readers who don't see it."""
        names = ", ".join(cloud.name for cloud in self.clouds)
        return f"{self.title}: {self.y_title} by {self.x_title}, points of {names}"


AnyPanel: TypeAlias = "Panel | RowPanel | Grid | Plane"


@dataclass(frozen=True)
class Figure:
    """Panels side by side. ``name`` is that of its PNG file, ``caption`` says what it shows and how to read it."""

    kind: ClassVar[str] = "figure"
    name: str
    caption: str
    panels: Sequence[AnyPanel]

    @property
    def columns(self) -> int:
        """Panels in a row, where there is room: one where they need the whole width, pairs stay together."""
        if any(panel.is_wide for panel in self.panels):
            return 1
        return 2 if len(self.panels) % 2 == 0 else min(3, len(self.panels))
