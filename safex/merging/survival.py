"""How much of a delta is left when its sum with the weights was quantized again."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safex.merging.deltas import Weights


@dataclass(frozen=True)
class Survival:
    """Of one slice: squared norms of the intended and of the effective delta, and their inner product."""

    tensor: str
    layer: int
    expert: int
    intended: float
    effective: float
    inner: float

    @classmethod
    def of(cls, part: Any, intended: Weights, effective: Weights) -> Survival:
        """``effective``: new weights less old ones, both as a reader decodes them."""
        a, b = intended.astype(np.float64).ravel(), effective.astype(np.float64).ravel()
        return cls(part.tensor, part.layer, part.expert, float(a @ a), float(b @ b), float(a @ b))

    @property
    def cosine(self) -> float:
        """Of the angle between both; 0 where nothing is left."""
        both = math.sqrt(self.intended * self.effective)
        return self.inner / both if both else 0.0

    @property
    def norm_ratio(self) -> float:
        """Norm of the effective delta over that of the intended one."""
        return math.sqrt(self.effective / self.intended)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        place = {"tensor": self.tensor, "layer": self.layer, "expert": self.expert}
        return {
            **place,
            "cosine": self.cosine,
            "norm_ratio": self.norm_ratio,
            "norm": math.sqrt(self.intended),
        }


def overall(slices: Sequence[Survival]) -> Survival | None:
    """All slices as one long delta; None for none.

    >>> halves = [Survival("a", 0, 0, 1.0, 1.0, 1.0), Survival("b", 0, 0, 1.0, 1.0, 0.0)]
    >>> overall(halves).cosine
    0.5
    """
    if not slices:
        return None
    sums = (sum(getattr(one, name) for one in slices) for name in ("intended", "effective", "inner"))
    return Survival("all", -1, -1, *sums)
