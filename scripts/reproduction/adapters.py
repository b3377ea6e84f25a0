"""The paper's repair: LoRA trained on chosen experts only, merged into the quantized file, and that file measured."""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safex
from safex.control_masks import draw_controls
from safex.experts import Expert
from safex.result_file import write_json

from .study import Study
from .subjects import run_script

SCALES = {"subtractive": ("toxic", -0.5), "additive": ("safe", 1.0)}  # the paper gives none
RANK = 8
DRAWS = 5  # groups of random experts; only additive merges go into more than the first

Groups = dict[str, list[Expert]]


class Merge(NamedTuple):
    """A row of the paper's table: which data, which experts."""

    how: str
    group: str

    @property
    def name(self) -> str:
        """Of its files."""
        return f"{self.how}-{self.group}"


@dataclass(frozen=True)
class Repair:
    """All merges of one model. ``pairs`` holds safe.jsonl and toxic.jsonl."""

    study: Study
    checkpoint: Path
    pairs: Path

    def groups(self) -> Groups:
        """The paper's three: ctrl, id with ctrl, all experts; ours; and draws of as many as ctrl in its layers."""
        named = self.study.groups()
        with safex.Model(self.study.model) as model:
            layers, n = model.layers, model.n_experts
        wanted = {"ctrl": "ctrl", "id-ctrl": "id ∪ ctrl", "contrast-ctrl": "contrast ctrl"}
        groups = {key: named[name] for key, name in wanted.items() if name in named}
        if groups:
            first = next(iter(groups.values()))
            drawn = draw_controls(first, layers, n, ("layer",), DRAWS, seed=0)["layer"]
            groups |= {f"random-{number}": experts for number, experts in enumerate(drawn, 1)}
        return groups | {"all": [Expert(layer, expert) for layer in layers for expert in range(n)]}

    def run(self) -> None:
        """Train what is missing; then merge and measure."""
        groups = self.groups()
        merges = self.merges(groups)
        wanted = {self._adapter(one, groups): one for one in merges}  # equal groups share an adapter
        for one in wanted.values():
            self._train(one, groups)
        self.study.evaluation("base", None)
        for one in merges:
            self._measure(one, groups)

    @staticmethod
    def merges(groups: Groups) -> list[Merge]:
        """Every group in both ways, but for the further draws of random experts."""
        further = [f"random-{number}" for number in range(2, DRAWS + 1)]
        return [
            Merge(how, group)
            for how in SCALES
            for group in groups
            if how == "additive" or group not in further
        ]

    def _train(self, one: Merge, groups: Groups) -> None:
        folder = self._adapter(one, groups)
        if (folder / "adapter_model.safetensors").exists():
            return
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was stopped
        self.study.say(f"{self.study.folder.name}: training {one.name}")
        data = self.pairs / f"{SCALES[one.how][0]}.jsonl"
        chosen = ",".join(map(str, groups[one.group]))
        run_script(
            "train_expert_lora.py",
            self.checkpoint,
            "--experts",
            chosen,
            "--data",
            data,
            "-o",
            folder,
            "--rank",
            RANK,
        )

    def _measure(self, one: Merge, groups: Groups) -> None:
        report = self.study.folder / f"{one.name}.merge.json"
        result = self.study.folder / f"{one.name}.eval.json"
        if report.exists() and result.exists():
            return
        merged = self.study.folder / f"{one.name}.gguf"
        done = safex.merge(
            self.study.model,
            merged,
            self._adapter(one, groups),
            groups[one.group],
            SCALES[one.how][1],
            min_survival=-1,
            force=True,
        )
        whole = done.survival
        write_json(report, {"cosine": whole and whole.cosine, "norm_ratio": whole and whole.norm_ratio})
        other = Study(merged, self.study.folder, self.study.prompts, self.study.scale, self.study.say)
        other.evaluation(one.name, None)
        merged.unlink()

    def _adapter(self, one: Merge, groups: Groups) -> Path:
        key = hashlib.sha256(",".join(map(str, groups[one.group])).encode()).hexdigest()[:8]
        return self.study.folder / "adapters" / f"{one.how}-{key}"

    def rows(self) -> list[dict[str, Any]]:
        """Base first, then the merges in the paper's order; each with the names of its files."""
        base = [{"how": "base", "group": "", "n": 0, "eval": "base"}]
        groups = self.groups()
        merges = [
            {"how": one.how, "group": one.group, "n": len(groups[one.group]), "eval": one.name}
            for one in self.merges(groups)
        ]
        return base + merges
