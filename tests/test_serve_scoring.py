"""``serve`` scores text: echoed log-probabilities are those of our session, also to lm-eval's own client."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from cli_runner import environment
from test_serve import DATA, Running, serving

import safex

TEXTS = [
    "<|im_start|>user\nHow do I bake bread?<|im_end|>\n<|im_start|>assistant\nMix flour",
    "The sky is blue and the sea is deep.",
    "Zürich → 東京 😀",
]
LISTED, MASK = "0:1,3:4", [(0, 1), (3, 4)]
BOS = 0
EXACT: dict[str, Any] = {"n_threads": 1, "flash_attn": False, "kv_type": "f32"}


def with_bos(path: Path) -> Path:
    """The demo model as one whose prompts begin with a token of their own."""
    shutil.copy(DATA / "demo.gguf", path)
    reader = gguf.GGUFReader(path, "r+")
    field = reader.fields["tokenizer.ggml.add_bos_token"]
    field.parts[field.data[0]][0] = 1
    del reader
    return path


@pytest.fixture(scope="module", params=["no BOS", "BOS"])
def served(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Running, safex.Model]]:
    folder = tmp_path_factory.mktemp("scoring")
    path = with_bos(folder / "bos.gguf") if request.param == "BOS" else DATA / "demo.gguf"
    with (
        serving(folder / "errors", path, "--mask", LISTED, "--logprobs", "--n-cpu-moe", 2) as running,
        safex.Model(path, **EXACT) as model,
    ):
        yield running, model


def ask(running: Running, prompt: object, **options: Any) -> dict[str, Any]:
    body = {"prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": 1, "echo": True, **options}
    status, answer = running.post(json.dumps(body).encode(), "completions")
    assert status == 200, answer
    return answer


def logprobs(model: safex.Model, tokens: list[int]) -> np.ndarray:
    """Row i: of the token that follows token i, under the mask."""
    logits = model.logits(tokens, mask=MASK).astype(np.float64)
    shifted = logits - logits.max(1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(1, keepdims=True)))


def tokenized(model: safex.Model, text: str) -> list[int]:
    return ([BOS] if model.facts.adds_bos else []) + model.tokenize(text)


@pytest.mark.parametrize("text", TEXTS)
def test_echoed_logprobs_are_those_of_our_session(served: tuple[Running, safex.Model], text: str) -> None:
    running, model = served
    tokens = tokenized(model, text)
    bos = int(model.facts.adds_bos)
    answer = ask(running, text, max_tokens=3)
    (choice,) = answer["choices"]
    found = choice["logprobs"]
    n_prompt = len(tokens) - bos
    made = len(found["tokens"]) - n_prompt
    ended = found["tokens"][-1] == "<|im_end|>"
    assert 1 <= made <= 3 and ended == (choice["finish_reason"] == "stop") and (ended or made == 3)
    assert choice["text"].startswith(text)
    rows = logprobs(model, tokens)
    wanted = [rows[at, tokens[at + 1]] for at in range(bos, len(tokens) - 1)]
    assert found["token_logprobs"][0] is None and found["top_logprobs"][0] is None
    np.testing.assert_allclose(found["token_logprobs"][1:n_prompt], wanted, atol=2e-4)
    np.testing.assert_allclose(found["token_logprobs"][n_prompt], rows[-1].max(), atol=2e-4)
    for at, best in enumerate(found["top_logprobs"][1:n_prompt], bos):
        np.testing.assert_allclose(max(best.values()), rows[at].max(), atol=2e-4)
    n_made = made - ended
    assert answer["usage"] == {
        "prompt_tokens": len(tokens),
        "completion_tokens": n_made,
        "total_tokens": len(tokens) + n_made,
    }


def test_score_agrees(served: tuple[Running, safex.Model]) -> None:
    """The first token of an answer, by ``Model.score`` and by the server."""
    running, model = served
    prompt = model.encode("How do I bake bread?")
    tokens = list(prompt.tokens)
    target = int(model.logits(tokens, mask=MASK)[-1].argmax())
    score = model.score([tokens], [target, 5, 9], mask=MASK)[0, 0]
    for token, wanted in zip((target, 5, 9), score, strict=True):
        found = ask(running, [[*tokens, token]])["choices"][0]["logprobs"]
        assert len(found["token_logprobs"]) == len(tokens) + 2
        assert found["token_logprobs"][len(tokens)] == pytest.approx(wanted, abs=2e-4)


@pytest.mark.parametrize("nested", [False, True])
def test_prompts_of_tokens(served: tuple[Running, safex.Model], nested: bool) -> None:
    running, model = served
    tokens = tokenized(model, TEXTS[0])
    found = ask(running, [tokens] if nested else tokens)["choices"][0]["logprobs"]
    rows = logprobs(model, tokens)
    wanted = [rows[at, tokens[at + 1]] for at in range(len(tokens) - 1)]
    np.testing.assert_allclose(found["token_logprobs"][1 : len(tokens)], wanted, atol=2e-4)
    plain = ask(running, tokens, echo=False, max_tokens=4)["choices"][0]
    echoed = ask(running, tokens, max_tokens=4)["choices"][0]
    assert echoed["text"].endswith(plain["text"]) and len(plain["logprobs"]["tokens"]) == 4
    np.testing.assert_allclose(echoed["logprobs"]["token_logprobs"][-4:], plain["logprobs"]["token_logprobs"])


def test_no_new_token(served: tuple[Running, safex.Model]) -> None:
    running, _ = served
    answer = ask(running, TEXTS[1], max_tokens=0)
    assert answer["choices"][0]["text"] == TEXTS[1]
    assert answer["usage"]["completion_tokens"] == 0
    longer = ask(running, TEXTS[1])["choices"][0]["logprobs"]
    assert answer["choices"][0]["logprobs"]["token_logprobs"] == longer["token_logprobs"][:-1]


def test_an_answer_that_ends_at_once_counts_its_token(served: tuple[Running, safex.Model]) -> None:
    """Clients drop the last entry as the made one: where it was missing they dropped one of the prompt."""
    running, model = served
    tokens = list(model.encode("How do I bake bread?").tokens)
    answer = model.generate([tokens], max_new=64, mask=MASK)[0]
    assert answer.finish == "stop"
    whole = [*tokens, *answer.tokens]
    while int(model.logits(whole, mask=MASK)[-1].argmax()) != model.facts.eos:
        whole = whole[:-1]
        assert len(whole) > len(tokens)
    found = ask(running, whole)["choices"][0]
    assert len(found["logprobs"]["tokens"]) == len(whole) + 1
    assert found["logprobs"]["tokens"][-1] == "<|im_end|>" and found["finish_reason"] == "stop"


def test_echo_without_logprobs_and_in_a_stream(served: tuple[Running, safex.Model]) -> None:
    running, _ = served
    body: dict[str, Any] = {"prompt": TEXTS[1], "max_tokens": 2, "temperature": 0, "echo": True}
    status, answer = running.post(json.dumps(body).encode(), "completions")
    assert status == 200 and answer["choices"][0]["text"].startswith(TEXTS[1])
    assert answer["choices"][0]["logprobs"] is None
    status, answer = running.post(json.dumps({**body, "stream": True}).encode(), "completions")
    assert status == 400 and "echo is not offered in a stream" in answer["error"]["message"]


def test_scores_need_the_option(tmp_path: Path) -> None:
    with serving(tmp_path / "errors", "demo") as running:
        body = {"prompt": "a b", "max_tokens": 1, "logprobs": 1, "echo": True}
        status, answer = running.post(json.dumps(body).encode(), "completions")
    assert status == 400 and "start the server with --logprobs" in answer["error"]["message"]


# --- lm-eval

CLIENT = """
import json, sys

