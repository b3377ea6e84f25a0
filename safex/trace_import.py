"""Traces of other tools, one prompt a file, as one profile."""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.errors import InputError
from safex.profile import Profile
from safex.profile_arrays import PhaseArrays, PromptTable, Routers, prompts_hash
from safex.trace_files import Notes, Trace, compare_tokens, read_csv_trace, read_json_trace, refuse_unfilled

PathLike: TypeAlias = "str | os.PathLike[str]"
SUFFIXES = (".json", ".csv")


def import_traces(
    sets: Mapping[str, PathLike | Sequence[PathLike]],
    top_k: int | None = None,
    n_experts: int | None = None,
    layers: Sequence[int] | None = None,
) -> Profile:
    """The profile of traced prompts; what ``Profile.from_traces`` returns, where the arguments are explained."""
    for name, value in (("top_k", top_k), ("n_experts", n_experts)):
        if value is not None and value < 1:
            raise InputError(f"{name} is {value}, expected a whole number from 1 on")
    files = [(name, path) for name, given in sets.items() for path in trace_paths(given)]
    _refuse_same_ids(files)
    notes = Notes()
    traces = _read([path for _, path in files], notes, top_k, n_experts, layers)
    for trace in traces:
        _refuse_other_model(traces[0], trace)
        compare_tokens(trace, notes)
        refuse_unfilled(trace, notes)
    _note_unused_experts(traces, notes)
    _note_models(traces, notes)
    kept = _kept_layers(traces)
    hashes = [trace.text_hash for trace in traces]
    table = PromptTable.build(
        [name for name, _ in files], [path.stem for _, path in files], texts_hash=hashes
    )
    routers = Routers.build(kept, traces[0].n_experts, traces[0].top_k)
    return Profile(_arrays(traces, kept), routers, table, _meta(traces, table, notes))


def trace_paths(given: PathLike | Sequence[PathLike]) -> list[Path]:
    """The files meant by files and folders; of a folder its ``*.json`` and ``*.csv``, by name. Raises InputError."""
    if isinstance(given, (str, os.PathLike)):
        given = [given]
    return [path for item in given for path in _expand(Path(item))]


def _expand(path: Path) -> list[Path]:
    if not path.exists():
        raise InputError(f"{path}: no such file or folder of traces")
    if not path.is_dir():
        return [path]
    found = sorted(part for part in path.iterdir() if part.suffix.lower() in SUFFIXES and part.is_file())
    if not found:
        raise InputError(f"{path}: holds no traces; expected files named *.json or *.csv, one prompt each")
    return found


def _refuse_same_ids(files: Sequence[tuple[str, Path]]) -> None:
    first: dict[tuple[str, str], Path] = {}
    for name, path in files:
        other = first.setdefault((name, path.stem), path)
        if other is not path:
            raise InputError(
                f"{other} and {path} would both be prompt {path.stem!r} of set {name!r}: rename one"
            )


def _read(
    paths: Sequence[Path],
    notes: Notes,
    top_k: int | None,
    n_experts: int | None,
    layers: Sequence[int] | None,
) -> list[Trace]:
    """Traces in the order of ``paths``; the JSON files, which say top_k and n_experts, tell the CSV files."""
    if not paths:
        raise InputError("there is no trace to import")
    of_csv = [path for path in paths if path.suffix.lower() == ".csv"]
    read = {
        path: read_json_trace(path, notes, top_k, n_experts, layers) for path in paths if path not in of_csv
    }
    if read and of_csv:
        known = next(iter(read.values()))
        top_k, n_experts = known.top_k, known.n_experts
    if layers is not None and not read:
        raise InputError(f"{of_csv[0]}: a CSV names its layers itself: leave out --layers")
    if n_experts is None and of_csv:
        raise InputError(f"{of_csv[0]}: doesn't say how many experts a layer has: give --experts")
    read |= {path: read_csv_trace(path, notes, top_k, n_experts or 0) for path in of_csv}
    return [read[path] for path in paths]


def _refuse_other_model(first: Trace, other: Trace) -> None:
    for name, a, b in (
        ("experts in a layer", first.n_experts, other.n_experts),
        ("selected experts a token", first.top_k, other.top_k),
        ("layers with experts", first.layers, other.layers),
    ):
        if a != b:
            raise InputError(
                f"{other.path}: has {b} {name}, {first.path} has {a}: traces of one profile must come from one model"
            )


def _kept_layers(traces: Sequence[Trace]) -> list[int]:
    short = {layer for trace in traces for layer in trace.short}
    return [layer for layer in traces[0].layers if layer not in short]


def _note_unused_experts(traces: Sequence[Trace], notes: Notes) -> None:
    used = np.any([counts.any(axis=0) for trace in traces for counts in trace.counts.values()], axis=0)
    n_used = int(np.flatnonzero(used)[-1]) + 1
    if n_used < len(used) and all(trace.probs is not None for trace in traces):
        notes.add(
            traces[0].path,
            f"the experts from {n_used} on are never selected: the official tool counts shared ones in num_experts "
            f"(--experts {n_used} leaves them out, if these are such)",
        )


def _note_models(traces: Sequence[Trace], notes: Notes) -> None:
    names = dict.fromkeys(trace.model for trace in traces if trace.model is not None)
    if len(names) > 1:
        a, b = list(names)[:2]
        notes.add(
            traces[0].path, f"the traces name {len(names)} models, such as {a} and {b}: are they the same?"
        )


def _arrays(traces: Sequence[Trace], layers: Sequence[int]) -> dict[str, PhaseArrays]:
    rows = [traces[0].layers.index(layer) for layer in layers]
    answered = any(trace.n_tokens["response"] for trace in traces)
    phases = ("prompt", "response") if answered else ("prompt",)
    return {phase: _phase(traces, phase, rows) for phase in phases}


def _phase(traces: Sequence[Trace], phase: str, rows: Sequence[int]) -> PhaseArrays:
    counts = np.stack([trace.counts[phase][rows] for trace in traces]).astype(np.uint32)
    zeros: npt.NDArray[np.float64] = np.broadcast_to(np.float64(0), counts.shape)
    if any(trace.probs is None for trace in traces):
        sums = zeros
    else:
        sums = np.stack([trace.probs[phase][rows] for trace in traces if trace.probs]) * counts
    n_tokens = np.array([trace.n_tokens[phase] for trace in traces], np.int64)
    return PhaseArrays(counts, zeros, sums, n_tokens)


def _kind(path: Path) -> str:
    return "moe-trace CSV" if path.suffix.lower() == ".csv" else "trace JSON"


def _meta(traces: Sequence[Trace], table: PromptTable, notes: Notes) -> dict[str, Any]:
    from safex import __version__

    models = {trace.model for trace in traces}
    model = models.pop() if len(models) == 1 else None
    no_probs = any(trace.probs is None for trace in traces)
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {
        "model.name": None if model is None else Path(model).name or None,
        "prompts_hash": prompts_hash(table),
        "tool_version": __version__,
        "created": now,
        "imported": sorted({_kind(trace.path) for trace in traces}),
        "import.notes": notes.lines(),
        "absent": ["gate_sum"] + ["prob_sum"] * no_probs,
    }
