"""Outputs of single experts, pooled in the graph, against Hugging Face's expert modules; nothing is disturbed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_models
from test_exactness import with_fused_gate_up, with_scales

import safex
from safex.errors import InputError, UnsupportedError

GOLDEN = Path(__file__).parent / "golden"
ARCHITECTURES = ("qwen3moe", "qwen2moe", "llama", "olmoe", "deepseek2", "gpt-oss", "granitemoe")
TOLERANCE = 1e-4
ROUNDED_TOLERANCE = 2e-3  # a few values fall on the other side of a rounding edge

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
    asked = (pairs, how.get("forced", False), how.get("pool", "mean"), how.get("phase", "prompt"))
    model.session.run(requests, [], results.__setitem__, None, capture=asked)
    return [results[i]["captured"] for i in range(len(prompts))]


def distance(one: np.ndarray, other: np.ndarray) -> float:
    return float(np.linalg.norm(one - other) / max(float(np.linalg.norm(other)), 1e-30))


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("pool", ["mean", "last"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_equal_to_hugging_face(
    exact: Callable[[str], safex.Model], outputs: Arrays, arch: str, pool: str, forced: bool
) -> None:
    assert str(outputs[f"{arch}_sha256"]) == tiny_models.fingerprint(arch, 0)
    prompts, ids = sequences(arch)
    experts, expected = outputs[f"{arch}_experts"], outputs[f"{arch}_outputs"]
    layers = tiny_models.SPECS[arch].moe_layers
    with exact(arch) as model:
        found = capture(model, prompts, experts.tolist(), forced=forced, pool=pool)
    ends = np.cumsum([len(prompt) for prompt in prompts])
    n_missing = 0
    for i, (end, prompt) in enumerate(zip(ends, prompts, strict=True)):
        tokens = np.arange(end - 1 if pool == "last" else end - len(prompt), end)
        for c, (layer, expert) in enumerate(experts.tolist()):
            chosen = tokens if forced else tokens[(ids[layers.index(layer), tokens] == expert).any(axis=1)]
            assert found[i]["n_pooled"][c] == len(chosen)
            n_missing += not len(chosen)
            if len(chosen):
                assert distance(found[i]["features"][c], expected[c, chosen].mean(axis=0)) < TOLERANCE
            else:
                assert not found[i]["features"][c].any()
    assert forced or pool == "last" or n_missing < len(prompts) * len(experts), "no expert was ever selected"


@pytest.mark.parametrize("pool", ["mean", "none"])
@pytest.mark.parametrize("forced", [True, False])
def test_capturing_disturbs_nothing(exact: Callable[..., safex.Model], forced: bool, pool: str) -> None:
    """Same logits and selections, bit for bit; more experts than the router selects in one layer."""
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, tiny_models.VOCAB, n).tolist() for n in (40, 3, 25)]
    experts = [(0, e) for e in range(6)] + [(3, 1), (2, 5)]
    with exact("qwen3moe") as model:
        plain: dict[int, dict[str, Any]] = {}
        with_capture: dict[int, dict[str, Any]] = {}
        requests = [(prompt, 1, 0, (0, 0), 0, (0.0, 1.0, 0)) for prompt in prompts]
        model.session.run(requests, [], plain.__setitem__, None, routes=True, logits=True)
        asked = (experts, forced, pool, "prompt")
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
        last = capture(model, prompts, experts, forced=True, pool="last")
        assert distance(suffix[3]["features"], last[3]["features"]) < 1e-6


@pytest.mark.parametrize("routing", ["forced", "natural"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_token_rows_and_router_probabilities(
    exact: Callable[..., safex.Model], outputs: Arrays, arch: str, routing: str
) -> None:
    """Every row against Hugging Face's experts, and its probability against the router's where it was selected."""
    prompts, ids = sequences(arch)
    with np.load(GOLDEN / f"{arch}.npz") as golden:
        probs = golden["probs_none"]
    experts = [(int(layer), int(expert)) for layer, expert in outputs[f"{arch}_experts"]]
    layers = tiny_models.SPECS[arch].moe_layers
    with exact(arch, n_ubatch=16) as model:
        found = model.dump_tokens(experts, prompts, routing=routing)
        pooled = model.dump(experts, prompts, routing=routing)
    starts = np.cumsum([0, *map(len, prompts)])
    for place, (layer, expert) in enumerate(experts):
        rows = found.of((layer, expert))
        selected = ids[layers.index(layer)] == expert
        tokens = starts[rows.prompts] + rows.positions
        expected = np.arange(starts[-1]) if routing == "forced" else np.flatnonzero(selected.any(axis=1))
        assert tokens.tolist() == expected.tolist()
        if len(tokens):
            assert distance(rows.values, outputs[f"{arch}_outputs"][place, tokens]) < TOLERANCE
        chosen = selected[tokens].any(axis=1)
        theirs = probs[layers.index(layer)][selected][: chosen.sum()]
        np.testing.assert_allclose(rows.router_probs[chosen], theirs, rtol=1e-4, atol=1e-7)
        if routing == "forced":
            means = [part.mean() for part in np.split(rows.router_probs, starts[1:-1])]
            np.testing.assert_allclose(pooled.router_probs[place], means, rtol=1e-4)


@pytest.mark.parametrize("routing", ["forced", "natural"])
@pytest.mark.parametrize(("arch", "rewrite"), [("deepseek2", with_fused_gate_up), ("qwen3moe", with_scales)])
def test_other_layouts_of_the_same_experts(
    outputs: Arrays, arch: str, rewrite: Callable[..., Any], routing: str, tmp_path: Path
) -> None:
    path = tiny_models.write_gguf(tmp_path / "m.gguf", arch, rewrite(tiny_models.tiny_tensors(arch)))
    prompts, _ = sequences(arch)
    starts = np.cumsum([0, *map(len, prompts)])
    experts = [(int(layer), int(expert)) for layer, expert in outputs[f"{arch}_experts"]]
    with safex.Model(path, flash_attn=False, kv_type="f32", n_threads=2) as model:
        found = model.dump_tokens(experts, prompts, routing=routing)
    assert sum(len(rows.values) for rows in found.rows)
    for place, rows in enumerate(found.rows):
        tokens = starts[rows.prompts] + rows.positions
        if len(tokens):
            assert distance(rows.values, outputs[f"{arch}_outputs"][place, tokens]) < TOLERANCE


QUANTS = {
    "Q8_0": (34, 0, 2),
    "Q4_K": (144, 0, 4),
    "Q6_K": (210, 208, 210),
}  # bytes of a block, where its scales lie


def random_blocks(rng: np.random.Generator, shape: tuple[int, ...], quant: str) -> np.ndarray:
    """Valid blocks of random levels; weights of about 1 / sqrt(n)."""
    kind = gguf.GGMLQuantizationType[quant]
    n_bytes, start, end = QUANTS[quant]
    size = gguf.GGML_QUANT_SIZES[kind][0]
    blocks = rng.integers(0, 256, (*shape[:-1], shape[-1] // size, n_bytes), np.uint8)
    blocks[..., start:end] = np.frombuffer(np.full((end - start) // 2, 1, "<f2").tobytes(), np.uint8)
    flat = blocks.reshape(*shape[:-1], -1)
    scale = shape[-1] ** -0.5 / gguf.quants.dequantize(flat, kind).std()
    blocks[..., start:end] = np.frombuffer(np.full((end - start) // 2, scale, "<f2").tobytes(), np.uint8)
    return flat


def write_known_input(path: Path, quant: str) -> dict[str, np.ndarray]:
    """A model of one layer whose attention puts out nothing, so that its experts are given the normalised embeddings.

    Returns its tensors, experts dequantized.
    """
    width, n_experts, rng = 256, 4, np.random.default_rng(3)
    kind = gguf.GGMLQuantizationType[quant]
    plain = {
        "token_embd": rng.normal(size=(tiny_models.VOCAB, width)),
        "output_norm": np.ones(width),
        "blk.0.attn_norm": np.ones(width),
        **{f"blk.0.attn_{name}": rng.normal(size=(width, width)) for name in ("q", "k", "v")},
        "blk.0.attn_output": np.zeros((width, width)),
        "blk.0.ffn_norm": rng.uniform(0.5, 1.5, width),
        "blk.0.ffn_gate_inp": rng.normal(size=(n_experts, width)),
    }
    packed = {
        f"blk.0.ffn_{name}_exps": random_blocks(rng, (n_experts, width, width), quant)
        for name in ("gate", "up", "down")
    }
    writer = gguf.GGUFWriter(path, "llama")
    sizes = {
        "block_count": 1,
        "embedding_length": width,
        "feed_forward_length": width,
        "expert_count": n_experts,
    }
    sizes |= {
        "attention.head_count": 4,
        "attention.head_count_kv": 4,
        "context_length": 256,
        "expert_used_count": 2,
    }
    for name, value in sizes.items():
        writer.add_uint32(f"llama.{name}", value)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-6)
    tiny_models.add_bpe(writer)
    for name, array in plain.items():
        writer.add_tensor(f"{name}.weight", array.astype(np.float32))
    for name, array in packed.items():
        writer.add_tensor(f"{name}.weight", array, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return plain | {name: gguf.quants.dequantize(array, kind) for name, array in packed.items()}


def rounded(values: np.ndarray, quant: str) -> np.ndarray:
    """What upstream's matrix products make of the values they are given: 8 bits, in blocks of 32 or (K-quants) 256."""
    if quant == "Q8_0":
        kind = gguf.GGMLQuantizationType.Q8_0
        return gguf.quants.dequantize(gguf.quants.quantize(values.astype(np.float32), kind), kind)
    steps = np.abs(values).max(axis=-1, keepdims=True) / 127
    return np.rint(values / steps) * steps


