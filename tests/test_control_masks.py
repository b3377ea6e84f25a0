"""Control masks: what each kind promises, checked on random masks, and placement against literal counting."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import safex
from safex import InputError
from safex.control_masks import (
    KINDS,
    SINGLE,
    activation_of,
    draw_controls,
    placement,
    shortfall,
)
from safex.experts import Expert

LAYERS, N_EXPERTS = [1, 2, 5, 7], 16


def random_mask(rng: np.random.Generator, size: int) -> list[Expert]:
    cells = rng.permutation(len(LAYERS) * N_EXPERTS)[:size].tolist()
    return [Expert(LAYERS[cell // N_EXPERTS], cell % N_EXPERTS) for cell in cells]


def random_activation(rng: np.random.Generator) -> np.ndarray:
    return rng.dirichlet(np.full(N_EXPERTS, 0.5), len(LAYERS)) * 4


@pytest.mark.parametrize("seed", range(10))
def test_controls_have_the_masks_size_and_none_of_its_experts(seed: int) -> None:
    rng = np.random.default_rng(seed)
    mask = random_mask(rng, 1 + seed)
    controls = draw_controls(mask, LAYERS, N_EXPERTS, n=12, seed=seed, activation=random_activation(rng))
    assert list(controls) == list(KINDS)
    for kind, masks in controls.items():
        assert kind in SINGLE or len({tuple(one) for one in masks}) == len(masks)
        assert len(masks) == (1 if kind in SINGLE else 12) or seed == 0  # one expert: few others are near
        for one in masks:
            assert len(set(one)) == len(mask) and not set(one) & set(mask)
            assert all(expert.layer in LAYERS and 0 <= expert.expert < N_EXPERTS for expert in one)
            if kind not in ("uniform", "active"):
                assert Counter(e.layer for e in one) == Counter(e.layer for e in mask)


def test_draws_are_repeatable_and_of_their_own_stream() -> None:
    rng = np.random.default_rng(0)
    mask, activation = random_mask(rng, 6), random_activation(rng)
    all_kinds = draw_controls(mask, LAYERS, N_EXPERTS, activation=activation)
    assert all_kinds == draw_controls(mask, LAYERS, N_EXPERTS, activation=activation)
    alone = draw_controls(mask, LAYERS, N_EXPERTS, ["frequency"], activation=activation)
    assert alone["frequency"] == all_kinds["frequency"]
    other = draw_controls(mask, LAYERS, N_EXPERTS, ["uniform"], seed=1)
    assert other["uniform"] != all_kinds["uniform"]
    assert list(draw_controls(mask, LAYERS, N_EXPERTS)) == ["uniform", "layer"]


def test_uniform_draws_hit_every_expert_alike() -> None:
    mask = [Expert(1, 0), Expert(2, 3)]
    masks = draw_controls(mask, LAYERS, N_EXPERTS, ["uniform"], n=1800)["uniform"]  # of C(62, 2) = 1,891
    times = Counter(expert for one in masks for expert in one)
    assert len(times) == 62 and max(times.values()) - min(times.values()) < 20
    few = draw_controls(mask, LAYERS, N_EXPERTS, ["uniform"], n=300, seed=3)["uniform"]
    times = Counter(expert for one in few for expert in one)
    expected = 600 / 62
    statistic = sum((times[e] - expected) ** 2 / expected for e in {x for one in masks for x in one})
    assert 30 < statistic < 110  # chi-squared, 61 degrees of freedom


def test_frequency_matched_experts_are_near_neighbours() -> None:
    rng = np.random.default_rng(1)
    activation = random_activation(rng)
    mask = [Expert(2, int(np.argsort(activation[1])[8]))]
    nearest = np.argsort(np.abs(activation[1] - activation[1][mask[0].expert]))[1:].tolist()
    drawn = [
        draw_controls(mask, LAYERS, N_EXPERTS, ["frequency"], n=1, seed=seed, activation=activation)
        for seed in range(400)
    ]
    ranks = Counter(nearest.index(masks["frequency"][0][0].expert) for masks in drawn)
    for rank in range(4):
        assert ranks[rank] / 400 == pytest.approx(0.5 ** (rank + 1), abs=0.08)


def test_frequency_matched_masks_are_as_active_as_the_mask() -> None:
    """At 64 experts a layer; masks of middling to high activation, which uniform ones miss."""
    rng = np.random.default_rng(2)
    activation = rng.dirichlet(np.full(64, 0.7), 4) * 8
    for _ in range(5):
        ranks = rng.choice(np.arange(4, 20), (4, 4), replace=False)
        mask = [
            Expert(layer, int(np.argsort(-activation[row])[k]))
            for row, layer in enumerate(LAYERS)
            for k in ranks[row]
        ]
        drawn = draw_controls(mask, LAYERS, 64, ["layer", "frequency"], n=30, activation=activation)
        real = activation_of(mask, LAYERS, activation)
        share = {
            kind: np.array([activation_of(one, LAYERS, activation) for one in masks]) / real
            for kind, masks in drawn.items()
        }
        gap = {kind: np.abs(values - 1).mean() for kind, values in share.items()}
        assert gap["frequency"] < gap["layer"] / 3


def test_equal_activation_is_no_preference_for_low_numbers() -> None:
    masks = draw_controls(
        [Expert(1, 0)], LAYERS, N_EXPERTS, ["frequency"], n=9, activation=np.full((4, 16), 0.25)
    )["frequency"]
    assert len(masks) == 9 and max(one[0].expert for one in masks) > 9


def test_a_layer_without_free_experts_is_matched_elsewhere() -> None:
    mask = [Expert(1, k) for k in range(12)]
    activation = random_activation(np.random.default_rng(2))
    (one, *_) = draw_controls(mask, LAYERS, N_EXPERTS, ["frequency"], n=5, activation=activation)["frequency"]
    assert Counter(e.layer == 1 for e in one) == {True: 4, False: 8}


def test_most_active() -> None:
    rng = np.random.default_rng(3)
    mask, activation = random_mask(rng, 7), random_activation(rng)
    free = [e for e in itertools.starmap(Expert, itertools.product(LAYERS, range(16))) if e not in mask]
    ranked = sorted(free, key=lambda e: -activation[LAYERS.index(e.layer), e.expert])
    controls = draw_controls(mask, LAYERS, N_EXPERTS, ["active", "active-layer"], activation=activation)
    assert controls["active"] == [sorted(ranked[:7])]
    sizes = Counter(e.layer for e in mask)
    of_layers = [e for layer in LAYERS for e in [e for e in ranked if e.layer == layer][: sizes[layer]]]
    assert controls["active-layer"] == [sorted(of_layers)]


def test_fewer_different_masks_than_asked_for() -> None:
    controls = draw_controls(["0:0", "1:1"], [0, 1], 4, ["uniform", "layer"], n=20)
    assert sorted(map(tuple, controls["uniform"])) == sorted(
        itertools.combinations(
            [Expert(0, 1), Expert(0, 2), Expert(0, 3), Expert(1, 0), Expert(1, 2), Expert(1, 3)], 2
        )
    )
    assert len(controls["layer"]) == 9
    assert shortfall(controls, 20) == [
        "uniform: 15 of the 20 control masks asked for: no more different ones were found",
        "layer: 9 of the 20 control masks asked for: no more different ones were found",
    ]
    assert shortfall(controls, 9) == []


def test_controls_of_the_planted_experts(demo: safex.Model) -> None:
    truth = safex.ExpertSet.load(Path(safex.__file__).parent / "data" / "demo-planted.truth.json")
    (mask,) = truth.groups.values()
    activation = demo.profile(["How do I bake bread?"]).activation()
    controls = draw_controls(mask, demo.layers, demo.n_experts, activation=activation)
    assert {kind: len(masks) for kind, masks in controls.items()} == {
        "uniform": 20, "layer": 20, "frequency": 20, "active": 1, "active-layer": 1,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: draw_controls([], LAYERS, 16), "holds no experts"),
        (lambda: draw_controls(["0:1"], LAYERS, 16), "no experts in layer 0; its MoE layers are 1, 2, 5, 7"),
        (lambda: draw_controls(["1:16"], LAYERS, 16), "experts 0 to 15"),
        (lambda: draw_controls(["1:1", "1:1"], LAYERS, 16), "1:1 twice"),
        (lambda: draw_controls(["1:1"], LAYERS, 16, ["best"]), "'best': expected one of uniform, layer"),
        (
            lambda: draw_controls(["1:1"], LAYERS, 16, ["active"]),
            "needs the activation .* only uniform, layer",
        ),
        (
            lambda: draw_controls(["1:1"], LAYERS, 16, activation=[[1.0]]),
            r"shape \[1, 1\], expected .*\[4, 16\]",
        ),
        (lambda: draw_controls(["1:1"], LAYERS, 16, n=0), "0 control masks"),
        (
            lambda: draw_controls([f"1:{k}" for k in range(9)], LAYERS, 16, ["layer"]),
            "9 of the 16 experts in layer 1, 7 are left",
        ),
        (
            lambda: draw_controls([f"0:{k}" for k in range(9)], [0], 16, ["uniform"]),
            "9 of the model's 16 experts, 7 are left",
        ),
        (lambda: placement(1.0, []), "at least one"),
        (lambda: placement(1.0, [2.0], "up"), "'up', expected one of low, high, both"),
    ],
)
def test_bad_input_is_one_clear_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(InputError, match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_placement_counts_ties_against_the_mask() -> None:
    values = [0.2, 0.2, 0.5, 0.9]
    assert placement(0.2, values) == (4, 3, 0.6, 25.0)
    assert placement(0.2, values, "high") == (4, 5, 1.0, 25.0)
    assert placement(0.95, values, "high") == (4, 1, 0.2, 100.0)
    assert placement(0.95, values, "both") == (4, 1, 0.4, 100.0)
    assert placement(0.5, [0.5], "both").p_value == 1.0


def test_p_values_are_valid_where_the_mask_is_one_of_its_controls() -> None:
    """P(p <= alpha) <= alpha for exchangeable values."""
    rng = np.random.default_rng(4)
    for extreme in ("low", "high", "both"):
        draws = np.round(rng.normal(size=(4000, 20)), 1)
        p = np.array([placement(row[0], row[1:], extreme).p_value for row in draws])
        for alpha in (0.05, 0.1, 0.5):
            assert (p <= alpha).mean() <= alpha + 3 * np.sqrt(alpha * (1 - alpha) / 4000)
