"""Results as plain tables, and tables as CSV or parquet files.

A table is a dictionary of columns of one length: NumPy arrays (a NaN is a missing number, masked integers are
missing too) or lists of text or bool (None is missing). A part that a result lacks gives no table.
"""

from __future__ import annotations

import io
import json
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from safex import disk
from safex.errors import DiskError, InputError
from safex.experts import to_expert
from safex.profile_arrays import blocks

if TYPE_CHECKING:
    import pyarrow as pa

    from safex.expert_set import ExpertSet
    from safex.profile import Profile

Column: TypeAlias = "list[Any] | npt.NDArray[Any]"
Table: TypeAlias = dict[str, Column]
Tables: TypeAlias = dict[str, Table]
Row: TypeAlias = dict[str, Any]

FORMATS = ("csv", "parquet")
PROFILE_TABLES = ("activation", "prompts")

# Columns of whole numbers; every other number is a float, also where a file happens to say 1 and not 1.0.
INTEGERS = frozenset(
    {"layer", "expert", "position", "at", "stable", "permutations", "observed", "splits", "undefined"}
    | {"n", "n_controls", "as_good", "draw"}
    | {"k", "cluster", "size", "prompts", "n_a", "n_b", "n_stayed", "n_entered", "n_left"}
)

NO_EXPERTS: Table = {
    "group": np.array([], object),
    **{name: np.array([], np.int64) for name in ("position", "layer", "expert")},
}


# --- profiles


def profile_tables(profile: Profile) -> Tables:
    """Tables ``activation`` and ``prompts`` of a profile.

    ``activation``: a row for each set, phase, layer and expert: ``selections`` (sum of counts), ``tokens`` of the
    set, ``activation`` = selections / tokens (missing without tokens), ``mean_gate_weight`` and
    ``mean_gate_probability`` over the selections (missing where there are none, or where the profile has none).
    ``prompts``: a row for each prompt: id, set, pair, category, and its tokens in each phase.

    >>> from safex.profile import Profile
    >>> profile = Profile.from_arrays(counts=[[[3, 1]]], n_tokens=[4], sets=["benign"], top_k=1)
    >>> profile_tables(profile)["activation"]["activation"].tolist()
    [0.75, 0.25]
    """
    return {"activation": _activation(profile), "prompts": _prompts(profile)}


def _activation(profile: Profile) -> Table:
    parts = [_activation_of_phase(profile, phase) for phase in profile.phases]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _activation_of_phase(profile: Profile, phase: str) -> dict[str, npt.NDArray[Any]]:
    names = profile.set_names
    masks = [np.array([s == name for s in profile.sets]) for name in names]
    arrays = profile.phase(phase)
    selections = _sums(arrays.counts, masks, np.int64)
    of_each = selections.shape[1:]
    tokens = np.array([int(arrays.n_tokens[mask].sum()) for mask in masks])[:, None, None]
    gates = {
        column: _mean(profile, field, getattr(arrays, field), masks, selections)
        for column, field in (("mean_gate_weight", "gate_sum"), ("mean_gate_probability", "prob_sum"))
    }
    cubes = {
        "layer": np.array(profile.layers)[:, None],
        "expert": np.arange(profile.n_experts),
        "selections": selections,
        "tokens": tokens,
        "activation": _ratio(selections, tokens),
        **gates,
    }
    n_rows = of_each[0] * of_each[1]
    labels = {
        "set": np.repeat(np.array(names, object), n_rows),
        "phase": np.full(n_rows * len(names), phase, object),
    }
    return labels | {name: np.broadcast_to(cube, selections.shape).ravel() for name, cube in cubes.items()}


def _mean(
    profile: Profile,
    field: str,
    sums: npt.NDArray[np.float64],
    masks: Sequence[npt.NDArray[np.bool_]],
    selections: npt.NDArray[np.int64],
) -> npt.NDArray[np.float64]:
    absent = profile.meta.get("absent")
    if isinstance(absent, list) and field in absent:
        return np.full(selections.shape, np.nan)
    return _ratio(_sums(sums, masks, np.float64), selections)


