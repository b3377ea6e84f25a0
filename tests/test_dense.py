"""Dense models: they load, compute what NumPy computes, are evaluated, and refuse what needs routed experts."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dense_reference
import numpy as np
import pytest
import tiny_models
from cli_runner import STEADY, Ran, cli

import safex
from safex.errors import UnsupportedError
from safex.evaluation import evaluate
from safex.trace import trace

Exact = Callable[..., safex.Model]
TinyPath = Callable[..., Path]
DENSE = sorted(tiny_models.DENSE_SPECS)
REASON = r"dense-llama-f32\.gguf: a dense model \(architecture llama\): it has no routed experts to profile or mask$"


def expected(arch: str, tokens: list[int]) -> np.ndarray:
    return dense_reference.logits(tiny_models.tiny_tensors(arch), tiny_models.metadata(arch), arch, tokens)


def log_softmax(rows: np.ndarray) -> np.ndarray:
    rows = rows - rows.max(axis=-1, keepdims=True)
    return rows - np.log(np.exp(rows).sum(axis=-1, keepdims=True))


def relative(actual: np.ndarray, truth: np.ndarray) -> float:
    return float(np.linalg.norm(actual - truth) / np.linalg.norm(truth))


def token_lists(n: int, longest: int = 60) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, rng.integers(1, longest)).tolist() for _ in range(n)]


# --- what they compute


@pytest.mark.parametrize("arch", DENSE)
def test_a_dense_model_has_no_experts(arch: str, exact: Exact) -> None:
    with exact(arch) as model:
        assert (model.layers, model.top_k_of_layers, model.n_experts, model.top_k) == ([], [], 0, 0)
        assert model.facts.n_blocks == 4 and model.facts.architecture == arch.removeprefix("dense-")
        assert model.detokenize(model.tokenize("the <|im_end|>"), special=True) == "the <|im_end|>"
        assert model.encode("Hi").tokens[0] == tiny_models.IM_START


@pytest.mark.parametrize("arch", DENSE)
def test_logits_are_those_of_numpy(arch: str, exact: Exact) -> None:
    with exact(arch, n_ubatch=32) as model:
        for tokens in ([5], token_lists(1)[0], list(range(100))):
            assert relative(model.logits(tokens), expected(arch, tokens)) < 1e-5


@pytest.mark.parametrize("arch", DENSE)
def test_packed_batches_compute_the_same(arch: str, exact: Exact) -> None:
    """150 prompts at once: all log-probabilities behind each, and behind each token of a forced beginning."""
    prompts, beginning = token_lists(150), [7, 200]
    with exact(arch, n_ubatch=128) as model:
        found = model.score(prompts, range(tiny_models.VOCAB), continuation=beginning)
    for tokens, rows in zip(prompts, found, strict=True):
        truth = log_softmax(expected(arch, tokens + beginning)[len(tokens) - 1 :])
        assert relative(rows, truth) < 1e-5


@pytest.mark.parametrize("arch", DENSE)
def test_answers_are_the_greedy_continuation(arch: str, exact: Exact) -> None:
    prompts = token_lists(40, longest=30)
    with exact(arch, n_ubatch=64) as model:
        answers = model.generate(prompts, max_new=6)
    for tokens, answer in zip(prompts, answers, strict=True):
        for token in answer.tokens:
            scores = expected(arch, tokens)[-1]
            assert scores.max() - scores[token] < 1e-4
            tokens = [*tokens, token]


def test_answers_of_a_quantized_dense_model_in_a_chat(tiny_path: TinyPath) -> None:
    with safex.Model(tiny_path("dense-llama", "q8_0"), n_threads=2) as model:
        (answer,) = model.generate(["How do I bake bread?"], max_new=4, mask=[[]])
        assert answer.prompt_tokens == model.encode("How do I bake bread?").tokens and answer.route is None
        assert model.quant_type == "Q8_0"


def test_a_split_dense_model(tmp_path: Path, exact: Exact) -> None:
    tensors = tiny_models.tiny_tensors("dense-llama")
    tiny_models.write_gguf(tmp_path / "tiny.gguf", "dense-llama", tensors, split=15)
    first = min(tmp_path.glob("*.gguf"))
    with safex.Model(first, flash_attn=False, kv_type="f32") as split, exact("dense-llama") as whole:
        assert split.layers == []
        np.testing.assert_array_equal(split.logits([5, 6]), whole.logits([5, 6]))


# --- what they refuse


CALLS: dict[str, Callable[[safex.Model, Any], object]] = {
    "profile": lambda model, heard: model.profile(["a"], progress=lambda *_: heard.append(1)),
    "route": lambda model, _: model.route([5, 6]),
    "routes of answers": lambda model, heard: model.generate(["a"], routes=True, on_tokens=heard.append),
    "generate": lambda model, heard: model.generate(["a"], mask=["0:1"], on_tokens=heard.append),
    "generate, one mask": lambda model, heard: model.generate(
        ["a", "b"], mask=[None, ["0:1"]], on_tokens=heard.append
    ),
    "score": lambda model, heard: model.score(["a"], [5], ["0:1"], on_tokens=heard.append),
    "logits": lambda model, _: model.logits([5, 6], ["0:1"], "reroute"),
    "masked": lambda model, _: model.masked(["0:1"]).__enter__(),
    "trace": lambda model, heard: trace(model, "a", on_tokens=heard.append),
    "evaluate": lambda model, heard: evaluate(
        model, [], ["0:1"], judges=(), progress=lambda *_: heard.append(1)
    ),
    "require_experts": lambda model, _: model.require_experts(),
}


@pytest.mark.parametrize("call", CALLS)
def test_what_needs_experts_is_refused_before_anything_is_computed(call: str, exact: Exact) -> None:
    heard: list[int] = []
    with exact("dense-llama") as model:
        before = model.logits([5, 6])
        with pytest.raises(UnsupportedError, match=REASON):
            CALLS[call](model, heard)
        assert not heard and model._default is None
        np.testing.assert_array_equal(model.logits([5, 6], []), before)


def test_a_refused_profile_leaves_no_file(tmp_path: Path, exact: Exact) -> None:
    with exact("dense-llama") as model, pytest.raises(UnsupportedError, match=REASON):
        model.profile(["a"], output=tmp_path / "a.profile.gguf")
    assert not list(tmp_path.iterdir())


def test_models_that_cannot_continue_a_text(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """LLaDA has Llama's tensors, sees the whole text at once, and has no KV cache."""
    monkeypatch.setitem(tiny_models.DENSE_SPECS, "dense-llada", tiny_models.DENSE_SPECS["dense-llama"])
    path = tiny_models.write_tiny(tmp_path / "llada.gguf", "dense-llada")
    with pytest.raises(UnsupportedError, match=r"llada\.gguf: architecture llada takes whole texts"):
        safex.Model(path)


