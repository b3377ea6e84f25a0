"""Which experts are swept, and which are put to the test: fixed rules, the same for every model.

Nothing here looks at a refusal rate, and the test is run once, on one group of a size that is fixed before.
"""

from __future__ import annotations

from collections.abc import Sequence

from safex.attribution import Sweep
from safex.expert_set import ExpertSet
from safex.experts import Expert
from safex.profile import Profile
from safex.ses.identification import default_top

PHASE = "suffix"  # where the model is about to answer
GROUP = "tested"
FEW = 8  # a few experts are at most one in so many
REGULAR = "regular"

CAUSE = "sweep"  # where the group comes from
BY_HAND = "given"
FALLBACKS = ("contrast:ctrl", "ses:ctrl", "contrast:id")
RULES = {
    CAUSE: "the {n} experts whose masking, each alone, lowers the refusal logit most on the finding prompts",
    BY_HAND: "named beforehand",
    "contrast:ctrl": "selected more on regular than on jailbreak and benign prompts (the sweep gave none)",
    "ses:ctrl": "stable on regular but not on jailbreak prompts (neither sweep nor contrast gave any)",
    "contrast:id": "selected more on regular and jailbreak than on benign prompts (no other group holds any)",
}


def default_size(n_layers: int, n_experts: int, top_list: int) -> int:
    """How many experts are tested: the top list of ``identify``, but never more than an eighth of the model's.

    >>> default_size(4, 32, 8), default_size(2, 8, 8)
    (8, 2)
    """
    return max(1, min(top_list, n_layers * n_experts // FEW))


def size_of(profile: Profile | None, n_layers: int, n_experts: int, top: int | None) -> int:
    """What was asked for, or the default."""
    if top is not None:
        return top
    top_list = default_top(profile) if profile else max(8, round(0.01 * n_layers * n_experts))
    return default_size(n_layers, n_experts, top_list)


def phase_of(profile: Profile) -> str:
    """The phase that counts: the suffix, where it was counted."""
    return PHASE if PHASE in profile.phases else "prompt"


def candidates(
    profile: Profile | None,
    sets: Sequence[ExpertSet],
    given: Sequence[Expert],
    every: Sequence[Expert],
    n: int,
) -> list[Expert]:
    """At most ``n`` experts to sweep: those named or identified, then the most selected where the model answers.

    An expert that no token selects there can't move the first token of an answer. Without a profile: ``every``.
    """
    listed = [*given, *(expert for of in sets for group in of.groups.values() for expert in group)]
    if len(every) > n and profile is not None:
        activation = profile.activation(REGULAR, phase_of(profile))
        row = {layer: place for place, layer in enumerate(profile.layers)}
        every = sorted(every, key=lambda expert: (-activation[row[expert.layer], expert.expert], expert))
    return list(dict.fromkeys([*listed, *every]))[: max(n, len(given))]


def choose(
    sweep: Sweep | None, sets: dict[str, ExpertSet], given: Sequence[Expert], size: int
) -> tuple[str, list[Expert]]:
    """Where the group under test comes from, and its experts; none where there is nothing to choose from."""
    if given:
        return BY_HAND, list(given)
    if sweep is not None:
        return CAUSE, sweep.experts[:size]
    for source in FALLBACKS:
        method, _, group = source.partition(":")
        experts = sets[method].groups.get(group, []) if method in sets else []
        if experts:
            return source, experts[:size]
    return "", []
