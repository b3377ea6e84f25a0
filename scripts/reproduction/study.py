"""Everything that is measured on one model. Each step keeps its result in a file, and is not done again."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safex
from safex.expert_set import parse_experts
from safex.roster import draw_roster

MODES = ("zero", "reroute")
SETS = ("regular", "jailbreak", "benign")
PAPER, OURS = "ses", "contrast"
IDENTIFY = {PAPER: {"method": "ses", "phase": "prompt"}, OURS: {"method": "contrast", "phase": "suffix"}}


@dataclass(frozen=True)
class Scale:
    """How much is done. ``draws`` of each kind of control, ``draws`` of probes' controls, prompts of probes a set."""

    draws: int = 20
    probe_limit: int = 60
    shuffles: int = 20
    order_draws: int = 10


@dataclass(frozen=True)
class Prompts:
    """``found``: what experts are identified on; ``held_out``: what everything is measured on, unseen in training."""

    found: safex.PromptSet
    held_out: safex.PromptSet
    folder: Path  # of the files of ``held_out``

    @classmethod
    def load(cls, found: Path, held_out: Path) -> Prompts:
        """From folders with a file for each set."""
        return cls(_load(found), _load(held_out), held_out)


def _load(folder: Path) -> safex.PromptSet:
    return safex.PromptSet.concat([safex.PromptSet.load(folder / f"{name}.jsonl") for name in SETS])


def comply_marks(folder: Path) -> Any:
    """What real compliance with each held-out prompt holds, from the files' column."""
    from safex.evaluation import marks_of_arguments

    return marks_of_arguments([f"{name}={folder / f'{name}.jsonl'}" for name in SETS])


@dataclass(frozen=True)
class Study:
    """One model file, measured into a folder."""

    model: Path
    folder: Path
    prompts: Prompts
    scale: Scale
    say: Callable[[str], None]

    def profile(self) -> safex.Profile:
        """Selections on the prompts that experts are found on."""
        path = self.folder / "found.profile.gguf"
        if not path.exists():
            self.say(f"{self.folder.name}: profile")
            with safex.Model(self.model) as model:
                model.profile(self.prompts.found, output=path, resume=True)
        return safex.Profile.load(path)

    def experts(self, method: str) -> safex.ExpertSet:
        """The paper's rule, or the contrast of sets."""
        path = self.folder / f"{method}.experts.json"
        if not path.exists():
            self.say(f"{self.folder.name}: identify, {method}")
            found = safex.identify(self.profile(), **IDENTIFY[method])
            found.save(path)
        return safex.ExpertSet.load(path)

    def groups(self) -> dict[str, list[Any]]:
        """The masks that are tried, fixed here: the paper's, ours, and in a planted model the truth."""
        paper, ours = self.experts(PAPER).groups, self.experts(OURS).groups
        both = list(dict.fromkeys([*paper.get("id", []), *paper.get("ctrl", [])]))
        found = {"ctrl": paper.get("ctrl", []), "id ∪ ctrl": both, "contrast ctrl": ours.get("ctrl", [])}
        truth = self.folder / "truth.json"
        if truth.exists():
            found["planted"] = parse_experts(str(truth))
        return {name: list(experts) for name, experts in found.items() if experts}

    def evaluation(self, name: str, experts: Sequence[Any] | None, mode: str = "zero", draws: int = 0) -> Any:
        """Refusal before and after, kept."""
        path = self.folder / f"{name}.eval.json"
        if not path.exists():
            self.say(f"{self.folder.name}: eval, {name}")
            with safex.Model(self.model) as model:
                safex.evaluate(
                    model,
                    self.prompts.held_out,
                    experts,
                    mode=mode,
                    draws=max(draws, 1),
                    controls=("layer", "frequency", "active") if draws else (),
                    profile=self.profile() if draws else None,
                    comply=comply_marks(self.prompts.folder),
                    utility=experts is not None,
                ).save(path)
        return safex.Evaluation.load(path)

    def curve(self) -> Any:
        """Refusal by how many experts are masked: the planted ones, or those of the longest contrast list."""
        path = self.folder / "redundancy.json"
        if not path.exists():
            experts = self.groups().get("planted") or self._longest()
            if not experts:
                return None
            self.say(f"{self.folder.name}: redundancy")
            with safex.Model(self.model) as model:
                safex.redundancy(
                    model,
                    experts,
                    self.prompts.held_out,
                    draws=self.scale.order_draws,
                    profile=self.profile(),
                    comply=comply_marks(self.prompts.folder),
                    utility=False,
                ).save(path)
        return safex.Redundancy.load(path)

    def _longest(self) -> list[Any]:
        """The group ctrl of the contrast, of at most a quarter of all experts."""
        profile = self.profile()
        quarter = profile.counts.shape[1] * profile.counts.shape[2] // 4
        found = safex.identify(profile, **IDENTIFY[OURS], top=quarter)
        return list(found.groups["ctrl"])

    def masked(self, group: str, mode: str, draws: int = 0) -> Any:
        """A group masked; controls only in mode zero."""
        label = group.replace(" ∪ ", "-").replace(" ", "-")
        n = draws if mode == "zero" else 0
        return self.evaluation(f"{label}.{mode}", self.groups()[group], mode, n)

    def probing(self) -> Any:
        """Probes on the paper's groups against random experts, on the held-out prompts."""
        path = self.folder / "probing.json"
        groups = {name: members for name, members in self.experts(PAPER).groups.items() if members}
        if not groups:
            return None
        if not path.exists():
            self.say(f"{self.folder.name}: probe")
            with safex.Model(self.model) as model:
                use = self.profile().activation()
                roster = draw_roster(groups, model.layers, model.n_experts, use, draws=self.scale.draws)
                features = model.dump(roster, self.prompts.held_out.limited(self.scale.probe_limit))
            safex.probe(features, tasks=["harmful"], shuffles=self.scale.shuffles, repeats=3).save(path)
        return safex.Probing.load(path)
