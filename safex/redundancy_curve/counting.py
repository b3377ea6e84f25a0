"""Curves of verdicts: rates at each size, the half-point, areas, and where the order falls among its controls."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.control_masks import placement
from safex.evaluation.counting import SIDES, Labels, lost_refusals, paired
from safex.evaluation.plan import NONE, REGULAR
from safex.judges import OTHER, REFUSE, THREE
from safex.rates import Estimate
from safex.rates import three_way as three_way_rates
from safex.responses import Record

from .plan import ORDER, Ladder, mask_name
from .statistics import Resampled, areas, half_points, half_sizes

Row: TypeAlias = dict[str, Any]
Floats: TypeAlias = npt.NDArray[np.float64]

DIGITS = 12  # of areas, so that those of equal curves tie


def count(records: Sequence[Record], judge: str, ladder: Ladder, n_resamples: int, seed: int) -> Row:
    """All of one judge's results: ``sets``, ``half``, ``area``, ``controls``, ``measured``, ``left_out``.

    Half-point and areas are taken up to the last size, ``measured``, up to which most answers could be read at every
    size; control orders of which less could be read are ``left_out``, their number by kind. Refusal must not be 0
    without a mask.
    """
    labels = Labels.of(records, judge)
    sizes = [0, *ladder.sizes]
    measured = _readable_sizes(labels, ORDER, sizes)
    found: Row = {
        "sets": [_set_row(labels, name, ladder) for name in labels.sets],
        "measured": measured[-1] if measured else None,
    }
    if len(measured) < 2:
        return {**found, "half": dict(NO_HALF), "area": {}, "controls": [], "left_out": {}}
    kept, left_out = _readable_orders(labels, ladder, measured)
    regular = [record for record, _ in labels.by_mask[REGULAR, NONE]]
    curves = _Curves(labels, measured)
    pairs = [record.pair for record in regular]
    resampled = Resampled.draw(pairs, curves.hits(ORDER, REFUSE)[0], n_resamples, seed)
    real = {reading: _Areas.of([ORDER], reading, curves, resampled) for reading in THREE}
    return {
        **found,
        "half": _half(curves, resampled),
        "area": {reading: of.estimate(resampled).to_json() for reading, of in real.items()},
        "controls": [_control_row(kind, of, curves, resampled, real) for kind, of in kept.items() if of],
        "left_out": left_out,
    }


NO_HALF = {"size": None, "value": None, "interval": [None, None], "reached": None}


def _readable_sizes(labels: Labels, order: str, sizes: Sequence[int]) -> list[int]:
    """The sizes up to which most answers to regular prompts could be read, at each of them."""
    names = (mask_name(order, size) for size in sizes)
    n = sum(1 for _ in takewhile(lambda name: labels.read(REGULAR, name).is_most, names))
    return list(sizes[:n])


def _readable_orders(
    labels: Labels, ladder: Ladder, sizes: list[int]
) -> tuple[dict[str, dict[str, list[str]]], dict[str, int]]:
    """The control orders that could be read at all ``sizes``, by kind, and how many of each kind could not."""
    kept, left_out = {}, {}
    for kind, orders in _named(ladder).items():
        kept[kind] = {
            name: experts for name, experts in orders.items() if _readable_sizes(labels, name, sizes) == sizes
        }
        if len(kept[kind]) < len(orders):
            left_out[kind] = len(orders) - len(kept[kind])
    return kept, left_out


def _named(ladder: Ladder) -> dict[str, dict[str, list[str]]]:
    """The control orders of each kind: their experts by name."""
    return {
        kind: {f"control-{kind}-{i}": list(map(str, order)) for i, order in enumerate(orders, 1)}
        for kind, orders in ladder.controls.items()
    }


# --- rates at each size


def _set_row(labels: Labels, name: str, ladder: Ladder) -> Row:
    return {"set": name, "curve": [_step(labels, name, size) for size in (0, *ladder.sizes)]}


def _step(labels: Labels, name: str, size: int) -> Row:
    """Rates under the first ``size`` experts of the order, and their change on the same prompts."""
    mask = mask_name(ORDER, size)
    row = {"size": size, **three_way_rates(labels.labels(name, mask))}
    if size:
        row["change"] = {reading: paired(labels, name, reading, mask) for reading in THREE}
        row["lost_refusals"] = lost_refusals(labels, name, mask)
    return row


@dataclass(frozen=True)
class _Curves:
    """Readings of the regular prompts by order and size; NaN where an answer could not be read."""

    labels: Labels
    sizes: list[int]

    def hits(self, order: str, reading: str) -> Floats:
        """1 where an answer reads so: [m + 1, P]."""
        masks = (mask_name(order, size) for size in self.sizes)
        return np.array([self.labels.hits(REGULAR, mask, reading) for mask in masks], np.float64)

    def rates(self, order: str, reading: str) -> Floats:
        """Share of the answers that read so, at each size: [m + 1]."""
        return np.asarray(np.nanmean(self.hits(order, reading), axis=1))


# --- half-point


def _half(curves: _Curves, resampled: Resampled) -> Row:
    """``size`` on the grid, ``value`` between sizes, its interval, and the share of resamples that are halved."""
    hits = curves.hits(ORDER, REFUSE)
    rates = np.nanmean(hits, axis=1)
    of_resamples = half_points(curves.sizes, resampled.rates(hits))
    estimate = resampled.estimate(float(half_points(curves.sizes, rates)), of_resamples)
    size = _known(float(half_sizes(curves.sizes, rates)))
    return {
        "size": None if size is None else int(size),
        "value": _known(estimate.value),
        "interval": [_known(estimate.low), _known(estimate.high)],
        "reached": float(np.isfinite(of_resamples).mean()),
    }


def _known(value: float) -> float | None:
    """None where a half-point isn't reached."""
    return value if math.isfinite(value) else None


