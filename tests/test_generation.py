"""Generation and scores: samples, stop strings, reasoning, phases, shared beginnings, thousands of masks."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import safex
from safex.errors import InputError
from safex.generation import Response, opened_by, split_reasoning

Exact = Callable[..., safex.Model]
Experts = list[tuple[int, int]]


@pytest.fixture(scope="module")
def demo() -> Any:
    with safex.Model("demo", n_threads=1) as model:
        yield model


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return safex.PromptSet.bundled("demo").texts


def random_masks(model: safex.Model, n: int, size: int = 1, seed: int = 0) -> list[Experts]:
    rng = np.random.default_rng(seed)
    return [
        [(layer, int(e)) for layer in model.layers for e in rng.choice(model.n_experts, size, replace=False)]
        for _ in range(n)
    ]


def random_prompts(n: int, shared: int = 0, longest: int = 20, seed: int = 0) -> list[list[int]]:
    """Raw prompts, the first ``shared`` tokens of which are the same."""
    rng = np.random.default_rng(seed)
    start = rng.integers(0, 256, shared).tolist()
    return [start + rng.integers(0, 256, rng.integers(1, longest)).tolist() for _ in range(n)]


def log_softmax(logits: np.ndarray) -> np.ndarray:
    rows = logits.astype(np.float64)
    rows -= rows.max(axis=-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))


# --- masks


@pytest.mark.parametrize("arch", ["qwen3moe", "deepseek2", "demo"])
@pytest.mark.parametrize("mode", ["zero", "reroute"])
def test_sixty_four_masks_in_one_batch_equal_single_runs(exact: Exact, arch: str, mode: str) -> None:
    settings: dict[str, Any] = {"n_threads": 1, "flash_attn": False, "kv_type": "f32"}
    with safex.Model("demo", **settings) if arch == "demo" else exact(arch) as model:
        prompts = random_prompts(64, longest=30)
        masks = random_masks(model, 64, 3)
        targets = list(range(0, model.facts.n_vocab, 7))
        together = model.generate(prompts, 6, masks, mode)
        scores = model.score(prompts, targets, masks, mode)
        differ = 0
        for prompt, mask, response, score in zip(prompts, masks, together, scores, strict=True):
            differ += response.tokens != model.generate([prompt], 6, mask, mode)[0].tokens
            alone = log_softmax(model.logits(prompt, mask, mode)[-1])[targets]
            error = np.linalg.norm(score[0] - alone) / np.linalg.norm(alone)
            assert error < (1e-4 if arch != "demo" else 0.02)  # the demo's weights are Q8_0
    assert differ <= (0 if arch != "demo" else 3)


@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss", "llama"])
@pytest.mark.parametrize("n", [16, 64])
def test_flash_attention_over_many_sequences_is_that_of_single_ones(
    tiny_path: Callable[..., Path], arch: str, n: int
) -> None:
    """Few cells are open to each token then, and attention goes token by token; its own rounding is 1e-3."""
    prompts = random_prompts(n, longest=30)
    with safex.Model(tiny_path(arch), flash_attn=True, kv_type="f32", n_threads=1) as model:
        together = model.generate(prompts, 12, routes=True)
        alone = [model.generate([prompt], 12, routes=True)[0] for prompt in prompts]
    same = [(a.route, b.route) for a, b in zip(together, alone, strict=True) if a.tokens == b.tokens]
    assert len(same) > 0.9 * n  # greedy choices between tokens that are nearly as probable may differ
    same = [(a, b) for a, b in same if np.array_equal(a.ids, b.ids)]
    assert len(same) > 0.9 * n
    for a, b in same:
        assert np.linalg.norm(a.weights - b.weights) < 2e-3 * np.linalg.norm(b.weights)


def test_thousands_of_masks_need_one_graph(demo: safex.Model) -> None:
    tokens = demo.encode("How do I bake bread?").tokens
    masks = random_masks(demo, 2000, 2)
    demo.score([tokens] * 100, [5], mask=masks[:100])
    before = demo.session.n_graph_reuses
    scores = demo.score([tokens] * 2000, [5, 6], mask=masks)
    ubatches = 2000 * len(tokens) / 512
    assert demo.session.n_graph_reuses - before > 0.8 * ubatches
    single = np.concatenate([demo.score([tokens], [5, 6], mask=m) for m in masks[::100]])
    error = np.linalg.norm(scores[::100] - single) / np.linalg.norm(single)
    assert error < 0.01  # the demo's weights are Q8_0


@pytest.mark.parametrize("phase", ["prompt", "response"])
def test_a_mask_of_one_phase(exact: Exact, phase: str) -> None:
    """Rerouted experts are missing exactly in that phase; the prompt's routes are those of a run with or without."""
    with exact("olmoe") as model:
        (mask,) = random_masks(model, 1, 2)
        (prompt,) = random_prompts(1, shared=30)
        (response,) = model.generate([prompt], 8, mask, "reroute", phase=phase, routes=True)
        n = len(prompt)
        expected = model.route(prompt, mask if phase == "prompt" else None, "reroute").ids
        answer = response.route.ids[:, n:]
        first = model.score([prompt], [1, 2], mask, "reroute", phase=phase)
        logits = model.logits(prompt, mask if phase == "prompt" else None, "reroute")
    np.testing.assert_array_equal(response.route.ids[:, :n], expected)
    np.testing.assert_allclose(first[0, 0], log_softmax(logits[-1])[[1, 2]], atol=1e-5)
    used = [(layer, int(e)) for row, layer in enumerate(model.layers) for e in np.unique(answer[row])]
    assert bool(set(used) & set(mask)) == (phase == "prompt")


