"""What an evaluation runs: which prompts, under which masks, with which settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy.typing as npt

from safex.control_masks import BY_ACTIVATION, KINDS, activation_of, draw_controls, shortfall
from safex.errors import InputError
from safex.evaluation.trial import Trial
from safex.expert_set import ExpertSet
from safex.experts import Expert, ExpertList, Intervention, to_expert
from safex.generation import Sampling
from safex.model import Model
from safex.profile import Profile
from safex.prompts import Prompt, PromptSet

NONE, MASK = "none", "mask"  # names of the two masks that are no controls
REGULAR, JAILBREAK, BENIGN = "regular", "jailbreak", "benign"


@dataclass(frozen=True)
class Settings:
    """How answers are made. Raises InputError for settings out of range."""

    mode: str = "zero"
    gain: float = 0.0
    phase: str = "both"
    max_new: int = 64
    n_samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    trial: Trial | None = None  # what the token limit rests on; None: it was asked for, and not tried

    def __post_init__(self) -> None:
        """Check the settings."""
        Sampling(self.n_samples, self.temperature, self.top_p, self.seed)
        Intervention(None, self.mode, self.gain, self.phase).numbered(0)
        if self.max_new < 1:
            raise InputError(f"max_new is {self.max_new}, expected at least 1 token")
        if self.n_samples > 1 and self.temperature == 0:
            raise InputError(
                f"{self.n_samples} samples at temperature 0 are {self.n_samples} times the same answer: "
                "raise the temperature (--temperature 0.7), or take one sample"
            )

    def tried(self, trial: Trial | None) -> Settings:
        """The settings with the token limit that the trial answers gave."""
        return self if trial is None else replace(self, max_new=trial.max_new, trial=trial)

    def to_json(self) -> dict[str, Any]:
        """Plain values; ``trial`` only where answers were tried."""
        values = asdict(replace(self, trial=None))
        del values["trial"]
        return values if self.trial is None else {**values, "trial": self.trial.to_json()}


@dataclass(frozen=True)
class Plan:
    """Prompts, masks by name ("none", "mask", "control-KIND-1" ...), and the names of each kind's controls.

    ``control_sets`` are the sets that the controls are run on; the others are run without and with the mask.
    ``activation`` [L, E] is what controls were matched by; None where no kind needs it.
    """

    prompts: PromptSet
    masks: dict[str, list[Expert]]
    controls: dict[str, list[str]] = field(default_factory=dict)
    control_sets: tuple[str, ...] = (REGULAR,)
    activation: npt.NDArray[Any] | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def mask(self) -> list[Expert]:
        """The experts that are masked; empty without a mask."""
        return self.masks.get(MASK, [])

    def requests(self) -> Iterator[tuple[Prompt, str]]:
        """Every prompt with the name of a mask: without and with the mask first, then the controls."""
        for name in self.masks:
            is_control = name not in (NONE, MASK)
            for prompt in self.prompts:
                if not is_control or prompt.set in self.control_sets:
                    yield prompt, name

    def touched(self, name: str, layers: Sequence[int]) -> float | None:
        """Summed activation of a mask's experts, where activation is known."""
        return None if self.activation is None else activation_of(self.masks[name], layers, self.activation)

    def parameters(self, settings: Settings) -> dict[str, Any]:
        """What a run that goes on must have in common with the one that began."""
        masks = {name: [str(expert) for expert in experts] for name, experts in self.masks.items()}
        shared = {"prompts_hash": self.prompts.hash, "control_sets": list(self.control_sets)}
        return {**settings.to_json(), **shared, "masks": masks}


