"""Where a merge goes: in place, in a larger type, in every quantized type; against the gguf package and stock ggml."""

from __future__ import annotations

import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import quant_models
import stock_llama
import tiny_models
from cli_runner import cli, environment
from lora_files import TOKENS, logits
from test_in_place import SLOWED
from test_merge import EXPERTS, chosen, lora_for, tensors_of

import safex
from safex.errors import InputError
from safex.merging import ExpertTensors, open_adapter

TinyPath = Callable[..., Path]


# --- in place


def test_in_place_is_the_new_file_and_comes_back(tiny_path: TinyPath, tmp_path: Path) -> None:
    model = Path(shutil.copy(tiny_path("qwen3moe", "q8_0"), tmp_path / "model.gguf"))
    base = model.read_bytes()
    lora, _ = lora_for(model, tmp_path)
    safex.merge(model, tmp_path / "new.gguf", lora, EXPERTS, 0.5)
    report = safex.merge(model, None, lora, EXPERTS, 0.5)
    assert report.undo == tmp_path / "model.gguf.undo" and report.sidecar
    for name, (kind, data) in tensors_of(tmp_path / "new.gguf").items():
        assert tensors_of(model)[name][0] == kind
        np.testing.assert_array_equal(tensors_of(model)[name][1], data)
    shutil.copy(tiny_path("qwen3moe", "q8_0"), tmp_path / "base.gguf")
    assert safex.verify(tmp_path / "base.gguf", model).holds
    once = model.read_bytes()
    safex.merge(model, None, lora, EXPERTS, 0.5)  # not a second time on top
    assert model.read_bytes() == once
    with pytest.raises(InputError, match="another in-place edit can still be taken back"):
        safex.merge(model, None, lora, EXPERTS, 0.7)
    safex.restore(model)
    assert model.read_bytes() == base


def test_killed_in_place(tiny_path: TinyPath, tmp_path: Path) -> None:
    """Ten kills at random moments; the same command again finishes, or `restore` takes it back."""
    model = Path(shutil.copy(tiny_path("qwen3moe", "f16"), tmp_path / "model.gguf"))
    base = model.read_bytes()
    lora, _ = lora_for(model, tmp_path)
    words = ["merge", "model.gguf", str(lora), "--experts", "all", "--in-place", "--quiet"]
    slowed = [sys.executable, "-c", SLOWED, *words]
    started = time.monotonic()
    assert subprocess.run(slowed, cwd=tmp_path, env=environment(), check=False).returncode == 0
    whole_run = time.monotonic() - started
    finished = model.read_bytes()
    safex.restore(model)
    assert finished != base == model.read_bytes()
    draw, begun = random.Random(6), 0
    for number in range(10):
        process = subprocess.Popen(slowed, cwd=tmp_path, env=environment())
        time.sleep(draw.uniform(0.4, 1.0) * whole_run)
        process.send_signal(signal.SIGKILL)
        process.wait()
        begun += (tmp_path / "model.gguf.undo").exists()
        if number % 2:
            assert cli(*words, cwd=tmp_path).code == 0
            assert model.read_bytes() == finished
        if (tmp_path / "model.gguf.undo").exists():
            assert cli("restore", "model.gguf", cwd=tmp_path).code == 0
        assert model.read_bytes() == base
    assert begun, "no kill fell behind the undo file"


# --- in a larger type


def promoted_as_wanted(
    base: Path, out: Path, deltas: dict[str, np.ndarray], touched: list[str], kind: gguf.GGMLQuantizationType
) -> None:
    """Touched tensors decoded, changed and encoded in the type, with nothing else changed."""
    before, after = tensors_of(base), tensors_of(out)
    assert before.keys() == after.keys()
    for name, (old_kind, data) in before.items():
        if name not in touched:
            assert after[name][0] == old_kind
            np.testing.assert_array_equal(after[name][1], data, err_msg=name)
            continue
        values = gguf.quants.dequantize(data, old_kind)
        for expert in chosen(name):
            values[expert] += deltas[name][expert]
        assert after[name][0] == kind
        np.testing.assert_array_equal(after[name][1], gguf.quants.quantize(values, kind), err_msg=name)


