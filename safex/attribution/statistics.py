"""Means over prompts with paired bootstrap intervals, and p-values adjusted for the number of experts."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from safex.prompts import Prompt

Floats: TypeAlias = npt.NDArray[np.float64]

BOUNDS = (2.5, 97.5)  # percentiles of the interval
CORRECTIONS = ("holm", "bh")


class Means(NamedTuple):
    """Means [n] with bounds [n] of their 95 % percentile intervals."""

    value: Floats
    low: Floats
    high: Floats


def resamples(prompts: Sequence[Prompt], n: int, rng: np.random.Generator) -> npt.NDArray[np.uint16]:
    """How often each prompt is drawn in each resample: [n, P]. Twins (prompts of one ``pair``) are drawn together.

    Units (twins or single prompts) are drawn among those of the same sets, so that every set keeps its size.
    """
    units: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for i, prompt in enumerate(prompts):
        units[("pair", prompt.pair) if prompt.pair else ("alone", prompt.set, prompt.id)].append(i)
    strata: dict[tuple[str, ...], list[list[int]]] = defaultdict(list)
    for members in units.values():
        strata[tuple(sorted(prompts[i].set for i in members))].append(members)
    drawn = np.zeros((n, len(prompts)), np.uint16)
    for stratum in strata.values():
        times = rng.multinomial(len(stratum), [1 / len(stratum)] * len(stratum), n)
        for place, members in enumerate(stratum):
            drawn[:, members] = times[:, [place]]
    return drawn


def resampled_means(values: Floats, drawn: npt.NDArray[np.uint16]) -> Floats:
    """Mean of each row of ``values`` [n, P] in each resample ``drawn`` [S, P]: [n, S]."""
    weights = drawn / drawn.sum(axis=1, keepdims=True)
    return np.asarray(values @ weights.T)


def means(values: Floats, drawn: npt.NDArray[np.uint16]) -> Means:
    """Mean of each row of ``values`` [n, P] over prompts, with the percentile interval of the resamples."""
    return with_bounds(values.mean(axis=1), resampled_means(values, drawn))


def with_bounds(value: Floats, resampled: Floats) -> Means:
    """``value`` [n] with the percentile interval of ``resampled`` [n, S]."""
    low, high = np.percentile(resampled, BOUNDS, axis=1)
    return Means(value, low, high)


def p_values(values: Floats) -> Floats:
    """Two-sided p of the paired t-test that a row of differences [n, P] has mean 0; 1 where all of them are 0."""
    spread, mean = values.std(axis=1, ddof=1), values.mean(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = mean / (spread / np.sqrt(values.shape[1]))
    p = 2 * stats.t.sf(np.abs(t), values.shape[1] - 1)
    return np.where((values == 0).all(axis=1), 1.0, p)


def adjusted(p: Floats, correction: str) -> Floats:
    """p-values for all tests together: ``holm`` (family-wise error) or ``bh`` (false-discovery rate).

    >>> adjusted(np.array([0.01, 0.04, 0.03]), "holm").tolist()
    [0.03, 0.06, 0.06]
    """
    if correction == "bh" or not p.size:
        return np.asarray(stats.false_discovery_control(p)) if p.size else p
    order = np.argsort(p, kind="stable")
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    result = np.empty(len(p))
    result[order] = np.minimum(steps, 1.0)
    return result
