"""Reproduce the paper's tables on models that are trained here: print them, and write docs/reproduction.md.

    python scripts/reproduce.py --run DIR                              # everything; goes on where it was stopped
    python scripts/reproduce.py --run DIR --seeds 0 1                  # and more models
    python scripts/reproduce.py --run DIR --arch qwen3moe              # a part of it
    python scripts/reproduce.py --run DIR --docs docs                  # and the page from what is there

DIR holds models/ (trained where missing), a folder of results for each model and results.json, from which the page and
its figures are made. Needs the extra `train` (torch, transformers 5, peft). As many models are worked on at a time as
there are cores (`taskset` chooses them). One seed took 50 minutes on 2 cores.
"""

from __future__ import annotations

import argparse
import datetime
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from demo import sets
from reproduction import figures, page, results
from reproduction.adapters import RANK, SCALES, Repair
from reproduction.study import Prompts, Scale, Study
from reproduction.subjects import MOE, SHIPPED, TRAINABLE, TYPES, Subject, make, subjects, write

import safex
from safex.result_file import write_json

ROOT = Path(__file__).resolve().parent.parent
FACTOR = 2  # held-out prompts, times those that ship

Tables = dict[str, list[Any]]  # rows of each table


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
    parser.add_argument("--seeds", type=int, nargs="+", default=[0], help="of the models (default: 0)")
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


def write_texts(run: Path) -> None:
    """Prompts as training drew them to find experts on, held-out ones to measure on, and pairs for repair."""
    folders = {"found": sets.training_sample(), "held-out": sets.held_out(sets.ROUNDS * FACTOR, FACTOR)}
    for name, files in folders.items():
        folder = run / "prompts" / name
        folder.mkdir(parents=True, exist_ok=True)
        for stem, rows in files.items():
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
            (folder / f"{stem}.jsonl").write_text(lines, encoding="utf-8")
    sets.write_pairs(run / "pairs")


class Run:
    """A run in a folder, whose texts are written."""

    def __init__(self, args: argparse.Namespace) -> None:
        """Nothing is measured yet."""
        self.folder: Path = args.run
        self.models: Path = args.models or self.folder / "models"
        self.subjects = subjects(args.arch or [*MOE, "dense"], args.seeds)
        self.prompts = Prompts.load(self.folder / "prompts" / "found", self.folder / "prompts" / "held-out")
        self.merged: tuple[str, ...] = tuple(args.merge)
        self.scale = Scale()

    def study(self, subject: Subject, kind: str = "q8_0") -> Study:
        """A model file's study, in its folder."""
        file = subject.file(self.models) if subject.bundled else write(subject, self.models, kind)
        folder = self.folder / (subject.name if kind == "q8_0" else f"{subject.name}-{kind}")
        folder.mkdir(exist_ok=True)
        if subject.kind == "planted":
            shutil.copy(subject.truth(self.models), folder / "truth.json")
        return Study(file, folder, self.prompts, self.scale, say)

    def tables(self, family: list[Subject]) -> Tables:
        """Train what is missing and do everything with it: rows for each table. Adds to the family's times."""
        measured = [
            one for one in family if not one.bundled and not one.is_dense and one.seed == self._first.seed
        ]
        natural = [one for one in measured if one.kind == "natural"]
        parts: dict[str, Callable[[], list[Any]]] = {
            "training": lambda: [make(one, self.models, say) for one in family if not one.bundled],
            "masking": lambda: [results.masking(one, self.study(one)) for one in family],
            "probing": lambda: [row for one in natural for row in results.probing(one, self.study(one))],
            "merging": lambda: [
                row for one in natural if one.arch in self.merged for row in self._merging(one)
            ],
            "types": lambda: [
                row for one in measured if one.arch == self._first.arch for row in self._types(one)
            ],
            "redundancy": lambda: [results.redundancy(one, self.study(one)) for one in measured],
        }
        times = self.folder / "times" / f"{family[0].name}.json"
        times.parent.mkdir(exist_ok=True)
        seconds: dict[str, float] = json.loads(times.read_text()) if times.exists() else {}
        found: Tables = {}
        for name, rows in parts.items():
            started = time.monotonic()
            found[name] = [row for row in rows() if row]
            seconds[name] = round(seconds.get(name, 0.0) + time.monotonic() - started, 1)
            write_json(times, seconds)
        return found

    @property
    def _first(self) -> Subject:
        return self.subjects[len(SHIPPED)]

    def _merging(self, subject: Subject) -> list[Any]:
        repair = Repair(self.study(subject), subject.checkpoint(self.models), self.folder / "pairs")
        repair.run()
        return results.merging(subject, repair)

    def _types(self, subject: Subject) -> list[Any]:
        studies = [(kind, self.study(subject, kind)) for kind in TYPES]
        group = "planted" if subject.kind == "planted" else "contrast ctrl"
        return results.types(subject, group, studies)