@pytest.mark.parametrize("quant", QUANTS)
def test_quantized_experts_equal_their_dequantized_weights(tmp_path: Path, quant: str) -> None:
    weights = write_known_input(tmp_path / "known.gguf", quant)
    prompts = [list(range(5, 45)), [100, 7, 9]]
    experts = [(0, expert) for expert in range(4)]
    with safex.Model(tmp_path / "known.gguf", n_threads=2) as model:
        found = model.dump_tokens(experts, prompts)
        pooled = model.dump(experts, prompts)
    inputs = weights["token_embd"][np.concatenate(prompts)]
    inputs = inputs / np.sqrt((inputs**2).mean(axis=1, keepdims=True) + 1e-6) * weights["blk.0.ffn_norm"]
    for expert in range(4):
        gate, up, down = (weights[f"blk.0.ffn_{name}_exps"][expert] for name in ("gate", "up", "down"))
        gated, upped = rounded(inputs, quant) @ gate.T, rounded(inputs, quant) @ up.T
        exact = (inputs @ gate.T / (1 + np.exp(-inputs @ gate.T)) * (inputs @ up.T)) @ down.T
        expected = rounded(gated / (1 + np.exp(-gated)) * upped, quant) @ down.T
        assert distance(found.of((0, expert)).values, expected) < ROUNDED_TOLERANCE
        assert distance(found.of((0, expert)).values, exact) < 0.03
        means = np.stack([expected[:40].mean(axis=0), expected[40:].mean(axis=0)])
        assert distance(pooled.of((0, expert)), means) < ROUNDED_TOLERANCE


def test_experts_that_there_are_not(exact: Callable[..., safex.Model]) -> None:
    with exact("qwen3moe") as model:
        for experts in ([(9, 0)], [(0, 99)], [], [(0, 1), (0, 1)]):
            with pytest.raises(InputError):
                capture(model, [[5, 6]], experts)
    with exact("llama4") as model, pytest.raises(UnsupportedError, match="llama4 multiplies"):
        capture(model, [[5, 6]], [(1, 0)])
