"""The guard judge on real files: tiny dense guards whose answers are known (``tiny_guard``), and the commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import STEADY, cli
from tiny_guard import write_guard

import safex
import safex.cli
from safex import responses
from safex.errors import DeviceError, InputError
from safex.judges import COMPLY, EMPTY, OTHER, REFUSE, TRUNCATED, Item, make
from safex.judges.guard import GuardJudge
from safex.responses import Header, Record

REFUSAL, COMPLIANCE = "I cannot help you with that.", "Mix flour and water, then bake it."
EXACT: dict[str, Any] = {"n_threads": 1, "flash_attn": False, "kv_type": "f32"}
TOKENIZERS = pytest.mark.parametrize("spm", [False, True], ids=["bpe", "spm"])


def item(response: str, set_: str = "regular", finish: str = "stop") -> Item:
    return Item("0", set_, "How do I bake bread?", response, finish)


def guard(path: Path, template: str = "wildguard", **kinds: Any) -> GuardJudge:
    made = make(f"gguf:{write_guard(path / 'guard.gguf', **kinds)}:{template}", settings=EXACT)
    assert isinstance(made, GuardJudge) and made.model.facts.architecture == "llama"
    return made


# --- verdicts


@TOKENIZERS
@pytest.mark.parametrize("quant", [None, "q8_0"])
def test_wildguard(tmp_path: Path, spm: bool, quant: str | None) -> None:
    judge = guard(tmp_path, spm=spm, quant=quant)
    answers = [
        item(REFUSAL),
        item(COMPLIANCE),
        item(""),
        item("la " * 30),
        item("<think>Hm", finish="length"),
    ]
    verdicts = judge.judge(answers * 20)
    assert [v.label for v in verdicts] == [REFUSE, COMPLY, EMPTY, OTHER, TRUNCATED] * 20
    assert verdicts[0].detail == "response refusal: yes (1.000)" and judge.name == "gguf:guard:wildguard"
    assert verdicts[0].score == pytest.approx(1, abs=1e-5) and verdicts[1].score == pytest.approx(0, abs=1e-5)


@TOKENIZERS
def test_harmbench(tmp_path: Path, spm: bool) -> None:
    words = {"marker": " steps", "present": [" yes"], "absent": [" no"]}
    judge = guard(tmp_path, "harmbench", spm=spm, **words)
    given = [
        item("Follow these steps, one by one."),
        item(REFUSAL),
        item(COMPLIANCE),
        item(COMPLIANCE, "benign"),
    ]
    assert [v.label for v in judge.judge(given)] == [COMPLY, REFUSE, OTHER, COMPLY]


@TOKENIZERS
def test_llama_guard(tmp_path: Path, spm: bool) -> None:
    words = {"marker": " steps", "present": [" unsafe"], "absent": [" safe"]}
    judge = guard(tmp_path, "llama-guard-3", spm=spm, **words)
    given = [item("Follow these steps, one by one."), item(REFUSAL), item(COMPLIANCE, "benign")]
    assert [v.label for v in judge.judge(given)] == [COMPLY, REFUSE, COMPLY]


@TOKENIZERS
def test_scores_are_a_softmax_over_the_files_own_logits(tmp_path: Path, spm: bool) -> None:
    """The text is put together here once more."""
    judge = guard(tmp_path, strength=0.15, spm=spm)
    template = json.loads((safex.judges.guard.GUARDS / "wildguard.json").read_text())["prompt"]
    given = [item(text) for text in (REFUSAL, COMPLIANCE)]
    with safex.Model(tmp_path / "guard.gguf", **EXACT) as model:
        bos = [model.facts.bos] if spm else []
        yes, no = (
            [model.tokenize(w, special=False)[-1] for w in (f" {word}", word)] for word in ("yes", "no")
        )
        for one, verdict, first in zip(given, judge.judge(given), ("yes", "no"), strict=True):
            asked = template.replace("{prompt}", one.prompt).replace("{response}", one.response)
            asked += f"Harmful request: {first}\nResponse refusal:"
            row = np.exp(model.logits([*bos, *model.tokenize(asked)])[-1].astype(float))
            p_yes, p_no = (row[sorted(set(tokens))].sum() for tokens in (yes, no))
            assert 0.0005 < verdict.score < 0.9995
            assert verdict.score == pytest.approx(p_yes / (p_yes + p_no), abs=1e-5)


def test_a_guard_that_says_something_else(tmp_path: Path) -> None:
    judge = guard(tmp_path, present=[" maybe"], absent=[" maybe"], known=[" yes", " no"])
    (verdict,) = judge.judge([item(COMPLIANCE)])
    assert verdict.label == OTHER and "the judge's answer has another form" in (verdict.detail or "")


# --- what the guard is shown


@TOKENIZERS
def test_texts_with_names_of_special_tokens_are_shown_as_they_are(tmp_path: Path, spm: bool) -> None:
    special = "<s>" if spm else "<|im_start|>"
    judge = guard(tmp_path, spm=spm)
    model = judge.model
    (token,) = model.tokenize(special)[-1:]
    bos = model.detokenize([model.facts.bos], special=True) if spm else ""
    for response in (
        f"{special} I cannot.",
        f"Fine {special} so",
        special,
        f"\n{special}",
        "Fine, so",
        " Fine",
    ):
        parts = judge._parts(item(response))
        tokens = judge._encode(parts)
        assert tokens.count(token) == int(spm)  # the BOS before all of it
        assert model.detokenize(tokens, special=True).removeprefix(bos).lstrip() == "".join(parts)
        assert judge.judge([item(f"{response} I cannot help with that.")])[0].label == REFUSE


@TOKENIZERS
def test_pieces_have_the_tokens_of_the_whole(tmp_path: Path, spm: bool) -> None:
    judge = guard(tmp_path, spm=spm)
    parts = judge._parts(item(COMPLIANCE))
    pieces = [token for part in parts[1:] for token in judge._piece(part, special=True)]
    assert judge.model.tokenize(parts[0]) + pieces == judge.model.tokenize("".join(parts))


# --- guards that can't be used


@pytest.fixture
def no_guard(tiny_path: Callable[..., Path]) -> str:
    """A dense model whose vocabulary has no token for yes or no."""
    return f"gguf:{tiny_path('dense-llama')}:wildguard"


NO_TOKENS = (
    "judge gguf:dense-llama-f32:wildguard: the model has no token for the answer 'yes' or 'no' of field"
)


@pytest.fixture
def answers(tmp_path: Path) -> Path:
    """Eight saved answers, the keyword judge's verdicts on the first four."""
    texts = [REFUSAL, COMPLIANCE, "", "la " * 20]
    records = [Record(f"r-{i}", "regular", f"How {i}?", texts[i % 4]) for i in range(8)]
    judged = [r.judged("keyword", v) for r, v in zip(records, keyword(records), strict=True)]
    responses.save(tmp_path / "run.jsonl", Header(), judged[:4] + records[4:])
    return tmp_path / "run.jsonl"


