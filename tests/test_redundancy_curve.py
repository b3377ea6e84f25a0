"""Redundancy curves: half-points and areas against brute force, control orders, the demo models, the command.

``python tests/test_redundancy_curve.py`` measures the coverage of the intervals.
"""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_runner import STEADY, cli, signalled, start, wait_until
from redundancy_results import LAYERS, N_EXPERTS, ORDER, counted, drawn_answers, toy_activity
from scipy import integrate, stats

import safex
from safex import InputError, PromptSet
from safex.control_masks import NoRoomError
from safex.experts import Expert
from safex.redundancy_curve import Redundancy, redundancy
from safex.redundancy_curve.conclusion import conclude, evidence
from safex.redundancy_curve.orders import CONTROL_KINDS, Activity, control_orders, steps
from safex.redundancy_curve.plan import mask_name
from safex.redundancy_curve.statistics import Resampled, areas, half_points, half_sizes, places, weights
from safex.responses import Record

DATA = Path(safex.__file__).parent / "data"
TRUTH = [
    f"{e['layer']}:{e['expert']}"
    for e in json.loads((DATA / "demo-planted.truth.json").read_text())["groups"]["planted"]
]
THREE = ("refuse", "comply", "other")
SIZES = [0, 1, 2, 4, 8, 12]


@pytest.fixture(scope="module")
def planted() -> Iterator[safex.Model]:
    with safex.Model("demo-planted", n_threads=1) as model:
        yield model


def prompts(n: int, *sets: str) -> PromptSet:
    """The first n held-out prompts of each set."""
    every = list(PromptSet.bundled("demo"))
    return PromptSet(p for name in sets or ("regular",) for p in [q for q in every if q.set == name][:n])


def small(model: safex.Model, n: int = 4, **options: Any) -> Redundancy:
    given = {"draws": 2, "max_new": 32, "utility": False, "sizes": [2, 6, 12], "bootstrap": 200, **options}
    return redundancy(model, TRUTH, prompts(n, "regular", "benign"), **given)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def random_curves(n: int, seed: int = 0) -> np.ndarray:
    """Shares of 40 prompts at each size; above 0 without a mask."""
    rng = np.random.default_rng(seed)
    curves = rng.integers(0, 41, (n, len(SIZES))) / 40
    curves[:, 0] = rng.integers(1, 41, n) / 40
    return curves


# --- the statistics


def test_the_area_is_scipys_trapezoid() -> None:
    curves = random_curves(50)
    axis = np.log(1 + np.array(SIZES)) / np.log(13)
    np.testing.assert_allclose(places(SIZES), axis)
    np.testing.assert_allclose(areas(SIZES, curves), integrate.trapezoid(curves, axis))
    relative = integrate.trapezoid(curves / curves[:, :1], axis)
    np.testing.assert_allclose(areas(SIZES, curves, relative=True), relative)
    assert weights(SIZES).sum() == pytest.approx(1) and weights([0, 7]).tolist() == [0.5, 0.5]


def half_by_walking(curve: Sequence[float]) -> tuple[float, float]:
    """The half-point on a fine walk along the axis, and the measured size, by the definition."""
    axis = [math.log2(1 + size) for size in SIZES]
    half = curve[0] / 2
    size = next((SIZES[j] for j in range(1, len(SIZES)) if all(y <= half for y in curve[j:])), math.inf)
    walk = np.linspace(0, axis[-1], 200_001)
    above = np.flatnonzero(np.interp(walk, axis, curve) > half + 1e-9)
    last = int(above[-1]) if len(above) else -1
    return (math.inf if last + 1 >= len(walk) else 2 ** walk[last + 1] - 1), size


def test_half_points_are_where_the_curve_stays_below_half() -> None:
    curves = random_curves(200, seed=1)
    for curve, point, size in zip(curves, half_points(SIZES, curves), half_sizes(SIZES, curves), strict=True):
        walked, measured = half_by_walking(curve.tolist())
        assert size == measured, curve
        if math.isfinite(point):
            assert point == pytest.approx(walked, abs=2e-4), curve
        else:
            assert curve[-1] > curve[0] / 2