def test_masked_is_the_mask_where_none_is_given(demo: safex.Model) -> None:
    mask = random_masks(demo, 1, 6)[0]
    tokens = [5, 6, 7, 8]
    plain, expected = demo.logits(tokens), demo.logits(tokens, mask, "reroute")
    with demo.masked(mask, "reroute"):
        np.testing.assert_array_equal(demo.logits(tokens), expected)
        np.testing.assert_array_equal(demo.logits(tokens, []), plain)
        np.testing.assert_array_equal(demo.route(tokens).ids, demo.route(tokens, mask, "reroute").ids)
        with demo.masked(mask[:1]):
            np.testing.assert_array_equal(demo.score([tokens], [1]), demo.score([tokens], [1], mask[:1]))
        np.testing.assert_array_equal(demo.logits(tokens), expected)
    np.testing.assert_array_equal(demo.logits(tokens), plain)
    with pytest.raises(InputError, match="phase is 'answer'"), demo.masked(mask, phase="answer"):
        pass


# --- scores


@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss", "llama4"])
def test_scores_are_log_probabilities(exact: Exact, arch: str) -> None:
    with exact(arch) as model:
        prompts = random_prompts(70, shared=20)
        masks = [None if i % 3 == 0 else m for i, m in enumerate(random_masks(model, 70, 2))]
        targets, continuation = [0, 255, 7, 7], [3, 1, 4]
        scores = model.score(prompts, targets, masks, continuation=continuation)
        assert scores.shape == (70, 4, 4) and scores.dtype == np.float32
        for prompt, mask, score in list(zip(prompts, masks, scores, strict=True))[::5]:
            logits = model.logits(prompt + continuation, mask)[-4:]
            np.testing.assert_allclose(score, log_softmax(logits)[:, targets], atol=1e-5)


def test_scores_of_nothing(demo: safex.Model) -> None:
    assert demo.score([], [1, 2]).shape == (0, 1, 2)
    assert demo.score(["Hello"], [], continuation=[1]).shape == (1, 2, 0)


# --- samples


@pytest.mark.parametrize("arch", ["qwen3moe", "gpt-oss"])
def test_samples_depend_on_nothing_but_their_seed(exact: Exact, arch: str) -> None:
    with exact(arch) as model:
        prompts = random_prompts(30, shared=25)
        how: dict[str, Any] = {"max_new": 6, "n_samples": 4, "temperature": 1.2, "top_p": 0.9}
        batch = model.generate(prompts, seed=5, **how)
        assert [r.tokens for r in model.generate(prompts, seed=5, **how)] == [r.tokens for r in batch]
        assert [r.tokens for r in model.generate(prompts, seed=6, **how)] != [r.tokens for r in batch]
        first = model.generate(prompts[:1], seed=5, **how)
        assert [r.tokens for r in first] == [r.tokens for r in batch[:4]]
        more = model.generate(prompts[:1], seed=5, **{**how, "n_samples": 9})
        assert [r.tokens for r in more[:4]] == [r.tokens for r in batch[:4]]
    assert len({tuple(r.tokens) for r in batch[:4]}) > 1


