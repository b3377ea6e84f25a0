"""The session as Python sees it: packing, masks, generation, phases, errors."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models

import safex
from safex import model_file
from safex.errors import InputError

Exact = Callable[..., safex.Model]


def mixed_prompts(n: int, vocabulary: int, longest: int = 40, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, vocabulary, rng.integers(1, longest)).tolist() for _ in range(n)]


@pytest.mark.parametrize("arch", ["qwen3moe", "deepseek2", "gpt-oss"])
def test_packing_changes_nothing(exact: Exact, arch: str) -> None:
    with exact(arch, n_ubatch=128) as model:
        prompts = mixed_prompts(200, 256)
        packed = model.profile(prompts)
        singles = [model.profile([prompt]) for prompt in prompts]
    np.testing.assert_array_equal(packed.counts, np.concatenate([one.counts for one in singles]))
    np.testing.assert_array_equal(
        packed.phase("suffix").counts, np.concatenate([one.phase("suffix").counts for one in singles])
    )
    np.testing.assert_allclose(packed.gate_sum, np.concatenate([one.gate_sum for one in singles]), atol=1e-4)
    np.testing.assert_array_equal(packed.n_tokens, [len(prompt) for prompt in prompts])


def test_packing_on_a_quantized_file_agrees_almost_everywhere(tiny_path: Callable[..., Path]) -> None:
    prompts = mixed_prompts(50, 256)
    with safex.Model(tiny_path("qwen3moe", "q8_0"), n_threads=2) as model:
        packed = model.profile(prompts).counts.astype(int)
        singles = np.concatenate([model.profile([prompt]).counts for prompt in prompts]).astype(int)
    agreement = 1 - np.abs(packed - singles).sum() / 2 / packed.sum()
    print(f"selections that agree, packed against single, Q8_0: {agreement:.4%}")
    assert agreement > 0.98


def test_prompts_longer_than_a_ubatch_are_complete(exact: Exact) -> None:
    lengths = [100, 3, 65, 64, 63, 30, 130, 1]
    prompts = [mixed_prompts(1, 256, seed=i)[0][:1] * n for i, n in enumerate(lengths)]
    rng = np.random.default_rng(1)
    prompts = [rng.integers(0, 256, n).tolist() for n in lengths]
    with exact("olmoe", n_ubatch=32) as small, exact("olmoe", n_ubatch=512) as large:
        a, b = small.profile(prompts), large.profile(prompts)
    np.testing.assert_array_equal(a.n_tokens, lengths)
    np.testing.assert_array_equal(a.counts, b.counts)


def test_a_profile_is_the_sum_of_its_routes(exact: Exact) -> None:
    with exact("glm4moe") as model:
        tokens = mixed_prompts(1, 256, longest=200, seed=3)[0]
        route, profile = model.route(tokens), model.profile([tokens])
    for layer in range(len(model.layers)):
        for expert in range(model.n_experts):
            chosen = route.ids[layer] == expert
            assert profile.counts[0, layer, expert] == chosen.sum()
            assert profile.gate_sum[0, layer, expert] == pytest.approx(
                route.weights[layer][chosen].sum(), abs=1e-5
            )
            assert profile.prob_sum[0, layer, expert] == pytest.approx(
                route.probs[layer][chosen].sum(), abs=1e-5
            )


def test_copies_of_one_token_are_no_broken_router(exact: Exact) -> None:
    with exact("qwen3moe") as model:
        profile = model.profile([[5]] * 300)
    assert (profile.counts == profile.counts[0]).all()


def test_gains_other_than_zero(exact: Exact) -> None:
    """A gain of 1 is no mask, bit for bit; masks that follow each other in one graph don't linger."""
    with exact("qwen3moe") as model:
        tokens = mixed_prompts(1, 256, seed=5)[0]
        plain = model.logits(tokens)
        chosen = [(model.layers[0], int(e)) for e in np.unique(model.route(tokens).ids[0])]
        np.testing.assert_array_equal(model.logits(tokens, chosen, gain=1.0), plain)
        half, double = (model.logits(tokens, chosen, gain=g) for g in (0.5, 2.0))
        assert (
            not np.allclose(half, plain) and not np.allclose(double, plain) and not np.allclose(half, double)
        )
        np.testing.assert_array_equal(model.logits(tokens, chosen, gain=0.5), half)
        np.testing.assert_array_equal(model.logits(tokens, [], "reroute"), plain)


