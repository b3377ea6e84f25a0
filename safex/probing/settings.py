"""How probes are made, and which: every expert of a group, the groups, and their controls."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from safex.errors import InputError
from safex.expert_set import ExpertSet
from safex.experts import Expert, ExpertList
from safex.features import Features
from safex.probing.folds import HOLD_OUT
from safex.probing.inputs import MISSING
from safex.roster import Draws, Roster, empty_notes, to_experts

STRENGTHS = (0.01, 0.1, 1.0, 10.0, 100.0, 1000.0)  # C by number of features
CURVE = (0.1, 0.25, 0.5, 0.75)  # shares of the training prompts, beside all of them
ALL = "experts"  # the group of a dump that names none


@dataclass(frozen=True)
class Settings:
    """How probes are made; see ``safex.probe``. Raises InputError for settings out of range."""

    folds: int = 5
    repeats: int = 5
    control_repeats: int = 1
    shuffles: int = 50
    hold_out: str | None = None
    missing: str = "mean"
    strengths: tuple[float, ...] = STRENGTHS
    curve: tuple[float, ...] = CURVE
    seed: int = 0

    def __post_init__(self) -> None:
        """Check the settings."""
        for name, least in (
            ("folds", 2),
            ("repeats", 1),
            ("control_repeats", 1),
            ("shuffles", 0),
            ("seed", 0),
        ):
            if getattr(self, name) < least:
                raise InputError(f"{name} is {getattr(self, name)}, expected at least {least}")
        if self.control_repeats > self.repeats:
            raise InputError(
                f"control_repeats is {self.control_repeats}, more than the {self.repeats} repeats"
            )
        if self.missing not in MISSING:
            raise InputError(f"missing is {self.missing!r}, expected one of {', '.join(MISSING)}")
        if self.hold_out not in (None, *HOLD_OUT):
            raise InputError(f"hold_out is {self.hold_out!r}, expected None or one of {', '.join(HOLD_OUT)}")
        if not self.strengths or self.strengths[0] <= 0 or any(b <= a for a, b in pairwise(self.strengths)):
            raise InputError(f"strengths are {self.strengths}, expected increasing numbers above 0")
        if not all(0 < share < 1 for share in self.curve):
            raise InputError(
                f"curve is {self.curve}, expected shares between 0 and 1 of the training prompts"
            )


@dataclass(frozen=True)
class Subject:
    """What one probe reads: an expert, a group, or a control draw of a group (``draw`` counts from 1)."""

    experts: tuple[Expert, ...]
    group: str = ""
    kind: str = ""
    draw: int = 0

    @property
    def is_control(self) -> bool:
        """Whether it stands for random experts."""
        return bool(self.kind)


@dataclass(frozen=True)
class Subjects:
    """All that is probed."""

    groups: dict[str, Subject]
    singles: dict[Expert, Subject]
    draws: list[Subject] = field(default_factory=list)
    control_singles: dict[Expert, Subject] = field(default_factory=dict)

    def control_draws(self, group: str) -> dict[str, list[Subject]]:
        """The draws of a group by kind."""
        found: dict[str, list[Subject]] = {}
        for subject in self.draws:
            if subject.group == group:
                found.setdefault(subject.kind, []).append(subject)
        return found


def choose_subjects(
    features: Features, groups: ExpertSet | Mapping[str, ExpertList] | None
) -> tuple[Subjects, list[str]]:
    """The groups given (None: those of the features' roster) with what the features hold of their controls, and notes.

    Raises InputError for a group of another model, or an expert that was not dumped.
    """
    roster, notes = _roster(features, groups)
    for experts in roster.groups.values():
        for expert in experts:
            features.row(expert)
    draws = [
        Subject(tuple(draw), name, kind, number)
        for name, controls in roster.controls.items()
        for kind, several in controls.items()
        for number, draw in enumerate(several, 1)
    ]
    members = dict.fromkeys(expert for experts in roster.groups.values() for expert in experts)
    others = dict.fromkeys(expert for draw in draws for expert in draw.experts if expert not in members)
    chosen = Subjects(
        {name: Subject(tuple(experts), name) for name, experts in roster.groups.items()},
        {expert: Subject((expert,)) for expert in members},
        draws,
        {expert: Subject((expert,), kind="single") for expert in others},
    )
    return chosen, notes


def _roster(
    features: Features, groups: ExpertSet | Mapping[str, ExpertList] | None
) -> tuple[Roster, list[str]]:
    held = features.roster
    if groups is None and held.groups:
        return held, list(held.notes)
    if groups is None:
        note = "the features name no groups: all their experts are taken as one, without controls"
        return Roster({ALL: features.experts}), [note]
    if isinstance(groups, ExpertSet):
        _check_model(features, groups)
    named = groups.groups if isinstance(groups, ExpertSet) else groups
    chosen = {name: to_experts(experts) for name, experts in named.items() if experts}
    if not chosen:
        raise InputError("no group holds experts: there is nothing to probe")
    controls = {name: draws for name, experts in chosen.items() if (draws := _controls(held, experts))}
    lacking = [name for name in chosen if name not in controls]
    notes = [f"group {name!r}: the features hold no controls of it" for name in lacking]
    return Roster(chosen, controls), empty_notes(named) + notes


def _controls(roster: Roster, experts: list[Expert]) -> Draws:
    """The controls of the roster's group of the same experts, whatever its name."""
    names = (name for name, members in roster.groups.items() if set(members) == set(experts))
    return roster.controls.get(next(names, ""), {})


def _check_model(features: Features, experts: ExpertSet) -> None:
    ours, theirs = features.meta.get("model.fingerprint"), experts.model.get("fingerprint")
    if ours and theirs and ours != theirs:
        raise InputError(
            f"the features are of model {str(ours)[:12]}, the expert set of {str(theirs)[:12]}: take those of one model"
        )
