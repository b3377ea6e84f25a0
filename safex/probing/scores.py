"""How well out-of-fold scores tell the classes apart, with intervals.

An interval is computed for each repeat from its out-of-fold predictions, and bounds are averaged over repeats. Twins
count together: counts and ranks are those of the effective number of prompts (``safex.rates``). It covers which prompts
happened to be drawn: what probes trained on as many prompts of these kinds would score on further ones. Predictions of
different folds are taken as independent, although the folds share training prompts, and no cross-validation can tell
how much that costs (Bengio & Grandvalet 2004). Measured by ``python tests/test_probing_intervals.py`` (2026-11-25):
share of 300 simulated data sets whose 95 % interval holds the mean of all, 7 cases (40 to 150 prompts, twins that share
0 to 90 % of the variance, AUC 0.52 to 0.97):

=================  ==============  ======================================================================
measure            coverage        where it is lowest
=================  ==============  ======================================================================
accuracy           0.917 to 1.000  strong signal; high where twins of both classes share their errors
balanced accuracy  0.917 to 0.993  likewise
precision, F1      0.937 to 1.000  likewise
AUC                0.933 to 0.997  more features than prompts
recall             0.847 to 0.993  more features than prompts, weak signal, two thirds positive
specificity        0.547 to 0.997  likewise: a fold's probe calls all its prompts positive, or not, together
=================  ==============  ======================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.control_masks import placement
from safex.probing.crossval import Problem
from safex.ranking import auc
from safex.rates import CONFIDENCE, Estimate, cluster_numbers, paired_difference, rate, wilson

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Ints: TypeAlias = npt.NDArray[np.int64]
Row: TypeAlias = dict[str, Any]
Estimates: TypeAlias = "dict[str, Estimate | None]"

METRICS = ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "auc")
MAIN = "auc"  # what groups and controls are compared by: it depends on no threshold and on no share of the classes


def measured(scores: Floats, problem: Problem, chosen: Bools | None = None) -> Row:
    """``n``, ``n_positive``, and each of ``METRICS`` with its interval (None where undefined) of scores [R, n].

    ``chosen``: the prompts that count, default those that the task trains on.
    """
    used = problem.own if chosen is None else chosen
    each = [_of_repeat(one, outer, problem, used) for one, outer in zip(scores, problem.outer, strict=False)]
    scored = used & ~np.isnan(scores).all(axis=0)
    row: Row = {"n": int(scored.sum()), "n_positive": int((scored & problem.labels).sum())}
    for name in METRICS:
        mean = averaged([found[name] for found in each])
        row[name] = None if mean is None else mean.to_json()
    return row


def averaged(estimates: Sequence[Estimate | None]) -> Estimate | None:
    """Means of values and bounds over repeats, of those that are defined."""
    known = [estimate for estimate in estimates if estimate is not None]
    return Estimate(*(float(np.mean(part)) for part in zip(*known, strict=True))) if known else None


def _of_repeat(scores: Floats, outer: Ints, problem: Problem, used: Bools) -> Estimates:
    rows = np.flatnonzero(used & ~np.isnan(scores))
    if not len(rows):
        return dict.fromkeys(METRICS)
    return metrics(scores[rows], problem.labels[rows], problem.blocks[rows].tolist(), outer[rows].tolist())


def metrics(scores: Floats, truth: Bools, clusters: Sequence[int], folds: Sequence[int]) -> Estimates:
    """``METRICS`` of log-odds [n]; twins share a cluster; AUC compares prompts of the same fold.

    F1 = 2 J / (1 + J), with J the rate of true positives among all but true negatives: its interval is J's, mapped.
    """
    said = scores > 0
    right = said == truth

    def among(hits: Bools, these: Bools) -> Estimate | None:
        rows = np.flatnonzero(these)
        return rate(hits[rows].tolist(), [clusters[row] for row in rows.tolist()])

    shared = among(said & truth, said | truth)
    return {
        "accuracy": rate(right.tolist(), clusters),
        "balanced_accuracy": balanced_accuracy(right, truth, clusters),
        "precision": among(truth, said),
        "recall": among(said, truth),
        "specificity": among(~said, ~truth),
        "f1": None if shared is None else Estimate(*(2 * part / (1 + part) for part in shared)),
        "auc": auc(scores, truth, CONFIDENCE, clusters, folds),
    }


def balanced_accuracy(right: Bools, truth: Bools, clusters: Sequence[int]) -> Estimate | None:
    """Mean of the classes' rates of right answers; None where a class is missing.

    Wilson's interval with the effective number: value (1 - value) / variance, the variance summed over clusters, within
    the numbers that constant clusters and independent rows would give.
    """
    if truth.all() or not truth.any():
        return None
    weights = np.where(truth, 0.5 / truth.sum(), 0.5 / (~truth).sum())
    rates = np.where(truth, right[truth].mean(), right[~truth].mean())
    value = min(1.0, float(weights @ right))
    numbers = cluster_numbers(clusters, len(truth))
    sums = np.bincount(numbers, weights * (right - rates))
    variance = float((sums**2).sum()) * len(sums) / max(1, len(sums) - 1)
    least, most = (
        1 / float((np.bincount(groups, weights) ** 2).sum()) for groups in (numbers, np.arange(len(truth)))
    )
    total = min(most, max(least, value * (1 - value) / variance)) if variance > 1e-15 else least
    return wilson(value * total, total)


def values(scores: Floats, problem: Problem, chosen: Bools | None = None) -> dict[str, float]:
    """Accuracy, balanced accuracy and AUC alone, means over repeats; NaN where undefined."""
    row = measured(scores, problem, chosen)
    names = ("accuracy", "balanced_accuracy", "auc")
    return {name: math.nan if row[name] is None else row[name]["value"] for name in names}


# --- against shuffled labels, controls, words


def against_shuffles(real: Floats, shuffled: Floats, problem: Problem) -> Row | None:
    """Where accuracy and AUC of ``real`` [n] (the first repeat) fall among those of shuffled labels [B, n]."""
    if not len(shuffled):
        return None
    observed = fast_values(real, problem.labels, problem)
    found = [fast_values(one, truth, problem) for one, truth in zip(shuffled, problem.shuffles, strict=False)]
    row: Row = {"n": len(found)}
    for name, value in observed.items():
        null = [one[name] for one in found if not math.isnan(one[name])]
        row[name] = None if math.isnan(value) or not null else summary(value, null)
    return row


def fast_values(scores: Floats, truth: Bools, problem: Problem) -> dict[str, float]:
    """Accuracy, and AUC within the first repeat's folds, of scores [n] for any labels; NaN where undefined."""
    rows = np.flatnonzero(problem.own & ~np.isnan(scores))
    if not len(rows):
        return {"accuracy": math.nan, "auc": math.nan}
    right = (scores[rows] > 0) == truth[rows]
    area = auc(scores[rows], truth[rows], CONFIDENCE, None, problem.outer[0][rows].tolist())
    return {"accuracy": float(right.mean()), "auc": math.nan if area is None else area.value}


