"""A model's own unmasked answers, from which its starts are found."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import numpy as np

from safex.evaluation.trial import OnTrial, Trial, try_answers, why_unreadable
from safex.judges import Item, Judge
from safex.prompts import Prompt, PromptSet

from .kept import ANSWERS, STARTS, TRIAL, Kept
from .pieces import costs, pieces, tokens_of_a_call
from .runs import Steps
from .starts import DEPTH, NoStartsError, Starts

ANSWER_TOKENS = 48  # of the greedy answers that show how refusals begin, where that is enough to tell them


def try_starts(
    model: Any,
    prompts: PromptSet,
    max_new: int | str,
    kept: Kept,
    progress: Steps,
    on_trial: OnTrial | None = None,
) -> Trial:
    """A few answers, tried before all of them: how many tokens show whether they refuse. Raises NoStartsError."""

    def find() -> dict[str, Any]:
        """Only a trial that the sweep can go on from is kept."""
        trial = try_answers(model, prompts, max_new, start=ANSWER_TOKENS, progress=progress)
        if not trial.is_readable:
            raise NoStartsError(f"how refusals begin can't be told: {why_unreadable(trial, model)}")
        return trial.to_json()

    trial = Trial.from_json(kept.get((TRIAL,), find))
    if on_trial:
        on_trial(trial)
    return trial


def find_starts(
    model: Any, prompts: Sequence[Prompt], max_new: int, kept: Kept, progress: Steps, judge: Judge
) -> Starts:
    """Starts found in greedy unmasked answers to the prompts, as a judge reads them. Raises InputError without any."""

    def find() -> dict[str, Any]:
        return Starts.from_answers(_answers(model, prompts, max_new, kept, progress, judge)).to_json(model)

    return Starts.from_json(kept.get((STARTS,), find))


def _answers(
    model: Any, prompts: Sequence[Prompt], max_new: int, kept: Kept, progress: Steps, judge: Judge
) -> list[tuple[str, list[int]]]:
    """Reading (refuse, comply, other, or why it could not be read) and first tokens of each answer."""
    lengths = costs([model.encode(prompt).tokens for prompt in prompts]) + max_new
    answers: list[tuple[str, list[int]]] = []
    for piece in pieces(lengths, np.zeros_like(lengths), tokens_of_a_call(model)):
        progress("answers without a mask", piece.start, len(prompts))
        answers += kept.get((ANSWERS, piece.start), partial(_answer, model, prompts[piece], max_new, judge))
    return answers


def _answer(model: Any, prompts: Sequence[Prompt], max_new: int, judge: Judge) -> list[tuple[str, list[int]]]:
    responses = model.generate(prompts, max_new=max_new, mask=[[]] * len(prompts))
    items = [
        Item(p.id, p.set, p.text, r.marked or r.text, r.finish)
        for p, r in zip(prompts, responses, strict=True)
    ]
    readings = [verdict.reading for verdict in judge.judge(items)]
    return [(reading, r.tokens[:DEPTH]) for reading, r in zip(readings, responses, strict=True)]
