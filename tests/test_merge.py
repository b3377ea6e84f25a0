"""`merge`: written tensors against NumPy and the gguf package, logits against llama.cpp's run-time LoRA; refusals."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_models
from cli_runner import cli
from lora_files import llama_cpp, logits, lora_matrices, write_lora

import safex
from safex.errors import InputError
from safex.merging import ExpertTensors
from safex.merging.merging import SurvivalError
from safex.model_file import is_demo

TinyPath = Callable[..., Path]
EXPERTS = ["0:2", "0:5", "3:0", "3:7"]
KINDS = ("gate", "up", "down")
TYPES = ["f16", "bf16", "q8_0", "q5_0", "q4_0", "q4_1", "q5_1"]


def tensors_of(path: Path) -> dict[str, tuple[gguf.GGMLQuantizationType, np.ndarray]]:
    """What the gguf package reads: type and bytes [experts, ...] of each tensor."""
    return {t.name: (t.tensor_type, np.array(t.data)) for t in gguf.GGUFReader(path).tensors}


def lora_for(
    model: Path, folder: Path, size: float = 0.1, seed: int = 0
) -> tuple[Path, dict[str, np.ndarray]]:
    """A LoRA file for the model and its deltas by tensor, as llama.cpp defines them."""
    shapes = ExpertTensors.read(model)
    matrices = {name: array * size**0.5 for name, array in lora_matrices(shapes, KINDS, seed).items()}
    path = write_lora(folder / f"lora{seed}.gguf", matrices, 6.0, architecture=shapes.architecture)
    expected = llama_cpp(matrices, 6.0)
    return path, {f"blk.{la}.ffn_{kind}_exps.weight": expected(la, kind) for la, kind in shapes.shapes}


def chosen(name: str) -> list[int]:
    """The experts of EXPERTS in a tensor."""
    layer = name.split(".")[1]
    return [
        int(e.split(":")[1]) for e in EXPERTS if name.endswith("exps.weight") and e.startswith(f"{layer}:")
    ]


# --- what is written


@pytest.mark.parametrize("quant", [None, *TYPES])
def test_slices_are_what_the_gguf_package_makes_of_them(
    tiny_path: TinyPath, tmp_path: Path, quant: str | None
) -> None:
    """Decode, add, encode for chosen experts that have a delta; every other byte of every tensor as it was."""
    base = tiny_path("qwen3moe", quant)
    lora, deltas = lora_for(base, tmp_path)
    out = tmp_path / "merged.gguf"
    report = safex.merge(base, out, lora, EXPERTS, -0.5)
    before, after = tensors_of(base), tensors_of(out)
    assert before.keys() == after.keys()
    for name, (kind, data) in before.items():
        wanted = data.copy()
        for expert in chosen(name):
            values = gguf.quants.dequantize(data[expert], kind) - np.float32(0.5) * deltas[name][expert]
            wanted[expert] = gguf.quants.quantize(values, kind)
        assert after[name][0] == kind
        if wanted.dtype == np.uint8:
            np.testing.assert_array_equal(after[name][1], wanted, err_msg=name)
        else:  # the products of the reference are summed in double precision
            np.testing.assert_allclose(
                after[name][1], wanted, atol=1e-6 if quant is None else 1e-3, err_msg=name
            )
    assert len(report.survivals) == len(EXPERTS) * len(KINDS) and report.unchanged == []
    assert safex.verify(base, out).holds


def test_survival_is_what_numpy_says(tiny_path: TinyPath, tmp_path: Path) -> None:
    base = tiny_path("qwen3moe", "q4_0")
    lora, deltas = lora_for(base, tmp_path, 0.02)
    report = safex.merge(base, tmp_path / "m.gguf", lora, EXPERTS, min_survival=-1)
    before, after = tensors_of(base), tensors_of(tmp_path / "m.gguf")
    total = np.zeros(3)
    for one in report.survivals:
        old, new = (
            gguf.quants.dequantize(of[one.tensor][1][one.expert], of[one.tensor][0]) for of in (before, after)
        )
        a, b = deltas[one.tensor][one.expert].ravel().astype(float), (new - old).ravel().astype(float)
        assert one.cosine == pytest.approx(a @ b / np.sqrt((a @ a) * (b @ b)), rel=1e-4)
        assert one.norm_ratio == pytest.approx(np.sqrt((b @ b) / (a @ a)), rel=1e-4)
        total += a @ a, b @ b, a @ b
    assert report.survival is not None
    assert report.survival.cosine == pytest.approx(total[2] / np.sqrt(total[0] * total[1]), rel=1e-4)
    assert report.survival.cosine < 0.999


@pytest.mark.parametrize("arch", ["qwen3moe", "llama", "gpt-oss"])
def test_all_experts_act_as_the_adapter_at_run_time(
    arch: str, llama: Any, tiny_path: TinyPath, tmp_path: Path
) -> None:
    """The merged file's logits equal those of llama.cpp with the same adapter applied at run time."""
    lora, _ = lora_for(tiny_path(arch), tmp_path)
    safex.merge(tiny_path(arch), tmp_path / "m.gguf", lora, "all", 0.7)
    merged = logits(llama, tmp_path / "m.gguf")
    wanted = logits(llama, tiny_path(arch), lora_path=str(lora), lora_scale=0.7)
    untouched = logits(llama, tiny_path(arch))
    assert np.linalg.norm(merged - wanted) < 1e-5 * np.linalg.norm(wanted)
    assert np.linalg.norm(untouched - wanted) > 0.02 * np.linalg.norm(wanted)


