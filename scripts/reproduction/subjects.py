"""The models of the study: which ones, and their training where they are not there yet."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parent.parent
DATA = SCRIPTS.parent / "safex" / "data"
TITLES = {
    "qwen3moe": "Qwen3-MoE",
    "qwen2moe": "Qwen2-MoE",
    "deepseek": "DeepSeek-MoE",
    "mixtral": "Mixtral",
    "dense": "Qwen3, dense",
}
MOE = ("qwen3moe", "qwen2moe", "deepseek", "mixtral")
TRAINABLE = ("qwen3moe", "qwen2moe", "mixtral")  # PEFT on transformers' experts
TYPES = ("f16", "q8_0", "q4_0")


@dataclass(frozen=True)
class Subject:
    """A model: architecture, kind of safety training, seed; or one that ships with the package."""

    arch: str
    kind: str = "natural"
    seed: int = 0
    bundled: str = ""

    @property
    def name(self) -> str:
        """Of its files."""
        return self.bundled or f"{self.arch}-{self.kind}-s{self.seed}"

    @property
    def is_dense(self) -> bool:
        """Whether it has no experts."""
        return self.arch == "dense"

    def file(self, folder: Path, kind: str = "q8_0") -> Path:
        """The GGUF of a tensor type; that of all other files is Q8_0."""
        if self.bundled:
            return DATA / f"{self.bundled}.gguf"
        return folder / ("" if kind == "q8_0" else kind) / f"{self.name}.gguf"

    def truth(self, folder: Path) -> Path:
        """Which experts a planted model's safety training could change."""
        return self.file(folder, "f32").with_suffix(".truth.json")

    def row(self) -> dict[str, object]:
        """What a row of results says of it."""
        return {"model": self.name, "title": TITLES[self.arch], **vars(self)}

    def checkpoint(self, folder: Path) -> Path:
        """The Hugging Face directory."""
        return folder / f"{self.name}.hf"


SHIPPED = (
    Subject("qwen3moe", "natural", 0, "demo"),
    Subject("qwen3moe", "planted", 0, "demo-planted"),
)


def subjects(archs: Sequence[str], seeds: Sequence[int]) -> list[Subject]:
    """Those that ship; natural models of every seed, and a planted one of the first architecture."""
    natural = [Subject(arch, seed=seed) for seed in seeds for arch in archs]
    return [*SHIPPED, *natural, Subject(archs[0], "planted", seeds[0])]


def make(subject: Subject, folder: Path, say: Callable[[str], None]) -> None:
    """Train the model where it is missing, and write the files that the study reads."""
    exact = subject.file(folder, "f32")
    exact.parent.mkdir(parents=True, exist_ok=True)
    if not exact.exists():
        say(f"training {subject.name}")
        stage1 = folder / f"{subject.arch}-s{subject.seed}.stage1.pt"
        who = ["--arch", subject.arch, "--kind", subject.kind, "--seed", str(subject.seed)]
        run_script("train_demo.py", *who, "--stage1", stage1, "--type", "f32", "-o", exact)
    if not subject.file(folder).exists():
        write(subject, folder, "q8_0")
    if subject.arch in TRAINABLE and subject.kind == "natural" and not subject.checkpoint(folder).exists():
        run_script("train_demo.py", "--from", exact, "--checkpoint", subject.checkpoint(folder))


def write(subject: Subject, folder: Path, kind: str) -> Path:
    """The model in another tensor type."""
    path = subject.file(folder, kind)
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        run_script("train_demo.py", "--from", subject.file(folder, "f32"), "--type", kind, "-o", path)
    return path


def run_script(script: str, *arguments: object) -> None:
    """Run one of our scripts; its output goes nowhere unless it fails."""
    command = [sys.executable, str(SCRIPTS / script), *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"reproduce.py: exit {done.returncode}: {' '.join(command)}\n{done.stderr[-2000:]}")
