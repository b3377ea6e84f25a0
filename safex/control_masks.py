"""Control masks: experts to mask instead of the real ones, and where the real mask's effect falls among theirs.

A control has as many experts as the mask, none of them the mask's own. Each kind answers one objection:

============  ==========================================  =================================================
kind          experts                                     objection
============  ==========================================  =================================================
uniform       drawn from all layers                       masking so many experts at all does it
layer         drawn, as many in each layer as the mask    masking so many experts in these layers does it
frequency     drawn, of like activation in these layers   masking experts of this load does it
active        the most active of all; one mask            masking the busiest experts does it
active-layer  the most active of each layer; one mask     masking the busiest experts of these layers does it
============  ==========================================  =================================================
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.errors import InputError
from safex.expert_set import ExpertSet
from safex.experts import Expert, ExpertLike, to_expert

Activation: TypeAlias = npt.NDArray[np.float64]
Mask: TypeAlias = tuple[Expert, ...]
Pool: TypeAlias = tuple[list[Expert], int]  # experts to draw from, and how many

FARTHER = 0.5  # chance of a frequency-matched expert against that of the next nearer one
_TRIES = 50  # draws for each mask asked for, before giving up on finding another one
SIDES = ("low", "high", "both")


class NoRoomError(InputError):
    """The experts left for a control are too few."""


@dataclass(frozen=True)
class _Frame:
    """The real mask within its model."""

    mask: list[Expert]
    layers: list[int]
    n_experts: int
    activation: Activation | None
    excluded: frozenset[Expert] = frozenset()

    def free(self, layer: int) -> list[Expert]:
        """The layer's experts that a control may have."""
        taken = self.excluded.union(self.mask)
        return [e for e in (Expert(layer, k) for k in range(self.n_experts)) if e not in taken]

    def by_layer(self) -> dict[int, int]:
        """How many experts the mask holds in each of its layers."""
        return dict(sorted(Counter(expert.layer for expert in self.mask).items()))

    def used(self, expert: Expert) -> float:
        """The expert's activation."""
        if self.activation is None:
            raise InputError("controls by activation need activation [layers, experts], e.g. of a profile")
        return float(self.activation[self.layers.index(expert.layer), expert.expert])


def draw_controls(
    experts: Sequence[ExpertLike],
    layers: Sequence[int],
    n_experts: int,
    kinds: Sequence[str] | None = None,
    n: int = 20,
    seed: int = 0,
    activation: npt.ArrayLike | None = None,
    exclude: Sequence[ExpertLike] = (),
) -> dict[str, list[list[Expert]]]:
    """Control masks of each kind for the mask ``experts`` of a model with these MoE ``layers``.

    ``kinds`` are keys of ``KINDS``; None for all that can be drawn (those by activation need ``activation`` [L, E],
    e.g. ``profile.activation()``). A kind has ``n`` different masks, or all there are where there are fewer (see
    ``shortfall``); the most active ones are one mask, not draws. Draws of a kind depend on ``seed`` alone.

    "frequency": in random order, each expert of the mask is replaced by a free one of its layer (of any layer where
    its own has none left): the nearest in activation half the time, the next a quarter, and so on (ties in random
    order). Nothing matches an expert much busier than all others: compare ``activation_of``.

    Raises InputError for a mask that the model can't hold or an unknown kind, NoRoomError (an InputError) where too few
    experts are left.

    >>> draw_controls(["0:1", "1:0"], layers=[0, 1], n_experts=2, kinds=["layer"])
    {'layer': [[Expert(layer=0, expert=0), Expert(layer=1, expert=1)]]}
    """
    frame = _frame(experts, layers, n_experts, activation, exclude)
    if n < 1:
        raise InputError(f"{n} control masks were asked for, expected at least 1")
    controls = {}
    for kind in _kinds(kinds, frame):
        rng = np.random.default_rng((seed, list(KINDS).index(kind)))
        _check_room(frame, kind)
        controls[kind] = [list(mask) for mask in KINDS[kind](frame, n, rng)]
    return controls


def shortfall(controls: dict[str, list[list[Expert]]], n: int) -> list[str]:
    """A sentence for each drawn kind with fewer than ``n`` masks."""
    return [
        f"{kind}: {len(masks)} of the {n} control masks asked for: no more different ones were found"
        for kind, masks in controls.items()
        if kind not in SINGLE and len(masks) < n
    ]