def test_there_and_back_again(tiny_path: TinyPath, tmp_path: Path) -> None:
    base = tiny_path("qwen3moe")
    lora, _ = lora_for(base, tmp_path)
    safex.merge(base, tmp_path / "there.gguf", lora, EXPERTS, 0.8)
    safex.merge(tmp_path / "there.gguf", tmp_path / "back.gguf", lora, EXPERTS, -0.8)
    before, after = tensors_of(base), tensors_of(tmp_path / "back.gguf")
    for name, (_, data) in before.items():
        np.testing.assert_allclose(after[name][1], data, atol=1e-6, err_msg=name)
    assert len(dict(gguf.GGUFReader(tmp_path / "back.gguf").fields)["safex.history"].data) == 1


@pytest.mark.parametrize("quant", [None, "q4_0"])
def test_a_scale_of_zero_changes_no_tensor(tiny_path: TinyPath, tmp_path: Path, quant: str | None) -> None:
    base = tiny_path("qwen3moe", quant)
    lora, _ = lora_for(base, tmp_path)
    report = safex.merge(base, tmp_path / "m.gguf", lora, EXPERTS, 0.0)
    before, after = tensors_of(base), tensors_of(tmp_path / "m.gguf")
    for name, (_, data) in before.items():
        np.testing.assert_array_equal(after[name][1], data)
    assert report.n_bytes == 0 and len(report.unchanged) == len(EXPERTS) and report.survival is None


def test_several_adapters_and_a_pair_add_up(tiny_path: TinyPath, tmp_path: Path) -> None:
    base = tiny_path("qwen3moe")
    first, one = lora_for(base, tmp_path, seed=0)
    second, other = lora_for(base, tmp_path, seed=1)
    tuned = tmp_path / "tuned.gguf"
    safex.merge(base, tuned, second, "all")
    safex.merge(base, tmp_path / "m.gguf", [first, second, (base, tuned)], EXPERTS, [1.0, -0.5, 0.25])
    before, after = tensors_of(base), tensors_of(tmp_path / "m.gguf")
    for name in one:
        for expert in chosen(name):
            wanted = before[name][1][expert] + one[name][expert] - 0.25 * other[name][expert]
            np.testing.assert_allclose(after[name][1][expert], wanted, atol=1e-5)


def test_split_files_in_and_out(tmp_path: Path, tiny_path: TinyPath) -> None:
    weights = tiny_models.tiny_tensors("qwen3moe")
    tiny_models.write_gguf(tmp_path / "base.gguf", "qwen3moe", weights, split=12)
    parts = sorted(tmp_path.glob("base-*.gguf"))
    lora, _ = lora_for(parts[0], tmp_path)
    report = safex.merge(parts[0], tmp_path / "m.gguf", lora, EXPERTS)
    whole = safex.merge(tiny_path("qwen3moe"), tmp_path / "whole.gguf", lora, EXPERTS)
    assert len(report.paths) == len(parts) > 1 and report.n_bytes == whole.n_bytes
    merged: dict[str, Any] = {}
    for path in report.paths:
        merged |= tensors_of(path)
    for name, (_, data) in tensors_of(tmp_path / "whole.gguf").items():
        np.testing.assert_array_equal(merged[name][1], data)
    assert safex.verify(parts[0], report.paths[0]).holds


