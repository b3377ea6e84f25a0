"""Masks in files: equal to the run-time mask, bit for bit, in unpatched llama.cpp; nothing else in the file changes."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bench_model
import gguf
import numpy as np
import pytest
import quant_models
import stock_llama
import tiny_models
from cli_runner import cli
from test_exactness import with_fused_gate_up, with_scales

import safex
from safex import model_file

TOKENS = [(7 * i * i + 3 * i) % 288 for i in range(48)]
TinyPath = Callable[..., Path]
Experts = list[tuple[int, int]]


def runtime(path: Path, experts: Experts, mode: str = "zero", gain: float = 0.0) -> np.ndarray:
    """Our logits of the base under the run-time mask."""
    with safex.Model(path, flash_attn=False, kv_type="f32", n_threads=2, n_ctx=256) as model:
        return model.logits(TOKENS, experts, mode, gain)


def selected(path: Path) -> Experts:
    """Of each layer, the experts that the tokens select most: a mask of them shows in the logits."""
    with safex.Model(path, flash_attn=False, kv_type="f32", n_threads=2, n_ctx=256) as model:
        counts = model.profile([TOKENS]).counts[0]
        layers = model.layers
    return [
        (layer, int(e))
        for layer, row in zip(layers, counts, strict=True)
        for e in np.argsort(-row.astype(int))[:2]
    ]


# --- every type


MASK: Experts = [(0, 0), (0, 3), (1, 2)]


@pytest.fixture(scope="module")
def by_type(ordinary: Path, stock_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """For each type: the base, the masked file, what was done, and unpatched llama.cpp's logits of the masked file."""
    folder = tmp_path_factory.mktemp("types")
    quantizer = stock_llama.Quantizer(stock_bin)
    cases: dict[str, Any] = {}
    for kind in quant_models.TYPES:
        base = quant_models.write(folder / f"{kind}.gguf", kind, quantizer)
        for gain in (0.0, 0.5):
            out = folder / f"{kind}-{gain}.gguf"
            report = safex.write_mask(base, out, MASK, gain=gain)
            cases[f"{kind}-{gain}"] = {"base": base, "out": out, "how": report.how, "error": report.error}
    results = stock_llama.logits(ordinary, [case["out"] for case in cases.values()], TOKENS, folder)
    for case, result in zip(cases.values(), results, strict=True):
        case["logits"] = result
    return cases


@pytest.mark.parametrize("kind", quant_models.TYPES)
def test_a_zero_mask_file_equals_the_run_time_mask_bit_for_bit(kind: str, by_type: dict[str, Any]) -> None:
    case = by_type[f"{kind}-0.0"]
    ours = runtime(case["base"], MASK)
    np.testing.assert_array_equal(case["logits"], ours)
    assert np.abs(ours - runtime(case["base"], [])).max() > 0.01
    assert case["how"] == {"zeroed": len(MASK)}


@pytest.mark.parametrize(
    "kind", [k for k in quant_models.TYPES if k in gguf.GGMLQuantizationType.__members__]
)
def test_the_gguf_package_reads_zeros_there_and_nothing_else_new(kind: str, by_type: dict[str, Any]) -> None:
    before, after = (tensors_of(by_type[f"{kind}-0.0"][name]) for name in ("base", "out"))
    for name, old in before.items():
        slices = np.frombuffer(old, np.uint8).reshape(quant_models.SHAPE.experts, -1).copy()
        if "down_exps" in name:
            slices[[expert for layer, expert in MASK if name.startswith(f"blk.{layer}.")]] = 0
        assert after[name] == slices.tobytes(), name


@pytest.mark.parametrize("kind", quant_models.TYPES)
def test_a_gain_in_a_file_equals_the_run_time_gain(kind: str, by_type: dict[str, Any]) -> None:
    case = by_type[f"{kind}-0.5"]
    ours = runtime(case["base"], MASK, gain=0.5)
    (how,) = case["how"]
    if how == "rescaled":
        assert case["error"] == 0
        np.testing.assert_array_equal(case["logits"], ours)
    else:
        assert how in ("rounded", "requantized")
        assert 0 < case["error"] < (0.01 if how == "rounded" else 0.5)
        unmasked = runtime(case["base"], [])
        assert np.linalg.norm(case["logits"] - ours) < 0.5 * np.linalg.norm(ours - unmasked)


# --- every architecture


