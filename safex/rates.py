"""Rates and their differences with intervals, exact tests, and what repeated samples of a prompt change.

Everything is a share from 0 to 1 (a difference: -1 to 1; times 100 it is in points), intervals are two-sided. What
can't be estimated because there is no data is None. Answers that could not be read are no data: they are counted, and
enter no rate and no difference. The methods were chosen by the coverage of their 95 % intervals.
Measured by ``python tests/test_rates.py`` (2026-11-22), a simulated truth a case, 20,000 data sets each for the first
three rows and 2,000 for the others:

=================================  =================================================  =====  ================  =====
estimate                           method                                             cases  coverage          mean
=================================  =================================================  =====  ================  =====
rate                               Wilson (1927)                                      21     0.929 to 0.982    0.956
paired difference                  Tango (1998)                                       24     0.948 to 0.999    0.963
unpaired difference                Newcombe (1998), square-and-add                    18     0.914 to 0.992    0.949
rate, several samples a prompt     Wilson, effective number                           12     0.921 to 0.969    0.943
paired difference, likewise        Tango, effective number                            18     0.931 to 0.967    0.952
AUC (``safex.ranking``)            hull of DeLong (1988) and Newcombe (2006)          48     0.938 to 0.998    0.970
=================================  =================================================  =====  ================  =====

Looked at and left: Newcombe's paired interval (0.912 where a mask takes a rate from 0.99 to 0.02, n = 80 or less; Tango
0.965), several samples counted as independent (0.72), the bootstrap of clusters for rates (0.66 at a rate of 0.99),
DeLong alone (0.64 near 1 with ties and unequal groups), Newcombe's AUC alone (0.83 where the groups spread unequally).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import stats

from safex.errors import InputError

Floats: TypeAlias = npt.NDArray[np.float64]
Rows: TypeAlias = npt.NDArray[np.int64]
Clusters: TypeAlias = Sequence[Hashable] | None
Hits: TypeAlias = Sequence["bool | None"]  # None: the response could not be read

CONFIDENCE = 0.95
READINGS = ("refuse", "comply", "other")  # the three-way reading of a verdict
APART = (
    "empty",
    "truncated",
    "reasoning",
    "degenerate",
)  # why an answer could not be read: no reading at all
_HALVINGS = 60  # of an interval of length 2: to the last bit


class Estimate(NamedTuple):
    """A value and its interval."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, Any]:
        """``{"value": ..., "interval": [low, high]}``."""
        return {"value": self.value, "interval": [self.low, self.high]}


# --- rates


def wilson(hits: float, total: float, confidence: float = CONFIDENCE) -> Estimate | None:
    """A rate with Wilson's score interval (1927); None where ``total`` is 0. Counts need not be whole.

    >>> wilson(0, 10).high < 0.28
    True
    """
    if not 0 <= hits <= total:
        raise InputError(f"a rate of {hits} in {total}: expected 0 <= hits <= total")
    if not total:
        return None
    z2 = normal_quantile(confidence) ** 2
    middle = (hits + z2 / 2) / (total + z2)
    half = math.sqrt(z2 * (hits * (total - hits) / total + z2 / 4)) / (total + z2)
    low = 0.0 if hits == 0 else middle - half
    return Estimate(hits / total, low, 1.0 if hits == total else middle + half)


def rate(hits: Sequence[bool], clusters: Clusters = None, confidence: float = CONFIDENCE) -> Estimate | None:
    """The rate of ``hits``, one for each response.

    ``clusters`` names the cluster of each response (its prompt where it was sampled several times, its pair where twins
    are counted together): the interval is then Wilson's with the effective number of responses, see ``effective``.

    >>> rate([True, True, False, True]).value
    0.75
    """
    values = _numbers(hits, "hits")
    if not len(values):
        return None
    total = effective(values, clusters)
    return wilson(min(float(values.mean()) * total, total), total, confidence)


def effective(values: Floats, clusters: Clusters) -> float:
    """How many independent values hold as much about their mean as these do.

    n / design effect; the design effect is the mean's variance between clusters (linearised) over that of independent
    values. Never more than n, nor less than n^2 / sum of squared cluster sizes, the number if clusters were constant.
    """
    n = len(values)
    if clusters is None:
        return float(n)
    numbers = cluster_numbers(clusters, n)
    sizes = np.bincount(numbers).astype(np.float64)
    least = n**2 / float((sizes**2).sum())
    independent = float(values.var()) / n
    if len(sizes) < 2 or independent < 1e-15:
        return least
    residuals = np.bincount(numbers, values - values.mean())
    between = len(sizes) / (len(sizes) - 1) * float((residuals**2).sum()) / n**2
    return min(float(n), max(least, n * independent / between if between > 0 else n))


