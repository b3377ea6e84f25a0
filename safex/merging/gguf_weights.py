"""A GGUF model or adapter: metadata, and slices of tensors mapped from the file and decoded by the `gguf` package."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import gguf
import numpy as np

from safex.errors import InputError, UnsupportedError
from safex.gguf_header import Header, Tensor
from safex.merging.deltas import Array, Weights


class Stored(NamedTuple):
    """A tensor: type, shape (slowest first), and its bytes, mapped: [all but the last dimension, bytes of a row]."""

    kind: gguf.GGMLQuantizationType
    shape: tuple[int, ...]
    data: Array


class GgufWeights:
    """The tensors of a GGUF file, or of all files of a split model; only what is asked for is read.

    Raises InputError for a file that is no GGUF, is truncated or damaged, UnsupportedError for types of ggml that the
    gguf package doesn't know.
    """

    def __init__(self, files: Iterable[Path]) -> None:
        """Read the headers and map the files."""
        self.files = list(files)
        self.keys: dict[str, Any] = {}
        self.tensors: dict[str, Stored] = {}
        for path in reversed(self.files):  # the first file's metadata count
            self._add(path)

    @property
    def path(self) -> Path:
        """The first file, by which the model is called."""
        return self.files[0]

    def slice(self, name: str, expert: int) -> Weights:
        """One expert's matrix as float32 [rows, columns]. Raises UnsupportedError for a type `gguf` can't decode."""
        kind, _, data = self.tensors[name]
        try:
            decoded = gguf.quants.dequantize(np.asarray(data[expert]), kind)
        except NotImplementedError:
            raise UnsupportedError(
                f"{self.path}: {name} is {kind.name}, which the gguf package can't decode: use another type"
            ) from None
        return np.ascontiguousarray(decoded, np.float32)

    def _add(self, path: Path) -> None:
        try:
            with path.open("rb") as file:
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            header = Header(mapped, skip_lists=True)
            self.keys |= header.keys
            self.tensors |= {name: _stored(name, tensor, header) for name, tensor in header.tensors.items()}
        except (InputError, UnsupportedError) as error:
            raise type(error)(f"{path}: {error}") from None
        except OSError as error:
            raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
        except ValueError:
            raise InputError(f"{path}: is empty") from None


def _stored(name: str, tensor: Tensor, header: Header) -> Stored:
    try:
        kind = gguf.GGMLQuantizationType(tensor.kind)
    except ValueError:
        raise UnsupportedError(
            f"{name} has type {tensor.kind}, which the gguf package doesn't know: update it"
        ) from None
    block, size = gguf.GGML_QUANT_SIZES[kind]
    *outer, columns = tensor.shape or (1,)
    if columns % block:
        raise InputError(f"damaged: {name} has rows of {columns} values, expected a multiple of {block}")
    shape = (*outer, columns // block * size)
    begin, end = header.start + tensor.offset, header.start + tensor.offset + math.prod(shape)
    if end > len(header.data):
        raise InputError(f"truncated or damaged: {name} ends at byte {end}, the file at {len(header.data)}")
    data = np.frombuffer(header.data, np.uint8, end - begin, begin) if end > begin else np.empty(0, np.uint8)
    return Stored(kind, tensor.shape, data.reshape(shape))
