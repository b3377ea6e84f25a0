"""An evaluation as plain tables, for CSV and parquet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from safex.evaluation.counting import Row
from safex.evaluation.result import Evaluation
from safex.judges import REFUSE, THREE
from safex.rates import APART
from safex.tables import Column, Table, Tables

NAMES = ("rates", "categories", "changes", "controls", "utility", "length_curve")


def evaluation_tables(evaluation: Evaluation) -> Tables:
    """Tables of ``NAMES``, those that there are rows for.

    ``rates``: a row for each judge, set, mask ("none", "mask") and reading, with count, n, how many of these could be
    read, share of those and interval (missing where none could), and a count of each kind of unreadable answer.
    ``categories``: likewise by category. ``changes``: a row for each judge, set and reading, with the difference, its
    interval and the p-value. ``controls``: a row for each judge, set and control mask, with its three rates.
    ``length_curve``: a row for each set, mask and length read.
    """
    judged = evaluation.results.items()
    tables = {
        "rates": [row for judge, found in judged for row in _rates(judge, found)],
        "categories": [row for judge, found in judged for row in _categories(judge, found)],
        "changes": [row for judge, found in judged for row in _changes(judge, found)],
        "controls": [row for judge, found in judged for row in _controls(judge, found)],
        "utility": list(_utility(evaluation.utility or {})),
        "length_curve": [_point(row) for row in evaluation.length_curve],
    }
    return {name: columns(rows) for name, rows in tables.items() if rows}


def _rates(judge: str, found: Row) -> Iterator[Row]:
    for row in found["sets"]:
        yield from _by_reading({"judge": judge, "set": row["set"]}, row)


def _categories(judge: str, found: Row) -> Iterator[Row]:
    for row in found["sets"]:
        for part in row["categories"]:
            labels = {"judge": judge, "set": row["set"], "category": part["category"]}
            yield from _by_reading(labels, part)


def _by_reading(labels: Row, row: Row) -> Iterator[Row]:
    for mask, side in (("none", "before"), ("mask", "after")):
        for reading in THREE if side in row else ():
            rates = row[side]
            apart = {name: rates.get(name, 0) for name in APART}  # older files know two kinds
            yield {
                **labels,
                "mask": mask,
                "reading": reading,
                "n": rates["n"],
                "readable": rates.get("readable", rates["n"]),
                **flat(rates[reading] or NO_RATE),
                **apart,
            }


def _changes(judge: str, found: Row) -> Iterator[Row]:
    for row in found["sets"]:
        for reading in THREE if REFUSE in row else ():
            change = row[reading]
            counts = {name: change[name] for name in ("n", "lost", "gained", "p_value")}
            yield {
                "judge": judge,
                "set": row["set"],
                "reading": reading,
                **flat(change["difference"] or NO_ESTIMATE),
                **counts,
                "left_out": change.get("left_out", 0),
            }


def _controls(judge: str, found: Row) -> Iterator[Row]:
    for row in found["controls"]:
        for mask in row["masks"]:
            yield {"judge": judge, "set": row["set"], "kind": row["kind"], **mask}


def _utility(utility: Row) -> Iterator[Row]:
    for name, value in utility.items():
        if isinstance(value, dict):
            yield {"measure": name, **flat(value), "n_tokens": utility["n_tokens"]}


def _point(row: Row) -> Row:
    labels = {name: value for name, value in row.items() if name != REFUSE}
    return {**labels, **flat(row[REFUSE])}


NO_ESTIMATE: Row = {"value": None, "interval": (None, None)}
NO_RATE: Row = {"count": 0, **NO_ESTIMATE}


def flat(estimate: Row) -> Row:
    """``interval`` as ``low`` and ``high``."""
    low, high = estimate["interval"]
    rest = {key: value for key, value in estimate.items() if key != "interval"}
    return {**rest, "low": low, "high": high}


def columns(rows: Sequence[Row]) -> Table:
    """Rows of one shape as columns."""
    return {name: _column([row[name] for row in rows]) for name in rows[0]}


def _column(values: list[Any]) -> Column:
    if any(value is None or isinstance(value, str) for value in values):
        return values
    return np.array(values)
