"""LoRA adapters of llama.cpp as files, what they mean, and llama.cpp itself with one applied at run time."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np

from safex.merging import ExpertTensors

RANK = 3
TOKENS = [5, 9, 77, 120, 33, 200, 41]


def lora_matrices(model: ExpertTensors, kinds: tuple[str, ...], seed: int = 0) -> dict[str, np.ndarray]:
    """A and B of all layers as llama.cpp has them; those of expert 1 are zero."""
    rng = np.random.default_rng(seed)
    found = {}
    for layer in model.layers():
        for kind in kinds:
            shape = model.shape(layer, kind)
            assert shape is not None
            a = rng.standard_normal((shape.experts, RANK, shape.columns)).astype(np.float32)
            b = rng.standard_normal((shape.experts, shape.rows, RANK)).astype(np.float32)
            b[1] = 0
            found |= {
                f"blk.{layer}.ffn_{kind}_exps.weight.lora_{side}": m for side, m in (("a", a), ("b", b))
            }
    return found


def write_lora(path: Path, matrices: Mapping[str, np.ndarray], alpha: float = 6.0, **changes: Any) -> Path:
    """A LoRA file of llama.cpp; ``changes``: architecture, type, adapter, alora, quant."""
    writer = gguf.GGUFWriter(path, changes.get("architecture", "qwen3moe"))
    writer.add_type(changes.get("type", "adapter"))
    writer.add_string("adapter.type", changes.get("adapter", "lora"))
    writer.add_float32("adapter.lora.alpha", alpha)
    if "alora" in changes:
        writer.add_array("adapter.alora.invocation_tokens", changes["alora"])
    kind = gguf.GGMLQuantizationType[changes.get("quant", "F32")]
    for name, array in matrices.items():
        writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def llama_cpp(matrices: Mapping[str, np.ndarray], alpha: float) -> Callable[[int, str], np.ndarray]:
    """build_lora_mm_id: (b a x) * (alpha / rank, or 1 where alpha is 0)."""

    def expected(layer: int, kind: str) -> np.ndarray:
        a, b = (matrices[f"blk.{layer}.ffn_{kind}_exps.weight.lora_{side}"] for side in "ab")
        scale = alpha / a.shape[1] if alpha else 1.0
        return np.stack([scale * (b[e].astype(np.float64) @ a[e]) for e in range(len(a))]).astype(np.float32)

    return expected


def logits(llama: Any, path: Path, **settings: object) -> np.ndarray:
    exact = {"flash_attn": False, "type_k": 0, "type_v": 0, "n_threads": 1}
    model = llama(str(path), n_ctx=64, logits_all=True, verbose=False, **exact, **settings)
    model.eval(TOKENS)
    found = np.array(model.scores[: len(TOKENS)])
    model.close()
    return found