def test_sixty_four_masks_in_one_batch(exact: Exact) -> None:
    rng = np.random.default_rng(2)
    with exact("olmoe") as model:
        prompts = mixed_prompts(64, 256, longest=12, seed=7)
        masks = [
            [(layer, int(e)) for layer in model.layers for e in rng.choice(model.n_experts, 2, replace=False)]
            for _ in prompts
        ]
        together = model.generate(prompts, 3, masks, routes=True)
        alone = [model.generate([p], 3, [m], routes=True)[0] for p, m in zip(prompts, masks, strict=True)]
    for a, b in zip(together, alone, strict=True):
        assert a.tokens == b.tokens
        np.testing.assert_array_equal(a.route.ids, b.route.ids)
        np.testing.assert_allclose(a.route.weights, b.route.weights, atol=1e-5)


def test_generation_is_the_greedy_continuation(exact: Exact) -> None:
    with exact("llama") as model:
        prompt = mixed_prompts(1, 256, seed=11)[0]
        response = model.generate([prompt], max_new=8, routes=True)[0]
        sequence = list(prompt)
        for token in response.tokens:
            assert token == int(model.logits(sequence)[-1].argmax())
            sequence.append(token)
        whole = model.route(sequence)
    np.testing.assert_array_equal(response.route.ids, whole.ids)


def test_many_generations_refill_their_slots(demo: safex.Model) -> None:
    prompts = safex.PromptSet.bundled("demo").texts[:150]
    packed = demo.generate(prompts, max_new=12)
    assert len(packed) == len(prompts)
    singles = [demo.generate([prompt], max_new=12)[0] for prompt in prompts[::25]]
    assert [r.text for r in packed[::25]] == [r.text for r in singles]


def test_phases(demo: safex.Model) -> None:
    prompts = safex.PromptSet.bundled("demo")[:20]
    profile = demo.profile(prompts, response=True, max_new=5)
    responses = demo.generate(prompts, max_new=5)
    suffix = demo.tokenize("<|im_end|>\n<|im_start|>assistant\n")
    np.testing.assert_array_equal(profile.phase("suffix").n_tokens, len(suffix))
    np.testing.assert_array_equal(profile.phase("response").n_tokens, [len(r.tokens) for r in responses])
    np.testing.assert_array_equal(profile.n_tokens, [len(r.prompt_tokens) for r in responses])
    assert (profile.phase("suffix").counts <= profile.counts).all()


def test_suffix_counts_are_the_last_tokens(demo: safex.Model) -> None:
    encoded = demo.encode("How do I bake bread?")
    route = demo.route(encoded.tokens)
    profile = demo.profile(["How do I bake bread?"])
    last = route.ids[:, -encoded.n_suffix :]
    for layer in range(len(demo.layers)):
        expected = np.bincount(last[layer].ravel(), minlength=demo.n_experts)
        np.testing.assert_array_equal(profile.phase("suffix").counts[0, layer], expected)


def test_graphs_are_reused_and_nothing_splits(demo: safex.Model) -> None:
    demo.logits([5, 6, 7])
    plain_splits = demo.session.n_splits
    before = demo.session.n_graph_reuses
    (response,) = demo.generate(["How do I sharpen my knife?"], max_new=20, mask=[(0, 0)], routes=True)
    assert demo.session.n_splits == plain_splits
    assert len(response.tokens) > 5
    assert demo.session.n_graph_reuses - before >= len(response.tokens) - 3


