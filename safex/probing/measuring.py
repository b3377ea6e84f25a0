"""Every probe of a task: run side by side, then reduced to rows of plain values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from threading import Event
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import threadpoolctl

from safex.cores import available_cores
from safex.features import Features
from safex.probing.crossval import Problem, Scores, out_of_fold
from safex.probing.inputs import Inputs, Outputs, Words
from safex.probing.scores import Row, against, against_shuffles, measured, values
from safex.probing.settings import Settings, Subject, Subjects

Floats: TypeAlias = npt.NDArray[np.float64]
Progress: TypeAlias = Callable[[str, int, int], None]  # what, done, total


@dataclass
class Found:
    """What one probe gave. ``row``: its measures; ``values``: those that controls are compared by.

    They are means over the repeats that controls have too; ``transfer`` likewise for the transfer's prompts. A probe
    with too few prompts has neither, and ``row["skipped"]`` says so.
    """

    row: Row
    scores: Floats | None = None
    values: dict[str, float] = field(default_factory=dict)
    transfer: dict[str, float] = field(default_factory=dict)


class Bench:
    """Runs the probes of one task."""

    def __init__(
        self,
        features: Features,
        problem: Problem,
        settings: Settings,
        words: Words | None,
        subjects: Subjects,
    ) -> None:
        """Nothing is run yet."""
        self.features, self.problem, self.settings = features, problem, settings
        self.words, self.subjects = words, subjects
        self.of_words: Found | None = None
        self.halt = Event()
        self.found: dict[Subject, Found] = {}

    def run(self, n_threads: int | None, progress: Progress) -> None:
        """Probe the words, then every subject, several at a time; the result doesn't depend on how many."""
        s = self.subjects
        jobs = [*s.groups.values(), *s.singles.values(), *s.draws, *s.control_singles.values()]
        what = f"probes, {self.problem.task.name}"
        progress(what, 0, len(jobs))
        with threadpoolctl.threadpool_limits(1):  # one thread a probe: one order of sums
            if self.words is not None:
                self.of_words = self._probe(self.words, self.settings.repeats)
            pool = ThreadPoolExecutor(n_threads or available_cores())
            try:
                futures = {pool.submit(self._subject, subject): subject for subject in jobs}
                self._gather(futures, lambda done: progress(what, done, len(jobs)))
            except BaseException:
                self.halt.set()
                raise
            finally:
                pool.shutdown(cancel_futures=True)

    def _gather(self, futures: dict[Future[Found], Subject], step: Callable[[int], None]) -> None:
        for done, future in enumerate(as_completed(futures), 1):
            self.found[futures[future]] = future.result()
            step(done)

    def _subject(self, subject: Subject) -> Found:
        inputs = Outputs(self.features, subject.experts, self.settings.missing)
        if subject.is_control:
            return self._probe(inputs, self.settings.control_repeats, whole=False)
        found = self._probe(inputs, self.settings.repeats, self.settings.shuffles)
        if subject.group and found.scores is not None:
            found.row["curve"] = self._curve(inputs, found.row)
        return found

    def _probe(self, inputs: Inputs, repeats: int, shuffles: int = 0, whole: bool = True) -> Found:
        problem = self.problem
        present = inputs.present()[problem.rows]
        n = int((present & problem.own).sum())
        if not problem.is_probed(present):
            return Found({"n": n, "skipped": "too few prompts with its output"})
        scores = out_of_fold(inputs, problem, repeats, shuffles, halt=self.halt)
        first, transferred = scores.real[: self.settings.control_repeats], problem.transferred
        return Found(
            self._row(scores) if whole else {"n": n},
            scores.real,
            values(first, problem),
            values(first, problem, transferred) if transferred.any() else {},
        )

    def _row(self, scores: Scores) -> Row:
        problem, words = self.problem, self.of_words
        row = measured(scores.real, problem) | {
            "n_train": scores.n_train,
            "strengths": _counts(scores.strengths),
        }
        if problem.transferred.any():
            row["transfer"] = measured(scores.real, problem, problem.transferred)
        null = against_shuffles(scores.real[0], scores.shuffled, problem)
        if null:
            row["shuffled"] = null
        if words is not None and words.scores is not None:
            row["versus_words"] = against(scores.real, words.scores, problem)
            if problem.transferred.any():
                row["transfer"]["versus_words"] = against(
                    scores.real, words.scores, problem, problem.transferred
                )
        return row

    def _curve(self, inputs: Inputs, whole: Row) -> list[Row]:
        """Accuracy and AUC by number of training prompts; shares with too few prompts of a class are left out."""
        points = []
        for share in sorted(self.settings.curve):
            scores = out_of_fold(inputs, self.problem, self.settings.repeats, share=share, halt=self.halt)
            points.append((share, measured(scores.real, self.problem), scores.n_train))
        points.append((1.0, whole, whole["n_train"]))
        return [
            {"share": share, "n_train": n_train, "accuracy": row["accuracy"], "auc": row["auc"]}
            for share, row, n_train in points
            if row["accuracy"] is not None
        ]


def _counts(strengths: Sequence[float]) -> dict[str, int]:
    """How often each C was chosen."""
    return {f"{value:g}": strengths.count(value) for value in sorted(set(strengths))}
