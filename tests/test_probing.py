"""Probes against a plain scikit-learn script, simulated truths, leaks, and bad input."""

from __future__ import annotations

import _thread
import itertools
import json
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from probe_cases import plain_script, simulated, small_roster
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    f1_score,
    log_loss,
    precision_score,
    recall_score,
    roc_auc_score,
)

import safex
from safex import Features, InputError, Probing, probe
from safex.expert_set import ExpertSet
from safex.experts import Expert
from safex.probing import logistic
from safex.probing.crossval import make_problem, out_of_fold, shuffled
from safex.probing.folds import components, make_folds
from safex.probing.inputs import Outputs, Words
from safex.probing.scores import balanced_accuracy, metrics
from safex.probing.settings import STRENGTHS
from safex.probing.tables import NAMES, probing_tables
from safex.probing.tasks import TASKS, choose_tasks, parse_task
from safex.rates import rate
from safex.roster import Roster
from safex.tables import write_tables

FEW = (0.1, 1.0, 10.0)  # C by number of features
QUICK: dict[str, Any] = {"repeats": 1, "shuffles": 0, "curve": (), "n_threads": 1, "strengths": FEW}
ID = [Expert(0, 1), Expert(1, 2)]


def problem_of(
    features: Features, task: str = "harmful", repeats: int = 1, shuffles: int = 0, **options: Any
):
    tasks = choose_tasks([task], features.sets)
    folds = make_folds(features, tasks, 5, repeats, options.get("hold_out"), options.get("seed", 0))
    return make_problem(tasks[0], np.array(features.sets), folds, STRENGTHS, shuffles)


# --- the same numbers as scikit-learn


@pytest.mark.parametrize("strength", [0.001, 0.3, 20.0, 1e4])
@pytest.mark.parametrize(("n", "width"), [(30, 80), (80, 5)])
def test_logistic_regression_is_that_of_scikit_learn(n: int, width: int, strength: float) -> None:
    rng = np.random.default_rng(0)
    x, labels = rng.normal(size=(n, width)), rng.random(n) < 0.3
    model = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-12, max_iter=10000).fit(x, labels)
    found = logistic.fit(x @ x.T, labels, strength)
    other = rng.normal(size=(9, width))
    np.testing.assert_allclose(found.predict(other @ x.T), model.decision_function(other), atol=1e-6)
    warm = logistic.fit(x @ x.T, labels, strength, logistic.fit(x @ x.T, labels, strength / 10))
    np.testing.assert_allclose(warm.log_odds, found.log_odds, atol=1e-6)


def test_separable_labels_and_constant_features_are_solved() -> None:
    labels = np.array([True, False] * 10)
    x = np.where(labels, 50.0, -50.0)[:, None] * np.ones((20, 3))
    found = logistic.fit(x @ x.T, labels, 1e6)
    assert ((found.log_odds > 0) == labels).all() and np.isfinite(found.alpha).all()
    nothing = logistic.fit(np.zeros((20, 20)), labels[:20] | (np.arange(20) < 10), 1.0)
    assert nothing.intercept == pytest.approx(np.log(15 / 5))


@pytest.mark.parametrize(
    ("experts", "task", "missing"),
    [
        (["0:1"], "harmful", 0.0),
        (["0:1", "1:2"], "harmful", 0.0),
        (["1:2"], "regular-benign", 0.0),
        (["1:2"], "regular-jailbreak", 0.3),
        (["0:1", "1:2"], "harmful", 0.3),
    ],
)
def test_scores_are_those_of_a_plain_script(experts: list[str], task: str, missing: float) -> None:
    features = simulated(25, 1.5, missing=missing)
    chosen = TASKS[task]
    found = out_of_fold(
        Outputs(features, [Expert(*map(int, e.split(":"))) for e in experts]), problem_of(features, task), 1
    )
    expected, folds = plain_script(features, experts, chosen.positive, chosen.negative, chosen.transfer)
    problem = problem_of(features, task)
    np.testing.assert_allclose(found.real[0], expected[0, problem.rows], atol=1e-5)
    scored = folds[0] >= 0
    np.testing.assert_array_equal(problem.outer[0][scored[problem.rows]], folds[0][scored])