# --- families side by side, a core each


def available_cores() -> list[int]:
    """Numbers of the cores that this process may use."""
    return sorted(os.sched_getaffinity(0))


worker: Run  # of a process of the pool


def begin(args: argparse.Namespace, cores: Any) -> None:
    """Make this process a worker on a core of its own."""
    global worker
    os.sched_setaffinity(0, {cores.get()})
    worker = Run(args)


def work(family: list[Subject]) -> Tables:
    """A family's rows, in a worker."""
    return worker.tables(family)


def everything(args: argparse.Namespace, run: Run) -> Tables:
    """All families' rows, table by table, in the order of the subjects."""
    families: dict[object, list[Subject]] = {}  # models of one stage 1: one after the other
    for subject in run.subjects:
        families.setdefault(subject.bundled or (subject.arch, subject.seed), []).append(subject)
    slowest_first = sorted(families.values(), key=lambda family: bool(family[0].bundled))
    context = multiprocessing.get_context("spawn")
    cores = context.Queue()
    for core in available_cores():
        cores.put(core)
    with ProcessPoolExecutor(len(available_cores()), context, begin, (args, cores)) as pool:
        done = [pool.submit(work, family) for family in slowest_first]
        try:
            tables = [one.result() for one in done]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    order = {subject.name: number for number, subject in enumerate(run.subjects)}
    return {
        name: sorted((row for one in tables for row in one[name]), key=lambda row: order[row["model"]])
        for name in tables[0]
        if name != "training"
    }


def commit() -> str:
    """Of this checkout, short."""
    words = ["git", "-C", str(ROOT), "rev-parse", "--short", "HEAD"]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout.strip()


def about(run: Run) -> dict[str, Any]:
    """What the results were made with; ``seconds``: of each part, all families and earlier runs together."""
    seconds: Counter[str] = Counter()
    for path in sorted((run.folder / "times").glob("*.json")):
        seconds.update(json.loads(path.read_text()))
    counts = {name: run.prompts.held_out.sets.count(name) for name in ("regular", "jailbreak", "benign")}
    return {
        "date": datetime.date.today().isoformat(),
        "version": safex.__version__,
        "cores": len(available_cores()),
        "held_out": counts,
        "scale": vars(run.scale),
        "rank": RANK,
        "merge_scales": {how: scale for how, (_, scale) in SCALES.items()},
        "seconds": {name: round(value, 1) for name, value in seconds.items()},
    }


def main() -> int:
    """Do what is missing, write results.json, and the page where it is asked for."""
    args = arguments()
    made_by = commit()
    write_texts(args.run)
    run = Run(args)
    tables = everything(args, run)
    found = {"about": {**about(run), "commit": made_by}, **tables}
    write_json(run.folder / "results.json", found)
    text = page.made(found)
    print(text)
    if args.docs is not None:
        (args.docs / "reproduction").mkdir(parents=True, exist_ok=True)
        write_json(args.docs / "reproduction" / "results.json", found)
        figures.write(found, args.docs / "reproduction")
        (args.docs / "reproduction.md").write_text(text, encoding="utf-8")
    say(f"done: {run.folder / 'results.json'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
