"""The profile file, a GGUF container: how it is written and read.

File: ``general.architecture`` = "safex-profile"; the keys ``safex.profile.*`` hold ``Profile.meta`` and
schema_version, phases, set_names, layers, n_experts, top_k, ids, texts_hash, and the tables ``pairs`` and
``categories``. Tensors: for each phase ``<phase>.counts`` (I32), ``.gate_sum`` and ``.prob_sum`` (F64) [P, L,
E] and ``.n_tokens`` (I64) [P]; ``set``, ``pair``, ``category`` (I32) [P], indices into those lists, -1 for
none.

Keys of meta in use: model.fingerprint, model.name, model.architecture, model.quant_types, chat.system,
chat.template_kwargs, chat.thinking, chat.date, template_hash,
prompts_hash, tool_version, upstream_id, session.n_ctx, session.n_ubatch, session.flash_attn,
session.kv_type, session.max_new, session.templated, created, absent, prompts.notes; of imported traces: imported,
import.notes; of a part: part_of (the whole's prompts_hash).
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from gguf import GGMLQuantizationType, GGUFValueType, GGUFWriter

from safex import disk
from safex.errors import InputError
from safex.gguf_header import ALIGNMENT, Header, NotGgufError
from safex.journal import journal_path
from safex.profile import Profile
from safex.profile_arrays import (
    DTYPES,
    RESERVED,
    SCHEMA_VERSION,
    Array,
    PhaseArrays,
    PromptTable,
    Routers,
    blocks,
    check_phase,
    check_phase_names,
    clean_meta,
)

ARCHITECTURE = "safex-profile"
PREFIX = "safex.profile."
TENSOR_TYPES: dict[str, np.dtype[Any]] = {  # field: as gguf stores it
    "counts": np.dtype("<i4"),
    "gate_sum": np.dtype("<f8"),
    "prob_sum": np.dtype("<f8"),
    "n_tokens": np.dtype("<i8"),
}
INDEX_TYPE: np.dtype[Any] = np.dtype("<i4")
GGML_DTYPES: dict[int, np.dtype[Any]] = {
    int(GGMLQuantizationType.I32): np.dtype("<i4"),
    int(GGMLQuantizationType.I64): np.dtype("<i8"),
    int(GGMLQuantizationType.F64): np.dtype("<f8"),
}


class Layout:
    """Where everything of a profile lies in its file; ``write_header`` must come first."""

    def __init__(self, routers: Routers, prompts: PromptTable, phases: Sequence[str]) -> None:
        """Name, type and shape of every tensor; offsets are known once the header is written."""
        self.routers, self.prompts, self.phases = routers, prompts, tuple(phases)
        n = len(prompts.ids)
        self.cube = (n, len(routers.layers), routers.n_experts)
        self.tensors: dict[str, tuple[np.dtype[Any], tuple[int, ...]]] = {
            f"{phase}.{field}": (dtype, (n,) if field == "n_tokens" else self.cube)
            for phase in phases
            for field, dtype in TENSOR_TYPES.items()
        }
        self.tensors |= dict.fromkeys(("set", "pair", "category"), (INDEX_TYPE, (n,)))
        self.offsets: dict[str, int] = {}

    def write_header(self, fd: int, path: Path, meta: Mapping[str, Any]) -> None:
        """Write metadata and tensor table, give the file its full length, and write the index tensors."""
        tables, indices = self._tables()
        writer = GGUFWriter(path, ARCHITECTURE)
        for key, value in {**self.fields(), **tables, **meta}.items():
            if value != []:
                writer.add_key_value(PREFIX + key, value, *_gguf_type(value))
        for name, (dtype, shape) in self.tensors.items():
            writer.add_tensor_info(name, shape, dtype, _n_bytes(dtype, shape))
        try:
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
        finally:
            writer.close()
        end = _aligned(path.stat().st_size)
        for name, (dtype, shape) in self.tensors.items():
            self.offsets[name] = end
            end = _aligned(end + _n_bytes(dtype, shape))
        os.ftruncate(fd, end)
        for name, index in indices.items():
            disk.write_at(fd, self.offsets[name], index)

    def write_rows(self, fd: int, phase: str, field: str, start: int, rows: Array) -> None:
        """Write the values of prompts from ``start`` on."""
        name = f"{phase}.{field}"
        dtype, shape = self.tensors[name]
        data = np.ascontiguousarray(rows, dtype)
        disk.write_at(fd, self.offsets[name] + start * _n_bytes(dtype, shape[1:]), data)

    def fields(self) -> dict[str, Any]:
        """The metadata that describes the arrays."""
        return {
            "schema_version": SCHEMA_VERSION,
            "phases": list(self.phases),
            "layers": self.routers.layers,
            "n_experts": self.routers.n_experts,
            "top_k": self.routers.top_k,
            "ids": self.prompts.ids,
        }

    def _tables(self) -> tuple[dict[str, list[str]], dict[str, Array]]:
        tables, indices = {}, {}
        for key, name, column in (
            ("set_names", "set", self.prompts.sets),
            ("pairs", "pair", self.prompts.pairs),
            ("categories", "category", self.prompts.categories),
        ):
            table = [v for v in dict.fromkeys(column) if v is not None]
            place: dict[str | None, int] = {value: i for i, value in enumerate(table)}
            tables[key] = table
            indices[name] = np.array([place.get(value, -1) for value in column], INDEX_TYPE)
        if any(self.prompts.texts_hash):
            tables["texts_hash"] = [h or "" for h in self.prompts.texts_hash]
        return tables, indices


def _gguf_type(value: Any) -> tuple[GGUFValueType, GGUFValueType | None]:
    if isinstance(value, list):
        return GGUFValueType.ARRAY, _gguf_type(value[0])[0]
    if isinstance(value, bool):
        return GGUFValueType.BOOL, None
    if isinstance(value, int):
        return (GGUFValueType.INT64 if value < 2**63 else GGUFValueType.UINT64), None
    return (GGUFValueType.STRING if isinstance(value, str) else GGUFValueType.FLOAT64), None


def _aligned(offset: int) -> int:
    return -(-offset // ALIGNMENT) * ALIGNMENT


def _n_bytes(dtype: np.dtype[Any], shape: Sequence[int]) -> int:
    n = dtype.itemsize
    for size in shape:
        n *= int(size)
    return n


def save_profile(profile: Profile, path: str | os.PathLike[str]) -> None:
    """Write a profile in blocks to a temporary file that replaces ``path``. Raises DiskError, InputError."""
    for name in profile.phases:
        check_phase(name, profile.phase(name), profile.routers, profile.ids)
    layout = Layout(profile.routers, profile.prompts, profile.phases)
    with disk.replacing(Path(path)) as (fd, temporary):
        layout.write_header(fd, temporary, clean_meta(profile.meta))
        for phase in profile.phases:
            for field, array in profile.phase(phase)._asdict().items():
                for rows in blocks(array):
                    layout.write_rows(fd, phase, field, rows.start, array[rows])


def is_profile(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a profile, by its first bytes; false where it can't be read."""
    try:
        with Path(path).open("rb") as file:
            start = file.read(256)
    except OSError:
        return False
    return start.startswith(b"GGUF") and ARCHITECTURE.encode() in start


