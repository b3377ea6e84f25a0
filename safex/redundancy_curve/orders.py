"""Orders of experts, fixed before anything is masked: the one that is measured, its steps, and control orders.

The first k experts of an order are a mask. A control order has as many experts as the order; its first k are a control
mask of the order's first k, of the same kind as in ``safex.control_masks``. One kind more, "shuffled", has the order's
own experts in random order: it says whether the order matters, not whether these experts do.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import numpy.typing as npt

from safex.control_masks import BY_ACTIVATION, KINDS, SINGLE, NoRoomError, draw_controls, shortfall
from safex.errors import InputError
from safex.experts import Expert

LISTED, ACTIVE = "listed", "active"
ORDERS = (LISTED, ACTIVE)
SHUFFLED = "shuffled"
CONTROL_KINDS = (*KINDS, SHUFFLED)
DEFAULT_KINDS = ("uniform", "layer", "frequency", "active")
SHARE_OF_ALL = 0.25  # of a model's experts are masked at most, where no list of experts is given
_TRIES = 50  # shuffles for each asked for, before giving up on finding another one

Activation = npt.NDArray[np.float64]


class Activity:
    """How often each expert is selected: ``activation`` [L, E] of a model with these MoE ``layers``."""

    def __init__(self, layers: Sequence[int], activation: npt.ArrayLike) -> None:
        """Look up rows by layer."""
        self.layers = list(layers)
        self._row = {layer: row for row, layer in enumerate(layers)}
        self.values: Activation = np.asarray(activation, np.float64)

    def of(self, expert: Expert) -> float:
        """Share of tokens that select the expert."""
        return float(self.values[self._row[expert.layer], expert.expert])

    def busiest_first(self, experts: Iterable[Expert]) -> list[Expert]:
        """Sorted by activation; equal ones by their number.

        >>> Activity([3], [[0.2, 0.7]]).busiest_first([Expert(3, 0), Expert(3, 1)])
        [Expert(layer=3, expert=1), Expert(layer=3, expert=0)]
        """
        return sorted(experts, key=lambda expert: (-self.of(expert), expert))


# --- how many at a time


def steps(sizes: Sequence[int | str] | None, n_listed: int, n_model: int) -> list[int]:
    """How many experts are masked at a time, rising; 0 is measured too and not among them.

    None: 1, 2, 4, 8 ... and all ``n_listed``. Else numbers, or shares of the model's ``n_model`` experts such as "5%"
    (rounded up). Raises InputError for none, one that can't be read, or more than are listed.

    >>> steps(None, 12, 128), steps([3, "5%"], 12, 128)
    ([1, 2, 4, 8, 12], [3, 7])
    """
    if sizes is None:
        doubling = [2**i for i in range(n_listed.bit_length()) if 2**i < n_listed]
        return [*doubling, n_listed]
    found = sorted({_size(size, n_model) for size in sizes} - {0})
    if not found:
        raise InputError("sizes: expected at least one number of experts above 0, such as 1,2,4,8")
    if found[-1] > n_listed:
        raise InputError(
            f"size {found[-1]} is more than the {n_listed} experts of the order: list more, or mask fewer"
        )
    return found


def _size(size: int | str, n_model: int) -> int:
    text = str(size).strip()
    try:
        value = math.ceil(float(text[:-1]) / 100 * n_model - 1e-9) if text.endswith("%") else int(text)
    except (ValueError, OverflowError):
        value = -1
    if value < 0:
        raise InputError(
            f"size {text!r}: expected a number of experts such as 8, or a share of all such as 5%"
        )
    return value


# --- control orders


def control_orders(
    order: Sequence[Expert],
    n_experts: int,
    activity: Activity,
    kinds: Sequence[str] | None = None,
    n: int = 20,
    seed: int = 0,
) -> tuple[dict[str, list[list[Expert]]], list[str]]:
    """Control orders of each kind, and sentences on what couldn't be drawn.

    The experts are those of ``draw_controls``, none of them in ``order``. At each place stands an expert that fits the
    order's own there: of its layer ("layer", "active-layer", "frequency"), and of the same rank in activation among
    those of the layer ("frequency"); "active" ones stand busiest first, "uniform" ones in random order. So the first k
    of a control match the first k of the order as the whole matches the whole. A layer that has no expert left for a
    place of "frequency" lends one from another.

    ``kinds`` None: ``DEFAULT_KINDS`` where enough experts are left, and "shuffled" where they are for none of the
    drawn ones. Raises NoRoomError for a named kind without room, InputError for ``n`` below 0 (0: no controls).
    """
    drawn: dict[str, list[list[Expert]]] = {}
    notes: list[str] = []
    if n < 0:
        raise InputError(f"{n} control orders were asked for, expected 0 (none) or more")
    if n == 0:
        return drawn, notes
    for kind in DEFAULT_KINDS if kinds is None else dict.fromkeys(kinds):
        try:
            drawn[kind] = _orders_of(kind, order, n_experts, activity, n, seed)
        except NoRoomError as error:
            if kinds is not None:
                raise
            notes.append(f"left out: {error}")
    if kinds is None and not set(drawn) - set(SINGLE):
        drawn[SHUFFLED] = _orders_of(SHUFFLED, order, n_experts, activity, n, seed)
    return drawn, notes + shortfall(drawn, n)


def _orders_of(
    kind: str,
    order: Sequence[Expert],
    n_experts: int,
    activity: Activity,
    n: int,
    seed: int,
) -> list[list[Expert]]:
    rng = np.random.default_rng((seed, CONTROL_KINDS.index(kind), 1))
    if kind == SHUFFLED:
        return _shuffles(order, n, rng)
    values = activity.values if kind in BY_ACTIVATION else None
    masks = draw_controls(order, activity.layers, n_experts, [kind], n, seed, values)[kind]
    return [_arranged(kind, mask, order, activity, rng) for mask in masks]


def _arranged(
    kind: str, mask: Sequence[Expert], order: Sequence[Expert], activity: Activity, rng: np.random.Generator
) -> list[Expert]:
    shuffled = [mask[i] for i in rng.permutation(len(mask)).tolist()]
    if kind == "uniform":
        return shuffled
    if kind == "active":
        return activity.busiest_first(mask)
    if kind == "layer":
        return _by_layer(shuffled, order)
    busiest = activity.busiest_first(mask)
    if kind == "active-layer":
        return _by_layer(busiest, order)
    places = {expert: place for place, expert in enumerate(order)}
    ranked = activity.busiest_first(order)
    matched = zip(ranked, _by_layer(busiest, ranked), strict=True)
    return [expert for _, expert in sorted(matched, key=lambda pair: places[pair[0]])]


def _by_layer(experts: Sequence[Expert], places: Sequence[Expert]) -> list[Expert]:
    """For each of ``places`` the next of ``experts`` that is of its layer; what is left fills what stays empty."""
    left = list(experts)
    found: list[Expert | None] = []
    for place in places:
        same = next((expert for expert in left if expert.layer == place.layer), None)
        found.append(same)
        if same is not None:
            left.remove(same)
    return [left.pop(0) if expert is None else expert for expert in found]


def _shuffles(order: Sequence[Expert], n: int, rng: np.random.Generator) -> list[list[Expert]]:
    """Different orders of the same experts; fewer than ``n`` where there are fewer."""
    found: dict[tuple[Expert, ...], None] = {}
    for _ in range(_TRIES * n):
        found[tuple(order[i] for i in rng.permutation(len(order)).tolist())] = None
        if len(found) == n:
            break
    return [list(shuffled) for shuffled in found]
