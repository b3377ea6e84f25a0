"""LoRA of MLX (mlx-lm): a folder with ``adapters.safetensors`` and a configuration of its own.

``model.layers.L. ... .switch_mlp.gate_proj.lora_a`` is [experts, rank, in] (older versions [experts * rank, in]),
``.lora_b`` [experts, out, rank]; the delta is scale * B A, not divided by the rank. Gate and up are always apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safex.errors import InputError
from safex.merging import peft_names
from safex.merging.deltas import check_others, shown
from safex.merging.expert_tensors import ExpertTensors, Place, Shape
from safex.merging.lora import Factors, LoraDeltas, Source
from safex.merging.peft_config import NAME
from safex.merging.safetensors_weights import SafetensorsWeights
from safex.result_file import read_json

WEIGHTS = "adapters.safetensors"
_SIDE = re.compile(r"(?P<module>.+)\.lora_(?P<side>[ab])")
_EXPERTS = re.compile(r"(?:\w+\.)*?(?:switch_mlp|experts)\.(?P<kind>gate|up|down)_proj")


@dataclass(frozen=True)
class Switch:
    """The matrices of one kind in one layer. See Source."""

    weights: SafetensorsWeights
    module: str
    experts: range
    scale: float

    def read(self, expert: int) -> Factors:
        """Those of one expert."""
        b = self.weights.read(f"{self.module}.lora_b", expert)
        rank = b.shape[1]
        flat = len(self.weights.shape(f"{self.module}.lora_a")) == 2
        rows = slice(expert * rank, (expert + 1) * rank)
        return Factors(b, self.weights.read(f"{self.module}.lora_a", rows if flat else expert), self.scale)


def is_mlx(folder: Path) -> bool:
    """Whether a folder holds what mlx-lm writes rather than what PEFT does."""
    return (folder / WEIGHTS).exists() and not (folder / "adapter_model.safetensors").exists()


def open_mlx(folder: Path, model: ExpertTensors, allow_others: bool) -> LoraDeltas:
    """The deltas of an adapter of MLX. Raises InputError: what can't be merged, or does not fit the model."""
    scale = read_json(folder / NAME, "the configuration that mlx-lm saves beside an adapter", _scale)
    path = folder / WEIGHTS
    weights = SafetensorsWeights(path)
    sides: dict[str, set[str]] = {}
    others: list[str] = []
    unknown: list[str] = []
    for name in weights.names:
        found = _SIDE.fullmatch(name)
        sides.setdefault(found["module"] if found else name, set()).add(found["side"] if found else "")
    sources: dict[Place, Source] = {}
    for module, has in sides.items():
        place = _place(module)
        if place is None:
            (unknown if peft_names.is_routed(module) else others).append(module)
        elif has != {"a", "b"} or place in sources:
            raise InputError(f"{path}: {module} is incomplete or there twice: save the adapter again")
        else:
            sources[place] = _switch(weights, module, model.need(*place, path, module), scale)
    if unknown:
        raise InputError(
            f"{path}: {shown(sorted(unknown))} is no matrix of an expert that is known here, expected layers.L. ... "
            ".switch_mlp.gate_proj, up_proj or down_proj"
        )
    if not sources:
        raise InputError(f"{path}: has no LoRA of experts, expected layers.L. ... .switch_mlp.gate_proj")
    return LoraDeltas([folder / NAME, path], model, sources, check_others(path, others, allow_others))


def _place(module: str) -> Place | None:
    found = peft_names.in_layer(module)
    kind = _EXPERTS.fullmatch(found[1]) if found else None
    return (found[0], kind["kind"]) if found and kind else None


def _switch(weights: SafetensorsWeights, module: str, shape: Shape, scale: float) -> Switch:
    a, b = (weights.shape(f"{module}.lora_{side}") for side in "ab")
    rank = b[-1] if len(b) == 3 else 0
    wanted = ((shape.experts, rank, shape.columns), (shape.experts * rank, shape.columns))
    if a not in wanted or b != (shape.experts, shape.rows, rank):
        raise InputError(
            f"{weights.path}: {module}: lora_a is {list(a)} and lora_b {list(b)}, expected [{shape.experts}, rank, "
            f"{shape.columns}] and [{shape.experts}, {shape.rows}, rank]: an adapter of another model"
        )
    return Switch(weights, module, range(shape.experts), scale)


def _scale(value: Any) -> float:
    kind = value.get("fine_tune_type", "lora") if isinstance(value, Mapping) else None
    if kind != "lora":
        raise InputError(f"fine_tune_type is {kind!r}, expected 'lora': other adapters can't be merged here")
    parameters = value.get("lora_parameters")
    scale = parameters.get("scale") if isinstance(parameters, Mapping) else None
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not abs(scale) < 1e9:
        raise InputError(f"lora_parameters has scale {scale!r}, expected a number: is it mlx-lm's?")
    if parameters.get("alpha") is not None:
        raise InputError(
            "lora_parameters has alpha, which versions of mlx-lm multiply the scale by or not: save it with a newer one"
        )
    return float(scale)
