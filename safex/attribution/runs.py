"""Refusal logits of many (mask, prompt) pairs, piece by piece; pairs that a mask can't change are not run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.errors import DeviceError
from safex.experts import Expert

from .kept import COUNTS, MASKED, UNMASKED, Kept
from .pieces import costs, pieces, tokens_of_a_call
from .starts import Starts

Floats: TypeAlias = npt.NDArray[np.float64]
Rows: TypeAlias = npt.NDArray[np.int64]
Experts: TypeAlias = tuple[Expert, ...]
Steps: TypeAlias = Callable[[str, int, int], None]  # what, done, total


class Runs:
    """The prompts of a sweep on one model.

    ``baseline`` float64 [P] holds the unmasked refusal logits, ``used`` bool [P, L, E] whether any token of a prompt
    selects an expert: where none does, masking it changes nothing, and the logit is the unmasked one without a run.
    ``activation`` float64 [P, L, E] is the share of the prompt's tokens that select it.
    """

    def __init__(
        self, model: Any, tokens: Sequence[list[int]], starts: Starts, kept: Kept, progress: Steps
    ) -> None:
        """Run the prompts unmasked; ``tokens`` are theirs as the model is shown them. What ``kept`` has isn't run."""
        self._model, self._tokens, self._starts = model, tokens, starts
        self._kept, self._progress = kept, progress
        self._layer = {layer: i for i, layer in enumerate(model.layers)}
        self._budget = tokens_of_a_call(model)
        self._costs = costs(tokens)
        self.computed = self.skipped = 0
        counts = np.stack([self._counts(chain) for chain in starts.chains])
        self.used: npt.NDArray[np.bool_] = np.asarray((counts > 0).any(axis=0))
        self.activation: Floats = (
            counts[0] / np.array([len(t) + len(starts.chains[0]) for t in tokens])[:, None, None]
        )
        every = np.arange(len(tokens))
        self.baseline = self._run(UNMASKED, [()], np.zeros_like(every), every, "zero", 0.0, "no mask")

    def _counts(self, chain: tuple[int, ...]) -> npt.NDArray[np.uint32]:
        """How many tokens of each prompt with the chain behind it select each expert: [P, L, E]."""
        found = []
        for piece in pieces(self._costs + len(chain), np.zeros_like(self._costs), self._budget):
            found += self._kept.get((COUNTS, *chain, piece.start), partial(self._count, piece, chain))
        return np.array(found, np.uint32)

    def _count(self, piece: slice, chain: tuple[int, ...]) -> Any:
        self._progress("experts in use", piece.start, len(self._tokens))
        return self._model.profile([[*t, *chain] for t in self._tokens[piece]]).counts.tolist()

    def logits(self, masks: Sequence[Experts], prompts: Rows, mode: str, gain: float, what: str) -> Floats:
        """Refusal logits float64 [n_masks, len(prompts)]; ``prompts`` are numbers of prompts."""
        result = np.tile(self.baseline[prompts], (len(masks), 1))
        rows, columns = np.nonzero(self._touched(masks, prompts))
        result[rows, columns] = self._run(MASKED, masks, rows, prompts[columns], mode, gain, what)
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
        self,
        kind: str,
        masks: Sequence[Experts],
        rows: Rows,
        prompts: Rows,
        mode: str,
        gain: float,
        what: str,
    ) -> Floats:
        """One logit for each (mask, prompt); requests of one mask stand together."""
        logits = np.empty(len(rows))
        for piece in pieces(self._costs[prompts], rows, self._budget):
            chosen = [masks[row] for row in rows[piece]]
            hear = self._heard(what, piece, len(rows), prompts[piece])
            score = partial(self._score, prompts[piece], chosen, mode, gain, hear)
            logits[piece] = self._kept.get((kind, what, gain, piece.start), score)
        self._progress(what, len(rows), len(rows))
        return logits

    def _heard(self, what: str, piece: slice, total: int, prompts: Rows) -> Callable[[int], None]:
        """Progress within a piece, by its tokens."""
        n_tokens, n = int(self._costs[prompts].sum()), len(prompts)
        return lambda done: self._progress(what, piece.start + min(n, n * done // n_tokens), total)

    def _score(
        self, prompts: Rows, masks: Sequence[Experts], mode: str, gain: float, hear: Callable[[int], None]
    ) -> list[float]:
        """Refusal logits of one piece. Raises DeviceError where the model gives none."""
        hear(0)
        texts = [self._tokens[p] for p in prompts]
        scores = [
            self._model.score(texts, self._starts.targets, masks, mode, gain, chain, on_tokens=hear)
            for chain in self._starts.chains
        ]
        logits = self._starts.logits(scores)
        if not np.isfinite(logits).all():
            i = int(np.argmin(np.isfinite(logits)))
            mask = ", ".join(map(str, masks[i])) or "none"
            raise DeviceError(
                f"the model's logits are not finite (prompt number {prompts[i]}, mask {mask}, {mode}, gain {gain:g}): "
                "check the model file, or bring the gain nearer to 1"
            )
        return [float(logit) for logit in logits]
