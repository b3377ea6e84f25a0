"""The area under the ROC curve with its interval; ``safex.rates`` holds the measured coverage."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from safex.errors import InputError
from safex.rates import (
    CONFIDENCE,
    Clusters,
    Estimate,
    Floats,
    Rows,
    cluster_numbers,
    effective,
    normal_quantile,
    part_of,
    where_it_falls,
)


def auc(
    scores: npt.ArrayLike,
    labels: npt.ArrayLike,
    confidence: float = CONFIDENCE,
    clusters: Clusters = None,
    strata: Clusters = None,
) -> Estimate | None:
    """Chance that a row with a true label has a higher score than one with a false label (ties count half).

    The interval holds those of DeLong (1988) on the logit scale and of Newcombe (2006, method 5): the first fails near
    1 and in small groups, the second where the groups spread unequally. ``clusters`` names the cluster of each row
    (twins): DeLong's variance is then summed over clusters (Obuchowski 1997), and Newcombe's groups have their
    effective sizes. With ``strata`` only rows of one stratum are compared, as the scores of a cross-validation fold,
    whose scale may be its own. None where no two rows can be compared.

    >>> auc([0.1, 0.4, 0.35, 0.8], [False, False, True, True]).value
    0.75
    """
    values, truth = np.asarray(scores, np.float64), np.asarray(labels, bool)
    if values.ndim != 1 or values.shape != truth.shape or np.isnan(values).any():
        raise InputError("scores and labels: expected two lists of the same length, scores without NaN")
    sides = _placements(values, truth, strata)
    if not len(sides[0].rows):
        return None
    value = min(
        1.0, float((sides[0].weights * sides[0].placed).sum())
    )  # weights add up to 1 but for rounding
    m, n = (effective(side.placed, part_of(clusters, side.rows)) for side in sides)
    low, high = _newcombe_5(value, m, n, confidence)
    delong = _delong(value, sides, clusters, confidence)
    return Estimate(value, min(low, delong[0]), max(high, delong[1]))


class _Side(NamedTuple):
    """Rows of one label, the share of the other label's rows that each is on the right side of, and its weight."""

    rows: Rows
    placed: Floats
    weights: Floats


def _placements(values: Floats, truth: npt.NDArray[np.bool_], strata: Clusters) -> tuple[_Side, _Side]:
    """Both sides; strata weigh as many pairs as they hold, and those with one label nothing."""
    numbers = np.zeros(len(values), np.int64) if strata is None else cluster_numbers(strata, len(values))
    parts: list[tuple[_Side, _Side]] = []
    for number in np.unique(numbers):
        true, false = (
            np.flatnonzero((numbers == number) & truth),
            np.flatnonzero((numbers == number) & ~truth),
        )
        if len(true) and len(false):
            above = _Side(
                true, _share_below(values[true], values[false]), np.full(len(true), float(len(false)))
            )
            below = 1 - _share_below(values[false], values[true])
            parts.append((above, _Side(false, below, np.full(len(false), float(len(true))))))
    return _joined([above for above, _ in parts]), _joined([below for _, below in parts])


def _joined(sides: Sequence[_Side]) -> _Side:
    if not sides:
        return _Side(np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    rows, placed, weights = (np.concatenate(column) for column in zip(*sides, strict=True))
    return _Side(rows, placed, weights / weights.sum())


def _share_below(values: Floats, others: Floats) -> Floats:
    ordered = np.sort(others)
    twice = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return np.asarray(twice / (2 * len(others)))


def _delong(
    value: float, sides: tuple[_Side, _Side], clusters: Clusters, confidence: float
) -> tuple[float, float]:
    if not 0 < value < 1 or min(len(side.rows) for side in sides) < 2:
        return value, value
    shares = [side.weights * (side.placed - value) for side in sides]
    if clusters is None:
        variance = sum(_variance_of_sum(share) for share in shares)
    else:
        rows = np.concatenate([side.rows for side in sides])
        numbers = cluster_numbers([clusters[row] for row in rows], len(rows))
        variance = _variance_of_sum(np.bincount(numbers, np.concatenate(shares)).astype(np.float64))
    half = normal_quantile(confidence) * math.sqrt(variance) / (value * (1 - value))
    logit = math.log(value / (1 - value))
    return _logistic(logit - half), _logistic(logit + half)


def _variance_of_sum(parts: Floats) -> float:
    """Of the sum of independent parts whose mean is 0."""
    return float((parts**2).sum()) * len(parts) / max(1, len(parts) - 1)


def _newcombe_5(value: float, m: float, n: float, confidence: float) -> tuple[float, float]:
    """Areas whose own Hanley-McNeil standard error (both groups of the mean size) doesn't exclude ``value``."""
    z, others = normal_quantile(confidence), (m + n) / 2 - 1

    def error(area: float) -> float:
        spread = 1 + others * ((1 - area) / (2 - area) + area / (1 + area))
        return math.sqrt(area * (1 - area) * spread / (m * n))

    low = where_it_falls(lambda area: value - area > z * error(area), 0.0, value)
    return low, where_it_falls(lambda area: area - value < z * error(area), value, 1.0)


def _logistic(x: float) -> float:
    return 1 / (1 + math.exp(-x)) if x > -700 else 0.0
