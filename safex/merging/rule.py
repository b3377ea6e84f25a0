"""What a merge makes of a slice: decoded, the deltas added in float32, encoded again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from safex.errors import InputError
from safex.experts import Expert
from safex.merging.deltas import Deltas, Weights
from safex.merging.expert_tensors import NAME
from safex.merging.imatrix import Imatrix
from safex.merging.survival import Survival
from safex.shipping.model_files import Slice, native
from safex.shipping.promotion import is_larger

KEPT = 64 << 20


@dataclass(frozen=True)
class Addend:
    """Deltas of an adapter, and what they are multiplied by."""

    deltas: Deltas
    scale: float


@dataclass
class Merged:
    """The rule that makes a slice; ``survivals`` of those that have a delta, by tensor and expert.

    A slice is asked for more than once: the first ``KEPT`` bytes that were made are kept.
    """

    addends: Sequence[Addend]
    imatrix: Imatrix | None = None
    least: Any = None  # a tensor type: what would be written in a smaller one is written in this
    survivals: dict[tuple[str, int], Survival] = field(default_factory=dict)
    kept: dict[tuple[str, int], bytes] = field(default_factory=dict)
    without: set[Expert] = field(default_factory=set)  # quantized though the imatrix has nothing of them

    def type_of(self, tensor: Any) -> int:
        """The type that a tensor's slices are written in."""
        promoted = self.least is not None and is_larger(self.least, tensor.type)
        return int(self.least.id if promoted else tensor.type)

    def unweighed(self) -> list[Expert]:
        """The experts that were quantized without importance though there is an imatrix."""
        return sorted(self.without)

    def __call__(self, part: Slice, old: bytes) -> bytes:
        """The new bytes. Raises InputError where the type can't be encoded."""
        if part.key not in self.kept:
            new = self._made(part, old)
            if sum(map(len, self.kept.values())) + len(new) > KEPT:
                return new
            self.kept[part.key] = new
        return self.kept[part.key]

    def _made(self, part: Slice, old: bytes) -> bytes:
        delta = self._delta(part)
        if delta is None:
            return old
        weights = native.decode(part.type, old).reshape(delta.shape)
        kind = self.type_of(part)
        importance = self._importance(part, kind)
        try:
            new: bytes = native.encode(kind, np.ascontiguousarray(weights + delta), importance)
        except InputError as error:
            raise InputError(f"{part.tensor}, expert {part.expert}: can't be encoded: {error}") from None
        effective = native.decode(kind, new).reshape(delta.shape) - weights
        self.survivals[part.key] = Survival.of(part, delta, effective)
        return new

    def _importance(self, part: Slice, kind: int) -> Weights | None:
        """The weights of a slice's columns; None where there is no imatrix, or nothing of the expert in it."""
        if self.imatrix is None or native.tensor_type(kind).block_size == 1:  # a float: nothing is weighed
            return None
        found = self.imatrix.of(part.tensor, part.expert)
        if found is None:
            self.without.add(Expert(part.layer, part.expert))
        return found

    def _delta(self, part: Slice) -> Weights | None:
        """The sum over adapters; None where it is zero or there is none."""
        match = NAME.fullmatch(part.tensor)
        assert match is not None
        total: Weights | None = None
        for addend in self.addends:
            delta = addend.deltas.delta(part.layer, part.expert, match[2])
            if delta is not None and addend.scale:
                scaled = delta * np.float32(addend.scale)
                total = scaled if total is None else total + scaled
        return None if total is None or not total.any() else total