def three_way(verdicts: Sequence[str], clusters: Clusters = None) -> dict[str, Any]:
    """Rates of ``READINGS``, each with ``count``, ``value`` and ``interval``, over the verdicts that are ``readable``.

    ``n`` counts all, each of ``APART`` those of its kind, which enter no rate. Any other name is read as "other". Rates
    of no readable verdicts are None.

    >>> row = three_way(["refuse", "refuse", "comply", "empty"])
    >>> row["n"], row["readable"], row["refuse"]["count"], row["other"]["count"], row["empty"]
    (4, 3, 2, 0, 1)
    """
    rows = [i for i, verdict in enumerate(verdicts) if verdict not in APART]
    read, of_read = [_read(verdicts[i]) for i in rows], part_of(clusters, rows)
    row: dict[str, Any] = {"n": len(verdicts), "readable": len(rows)}
    for reading in READINGS:
        hits = [reading == one for one in read]
        estimate = rate(hits, of_read)
        row[reading] = None if estimate is None else {"count": sum(hits), **estimate.to_json()}
    return row | {name: sum(verdict == name for verdict in verdicts) for name in APART}


def _read(verdict: str) -> str:
    return verdict if verdict in READINGS else "other"


def by_category(
    verdicts: Sequence[str], categories: Sequence[str | None], clusters: Clusters = None
) -> list[dict[str, Any]]:
    """``three_way`` for each category, in order of appearance, with its name as ``category``."""
    return [
        {"category": name, **three_way([verdicts[i] for i in rows], part_of(clusters, rows))}
        for name, rows in _by_name(categories, len(verdicts)).items()
    ]


# --- differences


@dataclass(frozen=True)
class Paired:
    """Two rates of the same ``n`` responses, readable on both sides, and their difference ``after - before``.

    ``lost`` responses were hits before and not after, ``gained`` the other way. ``p_value`` is exact, two-sided:
    McNemar's where each response is a cluster of its own, see ``sign_flip_p``. ``left_out`` more responses could not be
    read on one side or both; ``bounds`` are the least and the largest difference of all responses, whatever those were.
    """

    n: int
    before: Estimate
    after: Estimate
    difference: Estimate
    lost: int
    gained: int
    p_value: float
    left_out: int = 0
    bounds: tuple[float, float] = (-1.0, 1.0)

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        parts = {name: getattr(self, name).to_json() for name in ("before", "after", "difference")}
        counts = {name: getattr(self, name) for name in ("n", "left_out", "lost", "gained", "p_value")}
        return {**counts, **parts, "bounds": list(self.bounds)}


def no_pairs(left_out: int) -> dict[str, Any]:
    """What ``Paired.to_json`` gives where none of the responses could be read on both sides: nothing is known."""
    unknown = dict.fromkeys(("before", "after", "difference", "p_value"))
    return {"n": 0, "left_out": left_out, "lost": 0, "gained": 0, **unknown, "bounds": [-1.0, 1.0]}


def paired_difference(
    before: Hits,
    after: Hits,
    clusters: Clusters = None,
    confidence: float = CONFIDENCE,
) -> Paired | None:
    """Compare hits before and after, given for the same responses in the same order.

    A response that is None on either side could not be read and is left out; the result is None where no pair is
    left. The interval is Tango's, with counts scaled to the effective number of responses where there are clusters.

    >>> result = paired_difference([True] * 8, [False] * 7 + [True])
    >>> result.difference.value, result.p_value
    (-0.875, 0.015625)
    >>> paired_difference([True, True, True], [False, True, None]).bounds
    (-0.6666666666666666, -0.3333333333333333)
    """
    all_before, all_after = _known(before, "before"), _known(after, "after")
    if len(all_before) != len(all_after):
        raise InputError(
            f"{len(all_before)} responses before, {len(all_after)} after: expected the same ones in the same order"
        )
    kept = np.flatnonzero(np.isfinite(all_before) & np.isfinite(all_after))
    a, b = all_before[kept], all_after[kept]
    clusters = part_of(clusters, kept.tolist())
    first, second = (rate((side == 1).tolist(), clusters, confidence) for side in (a, b))
    if first is None or second is None:
        return None
    change = b - a
    lost, gained = int((change < 0).sum()), int((change > 0).sum())
    scale = effective(change, clusters) / len(a)
    return Paired(
        n=len(a),
        before=first,
        after=second,
        difference=tango(gained * scale, lost * scale, len(a) * scale, confidence),
        lost=lost,
        gained=gained,
        p_value=sign_flip_p(change, clusters),
        left_out=len(all_before) - len(a),
        bounds=worst_cases(all_before, all_after),
    )