@pytest.mark.parametrize(
    ("curve", "point", "size"),
    [
        ([1, 1, 1, 1, 1, 1], math.inf, math.inf),
        ([1, 0, 0, 0, 0, 0], math.sqrt(2) - 1, 1),
        ([0.8, 0.4, 0.4, 0.4, 0.4, 0.4], 1, 1),  # exactly half counts
        ([1, 0.1, 1, 0.1, 1, 0.1], 2 ** (math.log2(9) + math.log2(13 / 9) * 5 / 9) - 1, 12),  # dips don't
        ([1, 0.1, 0.1, 0.1, 0.1, 0.6], math.inf, math.inf),
    ],
)
def test_half_points_by_hand(curve: list[float], point: float, size: float) -> None:
    assert float(half_points(SIZES, curve)) == pytest.approx(point)
    assert float(half_sizes(SIZES, curve)) == size


def test_intervals_are_those_of_prompts_drawn_one_by_one() -> None:
    rng = np.random.default_rng(2)
    hits = (rng.random((len(SIZES), 30)) < np.linspace(0.9, 0.2, len(SIZES))[:, None]).astype(float)
    drawn = Resampled.draw([None] * 30, hits[0], 300, seed=3)
    rates = drawn.rates(hits)
    by_hand = np.array(
        [hits[:, np.repeat(np.arange(30), times.astype(int))].mean(axis=1) for times in drawn.drawn]
    )
    np.testing.assert_allclose(rates, by_hand)
    values = areas(SIZES, by_hand, relative=True)
    tail = stats.norm.cdf(math.sqrt(30 / 29) * stats.t.ppf(0.025, 29))
    found = drawn.estimate(0.5, values)
    assert (found.low, found.high) == (
        min(0.5, np.sort(values)[math.ceil(tail * 300) - 1]),
        np.sort(values)[math.ceil((1 - tail) * 300) - 1],
    )


def test_twins_share_a_resample_and_lost_resamples_are_left_out() -> None:
    pairs = ["a", "a", "b", "b", None, None]
    unmasked = np.array([1.0, 1, 0, 0, 0, 0])
    drawn = Resampled.draw(pairs, unmasked, 500, seed=0)
    assert drawn.n_units == 4
    assert (drawn.drawn[:, 0] == drawn.drawn[:, 1]).all() and (drawn.drawn[:, 2] == drawn.drawn[:, 3]).all()
    assert 0.6 < len(drawn.drawn) / 500 < 0.76  # 1 - (3/4)^4 = .68 draw the one pair that is refused
    assert (drawn.drawn @ unmasked > 0).all()
    for bad in (["a", "a"], [None]):
        with pytest.raises(InputError, match="at least 2 regular prompts that are no twins"):
            Resampled.draw(bad, np.ones(len(bad)), 500, 0)
    with pytest.raises(InputError, match="1 resamples"):
        Resampled.draw(pairs, unmasked, 1, 0)


def test_intervals_know_doubt_where_all_prompts_agree_and_infinities_where_they_do_not() -> None:
    hits = np.repeat([[1.0], [1], [1], [0], [0], [0]], 40, axis=1)
    drawn = Resampled.draw([None] * 40, hits[0], 1000, 0)
    area = drawn.estimate(float(areas(SIZES, hits.mean(1), True)), areas(SIZES, drawn.rates(hits), True))
    assert 0.005 < area.high - area.low < 0.08 and area.low <= area.value <= area.high
    half = half_points(SIZES, drawn.rates(hits))
    assert np.isfinite(half).all() and 2 < half.min() < half.max() < 4
    estimate = drawn.estimate(3.0, np.array([2.0] * 900 + [np.inf] * 100))
    assert estimate == (3.0, 2.0, math.inf)


# --- sizes and orders


@pytest.mark.parametrize(
    ("sizes", "found"),
    [
        (None, [1, 2, 4, 8, 12]),
        ([4, 1, 1, 0], [1, 4]),
        (["1", " 12"], [1, 12]),
        (["1%", "5%"], [2, 7]),
    ],
)
def test_sizes(sizes: list[int | str] | None, found: list[int]) -> None:
    assert steps(sizes, 12, 128) == found


