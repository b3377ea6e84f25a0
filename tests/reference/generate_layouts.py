"""Write adapters of further layouts and what they add to the weights: `golden/layouts_<PEFT version>.npz`.

python tests/reference/generate_layouts.py

Cases, all saved by PEFT itself:

- ``unsloth-*``: lora_B in blocks, as Unsloth trained it before unsloth_zoo 2026.9.6 (its forward views B as
  [out, experts, rank], where PEFT's merge has [out, rank, experts]); with what it left in adapter_config.json. The
  deltas are that forward's: Unsloth itself needs a GPU.
- ``granite``: experts of GraniteMoe before transformers 5, one parameter "weight" in each of two modules.
- ``nemotron``: up and down as parameters of their own, no gate.
- ``gpt-oss-4bit``: modules of single experts, named gate_up_projs.E and down_projs.E.

Needs PyTorch, transformers, peft (0.18 and a version since 0.19 write different sides).
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import generate_adapters as base
import numpy as np
import peft
import torch
import transformers
from generate_adapters import EXPERTS, LAYERS, Case, fused
from safetensors.torch import load_file

HIDDEN, WIDTH, RANK = 12, 10, 2
Deltas = dict[str, np.ndarray]
UNSLOTH = {"base_model_class": "{}ForCausalLM", "parent_library": "transformers.models.{}.modeling_{}"}


def adapted(model: torch.nn.Module, folder: Path, **settings: Any) -> torch.nn.Module:
    """The model with an adapter of random A and B, which is saved."""
    config = peft.LoraConfig(init_lora_weights=False, task_type=None, **settings)
    tuned = peft.get_peft_model(model, config)
    tuned.save_pretrained(folder)
    return tuned


# --- Unsloth


def unsloth_case(case: Case, family: str, folder: Path, record: bool) -> Deltas:
    """The deltas of Unsloth's own forward, X @ A_e^T @ B_e^T with B in blocks."""
    adapted(base.base_model(case), folder, **case.settings)
    weights = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    config["auto_mapping"] = {key: value.format(family, family) for key, value in UNSLOTH.items()}
    config["auto_mapping"]["unsloth_fixed"] = True
    if record:
        entry = {"lora_B_layout": "grouped_by_expert", "num_experts": EXPERTS}
        names = [name.rpartition(".")[2] for name in config["target_parameters"]]
        config["unsloth_fused_expert_lora"] = {
            "lora_A_layout": "grouped_by_expert",
            "parameters": dict.fromkeys(names, entry),
            "lora_B_layout": "grouped_by_expert",
        }
        config["lora_B_layout"] = "grouped_by_expert"
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    scaling = config["lora_alpha"] / config["r"]
    model = base.base_model(case)
    for name, parameter in base.expert_parameters(model):
        parameter.data.copy_(_blocks(weights, name, parameter.shape) * scaling)
    return base.deltas(model, case)


def _blocks(weights: dict[str, torch.Tensor], name: str, shape: torch.Size) -> torch.Tensor:
    """What the adapter's matrices of a parameter add to it [experts, *, *]: PEFT wraps gate_up_proj first."""
    path, _, parameter = name.rpartition(".")
    module = "base_model.model." + path + (".base_layer" if parameter == "gate_up_proj" else "")
    a, b = (weights[f"{module}.lora_{side}.weight"] for side in "AB")
    a = a.reshape(EXPERTS, RANK, -1)  # [experts, rank, in]
    b = b.reshape(-1, EXPERTS, RANK).permute(1, 2, 0)  # [experts, rank, out]
    delta = torch.einsum("eri,ero->eio", a, b)  # x @ delta
    if shape[1] == shape[2]:
        raise AssertionError("the sizes of a case must tell the sides apart")
    return delta if delta.shape[1:] == shape[1:] else delta.transpose(1, 2)


# --- layouts of other models


class ParallelExperts(torch.nn.Module):
    """One linear layer of all experts, as GraniteMoe had it: only its parameter."""

    def __init__(self, inner: int, out: int) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(EXPERTS, out, inner))


