"""The features file, in safetensors format: how it is written and read.

Tensors: ``L:E`` F32 [n_prompts, n_embd] for each expert, and ``n_tokens`` U32 [n_experts, n_prompts], experts in the
order of the metadata. Metadata: ``safex_features`` = schema version, and ``safex`` = JSON: experts, prompts (ids, sets,
pairs, categories, texts_hash), texts, roster (groups, controls, notes), routing, pool, phase, meta (keys as in a
profile). Any safetensors reader gives the arrays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from safex import disk, roster
from safex.errors import InputError
from safex.experts import Expert, to_expert
from safex.features import Features
from safex.profile_arrays import PromptTable, blocks

SCHEMA_VERSION = 1
MARK, CONTENT = "safex_features", "safex"  # keys of the metadata
N_TOKENS = "n_tokens"
MAX_HEADER = 100_000_000  # bytes; readers of safetensors refuse more
DTYPES = {"F32": np.dtype("<f4"), "U32": np.dtype("<u4")}


class Layout:
    """Where everything of a features file lies; rows can be written in any order once the header is."""

    def __init__(
        self, experts: Sequence[Expert], n_prompts: int, n_embd: int, content: Mapping[str, Any]
    ) -> None:
        """Place the tensors. Raises InputError where labels and texts are more than the format holds."""
        self.row_bytes, self.experts = 4 * n_embd, list(experts)
        sizes = {str(expert): ("F32", [n_prompts, n_embd]) for expert in experts}
        sizes[N_TOKENS] = ("U32", [len(experts), n_prompts])
        header: dict[str, Any] = {"__metadata__": {MARK: str(SCHEMA_VERSION), CONTENT: _dumps(content)}}
        end = 0
        for name, (dtype, shape) in sizes.items():
            start, end = end, end + 4 * int(np.prod(shape, dtype=np.int64))
            header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
        text = _dumps(header).encode()
        text += b" " * (-len(text) % 8)
        if len(text) > MAX_HEADER:
            raise InputError(
                f"labels and texts of {n_prompts} prompts take {len(text) >> 20} MiB, a features file holds "
                f"{MAX_HEADER >> 20}: leave the texts out, or dump fewer prompts"
            )
        self.header = len(text).to_bytes(8, "little") + text
        self.size = len(self.header) + end
        self.offsets = {name: len(self.header) + header[name]["data_offsets"][0] for name in sizes}

    def write_header(self, fd: int) -> None:
        """Write the header and give the file its full length."""
        os.ftruncate(fd, self.size)
        disk.write_at(fd, 0, self.header)

    def write_rows(self, fd: int, expert: Expert, start: int, rows: npt.ArrayLike) -> None:
        """Write an expert's features of the prompts from ``start`` on."""
        data = np.ascontiguousarray(rows, DTYPES["F32"])
        disk.write_at(fd, self.offsets[str(expert)] + start * self.row_bytes, data)

    def write_n_tokens(self, fd: int, n_tokens: npt.ArrayLike) -> None:
        """Write ``n_tokens`` [n_experts, n_prompts]."""
        disk.write_at(fd, self.offsets[N_TOKENS], np.ascontiguousarray(n_tokens, DTYPES["U32"]))


