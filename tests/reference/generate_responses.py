"""Write, or with --check verify, greedy responses of Hugging Face models under masks: `golden/responses.npz`.

python tests/reference/generate_responses.py [--check]

Every token is computed anew from the whole sequence, so no cache of ours or theirs is involved.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np

TESTS = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(TESTS), str(TESTS / "reference")]

import tiny_models  # noqa: E402
from router import Instrumented  # noqa: E402
from tiny_models import SPECS  # noqa: E402

GOLDEN = TESTS / "golden" / "responses.npz"
ARCHITECTURES = ("qwen3moe", "qwen2moe", "llama", "olmoe")
MODES = ("none", "zero", "reroute")
N_PROMPT, N_NEW = 7, 64
MASKED = 2  # experts in a layer
# Distance of the selection scores at the cut, and of the two best logits: rounding must not decide.
MIN_MARGIN, MIN_GAP = 2e-5, 1e-3
ATTEMPTS = 200

Masks = dict[int, list[int]]


def respond(model: Instrumented, prompt: np.ndarray, mode: str, masked: Masks) -> list[int] | None:
    """The greedy response, or None where rounding could decide a step or a special token ends it early."""
    tokens = prompt.tolist()
    for _ in range(N_NEW):
        records, logits = model.run(tokens, mode, masked)
        best = logits[-1].topk(2).values
        if min(record.margin for record in records) < MIN_MARGIN or float(best[0] - best[1]) < MIN_GAP:
            return None
        tokens.append(int(logits[-1].argmax()))
        if tokens[-1] >= tiny_models.BOS:
            return None
    return tokens[len(prompt) :]


def draw_masks(arch: str, rng: np.random.Generator) -> Masks:
    n_experts = SPECS[arch].n_experts
    return {
        layer: sorted(rng.choice(n_experts, MASKED, False).tolist()) for layer in SPECS[arch].moe_layers[1:]
    }


def generate(arch: str) -> dict[str, np.ndarray]:
    """Prompt, masked experts and the response under each mode, from the first draw that rounding can't decide."""
    model = Instrumented(arch, 0)
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng([1, attempt])
        prompt, masked = rng.integers(3, tiny_models.VOCAB, N_PROMPT), draw_masks(arch, rng)
        responses = {}
        for mode in MODES:
            response = respond(model, prompt, mode, masked if mode != "none" else {})
            if response is None:
                break
            responses[mode] = response
        if len(responses) == len(MODES) and len({tuple(r) for r in responses.values()}) == len(MODES):
            experts = [(layer, expert) for layer, of in masked.items() for expert in of]
            return {
                f"{arch}_prompt": prompt.astype(np.int16),
                f"{arch}_experts": np.array(experts, np.int16),
                f"{arch}_sha256": np.array(tiny_models.fingerprint(arch, 0)),
            } | {f"{arch}_{mode}": np.array(tokens, np.int16) for mode, tokens in responses.items()}
    raise AssertionError(f"{arch}: {ATTEMPTS} draws come close to a tie")


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--check", action="store_true", help="recompute and compare instead of writing")
    check = parser.parse_args().check
    arrays = {}
    for arch in ARCHITECTURES:
        arrays |= generate(arch)
        print(f"{arch}: {len(set(arrays[f'{arch}_none'].tolist()))} different tokens of {N_NEW}")
    if not check:
        np.savez_compressed(GOLDEN, **arrays)
        return 0
    with np.load(GOLDEN) as stored:
        differing = [name for name in stored if not np.array_equal(stored[name], arrays[name])]
    print("differs in " + ", ".join(differing) if differing else "ok")
    return bool(differing)


if __name__ == "__main__":
    raise SystemExit(main())
