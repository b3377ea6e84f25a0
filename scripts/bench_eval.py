"""The part of bench.py that measures evaluation: many answers at once under masks, and `sweep`.

Every side runs in a process of its own with its model loaded once (bench_workers.py), and they take turns. The other
sides are llama-cpp-python on unpatched llama.cpp, one answer after another; unpatched llama-batched-bench; and, for
`sweep`, the same core asked for one mask and prompt at a time.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

PROMPTS, MASKS, NEW = 128, 3, 64
PROMPT_TOKENS = 32
SEQUENCES = (1, 16, 64)
WORKERS = Path(__file__).resolve().parent / "bench_workers.py"

Row = dict[str, Any]
Ask = Callable[[str], dict[str, Any]]


class Sizes(NamedTuple):
    """How much of each side is run in a round; rates do not depend on it."""

    prompts: int = PROMPTS  # times MASKS answers, all together
    one_by_one: int = 24  # answers
    pairs: int = 400  # masked prompts of the naive sweep
    rounds: int = 3


def worker(kind: str, *arguments: object) -> list[str]:
    """The command of a process in bench_workers.py."""
    return [sys.executable, str(WORKERS), kind, *map(str, arguments)]


def ratio(title: str, ours: list[float], theirs: list[float], target: float | None = None) -> Row:
    """A line of the report: both sides' rates by round."""
    values = [a / b for a, b in zip(ours, theirs, strict=True)]
    median = statistics.median(values)
    row = {"title": title, "median": median, "low": min(values), "high": max(values), "target": target}
    rates = {"a": statistics.median(ours), "b": statistics.median(theirs)}
    return {**row, **rates, "ok": target is None or median >= target}


def answers(name: str, ours: Ask, one: Ask, sizes: Sizes, target: float | None) -> Row:
    """Answers a second of all prompts under all masks together, against one after another."""
    rates: list[tuple[float, float]] = []
    for number in range(sizes.rounds):
        alone = one(f"answers {sizes.one_by_one} {NEW} {number}")
        together = ours(f"answers {sizes.prompts} {MASKS} {NEW} {number}")
        rates.append((together["n"] / together["wall"], alone["n"] / alone["wall"]))
        print(f"answers on {name}: round {number + 1} of {sizes.rounds}", file=sys.stderr)
    title = f"{sizes.prompts} prompts x {MASKS} masks x {NEW} tokens / llama-cpp-python, one by one ({name})"
    return ratio(title, *map(list, zip(*rates, strict=True)), target)


def decoding(batched_bench: Path, model: Path, ours: Ask, threads: int, rounds: int) -> list[Row]:
    """Generated tokens a second with routes logged and a mask for each sequence, against unpatched llama.cpp."""
    rows = []
    for n in SEQUENCES:
        pairs = []
        for number in range(rounds):
            theirs = stock_rate(batched_bench, model, n, threads)
            mine = ours(f"decode {n} {PROMPT_TOKENS} {NEW} {number}")
            pairs.append((mine["tokens"] / mine["wall"], theirs))
            print(f"decoding {n} sequences: round {number + 1} of {rounds}", file=sys.stderr)
        title = f"decode with log and masks / llama-batched-bench, {n} sequence{'s' * (n > 1)}"
        rows.append(ratio(title, *map(list, zip(*pairs, strict=True)), 0.95))
    return rows


def stock_rate(batched_bench: Path, model: Path, n: int, threads: int) -> float:
    """Generated tokens a second of llama-batched-bench, its own default flags but for sizes and threads."""
    command = [str(batched_bench), "-m", str(model), "-c", str(n * (PROMPT_TOKENS + NEW)), "-b", "512"]
    command += [
        "-ub",
        "512",
        "-npp",
        str(PROMPT_TOKENS),
        "-ntg",
        str(NEW),
        "-npl",
        str(n),
        "-t",
        str(threads),
    ]
    done = subprocess.run([*command, "--output-format", "jsonl"], capture_output=True, text=True, check=False)
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    if done.returncode or not lines:
        sys.exit(f"bench.py: llama-batched-bench failed: {done.stderr.strip().splitlines()[-1:]}")
    return float(json.loads(lines[-1])["speed_tg"])


def sweeping(ours: Ask, sizes: Sizes) -> list[Row]:
    """Masked prompts a second: `sweep` of every expert of the demo, against one prompt under one mask at a time."""
    pairs = []
    for number in range(sizes.rounds):
        naive = ours(f"naive_sweep {sizes.pairs} {number}")
        swept = ours(f"sweep {number}")
        pairs.append((swept["n"] / swept["wall"], naive["n"] / naive["wall"]))
        print(f"sweep: round {number + 1} of {sizes.rounds}", file=sys.stderr)
    title = "sweep of all experts of the demo / one mask and prompt at a time"
    return [ratio(title, *map(list, zip(*pairs, strict=True)))]
