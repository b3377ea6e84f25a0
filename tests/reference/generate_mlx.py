"""Write an adapter of mlx-lm and what its own fuse() adds to the weights: `golden/mlx.npz`.

python tests/reference/generate_mlx.py

Needs mlx (its CPU build runs on Linux) and mlx-lm. The base weights are zero, so that the fused ones are the deltas.
"""

from __future__ import annotations

import importlib.metadata
import json
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx_lm.models.switch_layers import SwitchLinear
from mlx_lm.tuner.lora import LoRASwitchLinear

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
LAYERS, EXPERTS, HIDDEN, WIDTH, RANK, SCALE = 2, 3, 12, 10, 2, 1.5
SIDES = {"gate": (HIDDEN, WIDTH), "up": (HIDDEN, WIDTH), "down": (WIDTH, HIDDEN)}


def main() -> None:
    """Write the file."""
    mx.random.seed(0)
    weights, arrays = {}, {}
    for layer in range(LAYERS):
        for kind, (inner, out) in SIDES.items():
            base = SwitchLinear(inner, out, EXPERTS, bias=False)
            base.weight = mx.zeros_like(base.weight)
            lora = LoRASwitchLinear.from_base(base, r=RANK, scale=SCALE)
            lora.lora_b = mx.random.normal(lora.lora_b.shape)
            name = f"model.layers.{layer}.mlp.switch_mlp.{kind}_proj"
            weights |= {f"{name}.lora_a": lora.lora_a, f"{name}.lora_b": lora.lora_b}
            arrays[f"mlx/delta/{layer}/{kind}"] = np.array(lora.fuse().weight)
    path = GOLDEN / "mlx.safetensors"
    mx.save_safetensors(str(path), weights)
    config = {
        "fine_tune_type": "lora",
        "lora_parameters": {"rank": RANK, "dropout": 0.0, "scale": SCALE},
        "num_layers": 2,
    }
    arrays |= {
        "mlx/weights": np.frombuffer(path.read_bytes(), np.uint8),
        "mlx/config": np.frombuffer(json.dumps(config).encode(), np.uint8),
        "mlx/architecture": np.array("qwen3moe"),
        "mlx/sizes": np.array([LAYERS, EXPERTS, HIDDEN, WIDTH]),
        "versions": np.array([importlib.metadata.version(name) for name in ("mlx", "mlx-lm")]),
    }
    path.unlink()
    np.savez_compressed(GOLDEN / "mlx.npz", **arrays)


if __name__ == "__main__":
    main()