def worst_cases(before: npt.ArrayLike, after: npt.ArrayLike) -> tuple[float, float]:
    """Least and largest mean of ``after - before``, of values from 0 to 1, whatever those that are NaN may have been.

    No assumption about why a response could not be read (Manski 1990, bounds without assumptions).

    >>> worst_cases([1.0, 1.0], [0.0, np.nan])
    (-1.0, -0.5)
    """
    first, second = np.asarray(before, np.float64), np.asarray(after, np.float64)
    low = np.nan_to_num(second, nan=0.0) - np.nan_to_num(first, nan=1.0)
    high = np.nan_to_num(second, nan=1.0) - np.nan_to_num(first, nan=0.0)
    return float(low.mean()), float(high.mean())


def tango(gained: float, lost: float, total: float, confidence: float = CONFIDENCE) -> Estimate:
    """Difference ``(gained - lost) / total`` of two paired rates with the score interval of Tango (1998).

    It holds the differences that a score test would not reject: (gained - lost - n d) / sqrt(n (2 q + d (1 - d))), with
    q the likeliest share of ``lost`` given d. Counts need not be whole.
    """
    if min(gained, lost) < 0 or gained + lost > total * (1 + 1e-12) or total <= 0:
        raise InputError(f"{gained} gained and {lost} lost of {total}: expected counts that fit the total")

    def score(d: float) -> float:
        b = (2 * total - gained + lost) * d - gained - lost
        q = (math.sqrt(max(0.0, b**2 + 8 * total * lost * d * (1 - d))) - b) / (4 * total)
        return (gained - lost - total * d) / math.sqrt(max(1e-300, total * (2 * q + d * (1 - d))))

    value, z = max(-1.0, min(1.0, (gained - lost) / total)), normal_quantile(confidence)
    low = where_it_falls(lambda d: score(d) > z, -1.0, value)
    return Estimate(value, low, where_it_falls(lambda d: score(d) > -z, value, 1.0))


def mean_change(changes: npt.ArrayLike) -> Estimate:
    """Mean of changes from -1 to 1, one for each of independent responses, with Tango's interval of their masses.

    The positive and the negative parts are summed as if they were counts of responses gained and lost. A change's
    square is at most its size, so the variance is never taken too small: of -1, 0 and 1 the interval is Tango's own,
    of fractions it is wider than needed. For a response less the mean of others of its prompt. Raises InputError.

    >>> mean_change([-1.0, -0.5, 0.0, 0.5]).value
    -0.25
    """
    values = np.asarray(changes, np.float64)
    if values.ndim != 1 or not len(values) or not (np.abs(values) <= 1).all():
        raise InputError("changes: expected a list of numbers from -1 to 1, at least one")
    gained, lost = float(values.clip(0).sum()), float((-values).clip(0).sum())
    return tango(gained, lost, len(values))


def where_it_falls(is_before: Callable[[float], bool], low: float, high: float) -> float:
    """Where a condition that holds at ``low`` stops to hold, to the last bit."""
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        low, high = (middle, high) if is_before(middle) else (low, middle)
    return (low + high) / 2


def unpaired_difference(first: Estimate, second: Estimate) -> Estimate:
    """``second - first`` of independent rates by square-and-add (Newcombe 1998): from the two intervals.

    >>> unpaired_difference(wilson(9, 10), wilson(1, 10)).value
    -0.8
    """
    value = second.value - first.value
    low = value - math.hypot(second.value - second.low, first.high - first.value)
    return Estimate(value, low, value + math.hypot(second.high - second.value, first.value - first.low))


def sign_flip_p(change: npt.ArrayLike, clusters: Clusters = None) -> float:
    """Exact two-sided p-value that ``change`` (-1, 0 or 1 for each response) has no direction.

    Before and after swap in whole clusters at random: the share of swaps with a sum at least as far from 0. With a
    cluster for each response it is McNemar's exact test.

    >>> sign_flip_p([1, 1, 1, 0, -1])
    0.625
    """
    values = np.asarray(change, np.int64)
    numbers = np.arange(len(values)) if clusters is None else cluster_numbers(clusters, len(values))
    sums = np.abs(np.bincount(numbers, values).astype(np.int64)) if len(values) else values
    observed, reach = abs(int(values.sum())), int(sums.sum())
    chance = np.zeros(2 * reach + 1)  # of each sum from -reach to reach
    chance[reach] = 1.0
    for step in sums[sums > 0].tolist():
        chance = (np.roll(chance, step) + np.roll(chance, -step)) / 2
    tails = chance[: reach - observed + 1].sum() + chance[reach + observed :].sum()
    return min(1.0, float(tails))


