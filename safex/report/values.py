"""Values of result files as the page shows them: any of them may be missing, null, or of another type."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

MISSING = "–"
MINUS = "−"


def part(value: Any, *keys: str) -> dict[str, Any]:
    """The object below ``keys``; empty where it, or one on the way, is missing.

    >>> part({"null": {"groups": {"id": 1}}}, "null", "groups"), part({"null": None}, "null", "groups")
    ({'id': 1}, {})
    """
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return dict(value) if isinstance(value, Mapping) else {}


def rows(value: Any) -> list[dict[str, Any]]:
    """The objects of a list; empty where it is none."""
    return [dict(row) for row in value if isinstance(row, Mapping)] if isinstance(value, list) else []


def items(value: Any) -> list[Any]:
    """A list as it is; empty where it is none."""
    return value if isinstance(value, list) else []


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer beyond any float
        return None


def numbers(values: Any) -> list[float | None]:
    """Each item as ``number``."""
    return [number(value) for value in items(values)]


def whole_number(value: Any) -> int | None:
    """A whole number, or None."""
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def whole_numbers(values: Any) -> list[int]:
    """A list of whole numbers; empty where anything else is in it."""
    found = [whole_number(value) for value in items(values)]
    return [] if None in found else [value for value in found if value is not None]


def percent(value: Any) -> float | None:
    """A share in percent, a difference of shares in points.

    >>> percent(0.29), percent(None)
    (29.0, None)
    """
    found = number(value)
    return None if found is None else round(100 * found, 9)


def percents(values: Any) -> list[float | None]:
    """Each item as ``percent``."""
    return [percent(value) for value in items(values)]


def signed(value: Any, digits: int = 2) -> str:
    """A number with its sign; zero has none.

    >>> signed(0.125), signed(-98.75, 1), signed(0.0, 1), signed(None)
    ('+0.12', '−98.8', '0.0', '–')
    """
    found = number(value)
    if found is None:
        return MISSING
    text = fixed(found, digits)
    return f"+{text}" if found > 0 and text.strip("0.,") else text


def interval(value: Any) -> tuple[float, float] | None:
    """A pair of finite numbers, or None."""
    ends = numbers(value)
    if len(ends) != 2 or ends[0] is None or ends[1] is None:
        return None
    return ends[0], ends[1]


def fixed(value: Any, digits: int = 4) -> str:
    """A number with a fixed count of decimals; counts stay whole.

    >>> fixed(0.12345), fixed(-0.5, 2), fixed(12), fixed(None)
    ('0.1235', '−0.50', '12', '–')
    """
    found = number(value)
    if found is None:
        return MISSING
    text = f"{abs(value):,}" if isinstance(value, int) else f"{abs(found):,.{digits}f}"
    return (MINUS if found < 0 and text.strip("0.,") else "") + text


def small(value: Any) -> str:
    """A number that may be far below one, with three significant digits.

    >>> small(0.00123456), small(0.0), small(2e-9)
    ('0.00123', '0', '2e−9')
    """
    found = number(value)
    if found is None:
        return MISSING
    return f"{found:.3g}".replace("e-0", "e-").replace("-", MINUS)


def span(value: Any, show: Any = fixed) -> str:
    """An interval as ``low to high``; empty where there is none.

    >>> span([0.1, 0.25], small)
    '0.1 to 0.25'
    """
    ends = interval(value)
    return f"{show(ends[0])} to {show(ends[1])}" if ends else ""


def p_text(value: Any) -> str:
    """A p-value.

    >>> p_text(0.04), p_text(0.00004)
    ('0.040', '< 0.001')
    """
    found = number(value)
    if found is None:
        return MISSING
    return f"{found:.3f}" if found >= 0.001 else "< 0.001"


def listing(values: Iterable[Any]) -> str:
    """Items with commas between them.

    >>> listing(["2:3", "4:1"]), listing([])
    ('2:3, 4:1', 'none')
    """
    return ", ".join(map(str, values)) or "none"


def plural(n: int, noun: str) -> str:
    """A count with its noun.

    >>> plural(1, "expert"), plural(3, "expert")
    ('1 expert', '3 experts')
    """
    return f"{n:,} {noun}" + ("" if n == 1 else "s")


def per_layer(values: Any, show: Any = str) -> str:
    """Values of the layers: one where all are equal, otherwise a list.

    >>> per_layer([8, 8]), per_layer([8, 4])
    ('8', '8, 4 (by layer)')
    """
    texts = [show(value) for value in items(values)]
    if len(set(texts)) == 1:
        return str(texts[0])
    return f"{', '.join(texts)} (by layer)" if texts else MISSING
