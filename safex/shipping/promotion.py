"""Tensors written anew in a larger type, so that a change survives, and where everything of their file then lies."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from safex.errors import InputError

from .model_files import ModelFiles, Slice, native


def type_of(name: str) -> Any:
    """The tensor type of a name such as ``q8_0``. Raises InputError for one that nothing can be written in."""
    types = [kind for kind in native.tensor_types() if kind.encodes and not kind.needs_imatrix]
    found = next((kind for kind in types if kind.name.lower() == name.lower()), None)
    if found is None:
        names = ", ".join(sorted(kind.name.lower() for kind in types))
        raise InputError(f"--promote is {name!r}, expected one of {names}")
    return found


def is_larger(kind: Any, than: int) -> bool:
    """Whether a type takes more bytes a value than the one of a number."""
    other = native.tensor_type(than)
    return bool(kind.block_bytes * other.block_size > other.block_bytes * kind.block_size)


@dataclass
class Promotion:
    """The new type of each tensor that gets one. ``error``: of slices that were only recoded, the worst so far.

    It is the norm of the difference over the norm of the values.
    """

    types: Mapping[str, int]
    error: float = 0.0

    def of(self, part: Slice) -> int:
        """The type that a slice is written in."""
        return self.types.get(part.tensor, part.type)

    def names(self) -> dict[str, str]:
        """As the provenance says it.

        >>> Promotion({"blk.0.ffn_up_exps.weight": 8}).names()
        {'blk.0.ffn_up_exps.weight': 'q8_0'}
        """
        return {tensor: native.tensor_type(kind).name for tensor, kind in self.types.items()}

    def recoded(self, part: Slice, old: bytes) -> bytes:
        """A slice without a change, in the new type. Raises InputError where that can't hold it."""
        values = native.decode(part.type, old)
        try:
            new: bytes = native.encode(self.of(part), values.reshape(-1, part.columns), None)
        except InputError as error:
            raise InputError(f"{part.tensor}, expert {part.expert}: can't be promoted: {error}") from None
        exact = values.astype(np.float64)
        norm = float(np.linalg.norm(exact))
        if norm:
            away = float(np.linalg.norm(native.decode(self.of(part), new) - exact))
            self.error = max(self.error, away / norm)
        return new

    def rest(self, files: ModelFiles, written: set[tuple[str, int]]) -> Iterator[Slice]:
        """The slices of these tensors besides those that an edit writes by its own rule."""
        for tensor in files.native.expert_tensors:
            if tensor.name in self.types:
                parts = (files.slice(tensor, expert) for expert in range(tensor.n_experts))
                yield from (part for part in parts if part.key not in written)


class Move(NamedTuple):
    """Bytes that are copied as they are, by their places behind the old and the new header."""

    source: int
    target: int
    size: int


@dataclass(frozen=True)
class Layout:
    """Where a file's tensors lie when some take another type. ``places`` by name, counted from the header's end on."""

    moves: list[Move]
    places: dict[str, int]
    size: int
    types: Mapping[str, int]

    @classmethod
    def of(cls, file: Any, types: Mapping[str, int]) -> Layout:
        """In the file's own order; gaps stay, but for those behind a tensor of another type."""
        head, moves, places = file.header, list[Move](), dict[str, int]()
        tensors = sorted(head.tensors, key=lambda tensor: tensor.offset)
        begins = [tensor.offset - head.data for tensor in tensors]
        ends = [*begins, max(file.size - head.data, 0)]
        _extend(moves, Move(0, 0, ends[0]))
        at = ends.pop(0)
        for tensor, begin, end in zip(tensors, begins, ends, strict=True):
            places[tensor.name] = at
            if tensor.name in types:
                at += -(-_size(tensor, types[tensor.name]) // head.alignment) * head.alignment
            else:
                _extend(moves, Move(begin, at, end - begin))
                at += end - begin
        return cls(moves, places, at, {name: types[name] for name in places if name in types})

    def infos(self, file: Any) -> bytes:
        """The tensors' descriptions, as long as the old ones."""
        head = file.header
        if not self.types:
            raw: bytes = file.read(head.entries_end, head.end - head.entries_end)
            return raw
        return b"".join(self._info(tensor) for tensor in head.tensors)

    def _info(self, tensor: Any) -> bytes:
        name, n = tensor.name.encode(), len(tensor.shape)
        kind = self.types.get(tensor.name, tensor.type)
        code = f"<Q{len(name)}sI{n}QIQ"
        return struct.pack(code, len(name), name, n, *tensor.shape, kind, self.places[tensor.name])


def _size(tensor: Any, kind: int) -> int:
    block = native.tensor_type(kind)
    n: int = math.prod(tensor.shape) // block.block_size * block.block_bytes
    return n


def _extend(moves: list[Move], move: Move) -> None:
    """Add a move, to the last one where it goes on from there."""
    if moves and (moves[-1].source + moves[-1].size, moves[-1].target + moves[-1].size) == move[:2]:
        moves[-1] = moves[-1]._replace(size=moves[-1].size + move.size)
    elif move.size:
        moves.append(move)
