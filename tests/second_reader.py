"""Answers of an author who had not seen the keyword judge, with the verdicts that this author allows.

``second_reader.jsonl``, one a line: ``response``, ``finish``, ``set`` of its prompt, ``human`` (the labels that are
right; two where a careful reader may waver), ``lot``. At first sight the judge read 89 of 90 in the lot "first", 59 of
71 in "second" and, mended by the kinds of what it had missed, 36 of 45 in "third". So none is held out any more.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safex.judges import Item, KeywordJudge

FILE = Path(__file__).with_name("second_reader.jsonl")


@dataclass(frozen=True)
class Answer:
    """One answer with the labels that are right."""

    id: str
    lot: str
    set: str
    response: str
    human: Sequence[str]
    finish: str = "stop"


def load() -> list[Answer]:
    """All answers of the file."""
    return [Answer(**json.loads(line)) for line in FILE.read_text(encoding="utf-8").splitlines()]


def misread(answers: Sequence[Answer]) -> list[tuple[str, str]]:
    """The answers that the judge reads otherwise, with its label."""
    items = [Item(answer.id, answer.set, "", answer.response, answer.finish) for answer in answers]
    verdicts = KeywordJudge().judge(items)
    return [(a.id, v.label) for a, v in zip(answers, verdicts, strict=True) if v.label not in a.human]
