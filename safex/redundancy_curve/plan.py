"""What a redundancy curve runs: which prompts, under the first k experts of which orders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from safex.errors import InputError
from safex.evaluation.plan import (
    NONE,
    REGULAR,
    Settings,
    check_kinds,
    check_prompts,
    checked_mask,
    regular_activation,
    try_masks,
)
from safex.experts import Expert, ExpertList
from safex.model import Model
from safex.profile import Profile
from safex.prompts import Prompt, PromptSet

from .orders import ACTIVE, CONTROL_KINDS, LISTED, ORDERS, SHARE_OF_ALL, Activity, control_orders, steps

MODES = ("zero", "reroute")  # that take an expert away
ORDER = "order"  # the name of the order itself, among those of its controls


@dataclass(frozen=True)
class Ladder:
    """Prompts, the experts of ``order`` in the order ``by``, the ``sizes`` k that are masked, control orders by kind.

    A mask is called "none", "order-K" or "control-KIND-I-K". Controls are run on the set "regular" alone.
    """

    prompts: PromptSet
    order: list[Expert]
    sizes: list[int]
    by: str
    activity: Activity
    controls: dict[str, list[list[Expert]]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    only: tuple[str, ...] | None = None  # names of the masks that are asked for; None: all

    @cached_property
    def orders(self) -> dict[str, list[Expert]]:
        """The order and its controls, by name."""
        named = {
            f"control-{kind}-{i}": one for kind, of in self.controls.items() for i, one in enumerate(of, 1)
        }
        return {ORDER: self.order, **named}

    @cached_property
    def masks(self) -> Mapping[str, list[Expert]]:
        """The experts of each mask, by its name."""
        steps = (
            (mask_name(name, size), order[:size])
            for name, order in self.orders.items()
            for size in self.sizes
        )
        return {NONE: [], **dict(steps)}

    @property
    def unmasked(self) -> Ladder:
        """The same, asked for without a mask only."""
        return replace(self, only=(NONE,))

    def requests(self) -> Iterator[tuple[Prompt, str]]:
        """Every prompt with the name of a mask; the prompts under one mask stand together."""
        for name in self.masks if self.only is None else self.only:
            for prompt in self.prompts:
                if prompt.set == REGULAR or not name.startswith("control-"):
                    yield prompt, name

    def parameters(self, settings: Settings) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that began."""
        orders = {name: list(map(str, order)) for name, order in self.orders.items()}
        return {
            **settings.to_json(),
            "prompts_hash": self.prompts.hash,
            "sizes": self.sizes,
            "orders": orders,
        }


def mask_name(order: str, size: int) -> str:
    """What the mask of an order's first ``size`` experts is called.

    >>> mask_name("order", 0), mask_name("order", 4)
    ('none', 'order-4')
    """
    return f"{order}-{size}" if size else NONE


def make_ladder(
    model: Model,
    prompts: PromptSet,
    experts: ExpertList | None,
    order: str | None,
    sizes: Sequence[int | str] | None,
    settings: Settings,
    kinds: Sequence[str] | None,
    draws: int,
    profile: Profile | None,
) -> Ladder:
    """Check everything that can be checked before answers are generated. Raises InputError."""
    order = _checked_order(order, experts)
    _check_mode(settings.mode)
    check_prompts(model, prompts, settings.max_new)
    check_kinds(kinds or (), CONTROL_KINDS)
    listed = _all_experts(model) if experts is None else checked_mask(model, experts)
    n_model = len(model.layers) * model.n_experts
    most = max(1, int(SHARE_OF_ALL * n_model)) if experts is None and sizes is None else len(listed)
    grid = steps(sizes, most, n_model)
    activity = Activity(model.layers, regular_activation(model, prompts, profile))
    chosen = (activity.busiest_first(listed) if order == ACTIVE else listed)[: grid[-1]]
    drawn, notes = control_orders(chosen, model.n_experts, activity, kinds, draws, settings.seed)
    ladder = Ladder(prompts, chosen, grid, order, activity, drawn, notes)
    try_masks(model, prompts, ladder.masks, settings)
    return ladder


def _checked_order(order: str | None, experts: ExpertList | None) -> str:
    if order is None:
        return ACTIVE if experts is None else LISTED
    if order not in ORDERS:
        raise InputError(f"order is {order!r}, expected one of {', '.join(ORDERS)}")
    if order == LISTED and experts is None:
        raise InputError("order 'listed' needs a list of experts: name them, or take order 'active'")
    return order


def _check_mode(mode: str) -> None:
    if mode not in MODES:
        raise InputError(
            f"mode is {mode!r}, expected one of {', '.join(MODES)}: experts are to be taken away"
        )


def _all_experts(model: Model) -> list[Expert]:
    return [Expert(layer, number) for layer in model.layers for number in range(model.n_experts)]