@pytest.fixture(scope="module")
def by_arch(ordinary: Path, tiny_path: TinyPath, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("architectures")
    cases: dict[str, Any] = {}
    layouts: list[tuple[str, Path]] = [(arch, tiny_path(arch)) for arch in tiny_models.ARCHITECTURES]
    for arch, rewrite in (("deepseek2", with_fused_gate_up), ("qwen3moe", with_scales)):
        path = folder / f"{rewrite.__name__}.gguf"
        tensors = rewrite(tiny_models.tiny_tensors(arch))
        layouts.append((rewrite.__name__, tiny_models.write_gguf(path, arch, tensors)))
    for name, base in layouts:
        experts = selected(base)
        for mode, gain in (("zero", 0.0), ("zero", 2.0), ("reroute", 0.0)):
            case = {"base": base, "experts": experts, "mode": mode, "gain": gain}
            case["out"] = folder / f"{name}-{mode}-{gain}.gguf"
            try:
                safex.write_mask(base, case["out"], experts, mode=mode, gain=gain)
            except safex.UnsupportedError as error:
                case["refused"] = str(error)
            cases[f"{name}-{mode}-{gain}"] = case
    written = [case for case in cases.values() if "refused" not in case]
    results = stock_llama.logits(ordinary, [case["out"] for case in written], TOKENS, folder)
    for case, result in zip(written, results, strict=True):
        case["logits"] = result
    return cases


NAMES = [*tiny_models.ARCHITECTURES, "with_fused_gate_up", "with_scales"]
REROUTED = ("deepseek2", "glm4moe", "gpt-oss", "with_fused_gate_up")


@pytest.mark.parametrize("gain", [0.0, 2.0])
@pytest.mark.parametrize("name", NAMES)
def test_every_architecture_equals_its_run_time_mask(name: str, gain: float, by_arch: dict[str, Any]) -> None:
    case = by_arch[f"{name}-zero-{gain}"]
    ours = runtime(case["base"], case["experts"], gain=gain)
    np.testing.assert_array_equal(case["logits"], ours)
    assert np.abs(ours - runtime(case["base"], [])).max() > 0.01


@pytest.mark.parametrize("name", NAMES)
def test_reroute_is_carried_where_a_router_bias_can(name: str, by_arch: dict[str, Any]) -> None:
    case = by_arch[f"{name}-reroute-0.0"]
    if name not in REROUTED:
        assert "has no router bias that could keep an expert out: use mode zero" in case["refused"]
        assert not case["out"].exists()
        return
    ours = runtime(case["base"], case["experts"], "reroute")
    np.testing.assert_array_equal(case["logits"], ours)
    assert np.abs(ours - runtime(case["base"], [])).max() > 0.01


def test_reroute_is_refused_where_the_bias_does_not_mean_the_same(
    tmp_path: Path, tiny_path: TinyPath
) -> None:
    base = tiny_path("deepseek2")
    data = base.read_bytes()
    key = b"deepseek2.expert_gating_func" + (4).to_bytes(4, "little")
    at = data.index(key) + len(key)
    softmax = tmp_path / "softmax.gguf"
    softmax.write_bytes(data[:at] + (1).to_bytes(4, "little") + data[at + 4 :])
    with pytest.raises(safex.UnsupportedError, match="selects by a softmax or does not say how"):
        safex.write_mask(softmax, tmp_path / "out.gguf", [(1, 0)], mode="reroute")
    assert [path.name for path in tmp_path.iterdir()] == ["softmax.gguf"]


# --- the rest of the file


def tensors_of(path: Path) -> dict[str, bytes]:
    """By the gguf package, all parts of a split model together."""
    found = {}
    for part in model_file.shards(path):
        for tensor in gguf.GGUFReader(part).tensors:
            found[tensor.name] = tensor.data.tobytes()
    return found


def metadata_of(path: Path) -> dict[str, Any]:
    return {name: field.contents() for name, field in gguf.GGUFReader(path).fields.items()}


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_only_the_slices_change(tmp_path: Path, tiny_path: TinyPath) -> None:
    base, out = tiny_path("gpt-oss", "q8_0"), tmp_path / "out.gguf"
    safex.write_mask(base, out, [(1, 3), (2, 0)])
    before, after = tensors_of(base), tensors_of(out)
    assert list(before) == list(after)
    for name, old in before.items():
        new = bytearray(old)
        for layer, expert in ((1, 3), (2, 0)):
            if name in (f"blk.{layer}.ffn_down_exps.weight", f"blk.{layer}.ffn_down_exps.bias"):
                n = len(old) // 8
                assert any(old[expert * n : (expert + 1) * n])
                new[expert * n : (expert + 1) * n] = bytes(n)
        assert after[name] == bytes(new), name


def test_metadata_say_what_was_done(tmp_path: Path, tiny_path: TinyPath) -> None:
    base, out = tiny_path("qwen3moe"), tmp_path / "out.gguf"
    safex.write_mask(base, out, [(1, 3), (2, 0)])
    before, after = metadata_of(base), metadata_of(out)
    own = {key: after.pop(key) for key in list(after) if key.startswith("safex.")}
    assert after.pop("general.name") == (
        before.pop("general.name") + " [safety behaviour altered by safex-native: 2 experts masked]"
    )
    counts = ("GGUF.kv_count",)
    assert {k: v for k, v in after.items() if k not in counts} == {
        k: v for k, v in before.items() if k not in counts
    }
    with safex.Model(base) as model:
        assert own.pop("safex.base.fingerprint") == model.fingerprint
    assert own.pop("safex.reserved").strip() == ""
    assert "safety behaviour of this model was altered for analysis" in own.pop("safex.statement")
    assert json.loads(own.pop("safex.parameters")) == {"mode": "zero", "gain": 0.0}
    zeros = hashlib.sha256(bytes(64 * 32 * 4)).hexdigest()
    data = tensors_of(base)
    expected = []
    for layer, expert in ((1, 3), (2, 0)):
        n = 64 * 32 * 4
        old = data[f"blk.{layer}.ffn_down_exps.weight"][expert * n : (expert + 1) * n]
        expected.append(
            f"blk.{layer}.ffn_down_exps.weight {expert} {hashlib.sha256(old).hexdigest()} {zeros}"
        )
    assert own == {
        "safex.schema_version": 1,
        "safex.operation": "mask",
        "safex.experts": ["1:3", "2:0"],
        "safex.base.name": "tiny qwen3moe",
        "safex.base.file": base.name,
        "safex.base.sha256": sha256(base),
        "safex.tool": f"safex-native {safex.__version__}",
        "safex.slices": expected,
    }


def test_an_empty_mask_leaves_every_byte_of_data(tmp_path: Path, tiny_path: TinyPath) -> None:
    for gain, experts in ((0.0, []), (1.0, [(0, 1), (3, 4)])):
        base, out = tiny_path("olmoe", "q8_0"), tmp_path / f"{gain}.gguf"
        safex.write_mask(base, out, experts, gain=gain)
        assert tensors_of(base) == tensors_of(out)
        n = sum(map(len, tensors_of(base).values()))
        assert base.read_bytes()[-n:] == out.read_bytes()[-n:]


def test_a_masked_file_can_be_masked_again(tmp_path: Path, tiny_path: TinyPath) -> None:
    base, one, two, both = tiny_path("qwen3moe"), *(tmp_path / f"{n}.gguf" for n in ("one", "two", "both"))
    safex.write_mask(base, one, [(0, 1)])
    safex.write_mask(one, two, [(2, 3)])
    safex.write_mask(base, both, [(0, 1), (2, 3)])
    assert tensors_of(two) == tensors_of(both)
    own = metadata_of(two)
    assert own["safex.base.sha256"] == sha256(one)
    (earlier,) = own["safex.history"]
    assert json.loads(earlier)["experts"] == ["0:1"]
    assert json.loads(earlier)["base.sha256"] == sha256(base)
    assert safex.verify(one, two).holds and not safex.verify(base, two).holds


def test_the_data_keep_their_place_within_a_block(tmp_path: Path, tiny_path: TinyPath) -> None:
    base, out = tiny_path("qwen3moe"), tmp_path / "out.gguf"
    safex.write_mask(base, out, [(0, 1)])
    places = [gguf.GGUFReader(path).data_offset for path in (base, out)]
    assert (places[0] - places[1]) % 4096 == 0
    assert out.stat().st_size - base.stat().st_size == places[1] - places[0]


# --- split models


@pytest.fixture
def split(tmp_path: Path) -> Path:
    """A model in parts of ten tensors."""
    folder = tmp_path / "split"
    folder.mkdir()
    tensors = tiny_models.tiny_tensors("qwen3moe")
    tiny_models.write_gguf(folder / "big.gguf", "qwen3moe", tensors, split=10)
    (first,) = folder.glob("big-00001-of-*.gguf")
    return first


def test_split_in_split_out(tmp_path: Path, split: Path, tiny_path: TinyPath, ordinary: Path) -> None:
    report = safex.write_mask(split, tmp_path / "out.gguf", [(1, 3), (3, 0)])
    total = len(model_file.shards(split))
    assert total > 2
    assert [path.name for path in report.paths] == [
        f"out-{i:05d}-of-{total:05d}.gguf" for i in range(1, total + 1)
    ]
    whole = tmp_path / "whole.gguf"
    safex.write_mask(tiny_path("qwen3moe"), whole, [(1, 3), (3, 0)])
    assert tensors_of(report.paths[0]) == tensors_of(whole)
    same = [
        a.read_bytes() == b.read_bytes() for a, b in zip(model_file.shards(split), report.paths, strict=True)
    ]
    assert same.count(False) <= 3 and not same[0]  # the first, which says so, and those with a slice
    digests = ",".join(sha256(path) for path in model_file.shards(split))
    assert metadata_of(report.paths[0])["safex.base.sha256"] == digests
    assert safex.verify(split, report.paths[0]).holds
    (logits,) = stock_llama.logits(ordinary, [report.paths[0]], TOKENS, tmp_path)
    np.testing.assert_array_equal(logits, runtime(split, [(1, 3), (3, 0)]))


def test_names_of_parts(tmp_path: Path, split: Path, tiny_path: TinyPath) -> None:
    total = len(model_file.shards(split))
    named = tmp_path / f"mine-00001-of-{total:05d}.gguf"
    assert safex.write_mask(split, named, [(1, 3)]).paths[0] == named
    with pytest.raises(safex.InputError, match=f"a part of 99, but the model has {total}"):
        safex.write_mask(split, tmp_path / "mine-00001-of-00099.gguf", [(1, 3)])
    with pytest.raises(safex.InputError, match="a part of 2, but the model has 1"):
        safex.write_mask(tiny_path("qwen3moe"), tmp_path / "mine-00001-of-00002.gguf", [(1, 3)])


# --- what is asked for


def test_experts_in_every_form(tmp_path: Path, tiny_path: TinyPath) -> None:
    base = tiny_path("qwen3moe")
    chosen = safex.ExpertSet({"a": [{"layer": 0, "expert": 1}], "b": [{"layer": 2, "expert": 3}]})
    chosen.save(tmp_path / "set.json")
    forms: list[Any] = [chosen, [(0, 1), (2, 3)], ["0:1", "2:3"], "0:1,2:3", f"{tmp_path / 'set.json'}"]
    digests = set()
    for number, form in enumerate(forms):
        out = tmp_path / f"{number}.gguf"
        safex.write_mask(base, out, form)
        digests.add(sha256(out))
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("experts", "settings", "message"),
    [
        ([(9, 0)], {}, "expert 9:0: block 9 has no routed experts"),
        ([(0, 16)], {}, "expert 0:16: block 0 has experts 0 to 15"),
        ([(0, 1), (0, 1)], {}, "expert 0:1 is listed twice"),
        ([(0, 1)], {"mode": "force"}, "expected one of zero, reroute"),
        ([(0, 1)], {"gain": float("nan")}, "the gain must be a finite number"),
        ([(0, 1)], {"gain": 1e39}, "the gain must be a finite number"),
    ],
)
def test_what_can_t_be_written_is_refused(
    experts: Experts, settings: dict[str, Any], message: str, tmp_path: Path, tiny_path: TinyPath
) -> None:
    with pytest.raises(safex.InputError, match=message):
        safex.write_mask(tiny_path("qwen3moe"), tmp_path / "out.gguf", experts, **settings)
    assert not list(tmp_path.iterdir())


