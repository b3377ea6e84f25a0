"""The tables of a report's input files, for ``--csv`` and ``--parquet``."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from safex.errors import InputError
from safex.tables import comparison_tables, expert_set_tables, profile_tables

from .sections import labelled
from .sources import PROFILE, Source, Sources


def _evaluation_tables(evaluation: dict[str, Any]) -> dict[str, Any]:
    from safex.evaluation.result import from_json
    from safex.evaluation.tables import evaluation_tables

    return evaluation_tables(from_json(evaluation))


def _probing_tables(probing: dict[str, Any]) -> dict[str, Any]:
    from safex.probing.result import from_json
    from safex.probing.tables import probing_tables

    return {name.removeprefix("probe_"): t for name, t in probing_tables(from_json(probing)).items()}


def _sweep_tables(sweep: dict[str, Any]) -> dict[str, Any]:
    from safex.attribution import Sweep
    from safex.attribution.tables import sweep_tables

    tables = sweep_tables(Sweep(sweep["rows"], sweep["pairs"]))
    return {"experts" if name == "sweep" else name.removeprefix("sweep_"): t for name, t in tables.items()}


def _redundancy_tables(found: dict[str, Any]) -> dict[str, Any]:
    from safex.redundancy_curve.result import from_json
    from safex.redundancy_curve.tables import redundancy_tables

    return redundancy_tables(from_json(found))


TABLES: dict[str, Callable[[Any], dict[str, Any]]] = {
    PROFILE: profile_tables,
    "expert_set": expert_set_tables,
    "probing": _probing_tables,
    "evaluation": _evaluation_tables,
    "sweep": _sweep_tables,
    "redundancy": _redundancy_tables,
    "comparison": comparison_tables,
}


def source_tables(sources: Sources) -> dict[str, Any]:
    """The tables of all files; the names start with the kind, and with the file's own where a kind has several."""
    found: dict[str, Any] = {}
    for kind, make in TABLES.items():
        files = labelled(sources.of(kind))
        for label, source in files:
            first = f"{kind}_" if len(files) == 1 else f"{kind}_{re.sub(r'[^A-Za-z0-9._-]+', '_', label)}_"
            found |= {first + name: table for name, table in _tables_of(source, make).items()}
    return found


def _tables_of(source: Source, make: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
    try:
        return make(source.content)
    except InputError as error:
        raise InputError(f"{source.path}: {error}") from None
    except (AttributeError, KeyError, IndexError, TypeError, ValueError) as error:
        raise InputError(
            f"{source.path}: no tables can be made of it: {type(error).__name__}: {error}; was it edited by hand?"
        ) from None
