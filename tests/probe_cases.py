"""Simulated features, and the plain scikit-learn script that probes are compared with."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedGroupKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from safex import Features
from safex.experts import Expert
from safex.roster import Roster, draw_roster

SETS = ("regular", "jailbreak", "benign")


def simulated(
    n: int,
    signal: dict[str, float] | float = 0.0,
    *,
    roster: Roster | None = None,
    width: int = 24,
    twins: float = 0.5,
    disguise: float = 0.5,
    missing: float = 0.0,
    seed: int = 0,
    **changes: Any,
) -> Features:
    """``n`` triples of twins. ``signal``: how far harmful prompts lie from benign ones, by role of an expert or in all.

    ``twins``: share of the variance that a triple has in common; ``disguise``: how far jailbreak prompts lie from the
    others; ``missing``: share of the prompts without an expert's output.
    """
    rng = np.random.default_rng(seed)
    roster = roster or small_roster()
    sets = list(SETS) * n
    harmful = np.array([s != "benign" for s in sets])
    disguised = np.array([s == "jailbreak" for s in sets])
    values = []
    for roles in roster.roles.values():
        far = signal if isinstance(signal, float) else max(signal.get(role, 0.0) for role in roles)
        topics = np.repeat(rng.normal(size=(n, width)), len(SETS), axis=0)
        noise = rng.normal(size=(len(sets), width))
        array = np.sqrt(twins) * topics + np.sqrt(1 - twins) * noise
        array[:, 0] += far * harmful
        array[:, 1] += disguise * disguised
        array = array * rng.uniform(0.1, 10, width) + rng.normal(size=width)
        array[rng.random(len(sets)) < missing] = np.nan
        values.append(array)
    given = {
        "experts": roster.experts,
        "values": values,
        "sets": sets,
        "pairs": [f"pair-{i // len(SETS):04d}" for i in range(len(sets))],
        "categories": [f"category-{i // len(SETS) % 10}" for i in range(len(sets))],
        "texts": [f"prompt number {i} about topic {i // len(SETS)}" for i in range(len(sets))],
        "roster": roster,
        "routing": "natural" if missing else "forced",
        "meta": {"model.fingerprint": "f" * 64, "model.name": "simulated"},
    }
    return Features.from_arrays(**(given | changes))


def small_roster(draws: int = 3) -> Roster:
    """Group id: two experts in layers 0 and 1; controls of the same layers."""
    return draw_roster({"id": [Expert(0, 1), Expert(1, 2)]}, layers=[0, 1], n_experts=8, draws=draws)


def plain_script(
    features: Features,
    experts: Sequence[Expert | str],
    positive: Sequence[str],
    negative: Sequence[str],
    others: Sequence[str] = (),
    strengths: Sequence[float] = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0),
    repeats: int = 1,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Out-of-fold log-odds and folds [R, P] of a group's features side by side, NaN and -1 elsewhere."""
    x = np.concatenate([np.asarray(features.of(e), np.float64) for e in experts], axis=1)
    sets, pairs = np.array(features.sets), np.array(features.pairs)
    groups = np.unique(pairs, return_inverse=True)[1]  # these pairs are named in order of appearance
    own, labels = np.isin(sets, [*positive, *negative]), ~np.isin(sets, negative)
    own &= ~np.isnan(x).all(axis=1)
    scored = (own | np.isin(sets, others)) & ~np.isnan(x).all(axis=1)
    scores, folds = np.full((repeats, len(sets)), np.nan), np.full((repeats, len(sets)), -1)
    for repeat in range(repeats):
        outer = StratifiedGroupKFold(5, shuffle=True, random_state=1000 * seed + repeat)
        for number, (train, test) in enumerate(outer.split(x, sets, groups)):
            all_train = train[np.isin(sets[train], [*positive, *negative])]
            train, test = train[own[train]], test[scored[test]]
            inner = StratifiedGroupKFold(3, shuffle=True, random_state=1000 * seed + repeat)
            splits = []
            for a, b in inner.split(all_train[:, None], labels[all_train], groups[all_train]):
                place = {row: i for i, row in enumerate(train.tolist())}
                splits.append([[place[r] for r in all_train[side].tolist() if r in place] for side in (a, b)])
            search = GridSearchCV(
                LogisticRegression(solver="newton-cholesky", tol=1e-10, max_iter=1000),
                {"C": [strength / x.shape[1] for strength in strengths]},
                scoring="neg_log_loss",
                cv=splits,
            )
            gaps = SimpleImputer(strategy="constant", fill_value=0, keep_empty_features=True)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = make_pipeline(StandardScaler(), gaps, search).fit(x[train], labels[train])
            scores[repeat, test] = model.decision_function(x[test])
            folds[repeat, test] = number
    return scores, folds
