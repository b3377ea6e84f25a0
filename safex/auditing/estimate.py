"""How long an audit will take, before it starts: speeds measured on a few prompts, times the work of each stage.

What the model computes is measured on the machine. What NumPy computes (identify, probes) is scaled from one
measurement, demo on one core of a Sapphire-Rapids server, and is rougher.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from safex.auditing.settings import KINDS, Sizes
from safex.experts import Expert
from safex.model import Model
from safex.prompts import PromptSet

SAMPLE = 6  # prompts of each set that are timed
MASKS = 8  # single experts that are timed
CHAINS = 2.0  # runs of a masked prompt in a sweep: one for each beginning of two tokens or more
SECONDS_OF_IDENTIFY = 6.0  # one core: 240 prompts, 128 experts, 200 permutations
SECONDS_OF_A_FIT = 0.08  # one core: a repeat of a probe on 160 prompts
SECONDS_OF_REPORT = 3.0
SHARES = (0.9, 0.75, 0.6, 0.45, 0.3, 0.2, 0.1, 0.05)  # of all work, tried in turn until the budget holds it


@dataclass(frozen=True)
class Speeds:
    """Seconds: to count a prompt, to answer one, to score one under a mask, to dump one expert's output of one.

    ``used``: the share of (prompt, expert) pairs in which some token selects the expert; others need no run.
    """

    counted: float
    answered: float
    masked: float
    dumped: float
    used: float


@dataclass(frozen=True)
class Extent:
    """How large the model and the prompts are: ``sets`` is the number of sets, ``threads`` that of cores."""

    n_layers: int
    n_experts: int
    sets: int
    threads: int
    tested: int


def measure_speeds(model: Model, prompts: PromptSet, max_new: int) -> Speeds:
    """Run a few prompts through everything that costs time. Nothing is kept."""
    sample = prompts.limited(SAMPLE)
    model.profile(sample)  # warm
    counted, profile = _timed(lambda: model.profile(sample))
    used = float((profile.counts > 0).mean())
    answered, _ = _timed(lambda: model.generate(sample, max_new))
    experts = _sample_of_experts(model)
    masks: list[Any] = [[expert] for expert in experts for _ in sample]
    masked, _ = _timed(lambda: model.score(list(sample) * len(experts), [0], masks))
    dumped, _ = _timed(lambda: model.dump(experts, sample))
    n = len(sample)
    return Speeds(counted / n, answered / n, masked / len(masks), dumped / (n * len(experts)), used)


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    began = time.perf_counter()
    result = run()
    return time.perf_counter() - began, result


def _sample_of_experts(model: Model) -> list[Expert]:
    every = [Expert(layer, n) for layer in model.layers for n in range(model.n_experts)]
    return [every[i] for i in np.linspace(0, len(every) - 1, min(MASKS, len(every))).astype(int)]


def estimate(sizes: Sizes, speeds: Speeds, extent: Extent, skip: Sequence[str] = ()) -> dict[str, float]:
    """Seconds of each stage that takes any; those to skip take none."""
    find = sizes.limit / 3
    test = sizes.limit - find
    found = {
        "profile": sizes.limit * extent.sets * speeds.counted,
        "identify": _identify(sizes, extent, find),
        "sweep": _sweep(sizes, speeds, extent, find),
        "probe": _probe(sizes, speeds, extent, test),
        "evaluate": _evaluate(sizes, speeds, extent, test),
        "report": SECONDS_OF_REPORT,
    }
    return {name: 0.0 if name in skip else round(seconds, 1) for name, seconds in found.items()}


def _identify(sizes: Sizes, extent: Extent, find: float) -> float:
    experts = extent.n_layers * extent.n_experts / 128
    prompts, shuffles = find * extent.sets / 240, (50 + sizes.permutations) / 250
    return SECONDS_OF_IDENTIFY * experts * (0.5 + prompts) * shuffles / extent.threads


def _sweep(sizes: Sizes, speeds: Speeds, extent: Extent, find: float) -> float:
    prompts = find * min(2, extent.sets)
    experts = min(sizes.sweep, extent.n_layers * extent.n_experts)
    return prompts * (speeds.answered + speeds.counted + CHAINS * experts * speeds.used * speeds.masked)


def _probe(sizes: Sizes, speeds: Speeds, extent: Extent, test: float) -> float:
    """Two groups, each with its members, and draws of random experts."""
    prompts, every = test * extent.sets, extent.n_layers * extent.n_experts
    experts = min(every, 2 * extent.tested * (1 + sizes.probe_draws))
    fits = 2 * (1 + extent.tested) * (sizes.repeats + sizes.shuffles) + 2 * sizes.probe_draws + experts
    return prompts * experts * speeds.dumped + fits * SECONDS_OF_A_FIT * (prompts / 160) ** 2 / extent.threads


def _evaluate(sizes: Sizes, speeds: Speeds, extent: Extent, test: float) -> float:
    controls = len(KINDS) * sizes.draws + 1
    return test * (2 * extent.sets + controls) * speeds.answered


def fit(
    sizes: Sizes, budget: float, seconds_of: Callable[[Sizes], Mapping[str, float]]
) -> tuple[Sizes, dict[str, float]] | None:
    """The largest sizes whose estimate is within ``budget`` seconds; None: not even the smallest are."""
    for share in (1.0, *SHARES):
        smaller = sizes if share == 1 else sizes.scaled(share)
        found = dict(seconds_of(smaller))
        if sum(found.values()) <= budget:
            return smaller, found
    return None