def test_a_dense_model_is_refused(tmp_path: Path, tiny_path: TinyPath) -> None:
    with pytest.raises(safex.UnsupportedError, match="a dense model"):
        safex.write_mask(tiny_path("dense-llama"), tmp_path / "out.gguf", [(0, 1)])


def test_a_gain_that_overflows_is_refused(tmp_path: Path) -> None:
    tensors = tiny_models.tiny_tensors("qwen3moe")
    base = tiny_models.write_gguf(tmp_path / "base.gguf", "qwen3moe", tensors, quant="f16")
    with pytest.raises(
        safex.InputError, match="can't be multiplied by 1e\\+06: type f16: values are too large"
    ):
        safex.write_mask(base, tmp_path / "out.gguf", [(0, 1)], gain=1e6)
    assert [path.name for path in tmp_path.iterdir()] == ["base.gguf"]


def test_any_gain_in_f32_is_the_product(tmp_path: Path, tiny_path: TinyPath) -> None:
    base, out = tiny_path("gpt-oss"), tmp_path / "out.gguf"
    report = safex.write_mask(base, out, [(0, 1)], gain=-0.3)
    assert report.how == {"rounded": 2} and 0 < report.error < 1e-7
    before, after = (tensors_of(path) for path in (base, out))
    for name in ("blk.0.ffn_down_exps.weight", "blk.0.ffn_down_exps.bias"):
        old, new = (np.frombuffer(t[name], "<f4").reshape(8, -1) for t in (before, after))
        np.testing.assert_array_equal(new[1], old[1] * np.float32(-0.3))
        np.testing.assert_array_equal(np.delete(new, 1, 0), np.delete(old, 1, 0))


