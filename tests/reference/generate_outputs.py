"""Write, or with --check verify, what single experts of Hugging Face models put out: `golden/expert_outputs.npz`.

python tests/reference/generate_outputs.py [--check]

The experts run in Hugging Face's own module, asked for one expert with weight 1 on all tokens of the layer's input.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import torch

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "reference")]

import hf_models  # noqa: E402
import tiny_models  # noqa: E402
from tiny_models import SPECS  # noqa: E402

GOLDEN = TESTS / "golden" / "expert_outputs.npz"
ARCHITECTURES = ("qwen3moe", "qwen2moe", "llama", "olmoe", "deepseek2", "gpt-oss", "granitemoe")
CHOSEN = 2  # experts in each of two layers
TOLERANCE = 1e-5


def layer_inputs(model: torch.nn.Module, arch: str, tokens: np.ndarray) -> dict[int, torch.Tensor]:
    """What each layer's experts are given: [n_tokens, n_embd]."""
    found: dict[int, torch.Tensor] = {}
    hooks = []
    for layer in SPECS[arch].moe_layers:
        block = hf_models.moe_block(model, arch, layer)

        def keep(_module: object, args: tuple[torch.Tensor, ...], layer: int = layer) -> None:
            found[layer] = args[0].reshape(-1, args[0].shape[-1]).clone()

        hooks.append(block.register_forward_pre_hook(keep))
    with torch.no_grad():
        model(torch.tensor([tokens.tolist()]))
    for hook in hooks:
        hook.remove()
    return found


@torch.no_grad()
def output(model: torch.nn.Module, arch: str, layer: int, expert: int, hidden: torch.Tensor) -> np.ndarray:
    """Expert ``expert`` of ``layer`` on every token: [n_tokens, n_embd]."""
    experts = hf_models.moe_block(model, arch, layer).experts
    ids = torch.full((len(hidden), 1), expert)
    return experts(hidden, ids, torch.ones(len(hidden), 1)).reshape(len(hidden), -1).numpy()


def generate(arch: str) -> dict[str, np.ndarray]:
    """Outputs [n_experts, n_tokens, n_embd] on the golden sequences of the architecture, and which experts they are."""
    model = hf_models.build(arch)
    rng = np.random.default_rng(5)
    layers = SPECS[arch].moe_layers
    experts = [
        (layer, int(expert))
        for layer in (layers[0], layers[-1])
        for expert in sorted(rng.choice(SPECS[arch].n_experts, CHOSEN, False))
    ]
    with np.load(TESTS / "golden" / f"{arch}.npz") as golden:
        sequences = np.split(golden["tokens"], np.cumsum(golden["lengths"])[:-1])
    rows: list[list[np.ndarray]] = [[] for _ in experts]
    for tokens in sequences:
        inputs = layer_inputs(model, arch, tokens)
        for i, (layer, expert) in enumerate(experts):
            rows[i].append(output(model, arch, layer, expert, inputs[layer]))
    return {
        f"{arch}_experts": np.array(experts, np.int16),
        f"{arch}_outputs": np.stack([np.concatenate(of) for of in rows]).astype(np.float32),
        f"{arch}_sha256": np.array(tiny_models.fingerprint(arch, 0)),
    }


def agree(one: np.ndarray, other: np.ndarray) -> bool:
    if one.dtype.kind != "f":
        return np.array_equal(one, other)
    return bool(np.linalg.norm(one - other) <= TOLERANCE * np.linalg.norm(other))


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="recompute and compare instead of writing")
    check = parser.parse_args().check
    arrays: dict[str, np.ndarray] = {}
    for arch in ARCHITECTURES:
        arrays |= generate(arch)
    if not check:
        np.savez_compressed(GOLDEN, **arrays)
        print(f"{GOLDEN.stat().st_size / 1000:.0f} kB")
        return 0
    with np.load(GOLDEN) as stored:
        differing = [name for name in stored if not agree(arrays[name], stored[name])]
    print("differs in " + ", ".join(differing) if differing else "ok")
    return bool(differing)


if __name__ == "__main__":
    raise SystemExit(main())
