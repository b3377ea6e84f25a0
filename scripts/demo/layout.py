"""Names and layout of the weights: here (and in Hugging Face's classes) against GGUF."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from demo.architectures import Config
from demo.model import Model

# Our module name: GGUF tensor name, within a block and outside.
BLOCK_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate": "ffn_gate_inp",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.{shared}.gate_proj": "ffn_gate_shexp",
    "mlp.{shared}.up_proj": "ffn_up_shexp",
    "mlp.{shared}.down_proj": "ffn_down_shexp",
    "mlp.shared_expert_gate": "ffn_gate_inp_shexp",
}
TOP_NAMES = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}


def tensor_names(model: Model, layer: int | None) -> dict[str, str]:
    """Return GGUF names by our names: of a layer's tensors but its routed experts', or of those outside layers."""
    if layer is None:
        return {f"{old}.weight": f"{new}.weight" for old, new in TOP_NAMES.items()}
    known, names = model.state_dict(), {}
    for old, new in BLOCK_NAMES.items():
        for part in ("weight", "bias"):
            name = f"model.layers.{layer}.{old.format(shared=model.c.facts.shared)}.{part}"
            if name in known:
                names[name] = f"blk.{layer}.{new}.{part}"
    return names


def _rotated_heads(c: Config, name: str) -> int:
    """Return the number of heads of a tensor whose rows GGUF stores in another order, else 0."""
    heads = {"q_proj": c.heads, "k_proj": c.kv_heads}
    return heads.get(name.split(".")[-2], 0) if c.facts.pairwise_rope else 0


def stored(c: Config, name: str, ours: Tensor) -> Tensor:
    """Return a tensor as GGUF stores it: rotated halves (i, i + half) as neighbours, the shared gate as a vector."""
    heads = _rotated_heads(c, name)
    if heads:
        return ours.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    return ours[0] if "shared_expert_gate" in name else ours


def loaded(c: Config, name: str, theirs: Tensor) -> Tensor:
    """Undo :func:`stored`."""
    heads = _rotated_heads(c, name)
    if heads:
        return theirs.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
    return theirs[None] if "shared_expert_gate" in name else theirs


def to_gguf(model: Model) -> dict[str, np.ndarray]:
    """Return the weights under their GGUF names; the fused gate/up tensor is split in two."""
    state, routed = model.state_dict(), model.experts()
    out: dict[str, Tensor] = {}
    for layer in (None, *range(model.c.layers)):
        out |= {new: stored(model.c, old, state[old]) for old, new in tensor_names(model, layer).items()}
        if layer in routed:
            experts = routed[layer].experts
            gate, up = experts.gate_up_proj.chunk(2, dim=1)
            parts = {"gate": gate, "up": up, "down": experts.down_proj}
            out |= {f"blk.{layer}.ffn_{part}_exps.weight": tensor for part, tensor in parts.items()}
    return {name: tensor.detach().contiguous().float().numpy() for name, tensor in out.items()}


def load_gguf(model: Model, tensors: dict[str, np.ndarray]) -> None:
    """Undo :func:`to_gguf`."""
    get = {name: torch.from_numpy(np.array(array)) for name, array in tensors.items()}
    state = {}
    for layer in (None, *range(model.c.layers)):
        state |= {old: loaded(model.c, old, get[new]) for old, new in tensor_names(model, layer).items()}
    for layer in model.c.moe_layers:
        gate, up, down = (get[f"blk.{layer}.ffn_{part}_exps.weight"] for part in ("gate", "up", "down"))
        state[f"model.layers.{layer}.mlp.experts.gate_up_proj"] = torch.cat((gate, up), dim=1)
        state[f"model.layers.{layer}.mlp.experts.down_proj"] = down
    model.load_state_dict(state)