@pytest.mark.parametrize("split", [0, 12])
def test_promoted_tensors_are_what_the_gguf_package_makes_of_them(tmp_path: Path, split: int) -> None:
    weights = tiny_models.tiny_tensors("qwen3moe")
    tiny_models.write_gguf(tmp_path / "base.gguf", "qwen3moe", weights, quant="q4_0", split=split)
    parts = sorted(tmp_path.glob("base*.gguf"))
    lora, deltas = lora_for(parts[0], tmp_path, 0.02)
    report = safex.merge(parts[0], tmp_path / "m.gguf", lora, EXPERTS, promote="Q8_0")
    touched = [f"blk.{layer}.ffn_{kind}_exps.weight" for layer in (0, 3) for kind in ("gate", "up", "down")]
    assert set(report.provenance.parameters["promoted"]) == set(touched)
    for base, out in zip(parts, report.paths, strict=True):
        promoted_as_wanted(base, out, deltas, touched, gguf.GGMLQuantizationType.Q8_0)
    sizes = [sum(path.stat().st_size for path in paths) for paths in (parts, report.paths)]
    assert abs(sizes[1] - sizes[0] - report.growth) < 3 * 4096 + 20_000, "but for the first header"
    assert report.survival is not None and report.survival.cosine > 0.99
    assert 0 < report.recoding_error < 0.01
    assert safex.verify(parts[0], report.paths[0]).holds
    dry = safex.merge(parts[0], None, lora, EXPERTS, promote="q8_0", dry_run=True)
    assert dry.growth == report.growth and dry.survivals == report.survivals and not dry.paths


def test_a_promoted_file_runs_in_llama_cpp(llama: Any, tiny_path: TinyPath, tmp_path: Path) -> None:
    """A Q4_0 file with all experts promoted to F32 acts as its F32 form with the adapter applied at run time."""
    base = tiny_path("qwen3moe", "q4_0")
    lora, _ = lora_for(base, tmp_path)
    safex.merge(base, tmp_path / "plain.gguf", lora, "all", 1e-9, promote="f32", min_survival=-1)
    safex.merge(base, tmp_path / "m.gguf", lora, "all", 0.7, promote="f32")
    merged = logits(llama, tmp_path / "m.gguf")
    wanted = logits(llama, tmp_path / "plain.gguf", lora_path=str(lora), lora_scale=0.7)
    assert np.linalg.norm(merged - wanted) < 1e-5 * np.linalg.norm(wanted)
    untouched = logits(llama, tmp_path / "plain.gguf")
    assert np.linalg.norm(untouched - wanted) > 0.02 * np.linalg.norm(wanted)


def test_unpatched_llama_cpp_reads_what_was_merged(
    llama: Any, tiny_path: TinyPath, ordinary: Path, tmp_path: Path
) -> None:
    """Merged in the own type, promoted, and promoted in parts: the same logits as in ours, and not the base's."""
    base = tiny_path("qwen3moe", "q4_0")
    lora, _ = lora_for(base, tmp_path)
    weights = tiny_models.tiny_tensors("qwen3moe")
    tiny_models.write_gguf(tmp_path / "parts.gguf", "qwen3moe", weights, quant="q4_0", split=12)
    parts = sorted(tmp_path.glob("parts-*.gguf"))
    paths = [
        safex.merge(source, tmp_path / f"{name}.gguf", lora, EXPERTS, promote=promote).paths[0]
        for name, source, promote in (("own", base, None), ("one", base, "q8_0"), ("many", parts[0], "q8_0"))
    ]
    own, one, many, before = stock_llama.logits(ordinary, [*paths, base], TOKENS, tmp_path)
    np.testing.assert_array_equal(one, many)
    for path, found in zip(paths, (own, one, many), strict=True):
        wanted = logits(llama, path)
        assert np.linalg.norm(found - wanted) < 1e-5 * np.linalg.norm(wanted)
        assert np.linalg.norm(found - before) > 0.01 * np.linalg.norm(before)