def test_the_result_is_that_of_a_plain_script() -> None:
    """Two repeats, a task with transfer: every measure of the group and of an expert."""
    features = simulated(30, 1.0)
    result = probe(features, tasks=["regular-benign"], repeats=2, shuffles=0, curve=(), n_threads=1)
    task = result.task("regular-benign")
    sets = np.array(features.sets)
    for row, experts in ((task["groups"][0], ID), (task["experts"][1], ID[1:])):
        scores, folds = plain_script(features, experts, ["regular"], ["benign"], ["jailbreak"], repeats=2)
        for part, positive in ((row, "regular"), (row["transfer"], "jailbreak")):
            rows = np.isin(sets, [positive, "benign"])
            expected = np.mean(
                [
                    _measures(s[rows], sets[rows] != "benign", f[rows])
                    for s, f in zip(scores, folds, strict=True)
                ],
                0,
            )
            found = [part[name]["value"] for name in MEASURES]
            np.testing.assert_allclose(found, expected, atol=1e-9)
            assert (part["n"], part["n_positive"]) == (60, 30)


MEASURES = ("accuracy", "balanced_accuracy", "precision", "recall", "specificity", "f1", "auc")


def _measures(scores: np.ndarray, truth: np.ndarray, folds: np.ndarray) -> list[float]:
    said = scores > 0
    areas = [
        (roc_auc_score(truth[folds == k], scores[folds == k]), _pairs(truth[folds == k]))
        for k in np.unique(folds)
    ]
    return [
        accuracy_score(truth, said),
        balanced_accuracy_score(truth, said),
        precision_score(truth, said),
        recall_score(truth, said),
        recall_score(~truth, ~said),
        f1_score(truth, said),
        sum(area * n for area, n in areas) / sum(n for _, n in areas),
    ]


def _pairs(truth: np.ndarray) -> int:
    return int(truth.sum() * (~truth).sum())


def test_the_bag_of_words_is_that_of_a_plain_script() -> None:
    features = simulated(20)
    texts = [f"{i} a prompt about {s if i % 3 else i // 3}" for i, s in enumerate(features.sets)]
    problem = problem_of(features)
    found = out_of_fold(Words(texts), problem, 1)
    chosen = iter(found.strengths)
    for fold in range(5):
        test = problem.outer[0] == fold
        vectorizer = TfidfVectorizer(ngram_range=(1, 2), token_pattern=r"(?u)\b\w+\b")
        x = vectorizer.fit_transform([texts[i] for i in np.flatnonzero(~test)])
        losses = []
        for strength in STRENGTHS:
            parts = []
            for k in range(3):
                held = problem.inner[0, fold, ~test] == k
                model = LogisticRegression(C=strength, solver="newton-cholesky", tol=1e-10)
                model.fit(x[~held], problem.labels[~test][~held])
                parts.append(
                    log_loss(problem.labels[~test][held], model.predict_proba(x[held]), labels=[False, True])
                )
            losses.append(np.mean(parts))
        best = STRENGTHS[int(np.argmin(losses))]
        assert next(chosen) == best
        model = LogisticRegression(C=best, solver="newton-cholesky", tol=1e-10).fit(x, problem.labels[~test])
        expected = model.decision_function(vectorizer.transform([texts[i] for i in np.flatnonzero(test)]))
        np.testing.assert_allclose(found.real[0, test], expected, atol=1e-5)


# --- folds


