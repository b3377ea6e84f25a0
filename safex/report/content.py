"""What a page is made of: sections of prose, tables, figures (``panels.py``) and maps.

Sections are built from result files without knowing how they are drawn; ``html.py`` and ``png.py`` draw them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from .panels import Figure
from .values import fixed, interval, number, p_text, small, span

if TYPE_CHECKING:
    from .activation import ExpertMap


FEW = 6  # rows that need no filter
FIRST_ROWS = 200  # rows that are shown at first: a browser takes seconds to lay out thousands

Shown: TypeAlias = Callable[[Any, int], str]  # a number with so many decimals


@dataclass(frozen=True)
class Column:
    """A table column; ``intervals`` gives it two more columns, low and high, where it is copied as CSV."""

    title: str
    numeric: bool = False
    intervals: bool = False


@dataclass(frozen=True)
class Cell:
    """``text`` is shown, ``note`` below it in small; ``value`` is what the column is sorted by and what is copied."""

    text: str
    value: float | str | None = None
    note: str = ""
    ends: tuple[float, float] | None = None
    expert: str = ""  # L:E, to show on the map


@dataclass(frozen=True)
class Table:
    """A table; ``tools``: it can be sorted, filtered and copied."""

    kind: ClassVar[str] = "table"
    caption: str
    columns: list[Column]
    rows: list[list[Cell]]
    tools: bool = True


@dataclass(frozen=True)
class Prose:
    """Paragraphs of plain text."""

    kind: ClassVar[str] = "prose"
    paragraphs: list[str]


@dataclass(frozen=True)
class Commands:
    """Command lines."""

    kind: ClassVar[str] = "commands"
    lines: list[str]


@dataclass(frozen=True)
class Map:
    """Maps of layers x experts, one tab a profile."""

    kind: ClassVar[str] = "map"
    caption: str
    maps: list[ExpertMap]


Block: TypeAlias = "Figure | Table | Prose | Commands | Map"


@dataclass(frozen=True)
class Section:
    """A part of the page; ``anchor`` is its address."""

    anchor: str
    title: str
    blocks: list[Block] = field(default_factory=list)


def text_cell(text: object) -> Cell:
    """A cell of text."""
    return Cell(str(text))


def number_cell(value: object, digits: int = 4, ends: object = None, show: Shown = fixed) -> Cell:
    """A cell of a number, its interval below it.

    >>> number_cell(0.5, 2, [0.25, 0.75]).note
    '0.25 to 0.75'
    """
    return Cell(
        show(value, digits), number(value), span(ends, lambda end: show(float(end), digits)), interval(ends)
    )


def small_cell(value: object, ends: object = None) -> Cell:
    """A cell of a number that may be far below one, its interval below it."""
    return Cell(small(value), number(value), span(ends, small), interval(ends))


def p_cell(value: object) -> Cell:
    """A cell of a p-value."""
    return Cell(p_text(value), number(value))


def expert_cell(layer: int, expert: int) -> Cell:
    """A cell that names an expert, in the order of layers, and shows it on the map where the page has one."""
    key = f"{layer}:{expert}"
    return Cell(key, layer + expert / 1e6, expert=key)


def small_table(caption: str, columns: list[Column], rows: list[list[Cell]]) -> Table:
    """A table that can be sorted and filtered only where it has more than a few rows."""
    return Table(caption, columns, rows, tools=len(rows) > FEW)
