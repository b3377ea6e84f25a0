"""Importance matrices in a merge: separate and fused gates count for each other; what is missing is said."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_models
from cli_runner import cli
from lora_files import lora_matrices, write_lora
from test_merge import tensors_of

import safex
from safex.errors import InputError
from safex.merging import ExpertTensors

EXPERTS = ["0:2", "0:5", "3:7"]
ARCH = "qwen3moe"


def write_imatrix(path: Path, entries: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Path:
    """A matrix of llama-imatrix with the sums and counts of some tensors."""
    writer = gguf.GGUFWriter(path, "imatrix")
    writer.add_type("imatrix")
    for name, (sums, counts) in entries.items():
        writer.add_tensor(f"{name}.in_sum2", sums)
        writer.add_tensor(f"{name}.counts", counts)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def entries(model: ExpertTensors, *kinds: str, **changes: Any) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Sums by layer, the same for all kinds with one input; ``unseen`` experts have none."""
    found = {}
    for layer in model.layers():
        for kind in kinds:
            shape = model.shape(layer, kind)
            assert shape is not None
            rng = np.random.default_rng([layer, shape.columns])
            sums = rng.uniform(0, 1, (shape.experts, shape.columns)).astype(np.float32) ** 8 * 1e4
            counts = np.full((shape.experts, 1), 7, np.float32)
            for expert in changes.get("unseen", ()):
                sums[expert], counts[expert] = 0, 0
            found[f"blk.{layer}.ffn_{kind}_exps.weight"] = (sums, counts)
    return found


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    """One model with gate and up apart, and with both in one tensor."""
    tensors = tiny_models.tiny_tensors(ARCH)
    fused = dict(tensors)
    for name in list(tensors):
        if name.endswith("ffn_gate_exps.weight"):
            up = name.replace("gate", "up")
            fused[name.replace("gate", "gate_up")] = np.concatenate([fused.pop(name), fused.pop(up)], axis=1)
    return (
        tiny_models.write_gguf(tmp_path / "split.gguf", ARCH, tensors, "q4_0"),
        tiny_models.write_gguf(tmp_path / "fused.gguf", ARCH, fused, "q4_0"),
    )


def lora_of(model: Path, folder: Path) -> Path:
    shapes = ExpertTensors.read(model)
    matrices = {name: array / 3 for name, array in lora_matrices(shapes, ("gate", "up", "down")).items()}
    return write_lora(folder / "lora.gguf", matrices, architecture=ARCH)


@pytest.mark.parametrize("kinds", [("gate", "up", "down"), ("gate_up", "down"), ("up", "down")])
def test_separate_and_fused_gates_have_one_input(
    kinds: tuple[str, ...], models: tuple[Path, Path], tmp_path: Path
) -> None:
    """Whatever way the matrix and the model hold them, the same numbers are written."""
    split, fused = models
    lora = lora_of(split, tmp_path)
    matrix = write_imatrix(tmp_path / "m.gguf", entries(ExpertTensors.read(split), *kinds))
    plain = tmp_path / "plain.gguf"
    safex.merge(split, plain, lora, EXPERTS)
    outs = []
    for number, base in enumerate((split, fused)):
        out = tmp_path / f"out{number}.gguf"
        report = safex.merge(base, out, lora, EXPERTS, imatrix=matrix)
        assert report.unweighed == []
        outs.append(tensors_of(out))
    for layer in ExpertTensors.read(split).layers():
        gate, up, down = (f"blk.{layer}.ffn_{kind}_exps.weight" for kind in ("gate", "up", "down"))
        both = np.concatenate([outs[0][gate][1], outs[0][up][1]], axis=1)
        np.testing.assert_array_equal(outs[1][f"blk.{layer}.ffn_gate_up_exps.weight"][1], both)
        np.testing.assert_array_equal(outs[1][down][1], outs[0][down][1])
    unweighed = tensors_of(plain)
    assert not np.array_equal(
        unweighed["blk.0.ffn_up_exps.weight"][1], outs[0]["blk.0.ffn_up_exps.weight"][1]
    )