def test_top_p_keeps_the_most_probable(exact: Exact) -> None:
    with exact("qwen3moe") as model:
        (prompt,) = random_prompts(1, shared=10)
        probabilities = np.exp(log_softmax(model.logits(prompt)[-1]))
        ranked = np.argsort(-probabilities)
        kept = ranked[: int(np.searchsorted(np.cumsum(probabilities[ranked]), 0.3)) + 1]
        responses = model.generate([prompt], 1, n_samples=600, temperature=1.0, top_p=0.3)
        drawn = [r.tokens[0] for r in responses if r.tokens]
    assert set(drawn) <= set(kept.tolist())
    expected = probabilities[kept] / probabilities[kept].sum()
    observed = np.array([drawn.count(int(token)) for token in kept])
    ended = len(responses) - len(drawn)  # an end-of-generation token is no token of the answer
    assert (np.abs(observed - 600 * expected) < 5 * np.sqrt(600 * expected) + 3 + ended).all()


def test_samples_of_a_prompt_stand_together(demo: safex.Model, texts: list[str]) -> None:
    heard: dict[int, Response] = {}
    responses = demo.generate(
        texts[:5], 8, n_samples=3, temperature=1.0, on_response=lambda i, r: heard.update({i: r})
    )
    assert [r.prompt_tokens for r in responses] == [
        demo.encode(t).tokens for t in texts[:5] for _ in range(3)
    ]
    assert [heard[i] for i in range(15)] == responses


def test_greedy_samples_are_copies(demo: safex.Model, texts: list[str]) -> None:
    responses = demo.generate(texts[:2], 8, n_samples=2)
    assert responses[0].tokens == responses[1].tokens == demo.generate(texts[:1], 8)[0].tokens


def test_common_beginnings_are_computed_once(exact: Exact) -> None:
    """Samples share their prompt, prompts with one mask their first tokens; routes are everybody's own."""
    with exact("qwen3moe") as model:
        prompts = random_prompts(40, shared=100)
        n_prompt = sum(map(len, prompts))
        masks = [[(0, 1), (1, 2)] if i % 2 else None for i in range(40)]

        def tokens_computed(**how: Any) -> int:
            ticks: list[int] = []
            model.generate(prompts, 2, masks, on_tokens=ticks.append, **how)
            return ticks[-1]

        assert tokens_computed() <= 2 * 100 + (n_prompt - 40 * 100) + 2 * 40
        assert tokens_computed(n_samples=5) <= 2 * 100 + 5 * ((n_prompt - 40 * 100) + 2 * 40)
        assert tokens_computed(routes=True) >= n_prompt
    with exact("gpt-oss") as model:  # a sliding window: nothing can be shared
        assert tokens_computed() >= n_prompt


# --- stop strings and callbacks


def test_an_answer_ends_before_its_stop_string(demo: safex.Model, texts: list[str]) -> None:
    prompts = texts[-40:]
    whole = demo.generate(prompts, 24)
    stopped = demo.generate(prompts, 24, stop=["plan: f", "it"])
    assert any(r.finish == "stop" and "it" in w.text for r, w in zip(stopped, whole, strict=True))
    for r, w in zip(stopped, whole, strict=True):
        ends = [w.text.find(s) for s in ("plan: f", "it") if s in w.text]
        assert r.text == w.text[: min(ends)] if ends else r == w
        assert r.tokens == w.tokens[: len(r.tokens)]
        assert not ends or w.text.find("it") < 0 or "it" in demo.detokenize(r.tokens) or "plan: f" in w.text


def test_routes_cover_the_stop_string(demo: safex.Model) -> None:
    (response,) = demo.generate(["How do I bake bread?"], 24, stop="plan", routes=True)
    assert response.finish == "stop" and "plan" not in response.text
    assert response.route.ids.shape[1] == len(response.prompt_tokens) + len(response.tokens)