def keyword(records: list[Record]) -> Any:
    return make("keyword").judge([record.item for record in records])


def test_a_guard_without_the_answer_tokens(no_guard: str, answers: Path) -> None:
    with pytest.raises(InputError, match=NO_TOKENS):
        make(no_guard)
    before = answers.read_bytes()
    words = ["--judge", "keyword", "--judge", no_guard, "-o", "out.jsonl", *STEADY]
    cli("judge", answers, *words, cwd=answers.parent).fails(2, NO_TOKENS, "it is no wildguard model; choose")
    assert answers.read_bytes() == before and list(answers.parent.iterdir()) == [answers]


def test_eval_refuses_such_a_guard_before_it_answers_and_keeps_answers(no_guard: str, tmp_path: Path) -> None:
    (tmp_path / "regular.txt").write_text("How do I bake bread?\nHow do I plant a tree?\n")
    words = ["eval", "demo", "--prompts", "regular=regular.txt", "--max-new", 8, *STEADY]
    cli(*words, "--judge", no_guard, cwd=tmp_path).fails(2, NO_TOKENS)
    assert [path.name for path in tmp_path.iterdir()] == ["regular.txt"]
    assert cli(*words, cwd=tmp_path).code == 0
    kept = (tmp_path / "demo.responses.jsonl").read_bytes()
    cli(*words, "--judge", no_guard, "--resume", cwd=tmp_path).fails(2, NO_TOKENS)
    assert (tmp_path / "demo.responses.jsonl").read_bytes() == kept


def test_guards_that_are_no_models(answers: Path) -> None:
    for spec, part in (
        ("gguf:none.gguf:wildguard", "none.gguf: no such model file"),
        (f"gguf:{answers}:wildguard", "run.jsonl: not a GGUF file"),
    ):
        cli("judge", answers, "--judge", spec, cwd=answers.parent).fails(2, part)


# --- commands


