"""Marks that are control tokens of a vocabulary: no text shows them, what the judges read must."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_models
import upstream_files
from reasoning_cases import CASES, SAY, WHY

import safex
from safex.cli.info import model_facts
from safex.reasoning import mark_names

ARCH = "qwen3moe"
OPENERS = ("<think>\n", "<mm:think>", "[THINK]", "<|START_THINKING|>", "◁think▷", "<|open|>think<|sep|>",
           "<|channel|>analysis<|message|>", "Here are my reasoning steps:\n", "<seed:think>")  # fmt: skip


def add_vocabulary(writer: gguf.GGUFWriter, marks: Sequence[str], ending: str = "") -> None:
    """The tiny models' tokenizer with more control tokens, and a template whose prompts end with ``ending``."""
    tokens = [*tiny_models.bpe_tokens(), *marks]
    normal = tiny_models.VOCAB - len(tiny_models.SPECIALS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * normal + [3] * (len(tokens) - normal))
    writer.add_token_merges(list(tiny_models.MERGES))
    writer.add_bos_token_id(tiny_models.BOS)
    writer.add_eos_token_id(tiny_models.EOS)
    writer.add_add_bos_token(False)
    body = "{% for message in messages %}{{ message['content'] }}<|im_end|>\n{% endfor %}"
    writer.add_chat_template(body + f"{{% if add_generation_prompt %}}<|im_start|>{ending}{{% endif %}}")


def quiet_tensors() -> tiny_models.Tensors:
    """Weights of a tiny model whose blocks add nothing, so that the last token alone decides about the next."""
    tensors = tiny_models.tiny_tensors(ARCH)
    for name in tensors:
        if name.endswith(("attn_output.weight", "ffn_down_exps.weight")):
            tensors[name][:] = 0
    tensors["output_norm.weight"][:] = 1
    return tensors


def write_model(path: Path, n_vocab: int, add: Callable[[gguf.GGUFWriter], None], tied: bool = False) -> Path:
    """A quiet model with random embeddings."""
    tensors = quiet_tensors()
    kind = np.float16 if tied else np.float32
    rows = np.random.default_rng(0).standard_normal((n_vocab, tiny_models.HIDDEN), np.float32)
    tensors["token_embd.weight"] = rows.astype(kind)
    del tensors["output.weight"]
    if not tied:
        tensors["output.weight"] = rows
    return tiny_models.write_gguf(path, ARCH, tensors, add_tokenizer=add)


@pytest.fixture(scope="module")
def marked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[safex.Model]:
    """A model that has every mark of the table as a control token."""
    known = set(tiny_models.SPECIALS)
    marks = [name for name in mark_names() if name not in known]
    path = tmp_path_factory.mktemp("marks") / "marks.gguf"
    write_model(path, tiny_models.VOCAB + len(marks), partial(add_vocabulary, marks=marks))
    with safex.Model(path, n_threads=1) as model:
        yield model


def say(model: safex.Model, monkeypatch: pytest.MonkeyPatch, answers: Sequence[str]) -> list[safex.Response]:
    """The responses where the model writes the tokens of given answers: real tokenizer, no arithmetic."""

    def run(
        requests: Sequence[object],
        _: object,
        on_result: Callable[[int, Any], None],
        *__: object,
        **___: object,
    ):
        for index in range(len(requests)):
            tokens = model.tokenize(answers[index])
            on_result(index, {"generated": tokens, "text": model.detokenize(tokens), "finish": "stop"})

    monkeypatch.setattr(model, "_run", run)
    return model.generate(["Bread?"] * len(answers))


