"""Prompts in two parts: those that find experts, and those that test them. No request is in both.

Whatever was chosen because it lowers refusal on some prompts does so on these prompts, by chance alone; only others
show what it is worth.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from safex.errors import InputError
from safex.probing.folds import components
from safex.profile import Profile
from safex.prompts import PromptSet

FIND = 1 / 3  # share of the prompts that find; effects on logits need fewer prompts than differences of rates
ENOUGH = 20  # prompts of a set, for `identify`


def split(prompts: PromptSet, seed: int = 0) -> tuple[PromptSet, PromptSet]:
    """The prompts that find and those that test, in their order.

    Twins (a common ``pair``) and equal texts stay together. A third of each set finds; more where that would be fewer
    than 20 prompts, at most half. Categories are divided alike; ``seed`` decides the rest.

    >>> texts = PromptSet.of(map(str, range(90)), set="regular")
    >>> [len(part) for part in split(texts)]
    [30, 60]
    """
    smallest = min((prompts.sets.count(name) for name in set(prompts.sets)), default=0)
    if smallest < 4:
        raise InputError(
            f"a set holds {smallest} prompts, expected at least 4 of each: some find experts, the others test them"
        )
    share = max(FIND, min(0.5, ENOUGH / smallest))
    units = components([prompts.pairs, prompts.texts])
    finding = _finding(prompts, units.tolist(), share, np.random.default_rng(seed))
    parts = [
        [p for p, unit in zip(prompts, units, strict=True) if (unit in finding) is is_in]
        for is_in in (True, False)
    ]
    return PromptSet(parts[0], prompts.notes), PromptSet(parts[1], prompts.notes)


def _finding(prompts: PromptSet, units: Sequence[int], share: float, rng: np.random.Generator) -> set[int]:
    """The units that find: of those that touch the same sets a share, spread evenly over their categories."""
    strata: dict[tuple[str, ...], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for unit in dict.fromkeys(units):
        members = [prompt for prompt, of in zip(prompts, units, strict=True) if of == unit]
        sets = tuple(sorted({prompt.set for prompt in members}))
        strata[sets][members[0].category or ""].append(unit)
    found: set[int] = set()
    for categories in strata.values():
        placed = [
            ((place + 0.5) / len(members), number, members[i])
            for number, members in enumerate(categories.values())
            for place, i in enumerate(rng.permutation(len(members)).tolist())
        ]
        size = math.ceil(share * len(placed) - 1e-9)
        found.update(unit for _, _, unit in sorted(placed)[:size])
    return found


def profile_of(profile: Profile, prompts: PromptSet) -> Profile:
    """What a profile holds of these prompts. Raises InputError where one is missing, or is another text."""
    places = {key: row for row, key in enumerate(zip(profile.sets, profile.ids, strict=True))}
    wanted = [(prompt.set, prompt.id) for prompt in prompts]
    missing = next((key for key in wanted if key not in places), None)
    if missing:
        raise InputError(
            f"the profile has no prompt {missing[1]!r} of set {missing[0]!r}: it was made from other prompts; "
            "profile these, or leave --profile out"
        )
    return profile.select([places[key] for key in wanted])
