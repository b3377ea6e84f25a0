"""Out-of-fold scores: every prompt is scored by a probe that saw neither it nor its twins.

In each outer fold the probe is what this scikit-learn pipeline is, C being ``strength / number of features``::

    make_pipeline(StandardScaler(), GridSearchCV(LogisticRegression(), {"C": ...}, scoring="neg_log_loss", cv=inner))

with ``inner`` the training prompts in 3 folds that keep twins together. Scaling, choice of C and fit see training
prompts only. Shuffled labels run through the same folds, scaling, and choice of C.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from threading import Event
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.probing.folds import Folds
from safex.probing.inputs import Inputs
from safex.probing.logistic import choose_strength, fit
from safex.probing.tasks import Task

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Ints: TypeAlias = npt.NDArray[np.int64]


class Scores(NamedTuple):
    """Log-odds that a prompt is positive, NaN where no probe scored it.

    ``real`` [R, n], one row a repeat; ``shuffled`` [B, n], of probes trained on shuffled labels, in the first repeat's
    folds. ``strengths``: the C chosen in each fold of each repeat. ``n_train``: mean number of training prompts.
    """

    real: Floats
    shuffled: Floats
    strengths: list[float]
    n_train: float


@dataclass(frozen=True)
class Problem:
    """A task on prompts: ``rows`` [n] (of the features), their ``labels``, which are trained on (``own``).

    The others are those of the task's ``transfer`` sets. ``units``, ``blocks`` and ``outer`` [R, n] are their folds,
    ``inner`` [R, K, n] the folds within each training part (-1 elsewhere), ``shuffles`` [B, n] labels shuffled, and
    ``order`` [n] the share of its kind of unit that comes before each prompt, in random order.
    """

    task: Task
    rows: Ints
    labels: Bools
    own: Bools
    units: Ints
    blocks: Ints
    outer: Ints
    inner: Ints
    shuffles: Bools
    order: Floats
    strengths: tuple[float, ...]

    @property
    def transferred(self) -> Bools:
        """The prompts of the transfer: those of its sets, and the task's negative ones."""
        return ~self.own | ~self.labels if not self.own.all() else np.zeros(len(self.rows), bool)

    def is_probed(self, present: Bools) -> bool:
        """Whether these prompts hold enough units of both classes to be split into folds."""
        n_folds = int(self.outer.max()) + 1
        sides = (self.units[present & self.own & (self.labels == side)] for side in (False, True))
        return all(len(np.unique(units)) >= n_folds for units in sides)


def make_problem(
    task: Task, sets: npt.NDArray[np.str_], folds: Folds, strengths: tuple[float, ...], n_shuffles: int
) -> Problem:
    """The task's prompts, folds and shuffled labels."""
    rows = np.flatnonzero(np.isin(sets, task.sets + task.transfer))
    labels, own = ~np.isin(sets[rows], task.negative), np.isin(sets[rows], task.sets)
    units, outer = folds.units[rows], folds.outer[:, rows]
    inner = np.full((len(outer), int(outer.max()) + 1, len(rows)), -1)
    for repeat, fold in np.ndindex(*inner.shape[:2]):
        train = own & (outer[repeat] != fold)
        if labels[train].any() and not labels[train].all():
            inner[repeat, fold, train] = folds.inner(labels[train], rows[train], repeat)
    rng = np.random.default_rng((folds.seed, 1))
    shuffles = np.zeros((n_shuffles, len(rows)), bool)
    for shuffle in shuffles:
        shuffle[own] = shuffled(labels[own], units[own], rng)
        shuffle[~own] = labels[~own]
    order = learning_order(labels, units, np.random.default_rng((folds.seed, 2)))
    return Problem(
        task, rows, labels, own, units, folds.blocks[rows], outer, inner, shuffles, order, strengths
    )


class HaltedError(Exception):
    """The run was given up."""


