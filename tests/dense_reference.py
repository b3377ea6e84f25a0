"""The dense tiny models in NumPy, written from the papers' formulas (Llama 2, Qwen3) and in double precision.

logits(tensors, metadata, "dense-llama", tokens)    # float64 [n_tokens, n_vocab]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
# Rotary embedding turns pairs of dimensions: neighbours in Llama's files, halves in Qwen's.
NEIGHBOURS = {"dense-llama": True, "dense-qwen3": False}


def logits(
    tensors: Mapping[str, np.ndarray], meta: Mapping[str, Any], arch: str, tokens: Sequence[int]
) -> Floats:
    """Logits of every position of one sequence."""
    weights = {name: array.astype(np.float64) for name, array in tensors.items()}
    x = weights["token_embd.weight"][list(tokens)]
    for layer in range(meta["block_count"]):
        prefix = f"blk.{layer}."
        block = {name.removeprefix(prefix): w for name, w in weights.items() if name.startswith(prefix)}
        x = x + _attention(_norm(x, block["attn_norm.weight"], meta), block, meta, NEIGHBOURS[arch])
        x = x + _feed_forward(_norm(x, block["ffn_norm.weight"], meta), block)
    return _norm(x, weights["output_norm.weight"], meta) @ weights["output.weight"].T


def _norm(x: Floats, weight: Floats, meta: Mapping[str, Any]) -> Floats:
    """Over the last dimension: RMSNorm."""
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + meta["attention.layer_norm_rms_epsilon"]) * weight


def _feed_forward(x: Floats, block: Mapping[str, Floats]) -> Floats:
    gate = x @ block["ffn_gate.weight"].T
    return (gate / (1 + np.exp(-gate)) * (x @ block["ffn_up.weight"].T)) @ block["ffn_down.weight"].T


def _attention(x: Floats, block: Mapping[str, Floats], meta: Mapping[str, Any], neighbours: bool) -> Floats:
    n, width, heads = len(x), meta["attention.key_length"], meta["attention.head_count"]
    projected = {name: (x @ block[f"attn_{name}.weight"].T).reshape(n, -1, width) for name in "qkv"}
    for name in "qk":
        if f"attn_{name}_norm.weight" in block:
            projected[name] = _norm(projected[name], block[f"attn_{name}_norm.weight"], meta)
        projected[name] = _rotated(projected[name], meta["rope.freq_base"], neighbours)
    q, k, v = (np.repeat(one, heads // one.shape[1], axis=1) for one in projected.values())
    scores = np.einsum("ihd,jhd->hij", q, k) / np.sqrt(width)
    scores[:, np.triu(np.ones((n, n), bool), 1)] = -np.inf
    shares = np.exp(scores - scores.max(-1, keepdims=True))
    shares /= shares.sum(-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", shares, v).reshape(n, -1) @ block["attn_output.weight"].T


def _rotated(x: Floats, base: float, neighbours: bool) -> Floats:
    """[n_tokens, n_heads, width], each pair of dimensions turned by its own angle times the position."""
    width = x.shape[-1]
    angles = np.arange(len(x))[:, None, None] * base ** (-np.arange(0, width, 2) / width)
    ends = (
        (slice(0, None, 2), slice(1, None, 2)) if neighbours else (slice(width // 2), slice(width // 2, None))
    )
    a, b = (x[..., end] for end in ends)
    turned = np.empty_like(x)
    turned[..., ends[0]] = a * np.cos(angles) - b * np.sin(angles)
    turned[..., ends[1]] = a * np.sin(angles) + b * np.cos(angles)
    return turned