class GraniteBlock(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.input_linear = ParallelExperts(HIDDEN, 2 * WIDTH)
        self.output_linear = ParallelExperts(WIDTH, HIDDEN)


class NemotronExperts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up_proj = torch.nn.Parameter(torch.zeros(EXPERTS, WIDTH, HIDDEN))
        self.down_proj = torch.nn.Parameter(torch.zeros(EXPERTS, HIDDEN, WIDTH))


class GptOssExperts(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        sides = {"gate_up_projs": (HIDDEN, 2 * WIDTH), "down_projs": (WIDTH, HIDDEN)}
        for name, (inner, out) in sides.items():
            linears = torch.nn.ModuleList(torch.nn.Linear(inner, out, bias=False) for _ in range(EXPERTS))
            setattr(self, name, linears)
        for parameter in self.parameters():
            parameter.data.zero_()


def model_of(path: str, make: Callable[[], torch.nn.Module]) -> torch.nn.Module:
    """A model with such a block at ``path`` below each layer (the first name of ``path`` is the model's)."""
    root, *inside = path.split(".")
    model = torch.nn.Module()
    setattr(model, root, torch.nn.Module())
    layers = []
    for _ in range(LAYERS):
        layer = at = torch.nn.Module()
        for name in inside[:-1]:
            setattr(at, name, torch.nn.Module())
            at = getattr(at, name)
        setattr(at, inside[-1], make())
        layers.append(layer)
    getattr(model, root).layers = torch.nn.ModuleList(layers)
    return model


def merged(model: torch.nn.Module, folder: Path, **settings: Any) -> dict[str, torch.Tensor]:
    """What PEFT's merge made of the parameters, by name."""
    done = adapted(model, folder, **settings).merge_and_unload()
    return {name: parameter.detach() for name, parameter in done.named_parameters()}


def granite(folder: Path) -> Deltas:
    names = ["block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"]
    found = merged(model_of("model.block_sparse_moe", GraniteBlock), folder, **fused(*names))
    return by_kind(found, "input_linear.weight", "output_linear.weight")


def nemotron(folder: Path) -> Deltas:
    names = ["experts.up_proj", "experts.down_proj"]
    found = merged(model_of("backbone.mixer.experts", NemotronExperts), folder, **fused(*names))
    deltas = {}
    for layer in range(LAYERS):
        place = f"backbone.layers.{layer}.mixer.experts."
        deltas[f"{layer}/up"] = found[place + "up_proj"].numpy()
        deltas[f"{layer}/down"] = found[place + "down_proj"].numpy()
    return deltas


def by_kind(found: dict[str, torch.Tensor], both: str, down: str) -> Deltas:
    deltas = {}
    for layer in range(LAYERS):
        place = f"model.layers.{layer}.block_sparse_moe."
        deltas[f"{layer}/gate"], deltas[f"{layer}/up"] = (
            half.numpy() for half in found[place + both].chunk(2, 1)
        )
        deltas[f"{layer}/down"] = found[place + down].numpy()
    return deltas


def gpt_oss_4bit(folder: Path) -> Deltas:
    targets = [f"{leaf}.{expert}" for leaf in ("gate_up_projs", "down_projs") for expert in (0, 2)]
    settings = {"r": 2, "lora_alpha": 3, "target_modules": targets}
    found = merged(model_of("model.mlp.experts", GptOssExperts), folder, **settings)
    deltas = {}
    for layer in range(LAYERS):
        place = f"model.layers.{layer}.mlp.experts."
        both, down = (
            torch.stack([found[f"{place}{leaf}.{expert}.weight"] for expert in range(EXPERTS)]).numpy()
            for leaf in ("gate_up_projs", "down_projs")
        )
        deltas |= {f"{layer}/gate": both[:, ::2], f"{layer}/up": both[:, 1::2], f"{layer}/down": down}
    return deltas


CASES: dict[str, tuple[str, Callable[[Path], Deltas]]] = {
    "unsloth-qwen3moe": (
        "qwen3moe",
        lambda folder: unsloth_case(
            Case("qwen3moe", settings=fused(*base.BOTH)), "qwen3_moe", folder, record=False
        ),
    ),
    "unsloth-gpt-oss": (
        "gpt-oss",
        lambda folder: unsloth_case(
            Case("gpt-oss", settings=fused(*base.BOTH)), "gpt_oss", folder, record=False
        ),
    ),
    "unsloth-recorded": (
        "qwen3moe",
        lambda folder: unsloth_case(
            Case("qwen3moe", settings=fused(*base.BOTH)), "qwen3_moe", folder, record=True
        ),
    ),
    "granite": ("granitemoe", granite),
    "nemotron": ("nemotron_h_moe", nemotron),
    "gpt-oss-4bit": ("gpt-oss", gpt_oss_4bit),
}


def main() -> None:
    """Write the file of the installed version of PEFT."""
    arrays: dict[str, np.ndarray] = {}
    for number, (name, (architecture, make)) in enumerate(CASES.items()):
        torch.manual_seed(number)
        with tempfile.TemporaryDirectory() as folder:
            found = make(Path(folder))
            packed = base.packed(Path(folder), Case(architecture, HIDDEN, WIDTH), found)
            arrays |= {f"{name}/{key}": value for key, value in packed.items()}
    arrays["versions"] = np.array([peft.__version__, transformers.__version__, torch.__version__])
    version = ".".join(peft.__version__.split(".")[:2])
    path = base.GOLDEN / f"layouts_{version}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len(CASES)} adapters, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
