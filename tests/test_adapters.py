"""Deltas of adapters: against PEFT's own merge, llama.cpp's rule and brute force; and what is refused, line by line."""

from __future__ import annotations

import mmap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_models
from golden_adapters import GOLDEN, Golden, cases_of, check, tensors
from lora_files import llama_cpp, logits, lora_matrices, write_lora
from safetensors.numpy import load, save_file

from safex.errors import InputError, UnsupportedError
from safex.experts import Expert
from safex.merging import KINDS, ExpertTensors, open_adapter, open_pair

CASES = cases_of(GOLDEN)


@pytest.mark.parametrize(("file", "case"), CASES, ids=[f"{file.stem}-{case}" for file, case in CASES])
@pytest.mark.parametrize("fused", [False, True], ids=["split", "gate_up"])
def test_peft(file: Path, case: str, fused: bool, tmp_path: Path) -> None:
    golden = Golden(file, case)
    deltas = open_adapter(golden.write(tmp_path), golden.model(fused))
    assert deltas.others == []
    assert [path.name for path in deltas.files] == ["adapter_config.json", "adapter_model.safetensors"]
    check(deltas, golden.model(fused), golden.delta, 1e-2 if "bf16" in case else 1e-6)


def test_golden_files_are_of_old_and_new_versions() -> None:
    assert [path.stem for path in GOLDEN] == ["adapters_0.18", "adapters_0.21"]


# llama.cpp's LoRA

HIDDEN, WIDTH, EXPERTS = 64, 32, 4


@pytest.mark.parametrize("alpha", [0.0, 6.0])
@pytest.mark.parametrize("fused", [False, True], ids=["split", "gate_up"])
def test_gguf_lora(alpha: float, fused: bool, tmp_path: Path) -> None:
    model = tensors("qwen3moe", 2, EXPERTS, HIDDEN, WIDTH, fused)
    matrices = lora_matrices(model, ("gate_up", "down") if fused else ("gate", "up", "down"))
    deltas = open_adapter(write_lora(tmp_path / "lora.gguf", matrices, alpha), model)
    check(deltas, model, llama_cpp(matrices, alpha), 1e-5)
    assert Expert(0, 1) not in deltas.experts()


def test_gguf_lora_in_half_precision(tmp_path: Path) -> None:
    model = tensors("qwen3moe", 1, EXPERTS, HIDDEN, WIDTH)
    matrices = lora_matrices(model, ("down",))
    rounded = {name: array.astype(np.float16).astype(np.float32) for name, array in matrices.items()}
    deltas = open_adapter(write_lora(tmp_path / "lora.gguf", matrices, quant="F16"), model)
    delta = deltas.delta(0, 2, "down")
    assert delta is not None
    np.testing.assert_allclose(delta, llama_cpp(rounded, 6.0)(0, "down")[2], rtol=1e-5, atol=1e-5)
    assert deltas.delta(0, 2, "up") is None


def test_gguf_lora_of_one_half_leaves_the_other(tmp_path: Path) -> None:
    """An adapter of a model with separate gates, merged into a file that has them fused."""
    model = tensors("qwen3moe", 1, EXPERTS, HIDDEN, WIDTH, fused=True)
    matrices = lora_matrices(model, ("up",))
    delta = open_adapter(write_lora(tmp_path / "lora.gguf", matrices), model).delta(0, 0, "gate_up")
    assert delta is not None
    assert not delta[:WIDTH].any()
    np.testing.assert_allclose(delta[WIDTH:], llama_cpp(matrices, 6.0)(0, "up")[0], rtol=1e-5, atol=1e-5)


# Pairs


def changed_pair(folder: Path, quant: str | None, names: tuple[str, ...]) -> tuple[Path, Path]:
    """A tiny model and one whose experts 3 (of layer 0, down) and 5 (of layer 1, up) and tensors ``names`` differ."""
    before = tiny_models.tiny_tensors("qwen3moe")
    after = {name: array.copy() for name, array in before.items()}
    after["blk.0.ffn_down_exps.weight"][3] *= 1.5
    after["blk.1.ffn_up_exps.weight"][5] += 0.1
    for name in names:
        after[name] += 0.25
    paths = folder / "base.gguf", folder / "tuned.gguf"
    for path, weights in zip(paths, (before, after), strict=True):
        tiny_models.write_gguf(path, "qwen3moe", weights, quant)
    return paths


def dequantized(path: Path, layer: int, kind: str) -> np.ndarray:
    reader = gguf.GGUFReader(path)
    tensor = next(t for t in reader.tensors if t.name == f"blk.{layer}.ffn_{kind}_exps.weight")
    return gguf.quants.dequantize(tensor.data, tensor.tensor_type)


