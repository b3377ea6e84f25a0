"""Functional clustering: which experts are driven by the same prompts (future work of the SAFEx paper).

An expert's profile is its activation rate (selections / tokens) in each prompt. Three things would group experts
that share no function, and are taken out first:

- Level: each expert is centred and scaled over the prompts.
- Length: tokens that every prompt has (the template) are a smaller share of a longer prompt, which moves rates
  linearly in 1 / length. Each expert's slope on it, estimated within the sets, is subtracted; differences between
  the sets that length does not explain stay.
- Noise: rates of short prompts scatter more. Each prompt is scaled to the same spread over the experts.

What remains is reduced to the principal components that exceed those of shuffled profiles (parallel analysis,
Horn 1965) and clustered by k-means. The number of clusters is the largest one that is stable: labels from two
disjoint halves of the prompts must agree (adjusted Rand index), clearly more than on shuffled profiles. A stable
clustering is reproducible on other prompts of the same kind; it does not prove gaps between the clusters.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import threadpoolctl
from sklearn.cluster import KMeans
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.metrics import adjusted_rand_score

from safex.cores import available_cores
from safex.errors import InputError
from safex.experts import Expert
from safex.profile import Profile
from safex.profile_arrays import blocks

MIN_PROMPTS = 20  # twins counted once: fewer than ten in a half say little
MIN_EXPERTS = 8
MIN_ACTIVE = 8  # prompts in which an expert must be selected: about four in each half
MIN_ARI = 0.2  # chosen, not derived: below it two halves share too little to call it one clustering
MAX_COMPONENTS = 20
STABILITY_EXPERTS = 8192  # of a larger model, stability is measured on evenly spaced layers
TOP_CATEGORIES, TOP_PROMPTS, CATEGORY_PROMPTS = 5, 8, 3
WORKERS = 4
CONSTANT = 1e-5  # a spread of this share of the largest rate is rounding (float32)

Floats: TypeAlias = npt.NDArray[np.float32]
Integers: TypeAlias = npt.NDArray[np.int64]
Bools: TypeAlias = npt.NDArray[np.bool_]


@dataclass
class _Data:
    """N experts in P prompts: ``rates`` [N, P]; ``layer`` (row) and ``expert`` [N]; by prompt tokens, set, unit."""

    rates: Floats
    layer: Integers
    expert: Integers
    n_tokens: Integers
    sets: npt.NDArray[np.str_]
    units: Integers

    def of_experts(self, chosen: Bools) -> _Data:
        rows = self.rates[chosen], self.layer[chosen], self.expert[chosen]
        return _Data(*rows, self.n_tokens, self.sets, self.units)


@dataclass
class _Stability:
    """Agreement of two halves, ``ari`` and ``null`` [splits, K], for each number of clusters in ``ks``."""

    ks: list[int]
    ari: npt.NDArray[np.float64]
    null: npt.NDArray[np.float64]

    @property
    def interval(self) -> npt.NDArray[np.float64]:
        return np.percentile(self.ari, [2.5, 97.5], axis=0)

    def best(self) -> Integers:
        """Indices of the k within one standard error of the most stable one; none if none is clearly above the null.

        Clearly: the lower bound exceeds every null value, at any k, and the mean is at least MIN_ARI.
        """
        mean = self.ari.mean(axis=0)
        clear = (self.interval[0] > self.null.max()) & (mean >= MIN_ARI)
        if not clear.any():
            return np.zeros(0, np.int64)
        most = int(np.where(clear, mean, -np.inf).argmax())
        error = self.ari[:, most].std(ddof=1) / np.sqrt(len(self.ari))
        return np.flatnonzero(clear & (mean >= mean[most] - error))

    def choose(self) -> int | None:
        """Index of the largest of ``best``."""
        best = self.best()
        return int(best[-1]) if len(best) else None


def cluster_experts(
    profile: Profile, *, phase: str = "prompt", max_clusters: int = 12, splits: int = 10, seed: int = 0
) -> dict[str, Any]:
    """Cluster experts by the prompts that drive them; the part ``clusters`` of an expert set, as plain values.

    ``n_clusters`` is 0 where no clustering is stable, and ``note`` says so. ``stability`` holds, for each k, the
    mean adjusted Rand index ``ari`` of labels from two halves of the prompts, its 95 % ``interval`` over
    ``splits``, and ``null``, ``null_highest``: mean and highest value on shuffled profiles. ``clusters`` are
    numbered by size, with the experts' mean z by set, by category and by prompt. The result depends on ``seed``
    only, not on the number of threads. Raises InputError for an unknown phase, or fewer than 20 prompts with
    tokens in it (twins counted once).

    >>> rng = np.random.default_rng(0)
    >>> counts = rng.multinomial(50, [1 / 16] * 16, size=(40, 2))
    >>> noise = Profile.from_arrays(counts=counts, n_tokens=[50] * 40, sets=["benign"] * 40, top_k=1)
    >>> cluster_experts(noise, splits=4)["n_clusters"]
    0
    """
    _check_parameters(max_clusters, splits, seed)
    data, rows = _read(profile, phase)
    active, varied = _usable(data.rates)
    kept = data.of_experts(active & varied)
    parameters = {"phase": phase, "max_clusters": max_clusters, "splits": splits, "seed": seed}
    result: dict[str, Any] = {
        "parameters": {**parameters, "prompts": len(rows), "experts": len(kept.rates), "min_ari": MIN_ARI},
        "n_clusters": 0,
        "note": f"No stable clustering was found: only {len(kept.rates)} experts differ between prompts, "
        f"{MIN_EXPERTS} are needed.",
        "stability": [],
        "clusters": [],
        "left_out": _left_out(active, varied),
    }
    del data
    if len(kept.rates) >= MIN_EXPERTS:
        with threadpoolctl.threadpool_limits(1), warnings.catch_warnings():  # one thread: one order of sums
            warnings.simplefilter("ignore", ConvergenceWarning)  # fewer distinct profiles than clusters
            result |= _cluster(profile, kept, rows, result["parameters"])
    return result


def _check_parameters(max_clusters: int, splits: int, seed: int) -> None:
    for name, value, least in (("max_clusters", max_clusters, 2), ("splits", splits, 2), ("seed", seed, 0)):
        if value < least:
            raise InputError(f"{name} is {value}, expected at least {least}")


def _read(profile: Profile, phase: str) -> tuple[_Data, Integers]:
    """Rates of all experts in the prompts with tokens, and the numbers of these prompts."""
    arrays = profile.phase(phase)
    rows = np.flatnonzero(arrays.n_tokens)
    pairs = [profile.pairs[p] for p in rows]
    _, units = np.unique(
        [f"prompt {p}" if pair is None else f"pair {pair}" for p, pair in zip(rows, pairs, strict=True)],
        return_inverse=True,
    )
    if (n_units := len(set(units.tolist()))) < MIN_PROMPTS:
        raise InputError(
            f"phase {phase!r}: clustering needs at least {MIN_PROMPTS} prompts with tokens (twins counted "
            f"once), found {n_units}: profile more prompts"
        )
    n_layers, n_experts = arrays.counts.shape[1:]
    rates = np.empty((n_layers * n_experts, len(arrays.counts)), np.float32)
    for block in blocks(arrays.counts):
        tokens = np.maximum(arrays.n_tokens[block], 1)[:, None]
        rates[:, block] = (arrays.counts[block].reshape(len(tokens), -1) / tokens).T
    if len(rows) < rates.shape[1]:
        rates = rates[:, rows]
    layer, expert = (index.ravel() for index in np.indices((n_layers, n_experts)))
    sets = np.array(profile.sets)[rows]
    return _Data(rates, layer, expert, np.asarray(arrays.n_tokens[rows]), sets, units), rows


def _usable(rates: Floats) -> tuple[Bools, Bools]:
    """Whether each expert is active in enough prompts, and whether its rate differs between prompts."""
    return np.count_nonzero(rates, axis=1) >= MIN_ACTIVE, np.ptp(rates, axis=1) > CONSTANT * rates.max(axis=1)


def _left_out(active: Bools, varied: Bools) -> dict[str, Any]:
    rare, constant = int((~active).sum()), int((active & ~varied).sum())
    reasons = [
        f"{rare} selected in fewer than {MIN_ACTIVE} prompts" if rare else "",
        f"{constant} equally active in every prompt" if constant else "",
    ]
    return {"experts": rare + constant, "why": ", ".join(filter(None, reasons))}


def _cluster(profile: Profile, data: _Data, rows: Integers, parameters: dict[str, Any]) -> dict[str, Any]:
    """The parts of the result that need enough experts. Overwrites ``data.rates``."""
    sample = data.of_experts(_sampled(data.layer))
    seed, state = parameters["seed"], _state(np.random.default_rng([parameters["seed"], 0]))
    n_components = _count_components(sample, seed, state)
    ks = list(range(2, min(parameters["max_clusters"], len(sample.rates) // 3) + 1))
    stability = _stability(sample, ks, n_components, parameters["splits"], seed)
    chosen = stability.choose()
    found: dict[str, Any] = {
        "parameters": {**parameters, "components": n_components, "stability_experts": len(sample.rates)},
        "note": _note(stability, chosen),
        "stability": _stability_rows(stability),
    }
    if chosen is not None:
        z = _standardise(data.rates, data.n_tokens, data.sets)
        labels = _labels(_components(z, n_components, state), ks[chosen], state, n_init=10)
        found |= {"n_clusters": ks[chosen], "clusters": _describe(profile, data, rows, z, labels)}
    return found


def _sampled(layer: Integers) -> Bools:
    """All experts, or those of evenly spaced layers. Layers stay whole: their rates add up to top_k."""
    layers, sizes = np.unique(layer, return_counts=True)
    n = max(1, min(len(layers), int(STABILITY_EXPERTS // sizes.mean())))
    return np.isin(layer, layers[np.linspace(0, len(layers) - 1, n).astype(int)])


def _standardise(rates: Floats, n_tokens: Integers, sets: npt.NDArray[np.str_]) -> Floats:
    """Rates without what length explains, centred and scaled for each expert. Overwrites ``rates`` [N, P]."""
    rounding = CONSTANT * rates.max(axis=1, keepdims=True)
    rates -= rates.mean(axis=1, keepdims=True)
    length = 1 / n_tokens
    within = length.copy()
    for name in np.unique(sets):
        within[sets == name] -= within[sets == name].mean()
    if within.std() > 1e-6 * length.mean():
        slope = rates @ (within / (within @ within)).astype(np.float32)
        for row, factor in zip(rates, slope, strict=True):
            row -= factor * (length - length.mean()).astype(np.float32)
    spread = rates.std(axis=1, keepdims=True)
    rates /= np.where(spread > rounding, spread, np.inf)
    return rates


def _components(z: Floats, n: int, state: int) -> Floats:
    """Coordinates [N, n] of the experts on the first principal components, each prompt scaled to one spread."""
    return np.asarray(_pca(n, state).fit_transform(_even(z)))


def _even(z: Floats) -> Floats:
    spread = np.sqrt(np.einsum("ep,ep->p", z, z) / len(z))
    return np.asarray(z / np.where(spread > 0, spread, 1), np.float32)


def _pca(n: int, state: int) -> PCA:
    return PCA(n, svd_solver="randomized", random_state=state)


def _state(rng: np.random.Generator) -> int:
    return int(rng.integers(2**31))


def _count_components(data: _Data, seed: int, state: int) -> int:
    """Parallel analysis: components with more variance than the first one of shuffled profiles; at least two."""
    n = min(MAX_COMPONENTS, len(data.rates) - 1, len(np.unique(data.units)) // 2 - 1)
    shuffled = _shuffled(data, np.random.default_rng([seed, 0]))
    real, null = (
        _pca(n, state).fit(_even(_standardise(rates, data.n_tokens, data.sets))).explained_variance_
        for rates in (data.rates.copy(), shuffled)
    )
    return max(2, int((real > null[0]).sum()))


def _shuffled(data: _Data, rng: np.random.Generator) -> Floats:
    """Profiles [N, P] with no common drivers: each expert's deviations move to random prompts, on their own.

    Kept are the level and sparsity of each expert, the larger scatter of short prompts (deviations move as
    multiples of 1 / sqrt(tokens)), and that the rates of a layer add up to top_k: the excess of the sum is taken
    from each expert by its share of the variance, as in independent normals given their sum.
    """
    mean = data.rates.mean(axis=1, keepdims=True)
    scale = np.sqrt(data.n_tokens).astype(np.float32)
    moved = rng.permuted((data.rates - mean) * scale, axis=1) / scale
    variance = moved.var(axis=1)
    for layer in np.unique(data.layer):
        of_layer = data.layer == layer
        share = variance[of_layer] / variance[of_layer].sum()
        moved[of_layer] -= np.outer(share, moved[of_layer].sum(axis=0))
    return np.asarray(moved + mean, np.float32)


def _stability(data: _Data, ks: list[int], n_components: int, splits: int, seed: int) -> _Stability:
    """Split by split; each has its own random numbers, so that threads can share the work."""
    one = partial(_one_split, data, ks, n_components)
    seeds = [[seed, 1 + split] for split in range(splits)]
    limit = partial(threadpoolctl.threadpool_limits, 1, "openmp")  # OpenMP counts threads for each caller
    with ThreadPoolExecutor(min(WORKERS, available_cores()), initializer=limit) as pool:
        pairs = list(pool.map(one, seeds))
    ari, null = (np.array(values) for values in zip(*pairs, strict=True))
    return _Stability(ks, ari, null)


def _one_split(
    data: _Data, ks: list[int], n_components: int, seed: list[int]
) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    half = _half(data.units, data.sets, rng)
    state = _state(rng)
    return (
        _agreement(data.rates, data, half, ks, n_components, state),
        _agreement(_shuffled(data, rng), data, half, ks, n_components, state),
    )


def _half(units: Integers, sets: npt.NDArray[np.str_], rng: np.random.Generator) -> Bools:
    """A random half of the prompts: twins (one unit) stay together, each set is halved."""
    kinds: dict[int, set[str]] = {}
    for unit, name in zip(units.tolist(), sets.tolist(), strict=True):
        kinds.setdefault(unit, set()).add(name)
    order = sorted(rng.permutation(len(kinds)).tolist(), key=lambda unit: sorted(kinds[unit]))
    first = np.zeros(len(kinds), np.bool_)
    first[order[::2]] = True
    return first[units]


def _agreement(
    rates: Floats, data: _Data, half: Bools, ks: list[int], n_components: int, state: int
) -> list[float]:
    """Adjusted Rand index of the labels from the two halves, for each k."""
    points = []
    for chosen in (half, ~half):
        z = _standardise(rates[:, chosen], data.n_tokens[chosen], data.sets[chosen])
        points.append(_components(z, n_components, state))
    labels = ([_labels(p, k, state) for p in points] for k in ks)
    return [float(adjusted_rand_score(a, b)) for a, b in labels]


def _labels(points: Floats, k: int, state: int, n_init: int = 4) -> Integers:
    return np.asarray(KMeans(k, n_init=n_init, random_state=state).fit_predict(points))


def _stability_rows(stability: _Stability) -> list[dict[str, Any]]:
    columns = stability.ari.mean(0), stability.interval.T, stability.null.mean(0), stability.null.max(0)
    return [
        {
            "k": k,
            "ari": _plain(ari),
            "interval": [_plain(bound) for bound in interval],
            "null": _plain(null),
            "null_highest": _plain(highest),
        }
        for k, ari, interval, null, highest in zip(stability.ks, *columns, strict=True)
    ]


def _note(stability: _Stability, chosen: int | None) -> str:
    mean, null = stability.ari.mean(axis=0), stability.null.max()
    if chosen is None:
        best = int(mean.argmax())
        return (
            f"No stable clustering was found: labels from two halves of the prompts agree at best with an adjusted "
            f"Rand index of {mean[best]:.2f} ({stability.ks[best]} clusters), which is below {MIN_ARI} or not "
            f"clearly above that of shuffled profiles (up to {null:.2f})."
        )
    low, high = stability.interval[:, chosen]
    return (
        f"{stability.ks[chosen]} clusters, the largest number within one standard error of the most stable one: "
        f"labels from two halves of the prompts agree {_strength(mean[chosen])}, adjusted Rand index "
        f"{mean[chosen]:.2f} ({low:.2f} to {high:.2f}), shuffled profiles at most {null:.2f}; "
        f"groups that recur on other prompts need not have gaps between them.{_doubt(stability)}"
    )


def _doubt(stability: _Stability) -> str:
    """Said where the curve over k is flat: such structure is gradual, and another seed gives another number."""
    best = [stability.ks[i] for i in stability.best()]
    if len(best) < 3:
        return ""
    return f" Their number is not determined: {len(best)} numbers from {best[0]} to {best[-1]} are about as stable."


def _strength(ari: float) -> str:
    return "weakly" if ari < 0.5 else "moderately" if ari < 0.8 else "strongly"


def _describe(
    profile: Profile, data: _Data, rows: Integers, z: Floats, labels: Integers
) -> list[dict[str, Any]]:
    """The clusters, largest first: experts and what drives them."""
    members = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    members.sort(key=lambda experts: (-len(experts), int(experts[0])))
    prompts = [
        (name, prompt, (name, category) if category else None)
        for name, prompt, category in ((profile.sets[p], profile.ids[p], profile.categories[p]) for p in rows)
    ]
    sets, ids, categories = zip(*prompts, strict=True)
    clusters = []
    for number, experts in enumerate(members):
        mean = z[experts].mean(axis=0, dtype=np.float64)
        names = [str(Expert(profile.layers[data.layer[i]], int(data.expert[i]))) for i in experts]
        clusters.append(
            {
                "cluster": number,
                "size": len(names),
                "experts": names,
                "sets": [{"set": name, "z": value} for name, value, _ in _means(sets, mean)],
                "categories": _top_categories(categories, mean),
                "prompts": [
                    {"set": sets[p], "id": ids[p], "z": _plain(mean[p])}
                    for p in np.argsort(-mean, kind="stable")[:TOP_PROMPTS]
                ],
            }
        )
    return clusters


def _means(keys: Sequence[Any], values: npt.NDArray[np.float64]) -> list[tuple[Any, float, int]]:
    """Key, mean value and number of prompts, highest mean first; prompts without a key don't count."""
    sizes = Counter(key for key in keys if key is not None)
    sums: Counter[Any] = Counter()
    for key, value in zip(keys, values.tolist(), strict=True):
        sums[key] += value
    means = [(key, _plain(sums[key] / n), n) for key, n in sizes.items()]
    return sorted(means, key=lambda row: -row[1])


def _top_categories(
    keys: Sequence[tuple[str, str] | None], mean: npt.NDArray[np.float64]
) -> list[dict[str, Any]]:
    rows: Iterable[tuple[tuple[str, str], float, int]] = _means(keys, mean)
    drivers = [row for row in rows if row[1] > 0 and row[2] >= CATEGORY_PROMPTS]
    return [
        {"category": category, "set": name, "z": value, "prompts": n}
        for (name, category), value, n in drivers[:TOP_CATEGORIES]
    ]


def _plain(value: Any) -> float:
    return round(float(value), 4)