def test_what_a_callback_raises_ends_the_run(demo: safex.Model, texts: list[str]) -> None:
    heard: list[int] = []

    def refuse(index: int, _response: Response) -> None:
        heard.append(index)
        if len(heard) == 3:
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        demo.generate(texts[:100], 4, on_response=refuse)
    assert len(heard) == 3
    assert len(demo.generate(texts[:2], 4)) == 2


def test_a_callback_cannot_run_the_model(demo: safex.Model) -> None:
    with pytest.raises(InputError, match="can't run it again"):
        demo.generate(["Hello"], 2, on_response=lambda i, r: demo.logits([1]) and None)
    assert demo.logits([1]).shape[0] == 1


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"temperature": -0.5}, "temperature is -0.5"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "temperature is inf"),
        ({"top_p": 0.0}, "top_p is 0.0"),
        ({"top_p": 1.5}, "top_p is 1.5"),
        ({"n_samples": 0}, "n_samples is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"stop": ["x", ""]}, "a stop string is empty"),
        ({"phase": "answer"}, "phase is 'answer', expected one of prompt, response, both"),
        ({"max_new": 10**6}, "too long"),
    ],
)
def test_settings_out_of_range(demo: safex.Model, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words):
        demo.generate(["Hello"], **settings)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda m: m.score(["Hello"], [10**6]), "the list of targets holds token 1000000"),
        (lambda m: m.score(["Hello"], [1], continuation=[-1]), "holds token -1"),
        (lambda m: m.score(["Hello"], [1], continuation=[1] * 5000), "too long"),
        (lambda m: m.score(["Hello"], [1], mask=[(9, 0)]), "block 9 has no routed experts"),
        (lambda m: m.score("Hello", [1]), "expected a list"),
        (lambda m: m.generate("Hello"), "expected a list"),
    ],
)
def test_bad_scores(demo: safex.Model, call: Callable[[safex.Model], object], words: str) -> None:
    with pytest.raises(InputError, match=words):
        call(demo)


# --- reasoning


@pytest.mark.parametrize(
    ("text", "reasoning", "answer"),
    [
        ("Just bread.", "", "Just bread."),
        ("", "", ""),
        ("<think>\nBread?\n</think>\n\nTake flour.", "Bread?", "Take flour."),
        ("<think></think>Flour.", "", "Flour."),
        ("<think>", "", ""),
        ("<think>Bread? I'm sorry", "Bread? I'm sorry", ""),
        ("Bread?</think>Flour.", "Bread?", "Flour."),
        ("One.<think>a</think>Two.<think>b</think>Three.", "a\nb", "One.\nTwo.\nThree."),
        ("<think>a</think>Flour.<think>b", "a\nb", ""),
        ("<thinking>a</thinking> Flour.", "a", "Flour."),
        ("<reasoning>a</reasoning>Flour.", "a", "Flour."),
        ("<|channel|>analysis<|message|>Bread?<|end|><|start|>assistant<|channel|>final<|message|>Flour.<|return|>",
         "Bread?", "Flour."),
        ("<|channel|>analysis<|message|>Bread? Let me", "Bread? Let me", ""),
        ("<|channel|>final<|message|>Flour.", "", "Flour."),
        ("<|channel|>commentary to=tool<|message|>x<|call|>", "", "x"),
    ],
)  # fmt: skip
def test_reasoning_is_told_from_the_answer(text: str, reasoning: str, answer: str) -> None:
    assert split_reasoning(text) == (reasoning, answer)
    response = Response(text, [], "stop", [])
    assert (response.reasoning, response.answer) == (reasoning, answer)


def test_a_block_that_the_prompt_opened() -> None:
    assert opened_by("<|im_start|>assistant\n<think>\n") == "<think>"
    assert opened_by("<|im_start|>assistant\n<think>\n\n</think>\n\n") == ""
    response = Response("Bread? Let me", [], "length", [], marked="<think>Bread? Let me")
    assert (response.text, response.reasoning, response.answer) == ("Bread? Let me", "Bread? Let me", "")


def test_an_answer_without_reasoning_is_the_text(demo: safex.Model, texts: list[str]) -> None:
    for response in demo.generate(texts[:3], 12):
        assert response.answer == response.text and response.reasoning == ""