# --- on the command line


@pytest.fixture
def folder(tmp_path: Path, tiny_path: TinyPath) -> Path:
    """A folder with a dense model and a few prompts of each set."""
    (tmp_path / "dense.gguf").symlink_to(tiny_path("dense-llama"))
    for name, n in (("regular", 4), ("jailbreak", 4), ("benign", 3)):
        texts = (f"A {name} request, number {i}" for i in range(n))
        (tmp_path / f"{name}.txt").write_text("\n".join(texts) + "\n")
    return tmp_path


SETS = [word for name in ("regular", "jailbreak", "benign") for word in ("--prompts", f"{name}={name}.txt")]


def dense_cli(folder: Path, command: str, *words: object) -> Ran:
    return cli(command, "dense.gguf", *words, *STEADY, cwd=folder)


def test_info_describes_a_dense_model(folder: Path) -> None:
    done = dense_cli(folder, "info", "--json")
    facts = done.json
    assert (facts["architecture"], facts["parameters"], facts["quant_type"]) == ("llama", 160_320, "F32")
    assert facts["dense"] and (facts["layers"], facts["experts"], facts["top_k"]) == ([], 0, 0)
    lines = [" ".join(line.split()) for line in done.err.splitlines()]
    for line in ("architecture llama", "parameters 160,320", "quantization F32", "blocks 4"):
        assert line in lines
    assert "experts no routed experts (dense)" in lines
    assert not any(line.startswith(("layers with", "experts per", "selected per")) for line in lines)
    assert cli("info", "demo", "--json", "--quiet", *STEADY).json["dense"] is False


@pytest.mark.parametrize(
    "words",
    [
        ["profile", "--prompts", "benign=benign.txt"],
        ["trace", "a prompt"],
        ["sweep", "--all", *SETS],
        ["sweep", "--experts", "0:1", *SETS],
        ["eval", "--mask", "0:1", *SETS],
    ],
    ids=lambda words: " ".join(words[:2]),
)
def test_commands_that_need_experts(folder: Path, words: list[str]) -> None:
    before = sorted(folder.iterdir())
    done = dense_cli(folder, words[0], *words[1:])
    done.fails(2, "dense.gguf: a dense model (architecture llama)", "no routed experts to profile or mask")
    assert sorted(folder.iterdir()) == before


def test_eval_gives_the_columns_before_jailbreak_and_benign(folder: Path) -> None:
    done = dense_cli(folder, "eval", *SETS, "--max-new", 8, "--json")
    result = done.json
    (found,) = result["results"].values()
    assert [(row["set"], row["before"]["n"]) for row in found["sets"]] == [
        ("regular", 4),
        ("jailbreak", 4),
        ("benign", 3),
    ]
    assert not any("after" in row for row in found["sets"])
    assert found["jailbreak"].keys() >= {"before", "after"} and found["controls"] == []
    before = [row["before"] for row in found["sets"]]  # a random model may write nothing that can be read
    assert all((row["refuse"] is None) == (row["readable"] == 0) for row in before)
    assert (result["mask"], result["utility"]) == (None, None)
    assert "No mask was given" in result["conclusion"] and "jailbreak" in result["conclusion"]
    assert [line for line in done.err.splitlines() if line.split()[:3] == ["jailbreak", "none", "4"]]
    records = safex.responses.load(folder / "dense.responses.jsonl").records
    assert len(records) == 11 and {record.mask for record in records} == {"none"}


def test_eval_of_a_dense_model_goes_on(folder: Path) -> None:
    words = [*SETS, "--max-new", 8, "--quiet"]
    assert dense_cli(folder, "eval", *words).code == 0
    answers = folder / "dense.responses.jsonl"
    whole = safex.responses.load(answers).records
    lines = answers.read_text().splitlines(keepends=True)
    answers.write_text("".join(lines[:5]))
    assert dense_cli(folder, "eval", *words, "--resume").code == 0
    assert safex.responses.load(answers).records == whole
    assert json.loads((folder / "dense.eval.json").read_text())["model"]["model.architecture"] == "llama"