def content_of(
    experts: Sequence[Expert],
    prompts: PromptTable,
    texts: Sequence[str] | None,
    roster: roster.Roster,
    settings: Mapping[str, str],
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    """What the metadata holds; ``settings``: routing, pool, phase."""
    return {
        "experts": [str(expert) for expert in experts],
        "prompts": asdict(prompts),
        "texts": texts,
        "roster": roster.to_json(),
        **settings,
        "meta": meta,
    }


def save_features(features: Features, path: str | os.PathLike[str]) -> None:
    """Write features in blocks to a temporary file that replaces ``path``. Raises DiskError, InputError."""
    f = features
    settings = {"routing": f.routing, "pool": f.pool, "phase": f.phase}
    content = content_of(f.experts, f.prompts, f.texts, f.roster, settings, f.meta)
    layout = Layout(f.experts, len(f.sets), f.n_embd, content)
    with disk.replacing(Path(path)) as (fd, _):
        layout.write_header(fd)
        for expert, array in zip(f.experts, f.values, strict=True):
            for rows in blocks(array):
                layout.write_rows(fd, expert, rows.start, array[rows])
        layout.write_n_tokens(fd, f.n_tokens)


def load_features(path: str | os.PathLike[str]) -> Features:
    """Map a features file and check all of it. Raises InputError: path, what was expected, what was found."""
    path = Path(path)
    try:
        content = _read_content(path)
        return _to_features(path, content)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error


def _read_content(path: Path) -> dict[str, Any]:
    """The metadata of a file whose header and length safetensors has checked."""
    from safetensors import SafetensorError, safe_open

    if not path.stat().st_size:
        raise InputError("is empty; expected a features file made by `dump`")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(
            f"is no safetensors file, or is truncated or damaged ({error}); expected a features file: dump it again"
        ) from None
    if MARK not in metadata:
        raise InputError("is a safetensors file, but not of features: expected one made by `dump`")
    if metadata[MARK] != str(SCHEMA_VERSION):
        raise InputError(
            f"has schema version {metadata[MARK]}, expected {SCHEMA_VERSION}: use the version that wrote it"
        )
    try:
        content = json.loads(metadata.get(CONTENT, ""))
    except (ValueError, RecursionError) as error:
        raise InputError(f"damaged: its metadata {CONTENT!r} is no JSON ({error}): dump it again") from None
    if not isinstance(content, dict):
        raise InputError(f"damaged: its metadata {CONTENT!r} is no object: dump it again")
    return content


def _to_features(path: Path, content: Mapping[str, Any]) -> Features:
    experts = [to_expert(text) for text in _list(content, "experts")]
    arrays = _map(path)
    names = [*map(str, experts), N_TOKENS]
    missing = [name for name in names if name not in arrays]
    if missing or len(arrays) != len(names):
        raise InputError(
            f"damaged: holds {len(arrays)} tensors, expected {len(names)}, one for each expert and n_tokens"
            + (f"; {missing[0]} is missing" if missing else "")
            + ": dump it again"
        )
    texts = content.get("texts")
    return Features(
        experts,
        [arrays[str(expert)] for expert in experts],
        arrays[N_TOKENS],
        _prompts(content),
        None if texts is None else _list(content, "texts"),
        roster.from_json(content.get("roster")),
        str(content.get("routing")),
        str(content.get("pool")),
        str(content.get("phase")),
        _object(content, "meta"),
    )


def _map(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Every tensor of a file that safetensors has checked, mapped and read-only."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        data = np.memmap(file, np.uint8, "r")
    header.pop("__metadata__", None)
    arrays = {}
    for name, tensor in header.items():
        dtype = DTYPES.get(tensor["dtype"])
        if dtype is None or (name == N_TOKENS) != (tensor["dtype"] == "U32"):
            expected = "U32" if name == N_TOKENS else "F32"
            raise InputError(
                f"damaged: tensor {name} is {tensor['dtype']}, expected {expected}: dump it again"
            )
        start, end = (8 + length + offset for offset in tensor["data_offsets"])
        arrays[name] = data[start:end].view(dtype).reshape(tensor["shape"])
    return arrays


def _prompts(content: Mapping[str, Any]) -> PromptTable:
    columns = _object(content, "prompts")
    sets = _list(columns, "sets")
    if not sets:
        raise InputError("damaged: holds no prompts: dump it again")
    names = ("ids", "pairs", "categories", "texts_hash")
    return PromptTable.build(sets, *(_list(columns, name) for name in names))


def _list(content: Mapping[str, Any], name: str) -> list[Any]:
    return list(_checked(content, name, list))


def _object(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    return dict(_checked(content, name, dict))


def _checked(content: Mapping[str, Any], name: str, kind: type) -> Any:
    value = content.get(name)
    if not isinstance(value, kind):
        raise InputError(
            f"damaged: {name} is {type(value).__name__}, expected {kind.__name__}: dump it again"
        )
    return value


def _dumps(value: Any) -> str:
    return json.dumps(value, allow_nan=False, separators=(",", ":"))
