"""Refusals against the length read: how many answers read as refusals after their first 30, 60, 100 ... tokens.

A refusal rate depends on how much of each answer is read; one model's refusals may rise several times over between 30
and 100 tokens. The answers are made once. Each is judged again cut to its first tokens, as a shorter token limit would
have cut it.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, TypeAlias

from safex.evaluation.plan import MASK, NONE
from safex.generation import Response
from safex.judges import REFUSE, Judge, KeywordJudge
from safex.model import Model
from safex.rates import rate
from safex.responses import Record

Row: TypeAlias = dict[str, Any]

LEAST = 100  # tokens from which on a limit is worth a curve
LENGTHS = (30, 60, 100, 150, 200, 300, 400, 600, 800, 1000, 1500, 2000, 3000, 4000)


def lengths(max_new: int) -> list[int]:
    """The lengths that a curve is read at: up to the limit and the limit itself; none below 100 tokens.

    >>> lengths(64), lengths(128), lengths(150)
    ([], [30, 60, 100, 128], [30, 60, 100, 150])
    """
    return [*(n for n in LENGTHS if n < max_new), max_new] if max_new >= LEAST else []


def cuts_of(model: Model, response: Response, max_new: int) -> dict[str, int] | None:
    """How many characters of an answer its first 30, 60 ... tokens are; None where it has no more tokens than that."""
    whole = response.marked or response.text
    found = {}
    for n in lengths(max_new):
        if n < len(response.tokens):
            cut = model.cut(response, n)
            found[str(n)] = _n_common(cut.marked or cut.text, whole)
    return found or None


def _n_common(one: str, other: str) -> int:
    """Characters of the common beginning: a cut may end within a character, which its text then shows as broken."""
    pairs = zip(one, other, strict=False)
    return sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))


def length_curve(records: Sequence[Record], judge: Judge, max_new: int) -> list[Row]:
    """A row for each set, mask ("none", "mask") and length: refusals among ``n`` answers, all of the set.

    ``refuse`` holds count, value and interval (Wilson); ``longer`` counts the answers that go on behind that length,
    ``unreadable`` those that could not be read there, which are no refusals yet. ``judge`` must read text alone. Empty
    for a limit below 100, and for answers of a file that does not say where to cut them.
    """
    if any(not _is_cut_at(record, n) for record in records for n in lengths(max_new)):
        return []
    by_side: dict[tuple[str, str], list[Record]] = {}
    for record in records:
        if record.mask in (NONE, MASK):
            by_side.setdefault((record.set, record.mask), []).append(record)
    return [
        {"set": set_, "mask": mask, "tokens": n, "judge": judge.name, **_point(of_side, judge, n)}
        for (set_, mask), of_side in by_side.items()
        for n in lengths(max_new)
    ]


def _is_cut_at(record: Record, n: int) -> bool:
    """Whether it is known how much of an answer its first ``n`` tokens are, where that matters."""
    return record.tokens <= n or record.mask not in (NONE, MASK) or str(n) in (record.cuts or {})


def text_judge(judges: Sequence[Judge]) -> Judge:
    """The judge of a curve: the keyword judge of the run, or one of its own; others ask a model for each answer."""
    return next((judge for judge in judges if isinstance(judge, KeywordJudge)), KeywordJudge())


def _point(records: Sequence[Record], judge: Judge, n: int) -> Row:
    verdicts = judge.judge([record.item_at(n) for record in records])
    hits = [verdict.label == REFUSE for verdict in verdicts]
    sampled = any(record.sample for record in records)
    found = rate(hits, [record.id for record in records] if sampled else None)
    assert found is not None  # a set has prompts
    return {
        "n": len(records),
        "longer": sum(record.tokens > n for record in records),
        "unreadable": sum(not verdict.readable for verdict in verdicts),
        REFUSE: {"count": sum(hits), **found.to_json()},
    }