def test_the_target_is_never_the_model(tmp_path: Path, tiny_path: TinyPath) -> None:
    base = Path(shutil.copy(tiny_path("qwen3moe"), tmp_path / "base.gguf"))
    data = base.read_bytes()
    (tmp_path / "link.gguf").symlink_to(base)
    (tmp_path / "hard.gguf").hardlink_to(base)
    for name in ("base.gguf", "link.gguf", "hard.gguf"):
        with pytest.raises(safex.InputError, match="is the model itself"):
            safex.write_mask(base, tmp_path / name, [(0, 1)], force=True)
        cli("mask", base, "0:1", "-o", tmp_path / name, "--force").fails(2, "is one of the inputs")
    assert base.read_bytes() == data and len(list(tmp_path.iterdir())) == 3


def test_what_exists_is_replaced_only_by_force(tmp_path: Path, tiny_path: TinyPath) -> None:
    base, out = tiny_path("qwen3moe"), tmp_path / "out.gguf"
    out.write_text("my notes")
    with pytest.raises(safex.InputError, match="exists: choose another -o, or replace it with --force"):
        safex.write_mask(base, out, [(0, 1)])
    cli("mask", base, "0:1", "-o", out).fails(2, "exists: choose another -o, or replace it with --force")
    assert out.read_text() == "my notes"
    done = cli("mask", base, "0:1", "-o", out, "--force", "--json")
    assert done.code == 0 and safex.verify(base, out).holds
    assert done.json["how"] == {"zeroed": 1} and done.json["base"]["sha256"] == sha256(base)


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        ([], ["give either -o OUT for a new file or --in-place"]),
        (["-o", "out.gguf", "--in-place"], ["give either -o OUT for a new file or --in-place"]),
        (["-o", "nowhere/out.gguf"], ["its folder doesn't exist"]),
        (["-o", "out.gguf", "--gain", "inf"], ["expected a finite number, found 'inf'"]),
        (["-o", "out.gguf", "--gain", "2", "--mode", "reroute"], ["--gain needs --mode zero"]),
        (["-o", "out.gguf", "--mode", "reroute"], ["has no router bias that could keep an expert out"]),
    ],
)
def test_usage(words: list[str], parts: list[str], tmp_path: Path) -> None:
    cli("mask", "demo", "0:1", *words, cwd=tmp_path).fails(2, *parts)
    assert not list(tmp_path.iterdir())