@pytest.mark.parametrize("quant", [None, "bf16", "f16", "q8_0", "q4_0"])
def test_pair(quant: str | None, tmp_path: Path) -> None:
    base, tuned = changed_pair(tmp_path, quant, ())
    model = ExpertTensors.read(base)
    deltas = open_pair(base, tuned, model)
    check(deltas, model, lambda *at: dequantized(tuned, *at) - dequantized(base, *at), 0.0)
    assert deltas.experts() == {Expert(0, 3), Expert(1, 5)}
    assert deltas.files == [base, tuned] and deltas.others == []


def test_pair_of_split_files_and_other_quant_type(tmp_path: Path) -> None:
    """The pair is F32, one of it split; the model to change is Q8_0."""
    base, tuned = changed_pair(tmp_path, None, ())
    model = ExpertTensors.read(tiny_models.write_tiny(tmp_path / "model.gguf", "qwen3moe", quant="q8_0"))
    tiny_models.write_gguf(
        tmp_path / "split.gguf", "qwen3moe", tiny_models.tiny_tensors("qwen3moe"), split=20
    )
    split = sorted(tmp_path.glob("split-*.gguf"))
    deltas = open_pair(split[0], tuned, model)
    assert len(split) > 1 and deltas.files == [*split, tuned]
    delta = deltas.delta(0, 3, "down")
    assert delta is not None
    np.testing.assert_array_equal(delta, dequantized(tuned, 0, "down")[3] - dequantized(base, 0, "down")[3])


def test_pair_maps_slices_only(tmp_path: Path) -> None:
    base, tuned = changed_pair(tmp_path, "q8_0", ())
    deltas = open_pair(base, tuned, ExpertTensors.read(base))
    stored = deltas.base.tensors["blk.0.ffn_down_exps.weight"].data
    assert not stored.flags.owndata and isinstance(stored.base.base.obj, mmap.mmap)


def test_pair_refuses_other_differences(tmp_path: Path) -> None:
    base, tuned = changed_pair(tmp_path, None, ("blk.2.attn_q.weight", "blk.3.attn_k.weight"))
    model = ExpertTensors.read(base)
    with pytest.raises(InputError, match=r"more than experts' weights: blk\.2\.attn_q\.weight"):
        open_pair(base, tuned, model)
    deltas = open_pair(base, tuned, model, allow_others=True)
    assert deltas.others == ["blk.2.attn_q.weight", "blk.3.attn_k.weight"]
    assert deltas.experts() == {Expert(0, 3), Expert(1, 5)}


# Refusals


@pytest.fixture
def golden() -> Golden:
    return Golden(GOLDEN[-1], "qwen3moe")


@pytest.fixture
def modules() -> Golden:
    return Golden(GOLDEN[-1], "modules-qwen3moe")


def refused(folder: Path, model: ExpertTensors, allow_others: bool = False) -> str:
    with pytest.raises(InputError) as caught:
        open_adapter(folder, model, allow_others)
    text = str(caught.value)
    assert "\n" not in text and text.startswith(str(folder))
    return text


SETTINGS = [
    ({"peft_type": "LOHA"}, "peft_type is 'LOHA'"),
    ({"peft_type": "IA3"}, "peft_type is 'IA3'"),
    ({"use_dora": True}, "use_dora is set"),
    ({"lora_bias": True}, "lora_bias is set"),
    ({"bias": "all"}, "bias is 'all'"),
    ({"fan_in_fan_out": True}, "fan_in_fan_out is set"),
    ({"layer_replication": [[0, 1]]}, "layer_replication is set"),
    ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
    ({"trainable_token_indices": [3]}, "trainable_token_indices is set"),
    ({"some_later_variant": {"x": 1}}, "some_later_variant is set"),
    ({"init_lora_weights": "pissa_niter_16"}, "also changed the base weights"),
    ({"r": 0}, "r is 0, expected a whole number"),
    ({"r": 4}, "rank 4 of adapter_config.json"),
    ({"lora_alpha": "8"}, "lora_alpha is '8', expected a number"),
    ({"lora_alpha": float("nan")}, "lora_alpha is nan"),
    ({"lora_alpha": 10**400}, "expected a number of at most 1e+09"),
    ({"target_parameters": "experts"}, "target_parameters is 'experts', expected a list of names"),
    ({"rank_pattern": [1]}, "rank_pattern is list"),
    ({"rank_pattern": {"down_proj": -1}}, "rank_pattern of 'down_proj' is -1"),
    ({"alpha_pattern": {"(": 1}}, "is no regular expression"),
    (
        {"target_parameters": ["experts.gate_up_proj"]},
        "fits down_proj, which target_parameters (gate_up_proj) lacks",
    ),
    ({"target_parameters": None}, "target_parameters (none) lacks"),
]


