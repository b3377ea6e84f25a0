"""The part of bench.py that measures edits of model files: a mask in place at three sizes, into a new file, and merges.

The other side of a new file is `cp` of the same file, waited for on the disk as ours is, in turns; both targets are
removed each time. The models have the shape of Qwen3-30B-A3B with fewer layers.
"""

from __future__ import annotations

import dataclasses
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_merge
import bench_model
import gguf
import numpy as np

EXPERTS = 12
LAYERS = (3, 7, 15)  # 1.1, 2.5 and 5.2 GB
SHAPE = bench_model.Shape(
    experts=128, width=2048, expert_width=768, heads=32, kv_heads=4, head_dim=128, vocabulary=151_936
)
QUANT = "q4_k"
MAX_SECONDS = 0.2
MAX_OF_CP = 1.1
MAX_GROWTH = 1.5  # of the time in place, from the smallest file to the largest

Row = dict[str, Any]


def model(layers: int) -> Path:
    """The model of that many layers, from the cache."""
    path = bench_model.cache_dir() / f"edit-{layers}.gguf"
    return path if path.exists() else write(path, dataclasses.replace(SHAPE, layers=layers))


def write(path: Path, shape: bench_model.Shape) -> Path:
    """As bench_model.write, but with the same few blocks of noise over and over: what is copied need not compute."""
    part = path.with_suffix(".part")
    writer = gguf.GGUFWriter(part, bench_model.ARCH)
    bench_model.add_metadata(writer, shape, QUANT)
    bench_model.add_tokenizer(writer, shape.vocabulary)
    bench_model.add_tensor_infos(writer, shape, QUANT)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    noise = bench_model.LEVELS[np.random.default_rng(0).integers(0, 256, (1 << 14, 256))]
    for tensor in bench_model.tensors(shape):
        quant = bench_model.quant_of(tensor, QUANT)
        block, size = gguf.GGML_QUANT_SIZES[quant.kind]
        packed = quant.pack(noise, tensor.deviation or 1.0).reshape(-1).view(np.uint8)
        writer.write_tensor_data(np.resize(packed, int(np.prod(tensor.shape)) // block * size))
    writer.close()
    part.replace(path)
    return path


def experts(layers: int) -> list[tuple[int, int]]:
    """Twelve experts, spread over the layers."""
    return [(i % layers, (37 * i) % SHAPE.experts) for i in range(EXPERTS)]


def seconds(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started


def drain() -> None:
    """Wait until nothing is left to be written, so that one side doesn't pay for the other."""
    os.sync()


def in_place(layers: int, rounds: int) -> Row:
    """Seconds of an edit in place, and of taking it back."""
    import safex

    path, chosen = model(layers), experts(layers)
    times = []
    for _ in range(rounds):
        drain()
        times.append(seconds(lambda: safex.write_mask(path, None, chosen)))
        safex.restore(path)
    title = f"mask of {EXPERTS} experts in place, {path.stat().st_size / 1e9:.1f} GB"
    value = statistics.median(times)
    return {"title": title, "value": value, "limit": MAX_SECONDS, "unit": "s", "ok": value <= MAX_SECONDS}


def copied(source: Path, target: Path) -> None:
    subprocess.run(["cp", str(source), str(target)], check=True)
    subprocess.run(["sync", str(target)], check=True)


def new_file(layers: int, rounds: int) -> list[Row]:
    """Speed of a new file over that of `cp`: at least one over 1.1."""
    import safex

    path, chosen = model(layers), experts(layers)
    ours_at, theirs_at = path.with_suffix(".masked"), path.with_suffix(".copy")
    times: dict[str, list[float]] = {"ours": [], "cp": [], "bare": []}
    size = path.stat().st_size / 1e9
    for number in range(rounds):
        sides: dict[str, tuple[Path, Callable[[], object]]] = {
            "cp": (theirs_at, lambda: copied(path, theirs_at)),
            "ours": (ours_at, lambda: safex.write_mask(path, ours_at, chosen)),
            "bare": (theirs_at, lambda: subprocess.run(["cp", str(path), str(theirs_at)], check=True)),
        }
        turn = number % len(sides)  # who writes after whom changes: the disk remembers
        for name, (target, act) in [*sides.items()][turn:] + [*sides.items()][:turn]:
            target.unlink(missing_ok=True)
            drain()
            times[name].append(seconds(act))
            target.unlink()
        print(f"ship: round {number + 1} of {rounds}", file=sys.stderr)
    return [
        _ratio(f"mask into a new file / cp and sync, {size:.1f} GB", size, times, "cp", 1 / MAX_OF_CP),
        _ratio(f"mask into a new file / cp that waits for no disk, {size:.1f} GB", size, times, "bare", None),
    ]


def _ratio(title: str, size: float, times: dict[str, list[float]], other: str, target: float | None) -> Row:
    values = [b / a for a, b in zip(times["ours"], times[other], strict=True)]
    median = statistics.median(values)
    row = {"title": title, "median": median, "low": min(values), "high": max(values), "target": target}
    rates = {
        "a": 1000 * size / statistics.median(times["ours"]),
        "b": 1000 * size / statistics.median(times[other]),
    }
    return {**row, **rates, "ok": target is None or median >= target}


def memory(layers: int) -> Row:
    """Peak memory of a new file in a fresh process, above that of one that only imports."""
    peaks = []
    for act in ("pass", "safex.write_mask(path, target, chosen)"):
        code = (
            "import json, sys, safex, safex.shipping\n"
            "path, target, chosen = json.loads(sys.argv[1])\n"
            f"{act}\n"
            "print(*(line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')))"
        )
        target = model(layers).with_suffix(".masked")
        given = json.dumps([str(model(layers)), str(target), experts(layers)])
        done = subprocess.run([sys.executable, "-c", code, given], stdout=subprocess.PIPE, check=True)
        peaks.append(int(done.stdout) * 1024 / 1e6)
        target.unlink(missing_ok=True)
    grown = peaks[1] - peaks[0]
    title = f"memory of a mask into a new file of {model(layers).stat().st_size / 1e9:.1f} GB"
    return {"title": title, "value": grown, "limit": 300.0, "unit": "MB", "ok": grown <= 300}


def merges(rounds: int, stock: Path) -> tuple[list[Row], list[Row]]:
    """The race on the smallest file; memory on the smallest and the largest."""
    ratios, rows = [], []
    for layers in (LAYERS[0], LAYERS[-1]):
        path, chosen = model(layers), experts(layers)
        lora = bench_merge.adapter(path.with_suffix(".lora.gguf"), chosen, SHAPE.experts)
        if layers == LAYERS[0]:
            ratios, rows = bench_merge.race(path, lora, chosen, bench_merge.export_lora(stock), rounds)
        rows.append(bench_merge.memory(path, lora, chosen))
        lora.unlink()
    return ratios, rows


def measure(rounds: int, stock: Path) -> tuple[list[Row], list[Row]]:
    """Ratios and checks, in the form of bench.py. ``stock``: the unpatched build's bin folder."""
    rows = [in_place(layers, 2 * rounds + 1) for layers in LAYERS]
    growth = rows[-1]["value"] / rows[0]["value"]
    rows.append(
        {
            "title": "time in place, largest over smallest file",
            "value": growth,
            "limit": MAX_GROWTH,
            "unit": "x",
            "ok": growth <= MAX_GROWTH,
        }
    )
    ratios, more = merges(rounds, stock)
    return [*new_file(LAYERS[-1], rounds), *ratios], [*rows, memory(LAYERS[-1]), *more]