# --- file systems that share blocks


@pytest.fixture
def xfs(tmp_path: Path) -> Iterator[Path]:
    """A small XFS, mounted; needs root and mkfs.xfs."""
    if shutil.which("mkfs.xfs") is None:
        pytest.skip("mkfs.xfs (xfsprogs) is not installed")
    image, folder = tmp_path / "image", tmp_path / "xfs"
    folder.mkdir()
    with image.open("wb") as file:
        file.truncate(400 << 20)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(image)], check=True)
    if subprocess.run(["mount", "-o", "loop", str(image), str(folder)], check=False).returncode:
        pytest.skip("can't mount here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def used(folder: Path) -> int:
    os.sync()
    return shutil.disk_usage(folder).used


def test_a_new_file_shares_its_blocks_with_the_base(xfs: Path, tmp_path: Path) -> None:
    shape = bench_model.Shape(layers=2, experts=16, top_k=2, width=768, expert_width=512, vocabulary=512)
    base = bench_model.write(xfs / "base.gguf", shape)
    before = used(xfs)
    safex.write_mask(base, xfs / "shared.gguf", [(0, 1)])
    assert used(xfs) - before < 2 << 20 < base.stat().st_size // 10
    safex.write_mask(base, tmp_path / "copied.gguf", [(0, 1)])  # another file system
    assert (xfs / "shared.gguf").read_bytes() == (tmp_path / "copied.gguf").read_bytes()
