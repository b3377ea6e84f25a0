"""Opens an adapter of any format, told by its path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safex import model_file
from safex.errors import InputError
from safex.gguf_header import NotGgufError
from safex.merging.deltas import Deltas
from safex.merging.expert_tensors import ExpertTensors
from safex.merging.gguf_adapter import is_adapter, open_gguf_adapter
from safex.merging.gguf_weights import GgufWeights
from safex.merging.peft_adapter import WEIGHTS, open_peft
from safex.merging.peft_config import NAME

EXPECTED = f"a PEFT directory ({NAME}, {WEIGHTS}) or a LoRA of llama.cpp (.gguf)"


def open_adapter(path: str | os.PathLike[str], model: ExpertTensors, allow_others: bool = False) -> Deltas:
    """The deltas of a PEFT directory or a GGUF LoRA for the experts of ``model``.

    ``allow_others``: leave out what the adapter changes besides experts, instead of refusing it. Raises InputError:
    no adapter, one that is damaged, of another model, or of a kind that can't be merged.

    >>> open_adapter("missing", ExpertTensors.read("demo"))
    Traceback (most recent call last):
    safex.errors.InputError: missing: no such file or directory; expected a PEFT directory ...
    """
    place = _place(path)
    if not place.exists():
        raise InputError(f"{place}: no such file or directory; expected {EXPECTED}")
    if place.is_dir():
        return open_peft(place, model, allow_others)
    try:
        weights = GgufWeights([place])
    except NotGgufError:
        raise InputError(f"{place}: is no adapter; expected {EXPECTED}") from None
    if not is_adapter(weights):
        raise InputError(f"{place}: a model, not an adapter; give the model it was tuned from too, as a pair")
    return open_gguf_adapter(weights, model, allow_others)


def files_of(adapter: Any) -> list[Path]:
    """The files that an adapter consists of, or a pair (base, tuned) of models; whether they are there or not."""
    if isinstance(adapter, tuple):
        return [part for path in adapter for part in model_file.shards(model_file.resolve(path))]
    place = _place(adapter)
    return [place / NAME, place / WEIGHTS] if place.is_dir() else [place]


def _place(path: str | os.PathLike[str]) -> Path:
    """A PEFT directory may be named by one of its files."""
    place = Path(path)
    return place.parent if place.name in (NAME, WEIGHTS) else place
