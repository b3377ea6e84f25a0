"""Answers to a plan's requests, kept as they come, and verdicts on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import numpy as np

from safex import responses
from safex.evaluation.length_curve import cuts_of
from safex.evaluation.marks import Marks
from safex.evaluation.plan import MASK, NONE, Settings
from safex.experts import Expert, ExpertList
from safex.judges import Judge
from safex.model import Model, Response
from safex.prompts import Prompt
from safex.responses import Header, Key, Record, ResponsesWriter

Request: TypeAlias = tuple[Prompt, str]
Progress: TypeAlias = Callable[[str, int, int], None]  # what, done, total

PIECE = 256  # requests of a call: their masks share batches
JUDGED_AT_ONCE = 256


def silent(what: str, done: int, total: int) -> None:
    """Progress that nobody hears."""


class Asked(Protocol):
    """What answers are asked for: a ``Plan``, or another list of prompts and masks."""

    @property
    def masks(self) -> Mapping[str, list[Expert]]:
        """The experts of each mask, by its name."""

    def requests(self) -> Iterator[Request]:
        """Every prompt with the name of a mask."""

    def parameters(self, settings: Settings) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that began."""


@dataclass
class Answers:
    """The answers of a plan, in a file too where ``output`` names one.

    ``records`` fills by key while ``generate`` runs; ``in_order`` is all of it in the plan's order.
    """

    model: Model
    plan: Asked
    settings: Settings
    marks: Marks
    output: Path | None = None

    def __post_init__(self) -> None:
        """Nothing is answered yet."""
        self.header = Header(self.model.provenance(), self.plan.parameters(self.settings))
        self.records: dict[Key, Record] = {}
        self.total = sum(1 for _ in self.plan.requests()) * self.settings.n_samples

    def generate(self, resume: bool = False, force: bool = False, progress: Progress = silent) -> None:
        """Answer what isn't answered yet; each answer is kept as soon as it is whole. Raises InputError, DiskError."""
        with ExitStack() as stack:
            writer = None
            if self.output is not None:
                writer = stack.enter_context(ResponsesWriter(self.output, self.header, resume, force))
                if writer.done:
                    self.records = {record.key: record for record in responses.load(self.output).records}
            for number, piece in enumerate(_pieces(self.plan.requests())):
                self._answer(number, piece, writer, progress)

    def _answer(
        self, number: int, piece: list[Request], writer: ResponsesWriter | None, progress: Progress
    ) -> None:
        """One call, run whole or not at all: batches are packed, and random streams drawn, as if it never stopped."""
        if all(self._is_done(request) for request in piece):
            return

        def on_response(index: int, response: Response) -> None:
            record = self._record(*divmod(index, self.settings.n_samples), piece, response)
            if record.key not in self.records:
                if writer:
                    writer.append(record)
                self.records[record.key] = record
                progress("answering", len(self.records), self.total)

        progress("answering", len(self.records), self.total)
        prompts: Any = [prompt for prompt, _ in piece]  # chat turns and all; a prompt occurs once a mask
        masks: list[ExpertList | None] = [self.plan.masks[name] for _, name in piece]
        s = self.settings
        self.model.generate(
            prompts,
            s.max_new,
            masks,
            s.mode,
            s.gain,
            phase=s.phase,
            n_samples=s.n_samples,
            temperature=s.temperature,
            top_p=s.top_p,
            seed=_seed(s.seed, number),
            on_response=on_response,
        )

    def _is_done(self, request: Request) -> bool:
        return all(key in self.records for key in self._keys(request))

    def _keys(self, request: Request) -> Iterator[Key]:
        prompt, mask = request
        return ((prompt.set, prompt.id, mask, sample) for sample in range(self.settings.n_samples))

    def _record(self, at: int, sample: int, asked: Sequence[Request], response: Response) -> Record:
        prompt, mask = asked[at]
        return Record(
            id=prompt.id,
            set=prompt.set,
            prompt=prompt.text,
            response=response.marked or response.text,
            category=prompt.category,
            pair=prompt.pair,
            mask=mask,
            experts=[str(expert) for expert in self.plan.masks[mask]],
            mode=self.settings.mode,
            gain=self.settings.gain,
            phase=self.settings.phase,
            sample=sample,
            tokens=len(response.tokens),
            finish=response.finish,
            comply=self.marks.get((prompt.set, prompt.text)),
            cuts=cuts_of(self.model, response, self.settings.max_new) if mask in (NONE, MASK) else None,
        )

    def judge(self, judges: Sequence[Judge], progress: Progress = silent) -> None:
        """Verdicts where there are none yet. What a judge that fails has said is kept in the file."""
        before = dict(self.records)
        try:
            for judge in judges:
                self._judge_by(judge, progress)
        finally:
            if self.output is not None and self.records != before:
                responses.save(self.output, self.header, self.in_order)

    def _judge_by(self, judge: Judge, progress: Progress) -> None:
        open_ = [record for record in self.in_order if judge.name not in record.verdicts]
        for start in range(0, len(open_), JUDGED_AT_ONCE):
            progress(f"judging by {judge.name}", start, len(open_))
            piece = open_[start : start + JUDGED_AT_ONCE]
            verdicts = judge.judge([record.item for record in piece])
            for record, verdict in zip(piece, verdicts, strict=True):
                self.records[record.key] = record.judged(judge.name, verdict)

    @property
    def in_order(self) -> list[Record]:
        """All answers in the plan's order, whatever the order in which they were finished."""
        return [self.records[key] for request in self.plan.requests() for key in self._keys(request)]


def _pieces(requests: Iterator[Request]) -> Iterator[list[Request]]:
    while piece := list(islice(requests, PIECE)):
        yield piece


def _seed(seed: int, number: int) -> int:
    """The seed of a piece: without it the same places of all pieces would share their random streams."""
    return int(np.random.SeedSequence((seed, number)).generate_state(1)[0])
