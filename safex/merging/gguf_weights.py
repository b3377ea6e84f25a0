"""A GGUF model or adapter through the `gguf` package: metadata, and slices of tensors mapped from the file."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from safex.errors import InputError, UnsupportedError
from safex.merging.deltas import Array, Weights


class GgufWeights:
    """The tensors of a GGUF file, or of all files of a split model; only what is asked for is read.

    Raises InputError for a file that is no GGUF, is truncated or damaged.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        """Read the headers."""
        self.files = list(files)
        readers = [_open(path) for path in self.files]
        self._fields = readers[0].fields
        self.tensors: dict[str, Any] = {t.name: t for reader in readers for t in reader.tensors}

    @property
    def path(self) -> Path:
        """The first file, by which the model is called."""
        return self.files[0]

    def get(self, key: str) -> Any:
        """The value of a metadata key, None where it is missing."""
        field = self._fields.get(key)
        return None if field is None else field.contents()

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape as NumPy has it: slowest first, so [experts, rows, columns]."""
        return tuple(int(n) for n in reversed(self.tensors[name].shape))

    def kind(self, name: str) -> str:
        """The name of the type that a tensor is stored in."""
        return str(self.tensors[name].tensor_type.name)

    def stored(self, name: str, expert: int) -> Array:
        """The bytes of one expert's matrix, mapped."""
        data: Array = np.atleast_1d(self.tensors[name].data[expert]).view(np.uint8)
        return data

    def slice(self, name: str, expert: int) -> Weights:
        """One expert's matrix as float32 [rows, columns]. Raises UnsupportedError for a type `gguf` can't decode."""
        tensor = self.tensors[name]
        try:
            decoded = gguf.quants.dequantize(np.asarray(tensor.data[expert]), tensor.tensor_type)
        except NotImplementedError:
            raise UnsupportedError(
                f"{self.path}: {name} is {self.kind(name)}, which the gguf package can't decode: use another type"
            ) from None
        return np.ascontiguousarray(decoded, np.float32)


def _open(path: Path) -> gguf.GGUFReader:
    try:
        return gguf.GGUFReader(path)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        raise InputError(
            f"{path}: is no GGUF file, or is truncated or damaged ({error}): copy or convert it again"
        ) from None