def summary(value: float, others: Sequence[float]) -> Row:
    """A value among those of controls or shuffles: their mean, 95 % range, extremes, and its p-value (high is rare)."""
    low, high = np.quantile(others, (0.025, 0.975))
    placed = placement(value, others, "high")
    return {
        "value": value,
        "mean": float(np.mean(others)),
        "interval": [float(low), float(high)],
        "min": float(np.min(others)),
        "max": float(np.max(others)),
        "as_good": placed.rank - 1,
        "p_value": placed.p_value,
    }


def against(scores: Floats, others: Floats, problem: Problem, chosen: Bools | None = None) -> Row | None:
    """Accuracy of ``scores`` [R, n] less that of ``others`` [R, n] on the same prompts; means over repeats.

    Each repeat's interval is Tango's for paired rates. None where no prompt has both.
    """
    used = problem.own if chosen is None else chosen
    found = []
    for one, other in zip(scores, others, strict=False):
        rows = np.flatnonzero(used & ~np.isnan(one) & ~np.isnan(other))
        right = [((side[rows] > 0) == problem.labels[rows]).tolist() for side in (other, one)]
        difference = paired_difference(right[0], right[1], problem.blocks[rows].tolist())
        found.append(None if difference is None else difference.difference)
    mean = averaged(found)
    return None if mean is None else mean.to_json()
