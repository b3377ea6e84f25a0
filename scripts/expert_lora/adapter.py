"""PEFT LoRA on the fused expert parameters of transformers 5, trained at chosen experts only.

PEFT adapts a 3-D parameter as a whole: lora_B is [out, rank * experts], and its columns e, experts + e, 2 experts + e
... belong to expert e. B starts at zero; with the gradient of other experts' columns set to zero it stays there, and
their deltas are exactly zero.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from safex.errors import InputError
from safex.experts import Expert

PARAMETER = re.compile(r"(?:.+\.)?layers\.(\d+)\..*experts\.(gate_up_proj|down_proj)")
LORA_B = re.compile(r".*layers\.(\d+)\..*\.lora_B\..*weight")
SUPPORTED = "Qwen3-MoE, Qwen2-MoE, Mixtral, OLMoE"


def load(checkpoint: Path, dtype: torch.dtype, device: str) -> PreTrainedModel:
    """The model of a local checkpoint. Raises InputError."""
    if not (checkpoint / "config.json").exists():
        raise InputError(
            f"{checkpoint}: has no config.json; expected a directory with a Hugging Face checkpoint"
        )
    try:
        model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, local_files_only=True)
        return model.to(device)
    except (OSError, ValueError) as error:
        raise InputError(f"{checkpoint}: can't be loaded ({str(error).splitlines()[0]})") from None


def wrap(model: PreTrainedModel, experts: Iterable[Expert], rank: int, alpha: float) -> PeftModel:
    """The model with LoRA on the layers of the chosen experts, all else frozen. Raises InputError."""
    by_layer: dict[int, list[int]] = defaultdict(list)
    for layer, expert in experts:
        by_layer[layer].append(expert)
    parameters = _parameters(model)
    _check(by_layer, parameters)
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=[],
        target_parameters=[name for layer in by_layer for name in parameters[layer]],
        task_type="CAUSAL_LM",
    )
    counts = {layer: _count(parameters[layer]) for layer in by_layer}
    wrapped = get_peft_model(model, config)
    config.target_parameters = sorted(config.target_parameters)  # a set otherwise, saved in any order
    for name, parameter in wrapped.named_parameters():
        found = LORA_B.fullmatch(name)
        if found:
            layer = int(found[1])
            _train_only(parameter, by_layer[layer], counts[layer])
    return wrapped


def _parameters(model: PreTrainedModel) -> dict[int, dict[str, nn.Parameter]]:
    """The fused parameters of each layer by name. Raises InputError."""
    found: dict[int, dict[str, nn.Parameter]] = defaultdict(dict)
    for name, parameter in model.named_parameters():
        match = PARAMETER.fullmatch(name)
        if match and parameter.dim() == 3:
            found[int(match[1])][name] = parameter
    if not found:
        raise InputError(
            f"{model.config.model_type}: has no experts.gate_up_proj and experts.down_proj; works with {SUPPORTED} of "
            "transformers 5"
        )
    return found


def _count(parameters: dict[str, nn.Parameter]) -> int:
    return len(next(iter(parameters.values())))


def _check(by_layer: dict[int, list[int]], parameters: dict[int, dict[str, nn.Parameter]]) -> None:
    for layer, experts in by_layer.items():
        if layer not in parameters:
            known = ", ".join(map(str, sorted(parameters)))
            raise InputError(
                f"layer {layer} of the checkpoint has no experts; its layers with experts are {known}"
            )
        count = _count(parameters[layer])
        if max(experts) >= count:
            raise InputError(
                f"expert {layer}:{max(experts)}: the checkpoint has experts 0 to {count - 1} in a layer"
            )


def _train_only(lora_b: nn.Parameter, experts: list[int], count: int) -> None:
    mask = torch.zeros(lora_b.shape[1], device=lora_b.device, dtype=lora_b.dtype)
    for expert in experts:
        mask[expert::count] = 1

    def keep(gradient: Tensor) -> Tensor:
        return gradient * mask

    lora_b.register_hook(keep)
