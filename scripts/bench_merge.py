"""The part of bench.py that measures merges: an adapter for 12 experts, against `llama-export-lora` on the same file.

Both are processes of their own, in turns: time, peak memory, size of the result. llama-export-lora writes whole tensors
in F16 and takes no quantized adapter, so it gets this one in F32 with zeros for the other experts; both write to the
same disk and neither is waited for beyond what it waits for itself.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import bench_model
import gguf
import numpy as np

EXPERTS = 12
RANK = 8
KINDS = {
    "gate": (768, 2048),
    "up": (768, 2048),
    "down": (2048, 768),
}  # rows and columns in bench_ship's shape
MAX_MEMORY = 300.0  # MB above the runtime

Row = dict[str, Any]


class Cost(NamedTuple):
    """Of one run: seconds, peak resident memory in MB, size of what it wrote in GB."""

    seconds: float
    memory: float
    size: float


def adapter(path: Path, experts: Sequence[tuple[int, int]], n_experts: int) -> Path:
    """A LoRA of llama.cpp that changes these experts; small against the weights, large against quantization."""
    rng = np.random.default_rng(0)
    writer = gguf.GGUFWriter(path, bench_model.ARCH)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", float(RANK))
    for layer in sorted({layer for layer, _ in experts}):
        chosen = [expert for of, expert in experts if of == layer]
        for kind, (rows, columns) in KINDS.items():
            b = np.zeros((n_experts, rows, RANK), np.float32)
            b[chosen] = 0.01 * rng.standard_normal((len(chosen), rows, RANK))
            a = rng.standard_normal((n_experts, RANK, columns)).astype(np.float32)
            for side, matrix in (("a", a), ("b", b)):
                writer.add_tensor(f"blk.{layer}.ffn_{kind}_exps.weight.lora_{side}", matrix)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def export_lora(stock: Path) -> Path:
    """Upstream's program, built where missing. ``stock``: the unpatched build's bin folder."""
    program = stock / "llama-export-lora"
    if not program.exists():
        command = ["cmake", "--build", str(stock.parent), "--target", program.name]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return program


def run(command: Sequence[object], target: Path | None = None) -> Cost:
    """Run it and take what it wrote away again."""
    if target is not None:
        target.unlink(missing_ok=True)
    os.sync()
    started = time.perf_counter()
    process = subprocess.Popen([str(word) for word in command], stdout=subprocess.DEVNULL)
    peak = 0
    while process.poll() is None:
        peak = max(peak, resident_peak(process.pid))
        time.sleep(0.01)
    seconds = time.perf_counter() - started
    if process.returncode:
        raise SystemExit(f"bench_merge: exit {process.returncode}: {command}")
    size = target.stat().st_size / 1e9 if target else 0.0
    if target is not None:
        target.unlink()
    return Cost(seconds, peak / 1e6, size)


def resident_peak(pid: int) -> int:
    """Bytes; 0 for a process that is gone. (The rusage of a child counts what its parent had when it forked.)"""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")), 0)


def merge(model: Path, lora: Path, experts: Sequence[tuple[int, int]], target: Path) -> Cost:
    """Ours, with the interpreter's start."""
    chosen = ",".join(f"{layer}:{expert}" for layer, expert in experts)
    words = ["merge", model, lora, "--experts", chosen, "-o", target, "--min-survival", "-1", "--quiet"]
    return run([sys.executable, "-m", "safex.cli", *words], target)


def race(
    model: Path, lora: Path, experts: Sequence[tuple[int, int]], program: Path, rounds: int
) -> tuple[list[Row], list[Row]]:
    """Time as a ratio; memory and size beside each other."""
    sides: dict[str, list[Cost]] = {"ours": [], "theirs": []}
    target = model.with_suffix(".merged")
    for number in range(rounds):
        sides["ours"].append(merge(model, lora, experts, target))
        sides["theirs"].append(run([program, "-m", model, "--lora", lora, "-o", target], target))
        print(f"merge: round {number + 1} of {rounds}", file=sys.stderr)
    values = [b.seconds / a.seconds for a, b in zip(sides["ours"], sides["theirs"], strict=True)]
    size = model.stat().st_size / 1e9
    a, b = (statistics.median(cost.seconds for cost in sides[name]) for name in ("ours", "theirs"))
    ratio = {
        "title": f"merge of {EXPERTS} experts / llama-export-lora, {size:.1f} GB",
        "median": statistics.median(values),
        "low": min(values),
        "high": max(values),
        "a": 1000 * size / a,
        "b": 1000 * size / b,
        "target": 1.0,
        "ok": statistics.median(values) >= 1,
    }
    ours, theirs = sides["ours"][-1], sides["theirs"][-1]
    share = {"size of the result": ours.size / theirs.size, "peak memory": ours.memory / theirs.memory}
    rows = [
        {
            "title": f"{what}, merge / llama-export-lora",
            "value": value,
            "limit": 1.0,
            "unit": "x",
            "ok": value <= 1,
        }
        for what, value in share.items()
    ]
    return [ratio], rows


def memory(model: Path, lora: Path, experts: Sequence[tuple[int, int]]) -> Row:
    """Peak of a merge above that of a process that only loads the program."""
    idle = run([sys.executable, "-c", "import safex.merging.merging"]).memory
    grown = merge(model, lora, experts, model.with_suffix(".merged")).memory - idle
    title = f"memory of a merge into a new file of {model.stat().st_size / 1e9:.1f} GB"
    return {"title": title, "value": grown, "limit": MAX_MEMORY, "unit": "MB", "ok": grown <= MAX_MEMORY}