@pytest.mark.parametrize(("setting", "said"), SETTINGS, ids=lambda value: str(value)[:40])
def test_refused_settings(setting: dict[str, Any], said: str, golden: Golden, tmp_path: Path) -> None:
    golden.config |= setting
    assert said in refused(golden.write(tmp_path / "adapter"), golden.model())


def rewrite(folder: Path, change: Callable[[dict[str, np.ndarray]], object]) -> Path:
    path = folder / "adapter_model.safetensors"
    weights = load(path.read_bytes())
    change(weights)
    save_file(weights, path)
    return folder


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj.lora_{}.weight"


def test_other_modules_are_refused_or_left_out(modules: Golden, tmp_path: Path) -> None:
    more = {Q_PROJ.format(side): np.ones((2, 2), np.float32) for side in "AB"}
    more["base_model.model.lm_head.weight"] = np.ones((2, 2), np.float32)
    modules.config["modules_to_save"] = ["lm_head"]
    folder = rewrite(modules.write(tmp_path / "adapter"), lambda weights: weights.update(more))
    said = refused(folder, modules.model())
    assert "more than experts' weights: lm_head.weight, model.layers.0.self_attn.q_proj; " in said
    deltas = open_adapter(folder, modules.model(), allow_others=True)
    assert deltas.others == ["lm_head.weight", "model.layers.0.self_attn.q_proj"]
    check(deltas, modules.model(), modules.delta, 1e-6)


EXPERT = "base_model.model.model.layers.0.mlp.experts.{}"
CHANGES: list[tuple[str, Callable[[dict[str, np.ndarray]], object], str]] = [
    ("no B", lambda w: w.pop(EXPERT.format("1.up_proj.lora_B.weight")), "has lora_A but no lora_B"),
    ("no A", lambda w: w.pop(EXPERT.format("1.up_proj.lora_A.weight")), "has lora_B but no lora_A"),
    (
        "magnitude",
        lambda w: w.update({EXPERT.format("1.up_proj.lora_magnitude_vector"): np.ones(3, np.float32)}),
        "is no lora_A or lora_B",
    ),
    (
        "unknown matrix",
        lambda w: w.update(
            {EXPERT.format(f"0.side_proj.lora_{s}.weight"): np.ones((2, 2), np.float32) for s in "AB"}
        ),
        "is no matrix of an expert that is known here",
    ),
    (
        "expert 9",
        lambda w: w.update(
            {EXPERT.format(f"9.up_proj.lora_{s}.weight"): np.ones((2, 2), np.float32) for s in "AB"}
        ),
        "has experts 0 to 2 in a layer: an adapter of another model",
    ),
    (
        "rank",
        lambda w: w.update({EXPERT.format("1.up_proj.lora_A.weight"): np.ones((3, 12), np.float32)}),
        "the two files don't belong together",
    ),
    (
        "type",
        lambda w: w.update({EXPERT.format("1.up_proj.lora_A.weight"): np.ones((2, 12), np.int8)}),
        "is I8, expected one of F64, F32, F16, BF16",
    ),
    ("empty", lambda w: w.clear(), "has no LoRA of experts"),
]


@pytest.mark.parametrize(("change", "said"), [c[1:] for c in CHANGES], ids=[c[0] for c in CHANGES])
def test_refused_weights(change: Callable[..., object], said: str, modules: Golden, tmp_path: Path) -> None:
    folder = rewrite(modules.write(tmp_path / "adapter"), change)
    with pytest.raises(InputError) as caught:
        open_adapter(folder, modules.model()).delta(0, 1, "up")
    assert said in str(caught.value)


@pytest.mark.parametrize("case", ["modules-qwen3moe", "qwen3moe"])
def test_adapter_of_another_model(case: str, tmp_path: Path) -> None:
    golden = Golden(GOLDEN[-1], case)
    folder = golden.write(tmp_path / "adapter")
    layers, experts, hidden, width = golden.sizes
    assert "an adapter of another model" in refused(
        folder, tensors("qwen3moe", layers, experts, hidden, width + 4)
    )
    assert "has no" in refused(folder, tensors("qwen3moe", 1, experts, hidden, width))
    if case == "qwen3moe":
        assert "expected 8: 4 experts" in refused(folder, tensors("qwen3moe", layers, 4, hidden, width))