# --- areas


@dataclass(frozen=True)
class _Areas:
    """Areas of one reading under the curves of some orders: ``values`` [n], and in each resample, [n, S]."""

    values: Floats
    resampled: Floats

    @classmethod
    def of(cls, orders: Sequence[str], reading: str, curves: _Curves, resampled: Resampled) -> _Areas:
        """Of refusal relative to that without a mask, of other readings as they are."""
        hits = np.array([curves.hits(order, reading) for order in orders])
        relative = reading == REFUSE
        values = areas(curves.sizes, np.nanmean(hits, axis=-1), relative).round(DIGITS)
        return cls(values, areas(curves.sizes, resampled.rates(hits), relative))

    def estimate(self, resampled: Resampled) -> Estimate:
        """Mean over the orders, with its interval."""
        return resampled.estimate(self.values.mean(), self.resampled.mean(axis=0))

    def less(self, others: _Areas, resampled: Resampled) -> Estimate:
        """Mean over these orders less that over the others, on the same resamples."""
        differences = self.resampled.mean(axis=0) - others.resampled.mean(axis=0)
        return resampled.estimate(self.values.mean() - others.values.mean(), differences)


def _control_row(
    kind: str,
    orders: dict[str, list[str]],
    curves: _Curves,
    resampled: Resampled,
    real: dict[str, _Areas],
) -> Row:
    """``refuse`` and ``comply``: areas of the controls, the order's less theirs, and its place among them."""
    found = {reading: _Areas.of(list(orders), reading, curves, resampled) for reading in THREE}
    halves = [float(half_points(curves.sizes, curves.rates(name, REFUSE))) for name in orders]
    row: Row = {"kind": kind, "n": len(orders)}
    for reading in THREE:
        row[reading] = _placed(found[reading], real[reading], reading, resampled)
    row["half"] = {"reached": sum(map(math.isfinite, halves)), "median": _known(_middle(halves))}
    row["orders"] = [
        {
            "order": name,
            "experts": experts,
            "area": {reading: float(found[reading].values[i]) for reading in THREE},
            "half": _known(halves[i]),
            **{reading: curves.rates(name, reading).tolist() for reading in THREE},
        }
        for i, (name, experts) in enumerate(orders.items())
    ]
    return row


def _placed(found: _Areas, real: _Areas, reading: str, resampled: Resampled) -> Row:
    values = found.values
    row: Row = {"mean": float(values.mean()), "min": float(values.min()), "max": float(values.max())}
    if reading != OTHER:
        row["difference"] = real.less(found, resampled).to_json()
        row["placement"] = placement(float(real.values[0]), values.tolist(), SIDES[reading])._asdict()
    return row


def _middle(values: Sequence[float]) -> float:
    """The median, the larger one of two in the middle: of infinities there is no mean."""
    return sorted(values)[len(values) // 2]
