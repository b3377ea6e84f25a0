"""Write adapters made by PEFT and what PEFT's own merge adds to the weights: `golden/adapters_<PEFT version>.npz`.

python tests/reference/generate_adapters.py

The base weights of all experts are zero, so that the merged weights are the deltas. Needs PyTorch, transformers, peft;
versions of PEFT before 0.19 write other matrices, so that the tests read files of an old and a new one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
import transformers
from safetensors.torch import load_file, save_file

GOLDEN = Path(__file__).resolve().parents[1] / "golden"
LAYERS, EXPERTS = 2, 3
BOTH = ("experts.gate_up_proj", "experts.down_proj")


@dataclass(frozen=True)
class Case:
    """One adapter: of which architecture (GGUF's name), sizes h and f, and PEFT's settings."""

    architecture: str
    hidden: int = 12
    width: int = 10
    settings: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float32


def fused(*parameters: str, **settings: Any) -> dict[str, Any]:
    return {"r": 2, "lora_alpha": 5, "target_modules": [], "target_parameters": list(parameters), **settings}


PATTERNS = {
    "rank_pattern": {"gate_up_proj": 3, r"layers\.1\.mlp\.experts\.down_proj": 4},
    "alpha_pattern": {"layers.0.mlp.experts.gate_up_proj": 7, "down_proj": 9},
}
FUSED = {
    "qwen3moe": Case("qwen3moe", settings=fused(*BOTH)),
    "qwen3moe-bf16": Case("qwen3moe", settings=fused(*BOTH), dtype=torch.bfloat16),
    "qwen2moe-patterns": Case("qwen2moe", settings=fused(*BOTH, **PATTERNS)),
    "mixtral-rslora": Case("llama", settings=fused(*BOTH, use_rslora=True, **PATTERNS)),
    "olmoe-down": Case("olmoe", settings=fused(BOTH[1])),
    "olmoe-square": Case("olmoe", hidden=12, width=6, settings=fused(BOTH[0])),
    "qwen3moe-square": Case("qwen3moe", hidden=12, width=12, settings=fused(*BOTH)),
    "gpt-oss": Case("gpt-oss", settings=fused(*BOTH)),
    "gpt-oss-square": Case("gpt-oss", hidden=12, width=12, settings=fused(BOTH[1])),
    "llama4": Case("llama4", settings=fused(*BOTH)),
    "llama4-square": Case("llama4", hidden=12, width=6, settings=fused(BOTH[0])),
}
SIZES = {  # class, names of expert count and width, transposed and interleaved storage
    "qwen3moe": ("Qwen3Moe", "num_experts", "moe_intermediate_size", False, False),
    "qwen2moe": ("Qwen2Moe", "num_experts", "moe_intermediate_size", False, False),
    "llama": ("Mixtral", "num_local_experts", "intermediate_size", False, False),
    "olmoe": ("Olmoe", "num_experts", "intermediate_size", False, False),
    "gpt-oss": ("GptOss", "num_local_experts", "intermediate_size", True, True),
    "llama4": ("Llama4Text", "num_local_experts", "intermediate_size", True, False),
}


def base_model(case: Case) -> torch.nn.Module:
    """A small model of transformers whose experts' weights are zero."""
    name, experts, width, *_ = SIZES[case.architecture]
    sizes = {experts: EXPERTS, width: case.width, "hidden_size": case.hidden, "num_experts_per_tok": 1}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 4}
    more = {"interleave_moe_layer_step": 1} if case.architecture == "llama4" else {}
    config = getattr(transformers, f"{name}Config")(
        vocab_size=16,
        num_hidden_layers=LAYERS,
        pad_token_id=None,
        bos_token_id=0,
        eos_token_id=1,
        **sizes,
        **heads,
        **more,
    )
    model = getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM")(config).to(case.dtype)
    for _, parameter in expert_parameters(model):
        parameter.data.zero_()
    return model


def expert_parameters(model: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, p) for name, p in model.named_parameters() if ".experts." in name and "bias" not in name]


def deltas(merged: torch.nn.Module, case: Case) -> dict[str, np.ndarray]:
    """The merged weights by ``layer/kind``: [experts, out, in], float32."""
    *_, transposed, interleaved = SIZES[case.architecture]
    found = {}
    for name, parameter in expert_parameters(merged):
        weight = parameter.detach().float()
        weight = weight.transpose(1, 2) if transposed else weight
        layer = name.split("layers.")[1].split(".")[0]
        if "down" in name:
            found[f"{layer}/down"] = weight
        elif interleaved:
            found[f"{layer}/gate"], found[f"{layer}/up"] = weight[:, ::2], weight[:, 1::2]
        else:
            found[f"{layer}/gate"], found[f"{layer}/up"] = weight.chunk(2, dim=1)
    return {key: value.numpy() for key, value in found.items()}


def fused_case(case: Case, folder: Path) -> dict[str, np.ndarray]:
    """Train nothing: PEFT draws A and B at random, saves them, and merges them."""
    config = peft.LoraConfig(init_lora_weights=False, **case.settings)
    model = peft.get_peft_model(base_model(case), config)
    model.save_pretrained(folder)
    return deltas(model.merge_and_unload(), case)


