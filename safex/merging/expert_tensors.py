"""The expert tensors that deltas must fit: which layers of a model have which, and their shapes."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from safex import model_file
from safex.errors import InputError, UnsupportedError
from safex.merging.gguf_weights import GgufWeights

KINDS = ("gate", "up", "down", "gate_up")
NAME = re.compile(r"blk\.(\d+)\.ffn_(gate|up|down|gate_up)_exps\.weight")

Place = tuple[int, str]  # layer, kind


class Shape(NamedTuple):
    """Of a tensor with one matrix [rows, columns] = [out, in] for each expert."""

    experts: int
    rows: int
    columns: int


def tensor_name(layer: int, kind: str) -> str:
    """What GGUF calls it.

    >>> tensor_name(3, "down")
    'blk.3.ffn_down_exps.weight'
    """
    return f"blk.{layer}.ffn_{kind}_exps.weight"


@dataclass(frozen=True)
class ExpertTensors:
    """A model's file, architecture, and the shape of each expert tensor by layer (GGUF block index) and kind."""

    path: Path
    architecture: str
    shapes: Mapping[Place, Shape]

    @classmethod
    def read(cls, model: str | os.PathLike[str]) -> ExpertTensors:
        """Read the headers of a GGUF model (a path or a bundled model's name). Raises InputError, UnsupportedError."""
        return cls.of(GgufWeights(model_file.shards(model_file.resolve(model))))

    @classmethod
    def of(cls, weights: GgufWeights) -> ExpertTensors:
        """The expert tensors of opened files. Raises InputError, UnsupportedError."""
        architecture = str(weights.keys.get("general.architecture") or "unknown")
        found = {name: match for name in weights.tensors if (match := NAME.fullmatch(name))}
        if not found:
            raise UnsupportedError(
                f"{weights.path}: has no routed experts (architecture {architecture}): nothing to merge into"
            )
        shapes = {(int(m[1]), m[2]): _shape(weights, name) for name, m in found.items()}
        return cls(weights.path, architecture, shapes)

    def shape(self, layer: int, kind: str) -> Shape | None:
        """The shape of a kind, also where the model keeps gate and up in one tensor and the adapter does not, or the
        other way round; None where the layer has no such weights."""
        if (layer, kind) in self.shapes:
            return self.shapes[layer, kind]
        if kind == "gate_up" and (gate := self.shapes.get((layer, "gate"))):
            return gate._replace(rows=2 * gate.rows)
        if kind in ("gate", "up") and (both := self.shapes.get((layer, "gate_up"))):
            return both._replace(rows=both.rows // 2)
        return None

    def layers(self) -> list[int]:
        """The layers with experts, in order."""
        return sorted({layer for layer, _ in self.shapes})

    def need(self, layer: int, kind: str, path: Path, what: str) -> Shape:
        """The shape that ``what`` of the adapter ``path`` must fit. Raises InputError where the model has none."""
        shape = self.shape(layer, kind)
        if shape is None:
            layers = self.layers()
            raise InputError(
                f"{path}: {what}: {self.path} has no {kind} experts in layer {layer}; its layers with experts are "
                f"{', '.join(map(str, layers))}: an adapter of another model"
            )
        return shape


def _shape(weights: GgufWeights, name: str) -> Shape:
    shape = weights.tensors[name].shape
    if len(shape) != 3:
        raise InputError(
            f"{weights.path}: {name} has {len(shape)} dimensions, expected 3: convert the model again"
        )
    return Shape(*shape)