def test_experts_without_data_are_named(models: tuple[Path, Path], tmp_path: Path) -> None:
    """They are quantized as without a matrix, and the result says which."""
    split, _ = models
    lora = lora_of(split, tmp_path)
    found = entries(ExpertTensors.read(split), "gate", "up", "down", unseen=(2, 7))
    matrix = write_imatrix(tmp_path / "m.gguf", found)
    report = safex.merge(split, tmp_path / "out.gguf", lora, EXPERTS, imatrix=matrix)
    assert list(map(str, report.unweighed)) == ["0:2", "3:7"]
    assert report.to_json()["without_imatrix"] == ["0:2", "3:7"]
    safex.merge(split, tmp_path / "plain.gguf", lora, EXPERTS)
    plain, weighed = (tensors_of(tmp_path / f"{name}.gguf") for name in ("plain", "out"))
    for name, expert, same in (
        ("blk.0.ffn_up_exps.weight", 2, True),
        ("blk.0.ffn_up_exps.weight", 5, False),
        ("blk.3.ffn_down_exps.weight", 7, True),
    ):
        assert np.array_equal(plain[name][1][expert], weighed[name][1][expert]) == same
    done = cli(
        "merge", split, lora, "--experts", ",".join(EXPERTS), "--dry-run", "--imatrix", matrix, cwd=tmp_path
    )
    assert done.code == 0
    assert "2 experts are quantized without the imatrix, which has nothing of them: 0:2, 3:7" in done.err


def test_floats_are_not_weighed(tmp_path: Path) -> None:
    base = tiny_models.write_tiny(tmp_path / "f32.gguf", ARCH)
    matrix = write_imatrix(tmp_path / "m.gguf", entries(ExpertTensors.read(base), "down", unseen=range(16)))
    report = safex.merge(base, tmp_path / "out.gguf", lora_of(base, tmp_path), EXPERTS, imatrix=matrix)
    assert report.unweighed == []


def test_one_count_for_all_experts(models: tuple[Path, Path], tmp_path: Path) -> None:
    """As in files converted from the older format: sums in one row, one count."""
    split, _ = models
    lora = lora_of(split, tmp_path)
    many = entries(ExpertTensors.read(split), "gate", "up", "down")
    one = {name: (sums.reshape(1, -1), np.full((1, 1), 7, np.float32)) for name, (sums, _) in many.items()}
    for name, found in (("many", many), ("one", one)):
        matrix = write_imatrix(tmp_path / f"{name}.imatrix.gguf", found)
        safex.merge(split, tmp_path / f"{name}.gguf", lora, EXPERTS, imatrix=matrix)
    first, second = (tensors_of(tmp_path / f"{name}.gguf") for name in ("many", "one"))
    for name, (_, data) in first.items():
        np.testing.assert_array_equal(second[name][1], data)


NAME = "blk.0.ffn_gate_exps.weight"
WRONG = [
    (lambda sums, counts: (sums[:-1], counts[:-1]), "expected [16, "),
    (lambda sums, counts: (np.tile(sums, (2, 1)), np.tile(counts, (2, 1))), "expected [16, "),
    (lambda sums, counts: (sums.reshape(-1, sums.shape[1] // 2), counts), "expected [16, "),
    (lambda sums, counts: (sums, counts[:3]), "3 counts, expected"),
    (lambda sums, counts: (sums * np.float32(np.nan), counts), "hold infinity, NaN or numbers below 0"),
    (lambda sums, counts: (-sums, counts), "hold infinity, NaN or numbers below 0"),
    (lambda sums, counts: (sums.astype(np.float16), counts), "is F16, expected F32"),
]


@pytest.mark.parametrize(("change", "said"), WRONG, ids=[str(number) for number in range(len(WRONG))])
def test_matrices_of_another_model_or_damaged(
    change: Any, said: str, models: tuple[Path, Path], tmp_path: Path
) -> None:
    split, _ = models
    found = entries(ExpertTensors.read(split), "gate", "up", "down")
    found[NAME] = change(*found[NAME])
    matrix = write_imatrix(tmp_path / "m.gguf", found)
    with pytest.raises(InputError) as caught:
        safex.merge(split, tmp_path / "out.gguf", lora_of(split, tmp_path), EXPERTS, imatrix=matrix)
    assert said in str(caught.value) and str(matrix) in str(caught.value)
    assert not (tmp_path / "out.gguf").exists()


def test_a_matrix_that_lacks_a_tensor(models: tuple[Path, Path], tmp_path: Path) -> None:
    split, _ = models
    matrix = write_imatrix(tmp_path / "m.gguf", entries(ExpertTensors.read(split), "gate", "up"))
    with pytest.raises(InputError, match=r"has nothing of blk\.0\.ffn_down_exps\.weight: is it of another"):
        safex.merge(split, tmp_path / "out.gguf", lora_of(split, tmp_path), EXPERTS, imatrix=matrix)
