"""The bench model, the report that bench.py makes of its measurements, and what gpu_check.sh says without a GPU.
Nothing here looks at a clock."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import bench
import bench_model
import bench_workers
import gguf
import numpy as np
import pytest

import safex

ROOT = Path(__file__).resolve().parent.parent

TINY = bench_model.SHAPES["tiny"]
RATES = {
    "profile": [330.0, 320.0, 340.0],
    "file": [328.0, 318.0, 300.0],
    "llama_bench": [350.0, 350.0, 350.0],
    "all": [290.0, 300.0, 280.0],
    "trace": [280.0, 285.0, 275.0],
    "short": [310.0, 310.0, 310.0],
}


def report(**changes: Any) -> dict[str, Any]:
    settings = {"clock": "wall", "threads": 2}
    checks = [bench.check("growth", 12.34, 8.0, "MB"), bench.check("stock", 166.0, None, "MB")]
    facts = {"machine": "A CPU, 2 cores, 2 threads", "commit": "abc1234", "date": "2026-11-22"}
    rows = {"ratios": bench.ratio_rows(RATES, gpu=False), "checks": checks}
    return {**facts, "load_before": 0.1, "settings": settings, **rows, **changes}


# --- the model


@pytest.mark.parametrize("quant", bench_model.QUANTS)
def test_the_model_loads_and_profiles(tmp_path: Path, quant: str) -> None:
    shape = dataclasses.replace(TINY, width=256, expert_width=256, heads=4) if quant == "q4_k" else TINY
    path = bench_model.write(tmp_path / "tiny.gguf", shape, quant)
    with safex.Model(path, n_threads=1) as model:
        assert (model.layers, model.n_experts, model.top_k) == ([0, 1], shape.experts, shape.top_k)
        assert model.facts.n_vocab == shape.vocabulary
        profile = model.profile(["How do I bake bread?", list(range(100))])
        assert np.isfinite(model.logits(list(range(50)))).all()
    assert (profile.counts[1] > 0).sum() > 2 * TINY.top_k, "the selections don't vary"


def test_the_model_is_the_same_for_the_same_seed(tmp_path: Path) -> None:
    first, second, other = (
        bench_model.write(tmp_path / f"{i}.gguf", TINY, "q8_0", seed).read_bytes()
        for i, seed in enumerate((0, 0, 1))
    )
    assert first == second != other


def test_q8_0_blocks_are_those_of_gguf() -> None:
    levels = bench_model.draw(bench_model.Tensor("any", (4, 64), 0.5), 0)
    packed = bench_model.as_q8_0(levels, 0.5)
    unpacked = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q8_0)
    np.testing.assert_allclose(unpacked, bench_model.as_f32(levels, 0.5), rtol=1e-3)


def test_q4_k_blocks_have_the_deviation_asked_for() -> None:
    packed = bench_model.as_q4_k(bench_model.draw(bench_model.Tensor("any", (64, 1024), 0.5), 0), 0.5)
    unpacked = gguf.quants.dequantize(packed, gguf.GGMLQuantizationType.Q4_K)
    assert unpacked.shape == (64, 1024)
    np.testing.assert_allclose([unpacked.mean(), unpacked.std()], [0, 0.5], atol=0.02)


def test_the_cache_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SAFEX_CACHE", str(tmp_path))
    first = bench_model.cached(TINY)
    stamp = first.stat().st_mtime_ns
    assert bench_model.cached(TINY).stat().st_mtime_ns == stamp
    assert [p.name for p in first.parent.iterdir()] == [first.name]


def test_the_full_model_is_what_the_targets_were_set_for() -> None:
    full = bench_model.SHAPES["full"]
    assert 0.28e9 < full.flops_per_token < 0.32e9
    sizes = [np.prod(t.shape) * 34 / 32 for t in bench_model.tensors(full)]
    assert 0.95e9 < sum(sizes) < 1.1e9


def test_prompts_are_the_same_for_the_same_seed() -> None:
    prompts = bench_workers.random_prompts(50, 20, 120, 7, 1000)
    assert prompts == bench_workers.random_prompts(50, 20, 120, 7, 1000)
    assert {len(p) for p in prompts} <= set(range(20, 121))
    assert max(map(max, prompts)) < 1000


# --- the report


def test_ratios_are_taken_round_by_round() -> None:
    rows = {row["title"]: row for row in bench.ratio_rows(RATES, gpu=False)}
    profile = rows["profile / llama-bench pp512"]
    assert profile["median"] == pytest.approx(330 / 350)
    assert (profile["low"], profile["high"]) == (pytest.approx(320 / 350), pytest.approx(340 / 350))
    assert profile["ok"]
    assert not rows["profile into a file / llama-bench pp512"]["ok"]
    assert not any("transformers" in title for title in rows), "a side that did not run has no row"


def test_a_gpu_run_has_no_throughput_targets() -> None:
    assert all(row["target"] is None and row["ok"] for row in bench.ratio_rows(RATES, gpu=True))


def test_the_table_and_the_markdown_show_the_same(capsys: pytest.CaptureFixture[str]) -> None:
    bench.print_table(report())
    table = capsys.readouterr().out
    rows = bench.markdown(report()).splitlines()
    assert len(rows) == len(report()["ratios"]) + len(report()["checks"])
    for row in rows:
        title, value = (cell.strip() for cell in row.split("|")[1:3])
        assert title.split()[0] in table
        assert value in table
    assert (
        "| growth | 12.3 MB |  |  | ≤ 8 MB | FAIL | A CPU, 2 cores, 2 threads; abc1234, 2026-11-22 |" in rows
    )


def test_a_busy_machine_is_named() -> None:
    busy = report(load_before=3.5)
    assert "machine shared with other work (load 3.5)" in bench.markdown(busy)
    assert "shared" not in bench.markdown(report())


def test_markdown_reads_a_stored_report(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stored = tmp_path / "bench.json"
    stored.write_text(json.dumps(report()))
    assert bench.main(["--markdown", str(stored)]) == 0
    assert capsys.readouterr().out.strip() == bench.markdown(report())


def test_missed_targets_are_listed() -> None:
    assert bench.missed(report()) == ["profile into a file / llama-bench pp512", "growth"]


# --- gpu_check.sh


def run_gpu_check(*arguments: str, path: Path) -> subprocess.CompletedProcess[str]:
    """Run with ``path`` in front, whose nvidia-smi stands for the machine's."""
    environment = {**os.environ, "PATH": f"{path}{os.pathsep}{os.environ['PATH']}"}
    command = ["bash", str(ROOT / "scripts" / "gpu_check.sh"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, check=False)


@pytest.fixture
def no_gpu(tmp_path: Path) -> Path:
    fake = tmp_path / "nvidia-smi"
    fake.write_text("#!/bin/sh\necho 'No devices were found'\nexit 6\n")
    fake.chmod(0o755)
    return tmp_path


def test_without_a_gpu_gpu_check_says_so_in_one_line(no_gpu: Path) -> None:
    done = run_gpu_check(path=no_gpu)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "no NVIDIA GPU here" in done.stderr


def test_gpu_check_refuses_an_unknown_step(no_gpu: Path) -> None:
    done = run_gpu_check("biuld", path=no_gpu)
    assert done.returncode == 1
    assert "no step 'biuld'" in done.stderr
