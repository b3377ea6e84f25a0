"""Refusal logits of many (mask, prompt) pairs, in batches; pairs that a mask can't change are not run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.experts import Expert

from .starts import Starts

Floats: TypeAlias = npt.NDArray[np.float64]
Rows: TypeAlias = npt.NDArray[np.int64]
Experts: TypeAlias = tuple[Expert, ...]
Steps: TypeAlias = Callable[[str, int, int], None]  # what, done, total

BATCH = 4096  # requests handed to the core at once


class Runs:
    """The prompts of a sweep on one model.

    ``baseline`` float64 [P] holds the unmasked refusal logits, ``used`` bool [P, L, E] whether any token of a prompt
    selects an expert: where none does, masking it changes nothing, and the logit is the unmasked one without a run.
    ``activation`` float64 [P, L, E] is the share of the prompt's tokens that select it.
    """

    def __init__(self, model: Any, tokens: Sequence[list[int]], starts: Starts, progress: Steps) -> None:
        """Run the prompts unmasked; ``tokens`` are theirs as the model is shown them."""
        self._model, self._tokens, self._starts, self._progress = model, tokens, starts, progress
        self._layer = {layer: i for i, layer in enumerate(model.layers)}
        self.computed = self.skipped = 0
        counts = np.stack([self._counts(chain) for chain in starts.chains])
        self.used: npt.NDArray[np.bool_] = np.asarray((counts > 0).any(axis=0))
        self.activation: Floats = (
            counts[0] / np.array([len(t) + len(starts.chains[0]) for t in tokens])[:, None, None]
        )
        every = np.arange(len(tokens))
        self.baseline = self._run([()], np.zeros_like(every), every, "zero", 0.0, "no mask")

    def _counts(self, chain: tuple[int, ...]) -> npt.NDArray[np.uint32]:
        counts: npt.NDArray[np.uint32] = self._model.profile([[*t, *chain] for t in self._tokens]).counts
        return counts

    def logits(self, masks: Sequence[Experts], prompts: Rows, mode: str, gain: float, what: str) -> Floats:
        """Refusal logits float64 [n_masks, len(prompts)]; ``prompts`` are numbers of prompts."""
        result = np.tile(self.baseline[prompts], (len(masks), 1))
        rows, columns = np.nonzero(self._touched(masks, prompts))
        result[rows, columns] = self._run(masks, rows, prompts[columns], mode, gain, what)
        self.computed += len(rows)
        self.skipped += result.size - len(rows)
        return result

    def _touched(self, masks: Sequence[Experts], prompts: Rows) -> npt.NDArray[np.bool_]:
        """Which masks hold an expert that a prompt selects: bool [n_masks, len(prompts)]."""
        used = self.used[prompts]
        touched = np.zeros((len(masks), len(prompts)), np.bool_)
        for row, mask in enumerate(masks):
            for layer, expert in mask:
                touched[row] |= used[:, self._layer[layer], expert]
        return touched

    def _run(
        self, masks: Sequence[Experts], rows: Rows, prompts: Rows, mode: str, gain: float, what: str
    ) -> Floats:
        """One logit for each (mask, prompt); requests of one mask stand together."""
        logits = np.empty(len(rows))
        self._progress(what, 0, len(rows))
        for start in range(0, len(rows), BATCH):
            piece = slice(start, start + BATCH)
            texts = [self._tokens[p] for p in prompts[piece]]
            chosen = [masks[row] for row in rows[piece]]
            scores = [
                self._model.score(
                    texts,
                    self._starts.targets,
                    chosen,
                    mode,
                    gain,
                    chain,
                    on_tokens=self._heard(what, start, len(rows), texts),
                )
                for chain in self._starts.chains
            ]
            logits[piece] = self._starts.logits(scores)
            self._progress(what, start + len(texts), len(rows))
        return logits

    def _heard(self, what: str, start: int, total: int, texts: Sequence[list[int]]) -> Callable[[int], None]:
        """Progress within a batch, by its tokens."""
        n_tokens = sum(map(len, texts))
        return lambda done: self._progress(
            what, start + min(len(texts), len(texts) * done // n_tokens), total
        )