def test_default_sizes_end_with_the_whole_list() -> None:
    assert [steps(None, n, 128) for n in (1, 2, 3, 8)] == [[1], [1, 2], [1, 2, 3], [1, 2, 4, 8]]


@pytest.mark.parametrize(
    ("sizes", "said"),
    [
        ([], "at least one number"),
        ([0], "at least one number"),
        ([13], "13 is more than the 12"),
        (["x"], "size 'x'"),
        (["-1"], "size '-1'"),
        (["inf%"], "size 'inf%'"),
        (["nan%"], "size 'nan%'"),
        (["200%"], "256 is more"),
    ],
)
def test_bad_sizes(sizes: list[int | str], said: str) -> None:
    with pytest.raises(InputError, match=said):
        steps(sizes, 12, 128)


def test_control_orders_match_the_order_place_by_place() -> None:
    activity = toy_activity()
    found, notes = control_orders(ORDER, 8, activity, CONTROL_KINDS, n=6, seed=1)
    assert list(found) == list(CONTROL_KINDS) and notes == []
    assert {kind: len(orders) for kind, orders in found.items()} == {
        **dict.fromkeys(CONTROL_KINDS, 6),
        "active": 1,
        "active-layer": 1,
    }
    for kind, orders in found.items():
        assert len({tuple(order) for order in orders}) == len(orders)
        for order in orders:
            assert len(set(order)) == len(ORDER)
            assert set(order) == set(ORDER) if kind == "shuffled" else not set(order) & set(ORDER)
            if kind in ("layer", "active-layer", "frequency"):
                assert [e.layer for e in order] == [e.layer for e in ORDER]
    free = [e for e in (Expert(layer, k) for layer in LAYERS for k in range(N_EXPERTS)) if e not in ORDER]
    assert found["active"][0] == activity.busiest_first(free)[:5]
    in_1 = [e for e in found["active-layer"][0] if e.layer == 3]
    assert in_1 == activity.busiest_first(e for e in free if e.layer == 3)[:2]
    for order in found["frequency"]:
        for a, b in itertools.combinations(range(5), 2):
            if ORDER[a].layer == ORDER[b].layer:
                same = (activity.of(ORDER[a]) > activity.of(ORDER[b])) == (
                    activity.of(order[a]) > activity.of(order[b])
                )
                assert same, "the busier one stands where the busier one stood"


def test_random_orders_are_in_random_order_and_the_same_by_seed() -> None:
    activity = toy_activity([1, 3, 5, 7], 32)
    first, again, other = (control_orders(ORDER, 32, activity, ["uniform"], 200, s)[0] for s in (0, 0, 1))
    assert first == again != other
    falls = [order[0] < order[-1] for order in first["uniform"]]
    assert 0.38 < np.mean(falls) < 0.62  # in the order of their numbers: always
    layers = [order[0].layer for order in first["uniform"]]
    assert {layers.count(layer) > 25 for layer in (1, 3, 5, 7)} == {True}


def test_without_room_the_default_kinds_are_left_out_and_named_ones_refused() -> None:
    activity = toy_activity([0], 6)
    order = [Expert(0, k) for k in (3, 1, 2, 5)]
    found, notes = control_orders(order, 6, activity, None, 3, 0)
    assert list(found) == ["shuffled"] and len(notes) == 4
    assert all(note.startswith("left out: control kind ") for note in notes)
    with pytest.raises(NoRoomError, match="'uniform'"):
        control_orders(order, 6, activity, ["uniform"], 3, 0)
    assert control_orders(order, 6, activity, None, 0, 0) == ({}, [])
    with pytest.raises(InputError, match="-1 control orders"):
        control_orders(order, 6, activity, None, -1, 0)
    few, notes = control_orders(order[:2], 6, activity, ["shuffled"], 5, 0)
    assert len(few["shuffled"]) == 2 and "2 of the 5 control" in notes[0]


# --- counting


