"""The tutorial's commands, run in order from an empty folder: they succeed, and print what the page shows.

Its second part, on a real model, is run by test_real_model.py.
Of what a command prints the page shows lines; ``...`` stands for any number of others. Words must be the same, numbers
agree roughly: another processor rounds differently.
"""

from __future__ import annotations

import itertools
import json
import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from cli_runner import PROGRAM, environment
from gguf import GGUFReader
from safetensors import safe_open

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
FORMATS = PAGE.with_name("file-formats.md")
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w:])(\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)(?![\w:])")  # not of 1:27, sha256, 8f3a
SECOND_PART = "\n## Part 2: "
SECONDS = 600  # of one command, on a machine that has much else to do


@dataclass
class Step:
    """A command of the page and the lines that are shown of what it prints."""

    command: str
    shown: list[str] = field(default_factory=list)


def steps(page: str) -> list[Step]:
    """The commands of all ``console`` blocks."""
    found: list[Step] = []
    for line in (line for block in BLOCK.findall(page) for line in block.splitlines()):
        if line.startswith("$ "):
            found.append(Step(line[2:]))
        else:
            found[-1].shown.append(line)
    return found


def parts() -> tuple[str, str]:
    """The page's two parts: on the demo models, and on a real one."""
    first, _, second = PAGE.read_text(encoding="utf-8").partition(SECOND_PART)
    assert second
    return first, second


def missing(shown: list[str], printed: list[str]) -> str | None:
    """The first shown line that was not printed where it should have been."""
    at, anywhere = 0, False
    for line in shown:
        if line == "...":
            anywhere = True
            continue
        places = range(at, len(printed)) if anywhere else range(at, min(at + 1, len(printed)))
        place = next((i for i in places if agree(line, printed[i])), None)
        if place is None:
            return line
        at, anywhere = place + 1, False
    return None if anywhere or at == len(printed) else printed[at]


def agree(shown: str, printed: str) -> bool:
    """Whether two lines hold the same words, and about the same numbers."""
    ours, theirs = (NUMBER.split(" ".join(line.split())) for line in (shown, printed))
    return len(ours) == len(theirs) and all(
        close(a, b) if i % 2 else a == b for i, (a, b) in enumerate(zip(ours, theirs, strict=True))
    )


def close(shown: str, printed: str) -> bool:
    a, b = (float(text.replace(",", "")) for text in (shown, printed))
    return abs(a - b) <= max(0.05, 0.25 * abs(a))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the commands leave, each of them checked."""
    place = tmp_path_factory.mktemp("tutorial")
    for step in steps(parts()[0]):
        run(step, place)
    return place


def run(step: Step, place: Path) -> None:
    name, *words = shlex.split(step.command)
    assert name == "safex-native", step.command
    done = subprocess.run(
        [*PROGRAM, *words],
        cwd=place,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
    )
    assert done.returncode == 0, f"{step.command}\n{done.stdout}"
    lost = missing(step.shown, [line for line in done.stdout.splitlines() if line.strip()])
    assert lost is None, f"{step.command}\nnot as the page shows it: {lost}\n{done.stdout}"


def test_tutorial(folder: Path) -> None:
    assert {path.name for path in folder.iterdir()} >= {"report.html", "masked.gguf", "merged.gguf"}
    assert not list(folder.glob("*.undo")) and not list(folder.glob("*.journal"))


# --- the files it leaves are what docs/file-formats.md says


def section(name: str) -> set[str]:
    """The keys that a section of the page names."""
    text = FORMATS.read_text(encoding="utf-8").split(f"{{#{name}}}\n")[1].split("\n## ")[0]
    return set(re.findall(r"`([^`\s]+)`", text))


def keys(value: Any) -> set[str]:
    """All keys of an object and of what it holds, but those of objects whose keys are names (of sets, groups ...)."""
    if isinstance(value, list):
        return set().union(*(keys(item) for item in value)) if value else set()
    if not isinstance(value, dict):
        return set()
    inner = set().union(*(keys(item) for item in value.values())) if value else set()
    return inner | {key for key in value if key not in NAMES and not re.search(r"[^\w.]|^\d", key)}


NAMES = {"regular", "jailbreak", "benign", "id", "ctrl", "keyword", "harmful"}


RESULTS = {
    "demo.experts.json": "expert-set",
    "demo.eval.json": "evaluation",
    "demo-planted.eval.json": "evaluation",
    "demo-planted.sweep.json": "sweep",
    "demo.probing.json": "probing",
}


@pytest.mark.parametrize("file", RESULTS)
def test_parts_of_results_are_listed(folder: Path, file: str) -> None:
    optional = {"clusters"}
    assert set(json.loads((folder / file).read_text())) | optional == first_column(RESULTS[file]) | optional


@pytest.mark.parametrize("file", [file for file in RESULTS if "probing" not in file])
def test_keys_of_results_are_listed(folder: Path, file: str) -> None:
    origin = section_of_origin()
    model = {*origin, *(key.removeprefix("model.") for key in origin), "layers", "n_experts", "top_k"}
    found = keys(json.loads((folder / file).read_text()))
    assert found - section(RESULTS[file]) - model - {"value", "interval"} == set()


def first_column(name: str) -> set[str]:
    """The keys in the first column of a section's first table."""
    return {key for row in first_table(name) for key in re.findall(r"`([^`]+)`", row.split("|")[1])}