def make_plan(
    model: Model,
    prompts: PromptSet,
    experts: ExpertList | None,
    settings: Settings,
    kinds: Sequence[str],
    draws: int,
    control_sets: Sequence[str],
    profile: Profile | None,
) -> Plan:
    """Check everything that can be checked before answers are generated. Raises InputError."""
    check_prompts(model, prompts, settings.max_new)
    if experts is None:
        return Plan(prompts, {NONE: []})
    mask = checked_mask(model, experts)
    check_kinds(kinds)
    _check_control_sets(prompts, control_sets)
    needs_activation = any(kind in BY_ACTIVATION for kind in kinds)
    activation = regular_activation(model, prompts, profile) if needs_activation else None
    drawn = draw_controls(mask, model.layers, model.n_experts, kinds, draws, settings.seed, activation)
    controls = {
        kind: [f"control-{kind}-{i}" for i in range(1, 1 + len(masks))] for kind, masks in drawn.items()
    }
    named = {controls[kind][i]: one for kind, masks in drawn.items() for i, one in enumerate(masks)}
    plan = Plan(
        prompts,
        {NONE: [], MASK: mask, **named},
        controls,
        tuple(control_sets),
        activation,
        shortfall(drawn, draws),
    )
    try_masks(model, prompts, plan.masks, settings)
    return plan


def check_prompts(model: Model, prompts: PromptSet, max_new: int) -> None:
    """Refuse prompts without a set "regular" and those that the context can't hold. Raises InputError."""
    if REGULAR not in prompts.sets:
        found = ", ".join(dict.fromkeys(prompts.sets)) or "nothing"
        raise InputError(
            f"the prompts hold no set {REGULAR!r} (they hold {found}): refusal is measured on plain harmful requests; "
            f"name one, as in --prompts {REGULAR}=FILE"
        )
    model.check_lengths([model.encode(prompt) for prompt in prompts], prompts, max_new)


def checked_mask(model: Model, experts: ExpertList) -> list[Expert]:
    """The experts of a mask, in the order given. Raises InputError for none, or some that the model lacks."""
    if isinstance(experts, str):
        raise InputError(f"experts is the text {experts!r}, expected a list such as [{experts!r}]")
    mask = [to_expert(expert) for expert in experts]
    if not mask:
        raise InputError("the mask holds no experts: there is nothing to measure; leave it out, or name some")
    entries = [{"layer": expert.layer, "expert": expert.expert} for expert in mask]
    ExpertSet({MASK: entries}).check_model(model.layers, model.n_experts, "this model")
    return mask


def check_kinds(kinds: Sequence[str], known: Iterable[str] = KINDS) -> None:
    """Refuse a kind of control that is not ``known``. Raises InputError."""
    for kind in kinds:
        if kind not in known:
            raise InputError(f"control kind {kind!r}: expected one of {', '.join(known)}")


def _check_control_sets(prompts: PromptSet, control_sets: Sequence[str]) -> None:
    for name in control_sets:
        if name not in prompts.sets:
            found = ", ".join(dict.fromkeys(prompts.sets))
            raise InputError(f"controls are to run on set {name!r}, the prompts hold {found}")


def regular_activation(model: Model, prompts: PromptSet, profile: Profile | None) -> npt.NDArray[Any]:
    """Activation [L, E] on the regular prompts: as the profile counted it, or counted now. Raises InputError."""
    if profile is None:
        return model.profile(PromptSet(p for p in prompts if p.set == REGULAR)).activation()
    known = profile.meta.get("model.fingerprint", model.fingerprint)
    if known != model.fingerprint:
        raise InputError(
            f"the profile is of another model (fingerprint {known}, this model has {model.fingerprint})"
        )
    return profile.activation(REGULAR if REGULAR in profile.sets else None)


def try_masks(model: Model, prompts: PromptSet, masks: Mapping[str, ExpertList], settings: Settings) -> None:
    """Let the model refuse masks that it can't have (too many rerouted or forced in a layer) before it answers."""
    tokens = model.encode(prompts[0]).tokens[:1]
    tried: list[ExpertList | None] = list(masks.values())
    model.score([tokens] * len(tried), [0], tried, settings.mode, settings.gain, phase=settings.phase)
