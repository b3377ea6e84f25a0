"""Importance matrices of llama.cpp (`llama-imatrix`): mean squares of what each column of a tensor was given."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from safex import model_file
from safex.errors import InputError
from safex.merging.deltas import Weights
from safex.merging.gguf_weights import GgufWeights

SUMS, COUNTS = ".in_sum2", ".counts"


@dataclass(frozen=True)
class Imatrix:
    """A GGUF importance matrix; ``of`` gives the weights of a slice's columns."""

    path: Path
    weights: GgufWeights

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Imatrix:
        """Read the headers. Raises InputError for a file of another kind."""
        place = Path(path)
        if not place.is_file():
            raise InputError(f"{place}: no such file; expected an importance matrix made by llama-imatrix")
        with place.open("rb") as file:
            if file.read(4) != b"GGUF":
                raise InputError(
                    f"{place}: is no GGUF; expected an importance matrix made by a current llama-imatrix"
                )
        weights = GgufWeights(model_file.shards(place))
        if not any(name.endswith(SUMS) for name in weights.tensors):
            raise InputError(f"{place}: holds no importance matrix (no tensor *{SUMS}): is it a model?")
        return cls(place, weights)

    def of(self, tensor: str, expert: int, columns: int) -> Weights | None:
        """Float32 [columns]; None where the matrix has nothing of the expert (it was never selected).

        Raises InputError where the matrix is of another model.
        """
        stored = self.weights.tensors.get(tensor + SUMS)
        counts = self.weights.tensors.get(tensor + COUNTS)
        if stored is None or counts is None:
            raise InputError(f"{self.path}: has nothing of {tensor}: is it of another model?")
        sums = (
            self._floats(tensor + SUMS).reshape(-1, columns) if not np.prod(stored.shape) % columns else None
        )
        count = self._floats(tensor + COUNTS).ravel()
        if sums is None or len(sums) != len(count) or expert >= len(sums):
            raise InputError(
                f"{self.path}: {tensor} has {stored.shape} sums and {counts.shape} counts, expected {columns} columns "
                "for each expert: is it of another model?"
            )
        if not count[expert]:
            return None
        return np.ascontiguousarray(sums[expert] / count[expert], np.float32)

    def _floats(self, name: str) -> Weights:
        return np.frombuffer(np.ascontiguousarray(self.weights.tensors[name].data).tobytes(), "<f4")