@pytest.mark.parametrize("hold_out", [None, "category"])
def test_no_unit_is_on_both_sides_of_a_split(hold_out: str | None) -> None:
    features = simulated(30)
    problem = problem_of(features, repeats=3, hold_out=hold_out)
    keys = np.array(features.categories if hold_out else features.pairs)[problem.rows]
    for outer in problem.outer:
        for key in set(keys):
            assert len(set(outer[keys == key])) == 1
        sizes = np.bincount(outer)
        assert len(sizes) == 5 and sizes.max() <= 1.5 * sizes.min()
        assert all(np.unique(problem.labels[outer == k]).size == 2 for k in range(5))
    for repeat, fold in itertools.product(range(3), range(5)):
        inner, train = problem.inner[repeat, fold], problem.outer[repeat] != fold
        assert (inner[train] >= 0).all() and (inner[~train] == -1).all()
        for unit in set(problem.units[train]):
            assert len(set(inner[train & (problem.units == unit)])) == 1


def test_prompts_of_the_same_text_and_twins_of_twins_are_one_unit() -> None:
    assert components([["a", "b", None, "a", None], ["x", "y", "y", None, None]]).tolist() == [0, 1, 1, 0, 2]


def test_shuffles_keep_units_as_they_are() -> None:
    rng = np.random.default_rng(0)
    units = np.array([0, 0, 0, 1, 1, 1, 2, 2, 3, 4, 5, 6, 6])
    labels = np.array([1, 1, 0, 0, 1, 0, 1, 1, 0, 1, 0, 0, 0], bool)
    seen = np.array([shuffled(labels, units, rng) for _ in range(400)])
    per_unit = np.array([[one[units == u].sum() for u in range(7)] for one in seen])
    assert set(map(tuple, np.sort(per_unit[:, :2]).tolist())) == {(1, 2)}
    assert set(per_unit[:, 2]) == set(per_unit[:, 6]) == {0, 2}
    assert ((per_unit[:, 2:] > 0).sum(axis=1) == 2).all()
    np.testing.assert_allclose(seen[:, :6].mean(axis=0), 0.5, atol=0.1)
    np.testing.assert_allclose(seen[:, 6:].mean(axis=0), 0.4, atol=0.1)


def test_twins_would_leak_and_do_not() -> None:
    """Two copies of each prompt, labels drawn by pair: a probe that saw the twin knows the answer."""
    rng = np.random.default_rng(0)
    n, sets = 60, np.repeat(rng.permutation(["regular", "benign"] * 30), 2).tolist()
    values = np.repeat(rng.normal(size=(1, n, 300)), 2, axis=1)
    pairs = [f"{i // 2:03d}" for i in range(2 * n)]
    made = {"experts": ["0:1"], "values": values, "sets": sets}
    leaking, tight = (
        probe(Features.from_arrays(**made, pairs=p), **(QUICK | {"repeats": 3})) for p in (None, pairs)
    )
    assert leaking.tasks[0]["experts"][0]["accuracy"]["value"] > 0.8
    accuracy = tight.tasks[0]["experts"][0]["accuracy"]
    assert accuracy["value"] == pytest.approx(0.5, abs=0.12)
    assert accuracy["interval"][0] < 0.5 and tight.tasks[0]["units"] == n


def test_equal_texts_do_not_leak_either() -> None:
    rng = np.random.default_rng(0)
    sets = np.repeat(rng.permutation(["regular", "benign"] * 30), 2).tolist()
    values = np.repeat(rng.normal(size=(1, 60, 300)), 2, axis=1)
    texts = [f"text {i // 2}" for i in range(120)]
    features = Features.from_arrays(experts=["0:1"], values=values, sets=sets, texts=texts)
    assert probe(features, **QUICK).tasks[0]["experts"][0]["accuracy"]["value"] < 0.75