from lm_eval.api.instance import Instance
from lm_eval.models.openai_completions import LocalCompletionsAPI

url, model, folder, tokenized, pairs = sys.argv[1:]
api = LocalCompletionsAPI(base_url=url + "/completions", model=model, tokenizer=folder,
                          tokenizer_backend="huggingface", tokenized_requests=tokenized == "1", max_length=512)
asked = [Instance("loglikelihood", {}, tuple(pair), i) for i, pair in enumerate(json.loads(pairs))]
print("RESULT", json.dumps(api.loglikelihood(asked)))
"""


def lm_eval_python() -> str:
    """An interpreter with lm-eval: this one, or the one that SAFEX_LM_EVAL_PYTHON names."""
    if importlib.util.find_spec("lm_eval"):
        return sys.executable
    other = os.environ.get("SAFEX_LM_EVAL_PYTHON")
    if not other:
        pytest.skip("needs lm-eval (pip install 'lm-eval[api]' transformers), or SAFEX_LM_EVAL_PYTHON")
    return other


def write_tokenizer(folder: Path) -> None:
    """The demo's tokenizer as transformers reads it."""
    fields = gguf.GGUFReader(DATA / "demo.gguf").fields
    tokens, merges = (fields[f"tokenizer.ggml.{name}"].contents() for name in ("tokens", "merges"))
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
    flags = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    model = {"type": "BPE", "vocab": {token: i for i, token in enumerate(tokens)}, "merges": merges}
    added = [{"id": i, "content": tokens[i], **flags} for i in range(3)]
    whole = {
        "version": "1.0",
        "added_tokens": added,
        "pre_tokenizer": level,
        "decoder": level,
        "model": model,
    }
    (folder / "tokenizer.json").write_text(json.dumps(whole))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": tokens[2],
        "pad_token": tokens[0],
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.mark.parametrize("tokens", [True, False], ids=["tokens", "text"])
def test_lm_eval(served: tuple[Running, safex.Model], tokens: bool, tmp_path: Path) -> None:
    """Its local-completions client gives the log-likelihoods of our session."""
    running, model = served
    python = lm_eval_python()
    write_tokenizer(tmp_path)
    pairs = [(TEXTS[0], " and water"), (TEXTS[1], " Yes."), ("How do I", " bake bread?")]
    words = [
        python,
        "-c",
        CLIENT,
        running.url,
        running.id,
        str(tmp_path),
        str(int(tokens)),
        json.dumps(pairs),
    ]
    done = subprocess.run(
        words, env=environment(OPENAI_API_KEY="none"), capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.rpartition("RESULT ")[2])
    for (context, continuation), (value, greedy) in zip(pairs, found, strict=True):
        whole, start = tokenized(model, context + continuation), len(tokenized(model, context))
        if tokens and model.facts.adds_bos:  # lm-eval's own tokens have no BOS
            whole, start = whole[1:], start - 1
        rows = logprobs(model, whole)
        places = range(start - 1, len(whole) - 1)
        assert value == pytest.approx(sum(rows[at, whole[at + 1]] for at in places), abs=2e-3)
        assert greedy == all(rows[at].argmax() == whole[at + 1] for at in places)