def test_curves_are_counts_of_the_records() -> None:
    records, ladder = drawn_answers()
    found = counted(records, ladder)

    def labels(set_: str, mask: str) -> list[str]:
        return [r.labels["j"] for r in records if (r.set, r.mask) == (set_, mask)]

    def curve(order: str, reading: str) -> list[float]:
        return [labels("regular", mask_name(order, k)).count(reading) / 12 for k in (0, 1, 2, 5)]

    axis = np.log2([1, 2, 3, 6]) / np.log2(6)
    for of_set in found.sets:
        for step in of_set["curve"]:
            here = labels(of_set["set"], mask_name("order", step["size"]))
            unmasked = labels(of_set["set"], "none")
            assert [step[r]["count"] for r in THREE] == [here.count(r) for r in THREE]
            if step["size"]:
                lost = [b for a, b in zip(unmasked, here, strict=True) if a == "refuse" != b]
                fates = {r: lost.count(r) for r in ("comply", "other")}
                assert step["lost_refusals"] == {**fates, "unreadable": 0}
                change = step["change"]["refuse"]["difference"]["value"]
                assert change == pytest.approx((here.count("refuse") - unmasked.count("refuse")) / 12)
    for reading in THREE:
        own = np.array(curve("order", reading))
        own = own / own[0] if reading == "refuse" else own
        area = integrate.trapezoid(own, axis)
        assert found.area[reading]["value"] == pytest.approx(area)
        for row in found.controls:
            values = []
            for one in row["orders"]:
                y = np.array(curve(one["order"], reading))
                assert one[reading] == pytest.approx(y)
                values.append(integrate.trapezoid(y / y[0] if reading == "refuse" else y, axis))
                assert one["area"][reading] == pytest.approx(values[-1])
            assert row[reading]["mean"] == pytest.approx(np.mean(values))
            if reading != "other":
                side = 1 if reading == "refuse" else -1
                as_extreme = sum(side * v <= side * area + 1e-12 for v in values)
                assert row[reading]["placement"]["p_value"] == (1 + as_extreme) / (1 + len(values))
                assert row[reading]["difference"]["value"] == pytest.approx(area - np.mean(values))


def test_equal_curves_tie_and_ties_count_against_the_order() -> None:
    """Areas are sums of floats: those of equal curves can differ in the last bit, which must not rank them."""
    for seed in range(20):
        records, ladder = drawn_answers(seed, n=37, draws=19, left=0.8)
        labels = {(r.id, r.mask): r.verdicts for r in records if r.set == "regular"}
        same = [
            dataclasses.replace(r, verdicts=labels[r.id, f"order-{r.mask.rpartition('-')[2]}"])
            if r.mask.startswith("control-uniform")
            else r
            for r in records
        ]
        uniform = counted(same, ladder).controls[0]["refuse"]
        assert uniform["placement"]["rank"] == 20
        assert uniform["difference"]["value"] == pytest.approx(0, abs=1e-12)


def test_the_difference_to_controls_is_paired_over_prompts() -> None:
    """Its interval is that of the difference in each resample, on the same prompts."""
    records, ladder = drawn_answers(seed=3, n=60)
    found = counted(records, ladder)
    (row,) = [one for one in found.controls if one["kind"] == "uniform"]
    hits = {
        mask: np.array(
            [r.labels["j"] == "refuse" for r in records if (r.set, r.mask) == ("regular", mask)], float
        )
        for mask in ladder.masks
    }

    def of(order: str) -> np.ndarray:
        return np.array([hits[mask_name(order, k)] for k in (0, 1, 2, 5)])

    drawn = Resampled.draw([None] * 60, hits["none"], 300, 0)
    own = areas([0, 1, 2, 5], drawn.rates(of("order")), True)
    theirs = np.mean(
        [areas([0, 1, 2, 5], drawn.rates(of(f"control-uniform-{i}")), True) for i in (1, 2, 3)], 0
    )
    estimate = drawn.estimate(row["refuse"]["difference"]["value"], own - theirs)
    assert row["refuse"]["difference"]["interval"] == pytest.approx([estimate.low, estimate.high])


# --- what is said


