"""The difference of two GGUF models, BASE and TUNED, expert by expert; never more than a slice of each in memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from safex import model_file
from safex.errors import InputError
from safex.experts import Expert
from safex.merging.deltas import Array, BLayout, Weights, check_finite, check_others
from safex.merging.expert_tensors import NAME, ExpertTensors, tensor_name
from safex.merging.gguf_weights import GgufWeights

CHUNK = 1 << 24  # bytes compared at a time


@dataclass(frozen=True)
class PairDeltas:
    """delta = dequantize(tuned) - dequantize(base); see Deltas. Kinds are those that the two files have."""

    base: GgufWeights
    tuned: GgufWeights
    tensors: ExpertTensors
    others: list[str]

    @property
    def files(self) -> list[Path]:
        """All files of both."""
        return [*self.base.files, *self.tuned.files]

    @property
    def layouts(self) -> dict[str, BLayout]:
        """None: these are whole matrices."""
        return {}

    def experts(self) -> set[Expert]:
        """The experts whose bytes differ."""
        return {
            Expert(layer, expert)
            for (layer, kind), shape in self.tensors.shapes.items()
            for expert in range(shape.experts)
            if self._differs(tensor_name(layer, kind), expert)
        }

    def delta(self, layer: int, expert: int, kind: str) -> Weights | None:
        """The change of one expert's matrix [rows, columns], or None."""
        name = tensor_name(layer, kind)
        if (layer, kind) not in self.tensors.shapes or not self._differs(name, expert):
            return None
        with np.errstate(over="ignore", invalid="ignore"):
            delta = self.tuned.slice(name, expert) - self.base.slice(name, expert)
        return check_finite(delta, self.tuned.path, f"{name}, expert {expert}")

    def _differs(self, name: str, expert: int) -> bool:
        return not np.array_equal(self.base.tensors[name].data[expert], self.tuned.tensors[name].data[expert])


def open_pair(
    base: str | os.PathLike[str],
    tuned: str | os.PathLike[str],
    model: ExpertTensors,
    allow_others: bool = False,
) -> PairDeltas:
    """What training changed in experts, from the model before and after, both of one quant type.

    ``allow_others``: leave out differences in other tensors, instead of refusing them. Raises InputError.
    """
    weights = [GgufWeights(model_file.shards(model_file.resolve(path))) for path in (base, tuned)]
    first, second = weights
    tensors = ExpertTensors.of(first)
    _check_same(first, second)
    _check_fits(tensors, model)
    return PairDeltas(
        first, second, tensors, check_others(second.path, _others(first, second, allow_others), allow_others)
    )


def _check_same(base: GgufWeights, tuned: GgufWeights) -> None:
    """Refuse files whose tensors are not the same ones. Raises InputError."""
    architectures = [weights.keys.get("general.architecture") for weights in (base, tuned)]
    if architectures[0] != architectures[1]:
        raise InputError(
            f"{tuned.path}: architecture {architectures[1]}, but {base.path} is {architectures[0]}: they are no base "
            "and tuned model"
        )
    for name in sorted(base.tensors.keys() ^ tuned.tensors.keys()):
        lacking = tuned if name in base.tensors else base
        raise InputError(
            f"{lacking.path}: lacks {name}, which the other file has: they are no base and tuned model"
        )
    for name, before in base.tensors.items():
        after = tuned.tensors[name]
        if before.shape != after.shape:
            raise InputError(
                f"{tuned.path}: {name} is {list(after.shape)}, but in {base.path} {list(before.shape)}: they are no "
                "base and tuned model"
            )
        if NAME.fullmatch(name) and before.kind != after.kind:
            raise InputError(
                f"{tuned.path}: {name} is {after.kind.name}, but in {base.path} {before.kind.name}: their difference "
                "would hold quantization error: convert both to one type, best BF16 or F32"
            )


def _check_fits(tensors: ExpertTensors, model: ExpertTensors) -> None:
    if tensors.architecture != model.architecture:
        raise InputError(
            f"{tensors.path}: architecture {tensors.architecture}, but {model.path} is {model.architecture}: a pair of "
            "another model"
        )
    for (layer, kind), shape in model.shapes.items():
        if tensors.shapes.get((layer, kind)) != shape:
            found = tensors.shapes.get((layer, kind))
            raise InputError(
                f"{tensors.path}: {tensor_name(layer, kind)} is {list(found) if found else 'missing'}, but in "
                f"{model.path} {list(shape)}: a pair of another model"
            )


def _others(base: GgufWeights, tuned: GgufWeights, all_of_them: bool) -> Iterator[str]:
    """The tensors besides experts that differ; only the first of them unless ``all_of_them``."""
    for name in base.tensors:
        if not NAME.fullmatch(name) and not _equal(base.tensors[name].data, tuned.tensors[name].data):
            yield name
            if not all_of_them:
                return


def _equal(first: Array, second: Array) -> bool:
    one, two = first.reshape(-1), second.reshape(-1)
    return len(one) == len(two) and all(
        np.array_equal(one[start : start + CHUNK], two[start : start + CHUNK])
        for start in range(0, len(one), CHUNK)
    )
