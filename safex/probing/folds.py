"""Which prompts a probe is trained on and tested on.

Prompts that must not be on both sides form a unit: twins (a common ``pair``), and prompts of the same text. Folds are
scikit-learn's StratifiedGroupKFold over the sets, so a plain script makes the same ones: repeat r has the
``random_state`` of ``random_state(seed, r)``, and the groups are ``Folds.blocks``.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from safex.errors import InputError
from safex.features import Features
from safex.probing.tasks import Task

Ints: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]

INNER = 3  # folds in which the strength of the penalty is chosen
HOLD_OUT = ("category",)


@dataclass(frozen=True)
class Folds:
    """For each of P prompts: its ``units`` number, its ``blocks`` number, and its fold in each repeat ``outer`` [R, P].

    A fold holds whole blocks: units, or where categories are held out whole categories, joined where a unit spans them.
    """

    units: Ints
    blocks: Ints
    outer: Ints
    seed: int

    def inner(self, labels: Bools, train: Ints, repeat: int) -> Ints:
        """Inner folds of the training prompts ``train`` with these ``labels``, whole units each; -1 where none can be.

        None can be where a class has fewer than two units.
        """
        units = self.units[train]
        fewest = min(len(np.unique(units[labels == side])) for side in (False, True))
        if fewest < 2:
            return np.full(len(train), -1)
        return split(labels.astype(np.int64), units, min(INNER, fewest), random_state(self.seed, repeat))


def random_state(seed: int, repeat: int) -> int:
    """Of scikit-learn's splitter in a repeat."""
    return (1000 * seed + repeat) % 2**32


def split(labels: npt.NDArray[np.int64], groups: Ints, n_folds: int, state: int) -> Ints:
    """The fold of each row: stratified by ``labels``, whole ``groups`` each."""
    from sklearn.model_selection import StratifiedGroupKFold  # slow to import

    fold = np.empty(len(labels), np.int64)
    splitter = StratifiedGroupKFold(n_folds, shuffle=True, random_state=state)
    for number, (_, test) in enumerate(splitter.split(np.zeros((len(labels), 1)), labels, groups)):
        fold[test] = number
    return fold


def make_folds(
    features: Features, tasks: Sequence[Task], n_folds: int, repeats: int, hold_out: str | None, seed: int
) -> Folds:
    """Folds over all prompts that a task trains on or transfers to. Raises InputError where there are too few.

    ``hold_out``: None, or "category" to leave whole categories out.
    """
    texts = features.texts or features.prompts.texts_hash
    units = components([features.pairs, texts])
    blocks = units
    if hold_out is not None:
        if hold_out not in HOLD_OUT:
            raise InputError(f"hold_out is {hold_out!r}, expected None or one of {', '.join(HOLD_OUT)}")
        if not any(features.categories):
            raise InputError("no prompt has a category: there is none to hold out; leave hold_out away")
        blocks = components([features.pairs, texts, features.categories])
    for task in tasks:
        _check_numbers(features, task, blocks, n_folds, hold_out)
    numbers = np.unique(features.sets, return_inverse=True)[1].astype(np.int64)
    outer = [_outer(numbers, blocks, n_folds, random_state(seed, repeat)) for repeat in range(repeats)]
    return Folds(units, blocks, np.array(outer), seed)


def components(columns: Sequence[Sequence[Hashable | None]]) -> Ints:
    """Numbers of rows that are joined, directly or through others, by a common value of a column (None joins nothing).

    >>> components([["a", None, "a", None], [1, 2, None, 2]]).tolist()
    [0, 1, 0, 1]
    """
    n = len(columns[0])
    keys: dict[tuple[int, Hashable], int] = {}
    edges = [
        (row, n + keys.setdefault((number, value), len(keys)))
        for number, column in enumerate(columns)
        for row, value in enumerate(column)
        if value is not None
    ]
    rows, places = np.array(edges, np.int64).reshape(-1, 2).T
    size = n + len(keys)
    graph = coo_array((np.ones(len(rows)), (rows, places)), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1][:n], np.int64)


def _outer(sets: Ints, blocks: Ints, n_folds: int, state: int) -> Ints:
    """Sets with fewer prompts than folds, which no task uses, are no part of the stratification."""
    counts = np.bincount(sets)
    return split(np.where(counts[sets] < n_folds, int(counts.argmax()), sets), blocks, n_folds, state)


def _check_numbers(features: Features, task: Task, blocks: Ints, n_folds: int, hold_out: str | None) -> None:
    sets = np.array(features.sets)
    for names in (task.positive, task.negative):
        found = len(np.unique(blocks[np.isin(sets, names)]))
        if hold_out and found < 2:
            raise InputError(
                f"task {task.name!r}: the {' and '.join(names)} prompts are of {found} category (twins join them), "
                "to hold categories out takes at least 2"
            )
        if not hold_out and found < n_folds:
            raise InputError(
                f"task {task.name!r}: {found} {' and '.join(names)} prompts (twins and equal texts counted once), "
                f"{n_folds} folds need at least {n_folds}: give more prompts, or fewer folds"
            )
    in_task = len(np.unique(blocks[np.isin(sets, task.sets)]))
    if in_task < n_folds:
        raise InputError(
            f"task {task.name!r}: its prompts are of {in_task} categories (joined where twins span them), {n_folds} "
            f"folds need at least {n_folds}: take fewer folds"
        )