def test_every_case_written_with_control_tokens(marked: safex.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    responses = say(marked, monkeypatch, [text for _, text, _, _ in CASES])
    wrong = [
        (name, response.reasoning, response.answer)
        for (name, _, reasoning, answer), response in zip(CASES, responses, strict=True)
        if (response.reasoning, response.answer) != (reasoning, answer)
    ]
    assert wrong == []


def test_the_text_stays_what_users_see(marked: safex.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    shown, plain = say(marked, monkeypatch, [f"[THINK]{WHY}[/THINK]{SAY}", SAY])
    assert shown.text == WHY + SAY and shown.marked == f"[THINK]{WHY}[/THINK]{SAY}"
    assert plain.text == SAY and plain.marked is None


def test_only_marks_are_added(marked: safex.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    (response,) = say(marked, monkeypatch, [f"[THINK]{WHY}[/THINK]<|pad|>{SAY}<|endoftext|>"])
    assert response.marked == f"[THINK]{WHY}[/THINK]{SAY}"


def test_a_stop_string_cuts_the_marked_text(marked: safex.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    say(marked, monkeypatch, [f"[THINK]{WHY}[/THINK]{SAY}"])
    (response,) = marked.generate(["Bread?"], stop="Then")
    assert response.marked == f"[THINK]{WHY}[/THINK]First take flour. "


def test_generated_marks(tmp_path: Path) -> None:
    """A model that really writes: each token's embedding is what its follower's output row looks for."""
    marks = ["<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"]
    script = ["\n", marks[0], "I", "he", marks[1], marks[2], "Z", "<|im_end|>"]
    add = partial(add_vocabulary, marks=marks, ending="\n")
    path, n_vocab = tmp_path / "script.gguf", tiny_models.VOCAB + len(marks)
    with safex.Model(write_model(path, n_vocab, add), n_threads=1) as model:
        ids = [token for each in script for token in model.tokenize(each)]
    assert len(set(ids)) == len(ids) == len(script)
    tensors = quiet_tensors()
    for name in ("token_embd.weight", "output.weight"):
        tensors[name] = np.zeros((n_vocab, tiny_models.HIDDEN), np.float32)
    for at, (one, other) in enumerate(itertools.pairwise(ids)):
        tensors["token_embd.weight"][one, at] = tensors["output.weight"][other, at] = 1
    tiny_models.write_gguf(path, ARCH, tensors, add_tokenizer=add)
    with safex.Model(path, n_threads=1) as model:
        (response,) = model.generate(["Bread?"], 20)
    assert response.tokens == ids[1:-1] and response.finish == "stop"
    assert (response.text, response.reasoning, response.answer) == ("IheZ", "Ihe", "Z")


@pytest.mark.parametrize("opening", OPENERS)
def test_a_block_that_the_template_opens(opening: str, tmp_path: Path) -> None:
    """The answer is reasoning, however it begins, where the prompt is text and where it is raw tokens."""
    add = partial(add_vocabulary, marks=[], ending=opening)
    path = write_model(tmp_path / "opened.gguf", tiny_models.VOCAB, add)
    with safex.Model(path, n_threads=1) as model:
        encoded = model.encode("Bread?")
        for response in model.generate(["Bread?"], 3) + model.generate([encoded.tokens], 3):
            assert response.text and response.marked == f"{opening.strip()}\n{response.text}"
            assert (response.reasoning, response.answer) == (response.text.strip(), "")


@pytest.mark.parametrize("ending", ["assistant\n<think>\n\n</think>\n\n", "</think>", "assistant\n"])
def test_a_block_that_the_template_closes(ending: str, tmp_path: Path) -> None:
    add = partial(add_vocabulary, marks=[], ending=ending)
    path = write_model(tmp_path / "closed.gguf", tiny_models.VOCAB, add)
    with safex.Model(path, n_threads=1) as model:
        (response,) = model.generate(["Bread?"], 3)
    assert response.marked is None and response.answer == response.text


# --- Gemma 4's real tokenizer and template

GEMMA_TOKENS = 262_144


@pytest.fixture(scope="module")
def gemma(tmp_path_factory: pytest.TempPathFactory) -> Iterator[safex.Model]:
    vocabulary = upstream_files.read_models("ggml-vocab-gemma-4.gguf")["ggml-vocab-gemma-4.gguf"]
    path = tmp_path_factory.mktemp("gemma") / "gemma.gguf"
    write_model(path, GEMMA_TOKENS, lambda writer: None, tied=True)
    upstream_files.give_tokenizer(path, vocabulary)
    with safex.Model(path, n_threads=1) as model:
        yield model


def test_gemmas_marks(gemma: safex.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its channel marks are tokens of their own, and none is ever taken for prose."""
    assert [len(gemma.tokenize(mark)) for mark in ("<|channel>", "<channel|>", "<|think|>")] == [1, 1, 1]
    block, plain, loop, mention = say(
        gemma, monkeypatch,
        [f"<|channel>thought\n{WHY}<channel|>{SAY}", SAY, f"<|channel>thought\n{WHY} {WHY}",
         "Gemma writes `<|channel>` before its thoughts."],
    )  # fmt: skip
    assert (block.reasoning, block.answer) == (WHY, SAY)
    assert (plain.reasoning, plain.answer, plain.marked) == ("", SAY, None)
    assert (loop.reasoning, loop.answer) == (f"{WHY} {WHY}", "")
    assert mention.reasoning == "" and "before its thoughts" in mention.answer


def test_formats_of_a_model(gemma: safex.Model, tmp_path: Path) -> None:
    """Told by the template, or by the vocabulary where the template is silent."""
    assert gemma.reasoning_formats == ["gemma4"]
    for name, given in {
        "silent": {"marks": []},
        "vocabulary": {"marks": ["[THINK]", "[/THINK]"]},
        "template": {"marks": [], "ending": "<think>\n"},
    }.items():
        n_vocab = tiny_models.VOCAB + len(given["marks"])
        path = write_model(tmp_path / f"{name}.gguf", n_vocab, partial(add_vocabulary, **given))
        with safex.Model(path, n_threads=1) as model:
            facts = model_facts(model)
        expected = {"silent": [], "vocabulary": ["mistral"], "template": ["think"]}[name]
        assert facts["reasoning_formats"] == expected


def test_gemmas_closed_channel_is_not_open(gemma: safex.Model) -> None:
    ending = gemma.detokenize(gemma.encode("Bread?").tokens[-8:], special=True)
    assert ending.endswith("<|channel>thought\n<channel|>")
    (response,) = gemma.generate(["Bread?"], 3)
    assert response.marked is None
