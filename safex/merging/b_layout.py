"""Which columns of a fused parameter's ``lora_B`` belong to which expert.

All experts' B matrices lie side by side in one [out, rank * experts], in one of two orders of the same shape:

- ``interleaved``: expert e has the columns e, experts + e, ... So PEFT reads and writes them, and all that follow it.
- ``blocks``: expert e has the columns e * rank to (e + 1) * rank. So Unsloth trained them before unsloth_zoo 2026.9.6.

Since then Unsloth interleaves too, and records which it is in adapter_config.json: ``lora_B_layout``, or by parameter
in ``unsloth_fused_expert_lora``, of which a copy lies in ``auto_mapping``. Older files hold no more than
``unsloth_fixed``. ``lora_A`` is [experts * rank, in], one expert after the other, everywhere.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from safex.errors import InputError
from safex.merging.deltas import Array, BLayout
from safex.merging.safetensors_weights import SafetensorsWeights

INTERLEAVED, BLOCKS, AUTO = "interleaved", "blocks", "auto"
CHOICES = (AUTO, INTERLEAVED, BLOCKS)

RECORDED = {"rank_major": INTERLEAVED, "grouped_by_expert": BLOCKS}
FLAT, DETAIL = "lora_B_layout", "unsloth_fused_expert_lora"  # of adapter_config.json
SINCE = "unsloth_zoo 2026.9.6"

# Models of transformers whose experts Unsloth's own forward computed before it interleaved, and the architectures of
# their GGUF files. PEFT's forward trained all others, so that they interleave.
FAMILIES = {
    "deepseek_v3": "deepseek2",
    "ernie4_5_moe": "ernie4_5-moe",
    "ernie4_5_vl_moe": "ernie4_5-moe",
    "gemma4": "gemma4",
    "glm4_moe": "glm4moe",
    "glm4_moe_lite": "deepseek2",
    "gpt_oss": "gpt-oss",
    "lfm2_moe": "lfm2moe",
    "mixtral": "llama",
    "qwen3_5_moe": "qwen35moe",
    "qwen3_moe": "qwen3moe",
    "qwen3_next": "qwen3next",
    "qwen3_vl_moe": "qwen3vlmoe",
}
SHARED = ("deepseek2",)  # architectures of a family above and of others as well
LIBRARY = re.compile(r"(?:transformers\.models\.|.*unsloth_compiled_module_)(\w+)")
README, README_SIZE = "README.md", 1 << 16
CHUNK = 1 << 18  # numbers read at a time


class Pair(NamedTuple):
    """The names of a B and an A of ``experts`` experts."""

    weights: SafetensorsWeights
    b: str
    a: str
    experts: int


@dataclass(frozen=True)
class Origin:
    """What adapter_config.json says of who trained the adapter.

    ``record``: the value recorded for a parameter, or for all of them under "". ``family``: the model's name in
    transformers.
    """

    record: Mapping[str, Any]
    unsloth: bool = False
    family: str | None = None

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Origin:
        """Read it."""
        found = config.get("auto_mapping")
        mapping = found if isinstance(found, Mapping) else {}
        library = LIBRARY.match(str(mapping.get("parent_library")))
        family = library[1].partition(".")[0] if library else None
        return cls(_recorded(config) or _recorded(mapping), bool(mapping.get("unsloth_fixed")), family)


def _recorded(config: Mapping[str, Any]) -> dict[str, Any]:
    detail = config.get(DETAIL)
    parameters = detail.get("parameters") if isinstance(detail, Mapping) else None
    found: dict[str, Any] = {}
    if config.get(FLAT) is not None:
        found[""] = config[FLAT]
    if isinstance(parameters, Mapping):
        found |= {
            str(name): entry.get(FLAT) for name, entry in parameters.items() if isinstance(entry, Mapping)
        }
    return found


def decide(
    pairs: Mapping[str, Sequence[Pair]], origin: Origin, folder: Path, architecture: str, asked: str = AUTO
) -> dict[str, BLayout]:
    """The layout of each parameter, from all its ``pairs``. Raises InputError where it can't be told.

    What was asked for counts first, then the record, zero columns that only one layout explains, and who trained it.
    """
    fits = {name: _fits(of) for name, of in pairs.items()}
    return {name: _one(name, of, fits, origin, folder, architecture, asked) for name, of in pairs.items()}


def _one(
    name: str,
    pairs: Sequence[Pair],
    fits: Mapping[str, set[str]],
    origin: Origin,
    folder: Path,
    architecture: str,
    asked: str,
) -> BLayout:
    record = origin.record.get(name, origin.record.get(""))
    recorded = RECORDED.get(record)
    only = _only(fits[name])
    if asked != AUTO:
        against = [f"{FLAT} says {record}"] if record is not None and recorded != asked else []
        against += [f"zero columns of lora_B fit {only} alone"] if only not in (None, asked) else []
        return BLayout(asked, f"asked for, though {' and '.join(against)}" if against else "asked for")
    if record is not None and recorded is None:
        raise InputError(
            f"{folder}: {FLAT} of {name} is {record!r} in adapter_config.json, expected one of {', '.join(RECORDED)}: "
            f"correct it, or say which it is with --b-layout {INTERLEAVED} or {BLOCKS}"
        )
    if all(_rank(pair) == 1 or pair.experts == 1 for pair in pairs):
        return BLayout(INTERLEAVED, "rank 1: both layouts are the same")
    if recorded:
        if only not in (None, recorded):
            raise InputError(
                f"{folder}: {FLAT} of {name} says {record}, but the zero columns of lora_B fit the layout {only} "
                f"alone: say which is right with --b-layout {INTERLEAVED} or {BLOCKS}"
            )
        return BLayout(recorded, f"{FLAT} is {record}")
    if only:
        return BLayout(only, "no other layout explains which columns of lora_B are zero")
    together = _only(set.intersection(*fits.values()))
    if together:
        return BLayout(together, "no other layout explains which columns of the adapter's lora_B are zero")
    return _by_trainer(origin, folder, architecture)


def _by_trainer(origin: Origin, folder: Path, architecture: str) -> BLayout:
    """Without a record and zero columns: as the tool that trained it packed them. Raises InputError."""
    if origin.unsloth:
        family = origin.family
        if family in FAMILIES or (family is None and _family_of(architecture)):
            return BLayout(BLOCKS, f"trained by Unsloth before {SINCE} (unsloth_fixed without {FLAT})")
        if family is not None or architecture not in SHARED:
            return BLayout(INTERLEAVED, "trained by Unsloth, which left this model's experts to PEFT")
    elif not _says_unsloth(folder / README):
        return BLayout(INTERLEAVED, "PEFT's own, and nothing says Unsloth")
    where = "adapter_config.json" if origin.unsloth else README
    raise InputError(
        f"{folder}: {where} says Unsloth, which packed lora_B of fused experts in blocks before {SINCE} and as PEFT "
        f"since, and {FLAT} is not recorded: no column tells which it is: say so with --b-layout {BLOCKS} or "
        f"{INTERLEAVED}"
    )


def _family_of(architecture: str) -> bool:
    return architecture in FAMILIES.values() and architecture not in SHARED


def _says_unsloth(readme: Path) -> bool:
    """Whether a model card names Unsloth other than in the names of models."""
    try:
        with readme.open(encoding="utf-8", errors="replace") as file:
            text = file.read(README_SIZE).lower()
    except OSError:
        return False
    return "unsloth" in re.sub(r"unsloth/\S*", "", text)


# --- zero columns


def _only(fits: set[str]) -> str | None:
    return next(iter(fits)) if len(fits) == 1 else None


def _fits(pairs: Sequence[Pair]) -> set[str]:
    """The layouts in which every expert's B is all zero or has no zero column.

    B starts at zero and all of an expert's columns leave it at once, with the first token that is routed there. A rank
    whose row of A is zero says nothing.
    """
    fits = {INTERLEAVED, BLOCKS}
    for pair in pairs:
        columns, n, rank = _nonzero(pair, pair.b, 1), pair.experts, _rank(pair)
        if columns.all():
            continue
        rows = _nonzero(pair, pair.a, 0).reshape(n, rank)
        by = {INTERLEAVED: columns.reshape(rank, n).T, BLOCKS: columns.reshape(n, rank)}
        fits -= {layout for layout, used in by.items() if not _whole(used, rows)}
    return fits


def _whole(used: Array, rows: Array) -> bool:
    return bool((~(used & rows).any(1) | (used | ~rows).all(1)).all())


def _rank(pair: Pair) -> int:
    return pair.weights.shape(pair.b)[1] // pair.experts


def _nonzero(pair: Pair, name: str, axis: int) -> Array:
    """Which columns (axis 1) or rows (axis 0) of a matrix hold a number other than zero; stops when all do."""
    shape = pair.weights.shape(name)
    found = np.zeros(shape[axis], bool)
    step = max(1, CHUNK // shape[axis])
    for start in range(0, shape[1 - axis], step):
        part = np.s_[start : start + step]
        index = (part, slice(None)) if axis else (slice(None), part)
        found |= pair.weights.read(name, index).any(1 - axis)
        if found.all():
            break
    return found