def test_held_out_categories_take_away_what_only_categories_tell() -> None:
    """A feature that tells the category and nothing else of the set, with one set a category."""
    rng = np.random.default_rng(0)
    n, kinds = 120, 12
    category = np.arange(n) % kinds
    sets = ["regular" if c % 2 else "benign" for c in category]
    values = (rng.normal(size=(kinds, 60)) * 3)[category] + rng.normal(size=(n, 60))
    features = Features.from_arrays(
        experts=["0:1"], values=values[None], sets=sets, categories=[f"c{c}" for c in category]
    )
    seen, held = (probe(features, hold_out=h, **QUICK).tasks[0]["experts"][0] for h in (None, "category"))
    assert seen["accuracy"]["value"] > 0.95
    assert held["accuracy"]["value"] < 0.75
    width = np.diff(held["accuracy"]["interval"])[0]
    assert width > 0.3  # 12 categories are what it rests on, not 120 prompts


# --- what must be found, and what must not


def test_a_planted_signal_is_found_and_is_specific() -> None:
    features = simulated(40, {"id": 2.0}, roster=small_roster(20), seed=1)
    result = probe(features, tasks=["harmful"], **(QUICK | {"shuffles": 20, "curve": (0.25, 0.5)}))
    group = result.task("harmful")["groups"][0]
    assert group["evidence"] == {"signal": True, "specific": True, "beyond_words": True}
    assert group["auc"]["value"] > 0.8 and group["auc"]["interval"][0] > 0.6
    controls = group["controls"][0]
    assert controls["n"] == 20 and controls["auc"]["mean"] == pytest.approx(0.5, abs=0.06)
    assert controls["auc"]["p_value"] == pytest.approx(1 / 21)
    assert group["shuffled"]["auc"]["mean"] == pytest.approx(0.5, abs=0.06)
    assert "Better than random experts" in result.conclusion and "more than the words" in result.conclusion
    areas = [point["auc"]["value"] for point in group["curve"]]
    assert [point["share"] for point in group["curve"]] == [0.25, 0.5, 1.0] and areas[0] < areas[-1]


def test_no_better_than_random_experts_comes_out_when_so() -> None:
    """All experts read the same residual stream: each tells as much."""
    features = simulated(30, 1.2, roster=small_roster(20), seed=2)
    result = probe(features, tasks=["harmful"], **(QUICK | {"shuffles": 20}))
    evidence = result.evidence["harmful"]["id"]
    assert evidence["signal"] is True and evidence["specific"] is False
    assert "No better than random experts: those of the same layers AUC" in result.conclusion


def test_random_labels_show_no_signal_and_shuffles_sit_at_chance() -> None:
    means, found = [], []
    for seed in range(4):
        features = simulated(14, 0.0, disguise=0.0, seed=seed, width=30)
        result = probe(features, tasks=["harmful"], **(QUICK | {"shuffles": 20}))
        for task in result.tasks:
            for row in (*task["groups"], *task["experts"]):
                means.append(row["shuffled"]["auc"]["mean"])
                found.append(row["shuffled"]["auc"]["p_value"])
    assert np.mean(means) == pytest.approx(0.5, abs=0.02)
    assert np.mean(np.array(found) <= 0.05) <= 0.2 and 0.3 < np.mean(found) < 0.75


def test_words_that_tell_the_sets_apart_are_said() -> None:
    features = simulated(30, {"id": 1.0}, seed=3)
    telling = simulated(
        30,
        {"id": 1.0},
        seed=3,
        texts=[f"{i} please {'harm' if s != 'benign' else 'help'}" for i, s in enumerate(features.sets)],
    )
    result = probe(telling, tasks=["harmful"], **QUICK)
    assert result.evidence["harmful"]["id"]["beyond_words"] is False
    assert result.task("harmful")["words"]["accuracy"]["value"] == 1.0
    assert "less than the words" in result.conclusion or "no more than the words" in result.conclusion
    wordless = probe(simulated(30, texts=None), tasks=["harmful"], **QUICK)
    assert wordless.task("harmful")["words"] is None
    assert wordless.evidence["harmful"]["id"]["beyond_words"] is None
    assert "no prompt texts" in wordless.notes[-1]