def activation_of(experts: Sequence[Expert], layers: Sequence[int], activation: npt.ArrayLike) -> float:
    """Summed activation of a mask: how much of the routing it touches. Compare a control's with the mask's.

    >>> activation_of([Expert(3, 0)], [3], [[0.25, 0.75]])
    0.25
    """
    values = np.asarray(activation, np.float64)
    place = {layer: row for row, layer in enumerate(layers)}
    return float(sum(values[place[expert.layer], expert.expert] for expert in experts))


# --- the kinds


def _uniform(frame: _Frame, n: int, rng: np.random.Generator) -> list[Mask]:
    free = [expert for layer in frame.layers for expert in frame.free(layer)]
    return _draw_from([(free, len(frame.mask))], n, rng)


def _layer(frame: _Frame, n: int, rng: np.random.Generator) -> list[Mask]:
    return _draw_from([(frame.free(layer), size) for layer, size in frame.by_layer().items()], n, rng)


def _frequency(frame: _Frame, n: int, rng: np.random.Generator) -> list[Mask]:
    free = [expert for layer in frame.layers for expert in frame.free(layer)]
    return _distinct(lambda: _matched(frame, free, rng), n)


def _active(frame: _Frame, n: int, rng: np.random.Generator) -> list[Mask]:
    free = [expert for layer in frame.layers for expert in frame.free(layer)]
    return [_sorted(_busiest(frame, free, len(frame.mask)))]


def _active_layer(frame: _Frame, n: int, rng: np.random.Generator) -> list[Mask]:
    parts = (_busiest(frame, frame.free(layer), size) for layer, size in frame.by_layer().items())
    return [_sorted(itertools.chain.from_iterable(parts))]


KINDS: dict[str, Callable[[_Frame, int, np.random.Generator], list[Mask]]] = {
    "uniform": _uniform,
    "layer": _layer,
    "frequency": _frequency,
    "active": _active,
    "active-layer": _active_layer,
}
BY_ACTIVATION = ("frequency", "active", "active-layer")
WITHIN_LAYERS = ("layer", "active-layer")
SINGLE = ("active", "active-layer")


def _draw_from(pools: Sequence[Pool], n: int, rng: np.random.Generator) -> list[Mask]:
    """Different masks with so many experts of each pool, all equally likely; all there are where fewer than ``n``."""
    if math.prod(math.comb(len(pool), size) for pool, size in pools) <= n:
        return list(_all_masks(pools))
    return _distinct(lambda: _one_mask(pools, rng), n)


def _all_masks(pools: Sequence[Pool]) -> Iterator[Mask]:
    parts = (itertools.combinations(pool, size) for pool, size in pools)
    return (_sorted(itertools.chain.from_iterable(chosen)) for chosen in itertools.product(*parts))


def _one_mask(pools: Sequence[Pool], rng: np.random.Generator) -> Mask:
    return _sorted(pool[i] for pool, size in pools for i in rng.permutation(len(pool))[:size].tolist())


def _distinct(draw: Callable[[], Mask], n: int) -> list[Mask]:
    found: dict[Mask, None] = {}
    for _ in range(_TRIES * n):
        found[draw()] = None
        if len(found) == n:
            break
    return list(found)


def _matched(frame: _Frame, free: Sequence[Expert], rng: np.random.Generator) -> Mask:
    left = [free[i] for i in rng.permutation(len(free)).tolist()]
    chosen = []
    for i in rng.permutation(len(frame.mask)).tolist():
        expert = frame.mask[i]
        candidates = [other for other in left if other.layer == expert.layer] or left
        gaps = np.array([abs(frame.used(other) - frame.used(expert)) for other in candidates])
        chance = FARTHER ** np.arange(len(gaps))
        chosen.append(candidates[int(rng.choice(gaps.argsort(kind="stable"), p=chance / chance.sum()))])
        left.remove(chosen[-1])
    return _sorted(chosen)


def _busiest(frame: _Frame, free: Sequence[Expert], size: int) -> list[Expert]:
    return sorted(free, key=lambda expert: (-frame.used(expert), expert))[:size]


def _sorted(experts: Iterator[Expert] | Sequence[Expert]) -> Mask:
    return tuple(sorted(experts))


# --- input


