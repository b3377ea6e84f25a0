"""A sweep as tables, for CSV and parquet."""

from __future__ import annotations

from typing import Any

import numpy as np

from safex.tables import Tables

from .result import Sweep

NAMES = ("sweep", "sweep_pairs")


def sweep_tables(sweep: Sweep) -> Tables:
    """Tables ``sweep`` (a row an expert) and, with pairs, ``sweep_pairs``."""
    parts = dict(zip(NAMES, (sweep.rows, sweep.pairs), strict=True))
    return {name: _columns([_flat(row) for row in rows]) for name, rows in parts.items() if rows}


def _columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    columns = {name: [row[name] for row in rows] for name in rows[0]}
    return {
        name: values if isinstance(values[0], (str, bool)) else np.array(values)
        for name, values in columns.items()
    }


def _flat(row: dict[str, Any]) -> dict[str, Any]:
    """Values by set and bounds as columns of their own."""
    flat: dict[str, Any] = {}
    for name, value in row.items():
        if isinstance(value, dict):
            flat |= _flat({f"{name}_{key}": part for key, part in value.items()})
        elif name == "experts":
            flat |= dict(zip(("first", "second"), value, strict=True))
        elif isinstance(value, list):
            flat |= {f"{name}_{end}": bound for end, bound in zip(("low", "high"), value, strict=True)}
        else:
            flat[name] = value
    return flat
