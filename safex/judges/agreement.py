"""Counts of verdicts, and how far judges agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from .verdicts import LABELS, THREE, three_way


@dataclass(frozen=True)
class Agreement:
    """Two judges on the answers that both judged, three-way.

    ``agree`` is the share of equal labels, ``kappa`` Cohen's kappa (Cohen 1960: agreement beyond what the two judges'
    own rates give by chance), None where both gave one and the same label throughout. ``table[a][b]``
    counts answers that the first judge calls ``a`` and the second ``b``.
    """

    judges: tuple[str, str]
    n: int
    agree: float
    kappa: float | None
    table: dict[str, dict[str, int]]


def agreement(judges: tuple[str, str], one: Sequence[str], other: Sequence[str]) -> Agreement:
    """Compare two judges' labels of the same answers.

    >>> agreement(("a", "b"), ["refuse", "refuse", "comply", "empty"], ["refuse", "comply", "comply", "other"]).agree
    0.75
    """
    a, b = [three_way(label) for label in one], [three_way(label) for label in other]
    counts = Counter(zip(a, b, strict=True))
    table = {x: {y: counts[x, y] for y in THREE} for x in THREE}
    return Agreement(judges, len(a), sum(counts[x, x] for x in THREE) / len(a), _kappa(a, b), table)


def _kappa(a: Sequence[str], b: Sequence[str]) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    return None if len({*a, *b}) < 2 else float(cohen_kappa_score(a, b))


def agreements(verdicts: Sequence[Mapping[str, str]]) -> list[Agreement]:
    """Every pair of judges; ``verdicts`` holds for each answer its labels by judge."""
    names = list(dict.fromkeys(name for labels in verdicts for name in labels))
    found = []
    for pair in combinations(names, 2):
        both = [labels for labels in verdicts if pair[0] in labels and pair[1] in labels]
        if both:
            found.append(agreement(pair, [row[pair[0]] for row in both], [row[pair[1]] for row in both]))
    return found


def count_labels(labels: Sequence[str]) -> dict[str, int]:
    """How often each of the five labels occurs.

    >>> count_labels(["comply", "comply", "empty"])
    {'refuse': 0, 'comply': 2, 'other': 0, 'empty': 1, 'truncated': 0}
    """
    counts = Counter(labels)
    return {label: counts[label] for label in LABELS}