def _sums(
    array: npt.NDArray[Any], masks: Sequence[npt.NDArray[np.bool_]], dtype: type[np.generic]
) -> npt.NDArray[Any]:
    """Sums over the prompts of each mask, [n_masks, L, E]."""
    total = np.zeros((len(masks), *array.shape[1:]), dtype)
    for rows in blocks(array):
        for i, mask in enumerate(masks):
            total[i] += array[rows][mask[rows]].sum(axis=0, dtype=dtype)
    return total


def _ratio(a: npt.NDArray[Any], b: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """``a / b``, NaN where ``b`` is 0."""
    b = np.broadcast_to(b, a.shape)
    ratio: npt.NDArray[np.float64] = np.divide(a, b, out=np.full(a.shape, np.nan), where=b > 0)
    return ratio


def _prompts(profile: Profile) -> Table:
    tokens = {f"{phase}_tokens": np.asarray(profile.phase(phase).n_tokens) for phase in profile.phases}
    return {
        "id": profile.ids,
        "set": profile.sets,
        "pair": profile.pairs,
        "category": profile.categories,
        **tokens,
    }


# --- expert sets


def expert_set_tables(experts: ExpertSet) -> Tables:
    """The tables of an expert set, those that it has data for.

    ``groups`` (always there; a row an expert, nested values flattened: ``activation_regular``,
    ``interval_regular_low``, ``difference_regular-benign_high``), ``curves`` and ``stable_counts`` (frequency of
    an expert, number of stable experts of a set, ``at`` each value of the ``axis`` "top" or "resamples"),
    ``null``, ``split_half``,
    ``hot_everywhere``, ``hot_share``, ``baseline``, ``clusters`` (a row an expert), ``cluster_sets``,
    ``cluster_categories``, ``cluster_prompts``, ``cluster_stability``. Raises InputError naming a part of
    another layout than ``identify`` writes.
    """
    clusters, controls = experts.clusters or {}, experts.controls
    tables = make_tables(
        {
            "groups": lambda: _group_rows(experts),
            "curves": lambda: _curve_rows(experts.curves),
            "stable_counts": lambda: _stable_rows(experts.curves),
            "null": lambda: _of_groups(controls, "null", "permutations"),
            "split_half": lambda: _of_groups(controls, "split_half", "splits"),
            "hot_everywhere": lambda: _experts(controls.get("hot_everywhere", {}).get("experts", [])),
            "hot_share": lambda: _named("group", "share", controls.get("hot_everywhere", {}).get("share")),
            "baseline": lambda: _baseline_rows(experts),
            "clusters": lambda: _cluster_experts(clusters),
            "cluster_sets": lambda: _of_clusters(clusters, "sets"),
            "cluster_categories": lambda: _of_clusters(clusters, "categories"),
            "cluster_prompts": lambda: _of_clusters(clusters, "prompts"),
            "cluster_stability": lambda: clusters.get("stability", []),
        },
        "expert set",
    )
    return {"groups": NO_EXPERTS} | tables


def _group_rows(experts: ExpertSet) -> Iterator[Row]:
    for group, entries in experts.entries.items():
        for position, entry in enumerate(entries, 1):
            yield {"group": group, "position": position, **entry}


def _curve_rows(curves: Mapping[str, Any]) -> Iterator[Row]:
    for group, entries in curves.get("groups", {}).items():
        for entry in entries:
            labels = {"group": group, "layer": entry["layer"], "expert": entry["expert"]}
            yield from _points(curves, labels, entry, "frequency")


def _stable_rows(curves: Mapping[str, Any]) -> Iterator[Row]:
    for name, counts in curves.get("stable", {}).items():
        yield from _points(curves, {"set": name}, counts, "stable")


def _points(curves: Mapping[str, Any], labels: Row, values: Mapping[str, Any], column: str) -> Iterator[Row]:
    for axis in ("top", "resamples"):
        for at, value in zip(curves.get(axis, []), values.get(f"by_{axis}", []), strict=True):
            yield {**labels, "axis": axis, "at": at, column: value}


def _of_groups(controls: Mapping[str, Any], part: str, number: str) -> Iterator[Row]:
    control = controls.get(part, {})
    for group, values in control.get("groups", {}).items():
        yield {"group": group, number: control.get(number), **values}


def _experts(texts: Iterable[str]) -> Iterator[Row]:
    for text in texts:
        yield to_expert(text)._asdict()


def _named(name: str, column: str, values: Mapping[str, Any] | None) -> Iterator[Row]:
    for key, value in (values or {}).items():
        yield {name: key, column: value}


def _baseline_rows(experts: ExpertSet) -> Iterator[Row]:
    baseline = experts.controls.get("baseline")
    if baseline and experts.model.get("layers"):
        for layer, value in zip(experts.model["layers"], baseline, strict=True):
            yield {"layer": layer, "baseline": value}


def _cluster_experts(clusters: Mapping[str, Any]) -> Iterator[Row]:
    for cluster in clusters.get("clusters", []):
        for row in _experts(cluster.get("experts", [])):
            yield {"cluster": cluster["cluster"], "size": cluster.get("size"), **row}


def _of_clusters(clusters: Mapping[str, Any], part: str) -> Iterator[Row]:
    for cluster in clusters.get("clusters", []):
        for row in cluster.get(part, []):
            yield {"cluster": cluster["cluster"], **row}


# --- comparisons


def comparison_tables(comparison: Mapping[str, Any]) -> Tables:
    """The tables of a comparison (what ``compare -o`` writes), those that it has data for.

    ``overall``, ``per_layer``, ``stable_sets``, ``groups``: a row for each of its entries, intervals as columns
    ``..._low`` and ``..._high``, lists of experts as their lengths. ``stable_set_changes`` and
    ``group_changes``: a row for each expert, with ``change`` "stayed", "entered" or "left". Raises InputError
    naming a part of another layout.
    """
    groups = comparison.get("groups")
    return make_tables(
        {
            "overall": lambda: comparison.get("overall", []),
            "per_layer": lambda: comparison.get("per_layer", []),
            "stable_sets": lambda: map(_counted, comparison.get("stable_sets", [])),
            "stable_set_changes": lambda: _changes("set", comparison.get("stable_sets", [])),
            "groups": lambda: map(_counted, _group_entries(groups)),
            "group_changes": lambda: _changes("group", _group_entries(groups)),
        },
        "comparison",
    )


def _group_entries(groups: Mapping[str, Any] | None) -> list[Row]:
    return [{"group": name, **values} for name, values in (groups or {}).items()]


CHANGES = ("stayed", "entered", "left")


def _counted(entry: Row) -> Row:
    """The entry with numbers of experts in place of lists of them."""
    counts = {f"n_{change}": len(entry[change]) for change in CHANGES if change in entry}
    return {key: value for key, value in entry.items() if key not in CHANGES} | counts


def _changes(name: str, entries: Iterable[Row]) -> Iterator[Row]:
    for entry in entries:
        for change in CHANGES:
            for row in _experts(entry.get(change, [])):
                yield {name: entry[name], "change": change, **row}


# --- rows to columns


def make_tables(parts: Mapping[str, Callable[[], Iterable[Row]]], what: str) -> Tables:
    """Tables of rows of nested plain values, those that have any; ``what`` the rows are of. Raises InputError."""
    tables = {}
    for name, rows in parts.items():
        try:
            tables[name] = _columns([dict(_flat(row)) for row in rows()])
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError) as error:
            raise InputError(
                f"{what}: no table {name!r} can be made of it: {type(error).__name__}: {error}; "
                "was the file edited by hand?"
            ) from None
    return {name: table for name, table in tables.items() if table}


