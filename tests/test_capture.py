"""Outputs of single experts, pooled in the graph, against Hugging Face's expert modules; nothing is disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

import safex
from safex.errors import InputError, UnsupportedError

GOLDEN = Path(__file__).parent / "golden"
ARCHITECTURES = ("qwen3moe", "qwen2moe", "llama", "olmoe", "deepseek2", "gpt-oss", "granitemoe")
TOLERANCE = 1e-4

Arrays = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def outputs() -> Iterator[Arrays]:
    with np.load(GOLDEN / "expert_outputs.npz") as stored:
        yield dict(stored)


def sequences(arch: str) -> tuple[list[list[int]], np.ndarray]:
    """The golden token sequences, and the selections [n_moe_layers, n_tokens, top_k] of all of them together."""
    with np.load(GOLDEN / f"{arch}.npz") as golden:
        parts = np.split(golden["tokens"], np.cumsum(golden["lengths"])[:-1])
        return [part.tolist() for part in parts], golden["ids_none"]


def capture(
    model: safex.Model, prompts: list[list[int]], experts: list[Any], **how: Any
) -> list[dict[str, Any]]:
    """What the core hands over of each prompt."""
    results: dict[int, dict[str, Any]] = {}
    requests = [(prompt, how.pop("n_suffix", 1), 0, (0, 0), 0, (0.0, 1.0, 0)) for prompt in prompts]
    pairs = [(int(layer), int(expert)) for layer, expert in experts]
    asked = (pairs, how.get("forced", False), how.get("last", False), how.get("phase", "prompt"))
    model.session.run(requests, [], results.__setitem__, None, capture=asked)
    return [results[i] for i in range(len(prompts))]


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / max(float(np.linalg.norm(other)), 1e-30))


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equal_to_hugging_face(
    exact: Callable[[str], safex.Model], outputs: Arrays, arch: str, last: bool, forced: bool
) -> None:
    assert str(outputs[f"{arch}_sha256"]) == tiny_models.fingerprint(arch, 0)
    prompts, ids = sequences(arch)
    experts, expected = outputs[f"{arch}_experts"], outputs[f"{arch}_outputs"]
    layers = tiny_models.SPECS[arch].moe_layers
    with exact(arch) as model:
        found = capture(model, prompts, experts.tolist(), forced=forced, last=last)
    ends = np.cumsum([len(prompt) for prompt in prompts])
    n_missing = 0
    for i, (end, prompt) in enumerate(zip(ends, prompts, strict=True)):
        tokens = np.arange(end - 1 if last else end - len(prompt), end)
        for c, (layer, expert) in enumerate(experts.tolist()):
            chosen = tokens if forced else tokens[(ids[layers.index(layer), tokens] == expert).any(axis=1)]
            assert found[i]["n_pooled"][c] == len(chosen)
            n_missing += not len(chosen)
            if len(chosen):
                assert distance(found[i]["features"][c], expected[c, chosen].mean(axis=0)) < TOLERANCE
            else:
                assert not found[i]["features"][c].any()
    assert forced or last or n_missing < len(prompts) * len(experts), "no expert was ever selected"


@pytest.mark.parametrize("forced", [True, False])
def test_capturing_disturbs_nothing(exact: Callable[..., safex.Model], forced: bool) -> None:
    """Same logits and selections, bit for bit; more experts than the router selects in one layer."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, tiny_models.VOCAB, n).tolist() for n in (40, 3, 25)]
    experts = [(0, e) for e in range(6)] + [(3, 1), (2, 5)]
    with exact("qwen3moe") as model:
        plain: dict[int, dict[str, Any]] = {}
        with_capture: dict[int, dict[str, Any]] = {}
        requests = [(prompt, 1, 0, (0, 0), 0, (0.0, 1.0, 0)) for prompt in prompts]
        model.session.run(requests, [], plain.__setitem__, None, routes=True, logits=True)
        asked = (experts, forced, False, "prompt")
        model.session.run(
            requests, [], with_capture.__setitem__, None, routes=True, logits=True, capture=asked
        )
    for i in range(len(prompts)):
        assert np.array_equal(plain[i]["logits"], with_capture[i]["logits"])
        for one, other in zip(plain[i]["routes"], with_capture[i]["routes"], strict=True):
            assert np.array_equal(one, other)


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss"])
def test_packed_equals_alone_and_phases_add_up(
    exact: Callable[..., safex.Model], arch: str, forced: bool
) -> None:
    rng = np.random.default_rng(1)
    prompts = [rng.integers(3, tiny_models.VOCAB, n).tolist() for n in rng.integers(4, 60, 70)]
    experts = [(0, 1), (1, 2), (3, 0), (3, 3)]
    with exact(arch, n_ubatch=64) as model:
        together = capture(model, prompts, experts, forced=forced)
        for i in (0, 7, 69):
            (alone,) = capture(model, [prompts[i]], experts, forced=forced)
            assert np.array_equal(alone["n_pooled"], together[i]["n_pooled"])
            assert distance(together[i]["features"], alone["features"]) < TOLERANCE
        suffix = capture(model, prompts, experts, forced=True, phase="suffix", n_suffix=1)
        last = capture(model, prompts, experts, forced=True, last=True)
        assert distance(suffix[3]["features"], last[3]["features"]) < 1e-6


def test_experts_that_there_are_not(exact: Callable[..., safex.Model]) -> None:
    with exact("qwen3moe") as model:
        for experts in ([(9, 0)], [(0, 99)], [], [(0, 1), (0, 1)]):
            with pytest.raises(InputError):
                capture(model, [[5, 6]], experts)
    with exact("llama4") as model, pytest.raises(UnsupportedError, match="llama4 multiplies"):
        capture(model, [[5, 6]], [(1, 0)])
