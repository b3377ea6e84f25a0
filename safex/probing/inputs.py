"""What a probe reads: the outputs of one or several experts, or the words of the prompts.

A probe only needs the inner products of prompts, scaled as its training prompts say. Those of several experts together
are the sum of each one's, so features of a group are never laid side by side.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.errors import InputError
from safex.experts import Expert
from safex.features import Features

Floats: TypeAlias = npt.NDArray[np.float64]
Bools: TypeAlias = npt.NDArray[np.bool_]
Ints: TypeAlias = npt.NDArray[np.int64]

MISSING = ("mean", "drop")
_EPSILON = float(np.finfo(np.float64).eps)


class Inputs(Protocol):
    """Prompts as a probe sees them."""

    def present(self) -> Bools:
        """The prompts that there is something of, bool [P]."""

    def gram(self, rows: Ints, train: Bools) -> Floats:
        """Inner products of the prompts ``rows`` with those of them that ``train``, float64 [n, n_train]."""


class Outputs:
    """Features of experts, standardised, each prompt divided by the root of the number of features.

    So C means the same for one expert and for many: on StandardScaler's output scikit-learn's C is ours divided by the
    number of features. Mean and deviation are those of the training prompts that have the expert. A prompt
    without some of the experts has their mean there (``missing="mean"``), or is left out (``"drop"``).
    """

    def __init__(self, features: Features, experts: Sequence[Expert], missing: str = "mean") -> None:
        """Nothing is read yet."""
        self._values = [features.of(expert) for expert in experts]
        self._present = np.array([features.present(expert) for expert in experts])
        self._all = missing == "drop"

    def present(self) -> Bools:
        """Prompts with all experts, or with any."""
        return np.asarray(self._present.all(axis=0) if self._all else self._present.any(axis=0))

    def gram(self, rows: Ints, train: Bools) -> Floats:
        """The sum over experts."""
        total = np.zeros((len(rows), int(train.sum())))
        for values, present in zip(self._values, self._present, strict=True):
            scaled = standardised(values[rows], train, present[rows])
            total += scaled @ scaled[train].T
        return np.asarray(total / (len(self._values) * self._values[0].shape[1]))


def standardised(values: npt.NDArray[np.float32], train: Bools, present: Bools) -> Floats:
    """As scikit-learn's StandardScaler, fitted on the rows that are in ``train`` and ``present``; 0 for missing rows.

    A feature that is constant but for rounding keeps its scale, as there.
    """
    scaled = values.astype(np.float64)
    fitted = train & present
    n = int(fitted.sum())
    if not n:
        return np.zeros(values.shape)
    mean = scaled[fitted].mean(axis=0)
    scaled -= mean
    centred = scaled[fitted]
    variance = np.einsum("ij,ij->j", centred, centred) / n
    constant = variance <= n * _EPSILON * variance + np.square(n * mean * _EPSILON)
    scaled *= 1 / np.sqrt(np.where(constant, 1.0, variance))
    scaled[~present] = 0.0
    return scaled


class Words:
    """Bag of words of the prompts: tf-idf of words and pairs of words, of unit length; vocabulary and weights are those
    of the training prompts. It knows what the prompt says, and nothing of the model.
    """

    def __init__(self, texts: Sequence[str]) -> None:
        """Raises InputError where no prompt holds a word."""
        self._texts = list(texts)
        if not any(_vectorizer().build_analyzer()(text) for text in self._texts):
            raise InputError("the prompts hold no words")

    def present(self) -> Bools:
        """All of them."""
        return np.ones(len(self._texts), bool)

    def gram(self, rows: Ints, train: Bools) -> Floats:
        """Cosines of the texts' vectors; 0 where the training texts hold no word."""
        texts = [self._texts[row] for row in rows]
        fitted = [text for text, use in zip(texts, train, strict=True) if use]
        try:
            vectorizer = _vectorizer().fit(fitted)
        except ValueError:  # an empty vocabulary
            return np.zeros((len(rows), len(fitted)))
        vectors = vectorizer.transform(texts)
        return np.asarray((vectors @ vectors[train].T).toarray(), np.float64)


def _vectorizer() -> Any:
    from sklearn.feature_extraction.text import TfidfVectorizer

    return TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