def _flat(value: Any, name: str = "", interval: bool = False) -> Iterator[tuple[str, Any]]:
    """Nested values by column: ``a_b`` for b in a, ``a_low`` and ``a_high`` for an interval (which may be None)."""
    if isinstance(value, Mapping):
        for key, inner in value.items():
            key_of_interval = key == "interval" or key.endswith("_interval")
            yield from _flat(inner, _join(name, key.removesuffix("_interval")), interval or key_of_interval)
    elif interval:
        low, high = (None, None) if value is None else value
        yield from ((f"{name}_low", low), (f"{name}_high", high))
    else:
        yield name, json.dumps(value) if isinstance(value, list) else value


def _join(name: str, key: str) -> str:
    if not name:
        return key
    return name if key in ("value", "interval") else f"{name}_{key}"


def _columns(rows: Sequence[Row]) -> Table:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: _column(name, [row.get(name) for row in rows]) for name in names}


def _column(name: str, values: list[Any]) -> Column:
    known = [value for value in values if value is not None]
    if any(isinstance(value, str) for value in known):
        return [None if value is None else str(value) for value in values]
    if known and all(isinstance(value, bool) for value in known):
        return values
    if name not in INTEGERS:
        return np.array([np.nan if value is None else value for value in values], np.float64)
    integers = np.array([0 if value is None else operator.index(value) for value in values], np.int64)
    if len(known) == len(values):
        return integers
    return np.ma.masked_array(integers, [value is None for value in values])