def test_numbers_that_are_none(modules: Golden, tmp_path: Path) -> None:
    def spoil(weights: dict[str, np.ndarray]) -> None:
        spoilt = weights[EXPERT.format("1.up_proj.lora_A.weight")].copy()
        spoilt[0, 0] = np.nan
        weights[EXPERT.format("1.up_proj.lora_A.weight")] = spoilt

    deltas = open_adapter(rewrite(modules.write(tmp_path / "adapter"), spoil), modules.model())
    assert deltas.delta(0, 0, "up") is not None
    with pytest.raises(InputError, match=r"blk\.0\.ffn_up_exps\.weight, expert 1 holds infinity or NaN"):
        deltas.delta(0, 1, "up")


def test_one_matrix_in_both_layouts(golden: Golden, modules: Golden, tmp_path: Path) -> None:
    both = load(modules.arrays["weights"].tobytes())
    folder = rewrite(golden.write(tmp_path / "adapter"), lambda weights: weights.update(both))
    assert "has down fused and as modules of single experts" in refused(folder, golden.model())


def test_square_matrices_need_a_version(tmp_path: Path) -> None:
    golden = Golden(GOLDEN[0], "olmoe-square")
    del golden.config["peft_version"]
    assert "add the version that trained it" in refused(golden.write(tmp_path / "adapter"), golden.model())


def test_files_that_are_no_adapter(golden: Golden, tmp_path: Path) -> None:
    model = golden.model()
    assert "no such file or directory; expected a PEFT directory" in refused(tmp_path / "missing", model)
    text = tmp_path / "note.txt"
    text.write_text("hello")
    assert "is no adapter; expected" in refused(text, model)
    empty = tmp_path / "empty"
    empty.mkdir()
    assert "adapter_config.json: no such file" in refused(empty, model)
    (empty / "adapter_model.bin").touch()
    assert "pickle files can run code" in refused(empty, model)
    folder = golden.write(tmp_path / "adapter")
    weights = folder / "adapter_model.safetensors"
    for size in (0, 4, 100, weights.stat().st_size - 1):
        weights.write_bytes(golden.arrays["weights"].tobytes()[:size])
        assert "is truncated or damaged" in refused(folder, model)
    weights.unlink()
    assert "no such file" in str(refused(folder, model)).lower()
    (folder / "adapter_config.json").write_text("{")
    assert "is no JSON" in refused(folder, model)
    (folder / "adapter_config.json").write_text("[]")
    assert "has no 'peft_type'" in refused(folder, model)


def test_a_file_of_the_directory_stands_for_it(golden: Golden, tmp_path: Path) -> None:
    folder = golden.write(tmp_path / "adapter")
    assert open_adapter(folder / "adapter_model.safetensors", golden.model()).experts()


GGUF_CHANGES: list[tuple[dict[str, Any], str]] = [
    ({"architecture": "llama"}, "made for architecture llama, but model.gguf is qwen3moe"),
    ({"adapter": "control_vector"}, "adapter.type is 'control_vector'"),
    ({"alora": [1, 2]}, "an activated LoRA"),
    ({"type": "model"}, "a model, not an adapter"),
]


