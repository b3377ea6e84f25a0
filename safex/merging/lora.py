"""Low-rank deltas: pairs of matrices from any format, multiplied for one expert at a time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from safex.errors import InputError
from safex.experts import Expert
from safex.merging.deltas import BLayout, Weights, check_finite
from safex.merging.expert_tensors import ExpertTensors, Place, tensor_name


class Factors(NamedTuple):
    """delta = scaling * b @ a; ``b`` is [rows, rank], ``a`` [rank, columns], both float32."""

    b: Weights
    a: Weights
    scaling: float


class Source(Protocol):
    """An adapter's pairs of matrices for one kind of matrix in one layer."""

    @property
    def experts(self) -> Iterable[int]:
        """The experts it has matrices of."""

    def read(self, expert: int) -> Factors:
        """Those of one expert."""


@dataclass(frozen=True)
class LoraDeltas:
    """Deltas of an adapter whose ``sources`` were checked against ``model``; see Deltas."""

    files: list[Path]
    model: ExpertTensors
    sources: Mapping[Place, Source]
    others: list[str]
    layouts: Mapping[str, BLayout] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Refuse a layer whose gates are there twice, in a tensor of their own and fused."""
        for layer, kind in self.sources:
            if kind == "gate_up" and {(layer, "gate"), (layer, "up")} & set(self.sources):
                raise InputError(
                    f"{self.files[0]}: layer {layer} has matrices for gate_up and for gate or up: expected one of both"
                )

    def experts(self) -> set[Expert]:
        """The experts that have a delta other than zero."""
        return {
            Expert(layer, expert)
            for (layer, kind), source in self.sources.items()
            for expert in source.experts
            if self._factors(layer, expert, kind) is not None
        }

    def delta(self, layer: int, expert: int, kind: str) -> Weights | None:
        """The change of one expert's matrix [rows, columns], or None."""
        if (layer, kind) in self.sources:
            return self._product(layer, expert, kind)
        if kind == "gate_up":
            return self._joined(layer, expert)
        if kind in ("gate", "up"):
            whole = self._product(layer, expert, "gate_up")
            return None if whole is None else np.split(whole, 2)[kind == "up"]
        return None

    def _factors(self, layer: int, expert: int, kind: str) -> Factors | None:
        source = self.sources.get((layer, kind))
        if source is None or expert not in source.experts:
            return None
        factors = source.read(expert)
        return factors if factors.b.any() and factors.a.any() else None

    def _product(self, layer: int, expert: int, kind: str) -> Weights | None:
        factors = self._factors(layer, expert, kind)
        if factors is None:
            return None
        b, a, scaling = factors
        with np.errstate(over="ignore", invalid="ignore"):
            delta = (b @ a) * np.float32(scaling)
        return check_finite(delta, self.files[0], f"{tensor_name(layer, kind)}, expert {expert}")

    def _joined(self, layer: int, expert: int) -> Weights | None:
        parts = [self._product(layer, expert, kind) for kind in ("gate", "up")]
        known = next((part for part in parts if part is not None), None)
        if known is None:
            return None
        return np.concatenate([np.zeros_like(known) if part is None else part for part in parts])
