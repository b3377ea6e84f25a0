"""Logistic regression with an L2 penalty, solved exactly on the Gram matrix of the training rows.

The minimum of ``|w|^2 / 2 + C * sum(log-loss)``, the intercept free, lies in the span of the training rows: w = sum of
alpha_i x_i. So n numbers are sought, not n_embd x experts: scikit-learn's LogisticRegression gives the same scores from
the rows themselves (a test compares them). Newton's method in the form of Rasmussen & Williams (2006, algorithm 3.1): a
Cholesky factorisation of [n, n] a step, 3 to 6 steps, starting from the solution for the C before.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.linalg import lapack

from safex.errors import SafexError

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]

TOLERANCE = 1e-6  # of the last step, in log-odds; steps shrink quadratically
ROUGH = 1e-3  # where solutions only serve to choose C: the error left is of the size of its square
MAX_STEPS = 100
SURE = 1.0  # steps shorter than this go downhill: the curvature changes by less than a factor of e on the way
FAR = 60.0  # log-odds beyond this are the same in double precision


class Fit(NamedTuple):
    """Weights of the training rows, the intercept, and the log-odds of the training rows."""

    alpha: Floats
    intercept: float
    log_odds: Floats

    def predict(self, gram: Floats) -> Floats:
        """Log-odds of other rows, from their inner products with the training rows [m, n]."""
        return np.asarray(gram @ self.alpha + self.intercept)


def fit(
    gram: Floats, labels: Bools, strength: float, start: Fit | None = None, tolerance: float = TOLERANCE
) -> Fit:
    """The minimum for C = ``strength``, given inner products ``gram`` [n, n] and ``labels`` [n] of both classes."""
    signs = np.where(labels, 1.0, -1.0)
    now = start or Fit(np.zeros(len(signs)), 0.0, np.zeros(len(signs)))
    for _ in range(MAX_STEPS):
        target = _newton(gram, signs, strength, now.log_odds)
        moved = float(np.abs(target.log_odds - now.log_odds).max())
        now = target if moved < SURE else _downhill(now, target, signs, strength)
        if moved < tolerance:
            return now
    raise SafexError(f"logistic regression did not converge in {MAX_STEPS} steps (C = {strength:g})")


def _newton(gram: Floats, signs: Floats, strength: float, log_odds: Floats) -> Fit:
    """The minimum of the quadratic that touches the objective at these log-odds."""
    n = len(signs)
    near = np.clip(log_odds, -FAR, FAR)
    root = math.sqrt(strength) / (2 * np.cosh(near / 2))  # of strength * p * (1 - p)
    system = root[:, None] * gram * root
    system.flat[:: n + 1] += 1
    right = np.empty((n, 2), order="F")
    right[:, 0] = math.sqrt(strength) * signs * np.exp(-signs * near / 2) + root * near
    right[:, 1] = root
    _, solved, failed = lapack.dposv(system.T, right, overwrite_a=1, overwrite_b=1)
    if failed:
        raise SafexError(f"logistic regression: the system can't be solved (C = {strength:g})")
    intercept = float(root @ solved[:, 0] / (root @ solved[:, 1]))
    alpha = root * (solved[:, 0] - intercept * solved[:, 1])
    return Fit(alpha, intercept, gram @ alpha + intercept)


def _downhill(now: Fit, target: Fit, signs: Floats, strength: float) -> Fit:
    """The target, or as near to it as the objective does not rise."""
    value, step, new = _objective(now, signs, strength), 1.0, target
    while _objective(new, signs, strength) > value + 1e-9 * abs(value) and step > 1e-6:
        step /= 2
        new = _between(now, target, step)
    return new


def _objective(at: Fit, signs: Floats, strength: float) -> float:
    """``alpha @ gram @ alpha / 2 + C * log-loss``."""
    loss = float(np.logaddexp(0, -signs * at.log_odds).sum())
    return float(at.alpha @ (at.log_odds - at.intercept)) / 2 + strength * loss


def _between(a: Fit, b: Fit, share: float) -> Fit:
    return Fit(
        a.alpha + share * (b.alpha - a.alpha),
        a.intercept + share * (b.intercept - a.intercept),
        a.log_odds + share * (b.log_odds - a.log_odds),
    )


def choose_strength(
    gram: Floats, labels: Bools, folds: npt.NDArray[np.int64], strengths: Sequence[float]
) -> float:
    """The C of increasing ``strengths`` with the least mean log-loss over ``folds``; the smallest of equal ones.

    As scikit-learn's GridSearchCV with ``scoring="neg_log_loss"``. A fold without rows, or whose training rows lack a
    class, doesn't count; without any that counts, the middle C is taken.
    """
    losses = [
        _losses(gram, labels, folds == number, strengths)
        for number in np.unique(folds)
        if number >= 0 and _both(labels[folds != number])
    ]
    if not losses:
        return strengths[len(strengths) // 2]
    return strengths[int(np.mean(losses, axis=0).argmin())]


def _losses(gram: Floats, labels: Bools, test: Bools, strengths: Sequence[float]) -> list[float]:
    train = ~test
    own, across = gram[np.ix_(train, train)], gram[np.ix_(test, train)]
    signs = np.where(labels[test], 1.0, -1.0)
    found: Fit | None = None
    losses = []
    for strength in strengths:
        found = fit(own, labels[train], strength, found, ROUGH)
        losses.append(float(np.logaddexp(0, -signs * found.predict(across)).mean()))
    return losses


def _both(labels: Bools) -> bool:
    return bool(labels.any() and not labels.all())
