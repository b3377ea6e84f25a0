"""How the runs of a sweep are divided into calls of the model: large enough for full batches, small enough to lose."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

Ints: TypeAlias = npt.NDArray[np.int64]

UBATCHES = 16  # of a call: its last ubatch is filled in part, so that about a half of one is lost


def tokens_of_a_call(model: Any) -> int:
    """About how many tokens a call of this model should compute."""
    return UBATCHES * int(model.provenance()["session.n_ubatch"])


def costs(tokens: Sequence[Sequence[int]]) -> Ints:
    """How many tokens of each prompt are its own [n]: what all of them begin with is computed once a mask and call."""
    shared = sum(
        1 for _ in itertools.takewhile(lambda column: len(set(column)) == 1, zip(*tokens, strict=False))
    )
    return np.array([len(t) - min(shared, len(t) - 1) for t in tokens], np.int64)


def pieces(costs: Ints, groups: Ints, budget: int) -> Iterator[slice]:
    """Divide runs in order into pieces whose ``costs`` [n] are at most ``budget`` together, or one run.

    Neighbours of one group [n] stay together where that leaves a piece at least half full: prompts under one mask
    share the computation of their common beginning within a call.

    >>> list(pieces(np.full(7, 10), np.array([0, 0, 0, 0, 1, 1, 1]), 50))
    [slice(0, 4, None), slice(4, 7, None)]
    """
    ends = np.concatenate([[0], np.cumsum(costs)])
    borders = np.flatnonzero(np.diff(groups, prepend=-1, append=-1))
    start = 0
    while start < len(costs):
        stop = max(start + 1, int(np.searchsorted(ends, ends[start] + budget, "right")) - 1)
        border = int(borders[np.searchsorted(borders, stop, "right") - 1])
        if border > start and 2 * (ends[border] - ends[start]) >= budget:
            stop = border
        yield slice(start, stop)
        start = stop
