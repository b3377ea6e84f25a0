"""A safetensors file of any writer: tensors mapped, and decoded to float32 as far as they are asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from safex.errors import InputError
from safex.merging.deltas import Array, Weights

DTYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}


class SafetensorsWeights:
    """The tensors of a file that safetensors itself has checked. Raises InputError: truncated, damaged, other types."""

    def __init__(self, path: Path) -> None:
        """Read the header and map the file."""
        self.path = path
        _check(path)
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length))
            data = np.memmap(file, np.uint8, "r") if length else np.empty(0, np.uint8)
        header.pop("__metadata__", None)
        self._entries: dict[str, Any] = header
        self._data = data[8 + length :]

    @property
    def names(self) -> list[str]:
        """All tensors."""
        return list(self._entries)

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor."""
        return tuple(self._entries[name]["shape"])

    def read(self, name: str, index: Any = ...) -> Weights:
        """A tensor, or the part of it that ``index`` selects, as float32. Raises InputError for another type."""
        entry = self._entries[name]
        dtype = DTYPES.get(entry["dtype"])
        if dtype is None:
            raise InputError(
                f"{self.path}: {name} is {entry['dtype']}, expected one of {', '.join(DTYPES)}: save it as one of those"
            )
        start, end = entry["data_offsets"]
        part: Array = self._data[start:end].view(dtype).reshape(entry["shape"])[index]
        if entry["dtype"] == "BF16":
            return (part.astype(np.uint32) << 16).view(np.float32)
        return np.ascontiguousarray(part, np.float32)


def _check(path: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "numpy"):
            pass
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    except SafetensorError as error:
        raise InputError(
            f"{path}: is no safetensors file, or is truncated or damaged ({error}): copy or save it again"
        ) from None