@pytest.mark.parametrize(
    ("left", "draws", "known", "said"),
    [
        (
            0.3,
            19,
            (True, True, True),
            ["is halved by ", "It is below that of as many other experts: 19 uniform"],
        ),
        (0.3, 3, (True, None, True), ["Too few control orders"]),
        (1.0, 19, (False, False, None), ["Not halved: with the first 5 experts", "not specific"]),
        (0.3, 0, (True, None, True), ["No control orders of other experts were run"]),
    ],
)
def test_conclusions(left: float, draws: int, known: tuple[bool | None, ...], said: list[str]) -> None:
    found = counted(*drawn_answers(seed=4, n=60, draws=draws, left=left))
    values = evidence(found)
    assert (values["halved"], values["beyond_controls"]) == known[:2]
    assert known[2] is None or values["real_compliance"] == known[2]
    text = conclude(found)
    for part in [*said, "Robustness, the area under the curve: "]:
        assert part in text, text
    assert ("The same experts in random order: " in text) == (draws > 0)


def test_broken_answers_are_no_compliance() -> None:
    records, ladder = drawn_answers(n=40, left=0.1)
    broken = [
        Record(r.id, r.set, r.prompt, "", mask=r.mask, verdicts={"j": {"label": "other"}})
        if r.labels["j"] == "comply"
        else r
        for r in records
    ]
    found = counted(broken, ladder)
    assert evidence(found)["real_compliance"] is False and "breaks answers" in conclude(found)
    assert found.area["comply"]["value"] == 0


# --- the demo models


def test_refusal_of_the_planted_model_is_halved_by_its_planted_experts(planted: safex.Model) -> None:
    found = redundancy(
        planted, TRUTH, prompts(20), controls=("layer", "active"), draws=19, sizes=[2, 4, 12], max_new=32
    )
    assert found.experts == TRUTH and found.sizes == [0, 2, 4, 12]
    curve = found.curve("regular")
    assert curve[0]["refuse"]["value"] > 0.9 and curve[-1]["refuse"]["count"] == 0
    assert found.half["size"] <= 12 and found.half["value"] < 12 and found.half["reached"] == 1.0
    assert found.evidence == {"halved": True, "beyond_controls": True, "real_compliance": True}
    layer, active = found.controls
    assert layer["half"] == {"reached": 0, "median": None} and active["half"]["reached"] == 0
    assert found.area["refuse"]["interval"][1] < layer["refuse"]["min"]
    assert layer["refuse"]["difference"]["interval"][1] < -0.2
    assert [row["size"] for row in found.utility] == [2, 4, 12]
    assert found.utility[-1]["ratio"]["value"] < 1.05
    assert "is halved by " in found.conclusion and "Harmless text there: perplexity" in found.conclusion