def first_table(name: str) -> list[str]:
    """The rows of a section's first table."""
    lines = FORMATS.read_text(encoding="utf-8").split(f"{{#{name}}}\n")[1].splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("|---"))
    return list(itertools.takewhile(lambda line: line.startswith("|"), lines[start + 1 :]))


def section_of_origin() -> set[str]:
    text = FORMATS.read_text(encoding="utf-8").split("## What says where data come from")[1].split("\n## ")[0]
    return set(re.findall(r"`([^`\s]+)`", text))


def test_keys_of_the_profile_are_listed(folder: Path) -> None:
    reader = GGUFReader(folder / "demo.profile.gguf")
    written = {
        key.removeprefix("safex.profile.") for key in reader.fields if key.startswith("safex.profile.")
    }
    optional = {"absent", "imported", "import.notes"}
    listed = {key for key in first_column("profile") if "…" not in key}
    assert written <= listed | section_of_origin()
    assert listed - optional <= written
    tensors = {tensor.name.split(".")[-1] for tensor in reader.tensors}
    assert {name.removeprefix("PHASE.") for name in section("profile")} >= tensors


def test_keys_of_an_edited_model_are_listed(folder: Path) -> None:
    reader = GGUFReader(folder / "masked.gguf")
    table = (FORMATS.parent / "shipping.md").read_text(encoding="utf-8").split("## What the file says")[1]
    listed = set(re.findall(r"`((?:safex)?\.[\w.]+)`", table.split("\n## ")[0]))
    written = {key for key in reader.fields if key.startswith("safex.")}
    assert {
        key for key in written if key not in listed and key.removeprefix("safex.base") not in listed
    } == set()


def test_keys_of_responses_are_listed(folder: Path) -> None:
    head, first, *_ = (folder / "demo.responses.jsonl").read_text().splitlines()
    assert set(json.loads(head)) == {"safex_responses", "model", "parameters"}
    assert set(json.loads(first)) == section("responses") & set(json.loads(first))


def test_keys_of_features_are_listed(folder: Path) -> None:
    with safe_open(folder / "demo.features.safetensors", "numpy") as file:
        tensors: list[str] = file.keys()
        metadata = file.metadata()
    named = {name for name in tensors if ":" not in name}
    content = json.loads(metadata["safex"])
    assert named | set(metadata) | set(content) | set(content["prompts"]) | set(content["roster"]) <= section(
        "features"
    )


# --- how the page is compared


def test_every_block_holds_commands() -> None:
    found = steps(parts()[0])
    assert len(found) > 15
    assert all(step.shown for step in found)


@pytest.mark.parametrize(
    ("shown", "printed", "lost"),
    [
        (["a 1", "..."], ["a 1", "b"], None),
        (["...", "b  2.0%"], ["a", "b 2.1%"], None),
        (["b"], ["a", "b"], "b"),
        (["...", "b", "a"], ["a", "b"], "a"),
        (["a"], ["a", "b"], "b"),
        (["1:27 5"], ["1:26 5"], "1:27 5"),
        (["0.0 refused"], ["2.5 refused"], "0.0 refused"),
        (["95.0 refused"], ["60.0 refused"], "95.0 refused"),
    ],
)
def test_what_counts_as_shown(shown: list[str], printed: list[str], lost: str | None) -> None:
    assert missing(shown, printed) == lost
