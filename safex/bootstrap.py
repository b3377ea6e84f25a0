"""Resampling prompts: which prompts a resample holds, and how a profile's counts reach the native kernel.

Units are drawn, not prompts: all prompts of one ``pair`` (a plain request and its disguised twins) share a resample.
Units are drawn with replacement within strata, a stratum being the units that touch the same sets, so that paired and
unpaired sets both keep their size. Sums over a resample are exact whole numbers, the same with any number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from safex import _native as _compiled
from safex import disk
from safex.cores import available_cores
from safex.profile_arrays import PhaseArrays

_native: Any = _compiled  # its stub lies where it is installed, out of mypy's sight

PICKS_AT_ONCE = 1 << 20  # 8 MB
BOUNDS = (0.025, 0.975)  # quantiles of a 95 % percentile interval


class Resamples(NamedTuple):
    """Resamples of one set: its ``prompts`` int32 [n] (rows of the profile), and ``weights`` uint16 [S, n]."""

    prompts: npt.NDArray[np.int32]
    weights: npt.NDArray[np.uint16]


def units_of(pairs: Sequence[str | None]) -> npt.NDArray[np.int64]:
    """Number of the unit of each prompt: one for each ``pair`` value, one for each prompt without.

    >>> units_of(["a", None, "a", None]).tolist()
    [0, 1, 0, 2]
    """
    numbers: dict[Any, int] = {}
    keys = ((pair, 0) if pair is not None else (None, i) for i, pair in enumerate(pairs))
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys], np.int64)


def strata_of(units: npt.NDArray[np.int64], sets: npt.NDArray[np.int64]) -> list[npt.NDArray[np.int64]]:
    """Units that touch the same sets, for each such combination; ``sets`` holds a number for each prompt."""
    touched: dict[int, set[int]] = {}
    for unit, number in zip(units.tolist(), sets.tolist(), strict=True):
        touched.setdefault(unit, set()).add(number)
    strata: dict[tuple[int, ...], list[int]] = {}
    for unit, numbers in touched.items():
        strata.setdefault(tuple(sorted(numbers)), []).append(unit)
    return [np.array(strata[key], np.int64) for key in sorted(strata)]


def draw(
    profile_sets: Sequence[str],
    pairs: Sequence[str | None],
    names: Sequence[str],
    n_resamples: int,
    seed: int | Sequence[int],
    subset: float = 1.0,
    rows: npt.NDArray[np.int64] | None = None,
) -> dict[str, Resamples]:
    """Draw resamples of the sets ``names``, from the prompts ``rows`` alone where given.

    ``subset`` is the share of a stratum's units that one resample draws (with replacement).

    >>> sample = draw(["a", "b", "a", "b"], ["x", "x", "y", "y"], ["a", "b"], 3, seed=0)
    >>> bool((sample["a"].weights == sample["b"].weights).all())
    True
    """
    place = {name: number for number, name in enumerate(names)}
    numbers = np.array([place.get(name, -1) for name in profile_sets], np.int64)
    chosen = np.arange(len(numbers)) if rows is None else rows
    chosen = chosen[numbers[chosen] >= 0]
    units = units_of(pairs)
    drawn = _draw_units(
        strata_of(units[chosen], numbers[chosen]), int(units.max()) + 1, n_resamples, seed, subset
    )
    prompts = {name: chosen[numbers[chosen] == number] for name, number in place.items()}
    return {
        name: Resamples(of_set.astype(np.int32), np.ascontiguousarray(drawn[:, units[of_set]]))
        for name, of_set in prompts.items()
    }


def _draw_units(
    strata: Sequence[npt.NDArray[np.int64]], n_units: int, n: int, seed: int | Sequence[int], subset: float
) -> npt.NDArray[np.uint16]:
    rng = np.random.default_rng(seed)
    drawn = np.zeros((n, n_units), np.uint16)
    for units in strata:
        size = len(units)
        n_picks = max(1, round(subset * size))
        step = max(1, PICKS_AT_ONCE // n_picks)
        for start in range(0, n, step):
            rows = min(step, n - start)
            picks = rng.integers(0, size, (rows, n_picks))
            picks += np.arange(rows)[:, None] * size
            times = np.bincount(picks.ravel(), minlength=rows * size)
            drawn[start : start + rows, units] = times.reshape(rows, size)
    return drawn


class Counts:
    """The counts of one phase, packed for the native kernel; columns are layer * n_experts + expert.

    Prompts are named by their row in the profile.
    """

    def __init__(self, arrays: PhaseArrays, n_threads: int | None = None) -> None:
        """Pack the counts [P, L, E] into a matrix [P, L * E]."""
        n, n_layers, n_experts = arrays.counts.shape
        self.n_experts: int = n_experts
        self.matrix = _native.CountMatrix(
            np.ascontiguousarray(arrays.counts).reshape(n, n_layers * n_experts)
        )
        disk.let_go(arrays.counts)
        self.tokens = np.array(arrays.n_tokens, np.int64)
        self.n_columns: int = n_layers * n_experts
        self.n_threads = n_threads or available_cores()

    def top_frequencies(self, sample: Resamples, tops: Sequence[int], block: int) -> npt.NDArray[np.uint32]:
        """Number of resamples in which each column is in the top N of its block, uint32 [len(tops), L * E].

        It is when its sum over the resample is positive and fewer than N columns of the block have a larger one: ties
        at the N-th place all enter, and an expert that is never active doesn't. ``tops`` must increase; ``block`` is
        ``n_columns`` to rank all experts together, ``n_experts`` to rank within layers.
        """
        found: npt.NDArray[np.uint32] = _native.top_frequencies(
            self.matrix, sample.prompts, sample.weights, list(tops), block, self.n_threads
        )
        return found

    def bounds(
        self,
        samples: Sequence[Resamples],
        terms: Sequence[tuple[int, int]],
        columns: npt.NDArray[np.int32],
        quantiles: Sequence[float] = BOUNDS,
    ) -> npt.NDArray[np.float64]:
        """Quantiles over resamples of activation, float64 [len(terms), len(quantiles), len(columns)].

        A term is ``(a, -1)``, the activation in sample a, or ``(a, b)``, that in a less that in b.
        """
        drawn = [(sample.prompts, sample.weights) for sample in samples]
        found: npt.NDArray[np.float64] = _native.bounds(
            self.matrix, self.tokens, drawn, list(terms), columns, list(quantiles), self.n_threads
        )
        return found

    def rates(self, prompts: Sequence[npt.NDArray[np.int32]]) -> npt.NDArray[np.float64]:
        """Activation over each list of prompts: sum of counts / sum of tokens, float64 [len(prompts), L * E]."""
        once = [Resamples(rows, np.ones((1, len(rows)), np.uint16)) for rows in prompts]
        terms = [(i, -1) for i in range(len(once))]
        columns = np.arange(self.n_columns, dtype=np.int32)
        return np.ascontiguousarray(self.bounds(once, terms, columns, [0.5])[:, 0])

    def exceedances(
        self,
        prompts: npt.NDArray[np.int32],
        labels: npt.NDArray[np.uint8],
        observed: npt.NDArray[np.float64],
        columns: npt.NDArray[np.int32],
    ) -> npt.NDArray[np.uint32]:
        """How many rows of ``labels`` [B, n_prompts] (1 = first side) give a difference of at least ``observed``."""
        found: npt.NDArray[np.uint32] = _native.exceedances(
            self.matrix, self.tokens, prompts, labels, observed, columns, self.n_threads
        )
        return found