@pytest.mark.parametrize(("changes", "said"), GGUF_CHANGES, ids=[said for _, said in GGUF_CHANGES])
def test_refused_gguf(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    model = tensors("qwen3moe", 1, EXPERTS, HIDDEN, WIDTH)
    assert said in refused(write_lora(tmp_path / "a.gguf", lora_matrices(model, ("up",)), **changes), model)


def test_refused_gguf_tensors(tmp_path: Path) -> None:
    model = tensors("qwen3moe", 1, EXPERTS, HIDDEN, WIDTH)
    path, matrices = tmp_path / "a.gguf", lora_matrices(model, ("up",))
    (a, up_a), (b, up_b) = matrices.items()
    assert "has lora_a but no lora_b" in refused(write_lora(path, {a: up_a}), model)
    assert "has lora_b but no lora_a" in refused(write_lora(path, {b: up_b}), model)
    assert "an adapter of another model" in refused(write_lora(path, {a: up_a[:3], b: up_b[:3]}), model)
    assert "an adapter of another model" in refused(
        write_lora(path, {a: up_a, b: up_b.transpose(0, 2, 1)}), model
    )
    later = {name.replace("blk.0", "blk.7"): array for name, array in matrices.items()}
    assert "has no up experts in layer 7" in refused(write_lora(path, later), model)
    query = {f"blk.0.attn_q.weight.lora_{side}": np.ones((4, 4), np.float32) for side in "ab"}
    assert "has no LoRA of experts" in refused(write_lora(path, query), model)
    both = write_lora(path, {**matrices, **query, "blk.0.attn_norm.weight": np.ones(4, np.float32)})
    assert "weights: blk.0.attn_norm.weight, blk.0.attn_q.weight; " in refused(both, model)
    assert open_adapter(both, model, allow_others=True).others == [
        "blk.0.attn_norm.weight",
        "blk.0.attn_q.weight",
    ]
    fused = lora_matrices(model, ("gate_up", "up"))
    assert "expected one of both" in refused(write_lora(path, fused), model)


def test_truncated_gguf(tmp_path: Path) -> None:
    model = tensors("qwen3moe", 1, EXPERTS, HIDDEN, WIDTH)
    path = write_lora(tmp_path / "a.gguf", lora_matrices(model, ("up",)))
    whole = path.read_bytes()
    for size in (4, 20, 100, 200, len(whole) // 2, len(whole) - 40):
        path.write_bytes(whole[:size])
        assert "truncated or damaged" in refused(path, model)


def test_refused_pairs(tmp_path: Path) -> None:
    base, tuned = changed_pair(tmp_path, None, ())
    model = ExpertTensors.read(base)
    other = tiny_models.write_tiny(tmp_path / "olmoe.gguf", "olmoe")
    quantized = tiny_models.write_tiny(tmp_path / "q8.gguf", "qwen3moe", quant="q8_0")
    fewer = tiny_models.tiny_tensors("qwen3moe")
    del fewer["blk.3.attn_q.weight"]
    short = tiny_models.write_gguf(tmp_path / "short.gguf", "qwen3moe", fewer)
    smaller = {name: array[..., :32] if "exps" in name else array for name, array in fewer.items()}
    narrow = tiny_models.write_gguf(tmp_path / "narrow.gguf", "qwen3moe", smaller)
    cases: list[tuple[Path, Path, ExpertTensors, str]] = [
        (base, other, model, "architecture olmoe, but"),
        (base, quantized, model, "their difference would hold quantization error"),
        (base, short, model, r"lacks blk\.3\.attn_q\.weight"),
        (short, narrow, model, "they are no base and tuned model"),
        (base, tuned, ExpertTensors.read(other), "a pair of another model"),
        (base, tmp_path / "none.gguf", model, "no such model file"),
    ]
    for first, second, target, said in cases:
        with pytest.raises(InputError, match=said):
            open_pair(first, second, target)


def test_a_dense_model_has_no_experts(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="has no routed experts"):
        ExpertTensors.read(tiny_models.write_tiny(tmp_path / "dense.gguf", "dense-llama"))


@pytest.mark.parametrize("arch", tiny_models.ARCHITECTURES)
def test_expert_tensors_of_architectures(arch: str, tiny_path: Callable[..., Path]) -> None:
    spec = tiny_models.SPECS[arch]
    model = ExpertTensors.read(tiny_path(arch))
    assert model.architecture == arch and model.layers() == spec.moe_layers
    assert {kind for _, kind in model.shapes} <= set(KINDS)
    assert all(shape.experts == spec.n_experts for shape in model.shapes.values())


# llama.cpp itself


@pytest.mark.parametrize("alpha", [0.0, 6.0])
@pytest.mark.parametrize("arch", ["qwen3moe", "qwen2moe", "llama", "olmoe", "gpt-oss"])
def test_deltas_act_as_the_adapter_at_run_time(
    arch: str, alpha: float, llama: Any, tiny_path: Callable[..., Path], tmp_path: Path
) -> None:
    """Logits of a file with the deltas added equal those of llama.cpp with the adapter applied at run time."""
    scale = -0.7
    model = ExpertTensors.read(tiny_path(arch))
    matrices = {name: array / 10 for name, array in lora_matrices(model, ("gate", "up", "down")).items()}
    lora = write_lora(tmp_path / "lora.gguf", matrices, alpha, architecture=arch)
    deltas = open_adapter(lora, model)
    weights = tiny_models.tiny_tensors(arch)
    for layer, kind in model.shapes:
        for expert in range(model.shapes[layer, kind].experts):
            delta = deltas.delta(layer, expert, kind)
            if delta is not None:
                weights[f"blk.{layer}.ffn_{kind}_exps.weight"][expert] += scale * delta
    merged = logits(llama, tiny_models.write_gguf(tmp_path / "merged.gguf", arch, weights))
    wanted = logits(llama, tiny_path(arch), lora_path=str(lora), lora_scale=scale)
    untouched = logits(llama, tiny_path(arch))
    assert np.linalg.norm(merged - wanted) < 1e-5 * np.linalg.norm(wanted)
    assert np.linalg.norm(untouched - wanted) > 0.05 * np.linalg.norm(wanted)
