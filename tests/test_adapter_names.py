"""Names of routed experts in published adapters: applied, left out by name, or refused; never dropped unsaid."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models
from golden_adapters import GOLDEN, Golden, check, tensors
from lora_files import lora_matrices, write_lora
from safetensors.numpy import load, save_file

from safex.errors import InputError
from safex.merging import ExpertTensors, open_adapter
from safex.merging.opening import files_of
from safex.merging.peft_names import Module, is_routed, parse

MODEL = tensors("qwen3moe", 2, 3, 12, 10)

KNOWN = {
    "model.layers.3.mlp.experts.17.gate_proj": Module(3, 17, "gate"),
    "model.layers.3.block_sparse_moe.experts.1.w2": Module(3, 1, "down"),
    "model.language_model.layers.3.mlp.experts": Module(3),
    "language_model.model.layers.3.feed_forward.experts.base_layer": Module(3),
    "backbone.layers.3.mixer.experts": Module(3),
    "thinker.model.layers.3.mlp.experts.0.up_proj": Module(3, 0, "up"),
    "model.layers.3.block_sparse_moe.input_linear": Module(3),
    "model.layers.3.mlp.experts.gate_up_projs.5": Module(3, 5, "gate_up"),
}
UNKNOWN = [
    "transformer.blocks.0.ffn.experts.mlp",  # DBRX
    "model.layers.0.moe.deepspeed_moe.experts.deepspeed_experts.1.fc1",
    "decoder.layers.0.mlp.experts.local_experts.2.linear_fc1",  # Megatron
    "decoder.layers.0.mlp.experts.linear_fc1",
    "model.layers.0.mlp.experts.w1",  # all experts share a side
    "model.layers.0.mlp.switch_mlp.gate_proj",
    "model.layers.0.mlp.experts.1.side_proj",
    "model.layers.0.block_sparse_moe.input_linear.extra",
]
OTHERS = [
    "model.layers.0.self_attn.q_proj",
    "model.layers.0.mlp.shared_expert.up_proj",
    "model.layers.0.mlp.shared_experts.up_proj",
    "model.layers.0.shared_mlp.input_linear",
    "model.layers.0.mlp.gate",
    "mtp.layers.0.mlp.experts",
    "talker.model.layers.0.mlp.experts.2.up_proj",
    "model.visual.layers.0.mlp.experts.2.up_proj",
]


@pytest.mark.parametrize(("path", "module"), KNOWN.items())
def test_known_names(path: str, module: Module) -> None:
    assert parse(path) == module and is_routed(path)


@pytest.mark.parametrize("path", UNKNOWN)
def test_names_of_experts_that_are_not_known(path: str) -> None:
    assert parse(path) is None and is_routed(path)


@pytest.mark.parametrize("path", OTHERS)
def test_names_of_other_parts(path: str) -> None:
    assert parse(path) is None and not is_routed(path)


def with_more(folder: Path, *modules: str) -> Path:
    """A golden adapter of single experts' modules with further ones."""
    Golden(GOLDEN[-1], "modules-qwen3moe").write(folder)
    path = folder / "adapter_model.safetensors"
    sides = {"A": np.ones((2, 12), np.float32), "B": np.ones((10, 2), np.float32)}
    more = {
        f"base_model.model.{module}.lora_{side}.weight": array
        for module in modules
        for side, array in sides.items()
    }
    save_file(load(path.read_bytes()) | more, path)
    return folder


@pytest.mark.parametrize("allow", [False, True])
@pytest.mark.parametrize("path", UNKNOWN)
def test_unknown_experts_are_refused_by_name(path: str, allow: bool, tmp_path: Path) -> None:
    """Leaving out what is besides experts doesn't leave out experts."""
    with pytest.raises(InputError) as caught:
        open_adapter(with_more(tmp_path, path), MODEL, allow)
    assert f"{path} is no matrix of an expert that is known here" in str(caught.value)


@pytest.mark.parametrize(
    "path", ["mtp.layers.0.mlp.experts.1.up_proj", "talker.model.layers.1.mlp.experts.2.up_proj"]
)
def test_layers_of_other_parts_are_no_layers_of_the_model(path: str, tmp_path: Path) -> None:
    """They count from 0 too: taken for the model's, they change the wrong experts."""
    folder = with_more(tmp_path, path)
    with pytest.raises(InputError, match=f"more than experts' weights: {path}"):
        open_adapter(folder, MODEL)
    deltas = open_adapter(folder, MODEL, allow_others=True)
    assert deltas.others == [path]
    golden = Golden(GOLDEN[-1], "modules-qwen3moe")
    found = deltas.delta(0, 1, "up")
    assert found is not None
    np.testing.assert_allclose(found, golden.delta(0, "up")[1], rtol=1e-6, atol=1e-6)


def test_one_expert_under_two_names(tmp_path: Path) -> None:
    folder = with_more(tmp_path, "model.language_model.layers.0.mlp.experts.1.up_proj")
    with pytest.raises(InputError, match="is there twice, under two names"):
        open_adapter(folder, MODEL)


def test_gate_and_up_as_parameters_of_their_own(tmp_path: Path) -> None:
    folder = Golden(GOLDEN[-1], "qwen3moe").write(tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text())
    config["target_parameters"] = ["experts.gate_proj", "experts.up_proj", "experts.down_proj"]
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="has gate_proj and up_proj as parameters of their own"):
        open_adapter(folder, MODEL)


# --- llama.cpp's files