def load_profile(path: str | os.PathLike[str]) -> Profile:
    """Map a profile file and check all of it. Raises InputError: path, what was expected, what was found."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            header = _read_header(file.fileno())
            return _to_profile(file, header)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except FileNotFoundError:
        hint = ": its run is unfinished, go on with --resume" if journal_path(path).exists() else ""
        raise InputError(f"{path}: no such file{hint}") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error


def _read_header(fd: int) -> Header:
    if not os.fstat(fd).st_size:
        raise InputError("is empty")
    try:
        header = Header(mmap.mmap(fd, 0, access=mmap.ACCESS_READ))
    except NotGgufError:
        raise InputError("is not a GGUF file; expected a profile made by `profile`") from None
    found = header.keys.get("general.architecture")
    if found != ARCHITECTURE:
        raise InputError(
            f"is a GGUF of architecture {found!r}, expected {ARCHITECTURE!r} (a file made by `profile`)"
        )
    version = header.keys.get(PREFIX + "schema_version")
    if version != SCHEMA_VERSION:
        raise InputError(
            f"has schema version {version}, expected {SCHEMA_VERSION}: use the version that wrote it"
        )
    return header


def _to_profile(file: BinaryIO, header: Header) -> Profile:
    phases = check_phase_names(_texts(header, "phases"))
    arrays = {
        phase: PhaseArrays(
            *(
                _map(file, header, f"{phase}.{f}", TENSOR_TYPES[f], 1 if f == "n_tokens" else 3).view(
                    DTYPES[f]
                )
                for f in DTYPES
            )
        )
        for phase in phases
    }
    routers = Routers.build(
        _numbers(header, "layers"), _numbers(header, "n_experts", 1)[0], _numbers(header, "top_k")
    )
    columns = {
        name: _column(header, key, _map(file, header, name, INDEX_TYPE, 1))
        for key, name in (("set_names", "set"), ("pairs", "pair"), ("categories", "category"))
    }
    hashes = [h or None for h in _texts(header, "texts_hash")] or None
    sets = [s for s in columns["set"] if s is not None]
    table = PromptTable.build(sets, _texts(header, "ids"), columns["pair"], columns["category"], hashes)
    meta = {k[len(PREFIX) :]: v for k, v in header.keys.items() if k.startswith(PREFIX)}
    return Profile(arrays, routers, table, {k: v for k, v in meta.items() if k not in RESERVED})


def _texts(header: Header, key: str) -> list[str]:
    values = header.keys.get(PREFIX + key, [])
    if not (isinstance(values, list) and all(isinstance(v, str) for v in values)):
        raise InputError(f"damaged: {PREFIX}{key} is not a list of texts")
    return values


def _numbers(header: Header, key: str, n: int | None = None) -> list[int]:
    values = header.keys.get(PREFIX + key)
    values = [values] if n == 1 else values
    if not (isinstance(values, list) and all(type(v) is int for v in values)):
        raise InputError(f"damaged: {PREFIX}{key} is missing or not of whole numbers")
    return values


def _column(header: Header, key: str, index: Array) -> list[str | None]:
    table: list[str | None] = [*_texts(header, key), None]  # -1 is the last
    if ((index < -1) | (index >= len(table) - 1)).any() or (key == "set_names" and (index < 0).any()):
        raise InputError(f"damaged: an index into {PREFIX}{key} is out of range")
    return [table[i] for i in index.tolist()]


def _map(file: BinaryIO, header: Header, name: str, dtype: np.dtype[Any], n_dims: int) -> Array:
    if name not in header.tensors:
        raise InputError(f"damaged: tensor {name} is missing")
    kind, shape, offset = header.tensors[name]
    if GGML_DTYPES.get(kind) != dtype or len(shape) != n_dims or 0 in shape:
        raise InputError(
            f"damaged: tensor {name} has type {kind} and shape {shape}, expected {n_dims}-D {dtype}"
        )
    end = header.start + offset + _n_bytes(dtype, shape)
    if end > len(header.data):
        raise InputError(f"truncated: tensor {name} ends at byte {end}, the file at {len(header.data)}")
    return np.memmap(file, dtype, "r", offset=header.start + offset, shape=shape)