class Expert(torch.nn.Module):
    """An expert as transformers below 5 has it."""

    def __init__(self, hidden: int, width: int, names: tuple[str, str, str]) -> None:
        super().__init__()
        sides = ((hidden, width), (hidden, width), (width, hidden))
        for name, (inner, out) in zip(names, sides, strict=True):
            setattr(self, name, torch.nn.Linear(inner, out, bias=False))


class Block(torch.nn.Module):
    def __init__(self, hidden: int, width: int, names: tuple[str, str, str]) -> None:
        super().__init__()
        self.experts = torch.nn.ModuleList(Expert(hidden, width, names) for _ in range(EXPERTS))


class Layer(torch.nn.Module):
    def __init__(self, block: str, *sizes: Any) -> None:
        super().__init__()
        setattr(self, block, Block(*sizes))


class Old(torch.nn.Module):
    """Only the names of a model of transformers below 5, whose experts are modules of their own."""

    def __init__(self, block: str, hidden: int, width: int, names: tuple[str, str, str]) -> None:
        super().__init__()
        self.model = torch.nn.Module()
        self.model.layers = torch.nn.ModuleList(Layer(block, hidden, width, names) for _ in range(LAYERS))
        for parameter in self.parameters():
            parameter.data.zero_()


PROJ, W = ("gate_proj", "up_proj", "down_proj"), ("w1", "w3", "w2")
MODULES = {
    "modules-qwen3moe": ("mlp", PROJ, "qwen3moe", {"target_modules": list(PROJ), "r": 2, "lora_alpha": 3}),
    "modules-mixtral": ("block_sparse_moe", W, "llama", {"target_modules": list(W), "r": 2, "lora_alpha": 3}),
    "modules-patterns": (
        "mlp",
        PROJ,
        "qwen2moe",
        {
            "target_modules": r".*experts\.[02]\.(gate|down)_proj",
            "r": 3,
            "lora_alpha": 4,
            "use_rslora": True,
            "rank_pattern": {"down_proj": 2, r"experts\.2\.gate_proj": 1},
            "alpha_pattern": {"model.layers.1.mlp.experts.0.down_proj": 11},
        },
    ),
}
KINDS = ("gate", "up", "down")


def modules_case(name: str, folder: Path) -> dict[str, np.ndarray]:
    """An adapter of single experts' modules, merged by PEFT; unmerged matrices stay zero."""
    block, names, _, settings = MODULES[name]
    model = peft.get_peft_model(
        Old(block, 12, 10, names), peft.LoraConfig(init_lora_weights=False, **settings)
    )
    model.save_pretrained(folder)
    merged = model.merge_and_unload()
    found = {}
    for number, layer in enumerate(merged.model.layers):
        experts = getattr(layer, block).experts
        for kind, leaf in zip(KINDS, names, strict=True):
            found[f"{number}/{kind}"] = np.stack([getattr(e, leaf).weight.detach().numpy() for e in experts])
    return found


def check_converted(case: Case, folder: Path, expected: Mapping[str, np.ndarray]) -> None:
    """PEFT loads the modules of a transformers 4 adapter into the fused parameters of transformers 5: same deltas."""
    model = peft.PeftModel.from_pretrained(base_model(case), folder).merge_and_unload()
    for key, value in deltas(model, case).items():
        np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-6)


def packed(folder: Path, case: Case, found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The adapter's two files, the model's sizes and the deltas, as arrays."""
    weights = folder / "adapter_model.safetensors"
    save_file(load_file(weights), weights)  # without padding or metadata that depend on the version
    return {
        "config": np.frombuffer((folder / "adapter_config.json").read_bytes(), np.uint8),
        "weights": np.frombuffer(weights.read_bytes(), np.uint8),
        "architecture": np.array(case.architecture),
        "sizes": np.array([LAYERS, EXPERTS, case.hidden, case.width]),
        **{f"delta/{key}": np.ascontiguousarray(value) for key, value in found.items()},
    }


def main() -> None:
    """Write the file of the installed version of PEFT."""
    version = tuple(int(part) for part in peft.__version__.split(".")[:2])
    arrays: dict[str, np.ndarray] = {}
    for number, name in enumerate([*FUSED, *MODULES]):
        torch.manual_seed(number)
        with tempfile.TemporaryDirectory() as folder:
            if name in FUSED:
                case = FUSED[name]
                found = fused_case(case, Path(folder))
            else:
                case = Case(MODULES[name][2])
                found = modules_case(name, Path(folder))
                if "pattern" not in name and version >= (0, 19):
                    check_converted(case, Path(folder), found)
            arrays |= {f"{name}/{key}": value for key, value in packed(Path(folder), case, found).items()}
    arrays["versions"] = np.array([peft.__version__, transformers.__version__, torch.__version__])
    path = GOLDEN / f"adapters_{version[0]}.{version[1]}.npz"
    np.savez_compressed(path, **arrays)
    print(f"{path.name}: {len([*FUSED, *MODULES])} adapters, {path.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