@pytest.mark.parametrize(
    "name", ["blk.0.ffn_down_exps.bias", "blk.0.ffn_gate.3.weight", "blk.1.ffn_up_chexps.weight"]
)
def test_gguf_tensors_of_experts_that_are_not_known(name: str, tmp_path: Path) -> None:
    model = tensors("qwen3moe", 2, 4, 64, 32)
    more = {f"{name}.lora_{side}": np.ones((4, 4), np.float32) for side in "ab"}
    path = write_lora(tmp_path / "a.gguf", {**lora_matrices(model, ("up",)), **more})
    with pytest.raises(InputError, match=f"changes {name} of routed experts"):
        open_adapter(path, model, allow_others=True)


def test_gguf_shared_experts_are_left_out(tmp_path: Path) -> None:
    model = tensors("qwen3moe", 2, 4, 64, 32)
    more = {f"blk.0.ffn_up_shexp.weight.lora_{side}": np.ones((4, 4), np.float32) for side in "ab"}
    path = write_lora(tmp_path / "a.gguf", {**lora_matrices(model, ("up",)), **more})
    assert open_adapter(path, model, allow_others=True).others == ["blk.0.ffn_up_shexp.weight"]


# --- mlx-lm's


MLX = Path(__file__).parent / "golden" / "mlx.npz"


def mlx(folder: Path, **config: object) -> tuple[Golden, Path]:
    golden = Golden(MLX, "mlx")
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps({**golden.config, **config}))
    (folder / "adapters.safetensors").write_bytes(golden.arrays["weights"].tobytes())
    return golden, folder


@pytest.mark.parametrize("fused", [False, True], ids=["split", "gate_up"])
@pytest.mark.parametrize("flat", [False, True], ids=["3-D", "older"])
def test_an_adapter_of_mlx(fused: bool, flat: bool, tmp_path: Path) -> None:
    """The deltas are those of its own fuse()."""
    golden, folder = mlx(tmp_path)
    if flat:
        weights = load((folder / "adapters.safetensors").read_bytes())
        older = {
            name: array.reshape(-1, array.shape[-1]) if name.endswith("lora_a") else array
            for name, array in weights.items()
        }
        save_file(older, folder / "adapters.safetensors")
    deltas = open_adapter(folder, golden.model(fused))
    check(deltas, golden.model(fused), golden.delta, 1e-6)
    assert [path.name for path in deltas.files] == ["adapter_config.json", "adapters.safetensors"]
    assert [path.name for path in files_of(folder / "adapters.safetensors")] == [p.name for p in deltas.files]


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ({"fine_tune_type": "dora"}, "fine_tune_type is 'dora', expected 'lora'"),
        ({"fine_tune_type": "full"}, "fine_tune_type is 'full'"),
        ({"lora_parameters": None}, "has scale None, expected a number"),
        ({"lora_parameters": {"scale": 1.0, "alpha": 16}}, "lora_parameters has alpha"),
    ],
)
def test_settings_of_mlx_that_are_refused(config: dict[str, object], said: str, tmp_path: Path) -> None:
    golden, folder = mlx(tmp_path, **config)
    with pytest.raises(InputError, match=said):
        open_adapter(folder, golden.model())


def test_parts_of_mlx_adapters(tmp_path: Path) -> None:
    golden, folder = mlx(tmp_path)
    path = folder / "adapters.safetensors"
    weights = load(path.read_bytes())
    query = {f"model.layers.0.self_attn.q_proj.lora_{side}": np.ones((2, 2), np.float32) for side in "ab"}
    save_file(weights | query, path)
    with pytest.raises(InputError, match=r"more than experts' weights: model\.layers\.0\.self_attn\.q_proj"):
        open_adapter(folder, golden.model())
    assert open_adapter(folder, golden.model(), True).others == ["model.layers.0.self_attn.q_proj"]
    other = {f"model.layers.0.mlp.switch_mlp.fc1.lora_{side}": np.ones((2, 2), np.float32) for side in "ab"}
    save_file(weights | other, path)
    with pytest.raises(InputError, match=r"switch_mlp\.fc1 is no matrix of an expert that is known"):
        open_adapter(folder, golden.model(), True)
    save_file({name: array for name, array in weights.items() if not name.endswith("b")}, path)
    with pytest.raises(InputError, match="is incomplete or there twice"):
        open_adapter(folder, golden.model())
    save_file({name: array[:2] for name, array in weights.items()}, path)
    with pytest.raises(InputError, match="an adapter of another model"):
        open_adapter(folder, golden.model())


# --- what is no adapter at all


def typed(path: Path, kind: str) -> Path:
    writer = gguf.GGUFWriter(path, "qwen3moe")
    writer.add_type(kind)
    writer.add_tensor("x", np.ones((1, 32), np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_an_adapter_that_is_something_else(tmp_path: Path) -> None:
    model = ExpertTensors.read(tiny_models.write_tiny(tmp_path / "tiny.gguf", "qwen3moe"))
    folder = tmp_path / "hf"
    folder.mkdir()
    cases = [
        (tmp_path / "tiny.gguf", r"a model, not an adapter; .* as a pair \(--base, --tuned\)"),
        (
            typed(tmp_path / "i.gguf", "imatrix"),
            r"an importance matrix \(--imatrix takes it\), not an adapter",
        ),
        (typed(tmp_path / "m.gguf", "mmproj"), "a mmproj, not an adapter"),
        (folder, r"adapter_config\.json: no such file"),
    ]
    for path, said in cases:
        with pytest.raises(InputError, match=said):
            open_adapter(path, model)
    inside = folder / "checkpoint-100"
    inside.mkdir()
    (inside / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match=r"holds no adapter_config\.json; .*: is .*checkpoint-100 meant"):
        open_adapter(folder, model)
    (folder / "config.json").write_text("{}")
    with pytest.raises(InputError, match="a model of Hugging Face, not an adapter"):
        open_adapter(folder, model)
