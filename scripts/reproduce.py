"""Reproduce the paper's tables on models that are trained here, and write docs/reproduction.md.

    python scripts/reproduce.py --run DIR                              # everything; goes on where it was stopped
    python scripts/reproduce.py --run DIR --arch qwen3moe --seeds 0    # a part of it
    python scripts/reproduce.py --run DIR --docs docs                  # and the page from what is there

DIR holds models/ (trained where missing), a folder of results for each model and results.json, from which the page and
its figures are made. Needs the extra `train` (torch, transformers 5, peft) and tokenizers; two processes at a time.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from demo import sets
from reproduction import figures, page, results
from reproduction.adapters import RANK, SCALES, Repair
from reproduction.study import Prompts, Scale, Study
from reproduction.subjects import MOE, SHIPPED, TRAINABLE, TYPES, Subject, subjects, train, write

import safex
from safex.result_file import write_json

ROOT = Path(__file__).resolve().parent.parent
FACTOR = 2  # held-out prompts, times those that ship


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--run", type=Path, required=True, metavar="DIR")
    parser.add_argument(
        "--models", type=Path, metavar="DIR", help="trained models (default: models in the run)"
    )
    parser.add_argument(
        "--arch", action="append", choices=[*MOE, "dense"], help="may be repeated (default: all)"
    )
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument(
        "--merge",
        nargs="+",
        choices=TRAINABLE,
        default=TRAINABLE,
        help="models that are repaired (default: all that can)",
    )
    parser.add_argument("--docs", type=Path, metavar="DIR", help="write reproduction.md and its figures here")
    return parser.parse_args()


def say(text: str) -> None:
    """One line of progress."""
    print(f"{datetime.datetime.now():%H:%M:%S} {text}", file=sys.stderr, flush=True)


def prompts(run: Path) -> Prompts:
    """Requests as training drew them to find experts on, held-out ones to measure on."""
    folders = {"found": sets.training_sample(), "held-out": sets.held_out(sets.ROUNDS * FACTOR, FACTOR)}
    for name, files in folders.items():
        folder = run / "prompts" / name
        folder.mkdir(parents=True, exist_ok=True)
        for stem, rows in files.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{stem}.jsonl").write_text(lines, encoding="utf-8")
    return Prompts.load(run / "prompts" / "found", run / "prompts" / "held-out")


class Run:
    """A run in a folder."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Make the folder and the prompts."""
        self.folder: Path = args.run
        self.folder.mkdir(parents=True, exist_ok=True)
        self.models: Path = args.models or self.folder / "models"
        self.subjects = subjects(args.arch or [*MOE, "dense"], args.seeds)
        self.first = self.subjects[len(SHIPPED)].arch
        self.prompts = prompts(self.folder)
        self.merged: tuple[str, ...] = tuple(args.merge)
        self.scale = Scale()
        self.times = self.folder / "times.json"
        self.seconds: dict[str, float] = json.loads(self.times.read_text()) if self.times.exists() else {}

    def study(self, subject: Subject, kind: str = "q8_0") -> Study:
        """A model file's study, in its folder."""
        file = subject.file(self.models) if subject.bundled else write(subject, self.models, kind)
        folder = self.folder / (subject.name if kind == "q8_0" else f"{subject.name}-{kind}")
        folder.mkdir(exist_ok=True)
        if subject.kind == "planted":
            shutil.copy(subject.truth(self.models), folder / "truth.json")
        return Study(file, folder, self.prompts, self.scale, say)

    def timed(self, name: str, rows: list[Any], started: float) -> list[Any]:
        """The rows; their time added to that of earlier runs, which this one went on with."""
        self.seconds[name] = round(self.seconds.get(name, 0.0) + time.monotonic() - started, 1)
        write_json(self.times, self.seconds)
        return [row for row in rows if row]

    def tables(self) -> dict[str, Any]:
        """Everything, table by table."""
        started = time.monotonic()
        train(self.subjects, self.models, say)
        self.timed("training", [], started)
        parts = {
            "masking": lambda: [self._masking(one) for one in self.subjects],
            "probing": lambda: [
                row for one in self._natural() for row in results.probing(one, self.study(one))
            ],
            "merging": lambda: [
                row for one in self._natural() if one.arch in self.merged for row in self._merging(one)
            ],
            "types": lambda: [
                row for one in self._first() if one.arch == self.first for row in self._types(one)
            ],
            "redundancy": lambda: [results.redundancy(one, self.study(one)) for one in self._first()],
        }
        found = {}
        for name, make in parts.items():
            started = time.monotonic()
            found[name] = self.timed(name, make(), started)
        return found

    def _first(self) -> list[Subject]:
        """The models with experts, of the first seed, that are trained here."""
        trained = [one for one in self.subjects if not one.bundled and not one.is_dense]
        return [one for one in trained if one.seed == trained[0].seed]

    def _natural(self) -> list[Subject]:
        return [one for one in self._first() if one.kind == "natural"]

    def _masking(self, subject: Subject) -> Any:
        return results.masking(subject, self.study(subject))

    def _merging(self, subject: Subject) -> list[Any]:
        pairs = self.folder / "pairs"
        if not pairs.exists():
            sets.write_pairs(pairs)
        repair = Repair(self.study(subject), subject.checkpoint(self.models), pairs)
        repair.run()
        return results.merging(subject, repair)

    def _types(self, subject: Subject) -> list[Any]:
        studies = [(kind, self.study(subject, kind)) for kind in TYPES]
        group = "planted" if subject.kind == "planted" else "contrast ctrl"
        return results.types(subject, group, studies)


def about(run: Run) -> dict[str, Any]:
    """What the results were made with."""
    commit = subprocess.run(
        ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    counts = {name: run.prompts.held_out.sets.count(name) for name in ("regular", "jailbreak", "benign")}
    return {
        "date": datetime.date.today().isoformat(),
        "commit": commit.stdout.strip(),
        "version": safex.__version__,
        "cores": len(os.sched_getaffinity(0)),
        "held_out": counts,
        "scale": vars(run.scale),
        "rank": RANK,
        "merge_scales": {how: scale for how, (_, scale) in SCALES.items()},
        "seconds": run.seconds,
    }


def main() -> int:
    """Do what is missing, write results.json, and the page where it is asked for."""
    args = arguments()
    run = Run(args)
    tables = run.tables()
    found = {"about": about(run), **tables}
    write_json(run.folder / "results.json", found)
    if args.docs is not None:
        (args.docs / "reproduction").mkdir(parents=True, exist_ok=True)
        write_json(args.docs / "reproduction" / "results.json", found)
        figures.write(found, args.docs / "reproduction")
        (args.docs / "reproduction.md").write_text(page.made(found), encoding="utf-8")
    say(f"done: {run.folder / 'results.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