def test_transfer_sees_no_twin_and_tells_a_disguise_that_hides_the_harm() -> None:
    """Jailbreak prompts that look benign: AUC of the transfer is at chance, that of the task is not."""
    rng = np.random.default_rng(0)
    open_, hidden = (simulated(40, {"id": 2.0}, disguise=0.0, seed=4) for _ in range(2))
    values = [np.array(hidden.of(e)) for e in hidden.experts]
    benign, jailbreak = (np.array([s == name for s in hidden.sets]) for name in ("benign", "jailbreak"))
    for array in values:
        array[jailbreak] = array[benign][rng.permutation(40)] + rng.normal(size=array[benign].shape) * 0.01
    hidden = simulated(40, seed=4, values=values)
    seen, lost = (probe(f, tasks=["regular-benign"], **QUICK).tasks[0]["groups"][0] for f in (open_, hidden))
    assert seen["auc"]["value"] > 0.9 and seen["transfer"]["auc"]["value"] > 0.9
    assert lost["auc"]["value"] > 0.9 and lost["transfer"]["auc"]["value"] < 0.65
    assert lost["transfer"]["recall"]["value"] < 0.4


def test_missing_outputs_are_left_out_or_take_the_mean() -> None:
    features = simulated(40, 1.5, missing=0.4)
    mean, drop = (probe(features, tasks=["harmful"], missing=m, **QUICK).tasks[0] for m in ("mean", "drop"))
    there = np.array([features.present(e) for e in ID])
    assert (
        mean["groups"][0]["n"] == there.any(axis=0).sum()
        and drop["groups"][0]["n"] == there.all(axis=0).sum()
    )
    assert [row["n"] for row in mean["experts"]] == there.sum(axis=1).tolist()
    assert mean["experts"] == drop["experts"]


def test_an_expert_that_few_prompts_select_is_skipped_by_name(tmp_path: Path) -> None:
    features = simulated(20, 1.0)
    values = [np.array(features.of(e)) for e in features.experts]
    values[0][12:] = np.nan
    rare = simulated(20, values=values, routing="natural")
    result = probe(rare, {"id": ["0:1", "1:2"], "rare": ["0:1"]}, tasks=["harmful"], **QUICK)
    task = result.task("harmful")
    assert (
        task["experts"][0]["skipped"] == "too few prompts with its output" and task["experts"][0]["n"] == 12
    )
    assert task["groups"][0]["n"] == 60 and "skipped" not in task["groups"][0]
    assert "Group rare (1 expert), regular and jailbreak against benign: not probed" in result.conclusion
    result.save(tmp_path / "p.json")
    assert Probing.load(tmp_path / "p.json") == result


# --- measures


def test_measures_of_clustered_scores() -> None:
    rng = np.random.default_rng(0)
    truth, scores = rng.random(60) < 0.4, rng.normal(size=60)
    found = metrics(scores, truth, list(range(60)), [0] * 60)
    assert found["accuracy"] == rate(((scores > 0) == truth).tolist())
    assert found["f1"] is not None and found["f1"].low < found["f1"].value < found["f1"].high
    doubled = metrics(
        np.repeat(scores, 2), np.repeat(truth, 2), np.repeat(np.arange(60), 2).tolist(), [0] * 120
    )
    for name, estimate in found.items():  # two copies tell no more than one
        assert estimate is not None and doubled[name] is not None
        np.testing.assert_allclose(doubled[name], estimate, atol=0.02)


def test_balanced_accuracy_of_classes_of_one_size_is_accuracy() -> None:
    rng = np.random.default_rng(1)
    truth = np.repeat([True, False], 40)
    for share in (0.5, 0.8, 1.0):
        right = rng.random(80) < share
        found = balanced_accuracy(right, truth, list(range(80)))
        plain = rate(right.tolist())
        assert found is not None and plain is not None
        np.testing.assert_allclose(found, plain, atol=0.005)
    assert balanced_accuracy(np.ones(3, bool), np.ones(3, bool), [0, 1, 2]) is None