# --- files


def table_paths(names: Iterable[str], folder: str | os.PathLike[str], format: str) -> list[Path]:
    """Where ``write_tables`` puts tables of these names."""
    return [Path(folder) / f"{name}.{format}" for name in names]


def check_targets(paths: Iterable[Path], force: bool = False) -> None:
    """Refuse files that exist (unless ``force``), and folders that can't be made. Raises InputError."""
    for path in paths:
        standing = next(part for part in path.parents if part.exists())
        if not standing.is_dir():
            raise InputError(f"{path.parent}: {standing} is a file: name a folder for the tables")
        disk.check_target(path)
        if path.exists() and not force:
            raise InputError(f"{path}: exists already: --force to replace it, or choose another folder")


def write_tables(
    tables: Tables, folder: str | os.PathLike[str], format: str, force: bool = False
) -> list[Path]:
    """Write each table to ``folder/<name>.<format>`` ("csv" or "parquet"), making the folder.

    Missing values are nulls in parquet and empty in CSV. Each file is written whole or not at all; files that
    exist are replaced only with ``force``, and are otherwise refused before anything is written. Raises
    InputError, DiskError.
    """
    if format not in FORMATS:
        raise InputError(f"format is {format!r}, expected one of {', '.join(FORMATS)}")
    paths = table_paths(tables, folder, format)
    check_targets(paths, force)
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DiskError(f"{folder}: can't be made: {error.strerror}; choose another folder") from error
    for path, table in zip(paths, tables.values(), strict=True):
        with disk.replacing(path) as (fd, _):
            disk.write_at(fd, 0, _encode(table, format))
    return paths


def _encode(table: Table, format: str) -> bytes:
    import pyarrow.csv
    import pyarrow.parquet

    made = pyarrow.table({name: _to_arrow(values) for name, values in table.items()})
    buffer = io.BytesIO()
    if format == "csv":
        pyarrow.csv.write_csv(made, buffer)
    else:
        pyarrow.parquet.write_table(made, buffer)
    return buffer.getvalue()


def _to_arrow(values: Column) -> pa.Array:
    import pyarrow as pa

    if isinstance(values, np.ndarray) and values.dtype.kind in "iuf":
        mask = np.ma.getmaskarray(values) if values.dtype.kind != "f" else np.isnan(values)
        return pa.array(np.asarray(values), mask=mask)
    made = pa.array(values)
    return made.cast(pa.string()) if pa.types.is_null(made.type) else made