def test_answers_are_those_of_their_masks_alone(planted: safex.Model, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    found = small(planted, output=path, controls=("uniform", "frequency"))
    rows = lines(path)[1:]
    assert len(rows) == 8 * 4 + 4 * (2 * 2 * 3)
    orders = {"order": TRUTH, **{o["order"]: o["experts"] for k in found.controls for o in k["orders"]}}
    for row in random.Random(0).sample(rows, 12):
        name, _, size = row["mask"].rpartition("-")
        assert row["experts"] == (orders[name][: int(size)] if row["mask"] != "none" else [])
        alone = planted.generate([row["prompt"]], max_new=32, mask=row["experts"] or None)[0]
        assert (alone.text, alone.finish) == (row["response"], row["finish"])


def test_orders_by_activation(planted: safex.Model) -> None:
    chosen = prompts(4)
    profile = planted.profile(chosen)
    activity = Activity(planted.layers, profile.activation())
    options: dict[str, Any] = {"draws": 0, "max_new": 4, "utility": False, "bootstrap": 20}
    found = redundancy(planted, TRUTH, chosen, order="active", profile=profile, **options)
    assert found.experts == list(
        map(str, activity.busiest_first(Expert(*map(int, t.split(":"))) for t in TRUTH))
    )
    every = redundancy(planted, None, chosen, **options)
    assert every.sizes == [0, 1, 2, 4, 8, 16, 32] and every.parameters["order"] == "active"
    share = redundancy(planted, None, chosen, sizes=["10%"], **options)
    assert share.sizes == [0, 13] and share.experts == every.experts[:13]
    values = [activity.of(Expert(*map(int, text.split(":")))) for text in every.experts]
    assert values == sorted(values, reverse=True)
    assert share.activation == pytest.approx([0, sum(values[:13])])


def test_a_stopped_run_goes_on_and_ends_the_same(planted: safex.Model, tmp_path: Path) -> None:
    whole, cut = tmp_path / "whole.jsonl", tmp_path / "cut.jsonl"
    once = small(planted, output=whole)
    rows = whole.read_bytes().splitlines(keepends=True)
    for kept in (0, 3, 40):
        bare = [
            json.dumps({**json.loads(row), "verdicts": {}}).encode() + b"\n" for row in rows[1 : 1 + kept]
        ]
        cut.write_bytes(b"".join([rows[0], *bare]) + rows[kept + 1][:30])
        again = small(planted, output=cut, resume=True)
        assert cut.read_bytes() == whole.read_bytes()
        assert {**again.to_json(), "responses": None} == {**once.to_json(), "responses": None}


def test_a_complete_run_is_not_answered_again(
    planted: safex.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    once = small(planted, output=path)
    with pytest.raises(InputError, match="exists already"):
        small(planted, output=path)
    with pytest.raises(InputError, match=r"can't resume: parameters 'sizes'"):
        small(planted, output=path, resume=True, sizes=[1, 2])
    monkeypatch.setattr(planted, "generate", None)
    assert small(planted, output=path, resume=True) == once


def test_where_nothing_is_refused_there_is_nothing_to_halve(planted: safex.Model, tmp_path: Path) -> None:
    mild = [safex.Prompt(p.text, set="regular", id=p.id) for p in prompts(4, "benign")]
    with pytest.raises(InputError, match=r"refuses none of the 4 regular prompts.*nothing to halve"):
        redundancy(planted, TRUTH, PromptSet(mild), output=tmp_path / "a.jsonl", max_new=32)
    assert {row["mask"] for row in lines(tmp_path / "a.jsonl")[1:]} == {"none"}


def test_the_file_comes_back(planted: safex.Model, tmp_path: Path) -> None:
    found = small(planted, utility=True)
    found.save(tmp_path / "a.json")
    assert Redundancy.load(tmp_path / "a.json") == found
    for text, said in (
        ("{", "is no JSON"),
        ("[]", "is no redundancy curve"),
        ('{"safex_redundancy": 2}', "schema version 2"),
        ('{"safex_redundancy": 1}', "has no 'conclusion'"),
        ('{"safex_redundancy": 1, "conclusion": "", "sets": {}}', "'sets' is dict"),
    ):
        (tmp_path / "b.json").write_text(text)
        with pytest.raises(InputError, match=said):
            Redundancy.load(tmp_path / "b.json")


@pytest.mark.parametrize(
    ("experts", "options", "said"),
    [
        ([], {}, "holds no experts"),
        (["9:1"], {}, "no experts in layer 9"),
        (["0:1", "0:1"], {}, "twice"),
        (["0:1"], {"order": "best"}, "order is 'best'"),
        (None, {"order": "listed"}, "needs a list"),
        (["0:1"], {"mode": "force"}, "mode is 'force', expected one of zero, reroute"),
        (["0:1"], {"controls": ("best",)}, "control kind 'best'"),
        (["0:1"], {"draws": -1}, "-1 control orders"),
        (["0:1"], {"sizes": [2]}, "2 is more than the 1"),
        (["0:1"], {"judge": "oracle"}, "no judge 'oracle'"),
        (["0:1"], {"bootstrap": 1}, "1 resamples"),
        (["0:1"], {"max_new": 900}, "too long"),
        (["0:1"], {"utility": True, "text": "nowhere.txt"}, "no such file"),
        ([f"0:{e}" for e in range(29)], {"mode": "reroute", "draws": 0}, "rerouting 29 experts"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    planted: safex.Model, tmp_path: Path, experts: Any, options: dict[str, Any], said: str
) -> None:
    with pytest.raises(InputError, match=said):
        redundancy(planted, experts, prompts(2), output=tmp_path / "a.jsonl", **{"utility": False, **options})
    assert list(tmp_path.iterdir()) == []


# --- the command


@pytest.fixture(scope="module")
def prompt_files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """``--prompts`` arguments of four prompts a set."""
    folder = tmp_path_factory.mktemp("prompts")
    words = []
    for name in ("regular", "benign"):
        text = (DATA / "demo" / f"{name}.jsonl").read_text().splitlines(keepends=True)[:4]
        (folder / f"{name}.jsonl").write_text("".join(text))
        words += ["--prompts", f"{name}={folder / name}.jsonl"]
    return words


def run(*words: object, cwd: Path) -> Any:
    return cli("redundancy", *words, *STEADY, cwd=cwd)


def test_the_command(prompt_files: list[str], tmp_path: Path) -> None:
    (tmp_path / "e.json").write_text(
        json.dumps({"safex_expert_set": 1, "groups": {"a": TRUTH, "b": ["0:5"]}})
    )
    words = [*prompt_files, "--controls", 1, "--sizes", "2,12", "--max-new", 32, "--csv", "tables"]
    run("demo-planted", "--experts", "e.json", *words, cwd=tmp_path).fails(2, "2 groups (a, b)", "e.json:a")
    words = ["demo-planted", "--experts", "e.json:a", *words]
    done = run(*words, "--json", cwd=tmp_path)
    assert done.code == 0, done.err
    found = Redundancy.load(tmp_path / "demo-planted.redundancy.json")
    assert found.conclusion == done.json["conclusion"] and found.experts == TRUTH
    for text in ("Conclusion: ", "Area under the curve", "ppl x", "frequency"):
        assert text in done.err
    assert {path.stem for path in (tmp_path / "tables").iterdir()} == {"curve", "areas", "orders", "utility"}
    assert len(lines(tmp_path / "demo-planted.redundancy.responses.jsonl")) == 1 + 8 * 3 + 4 * 4 * 2
    run(*words, cwd=tmp_path).fails(2, "exists")
    again = run(*words[:-2], "--resume", cwd=tmp_path)
    assert again.code == 0 and "Conclusion: " in again.out
    assert Redundancy.load(tmp_path / "demo-planted.redundancy.json") == found
    quiet = run(*words[:-2], "--resume", "--quiet", cwd=tmp_path)
    assert (quiet.code, quiet.out, quiet.err) == (0, "", "")


def test_the_tables_hold_what_the_file_holds(prompt_files: list[str], tmp_path: Path) -> None:
    from safex.redundancy_curve.tables import NAMES, redundancy_tables

    found = counted(*drawn_answers())
    tables = redundancy_tables(found)
    assert set(tables) == set(NAMES) - {"utility"}
    curve = tables["curve"]
    assert len(curve["set"]) == 2 * 4 * 3 and list(curve["set"]).count("benign") == 12
    first = [i for i, size in enumerate(curve["size"]) if size == 0]
    assert all(curve["change"][i] is None for i in first)
    areas_ = tables["areas"]
    assert list(areas_["order"]) == 3 * ["order", "uniform", "active", "shuffled"]
    assert areas_["mean"][0] == found.area["refuse"]["value"]
    orders = tables["orders"]
    assert len(orders["size"]) == 4 * (1 + 3 + 1 + 3)
    assert list(orders["last_expert"][:4]) == [None, str(ORDER[0]), str(ORDER[1]), str(ORDER[4])]


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ((), ("--experts EXPERTS, or --all",)),
        (("--all", "--experts", "0:1"), ("not allowed with",)),
        (("--all", "--order", "listed"), ("--order listed needs --experts",)),
        (("--experts", "9:1"), ("layer 9", "MoE layers")),
        (("--experts", "x"), ("x",)),
        (("--experts", "0:1", "--sizes", "1,x"), ("size 'x'",)),
        (("--experts", "0:1", "--sizes", "4"), ("4 is more than the 1",)),
        (("--experts", "0:1", "--judge", "oracle"), ("no judge 'oracle'",)),
        (("--experts", "0:1", "--control-kinds", "best"), ("control kind 'best'", "shuffled")),
        (("--experts", "0:1", "--controls", "0", "--control-kinds", "layer"), ("leave out --controls 0",)),
        (("--experts", "0:1", "--mode", "force"), ("--mode",)),
        (("--experts", "0:1", "--resume", "--force"), ("give one",)),
        (("--experts", "0:1", "--ctx", "16"), ("too long", "--ctx")),
        (("--experts", "0:1", "-o", "a.json", "--responses", "a.json"), ("one file",)),
    ],
)
def test_bad_usage_is_one_line(
    prompt_files: list[str], tmp_path: Path, words: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    run("demo", *prompt_files, *words, cwd=tmp_path).fails(2, *parts)
    assert list(tmp_path.iterdir()) == []


def test_results_never_replace_what_they_are_made_of(prompt_files: list[str], tmp_path: Path) -> None:
    text = '{"safex_expert_set": 1, "groups": {"ctrl": ["0:1"]}}'
    (tmp_path / "e.json").write_text(text)
    for option in ("-o", "--responses"):
        words = ("--experts", "e.json:ctrl", option, "e.json", "--force")
        run("demo", *prompt_files, *words, cwd=tmp_path).fails(2, "e.json: is one of the inputs")
    assert (tmp_path / "e.json").read_text() == text


def test_an_interrupted_run_says_what_was_saved(tmp_path: Path) -> None:
    path = tmp_path / "demo-planted.redundancy.responses.jsonl"
    words = ("redundancy", "demo-planted", "--experts", ",".join(TRUTH), *STEADY)
    process = start(*words, cwd=tmp_path)
    wait_until(process, lambda: path.exists() and path.stat().st_size > 20_000)
    done, _ = signalled(process, 2)
    done.fails(130, "interrupted; ", "answers saved in demo-planted.redundancy", "--resume")
    assert list(tmp_path.iterdir()) == [path]


# --- coverage of the intervals

CURVES = {
    "steep": [0.97, 0.97, 0.9, 0.1, 0.02, 0.02],
    "gradual": [0.9, 0.8, 0.65, 0.45, 0.25, 0.1],
    "weak, not halved": [0.9, 0.9, 0.88, 0.85, 0.8, 0.7],
    "halved at the end": [0.9, 0.9, 0.85, 0.75, 0.6, 0.42],
    "half refused": [0.5, 0.45, 0.3, 0.2, 0.12, 0.1],
    "all or none": [0.995, 0.995, 0.99, 0.005, 0.005, 0.005],
}


def drawn_hits(curve: Sequence[float], n: int, correlation: float, rng: np.random.Generator) -> np.ndarray:
    """Refusals of n prompts at each size; a prompt's answers depend on one another (Gaussian copula)."""
    own, shared = rng.normal(size=(len(curve), n)), rng.normal(size=(1, n))
    latent = math.sqrt(correlation) * shared + math.sqrt(1 - correlation) * own
    return np.asarray(latent < stats.norm.ppf(curve)[:, None], float)


def covers(curve: Sequence[float], n: int, correlation: float, data_sets: int = 600) -> tuple[float, float]:
    """How often the intervals of area and half-point hold the truth."""
    rng = np.random.default_rng(0)
    truths = float(areas(SIZES, curve, True)), float(half_points(SIZES, curve))
    held = np.zeros(2)
    for seed in range(data_sets):
        hits = drawn_hits(curve, n, correlation, rng)
        drawn = Resampled.draw([None] * n, hits[0], 400, seed)
        means, rates = hits.mean(axis=1), drawn.rates(hits)
        found = (
            drawn.estimate(float(areas(SIZES, means, True)), areas(SIZES, rates, True)),
            drawn.estimate(float(half_points(SIZES, means)), half_points(SIZES, rates)),
        )
        held += [e.low - 1e-9 <= truth <= e.high + 1e-9 for e, truth in zip(found, truths, strict=True)]
    area, half = held / data_sets
    return float(area), float(half)


def test_intervals_cover(capsys: pytest.CaptureFixture[str]) -> None:
    area, half = covers(CURVES["gradual"], 40, 0.5, 150)
    assert area > 0.89 and half > 0.89


if __name__ == "__main__":
    for n, (name, curve), correlation in itertools.product((20, 40, 80), CURVES.items(), (0.3, 0.9)):
        area, half = covers(curve, n, correlation)
        print(f"{n} prompts, {name}, correlation {correlation}: area {area:.3f}, half-point {half:.3f}")
    sys.exit()