def test_measures_that_are_undefined_are_none() -> None:
    found = metrics(np.array([-1.0, -2.0]), np.array([False, False]), [0, 1], [0, 0])
    assert found["precision"] is found["recall"] is found["auc"] is found["balanced_accuracy"] is None
    assert found["accuracy"] is not None and found["accuracy"].value == 1.0


# --- repeatable, and kept


def test_the_result_depends_on_the_seed_and_not_on_threads(tmp_path: Path) -> None:
    features = simulated(12, 1.0)
    options: dict[str, Any] = {"repeats": 2, "shuffles": 2, "curve": (0.5,), "strengths": FEW}
    first, second = (probe(features, n_threads=n, **options) for n in (1, 3))
    assert json.dumps(first.to_json()) == json.dumps(second.to_json())
    other = probe(features, n_threads=1, seed=1, **options)
    assert other.tasks[0]["groups"][0]["accuracy"] != first.tasks[0]["groups"][0]["accuracy"]
    first.save(tmp_path / "a.json")
    assert Probing.load(tmp_path / "a.json") == first
    features.save(tmp_path / "f.safetensors")
    again = probe(Features.load(tmp_path / "f.safetensors"), n_threads=1, **options)
    assert again == first


def test_the_result_says_where_it_comes_from() -> None:
    result = probe(simulated(15, 1.0), **QUICK)
    assert result.model["name"] == "simulated" and result.features["prompts"]["benign"] == 15
    assert result.parameters["tasks"] == ["harmful", "regular-benign", "regular-jailbreak"]
    assert [row["layer"] for row in result.task("harmful")["layers"]] == [0, 1]
    points = result.projection[0]["points"]
    assert len(points) == 45 and 0 < sum(result.projection[0]["explained"]) <= 1
    assert "notes" in result.to_json() and "15 benign prompts" in " ".join(result.notes)


def test_tables_hold_every_number(tmp_path: Path) -> None:
    result = probe(simulated(12, 1.0), **(QUICK | {"shuffles": 2, "curve": (0.5,)}))
    tables = probing_tables(result)
    assert tuple(tables) == NAMES
    probes = tables["probes"]
    rows = list(
        zip(
            probes["task"], probes["probe"], probes["tested"], probes["measure"], probes["value"], strict=True
        )
    )
    group = result.task("regular-benign")["groups"][0]
    assert ("regular-benign", "group", "transfer", "auc", group["transfer"]["auc"]["value"]) in rows
    assert len(tables["probe_controls"]["auc"]) == 3 * (3 + len(result.tasks[0]["control_experts"]))
    assert (
        len(write_tables(tables, tmp_path, "csv"))
        == len(write_tables(tables, tmp_path, "parquet"))
        == len(NAMES)
    )


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "p.json"
    for text, message in (
        ("{}", "is no probing: expected an object with 'safex_probing'"),
        ('{"safex_probing": 2}', "has schema version 2, expected 1"),
        ('{"safex_probing": 1}', "has no 'conclusion'"),
        ('{"safex_probing": 1, "conclusion": "", "tasks": {}}', "'tasks' is dict, expected list"),
        ('{"safex_probing": 1, "conclusion": "", "tasks": [1]}', "task 0 lacks its name, groups or experts"),
    ):
        path.write_text(text)
        with pytest.raises(InputError, match=message):
            Probing.load(path)


# --- groups, tasks, bad input


def test_groups_may_be_given_and_keep_their_controls() -> None:
    features = simulated(15, 1.0)
    renamed = probe(features, {"mine": ["1:2", "0:1"], "one": ["0:1"]}, tasks=["harmful"], **QUICK)
    mine, one = renamed.tasks[0]["groups"]
    assert mine["group"] == "mine" and mine["controls"][0]["n"] == 3 and not one["controls"]
    assert renamed.notes[0] == "group 'one': the features hold no controls of it"
    assert "No control experts were probed" in one["conclusion"] or not one["evidence"]["signal"]
    plain = probe(
        simulated(
            15, roster=Roster(), experts=["0:0"], values=np.random.default_rng(0).normal(size=(1, 45, 4))
        ),
        **QUICK,
    )
    assert plain.tasks[0]["groups"][0]["group"] == "experts" and "no groups" in plain.notes[0]