def out_of_fold(
    inputs: Inputs,
    problem: Problem,
    repeats: int,
    n_shuffles: int = 0,
    share: float = 1.0,
    halt: Event | None = None,
) -> Scores:
    """Scores of all prompts in ``repeats`` repeats; probes train on a ``share`` of the training units.

    Raises HaltedError soon after ``halt`` is set.
    """
    present = inputs.present()[problem.rows]
    n = len(problem.rows)
    real, null = np.full((repeats, n), np.nan), np.full((n_shuffles, n), np.nan)
    strengths, sizes = [], []
    for repeat, fold in np.ndindex(repeats, problem.inner.shape[1]):
        _check(halt)
        in_fold = problem.outer[repeat] == fold
        train = present & problem.own & ~in_fold & (problem.order < share)
        test = present & in_fold
        if not test.any() or not _both(problem.labels[train]):
            continue
        probe = _in_fold(inputs, problem, train, test, problem.inner[repeat, fold, train])
        strength, real[repeat, test] = probe(problem.labels)
        strengths.append(strength)
        sizes.append(int(train.sum()))
        for number in range(0 if repeat else n_shuffles):
            _check(halt)
            if _both(problem.shuffles[number, train]):
                null[number, test] = probe(problem.shuffles[number])[1]
    return Scores(real, null, strengths, float(np.mean(sizes)) if sizes else 0.0)


def _in_fold(
    inputs: Inputs, problem: Problem, train: Bools, test: Bools, inner: Ints
) -> Callable[[Bools], tuple[float, Floats]]:
    """For any labels [n]: the C that the training prompts choose, and the scores of the test prompts."""
    used = train | test
    gram = inputs.gram(problem.rows[used], train[used])
    own, across = gram[train[used]], gram[test[used]]

    def probe(labels: Bools) -> tuple[float, Floats]:
        strength = choose_strength(own, labels[train], inner, problem.strengths)
        return strength, fit(own, labels[train], strength).predict(across)

    return probe


def _check(halt: Event | None) -> None:
    if halt and halt.is_set():
        raise HaltedError


def _both(labels: Bools) -> bool:
    return bool(labels.any() and not labels.all())


# --- shuffled labels, shares of the training prompts


def shuffled(labels: Bools, units: Ints, rng: np.random.Generator) -> Bools:
    """Labels shuffled so that units stay what they are: twins of one label keep one, twins of two labels keep two.

    Units of one label exchange it among each other. Units of both labels exchange theirs with units of the same size,
    and within.

    >>> units = np.array([0, 0, 1, 1, 2, 3])
    >>> mixed = shuffled(np.array([1, 0, 1, 0, 1, 0], bool), units, np.random.default_rng(0))
    >>> int(mixed[:2].sum()), int(mixed[2:4].sum()), int(mixed[4:].sum())
    (1, 1, 1)
    """
    made: Bools = labels.copy()
    numbers = np.unique(units, return_inverse=True)[1]
    size, positive = np.bincount(numbers), np.bincount(numbers, labels)
    members = np.split(np.argsort(numbers, kind="stable"), np.cumsum(size)[:-1])
    pure = np.flatnonzero((positive == 0) | (positive == size))
    for unit, label in zip(pure, rng.permutation(positive[pure] > 0), strict=True):
        made[members[unit]] = label
    mixed = np.flatnonzero((positive > 0) & (positive < size))
    for n in np.unique(size[mixed]):
        rows = np.array([members[unit] for unit in mixed if size[unit] == n])
        made[rows] = rng.permuted(labels[rows][rng.permutation(len(rows))], axis=1)
    return made


def learning_order(labels: Bools, units: Ints, rng: np.random.Generator) -> Floats:
    """For each row the share of its unit's kind (units with as many rows of each label) that comes before it.

    So rows below a share are whole units, in the same proportion of labels, and hold those of smaller shares.
    """
    numbers = np.unique(units, return_inverse=True)[1]
    kinds = np.stack([np.bincount(numbers[labels == side], minlength=numbers.max() + 1) for side in (0, 1)])
    order = np.zeros(numbers.max() + 1)
    for kind in np.unique(kinds, axis=1).T:
        chosen = np.flatnonzero((kinds == kind[:, None]).all(axis=0))
        order[chosen] = rng.permutation(len(chosen)) / len(chosen)
    return order[numbers]
