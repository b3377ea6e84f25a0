"""The paper's repair: LoRA trained on chosen experts only, merged into the quantized file, and that file measured."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import safex
from safex.experts import Expert
from safex.result_file import write_json

from .study import Study
from .subjects import run_script

SCALES = {"subtractive": ("toxic", -0.5), "additive": ("safe", 1.0)}  # the paper gives none
RANK = 8


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

    def groups(self) -> dict[str, list[Expert]]:
        """The paper's three: ctrl, id with ctrl, all experts; then ours."""
        named = self.study.groups()
        with safex.Model(self.study.model) as model:
            everyone = [Expert(layer, expert) for layer in model.layers for expert in range(model.n_experts)]
        wanted = {"ctrl": "ctrl", "id-ctrl": "id ∪ ctrl", "contrast-ctrl": "contrast ctrl"}
        return {key: named[name] for key, name in wanted.items() if name in named} | {"all": everyone}

    def run(self) -> None:
        """Train what is missing, as many at a time as there are cores; then merge and measure one after the other."""
        groups = self.groups()
        merges = [Merge(how, group) for how in SCALES for group in groups]
        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            list(pool.map(lambda one: self._train(one, groups[one.group]), merges))
        self.study.evaluation("base", None)
        for one in merges:
            self._measure(one, groups[one.group])

    def _train(self, one: Merge, experts: list[Expert]) -> None:
        folder = self._adapter(one)
        if (folder / "adapter_model.safetensors").exists():
            return
        self.study.say(f"{self.study.folder.name}: training {one.name}")
        data = self.pairs / f"{SCALES[one.how][0]}.jsonl"
        chosen = ",".join(map(str, experts))
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

    def _measure(self, one: Merge, experts: list[Expert]) -> None:
        report = self.study.folder / f"{one.name}.merge.json"
        result = self.study.folder / f"{one.name}.eval.json"
        if report.exists() and result.exists():
            return
        merged = self.study.folder / f"{one.name}.gguf"
        done = safex.merge(
            self.study.model,
            merged,
            self._adapter(one),
            experts,
            SCALES[one.how][1],
            min_survival=-1,
            force=True,
        )
        whole = done.survival
        write_json(
            report,
            {
                "cosine": whole and whole.cosine,
                "norm_ratio": whole and whole.norm_ratio,
                "experts": len(experts),
            },
        )
        other = Study(merged, self.study.folder, self.study.prompts, self.study.scale, self.study.say)
        other.evaluation(one.name, None)
        merged.unlink()

    def _adapter(self, one: Merge) -> Path:
        return self.study.folder / "adapters" / one.name

    def rows(self) -> list[dict[str, Any]]:
        """Base first, then the merges in the paper's order; each with the names of its files."""
        base = [{"how": "base", "group": "", "n": 0, "eval": "base"}]
        merges = [
            {"how": how, "group": group, "n": len(experts), "eval": Merge(how, group).name}
            for how in SCALES
            for group, experts in self.groups().items()
        ]
        return base + merges