def test_tasks_are_named_or_spelled() -> None:
    assert parse_task("a+b:c").positive == ("a", "b")
    assert [task.name for task in choose_tasks(None, ["regular", "benign", "odd"])] == ["regular-benign"]
    assert choose_tasks(None, ["regular", "benign"])[0].transfer == ()
    result = probe(simulated(15, 1.0), tasks=["jailbreak:benign"], **QUICK)
    assert result.tasks[0]["positive"] == ["jailbreak"] and "transfer" not in result.tasks[0]["groups"][0]


SMALL = simulated(6)
OTHER = ExpertSet({"id": [{"layer": 0, "expert": 1}]}, model={"fingerprint": "e" * 64})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probe(simulated(6, sets=["regular"] * 18)), "the prompts are of set regular: .* two kinds"),
        (lambda: probe(simulated(6, sets=["a", "b", "c"] * 6)), "or name a task such as a:b"),
        (lambda: probe(SMALL, folds=7), "task 'harmful': 6 .* prompts .* 7 folds need at least 7"),
        (lambda: probe(simulated(3)), "3 regular and jailbreak prompts .* 5 folds"),
        (
            lambda: probe(SMALL, tasks=["harmful", "regular:odd"]),
            "task 'regular:odd' needs set 'odd', the features hold",
        ),
        (lambda: probe(SMALL, tasks=["regular"]), "task 'regular': expected one of harmful, "),
        (lambda: probe(SMALL, tasks=["regular:regular"]), "names set 'regular' twice"),
        (lambda: probe(SMALL, tasks="harmful"), r"tasks is the text 'harmful', expected a list"),
        (lambda: probe(SMALL, {"id": ["3:1"]}), "expert 3:1 is not among .* expert of another model"),
        (
            lambda: probe(SMALL, OTHER),
            "the features are of model ffffffffffff, the expert set of eeeeeeeeeeee",
        ),
        (lambda: probe(SMALL, {"id": []}), "no group holds experts"),
        (lambda: probe(SMALL, hold_out="set"), "hold_out is 'set'"),
        (lambda: probe(simulated(6, categories=None), hold_out="category"), "no prompt has a category"),
        (
            lambda: probe(simulated(6, categories=["a"] * 18), hold_out="category"),
            "of 1 category .* at least 2",
        ),
        (lambda: probe(SMALL, hold_out="category", folds=7), "of 6 categories .* 7 folds need at least 7"),
        (lambda: probe(SMALL, folds=1), "folds is 1, expected at least 2"),
        (lambda: probe(SMALL, repeats=0), "repeats is 0"),
        (lambda: probe(SMALL, missing="zero"), "missing is 'zero', expected one of mean, drop"),
        (lambda: probe(SMALL, strengths=(1, 1)), "expected increasing numbers"),
        (lambda: probe(SMALL, curve=(2,)), "expected shares between 0 and 1"),
        (lambda: probe(SMALL, **QUICK).task("odd"), "task 'odd' was not run: there are harmful"),
    ],
)
def test_bad_input_is_one_clear_line(call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        call()
    assert "\n" not in str(caught.value)


def test_an_interrupted_run_stops_soon_and_a_failure_comes_through() -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    started = time.monotonic()
    timer = threading.Timer(1.0, _thread.interrupt_main)
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        probe(simulated(30, 1.0), shuffles=100_000, n_threads=1, tasks=["harmful"])
    signal.signal(signal.SIGINT, before)
    assert 1.0 <= time.monotonic() - started < 4.0
    with pytest.raises(ZeroDivisionError):
        probe(simulated(6), progress=lambda what, done, total: 1 // (1 - done), **QUICK)


def test_names_are_public() -> None:
    assert safex.probe is probe and safex.Probing is Probing
