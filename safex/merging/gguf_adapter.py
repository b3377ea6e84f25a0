"""llama.cpp's LoRA files: GGUF of type ``adapter``, with the matrices of all experts in one 3-D tensor.

``blk.L.ffn_gate_exps.weight.lora_a`` is [experts, rank, in], ``.lora_b`` [experts, out, rank]; the scaling is
``adapter.lora.alpha`` / rank, or 1 where alpha is 0 (llama-adapter.h, ``get_scale``).
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

from safex.errors import InputError
from safex.merging.deltas import check_others, shown
from safex.merging.expert_tensors import NAME, ExpertTensors, Place, Shape
from safex.merging.gguf_weights import GgufWeights
from safex.merging.lora import Factors, LoraDeltas, Source

_SIDE = re.compile(r"(?P<tensor>.+)\.lora_(?P<side>[ab])")
# Biases of experts, chunked experts, and experts in tensors of their own as in files of early 2024.
_ROUTED = re.compile(r"blk\.\d+\.ffn_\w*(?<!sh)exps\..*|blk\.\d+\.ffn_(?:gate|up|down)\.\d+\..*")
ALORA = "adapter.alora.invocation_tokens"


@dataclass(frozen=True)
class Stacked:
    """The matrices of one tensor. See Source."""

    weights: GgufWeights
    tensor: str
    experts: range
    scaling: float

    def read(self, expert: int) -> Factors:
        """Those of one expert."""
        b, a = (self.weights.slice(f"{self.tensor}.lora_{side}", expert) for side in "ba")
        return Factors(b, a, self.scaling)


def is_adapter(weights: GgufWeights) -> bool:
    """Whether a GGUF file says that it is an adapter rather than a model."""
    return bool(weights.keys.get("general.type") == "adapter")


def open_gguf_adapter(weights: GgufWeights, model: ExpertTensors, allow_others: bool) -> LoraDeltas:
    """The deltas of a LoRA file. Raises InputError: what can't be merged, or does not fit the model."""
    _check_kind(weights, model)
    others: list[str] = []
    sources: dict[Place, Source] = {}
    for tensor in _tensors(weights, others):
        found = NAME.fullmatch(tensor)
        if found is None:
            others.append(tensor)
            continue
        layer, kind = int(found[1]), found[2]
        sources[layer, kind] = _stacked(weights, tensor, model.need(layer, kind, weights.path, tensor), model)
    if routed := sorted(name for name in others if _ROUTED.fullmatch(name)):
        raise InputError(
            f"{weights.path}: changes {shown(routed)} of routed experts, expected matrices of tensors such as "
            "blk.L.ffn_gate_exps.weight only: they can't be merged, train without them"
        )
    if not sources:
        raise InputError(
            f"{weights.path}: has no LoRA of experts, expected tensors such as blk.0.ffn_up_exps.weight.lora_a"
        )
    return LoraDeltas(weights.files, model, sources, check_others(weights.path, others, allow_others))


def _check_kind(weights: GgufWeights, model: ExpertTensors) -> None:
    kind, architecture = weights.keys.get("adapter.type"), weights.keys.get("general.architecture")
    if kind != "lora":
        raise InputError(
            f"{weights.path}: adapter.type is {kind!r}, expected 'lora': other adapters can't be merged here"
        )
    if ALORA in weights.keys:
        raise InputError(
            f"{weights.path}: an activated LoRA, which acts after certain tokens only: it can't be merged"
        )
    if architecture != model.architecture:
        raise InputError(
            f"{weights.path}: made for architecture {architecture}, but {model.path} is {model.architecture}: an "
            "adapter of another model"
        )


def _tensors(weights: GgufWeights, others: list[str]) -> Iterator[str]:
    """The tensors that are changed; all that is no pair of matrices goes to the others. Raises InputError."""
    sides: dict[str, set[str]] = defaultdict(set)
    for name in weights.tensors:
        found = _SIDE.fullmatch(name)
        if found:
            sides[found["tensor"]].add(found["side"])
        else:
            others.append(name)
    for tensor, found_sides in sides.items():
        if len(found_sides) < 2:
            has = found_sides.pop()
            lacks = "b" if has == "a" else "a"
            raise InputError(
                f"{weights.path}: {tensor} has lora_{has} but no lora_{lacks}: the file is incomplete, convert it again"
            )
        yield tensor


def _stacked(weights: GgufWeights, tensor: str, shape: Shape, model: ExpertTensors) -> Stacked:
    a, b = (weights.tensors[f"{tensor}.lora_{side}"].shape for side in "ab")
    rank = b[-1] if b else 0
    if not rank or a != (shape.experts, rank, shape.columns) or b != (shape.experts, shape.rows, rank):
        raise InputError(
            f"{weights.path}: {tensor}: lora_a is {list(a)} and lora_b {list(b)}, expected [{shape.experts}, rank, "
            f"{shape.columns}] and [{shape.experts}, {shape.rows}, rank] for {model.path}: an adapter of another model"
        )
    alpha = weights.keys.get("adapter.lora.alpha") or 0.0
    if not isinstance(alpha, float):
        raise InputError(
            f"{weights.path}: adapter.lora.alpha is {alpha!r}, expected a number: convert it again"
        )
    return Stacked(weights, tensor, range(shape.experts), alpha / rank if alpha else 1.0)
