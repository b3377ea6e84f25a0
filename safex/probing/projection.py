"""Features of a group on a plane: the first two principal components."""

from __future__ import annotations

import numpy as np
from scipy.sparse.linalg import eigsh

from safex.features import Features
from safex.probing.inputs import Outputs
from safex.probing.scores import Row
from safex.probing.settings import Subject

LEAST = 4  # prompts


def projection(features: Features, subject: Subject, missing: str) -> Row | None:
    """A point for each prompt that has the group's features; None for fewer than four prompts, or constant features.

    All prompts are standardised together, so it shows how the sets lie and measures nothing. ``explained``: shares of
    the variance. The sign of an axis is that of its largest coordinate.
    """
    inputs = Outputs(features, subject.experts, missing)
    rows = np.flatnonzero(inputs.present())
    if len(rows) < LEAST:
        return None
    gram = inputs.gram(rows, np.ones(len(rows), bool))
    gram -= gram.mean(axis=0)
    gram -= gram.mean(axis=1, keepdims=True)
    total = float(np.trace(gram))
    if total <= 1e-12:
        return None
    sizes, vectors = eigsh(gram, k=2, v0=np.ones(len(rows)) + np.arange(len(rows)) / len(rows))
    order = np.argsort(-sizes)
    sizes, vectors = np.maximum(sizes[order], 0), vectors[:, order]
    vectors *= np.sign(vectors[np.abs(vectors).argmax(axis=0), [0, 1]])
    points = vectors * np.sqrt(sizes)
    return {
        "group": subject.group,
        "explained": (sizes / total).tolist(),
        "points": [
            {"id": features.ids[row], "set": features.sets[row], "x": float(x), "y": float(y)}
            for row, (x, y) in zip(rows.tolist(), points.tolist(), strict=True)
        ],
    }
