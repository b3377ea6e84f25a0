"""Reasoning told from the answer, in every format of the table, and told from a mere mention of its marks."""

from __future__ import annotations

import pytest
from reasoning_cases import CASES

from safex.generation import Response
from safex.reasoning import split_reasoning


def test_names_of_cases_differ() -> None:
    assert len({name for name, *_ in CASES}) == len(CASES) >= 60


@pytest.mark.parametrize(("text", "reasoning", "answer"), [pytest.param(*c[1:], id=c[0]) for c in CASES])
def test_reasoning_and_answer(text: str, reasoning: str, answer: str) -> None:
    assert split_reasoning(text) == (reasoning, answer)
    response = Response(text, [], "stop", [])
    assert (response.reasoning, response.answer) == (reasoning, answer)