def differences_by_category(
    before: Hits,
    after: Hits,
    categories: Sequence[str | None],
    clusters: Clusters = None,
) -> list[dict[str, Any]]:
    """``paired_difference`` for each category, with its name and ``p_holm``, the p-value corrected over categories.

    A category without readable pairs has no p-value and counts for no correction.
    """
    rows = []
    for name, places in _by_name(categories, len(before)).items():
        first, second = ([side[i] for i in places] for side in (before, after))
        found = paired_difference(first, second, part_of(clusters, places))
        rows.append({"category": name, **(found.to_json() if found else no_pairs(len(places)))})
    corrected = iter(holm([row["p_value"] for row in rows if row["p_value"] is not None]))
    return [{**row, "p_holm": None if row["p_value"] is None else next(corrected)} for row in rows]


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number (Holm 1979): the k-th smallest of m times m - k + 1, never falling.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p = np.asarray(p_values, np.float64)
    order = np.argsort(p, kind="stable")
    corrected = np.empty(len(p))
    corrected[order] = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    return [float(value) for value in np.minimum(corrected, 1.0)]


# --- any other statistic, clustered


def cluster_bootstrap(
    statistic: Callable[[Rows], float],
    clusters: Sequence[Hashable],
    resamples: int = 2000,
    seed: int = 0,
    confidence: float = CONFIDENCE,
) -> Estimate:
    """A statistic of rows with the interval of resampled clusters (expanded percentile, Hesterberg 2015).

    ``statistic`` gets row numbers, some of them several times. For a rate near 0 or 1 use ``rate``: a bootstrap covers
    too little there (0.66 at a rate of 0.99 with 80 prompts of 4 samples), and has no width where all responses agree.
    Raises InputError for fewer than two clusters, or where the statistic of a resample isn't finite.
    """
    numbers = cluster_numbers(clusters, len(clusters))
    n = int(numbers.max()) + 1 if len(numbers) else 0
    if n < 2:
        raise InputError(f"a bootstrap needs at least two clusters, found {n}; give more prompts or text")
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(np.bincount(numbers))[:-1])
    rng = np.random.default_rng(seed)
    values = [
        statistic(np.concatenate([members[k] for k in rng.integers(0, n, n)])) for _ in range(resamples)
    ]
    if not np.isfinite(values).all():
        raise InputError("the statistic of a resample is not a finite number: is a class or set too small?")
    tail = percentile_tail(n, confidence)
    low, high = np.quantile(values, (tail, 1 - tail))
    return Estimate(float(statistic(np.arange(len(numbers)))), float(low), float(high))


def percentile_tail(n: int, confidence: float = CONFIDENCE) -> float:
    """Share of resamples of ``n`` clusters beyond each end of an interval (expanded percentile, Hesterberg 2015).

    >>> percentile_tail(10) < 0.025 and round(percentile_tail(10**6), 4)
    0.025
    """
    return float(stats.norm.cdf(math.sqrt(n / (n - 1)) * stats.t.ppf((1 - confidence) / 2, n - 1)))


# --- input


def normal_quantile(confidence: float) -> float:
    """How many standard errors a two-sided interval reaches. Raises InputError for no share between 0 and 1."""
    if not 0 < confidence < 1:
        raise InputError(f"confidence is {confidence}, expected a share between 0 and 1 such as 0.95")
    return float(stats.norm.ppf((1 + confidence) / 2))


def _numbers(hits: Sequence[bool], what: str) -> Floats:
    values = np.asarray(hits, np.float64)
    if values.ndim != 1 or not np.isin(values, (0, 1)).all():
        raise InputError(f"{what}: expected a list of true and false")
    return values


def _known(hits: Hits, what: str) -> Floats:
    """1 and 0, NaN where a response could not be read."""
    known = [hit for hit in hits if hit is not None]
    _numbers(known, what)
    return np.array([np.nan if hit is None else float(hit) for hit in hits], np.float64)


def cluster_numbers(clusters: Sequence[Hashable], n: int) -> Rows:
    """Clusters numbered in order of appearance. Raises InputError where there isn't one for each of ``n`` responses."""
    if len(clusters) != n:
        raise InputError(f"{len(clusters)} cluster names for {n} responses: expected one each")
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(name, len(seen)) for name in clusters], np.int64)


def _by_name(names: Sequence[str | None], n: int) -> dict[str | None, list[int]]:
    if len(names) != n:
        raise InputError(f"{len(names)} categories for {n} responses: expected one each")
    rows: dict[str | None, list[int]] = {}
    for i, name in enumerate(names):
        rows.setdefault(name, []).append(i)
    return rows


def part_of(clusters: Clusters, rows: Iterable[int]) -> Clusters:
    """The clusters of some rows."""
    return None if clusters is None else [clusters[i] for i in rows]
