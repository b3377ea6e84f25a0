"""What A and B say of their models and settings, and where that differs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from safex.chat_settings import CHAT_KEYS
from safex.comparison.result import Row
from safex.errors import InputError
from safex.profile import Profile
from safex.profile_arrays import first_difference

# Settings that change what a profile or an expert set holds, apart from the model itself.
PROFILE_SETTINGS = (
    "model.architecture",
    "template_hash",
    "upstream_id",
    "tool_version",
    "session.flash_attn",
    "session.kv_type",
    "session.templated",
)
IDENTITY = ("model.fingerprint", "model.quant_types")
RESPONSE_SETTINGS = ("session.max_new",)
EXPERT_SET_SETTINGS = ("method", "phase", "rank", "top", "bootstrap", "stability", "subset", "fdr")
SHAPE = ("layers", "n_experts", "top_k")


def setting_warnings(a: Profile, b: Profile, phase: str) -> list[str]:
    """One line for each difference of two profiles' metadata that changes what was counted."""
    keys = PROFILE_SETTINGS + (RESPONSE_SETTINGS if phase == "response" else ())
    warnings = differences(a.meta, b.meta, keys) + chat_differences(a.meta, b.meta)
    if all(a.meta.get(key) is not None and a.meta.get(key) == b.meta.get(key) for key in IDENTITY):
        warnings.append("A and B have the same fingerprint and quantization: they are one model file")
    return warnings


def chat_differences(a: Mapping[str, Any], b: Mapping[str, Any]) -> list[str]:
    """One line for each setting of the chat that differs; a side that records none had none."""
    if not (a.get("template_hash") and b.get("template_hash")):
        return []
    found = (first_difference(key, a.get(key), b.get(key)) for key in CHAT_KEYS)
    return [f"A and B differ in {text}" for text in found if text]


def refuse_other_shape(a: Mapping[str, Any], b: Mapping[str, Any]) -> None:
    """Raise InputError where both sides know their layers, experts or top_k, and these differ."""
    for key in SHAPE:
        difference = first_difference(key, a[key], b[key]) if key in a and key in b else None
        if difference:
            raise InputError(f"A and B are models of different shapes: they differ in {difference}")


def differences(a: Mapping[str, Any], b: Mapping[str, Any], keys: Sequence[str]) -> list[str]:
    """One line for each setting that differs, one for those that only one side knows."""
    both = [key for key in keys if key in a and key in b]
    found = [first_difference(key, a[key], b[key]) for key in both]
    lines = [f"A and B differ in {text}" for text in found if text]
    unknown = [key for key in keys if (key in a) != (key in b)]
    if unknown:
        lines.append(f"known of one side only, so it can't be checked: {', '.join(unknown)}")
    return lines


def about(meta: Mapping[str, Any]) -> Row:
    """One side of the result: its model, and what made it; None where that isn't known."""
    model = {key: meta.get(f"model.{key}") for key in ("name", "fingerprint", "architecture", "quant_types")}
    others = ("upstream_id", "template_hash", "tool_version")
    return {"path": None, **model, **{key: meta.get(key) for key in others}}
