"""Importance matrices of llama.cpp (`llama-imatrix`): mean squares of what each column of a tensor was given.

``blk.L.ffn_up_exps.weight.in_sum2`` is [experts, columns] in F32, ``.counts`` [experts, 1] the tokens that each expert
was given; files converted from the format before August 2025 have one count for all experts.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

from safex import model_file
from safex.errors import InputError
from safex.merging.deltas import Weights
from safex.merging.expert_tensors import NAME, ExpertTensors, tensor_name
from safex.merging.gguf_weights import GgufWeights

SUMS, COUNTS = ".in_sum2", ".counts"
# Tensors that are given the same input, so that the sums of one are those of the others: by kind, in order.
SAME_INPUT = {"gate_up": ("gate", "up"), "gate": ("gate_up", "up"), "up": ("gate_up", "gate"), "down": ()}


@dataclass(frozen=True)
class Imatrix:
    """A GGUF importance matrix for ``model``; ``of`` gives the weights of a slice's columns."""

    path: Path
    weights: GgufWeights
    model: ExpertTensors

    @classmethod
    def load(cls, path: str | os.PathLike[str], model: ExpertTensors) -> Imatrix:
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
        return cls(place, weights, model)

    def of(self, tensor: str, expert: int) -> Weights | None:
        """Float32 [columns]; None where the matrix has nothing of the expert (it was never selected).

        Gate and up count for each other and for both in one tensor, since all have the same input. Raises InputError
        where the matrix is of another model, or damaged.
        """
        sums, counts = self._stored(self._entry(tensor), tensor)
        if not counts[expert] or not sums[expert].any():
            return None
        weights = np.ascontiguousarray(sums[expert] / counts[expert], np.float32)
        if not np.isfinite(weights).all() or (weights < 0).any():
            raise InputError(
                f"{self.path}: the sums of {tensor}, expert {expert}, hold infinity, NaN or numbers below 0: the file "
                "is damaged, make it again"
            )
        return weights

    def _entry(self, tensor: str) -> str:
        """The name of the entry that tells of a tensor. Raises InputError where there is none."""
        match = NAME.fullmatch(tensor)
        assert match is not None
        names = [tensor, *(tensor_name(int(match[1]), kind) for kind in SAME_INPUT[match[2]])]
        for name in names:
            if name + SUMS in self.weights.tensors and name + COUNTS in self.weights.tensors:
                return name
        raise InputError(f"{self.path}: has nothing of {' or '.join(names)}: is it of another model?")

    def _stored(self, entry: str, tensor: str) -> tuple[Weights, Weights]:
        """Sums [experts, columns] and counts [experts] of an entry. Raises InputError where they don't fit."""
        match = NAME.fullmatch(tensor)
        assert match is not None
        shape = self.model.shapes[int(match[1]), match[2]]
        sums, counts = self._floats(entry + SUMS), self._floats(entry + COUNTS).ravel()
        experts, columns = shape.experts, shape.columns
        whole = sums.size == experts * columns and sums.shape[-1] in (columns, sums.size)
        if not whole or counts.size not in (1, experts):
            raise InputError(
                f"{self.path}: {entry} has {list(sums.shape)} sums and {counts.size} counts, expected "
                f"[{experts}, {columns}] and {experts} for {tensor}: is it of another model?"
            )
        return sums.reshape(experts, columns), np.broadcast_to(counts, (experts,))

    def _floats(self, name: str) -> Weights:
        stored = self.weights.tensors[name]
        if stored.kind != gguf.GGMLQuantizationType.F32:
            raise InputError(
                f"{self.path}: {name} is {stored.kind.name}, expected F32: make the matrix again"
            )
        return np.frombuffer(np.ascontiguousarray(stored.data).tobytes(), "<f4").reshape(stored.shape)
