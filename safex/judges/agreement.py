"""Counts of verdicts, and how far judges agree."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

from .verdicts import LABELS, THREE, UNREADABLE, three_way


@dataclass(frozen=True)
class Agreement:
    """Two judges on the answers that both judged, three-way, without those that neither could read (``left_out``).

    Where one could read an answer and the other could not, the latter counts as other. ``agree`` is the share of equal
    labels, None where ``n`` is 0; ``kappa`` Cohen's kappa (Cohen 1960: agreement beyond what the two judges'
    own rates give by chance), None where both gave one and the same label throughout. ``table[a][b]``
    counts answers that the first judge calls ``a`` and the second ``b``.
    """

    judges: tuple[str, str]
    n: int
    agree: float | None
    kappa: float | None
    table: dict[str, dict[str, int]]
    left_out: int = 0


def agreement(judges: tuple[str, str], one: Sequence[str], other: Sequence[str]) -> Agreement:
    """Compare two judges' readings (or labels) of the same answers.

    >>> agreement(("a", "b"), ["refuse", "refuse", "comply", "empty"], ["refuse", "comply", "comply", "other"]).agree
    0.75
    """
    pairs = [
        (three_way(a), three_way(b))
        for a, b in zip(one, other, strict=True)
        if not (a in UNREADABLE and b in UNREADABLE)
    ]
    counts = Counter(pairs)
    table = {x: {y: counts[x, y] for y in THREE} for x in THREE}
    agree = sum(counts[x, x] for x in THREE) / len(pairs) if pairs else None
    kappa = _kappa([a for a, _ in pairs], [b for _, b in pairs])
    return Agreement(judges, len(pairs), agree, kappa, table, len(one) - len(pairs))


def _kappa(a: Sequence[str], b: Sequence[str]) -> float | None:
    from sklearn.metrics import cohen_kappa_score

    return None if len({*a, *b}) < 2 else float(cohen_kappa_score(a, b))


def agreements(verdicts: Sequence[Mapping[str, str]]) -> list[Agreement]:
    """Every pair of judges; ``verdicts`` holds for each answer its readings by judge."""
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
