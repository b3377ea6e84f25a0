"""Safetensors files of `dump`: written row by row in any order, checked and mapped when read.

Metadata: the file's mark = schema version, and ``safex`` = JSON. Any safetensors reader gives the arrays.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from safex import disk
from safex.errors import InputError
from safex.profile_arrays import PromptTable

SCHEMA_VERSION = 1
CONTENT = "safex"  # key of the metadata
MAX_HEADER = 100_000_000  # bytes; readers of safetensors refuse more
DTYPES = {"F32": np.dtype("<f4"), "U32": np.dtype("<u4"), "I32": np.dtype("<i4")}


class Kind(NamedTuple):
    """A kind of file: the key of its metadata that marks it, and how people call it."""

    mark: str
    name: str


class Tensor(NamedTuple):
    """Type (a key of DTYPES) and shape."""

    dtype: str
    shape: Sequence[int]


class Layout:
    """Where everything of a file lies; rows can be written in any order once the header is."""

    def __init__(self, kind: Kind, tensors: Mapping[str, Tensor], content: Mapping[str, Any]) -> None:
        """Place the tensors. Raises InputError where labels and texts are more than the format holds."""
        self.tensors = dict(tensors)
        header: dict[str, Any] = {"__metadata__": {kind.mark: str(SCHEMA_VERSION), CONTENT: _dumps(content)}}
        end = 0
        for name, (dtype, shape) in self.tensors.items():
            start, end = end, end + DTYPES[dtype].itemsize * int(np.prod(shape, dtype=np.int64))
            header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        text = _dumps(header).encode()
        text += b" " * (-len(text) % 8)
        if len(text) > MAX_HEADER:
            raise InputError(
                f"labels and texts of all prompts take {len(text) >> 20} MiB, a file of {kind.name} holds "
                f"{MAX_HEADER >> 20}: dump fewer prompts"
            )
        self.header = len(text).to_bytes(8, "little") + text
        self.size = len(self.header) + end
        self.offsets = {name: len(self.header) + header[name]["data_offsets"][0] for name in self.tensors}

    def write_header(self, fd: int) -> None:
        """Write the header and give the file its full length."""
        os.ftruncate(fd, self.size)
        disk.write_at(fd, 0, self.header)

    def write_rows(self, fd: int, name: str, start: int, rows: npt.ArrayLike) -> None:
        """Write rows of a tensor (along its first axis) from row ``start`` on."""
        dtype, shape = self.tensors[name]
        width = DTYPES[dtype].itemsize * int(np.prod(shape[1:], dtype=np.int64))
        disk.write_at(fd, self.offsets[name] + start * width, np.ascontiguousarray(rows, DTYPES[dtype]))


@contextmanager
def named_errors(path: Path) -> Iterator[None]:
    """Name the file in what is found wrong with it."""
    try:
        yield
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from error


def read_content(path: Path, kind: Kind) -> dict[str, Any]:
    """The metadata of a file whose header and length safetensors has checked. Raises InputError."""
    from safetensors import SafetensorError, safe_open

    if not path.stat().st_size:
        raise InputError(f"is empty; expected a file of {kind.name} made by `dump`")
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata() or {}
    except SafetensorError as error:
        raise InputError(
            f"is no safetensors file, or is truncated or damaged ({error}); expected a file of {kind.name}: dump it "
            "again"
        ) from None
    if kind.mark not in metadata:
        raise InputError(f"is a safetensors file, but not of {kind.name}: expected one made by `dump`")
    if metadata[kind.mark] != str(SCHEMA_VERSION):
        raise InputError(
            f"has schema version {metadata[kind.mark]}, expected {SCHEMA_VERSION}: use the version that wrote it"
        )
    try:
        content = json.loads(metadata.get(CONTENT, ""))
    except (ValueError, RecursionError) as error:
        raise InputError(f"damaged: its metadata {CONTENT!r} is no JSON ({error}): dump it again") from None
    if not isinstance(content, dict):
        raise InputError(f"damaged: its metadata {CONTENT!r} is no object: dump it again")
    return content


def map_tensors(path: Path, expected: Mapping[str, str]) -> dict[str, npt.NDArray[Any]]:
    """The tensors of a file that safetensors has checked, mapped and read-only.

    ``expected``: names and types, all that the file must hold. Raises InputError.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        data = np.memmap(file, np.uint8, "r")
    header.pop("__metadata__", None)
    missing = next((name for name in expected if name not in header), None)
    if missing is not None or len(header) != len(expected):
        raise InputError(
            f"damaged: holds {len(header)} tensors, expected {len(expected)}"
            + (f"; {missing} is missing" if missing is not None else "")
            + ": dump it again"
        )
    arrays = {}
    for name, dtype in expected.items():
        tensor = header[name]
        if tensor["dtype"] != dtype:
            raise InputError(f"damaged: tensor {name} is {tensor['dtype']}, expected {dtype}: dump it again")
        start, end = (8 + length + offset for offset in tensor["data_offsets"])
        arrays[name] = data[start:end].view(DTYPES[dtype]).reshape(tensor["shape"])
    return arrays


def prompts_of(content: Mapping[str, Any]) -> PromptTable:
    """The table of prompts in the metadata. Raises InputError."""
    columns = object_of(content, "prompts")
    sets = list_of(columns, "sets")
    if not sets:
        raise InputError("damaged: holds no prompts: dump it again")
    names = ("ids", "pairs", "categories", "texts_hash")
    return PromptTable.build(sets, *(list_of(columns, name) for name in names))


def list_of(content: Mapping[str, Any], name: str) -> list[Any]:
    """A list in the metadata. Raises InputError."""
    return list(_checked(content, name, list))


def object_of(content: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An object in the metadata. Raises InputError."""
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
