"""Experts and lists of them, as users write them: pairs, ``"L:E"`` strings, one list for all prompts or one each."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import NamedTuple, TypeAlias, cast

from .errors import InputError

MODES = ("zero", "reroute", "force")
PHASES = ("prompt", "response", "both")


class Expert(NamedTuple):
    """One routed expert: ``layer`` is the GGUF block index, ``expert`` its number within the layer."""

    layer: int
    expert: int

    def __str__(self) -> str:
        """The way it is written on a command line: ``L:E``."""
        return f"{self.layer}:{self.expert}"


ExpertLike: TypeAlias = Expert | tuple[int, int] | Sequence[int] | str
ExpertList: TypeAlias = Sequence[ExpertLike]
MaskLike: TypeAlias = ExpertList | Sequence[ExpertList | None] | None
NativeMask: TypeAlias = list[tuple[int, int, str, float]]


def to_expert(value: ExpertLike) -> Expert:
    """Read one expert; raises InputError for anything that is no ``(layer, expert)`` pair or ``"L:E"`` text.

    >>> to_expert("3:17")
    Expert(layer=3, expert=17)
    """
    parts = value.split(":") if isinstance(value, str) else list(value)
    try:
        layer, expert = (int(part) if isinstance(part, str) else operator.index(part) for part in parts)
    except (TypeError, ValueError):
        raise InputError(f"expert {value!r}: expected a pair (layer, expert) or text such as 3:17") from None
    return Expert(layer, expert)


def is_pair(value: object) -> bool:
    """True for one expert, false for a list of experts."""
    if isinstance(value, str):
        return True
    return (
        isinstance(value, Sequence)
        and len(value) == 2
        and not any(isinstance(part, Sequence) for part in value)
    )


def to_masks(mask: MaskLike, mode: str, gain: float, n_prompts: int) -> tuple[list[NativeMask], list[int]]:
    """The distinct masks of a call and, for each prompt, the number of its own (0: none).

    ``mask`` is None, one list of experts for all prompts, or a list with one list (or None) for each prompt.
    Raises InputError for an unknown mode or a list whose length is not the number of prompts.
    """
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}, expected one of {', '.join(MODES)}")
    lists = _per_prompt(mask, n_prompts)
    numbers: dict[tuple[Expert, ...], int] = {(): 0}
    which = [numbers.setdefault(experts, len(numbers)) for experts in lists]
    native = [[(e.layer, e.expert, mode, gain) for e in experts] for experts in numbers if experts]
    return native, which


class Intervention(NamedTuple):
    """A mask and how it acts: ``mode``, the ``gain`` of mode ``zero``, and the ``phase`` ("both", or only one)."""

    mask: MaskLike = None
    mode: str = "zero"
    gain: float = 0.0
    phase: str = "both"

    def numbered(self, n_prompts: int) -> tuple[list[NativeMask], list[tuple[int, int]]]:
        """The distinct masks and, for each prompt, the numbers (0: none) of its mask in prompt and response.

        Raises InputError as ``to_masks`` does, and for an unknown phase.
        """
        if self.phase not in PHASES:
            raise InputError(f"phase is {self.phase!r}, expected one of {', '.join(PHASES)}")
        masks, which = to_masks(self.mask, self.mode, self.gain, n_prompts)
        in_prompt, in_response = self.phase != "response", self.phase != "prompt"
        return masks, [(number * in_prompt, number * in_response) for number in which]


def _per_prompt(mask: MaskLike, n_prompts: int) -> list[tuple[Expert, ...]]:
    if mask is None or len(mask) == 0:
        return [()] * n_prompts
    if isinstance(mask, str):
        raise InputError(f"mask is the text {mask!r}, expected a list of experts such as [{mask!r}]")
    if all(is_pair(item) for item in mask):
        return [_experts(cast(ExpertList, mask))] * n_prompts
    if len(mask) != n_prompts:
        raise InputError(
            f"mask holds {len(mask)} lists for {n_prompts} prompts; give one list each, or one for all"
        )
    return [_experts(experts) for experts in cast("Sequence[ExpertList | None]", mask)]


def _experts(experts: ExpertList | None) -> tuple[Expert, ...]:
    return tuple(to_expert(item) for item in experts or ())