def test_an_importance_matrix_weighs_the_columns(tiny_path: TinyPath, tmp_path: Path) -> None:
    """Weights on half of the columns bring these nearer to the wanted values."""
    base = tiny_path("qwen3moe", "q4_0")
    lora, deltas = lora_for(base, tmp_path)
    writer = gguf.GGUFWriter(tmp_path / "imatrix.gguf", "imatrix")
    writer.add_type("imatrix")
    shapes = ExpertTensors.read(base)
    for (layer, kind), shape in shapes.shapes.items():
        sums = np.ones((shape.experts, shape.columns), np.float32)
        sums[:, : shape.columns // 2] = 1e4
        writer.add_tensor(f"blk.{layer}.ffn_{kind}_exps.weight.in_sum2", 7 * sums)
        counts = np.full((shape.experts, 1), 7, np.float32)
        writer.add_tensor(f"blk.{layer}.ffn_{kind}_exps.weight.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    safex.merge(base, tmp_path / "plain.gguf", lora, EXPERTS)
    safex.merge(base, tmp_path / "weighed.gguf", lora, EXPERTS, imatrix=tmp_path / "imatrix.gguf")
    before, plain, weighed = (
        tensors_of(p) for p in (base, tmp_path / "plain.gguf", tmp_path / "weighed.gguf")
    )
    errors = np.zeros(2)
    for name, delta in deltas.items():
        for expert in chosen(name):
            values = [
                gguf.quants.dequantize(of[name][1][expert], of[name][0]) for of in (before, plain, weighed)
            ]
            half = delta.shape[2] // 2
            wanted = (values[0] + delta[expert])[:, :half]
            errors += [float(((v[:, :half] - wanted) ** 2).sum()) for v in values[1:]]
    assert errors[1] < 0.95 * errors[0]
    with pytest.raises(InputError, match=r"holds no importance matrix"):
        safex.merge(base, tmp_path / "x.gguf", lora, EXPERTS, imatrix=lora)


# --- what is refused


def test_too_little_left_is_refused_and_nothing_written(tiny_path: TinyPath, tmp_path: Path) -> None:
    base = tiny_path("qwen3moe", "q4_0")
    lora, _ = lora_for(base, tmp_path, 1e-7)
    with pytest.raises(SurvivalError, match=r"of the delta \(cosine\) is left after quantization") as caught:
        safex.merge(base, tmp_path / "m.gguf", lora, EXPERTS)
    assert caught.value.report.survival.cosine < 0.5
    assert not (tmp_path / "m.gguf").exists() and not list(tmp_path.glob("*.tmp"))
    words = ("merge", str(base), str(lora), "--experts", ",".join(EXPERTS))
    ran = cli(*words, "-o", "m.gguf", cwd=tmp_path)
    assert ran.code == 2 and "less than --min-survival 0.5" in ran.err.splitlines()[-1]
    assert "cosine" in ran.out, "the slices are shown all the same"
    assert cli(*words, "-o", "m.gguf", "--min-survival", "-1", cwd=tmp_path).code == 0


def test_the_command(tiny_path: TinyPath, tmp_path: Path) -> None:
    base = tiny_path("qwen3moe", "q8_0")
    lora, _ = lora_for(base, tmp_path)
    words = ("merge", str(base), str(lora), "--experts", "0:2,3:1")
    dry = cli(*words, "--dry-run", "--json", cwd=tmp_path)
    assert dry.code == 0, dry.err
    assert dry.json["files"] == [] and dry.json["unchanged"] == ["3:1"] and len(dry.json["slices"]) == 3
    assert not (tmp_path / "m.gguf").exists()
    done = cli(*words, "-o", "m.gguf", cwd=tmp_path)
    assert done.code == 0 and "cosine" in done.out + done.err
    assert cli("verify", str(base), "m.gguf", cwd=tmp_path).code == 0
    cli(*words, "-o", "m.gguf", cwd=tmp_path).fails(2, "m.gguf: exists")


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (["--experts", "0:2"], "no adapter given"),
        (["LORA", "--experts", "0:99"], "block 0 has experts 0 to 15"),
        (["LORA", "--experts", "0:1"], "no adapter has a delta for any of the 1 experts chosen"),
        (["LORA", "--experts", "0:2", "--scale", "1", "--scale", "2"], "1 adapters and 2 times --scale"),
        (["LORA", "--experts", "0:2", "--base", "b.gguf"], "--base and --tuned go together"),
        (["missing", "--experts", "0:2"], "missing: no such file or directory"),
        (["LORA", "--experts", "0:2", "--imatrix", "none"], "none: no such file"),
        (["LORA", "--experts", "0:2", "--dry-run"], "one of -o OUT for a new file, --in-place and --dry-run"),
    ],
)
def test_bad_input_is_one_line(tiny_path: TinyPath, tmp_path: Path, options: list[str], part: str) -> None:
    base = tiny_path("qwen3moe")
    lora, _ = lora_for(base, tmp_path)
    words = [str(lora) if word == "LORA" else word for word in options]
    cli("merge", str(base), *words, "-o", "m.gguf", cwd=tmp_path).fails(2, part)
    assert not (tmp_path / "m.gguf").exists()


def test_a_file_made_from_the_demo_is_asked_its_prompts(tiny_path: TinyPath, tmp_path: Path) -> None:
    safex.write_mask("demo", tmp_path / "masked.gguf", ["0:1"])
    assert is_demo("demo-planted") and is_demo(tmp_path / "masked.gguf")
    assert not is_demo(tiny_path("qwen3moe"))
    ran = cli("dump", "masked.gguf", "--experts", "0:2", "--limit", "2", "--controls", "0", cwd=tmp_path)
    assert ran.code == 0, ran.err
    texts = safex.PromptSet.bundled("demo").limited(2).texts
    assert safex.Features.load(tmp_path / "masked.features.safetensors").texts == texts