def check_mask(
    experts: Sequence[ExpertLike],
    layers: Sequence[int],
    n_experts: int,
    activation: npt.ArrayLike | None = None,
) -> None:
    """Refuse a mask that the model can't hold, or activation of another shape. Raises InputError."""
    _frame(experts, layers, n_experts, activation)


def _frame(
    experts: Sequence[ExpertLike],
    layers: Sequence[int],
    n_experts: int,
    activation: npt.ArrayLike | None,
    exclude: Sequence[ExpertLike] = (),
) -> _Frame:
    mask = [to_expert(expert) for expert in experts]
    if not mask:
        raise InputError("the mask holds no experts: there is nothing to draw controls for")
    entries = [{"layer": layer, "expert": expert} for layer, expert in mask]
    ExpertSet({"mask": entries}).check_model(layers, n_experts, "the model")
    values = None if activation is None else np.asarray(activation, np.float64)
    if values is not None and (values.shape != (len(layers), n_experts) or not np.isfinite(values).all()):
        raise InputError(
            f"activation has shape {list(values.shape)}, expected finite numbers [{len(layers)}, {n_experts}]: "
            "one for each expert of this model"
        )
    return _Frame(mask, list(layers), n_experts, values, frozenset(map(to_expert, exclude)))


def _kinds(kinds: Sequence[str] | None, frame: _Frame) -> list[str]:
    if kinds is None:
        return [kind for kind in KINDS if frame.activation is not None or kind not in BY_ACTIVATION]
    for kind in kinds:
        if kind not in KINDS:
            raise InputError(f"control kind {kind!r}: expected one of {', '.join(KINDS)}")
        if kind in BY_ACTIVATION and frame.activation is None:
            raise InputError(
                f"control kind {kind!r} needs the activation of the model's experts: give a profile of it, "
                f"or only {', '.join(k for k in KINDS if k not in BY_ACTIVATION)}"
            )
    return list(dict.fromkeys(kinds))


def _check_room(frame: _Frame, kind: str) -> None:
    if kind in WITHIN_LAYERS:
        for layer, size in frame.by_layer().items():
            left = len(frame.free(layer))
            if left < size:
                raise NoRoomError(
                    f"control kind {kind!r}: the mask holds {size} of the {frame.n_experts} experts in layer {layer}, "
                    f"{left} are left for a control: mask fewer, or leave this kind out"
                )
    left = sum(len(frame.free(layer)) for layer in frame.layers)
    if left < len(frame.mask):
        raise NoRoomError(
            f"control kind {kind!r}: the mask holds {len(frame.mask)} of the model's "
            f"{len(frame.layers) * frame.n_experts} experts, {left} are left for a control: mask fewer"
        )


# --- where the real mask falls


class Placement(NamedTuple):
    """The real value among its controls' values.

    ``rank`` 1 = more extreme than all of ``n`` controls; ``p_value`` = rank / (1 + n); ``percentile`` = share of
    controls below the real value (ties count half), times 100.
    """

    n: int
    rank: int
    p_value: float
    percentile: float


def placement(real: float, controls: Sequence[float], extreme: str = "low") -> Placement:
    """Rank and empirical p-value of ``real`` among the values of control masks; ties count against it.

    ``extreme`` is the side that speaks for the mask: "low" where it should lower the value (refusal), "high" where it
    should raise it (compliance), "both" for the rarer side with p doubled (its rank is that of this side).
    p = (1 + controls at least as extreme) / (1 + n): 1 / (1 + n) at best.

    >>> placement(0.1, [0.9, 0.8, 1.0])
    Placement(n=3, rank=1, p_value=0.25, percentile=0.0)
    """
    values = np.asarray(controls, np.float64)
    if extreme not in SIDES:
        raise InputError(f"extreme is {extreme!r}, expected one of {', '.join(SIDES)}")
    if not values.size or not np.isfinite([real, *values]).all():
        raise InputError("placement: expected a finite value and at least one finite control value")
    ranks = {"low": 1 + int((values <= real).sum()), "high": 1 + int((values >= real).sum())}
    rank = min(ranks.values()) if extreme == "both" else ranks[extreme]
    p_value = (1 + (extreme == "both")) * rank / (1 + values.size)
    percentile = 50 * float((values < real).mean() + (values <= real).mean())
    return Placement(int(values.size), rank, min(1.0, p_value), percentile)