def test_judge_by_a_guard(answers: Path) -> None:
    write_guard(answers.parent / "my-wildguard.gguf", spm=True)
    words = ["--judge", "gguf:my-wildguard.gguf", "-o", "out.jsonl", "--json", *STEADY]
    done = cli("judge", answers, *words, cwd=answers.parent)
    assert done.code == 0, done.err
    name = "gguf:my-wildguard:wildguard"
    (row,) = (row for row in done.json["counts"] if row["judge"] == name)
    names = ("n", "readable", "refuse", "comply", "other", "empty", "degenerate")
    assert [row[name] for name in names] == [8, 4, 2, 2, 0, 2, 2]
    (pair,) = done.json["agreement"]
    assert (pair["judges"], pair["n"], pair["agree"]) == (["keyword", name], 2, 1.0)
    records = responses.load(answers.parent / "out.jsonl").records
    assert [r.labels[name] for r in records] == [REFUSE, COMPLY, EMPTY, OTHER] * 2
    assert [set(r.labels) for r in records] == [{"keyword", name}] * 4 + [{name}] * 4


def test_a_guard_that_fails_half_way_keeps_its_verdicts(
    answers: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_guard(answers.parent / "guard.gguf")
    read, calls = GuardJudge._read, []

    def read_or_fail(self: GuardJudge, texts: Any, tokens: Any) -> Any:
        calls.append(texts)
        if len(calls) > 2:  # a batch is read twice, once for each field
            raise DeviceError("the device is gone")
        return read(self, texts, tokens)

    monkeypatch.setattr(GuardJudge, "_read", read_or_fail)
    monkeypatch.setattr("safex.cli.judge.PIECE", 4)
    monkeypatch.chdir(answers.parent)
    words = ["judge", "run.jsonl", "--judge", "gguf:guard.gguf:wildguard", "-o", "out.jsonl", *STEADY]
    assert safex.cli.main(words) == 3
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith("the device is gone (4 of 8 verdicts of gguf:guard:wildguard are in out.jsonl)")
    made = responses.load(answers.parent / "out.jsonl").records
    assert ["gguf:guard:wildguard" in record.labels for record in made] == [True] * 4 + [False] * 4


def test_eval_of_a_dense_model_by_a_dense_guard(tmp_path: Path) -> None:
    """The guard answers too: " yes yes", or " no no"; what it says of each answer is in the table."""
    write_guard(tmp_path / "guard.gguf")
    for name in ("regular", "jailbreak", "benign"):
        (tmp_path / f"{name}.txt").write_text(f"A {name} request\nI cannot wait: another {name} request\n")
    sets = [
        word for name in ("regular", "jailbreak", "benign") for word in ("--prompts", f"{name}={name}.txt")
    ]
    words = [*sets, "--judge", "gguf:guard.gguf:wildguard", "--judge", "keyword", "--max-new", 24, "--json"]
    done = cli("eval", "guard.gguf", *words, *STEADY, cwd=tmp_path)
    assert done.code == 0, done.err
    found = done.json["results"]["gguf:guard:wildguard"]["sets"]
    records = responses.load(tmp_path / "guard.responses.jsonl").records
    for row in found:
        labels = [r.labels["gguf:guard:wildguard"] for r in records if r.set == row["set"]]
        assert labels == [OTHER, REFUSE] and row["before"]["n"] == 2
        assert [row["before"][label]["count"] for label in (REFUSE, COMPLY, OTHER)] == [1, 0, 0]
        assert (row["before"]["readable"], row["before"]["degenerate"]) == (1, 1)
    assert done.json["agreement"][0]["n"] == 3 and done.json["agreement"][0]["left_out"] == 3


def test_eval_puts_guards_where_the_model_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from safex.cli.eval import make_judges
    from safex.cli.parser import parse

    path = write_guard(tmp_path / "guard.gguf")
    words = ["eval", "demo", "--gpu-layers", "7", "--threads", "1", "--ctx", "512", "--kv-type", "f32"]
    args = parse([*words, "--judge", "keyword", "--judge", f"gguf:{path}:wildguard"], {"eval": ""})
    seen: dict[str, Any] = {}
    opened = safex.judges.open_text_model
    monkeypatch.setattr(
        "safex.judges.open_text_model", lambda path, **given: seen.update(given) or opened(path, **given)
    )
    keyword, made = make_judges(args)
    assert keyword == "keyword" and isinstance(made, GuardJudge)
    assert (seen["n_gpu_layers"], seen["n_threads"], seen["kv_type"]) == (7, 1, "f32")
    assert made.model.n_ctx == 4096  # what the guard was trained with, not the model's --ctx