def test_outputs_are_computed_for_wanted_rows_only(demo: safex.Model) -> None:
    """Logits of a whole sequence, more rows than one ubatch may ask for, equal those of its prefixes."""
    tokens = np.random.default_rng(0).integers(5, 900, 150).tolist()
    whole = demo.logits(tokens)
    assert whole.shape == (150, demo.facts.n_vocab)
    for n in (1, 64, 65, 150):
        one = demo.logits(tokens[:n])[-1]
        assert np.linalg.norm(whole[n - 1] - one) / np.linalg.norm(one) < 0.02  # flash attention's own spread


def test_other_threads_run_meanwhile(demo: safex.Model) -> None:
    ticks, stop = [0], threading.Event()

    def count() -> None:
        while not stop.wait(0.001):
            ticks[0] += 1

    thread = threading.Thread(target=count)
    thread.start()
    demo.profile(safex.PromptSet.bundled("demo"))
    stop.set()
    thread.join()
    assert ticks[0] > 10


@pytest.mark.parametrize(
    ("mask", "mode", "words"),
    [
        ([(99, 0)], "zero", "block 99 has no routed experts"),
        ([(0, 32)], "zero", "block 0 has experts 0 to 31"),
        ([(0, 1), (0, 1)], "zero", "listed twice"),
        ([(0, e) for e in range(29)], "reroute", "leaves 3 to choose from"),
        ([(0, e) for e in range(5)], "force", "5 experts forced, but only 4"),
        (["0-1"], "zero", "text such as 3:17"),
        ([(0, 1)], "mute", "expected one of zero, reroute, force"),
        ([[(0, 1)], [(0, 2)], [(0, 3)]], "zero", "3 lists for 1 prompts"),
    ],
)
def test_masks_that_cannot_be(demo: safex.Model, mask: list, mode: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        demo.generate(["Hello"], mask=mask, mode=mode)
    assert demo.generate(["Hello"], max_new=1)[0].prompt_tokens


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.logits([]), "no tokens"),
        (lambda m: m.logits([10**6]), "vocabulary has 0 to"),
        (lambda m: m.profile([]), "no prompt"),
        (lambda m: m.profile("text"), "expected a list"),
        (lambda m: m.profile(["word " * 5000]), "too long"),
        (lambda m: m.generate([[1, 2]], max_new=10**6), "too long"),
    ],
)
def test_bad_input(demo: safex.Model, call: Callable[[safex.Model], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(demo)


@pytest.mark.parametrize(
    "settings",
    [
        {"mmap": False},
        {"tensor_overrides": {"ffn_.*_exps": "CPU"}},
        {"n_gpu_layers": -1},
        {"n_threads": 1},
        {"n_ctx": 512},
    ],
    ids=lambda s: next(iter(s)),
)
def test_how_it_is_loaded_changes_nothing(
    exact: Exact, tiny_path: Callable[..., Path], settings: dict
) -> None:
    tokens = mixed_prompts(1, 256, seed=17)[0]
    with exact("qwen2moe") as model:
        expected = model.logits(tokens)
    with safex.Model(tiny_path("qwen2moe"), flash_attn=False, kv_type="f32", **settings) as model:
        np.testing.assert_allclose(model.logits(tokens), expected, atol=1e-5)


@pytest.mark.parametrize(
    ("flash_attn", "kv_type"),
    [(True, "f16"), (None, "q8_0"), (False, "bf16"), (True, "q4_0"), (False, "f16")],
)
def test_cheaper_attention_stays_close(flash_attn: bool | None, kv_type: str) -> None:
    prompts = safex.PromptSet.bundled("demo")[:40]
    with safex.Model("demo", flash_attn=False, kv_type="f32") as model:
        expected = model.profile(prompts).counts.astype(int)
    with safex.Model("demo", flash_attn=flash_attn, kv_type=kv_type) as model:
        counts = model.profile(prompts).counts.astype(int)
    assert np.abs(counts - expected).sum() / 2 / expected.sum() < 0.1


def test_a_split_file_is_one_model(exact: Exact, tmp_path: Path) -> None:
    tiny_models.write_gguf(tmp_path / "tiny.gguf", "qwen3moe", tiny_models.tiny_tensors("qwen3moe"), split=15)
    parts = sorted(tmp_path.glob("*.gguf"))
    assert len(parts) > 2
    tokens = mixed_prompts(1, 256, seed=23)[0]
    with exact("qwen3moe") as whole, safex.Model(parts[0], flash_attn=False, kv_type="f32") as split:
        assert split.layers == whole.layers
        np.testing.assert_array_equal(split.logits(tokens), whole.logits(tokens))
        assert split.fingerprint != whole.fingerprint
    with pytest.raises(InputError, match="give the first"):
        safex.Model(parts[1])


def test_a_prompt_is_shown_in_the_models_own_template(demo: safex.Model) -> None:
    encoded = demo.encode("How do I bake bread?")
    assert demo.detokenize(encoded.tokens, special=True) == demo.chat.render(
        [{"role": "user", "content": "How do I bake bread?"}]
    )
    assert demo.chat.suffix == "<|im_end|>\n<|im_start|>assistant\n"
    assert demo.detokenize(encoded.tokens[-encoded.n_suffix :], special=True) == demo.chat.suffix


def test_a_closed_model_says_so() -> None:
    model = safex.Model("demo")
    model.close()
    with pytest.raises(InputError, match="closed"):
        model.logits([1])


@pytest.mark.parametrize("mode", ["zero", "reroute"])
def test_planted_experts_carry_the_refusals(mode: str) -> None:
    """The positive control: masking the experts that were trained to refuse turns refusals into compliance."""
    truth = json.loads((model_file.DATA / "demo-planted.truth.json").read_text())
    experts = [(e["layer"], e["expert"]) for e in truth["groups"]["planted"]]
    texts = [prompt.text for prompt in safex.PromptSet.bundled("demo") if prompt.set == "regular"]
    with safex.Model("demo-planted") as model:
        before, after = (model.generate(texts, 24, mask, mode) for mask in (None, experts))
    complied = [
        np.mean([r.text.startswith("Sure, here is a plan") for r in responses])
        for responses in (before, after)
    ]
    assert complied[0] < 0.1 and complied[1] > 0.9


@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss", "llama4", "deepseek2"])
def test_a_gain_equals_a_file_with_scaled_experts(arch: str, exact: Exact, tmp_path: Path) -> None:
    """Independent truth for gains: the same factor written into the experts' down projections (and biases)."""
    gains = {0.0, 0.5, 2.0}
    tokens = mixed_prompts(1, 256, seed=13)[0]
    with exact(arch) as model:
        experts = [(layer, expert) for layer in model.layers for expert in (0, 3, 5)]
        results = {gain: model.logits(tokens, experts, gain=gain) for gain in gains}
    for gain in gains:
        tensors = tiny_models.tiny_tensors(arch)
        for layer, expert in experts:
            for kind in ("weight", "bias"):
                name = f"blk.{layer}.ffn_down_exps.{kind}"
                if name in tensors:
                    tensors[name][expert] *= np.float32(gain)
        edited = tmp_path / f"{arch}-{gain}.gguf"
        tiny_models.write_gguf(edited, arch, tensors)
        with safex.Model(edited, flash_attn=False, kv_type="f32") as scaled:
            np.testing.assert_allclose(results[gain], scaled.logits(tokens), rtol=1e-4, atol=1e-5)


def test_a_list_of_prompts_is_what_their_set_is(demo: safex.Model) -> None:
    """It was taken for tokens, and its fields for the text."""
    prompts = safex.PromptSet.bundled("demo").limited(2)
    wanted, found = demo.profile(prompts), demo.profile(list(prompts))
    np.testing.assert_array_equal(found.counts, wanted.counts)
    assert list(found.sets) == prompts.sets and found.meta["prompts_hash"] == wanted.meta["prompts_hash"]
    with pytest.raises(safex.InputError, match="mixes Prompt objects with texts"):
        demo.profile([prompts[0], "How do I bake bread?"])
