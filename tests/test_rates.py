"""Statistics of evaluation against scipy, statsmodels, scikit-learn and literal computation, and their coverage.

python tests/test_rates.py     # the whole measurement of coverage behind the table in safex/rates.py
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from scipy import optimize, stats

from safex import InputError, ranking, rates

Z = stats.norm.ppf(0.975)
Case = tuple[Any, ...]


# --- against other implementations


def paired_tables(n: int, seed: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Random before/after answers, some of them nearly all alike."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        size = int(rng.integers(1, 60))
        both = rng.choice(4, size, p=rng.dirichlet(np.full(4, rng.choice([0.2, 2.0]))))
        yield both // 2 == 1, both % 2 == 1


def test_wilson_is_that_of_statsmodels_and_scipy() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    rng = np.random.default_rng(0)
    for total in (1, 2, 7, 80, 400):
        for hits in {0, total, *rng.integers(0, total + 1, 10).tolist()}:
            for confidence in (0.8, 0.95, 0.99):
                found = rates.wilson(hits, total, confidence)
                assert found is not None and found.value == hits / total
                expected = proportion.proportion_confint(hits, total, 1 - confidence, "wilson")
                np.testing.assert_allclose(found[1:], expected, atol=1e-12)
                other = stats.binomtest(hits, total).proportion_ci(confidence, "wilson")
                np.testing.assert_allclose(found[1:], (other.low, other.high), atol=1e-12)


def test_mcnemar_is_that_of_statsmodels() -> None:
    tables = pytest.importorskip("statsmodels.stats.contingency_tables")
    for before, after in paired_tables(200, 1):
        table = [
            [np.sum(before & after), np.sum(before & ~after)],
            [np.sum(~before & after), np.sum(~before & ~after)],
        ]
        found = rates.paired_difference(before, after)
        assert found is not None
        assert (found.lost, found.gained) == (table[0][1], table[1][0])
        expected = tables.mcnemar(table, exact=True).pvalue if found.lost + found.gained else 1.0
        assert found.p_value == pytest.approx(min(1.0, expected), abs=1e-12)


def test_tango_limits_are_where_the_score_statistic_is_z() -> None:
    """The restricted maximum of the trinomial likelihood is found by a numeric search, not by the formula."""
    for before, after in paired_tables(60, 2):
        n, b, c = len(before), int(np.sum(~before & after)), int(np.sum(before & ~after))
        found = rates.tango(b, c, n)
        assert found.value == pytest.approx((b - c) / n)
        for limit, sign in ((found.low, 1), (found.high, -1)):
            if abs(limit) < 1 - 1e-6:
                assert literal_score(b, c, n, limit) == pytest.approx(sign * Z, abs=2e-3)


def literal_score(b: int, c: int, n: int, d: float) -> float:
    def loss(q: float) -> float:
        counts, shares = (b, c, n - b - c), (q + d, q, 1 - 2 * q - d)
        return -sum(stats_xlogy(k, p) for k, p in zip(counts, shares, strict=True))

    low, high = max(0.0, -d), (1 - d) / 2
    q = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (b - c - n * d) / math.sqrt(n * (2 * q + d - d * d))


def stats_xlogy(k: int, p: float) -> float:
    return k * math.log(max(p, 1e-300)) if k else 0.0


def test_mean_change_is_tango_for_whole_changes_and_wider_for_fractions() -> None:
    changes = [-1.0] * 7 + [1.0] * 2 + [0.0] * 11
    assert rates.mean_change(changes) == rates.tango(2, 7, 20)
    parts = rates.mean_change([-0.5] * 14 + [0.5] * 4 + [0.0] * 2)  # the same sums from halves
    assert parts == rates.tango(2, 7, 20)
    for wrong in ([], [1.5], [float("nan")], [[0.0]]):
        with pytest.raises(InputError, match="numbers from -1 to 1"):
            rates.mean_change(wrong)


@pytest.mark.parametrize("lost, noise", [(0.0, 0.02), (0.25, 0.05), (0.6, 0.3), (0.98, 0.02)])
def test_mean_change_covers_the_truth_where_controls_vary(lost: float, noise: float) -> None:
    """A mask that loses a share of refusals, against the mean of 20 controls that lose ``noise`` each."""
    rng, n = np.random.default_rng(0), 50
    truth = (1 - lost) - (1 - noise)
    held = 0
    for _ in range(1000):
        masked, controls = rng.random(n) >= lost, (rng.random((20, n)) >= noise).mean(axis=0)
        found = rates.mean_change(masked - controls)
        held += found.low <= truth <= found.high
    assert held / 1000 >= 0.94


def test_tango_agrees_with_the_mcnemar_score_test_about_zero() -> None:
    """0 is outside of the interval exactly where (b - c)^2 / (b + c) > z^2."""
    for b, c in itertools.product(range(12), repeat=2):
        found = rates.tango(b, c, 40)
        if b + c:
            assert (found.low > 0 or found.high < 0) == ((b - c) ** 2 / (b + c) > Z**2)


def test_unpaired_difference_is_newcombes_of_statsmodels() -> None:
    proportion = pytest.importorskip("statsmodels.stats.proportion")
    rng = np.random.default_rng(3)
    for _ in range(100):
        n1, n2 = rng.integers(1, 100, 2).tolist()
        k1, k2 = int(rng.integers(0, n1 + 1)), int(rng.integers(0, n2 + 1))
        first, second = rates.wilson(k1, n1), rates.wilson(k2, n2)
        assert first is not None and second is not None
        found = rates.unpaired_difference(first, second)
        low, high = proportion.confint_proportions_2indep(k2, n2, k1, n1, method="newcomb", compare="diff")
        np.testing.assert_allclose(found, (k2 / n2 - k1 / n1, low, high), atol=1e-12)


def test_holm_is_that_of_statsmodels() -> None:
    multitest = pytest.importorskip("statsmodels.stats.multitest")
    rng = np.random.default_rng(4)
    for size in (1, 2, 7, 30):
        p = np.round(rng.random(size) ** 3, 2)  # ties
        np.testing.assert_allclose(rates.holm(p), multitest.multipletests(p, method="holm")[1], atol=1e-15)
    assert rates.holm([]) == []


def test_sign_flips_are_all_enumerated() -> None:
    rng = np.random.default_rng(5)
    for _ in range(30):
        change, clusters = rng.integers(-1, 2, 14), rng.integers(0, 7, 14)
        sums = np.array([change[clusters == k].sum() for k in range(7)])
        flips = np.array(list(itertools.product((-1, 1), repeat=7))) @ sums
        expected = np.mean(np.abs(flips) >= abs(change.sum()))
        assert rates.sign_flip_p(change, clusters.tolist()) == pytest.approx(expected)
    assert rates.sign_flip_p([]) == 1.0


def test_auc_value_and_delong_variance() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(6)
    for _ in range(20):
        m, n = rng.integers(2, 30, 2)
        scores, labels = (
            rng.integers(0, 9, m + n) + np.repeat([1.5, 0], [m, n]),
            np.repeat([True, False], [m, n]),
        )
        found = ranking.auc(scores, labels)
        assert found is not None and found.value == pytest.approx(metrics.roc_auc_score(labels, scores))
        assert found.low <= found.value <= found.high
        wins = np.sign(scores[:m, None] - scores[None, m:]) / 2 + 0.5
        variance = wins.mean(1).var(ddof=1) / m + wins.mean(0).var(ddof=1) / n
        if 0 < found.value < 1:
            logit, half = (
                stats.logistic.ppf(found.value),
                Z * math.sqrt(variance) / (found.value * (1 - found.value)),
            )
            low, high = stats.logistic.cdf([logit - half, logit + half])
            assert found.low <= low + 1e-12 and found.high >= high - 1e-12


def test_auc_at_its_ends() -> None:
    found = ranking.auc([1, 2, 3, 4, 5, 6], [False] * 3 + [True] * 3)
    assert found is not None and found.value == found.high == 1 and 0.4 < found.low < 0.8
    assert ranking.auc([1, 2], [True, True]) is None
    with pytest.raises(InputError, match="same length"):
        ranking.auc([1, 2, 3], [True, False])


def test_auc_of_clusters_and_strata() -> None:
    rng = np.random.default_rng(3)
    scores, labels = rng.normal(size=60) + np.repeat([0.8, 0], 30), np.repeat([True, False], 30)
    plain = ranking.auc(scores, labels)
    alone = ranking.auc(scores, labels, clusters=list(range(60)), strata=[0] * 60)
    twice = ranking.auc(np.tile(scores, 2), np.tile(labels, 2), clusters=list(range(60)) * 2)
    assert plain is not None and alone is not None and twice is not None
    np.testing.assert_allclose(alone, plain, atol=0.003)
    np.testing.assert_allclose(twice, plain, atol=0.005)
    strata = rng.permutation(np.arange(60) % 3)
    shifted = ranking.auc(scores + 100 * strata, labels, strata=strata.tolist())
    parts = [
        (np.sum(labels[chosen]) * np.sum(~labels[chosen]), metrics_auc(scores[chosen], labels[chosen]))
        for chosen in (strata == k for k in range(3))
    ]
    assert shifted is not None
    assert shifted.value == pytest.approx(sum(n * area for n, area in parts) / sum(n for n, _ in parts))
    assert ranking.auc([1, 2], [True, False], strata=[0, 1]) is None


def metrics_auc(scores: np.ndarray, labels: np.ndarray) -> float:
    differences = scores[labels][:, None] - scores[~labels]
    return float(np.mean((differences > 0) + (differences == 0) / 2))


def test_clustered_auc_holds_the_truth_where_twins_err_together() -> None:
    """40 twins of one label each, three copies with little of their own: counted as independent it covers 0.7."""
    rng = np.random.default_rng(4)
    truth, labels = stats.norm.cdf(1 / math.sqrt(2)), np.repeat(np.repeat([True, False], 20), 3)
    clusters = np.repeat(np.arange(40), 3).tolist()
    held = dict.fromkeys(("clustered", "plain"), 0)
    for _ in range(300):
        scores = np.repeat(rng.normal(size=40), 3) * 0.9**0.5 + rng.normal(size=120) * 0.1**0.5 + labels
        for name, given in (("clustered", clusters), ("plain", None)):
            found = ranking.auc(scores, labels, clusters=given)
            held[name] += found is not None and found.low <= truth <= found.high
    assert held["clustered"] / 300 > 0.92 > 0.85 > held["plain"] / 300


# --- clusters


def test_clusters_of_one_change_nothing() -> None:
    for before, after in paired_tables(30, 7):
        alone = list(range(len(before)))
        plain, clustered = (
            rates.paired_difference(before, after),
            rates.paired_difference(before, after, alone),
        )
        assert plain is not None and clustered is not None and plain.p_value == clustered.p_value
        for name in ("before", "after", "difference"):
            wide, narrow = getattr(clustered, name), getattr(plain, name)
            assert wide.value == pytest.approx(narrow.value)  # n / (n - 1) of the variance, never narrower
            assert wide.high - wide.low >= narrow.high - narrow.low - 1e-9


def test_copies_of_a_response_add_nothing() -> None:
    hits = np.random.default_rng(8).random(50) < 0.8
    one = rates.rate(hits, list(range(50)))
    copied = rates.rate(np.repeat(hits, 4), np.repeat(np.arange(50), 4).tolist())
    np.testing.assert_allclose(one, copied, atol=5e-3)
    same = rates.rate([True] * 40, np.repeat(np.arange(10), 4).tolist())
    np.testing.assert_allclose(same, rates.wilson(10, 10))


@pytest.mark.parametrize("n", [8, 40])
def test_cluster_bootstrap_of_a_mean_has_the_t_intervals_width(n: int) -> None:
    one_each = stats.norm.ppf((np.arange(n) + 0.5) / n)
    values, clusters = np.repeat(one_each, 3), np.repeat(np.arange(n), 3).tolist()
    found = rates.cluster_bootstrap(lambda rows: float(values[rows].mean()), clusters, 20_000, seed=1)
    low, high = stats.t.interval(0.95, n - 1, 0, one_each.std(ddof=1) / math.sqrt(n))
    assert found.value == pytest.approx(0, abs=1e-12)
    assert found.high - found.low == pytest.approx(high - low, rel=0.04)
    again = rates.cluster_bootstrap(lambda rows: float(values[rows].mean()), clusters, 20_000, seed=1)
    assert found == again


# --- tables


def test_three_way_rates_are_of_the_answers_that_could_be_read() -> None:
    unread = ["empty", "truncated", "truncated", "reasoning", "degenerate"]
    row = rates.three_way(["refuse"] * 3 + ["comply"] * 2 + ["other", *unread])
    assert [row[name]["count"] for name in rates.READINGS] == [3, 2, 1]
    assert (row["n"], row["readable"]) == (11, 6)
    assert [row[name] for name in rates.APART] == [1, 2, 1, 1]
    assert [row[name]["value"] for name in rates.READINGS] == pytest.approx([3 / 6, 2 / 6, 1 / 6])
    interval = stats.binomtest(3, 6).proportion_ci(0.95, "wilson")
    assert row["refuse"]["interval"] == pytest.approx([interval.low, interval.high])
    for nothing in ([], ["truncated"] * 4):
        row = rates.three_way(nothing)
        assert [row[name] for name in rates.READINGS] == [None] * 3 and row["readable"] == 0
        assert row["n"] == len(nothing)


@pytest.mark.parametrize("clustered", [False, True])
def test_pairs_that_could_not_be_read_are_left_out_and_bounded(clustered: bool) -> None:
    """The same as of the readable pairs alone; the bounds are those of all ways to fill the gaps."""
    values = (True, False, None)
    rng = np.random.default_rng(1)
    for _ in range(40):
        n = int(rng.integers(1, 6))
        sides = [[values[i] for i in rng.integers(0, 3, n)] for _ in range(2)]
        names = rng.integers(0, 3, n).tolist() if clustered else None
        found = rates.paired_difference(sides[0], sides[1], names)
        kept = [i for i in range(n) if sides[0][i] is not None and sides[1][i] is not None]
        alone = rates.paired_difference(
            *([side[i] for i in kept] for side in sides), None if names is None else [names[i] for i in kept]
        )
        if found is None or alone is None:
            assert found is alone is None and not kept
            continue
        same = ("n", "before", "after", "difference", "lost", "gained", "p_value")
        assert [getattr(found, name) for name in same] == [getattr(alone, name) for name in same]
        assert found.left_out == n - len(kept)
        filled = [
            list(itertools.product(*([value] if value is not None else [True, False] for value in side)))
            for side in sides
        ]
        changes = [(sum(b) - sum(a)) / n for a in filled[0] for b in filled[1]]
        assert found.bounds == pytest.approx((min(changes), max(changes)))


def test_categories_without_readable_pairs_have_no_p_value_and_correct_none() -> None:
    before = [True] * 8 + [None] * 3 + [True] * 8
    after: list[bool | None] = [False] * 8 + [True] * 3 + [True] * 8
    rows = rates.differences_by_category(before, after, ["a"] * 8 + ["b"] * 3 + ["c"] * 8)
    assert [(row["category"], row["n"], row["left_out"]) for row in rows] == [
        ("a", 8, 0),
        ("b", 0, 3),
        ("c", 8, 0),
    ]
    assert rows[1]["difference"] is rows[1]["p_value"] is rows[1]["p_holm"] is None
    assert rows[0]["p_holm"] == pytest.approx(2 * rows[0]["p_value"])  # of two, not of three


def test_tables_by_category() -> None:
    rng = np.random.default_rng(10)
    names = rng.choice(["fraud", "theft", None], 60).tolist()
    before, after = (rng.random(60) < p for p in (0.9, 0.3))
    verdicts = np.where(before, "refuse", "comply").tolist()
    for row in rates.by_category(verdicts, names, list(range(60))):
        chosen = np.array([name == row["category"] for name in names])
        assert (row["n"], row["refuse"]["count"]) == (chosen.sum(), before[chosen].sum())
    rows = rates.differences_by_category(before.tolist(), after.tolist(), names)
    assert [row["category"] for row in rows] == list(dict.fromkeys(names))
    assert [row["p_holm"] for row in rows] == rates.holm([row["p_value"] for row in rows])
    for row in rows:
        chosen = np.array([name == row["category"] for name in names])
        expected = rates.paired_difference(before[chosen], after[chosen])
        assert (
            expected is not None
            and {**expected.to_json(), "category": row["category"]}.items() <= row.items()
        )


def test_nothing_to_estimate_is_none() -> None:
    assert rates.wilson(0, 0) is None and rates.rate([]) is None and rates.paired_difference([], []) is None


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rates.wilson(3, 2), "3 in 2"),
        (lambda: rates.wilson(1, 2, 1.5), "confidence is 1.5"),
        (lambda: rates.rate([0.5]), "true and false"),
        (lambda: rates.rate([True], ["a", "b"]), "2 cluster names for 1"),
        (lambda: rates.paired_difference([True], []), "1 responses before, 0 after"),
        (lambda: rates.tango(3, 3, 5), "fit the total"),
        (lambda: rates.by_category(["refuse"], []), "0 categories for 1"),
        (lambda: rates.cluster_bootstrap(lambda rows: 0.0, ["a", "a"]), "two clusters, found 1"),
        (lambda: rates.cluster_bootstrap(lambda rows: math.nan, ["a", "b"]), "not a finite number"),
        (lambda: ranking.auc([math.nan, 1], [True, False]), "without NaN"),
    ],
)
def test_bad_input_is_one_clear_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


# --- coverage: how often the 95 % interval holds the truth


def rate_coverage(case: Case, draws: int, rng: np.random.Generator) -> float:
    n, p = case
    wilson = functools.lru_cache(None)(rates.wilson)
    return share_holding(p, (wilson(int(k), n) for k in rng.binomial(n, p, draws)))


def paired_coverage(case: Case, draws: int, rng: np.random.Generator) -> float:
    n, p, q, correlation = case
    both = min(p * q + correlation * math.sqrt(p * (1 - p) * q * (1 - q)), p, q)
    cells = np.clip([both, p - both, q - both, 1 - p - q + both], 0, 1)
    tango = functools.lru_cache(None)(rates.tango)
    tables = rng.multinomial(n, cells, draws)
    return share_holding(q - p, (tango(int(c), int(b), n) for _, b, c, _ in tables))


def unpaired_coverage(case: Case, draws: int, rng: np.random.Generator) -> float:
    m, n, p, q = case
    wilson = functools.lru_cache(None)(rates.wilson)
    pairs = zip(rng.binomial(m, p, draws), rng.binomial(n, q, draws), strict=True)
    found = (rates.unpaired_difference(wilson(int(a), m), wilson(int(b), n)) for a, b in pairs)
    return share_holding(q - p, found)


def sampled(n: int, size: int, p: float, rho: float, rng: np.random.Generator) -> np.ndarray:
    """Hits [n, size]; ``rho`` is the correlation within a prompt."""
    of_prompt = rng.beta(p * (1 - rho) / rho, (1 - p) * (1 - rho) / rho, (n, 1))
    return rng.random((n, size)) < of_prompt


def clustered_coverage(case: Case, draws: int, rng: np.random.Generator) -> float:
    n, size, p, rho = case
    clusters = np.repeat(np.arange(n), size).tolist()
    hits = (sampled(n, size, p, rho, rng).ravel() for _ in range(draws // 10))
    return share_holding(p, (rates.rate(one, clusters) for one in hits))


def difference_coverage(case: Case, draws: int, rng: np.random.Generator) -> float:
    n, size, p, q, rho = case
    clusters = np.repeat(np.arange(n), size).tolist()
    sides = ([sampled(n, size, r, rho, rng).ravel() for r in (p, q)] for _ in range(draws // 10))
    return share_holding(q - p, (rates.paired_difference(a, b, clusters).difference for a, b in sides))


def auc_coverage(case: Case, draws: int, rng: np.random.Generator) -> float:
    m, n, area, spread = case
    shift = stats.norm.ppf(area) * math.hypot(1, spread)
    labels = np.repeat([True, False], [m, n])
    groups = ((rng.normal(shift, spread, m), rng.normal(0, 1, n)) for _ in range(draws // 10))
    return share_holding(area, (ranking.auc(np.concatenate(both), labels) for both in groups))


def share_holding(truth: float, estimates: Iterator[rates.Estimate | None]) -> float:
    return float(np.mean([e.low <= truth + 1e-12 and truth <= e.high + 1e-12 for e in estimates if e]))


CHANGES = [
    (0.99, 0.02, 0),
    (0.95, 0.05, 0),
    (0.95, 0.95, 0.5),
    (0.9, 0.8, 0.3),
    (0.9, 0.5, 0.2),
    (0.5, 0.4, 0.5),
]
SAMPLED = [(20, 5, 0.9), (40, 2, 0.8), (80, 4, 0.99), (80, 4, 0.95), (80, 4, 0.5), (200, 3, 0.98)]
MEASURES: dict[str, tuple[Callable[[Case, int, np.random.Generator], float], list[Case]]] = {
    "rate": (
        rate_coverage,
        list(itertools.product((20, 80, 400), (0.02, 0.1, 0.3, 0.5, 0.8, 0.93, 0.99))),
    ),
    "paired": (paired_coverage, [(n, *change) for n in (20, 40, 80, 200) for change in CHANGES]),
    "unpaired": (
        unpaired_coverage,
        [(m, n, p, q) for m, n in ((30, 30), (80, 80), (80, 200)) for p, q, _ in CHANGES],
    ),
    "clustered": (clustered_coverage, [(*shape, rho) for shape in SAMPLED for rho in (0.2, 0.6)]),
    "difference": (
        difference_coverage,
        [(n, size, p, q, 0.5) for n, size in ((40, 2), (40, 4), (80, 4)) for p, q, _ in CHANGES],
    ),
    "auc": (
        auc_coverage,
        [
            (m, n, area, spread)
            for m, n in ((12, 116), (10, 10), (40, 40), (100, 100))
            for area in (0.5, 0.8, 0.95, 0.99)
            for spread in (0.5, 1.0, 2.0)
        ],
    ),
}


@pytest.mark.parametrize(
    ("name", "case", "least"),
    [
        ("rate", (80, 0.93), 0.93),
        ("paired", (80, 0.99, 0.02, 0), 0.94),
        ("paired", (40, 0.9, 0.5, 0.2), 0.94),
        ("unpaired", (80, 80, 0.9, 0.5), 0.935),
        ("clustered", (80, 4, 0.95, 0.6), 0.9),
        ("difference", (80, 4, 0.9, 0.5, 0.5), 0.91),
        ("auc", (12, 116, 0.95, 1.0), 0.93),
    ],
)
def test_intervals_have_their_coverage(name: str, case: Case, least: float) -> None:
    assert MEASURES[name][0](case, 4000, np.random.default_rng(11)) >= least


def main(draws: int = 20_000) -> None:
    """Print the coverage of every case and, for each estimate, the range and the mean."""
    for name, (measure, cases) in MEASURES.items():
        found = [measure(case, draws, np.random.default_rng(number)) for number, case in enumerate(cases)]
        for case, coverage in zip(cases, found, strict=True):
            print(f"{name:10} {coverage:.3f} {case}")
        print(f"{name:10} {min(found):.3f} to {max(found):.3f}, mean {np.mean(found):.3f}", flush=True)


if __name__ == "__main__":
    main()
