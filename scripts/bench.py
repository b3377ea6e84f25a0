#!/usr/bin/env python3
"""Measure profiling and evaluation against unpatched llama.cpp, and `identify` against NumPy, side by side.

    python scripts/bench.py [--json FILE] [--hf-python PYTHON]    # the whole measurement; 25 minutes on 2 cores
    python scripts/bench.py --part identify                       # or profile, eval, decode, dump, ship
    python scripts/bench.py --quick                               # a look: fewer prompts; 6 minutes
    python scripts/bench.py --markdown FILE                       # rows for docs/performance.md from the JSON

Every number is a ratio of rates taken in turns, round by round: median and range over the rounds. Exit 1 where a
target is missed. What is measured, and how: docs/performance.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import hashlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

import bench_dump
import bench_eval
import bench_identify
import bench_ship

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
UPSTREAM = ROOT / "native" / "upstream" / "upstream.py"
TOKENS = 512
SHORT = (20, 120)
MB = 1e6

Rates = dict[str, list[float]]
Report = dict[str, Any]


class Ratio(NamedTuple):
    """One line of the table: rate of ``a`` over rate of ``b``; a target is the least that passes."""

    title: str
    a: str
    b: str
    target: float | None = None


RATIOS = (
    Ratio("profile / llama-bench pp512", "profile", "llama_bench", 0.92),
    Ratio("profile into a file / llama-bench pp512", "file", "llama_bench", 0.92),
    Ratio("profile / stock, logits of every token", "profile", "all", 1.08),
    Ratio("profile / stock, eval callback", "profile", "trace"),
    Ratio("stock, eval callback / llama-bench pp512", "trace", "llama_bench"),
    Ratio("profile of 20 to 120 tokens / of 512", "short", "profile", 0.92),
    Ratio("profile / transformers F32, hooks", "profile", "hf_float32"),
    Ratio("profile / transformers BF16, hooks", "profile", "hf_bfloat16"),
)
PARTS = ("profile", "identify", "eval", "decode", "dump", "ship")
MAX_ABOVE_WEIGHTS = 300 * MB
MAX_GROWTH = 16 * MB  # 3 KB a prompt: ids and hashes of the texts, which the file needs
MAX_DUMP_GROWTH = 32 * MB  # 7 KB a prompt: the texts themselves too, and two numbers for each expert


def fail(message: str) -> NoReturn:
    sys.exit(f"bench.py: {message}")


# --- the other side: unpatched llama.cpp


class Stock(NamedTuple):
    """Unpatched llama.cpp: the folder of its libraries and benchmarks, and our program on its libraries."""

    folder: Path
    program: Path


def upstream(*arguments: str) -> Path:
    done = subprocess.run(
        [sys.executable, str(UPSTREAM), *arguments], stdout=subprocess.PIPE, text=True, check=False
    )
    if done.returncode:
        fail(f"upstream.py {' '.join(arguments)} failed, see above")
    return Path(done.stdout.strip().splitlines()[-1])


def build_stock(options: list[str]) -> Stock:
    """Unpatched llama.cpp and bench_stock.cpp, built where missing."""
    build, source = upstream("stock", *options), upstream("source", "--stock")
    libraries, code = build / "bin", HERE / "bench_stock.cpp"
    program = libraries / f"safex-bench-{hashlib.sha256(code.read_bytes()).hexdigest()[:12]}"
    if not program.exists():
        flags = ["-std=c++17", "-O2", f"-I{source / 'include'}", f"-I{source / 'ggml' / 'include'}"]
        link = [f"-L{libraries}", "-lllama", "-lggml", "-lggml-base", f"-Wl,-rpath,{libraries}"]
        part = program.with_suffix(".part")
        subprocess.run([os.environ.get("CXX", "c++"), *flags, str(code), "-o", str(part), *link], check=True)
        part.replace(program)
    return Stock(libraries, program)


def llama_bench(stock: Stock, model: Path, threads: int, gpu: bool, repeats: int) -> float:
    """Tokens a second of llama-bench's pp512, default flags: one prompt after another, one output each."""
    command = [
        str(stock.folder / "llama-bench"),
        "-m",
        str(model),
        "-p",
        str(TOKENS),
        "-n",
        "0",
        "-r",
        str(repeats),
    ]
    command += ["-t", str(threads), "-ngl", "99" if gpu else "0", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        fail(f"llama-bench failed: {done.stderr.strip().splitlines()[-1:]}")
    samples = json.loads(done.stdout)[0]["samples_ns"]
    return TOKENS * len(samples) / (sum(samples) / 1e9)


# --- workers


class Worker:
    """A process with a loaded model that answers commands; see bench_workers.py and bench_stock.cpp."""

    def __init__(self, command: list[str]) -> None:
        self.command = command
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def ask(self, command: str) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            fail(f"{' '.join(self.command)} ended without an answer to {command!r}, see above")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def close(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


@dataclasses.dataclass
class Plan:
    """What to run: the models, the amounts, and on what."""

    model: Path
    narrow: Path
    shape: dict[str, int]
    threads: int
    rounds: int
    prompts: int
    short_prompts: int
    memory_prompts: tuple[int, ...]
    gpu: bool
    clock: str
    hf_python: str | None


class Bench:
    """All processes of a run, and the rates they reach."""

    def __init__(self, plan: Plan, stock: Stock) -> None:
        self.plan, self.stock = plan, stock
        self.rates: Rates = {}
        self.facts: dict[str, Any] = {}
        n_gpu_layers = "-1" if plan.gpu else "0"
        model, threads = str(plan.model), str(plan.threads)
        self.ours = Worker(worker("ours", model, threads, n_gpu_layers))
        self.other = Worker([str(stock.program), model, threads, n_gpu_layers])
        self.hf: dict[str, Worker] = {}
        for dtype in ("float32", "bfloat16") if plan.hf_python else ():
            arguments = worker("hf", dtype, threads, json.dumps(plan.shape))
            self.hf[dtype] = Worker([plan.hf_python or "", *arguments[1:]])

    def close(self) -> None:
        for process in (self.ours, self.other, *self.hf.values()):
            process.close()

    def add(self, name: str, answer: dict[str, Any]) -> None:
        self.rates.setdefault(name, []).append(answer["tokens"] / answer[self.plan.clock])

    def long(self, mode: str, seed: int) -> dict[str, Any]:
        return self.ours.ask(f"{mode} {self.plan.prompts} {TOKENS} {TOKENS} {seed}")

    def steps(self, seed: int) -> Iterator[str]:
        """One round, a step at a time; the name of each step as it is done."""
        plan = self.plan
        first = self.long("profile", 10 * seed)
        if plan.clock == "wall":
            rate = llama_bench(self.stock, plan.model, plan.threads, plan.gpu, plan.prompts)
            self.rates.setdefault("llama_bench", []).append(rate)
            yield "llama-bench"
        for mode in ("one", "all", "trace"):
            answer = self.other.ask(f"{mode} {plan.prompts} {TOKENS}")
            self.add(mode, answer)
            self.facts[mode] = answer
            yield f"stock {mode}"
        self.add("file", self.long("file", 10 * seed + 1))
        yield "profile into a file"
        for dtype, process in self.hf.items():
            answer = process.ask(f"hf {plan.prompts} {TOKENS} {TOKENS} {seed}")
            self.add(f"hf_{dtype}", answer)
            self.facts["transformers"] = answer["transformers"]
            yield f"transformers {dtype}"
        second = self.long("profile", 10 * seed + 2)
        short = f"profile {plan.short_prompts} {SHORT[0]} {SHORT[1]} {10 * seed + 3}"
        self.add("short", self.ours.ask(short))
        third = self.long("profile", 10 * seed + 4)
        self.add("profile", total(first, second, third))
        yield "short prompts"

    def run(self) -> None:
        for number in range(self.plan.rounds):
            for done in self.steps(number):
                print(f"round {number + 1} of {self.plan.rounds}: {done}", file=sys.stderr)
        if self.plan.clock == "cpu":
            self.rates["llama_bench"] = self.rates["one"]


def worker(*arguments: str) -> list[str]:
    return [sys.executable, str(HERE / "bench_workers.py"), *arguments]


def total(*answers: dict[str, Any]) -> dict[str, Any]:
    return {key: sum(answer[key] for answer in answers) for key in ("tokens", "wall", "cpu")}


# --- results


def ratio_rows(rates: Rates, gpu: bool) -> list[Report]:
    """Each ratio's median and range over the rounds. The targets are for CPUs; on a GPU splits are what must hold."""
    rows = []
    for title, a, b, target in RATIOS:
        if a not in rates or b not in rates:
            continue
        values = [x / y for x, y in zip(rates[a], rates[b], strict=True)]
        wanted = None if gpu else target
        median = statistics.median(values)
        row = {"title": title, "median": median, "low": min(values), "high": max(values), "target": wanted}
        row |= {"a": statistics.median(rates[a]), "b": statistics.median(rates[b])}
        rows.append({**row, "ok": wanted is None or median >= wanted})
    return rows


def check(title: str, value: float, limit: float | None, unit: str) -> Report:
    """A figure that must not be larger than its limit, where it has one."""
    ok = limit is None or value <= limit
    return {"title": title, "value": value, "limit": limit, "unit": unit, "ok": ok}


def memory_run(plan: Plan, model: Path, n_prompts: int, what: str = "profile") -> dict[str, int]:
    """What a fresh process says of its memory."""
    command = worker("memory", str(model), str(plan.threads), str(n_prompts), what)
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        fail("the memory run failed, see above")
    print(f"memory, {what}: {n_prompts} prompts on {model.name}", file=sys.stderr)
    answer: dict[str, int] = json.loads(done.stdout)
    return answer


def memory_checks(plan: Plan, stock_peak: int) -> list[Report]:
    """Peak memory above the weights on the full model; whether more prompts need more, on the narrow one."""
    few = plan.memory_prompts[0]
    full = memory_run(plan, plan.model, few)
    above, stock = ((peak - full["weights"]) / MB for peak in (full["peak"], stock_peak))
    return [
        check(f"peak memory above the weights, {few} prompts", above, MAX_ABOVE_WEIGHTS / MB, "MB"),
        check("the same of stock, logits of every token", stock, None, "MB"),
        *growth_checks(plan, "profile", "profiling"),
    ]


def growth_checks(plan: Plan, what: str, doing: str, most: float = MAX_GROWTH) -> list[Report]:
    """Whether more prompts need more memory, on the narrow model."""
    few, many = plan.memory_prompts
    grown = {n: memory_run(plan, plan.narrow, n, what) for n in plan.memory_prompts}
    growth = [(grown[n]["peak"] - grown[n]["before"]) / MB for n in (few, many)]
    return [
        check(f"growth while {doing} {few} prompts", growth[0], None, "MB"),
        check(f"growth while {doing} {many} prompts", growth[1], growth[0] + most / MB, "MB"),
    ]


def split_checks(ours: dict[str, Any], stock: int) -> list[Report]:
    """The tap must neither cut the graph nor leave the device."""
    return [
        check("graph splits with the tap; limit: without", ours["tapped"], ours["plain"], "splits"),
        check("graph splits with the tap; limit: stock", ours["tapped"], stock, "splits"),
    ]


def measure(plan: Plan, parts: Sequence[str], stock_options: list[str]) -> Report:
    """The whole run as one JSON-ready report."""
    started, load = datetime.datetime.now(datetime.timezone.utc), os.getloadavg()[0]
    report: Report = {
        "commit": commit(),
        "date": started.date().isoformat(),
        "machine": machine(plan),
        "load_before": round(load, 2),
        "settings": {**dataclasses.asdict(plan), "model": plan.model.name, "narrow": plan.narrow.name},
        "ratios": [],
        "checks": [],
    }
    if "profile" in parts:
        measure_profile(plan, build_stock(stock_options), report)
    if "eval" in parts:
        report["ratios"] += measure_eval(plan, build_stock(stock_options))
    if "decode" in parts:
        report["ratios"] += measure_decode(plan, build_stock(stock_options))
    if "dump" in parts:
        measure_dump(plan, report)
    if "identify" in parts:
        ratios, checks = bench_identify.measure(plan.threads, 2 * plan.rounds + 1)
        report["ratios"] += ratios
        report["checks"] += checks
    if "ship" in parts:
        ratios, checks = bench_ship.measure(plan.rounds, build_stock(stock_options).folder)
        report["ratios"] += ratios
        report["checks"] += checks
    return report


def measure_profile(plan: Plan, stock: Stock, report: Report) -> None:
    """Rates, ratios and memory of profiling, into the report."""
    bench = Bench(plan, stock)
    try:
        bench.run()
        checks = split_checks(bench.ours.ask("splits"), bench.facts["one"]["splits"])
    finally:
        bench.close()
    if not plan.gpu:
        checks += memory_checks(plan, bench.facts["all"]["peak"])
    report["transformers"] = bench.facts.get("transformers")
    report["rates"] = {name: [round(rate, 2) for rate in rates] for name, rates in bench.rates.items()}
    report["ratios"] += ratio_rows(bench.rates, plan.gpu)
    report["checks"] += checks


def measure_dump(plan: Plan, report: Report) -> None:
    """Overhead of dumps over profiles, and their memory, into the report."""
    ours = Worker(worker("ours", str(plan.model), str(plan.threads), "-1" if plan.gpu else "0"))
    try:
        report["ratios"] += bench_dump.overhead(ours.ask, 10 * plan.prompts, plan.rounds)
    finally:
        ours.close()
    if not plan.gpu:
        for routing in ("natural", "forced"):
            report["checks"] += growth_checks(plan, routing, f"dumping ({routing})", MAX_DUMP_GROWTH)


def measure_eval(plan: Plan, stock: Stock) -> list[Report]:
    """Answers on the bench model and on the demo, sweep on the demo."""
    from safex.model_file import resolve

    quick = plan.prompts <= 2
    sizes = {
        "demo": bench_eval.Sizes(rounds=plan.rounds),
        "bench model": bench_eval.Sizes(
            prompts=8 if quick else 32, one_by_one=4 if quick else 12, rounds=plan.rounds
        ),
    }
    models = {"demo": resolve("demo"), "bench model": plan.model}
    rows = []
    for name, model in models.items():
        sides = [
            Worker(bench_eval.worker("masked", model, plan.threads)),
            Worker(bench_eval.worker("one", model, plan.threads, stock.folder)),
        ]
        try:
            rows.append(bench_eval.answers(name, sides[0].ask, sides[1].ask, sizes[name], 3.0))
            if name == "demo":
                rows += bench_eval.sweeping(sides[0].ask, sizes[name])
        finally:
            for side in sides:
                side.close()
    return rows


def measure_decode(plan: Plan, stock: Stock) -> list[Report]:
    """Generated tokens a second on the bench model."""
    ours = Worker(bench_eval.worker("masked", plan.model, plan.threads))
    try:
        batched = stock.folder / "llama-batched-bench"
        return bench_eval.decoding(batched, plan.model, ours.ask, plan.threads, plan.rounds)
    finally:
        ours.close()


def commit() -> str:
    """Short commit, "+" where files differ from it; SAFEX_COMMIT where there is no repository."""
    if given := os.environ.get("SAFEX_COMMIT"):
        return given
    try:
        git = ["git", "-C", str(ROOT)]
        head = subprocess.run(
            [*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True
        )
        changed = subprocess.run(
            [*git, "status", "--porcelain", "-uno"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return head.stdout.strip() + ("+" if changed.stdout.strip() else "")


def machine(plan: Plan) -> str:
    """Processor or GPU, cores and threads."""
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    for line in info.read_text().splitlines() if info.exists() else ():
        if line.startswith("model name"):
            name = line.partition(":")[2].strip()
            break
    text = f"{name}, {os.cpu_count()} cores, {plan.threads} threads"
    if not plan.gpu:
        return text
    query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return (
        subprocess.run(query, capture_output=True, text=True, check=True).stdout.splitlines()[0] + ", " + text
    )


# --- output


def conditions(report: Report) -> str:
    """What a reader must know beside a number."""
    notes = []
    if report["load_before"] > 0.5:
        notes.append(f"machine shared with other work (load {report['load_before']:g})")
    if report["settings"]["clock"] == "cpu":
        notes.append("CPU time; bench_stock's loop for llama-bench's")
    return "; ".join(notes)


def verdict(row: Report) -> str:
    wanted = row.get("target", row.get("limit"))
    return "" if wanted is None else "pass" if row["ok"] else "FAIL"


def bound(row: Report) -> str:
    if row.get("target") is not None:
        return f"≥ {row['target']:g}"
    return f"≤ {row['limit']:.3g} {row['unit']}" if row.get("limit") is not None else ""


def figures(row: Report) -> tuple[str, str, str]:
    """Value, range, and the two rates behind a ratio."""
    if "median" not in row:
        return f"{row['value']:.3g} {row['unit']}", "", ""
    spread = f"{row['low']:.3f} to {row['high']:.3f}"
    return f"{row['median']:.3f}", spread, f"{row['a']:.0f} / {row['b']:.0f}"


def print_table(report: Report) -> None:
    from rich.console import Console
    from rich.table import Table

    title = f"{report['machine']}\ncommit {report['commit']}, {report['date']}"
    table = Table(title=title, caption=conditions(report) or None)
    for name in ("what", "median", "range", "per second", "target", ""):
        table.add_column(name, justify="left" if name == "what" else "right")
    for row in (*report["ratios"], *report["checks"]):
        table.add_row(row["title"], *figures(row), bound(row), verdict(row))
    Console(width=max(140, shutil.get_terminal_size().columns)).print(table)


def markdown(report: Report) -> str:
    """Rows of the tables in docs/performance.md."""
    place = f"{report['machine']}; {report['commit']}, {report['date']}"
    if notes := conditions(report):
        place += f"; {notes}"
    lines = [
        f"| {row['title']} | {' | '.join(figures(row))} | {bound(row)} | {verdict(row)} | {place} |"
        for row in (*report["ratios"], *report["checks"])
    ]
    return "\n".join(lines)


def missed(report: Report) -> list[str]:
    return [row["title"] for row in (*report["ratios"], *report["checks"]) if not row["ok"]]


# --- command line


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter steps")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="what to measure (default: everything)"
    )
    parser.add_argument("--gpu", action="store_true", help="everything offloaded; no memory measurement")
    parser.add_argument(
        "--stock-option", action="append", default=[], metavar="-DNAME=VALUE", help="for upstream"
    )
    parser.add_argument("--hf-python", metavar="PYTHON", help="interpreter with torch and transformers")
    clock_help = "cpu: CPU seconds of all threads, for a busy machine; with --threads 1 nothing spins in them"
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help=clock_help)
    parser.add_argument("--checks", type=Path, metavar="FILE", help="rows of gpu_check.py to show too")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="print rows from a report and stop")
    return parser.parse_args(arguments)


def make_plan(options: argparse.Namespace) -> Plan:
    from bench_model import SHAPES, cached

    models = (
        [cached(SHAPES[name]) for name in ("full", "narrow")]
        if {"profile", "eval", "decode", "dump"} & set(options.part)
        else [Path()] * 2
    )
    return Plan(
        model=models[0],
        narrow=models[1],
        shape=dataclasses.asdict(SHAPES["full"]),
        threads=options.threads,
        rounds=options.rounds,
        prompts=64 if options.gpu else 2 if options.quick else 4,
        short_prompts=60 if options.quick else 500,
        memory_prompts=(50, 500) if options.quick else (500, 5000),
        gpu=options.gpu,
        clock=options.clock,
        hf_python=options.hf_python,
    )


def main(arguments: list[str] | None = None) -> int:
    options = parse(arguments)
    if options.markdown:
        print(markdown(json.loads(options.markdown.read_text())))
        return 0
    options.part = options.part or PARTS
    report = measure(make_plan(options), options.part, options.stock_option)
    if options.checks:
        report["checks"] += json.loads(options.checks.read_text())
    if options.json:
        options.json.write_text(json.dumps(report, indent=1) + "\n")
    print_table(report)
    for title in missed(report):
        print(f"missed: {title}", file=sys.stderr)
    return 1 if missed(report) else 0


if __name__ == "__main__":
    raise SystemExit(main())
