"""``adapter_config.json`` of PEFT: the rank and scaling of each module, and refusals of all that is not plain LoRA."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from safex.errors import InputError
from safex.merging import b_layout
from safex.merging.b_layout import Origin
from safex.profile_arrays import shorten
from safex.result_file import read_json

NAME = "adapter_config.json"
T = TypeVar("T")
MOST = 1e9  # alpha; a larger one is a mistake

# Settings that say nothing of what is merged, or are read below. Any other one that is set is refused, since later
# versions of PEFT add variants of LoRA as further settings.
HARMLESS = (
    *("peft_type", "task_type", "auto_mapping", "base_model_name_or_path", "revision", "inference_mode"),
    *("peft_version", "r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora", "target_modules"),
    *("exclude_modules", "target_parameters", "layers_to_transform", "layers_pattern", "lora_dropout"),
    *("init_lora_weights", "bias", "modules_to_save", "loftq_config", "eva_config", "corda_config"),
    *("lora_ga_config", "megatron_core", "qalora_group_size", "runtime_config", "ensure_weight_tying"),
    *(b_layout.FLAT, b_layout.DETAIL),
)
# Ways to start that subtract the start from the base weights (those with a number too: pissa_niter_16).
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
BIAS = ("none", None)


@dataclass(frozen=True)
class PeftConfig:
    """What a merge needs to know. ``parameters``: the last names of ``target_parameters``."""

    rank: int
    alpha: float
    ranks: Mapping[str, int]
    alphas: Mapping[str, float]
    rslora: bool
    parameters: frozenset[str]
    version: tuple[int, ...] | None
    origin: Origin

    @classmethod
    def load(cls, path: Path) -> PeftConfig:
        """Read the file. Raises InputError naming the setting that is missing, wrong or changes the maths."""
        return read_json(path, "the configuration that PEFT saves beside an adapter", _parse)

    def rank_of(self, module: str) -> int:
        """The rank of a module (or parameter) by its path in the model."""
        return _by_pattern(self.ranks, module, self.rank)

    def scaling(self, module: str) -> float:
        """What multiplies B A: alpha / r, or alpha / sqrt(r) with ``use_rslora`` (peft.tuners.lora.layer)."""
        alpha, rank = _by_pattern(self.alphas, module, self.alpha), self.rank_of(module)
        return alpha / (math.sqrt(rank) if self.rslora else rank)


def _by_pattern(patterns: Mapping[str, T], module: str, default: T) -> T:
    """The value of the first pattern that matches a module's path or its end, as ``peft.utils.get_pattern_key``."""
    found = (value for pattern, value in patterns.items() if re.match(rf"(.*\.)?({pattern})$", module))
    return next(found, default)


def _parse(value: Any) -> PeftConfig:
    if not isinstance(value, Mapping) or "peft_type" not in value:
        raise InputError("has no 'peft_type': expected the configuration that PEFT saves beside an adapter")
    _refuse(value)
    return PeftConfig(
        rank=_whole(value.get("r"), "r"),
        alpha=_number(value.get("lora_alpha"), "lora_alpha"),
        ranks=_table(value, "rank_pattern", _whole),
        alphas=_table(value, "alpha_pattern", _number),
        rslora=bool(value.get("use_rslora")),
        parameters=frozenset(name.rpartition(".")[2] for name in _names(value, "target_parameters")),
        version=_version(value.get("peft_version")),
        origin=Origin.of(value),
    )


def _refuse(value: Mapping[str, Any]) -> None:
    if value["peft_type"] != "LORA":
        raise InputError(
            f"peft_type is {value['peft_type']!r}, expected 'LORA': other adapters can't be merged here"
        )
    setting = next(
        (name for name in value if name not in HARMLESS and value[name] not in (None, False, {}, [])), None
    )
    if setting == "fan_in_fan_out":
        raise InputError(
            "fan_in_fan_out is set: its weights are transposed, and no expert's are: train without it"
        )
    if setting is not None:
        raise InputError(
            f"{setting} is set: only plain LoRA can be merged (B A times alpha / r): train without it"
        )
    if value.get("bias") not in BIAS:
        raise InputError(
            f"bias is {value['bias']!r}: it trained biases too, expected 'none': train without them"
        )
    start = value.get("init_lora_weights")
    if isinstance(start, str) and start.lower().startswith(CHANGE_THE_BASE):
        raise InputError(
            f"init_lora_weights is {start!r}, which also changed the base weights: save the adapter again with "
            "path_initial_model_for_weight_conversion (PEFT's save_pretrained)"
        )


def _whole(value: Any, name: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InputError(f"{name} is {value!r}, expected a whole number above 0")
    return value


def _number(value: Any, name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) <= MOST:
        raise InputError(f"{name} is {shorten(value)}, expected a number of at most {MOST:.0e}")
    return float(value)


def _names(value: Mapping[str, Any], key: str) -> list[str]:
    names = value.get(key) or []
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise InputError(f"{key} is {names!r}, expected a list of names")
    return names


def _table(value: Mapping[str, Any], name: str, read: Callable[[Any, str], T]) -> dict[str, T]:
    table = value.get(name) or {}
    if not isinstance(table, dict):
        raise InputError(f"{name} is {type(table).__name__}, expected an object of patterns and numbers")
    for pattern in table:
        try:
            re.compile(pattern)
        except re.error as error:
            raise InputError(f"{name}: {pattern!r} is no regular expression ({error})") from None
    return {pattern: read(number, f"{name} of {pattern!r}") for pattern, number in table.items()}


def _version(text: Any) -> tuple[int, ...] | None:
    found = re.match(r"(\d+)\.(\d+)", str(text))
    return (int(found[1]), int(found[2])) if found else None
