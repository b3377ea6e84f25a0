"""Opens an adapter of any format, told by its path."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from safex import model_file
from safex.errors import InputError
from safex.gguf_header import NotGgufError
from safex.merging.b_layout import AUTO
from safex.merging.deltas import Deltas
from safex.merging.expert_tensors import ExpertTensors
from safex.merging.gguf_adapter import is_adapter, open_gguf_adapter
from safex.merging.gguf_weights import GgufWeights
from safex.merging.mlx_adapter import WEIGHTS as MLX_WEIGHTS
from safex.merging.mlx_adapter import is_mlx, open_mlx
from safex.merging.peft_adapter import WEIGHTS, open_peft
from safex.merging.peft_config import NAME

EXPECTED = f"a PEFT directory ({NAME}, {WEIGHTS}), one of mlx-lm, or a LoRA of llama.cpp (.gguf)"


def open_adapter(
    path: str | os.PathLike[str], model: ExpertTensors, allow_others: bool = False, b_layout: str = AUTO
) -> Deltas:
    """The deltas of a PEFT directory or a GGUF LoRA for the experts of ``model``.

    ``allow_others``: leave out what the adapter changes besides experts, instead of refusing it. ``b_layout``: one of
    ``b_layout.CHOICES``, for fused parameters. Raises InputError: no adapter, one that is damaged, of another model, or
    of a kind that can't be merged.

    >>> open_adapter("missing", ExpertTensors.read("demo"))
    Traceback (most recent call last):
    safex.errors.InputError: missing: no such file or directory; expected a PEFT directory ...
    """
    place = _place(path)
    if not place.exists():
        raise InputError(f"{place}: no such file or directory; expected {EXPECTED}")
    if place.is_dir():
        _check_folder(place)
        if is_mlx(place):
            return open_mlx(place, model, allow_others)
        return open_peft(place, model, allow_others, b_layout)
    try:
        weights = GgufWeights([place])
    except NotGgufError:
        raise InputError(f"{place}: is no adapter; expected {EXPECTED}") from None
    if not is_adapter(weights):
        raise InputError(f"{place}: {_called(weights)}, not an adapter; expected {EXPECTED}{_pair(weights)}")
    return open_gguf_adapter(weights, model, allow_others)


def _called(weights: GgufWeights) -> str:
    kind = str(weights.keys.get("general.type") or "model")
    return {"model": "a model", "imatrix": "an importance matrix (--imatrix takes it)"}.get(kind, f"a {kind}")


def _pair(weights: GgufWeights) -> str:
    is_model = weights.keys.get("general.type") in (None, "model")
    return ", or the model that it was tuned from too, as a pair (--base, --tuned)" if is_model else ""


def _check_folder(folder: Path) -> None:
    """Name other things that people have folders of. Raises InputError."""
    if (folder / NAME).exists():
        return
    if (folder / "config.json").exists():
        raise InputError(f"{folder}: a model of Hugging Face, not an adapter; expected {EXPECTED}")
    found = sorted(folder.glob(f"*/{NAME}")) + sorted(folder.glob("*.gguf"))
    if found:
        inside = found[0].parent if found[0].name == NAME else found[0]
        raise InputError(f"{folder}: holds no {NAME}; expected {EXPECTED}: is {inside} meant?")


def files_of(adapter: Any) -> list[Path]:
    """The files that an adapter consists of, or a pair (base, tuned) of models; whether they are there or not."""
    if isinstance(adapter, tuple):
        return [part for path in adapter for part in model_file.shards(model_file.resolve(path))]
    place = _place(adapter)
    weights = MLX_WEIGHTS if is_mlx(place) else WEIGHTS
    return [place / NAME, place / weights] if place.is_dir() else [place]


def _place(path: str | os.PathLike[str]) -> Path:
    """A directory may be named by one of its files."""
    place = Path(path)
    return place.parent if place.name in (NAME, WEIGHTS, MLX_WEIGHTS) else place
