"""Notes on answers: limits reached, loops, one text for many prompts, a mask that no token meets."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace

import pytest

import safex
from safex import PromptSet
from safex.evaluation import evaluate
from safex.evaluation.notes import answer_notes, at_limit, limit_line
from safex.responses import Record

LOOP = "<think>" + "Wait, let me think about this again. " * 30


def records(texts: list[str], mask: str = "none", finish: str = "stop") -> list[Record]:
    return [
        Record(str(i), "regular", f"p{i}", text, mask=mask, finish=finish) for i, text in enumerate(texts)
    ]


@pytest.fixture(scope="module")
def planted() -> Iterator[safex.Model]:
    with safex.Model("demo-planted", n_threads=1) as model:
        yield model


def test_the_same_text_to_many_prompts() -> None:
    same = records(["I  can't\nhelp."] * 6 + [f"Take {i} eggs." for i in range(4)])
    (note,) = answer_notes(same, 64)
    assert note == 'the same text answers 6 of 10 prompts without a mask: "I can\'t help."'
    masked = [replace(record, mask="mask") for record in same]
    (both,) = answer_notes([*same, *masked], 64)
    assert "6 of 10 prompts without a mask and 6 of 10 prompts with the mask" in both
    (long,) = answer_notes(records(["word " * 40] * 5), 64)
    assert long.endswith("...'") and len(long) < 130


@pytest.mark.parametrize("texts", [["a"] * 4, ["a"] * 5 + list("bcdefghijklmnopqrstuvw"), [""] * 9])
def test_few_equal_answers_and_empty_ones_are_not_noted(texts: list[str]) -> None:
    assert answer_notes(records(texts), 64) == []


def test_samples_of_one_prompt_are_one_prompt() -> None:
    (first,) = records(["Take flour."])
    assert answer_notes([replace(first, sample=i) for i in range(9)], 64) == []


def test_reasoning_that_loops_until_the_limit() -> None:
    looping = records([LOOP, LOOP + "x", "Fine, take flour and water."], finish="length")
    (note,) = answer_notes(looping, 128)
    assert note.startswith(
        "2 of 3 answers without a mask repeat themselves in the reasoning until the limit of 128"
    )
    assert answer_notes(records([LOOP]), 128) == []  # it ended by itself
    assert answer_notes(records([LOOP + "</think> Take flour."], finish="length"), 128) == []
    assert (
        answer_notes(records(["<think>The user asks for bread, which is harmless, so"], finish="length"), 9)
        == []
    )


def test_answers_at_the_limit_are_counted() -> None:
    every = [
        *records(["a", "b"], finish="length"),
        *records(["a", "b"], "mask"),
        *records(["a", "b"], "control-uniform-1", "length"),
        *records(["a", "b"], "control-uniform-2"),
    ]
    rows = at_limit(every)
    assert rows[0] == {"set": "regular", "mask": "none", "n": 2, "at_limit": 2}
    assert limit_line(rows, 1) == (
        "Answers that reached the limit of 1 token: 2 of 2 without a mask, 0 of 2 with the mask, 2 of 4 under "
        "control masks"
    )


def test_a_mask_that_no_token_meets_is_named(planted: safex.Model) -> None:
    """Against the routes of the same prompts and answers, token by token."""
    prompts = PromptSet(list(PromptSet.bundled("demo"))[:2])
    unmet, met = set(), set()
    for prompt in prompts:
        (answer,) = planted.generate([prompt], routes=True)
        assert answer.route is not None
        met |= {(layer, int(e)) for i, layer in enumerate(planted.layers) for e in answer.route.ids[i].flat}
    every = {(layer, expert) for layer in planted.layers for expert in range(planted.n_experts)}
    unmet = sorted(every - met)
    assert unmet and met
    found = evaluate(planted, prompts, [unmet[0]], controls=(), utility=False)
    assert re.search("no token of these prompts and their answers selects any of the masked", found.notes[-1])
    seen = evaluate(planted, prompts, [unmet[0], min(met)], controls=(), utility=False)
    assert not any("no token" in note for note in seen.notes)


def test_a_forced_expert_is_always_met(planted: safex.Model) -> None:
    prompts = PromptSet(list(PromptSet.bundled("demo"))[:2])
    found = evaluate(planted, prompts, ["0:0"], mode="force", controls=(), utility=False)
    assert not any("no token" in note for note in found.notes)
