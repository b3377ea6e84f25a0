"""The part of bench.py that measures `dump`: twelve experts' outputs beside the profile of the same prompts, in turns
in one process (bench_workers.py)."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from bench_eval import ratio

TOKENS = (20, 120)  # of a prompt, least and most
TARGET = 1 / 1.15

Row = dict[str, Any]
Ask = Callable[[str], dict[str, Any]]


def overhead(ours: Ask, prompts: int, rounds: int) -> list[Row]:
    """Tokens a second of a dump into a file over those of a profile into a file."""
    rates: dict[str, list[float]] = {"file": [], "natural": [], "forced": []}
    for number in range(rounds):
        for mode, found in rates.items():
            answer = ours(f"{mode} {prompts} {TOKENS[0]} {TOKENS[1]} {number}")
            found.append(answer["tokens"] / answer["wall"])
        print(f"dump: round {number + 1} of {rounds}", file=sys.stderr)
    title = "dump of 12 experts, {} / profile"
    return [
        ratio(title.format("natural"), rates["natural"], rates["file"], TARGET),
        ratio(title.format("forced"), rates["forced"], rates["file"]),
    ]