def test_a_promoted_file_that_lies_is_found_out(tiny_path: TinyPath, tmp_path: Path) -> None:
    """One byte in the slice of an expert that was only recoded."""
    base, out = tiny_path("qwen3moe", "q4_0"), tmp_path / "m.gguf"
    lora, _ = lora_for(base, tmp_path)
    safex.merge(base, out, lora, EXPERTS, promote="q8_0")
    tensor = next(t for t in gguf.GGUFReader(out).tensors if t.name == "blk.0.ffn_up_exps.weight")
    data = bytearray(out.read_bytes())
    data[int(tensor.data_offset) + int(tensor.n_bytes) // 16 * 3 + 7] ^= 1  # of expert 3
    out.write_bytes(data)
    problems = safex.verify(base, out).problems
    assert problems == [
        "blk.0.ffn_up_exps.weight, expert 3: changed, but not listed",
        "expert 0:3: changed, but not named",
    ]


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--promote", "q9_9", "-o", "m.gguf"], "--promote is 'q9_9', expected one of bf16, f16, f32"),
        (["--promote", "q4_0", "-o", "m.gguf"], "the tensors that change are as large already"),
        (["--promote", "q6_K", "-o", "m.gguf"], "rows of 64 values, expected a multiple of 256"),
        (["--promote", "f16", "--in-place"], "promote into a new file, not in place"),
    ],
)
def test_promotions_that_cannot_be(
    tiny_path: TinyPath, tmp_path: Path, options: list[str], part: str
) -> None:
    model = Path(shutil.copy(tiny_path("qwen3moe", "q4_0"), tmp_path / "model.gguf"))
    lora, _ = lora_for(model, tmp_path)
    before = model.read_bytes()
    cli("merge", "model.gguf", str(lora), "--experts", "0:2", *options, cwd=tmp_path).fails(2, part)
    assert model.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"model.gguf", lora.name}


# --- into every type


@pytest.mark.parametrize(
    "kind", [k for k in quant_models.TYPES if k in gguf.GGMLQuantizationType.__members__]
)
def test_quantized_merges_are_what_stock_ggml_makes_of_them(
    kind: str, stock_bin: Path, tmp_path: Path
) -> None:
    """Stock ggml decodes, NumPy adds, stock ggml encodes: the same bytes."""
    stock = stock_llama.Quantizer(stock_bin)
    base = quant_models.write(tmp_path / "base.gguf", kind, stock)
    lora, _ = lora_for(base, tmp_path, 0.001)
    options = {"imatrix": imatrix_of(tmp_path, base)} if kind in quant_models.NEED_IMATRIX else {}
    safex.merge(base, tmp_path / "m.gguf", lora, ["0:0", "1:2"], min_survival=-1, **options)
    deltas = open_adapter(lora, ExpertTensors.read(base))
    before, after = tensors_of(base), tensors_of(tmp_path / "m.gguf")
    number = quant_models.TYPES[kind]
    for layer, expert in ((0, 0), (1, 2)):
        name = f"blk.{layer}.ffn_down_exps.weight"
        delta = deltas.delta(layer, expert, "down")
        old = before[name][1].copy()
        values = old[expert] if kind == "F32" else stock.dequantize(number, old[expert].tobytes())
        wanted = values.reshape(delta.shape) + delta
        weights = np.full(wanted.shape[1], 2, np.float32) if options else None
        assert after[name][1][expert].tobytes() == stock.quantize(number, wanted, weights)
        others = [e for e in range(len(old)) if e != expert]
        np.testing.assert_array_equal(after[name][1][others], old[others])
    assert safex.verify(base, tmp_path / "m.gguf").holds


def imatrix_of(folder: Path, model: Path) -> Path:
    """Equal weights for all columns, as `llama-imatrix` would write them."""
    writer = gguf.GGUFWriter(folder / "imatrix.gguf", "imatrix")
    writer.add_type("imatrix")
    for (layer, kind), shape in ExpertTensors.read(model).shapes.items():
        name = f"blk.{layer}.ffn_{kind}_exps.weight"
        writer.add_tensor(f"{name}.in_sum2", np.full((shape.experts, shape.columns), 6, np.float32))
        writer.add_tensor(f"{name}.counts", np.full((shape.experts, 1), 3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return folder / "imatrix.gguf"
