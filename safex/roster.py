"""Who takes part in a probing study: the groups of experts, and random experts drawn as controls of each.

A dump of a study's features needs the outputs of all of them: ``Roster.experts``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy.typing as npt

from safex.control_masks import SINGLE, NoRoomError, check_mask, draw_controls, shortfall
from safex.errors import InputError
from safex.expert_set import ExpertSet
from safex.experts import Expert, ExpertList, to_expert

Draws: TypeAlias = dict[str, list[list[Expert]]]  # control draws by kind

DRAWS = 20  # the least that can give p <= 0.05
KINDS = ("layer", "frequency")


@dataclass(frozen=True)
class Roster:
    """Groups of experts by name, and their ``controls`` by group and kind: draws of as many other experts.

    ``notes`` say which controls could not be drawn. Raises InputError for an expert that a group lists twice.

    >>> roster = Roster({"id": [Expert(0, 1)]}, {"id": {"layer": [[Expert(0, 2)], [Expert(0, 3)]]}})
    >>> [str(expert) for expert in roster.experts], roster.roles[Expert(0, 3)]
    (['0:1', '0:2', '0:3'], ['control:layer'])
    """

    groups: dict[str, list[Expert]] = field(default_factory=dict)
    controls: dict[str, Draws] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check the groups."""
        for name, experts in self.groups.items():
            twice = next((expert for expert in experts if experts.count(expert) > 1), None)
            if twice:
                raise InputError(f"group {name!r} lists expert {twice} twice")
            if not experts:
                raise InputError(f"group {name!r} holds no experts: leave it out")
        for name in self.controls:
            if name not in self.groups:
                raise InputError(f"controls of group {name!r}: there is no such group")

    @property
    def experts(self) -> list[Expert]:
        """All experts, each once: those of the groups, then those of the controls."""
        return list(self.roles)

    @property
    def roles(self) -> dict[Expert, list[str]]:
        """What each expert is there for: names of groups, and ``control:KIND``."""
        parts = [(name, experts) for name, experts in self.groups.items()]
        parts += [
            (f"control:{kind}", draw)
            for draws in self.controls.values()
            for kind, several in draws.items()
            for draw in several
        ]
        roles: dict[Expert, dict[str, None]] = {}
        for role, experts in parts:
            for expert in experts:
                roles.setdefault(expert, {})[role] = None
        return {expert: list(names) for expert, names in roles.items()}

    def to_json(self) -> dict[str, Any]:
        """Plain values: experts as ``"L:E"`` texts."""
        controls = {
            name: {kind: [_texts(draw) for draw in several] for kind, several in draws.items()}
            for name, draws in self.controls.items()
        }
        groups = {name: _texts(experts) for name, experts in self.groups.items()}
        return {"groups": groups, "controls": controls, "notes": self.notes}


def from_json(value: Any) -> Roster:
    """A roster of parsed JSON. Raises InputError for another shape."""
    try:
        controls = {
            str(name): {str(kind): [to_experts(draw) for draw in several] for kind, several in draws.items()}
            for name, draws in value["controls"].items()
        }
        groups = {str(name): to_experts(experts) for name, experts in value["groups"].items()}
        return Roster(groups, controls, [str(note) for note in value["notes"]])
    except (AttributeError, KeyError, TypeError) as error:
        raise InputError(
            f"groups and controls are of no known shape ({type(error).__name__}: {error})"
        ) from None


def draw_roster(
    experts: ExpertSet | Mapping[str, ExpertList],
    layers: Sequence[int],
    n_experts: int,
    activation: npt.ArrayLike | None = None,
    kinds: Sequence[str] | None = None,
    draws: int = DRAWS,
    seed: int = 0,
) -> Roster:
    """All experts to dump for a study of these groups, in a model with these MoE ``layers``.

    ``kinds`` are drawn kinds of ``safex.control_masks`` (default "layer", and "frequency" where ``activation`` [L, E]
    is given), ``draws`` of each. A control holds no expert of any group, unless its layers have too few others. Groups
    without experts are left out. ``notes`` say so, and where no control could be drawn. Raises InputError for experts
    that the model lacks, an unknown kind, or no group with experts.

    >>> roster = draw_roster({"ctrl": ["1:0", "2:0"]}, layers=[1, 2], n_experts=8, draws=2)
    >>> [[e.layer for e in draw] for draw in roster.controls["ctrl"]["layer"]]
    [[1, 2], [1, 2]]
    """
    named = experts.groups if isinstance(experts, ExpertSet) else experts
    groups = {name: to_experts(members) for name, members in named.items() if members}
    if not groups:
        raise InputError("no group holds experts: there is nothing to probe")
    chosen = _kinds(kinds, activation)
    for name, members in groups.items():
        try:
            check_mask(members, layers, n_experts, activation)
        except InputError as error:
            raise InputError(f"group {name!r}: {error}") from None
    drawing = _Drawing(groups, layers, n_experts, activation, draws, seed, empty_notes(named))
    controls = {name: {kind: drawing.draw(name, kind) for kind in chosen} for name in groups}
    kept = {name: {kind: several for kind, several in of.items() if several} for name, of in controls.items()}
    return Roster(groups, kept, drawing.notes)


def empty_notes(groups: Mapping[str, Sequence[Any]]) -> list[str]:
    """A sentence for each group without experts, which is left out."""
    return [
        f"group {name!r} holds no experts: it is left out" for name, members in groups.items() if not members
    ]


@dataclass
class _Drawing:
    """Draws controls, and notes where they are fewer or others than asked for."""

    groups: dict[str, list[Expert]]
    layers: Sequence[int]
    n_experts: int
    activation: npt.ArrayLike | None
    draws: int
    seed: int
    notes: list[str] = field(default_factory=list)

    def draw(self, name: str, kind: str) -> list[list[Expert]]:
        """Draws of one kind for a group: without experts of other groups, else with them, else none."""
        others = [expert for other, members in self.groups.items() if other != name for expert in members]
        try:
            return self._try(name, kind, others)
        except NoRoomError as first:
            reason = first
        try:
            drawn = self._try(name, kind, [])
        except NoRoomError as error:
            self.notes.append(f"group {name!r}: {error}")
            return []
        self.notes.append(f"group {name!r}: {kind} controls may hold experts of the other groups: {reason}")
        return drawn

    def _try(self, name: str, kind: str, exclude: list[Expert]) -> list[list[Expert]]:
        drawn = draw_controls(
            self.groups[name],
            self.layers,
            self.n_experts,
            [kind],
            self.draws,
            self.seed,
            self.activation,
            exclude,
        )
        self.notes += [f"group {name!r}: {text}" for text in shortfall(drawn, self.draws)]
        return drawn[kind]


def to_experts(experts: Any) -> list[Expert]:
    """Experts of any notation. Raises InputError for one text in place of a list."""
    if isinstance(experts, str):
        raise InputError(f"experts is the text {experts!r}, expected a list such as [{experts!r}]")
    return [to_expert(expert) for expert in experts]


def _texts(experts: Sequence[Expert]) -> list[str]:
    return [str(expert) for expert in experts]


def _kinds(kinds: Sequence[str] | None, activation: npt.ArrayLike | None) -> list[str]:
    if kinds is None:
        return [kind for kind in KINDS if kind != "frequency" or activation is not None]
    single = [kind for kind in kinds if kind in SINGLE]
    if single:
        raise InputError(
            f"control kind {single[0]!r} is one mask and no draws: choose of uniform, layer, frequency"
        )
    return list(dict.fromkeys(kinds))
