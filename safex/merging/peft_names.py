"""Names of modules in Hugging Face's models: which of them are routed experts of a layer of the language model.

Below the layer, by the version of transformers and the model: ``mlp.experts.17.gate_proj`` (Mixtral: w1, w3, w2),
``mlp.experts`` for fused parameters, ``block_sparse_moe.input_linear`` (Granite), ``mlp.experts.gate_up_projs.17``
(gpt-oss in 4 bits).
"""

from __future__ import annotations

import re
from typing import NamedTuple

_LAYER = re.compile(r"(?P<before>.*?)(?:^|\.)layers\.(?P<layer>\d+)\.(?P<inside>.+)")
_EXPERTS = re.compile(r"(?:\w+\.)*?experts(?:\.(?P<rest>.+))?")
_GRANITE = re.compile(r"block_sparse_moe\.(?:input|output)_linear(?:\..+)?")
_NESTED = re.compile(r"base_layer(?:\.base_layer)*")
_ONE = re.compile(r"(?P<expert>\d+)\.(?P<leaf>\w+)|(?P<leaves>\w+_projs)\.(?P<number>\d+)")

# What may stand before the layers of the language model that the GGUF file holds. Others, such as "mtp" (layers that
# predict further tokens) and "talker", count their layers from 0 too.
BEFORE = {
    "",
    "base_model",
    "model",
    "language_model",
    "text_model",
    "transformer",
    "decoder",
    "backbone",
    "thinker",
}

MODULE_KINDS = {
    "gate_proj": "gate",
    "up_proj": "up",
    "down_proj": "down",
    "w1": "gate",
    "w3": "up",
    "w2": "down",
    "gate_up_proj": "gate_up",
    "gate_up_projs": "gate_up",
    "down_projs": "down",
}
# Parts of other tools' names for routed experts: DBRX, DeepSpeed, Megatron, MLX, ScatterMoE, Phixtral.
_PARTS = re.compile(
    r"(?!shared_).*experts?|switch_mlp|switch_glu|moe_mlp|grouped_mlp|w13|w13_weight|w2_weight"
)


class Module(NamedTuple):
    """A module of routed experts: fused (``expert`` and ``kind`` None), or of one expert."""

    layer: int
    expert: int | None = None
    kind: str | None = None


def in_layer(path: str) -> tuple[int, str] | None:
    """The layer of the language model that a module belongs to, and its path there; None for other parts."""
    found = _LAYER.fullmatch(path)
    if found is None or not set(found["before"].split(".")) <= BEFORE:
        return None
    return int(found["layer"]), found["inside"]


def parse(path: str) -> Module | None:
    """The routed experts that a module holds; None for others and for names that aren't known.

    >>> parse("model.layers.3.mlp.experts.17.gate_proj"), parse("model.layers.3.mlp.experts.base_layer")
    (Module(layer=3, expert=17, kind='gate'), Module(layer=3, expert=None, kind=None))
    """
    found = in_layer(path)
    if found is None:
        return None
    layer, inside = found
    if _GRANITE.fullmatch(inside):
        return Module(layer) if inside.count(".") == 1 else None
    experts = _EXPERTS.fullmatch(inside)
    if experts is None:
        return None
    if experts["rest"] is None or _NESTED.fullmatch(experts["rest"]):
        return Module(layer)
    one = _ONE.fullmatch(experts["rest"])
    kind = MODULE_KINDS.get(one["leaf"] or one["leaves"]) if one else None
    return Module(layer, int(one["expert"] or one["number"]), kind) if one and kind else None


def is_routed(path: str) -> bool:
    """Whether a name, known or not, is of routed experts of the language model: to leave it out would go unnoticed.

    >>> is_routed("transformer.blocks.0.ffn.experts.mlp"), is_routed("model.layers.0.mlp.shared_expert.up_proj")
    (True, False)
    """
    before, _, _ = path.partition("layers.")
    if "layers." in path and not set(before.rstrip(".").split(".")) <= BEFORE:
        return False
    parts = path.split(".")
    return any(_PARTS.fullmatch(part) for part in parts) or bool(_GRANITE.search(path))
