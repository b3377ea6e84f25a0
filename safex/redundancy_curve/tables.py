"""A redundancy curve as plain tables, for CSV and parquet."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from safex.evaluation.tables import NO_ESTIMATE, NO_RATE, columns, flat
from safex.judges import OTHER, THREE
from safex.rates import APART
from safex.tables import Tables

from .plan import ORDER
from .result import Redundancy

Row = dict[str, Any]

NAMES = ("curve", "areas", "orders", "utility")


def redundancy_tables(found: Redundancy) -> Tables:
    """Tables ``curve``, ``areas``, ``orders`` and ``utility``, those that there are rows for.

    ``curve``: a row for each set, size and reading, with count, rate and interval, and the paired change with its
    interval and p-value (empty at size 0). ``areas``: a row for each reading and kind of order, the first the order
    itself, with mean, least and largest area, the order's difference to the mean, p-value, how many of the orders are
    halved and the (median) half-point. ``orders``: a row for each order and size, with the expert that is masked last
    and the three rates on regular prompts. ``utility``: a row for each size and measure.
    """
    tables = {
        "curve": list(_curve(found)),
        "areas": list(_areas(found)),
        "orders": list(_orders(found)),
        "utility": list(_utility(found)),
    }
    return {name: columns(rows) for name, rows in tables.items() if rows}


def _curve(found: Redundancy) -> Iterator[Row]:
    for of_set in found.sets:
        for step in of_set["curve"]:
            for reading in THREE:
                row = {"set": of_set["set"], "size": step["size"], "reading": reading, "n": step["n"]}
                row |= {"readable": step.get("readable", step["n"]), **flat(step[reading] or NO_RATE)}
                row |= {name: step.get(name, 0) for name in APART}
                yield row | _change(step.get("change", {}).get(reading))


def _change(change: Row | None) -> Row:
    names = ("change", "change_low", "change_high", "p_value")
    if change is None:
        return dict.fromkeys(names)
    value = flat(change["difference"] or NO_ESTIMATE)
    return dict(zip(names, (value["value"], value["low"], value["high"], change["p_value"]), strict=True))


def _areas(found: Redundancy) -> Iterator[Row]:
    for reading, area in found.area.items():
        half = found.half
        row = {
            "order": ORDER,
            "reading": reading,
            "n": 1,
            "mean": area["value"],
            **_ends("", area["interval"]),
        }
        row |= {"min": area["value"], "max": area["value"], "difference": None, **_ends("difference_", None)}
        yield row | {"p_value": None, "halved": int(half["size"] is not None), "half": half["value"]}
        yield from (_control_area(kind, reading) for kind in found.controls)


def _control_area(kind: Row, reading: str) -> Row:
    area = kind[reading]
    difference = area.get("difference") or {"value": None, "interval": None}
    return {
        "order": kind["kind"],
        "reading": reading,
        "n": kind["n"],
        "mean": area["mean"],
        **_ends("", None),
        "min": area["min"],
        "max": area["max"],
        "difference": difference["value"],
        **_ends("difference_", difference["interval"]),
        "p_value": None if reading == OTHER else area["placement"]["p_value"],
        "halved": kind["half"]["reached"],
        "half": kind["half"]["median"],
    }


def _ends(prefix: str, interval: list[float] | None) -> Row:
    low, high = interval or (None, None)
    return {f"{prefix}low": low, f"{prefix}high": high}


def _orders(found: Redundancy) -> Iterator[Row]:
    own = {
        "order": ORDER,
        "experts": found.experts,
        **{
            reading: [(step[reading] or NO_RATE)["value"] for step in found.curve("regular")]
            for reading in THREE
        },
    }
    for kind, order in [
        (ORDER, own),
        *((row["kind"], one) for row in found.controls for one in row["orders"]),
    ]:
        for i, size in enumerate(found.sizes[: len(order["refuse"])]):
            last = order["experts"][size - 1] if size else None
            rates = {reading: order[reading][i] for reading in THREE}
            yield {"kind": kind, "order": order["order"], "size": size, "last_expert": last, **rates}


def _utility(found: Redundancy) -> Iterator[Row]:
    for row in found.utility:
        for measure, value in row.items():
            if isinstance(value, dict):
                yield {"size": row["size"], "measure": measure, **flat(value), "n_tokens": row["n_tokens"]}
