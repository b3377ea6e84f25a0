"""The tutorial's commands, run in order from an empty folder: they succeed, and print what the page shows.

Of what a command prints the page shows lines; ``...`` stands for any number of others. Words must be the same, numbers
agree roughly: another processor rounds differently.
"""

from __future__ import annotations

import re
import shlex
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from cli_runner import PROGRAM, environment

PAGE = Path(__file__).parents[1] / "docs" / "tutorial.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
NUMBER = re.compile(r"(?<![\w:])(\d[\d,]*(?:\.\d+)?(?:e-?\d+)?)(?![\w:])")  # not of 1:27, sha256, 8f3a
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


def test_tutorial(tmp_path: Path) -> None:
    for step in steps(PAGE.read_text(encoding="utf-8")):
        name, *words = shlex.split(step.command)
        assert name == "safex-native", step.command
        done = subprocess.run(
            [*PROGRAM, *words],
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=SECONDS,
        )
        assert done.returncode == 0, f"{step.command}\n{done.stdout}"
        lost = missing(step.shown, [line for line in done.stdout.splitlines() if line.strip()])
        assert lost is None, f"{step.command}\nnot as the page shows it: {lost}\n{done.stdout}"


def test_every_block_holds_commands() -> None:
    found = steps(PAGE.read_text(encoding="utf-8"))
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
