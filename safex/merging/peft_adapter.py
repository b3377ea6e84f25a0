"""PEFT LoRA directories: modules of single experts, and fused 3-D parameters (``target_parameters``).

Names are those of transformers (``peft_names``); adapters of two parameters of a module nest (``experts.base_layer``).
The layer is the GGUF block.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from safex.errors import InputError
from safex.merging import peft_fused, peft_names
from safex.merging.b_layout import AUTO
from safex.merging.deltas import BLayout, check_others, shown
from safex.merging.expert_tensors import ExpertTensors, Place
from safex.merging.lora import Factors, LoraDeltas, Source
from safex.merging.peft_config import NAME, PeftConfig
from safex.merging.safetensors_weights import SafetensorsWeights

WEIGHTS = "adapter_model.safetensors"
PICKLE = "adapter_model.bin"
PREFIX = "base_model.model."

_MATRIX = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])\.weight")


@dataclass(frozen=True)
class Modules:
    """The matrices of single experts; ``pairs``: by expert the names of B and A, and the scaling."""

    weights: SafetensorsWeights
    interleaved: bool = False  # rows: gate, up, gate, up ...
    pairs: dict[int, tuple[str, str, float]] = field(default_factory=dict)

    @property
    def experts(self) -> Mapping[int, object]:
        """The experts it has matrices of."""
        return self.pairs

    def read(self, expert: int) -> Factors:
        """Those of one expert."""
        names, scaling = self.pairs[expert][:2], self.pairs[expert][2]
        b, a = (self.weights.read(name) for name in names)
        return Factors(peft_fused.apart(b) if self.interleaved else b, a, scaling)


def open_peft(folder: Path, model: ExpertTensors, allow_others: bool, b_layout: str = AUTO) -> LoraDeltas:
    """The deltas of a PEFT directory. Raises InputError: what can't be merged, or does not fit the model."""
    config_path, path = folder / NAME, folder / WEIGHTS
    if not path.exists() and (folder / PICKLE).exists():
        raise InputError(
            f"{folder / PICKLE}: pickle files can run code and are not opened: save it as safetensors"
        )
    config, weights = PeftConfig.load(config_path), SafetensorsWeights(path)
    reader = _Reader(config, weights, model)
    sources, layouts = reader.sources(b_layout)
    others = check_others(path, reader.others, allow_others)
    return LoraDeltas([config_path, path], model, sources, others, layouts)


class _Reader:
    """Sorts the tensors of an adapter into modules of experts, fused parameters, and others."""

    def __init__(self, config: PeftConfig, weights: SafetensorsWeights, model: ExpertTensors) -> None:
        self.config, self.weights, self.model = config, weights, model
        self.others: list[str] = []
        self.stacks: dict[int, list[peft_fused.Stack]] = defaultdict(list)
        self.modules: dict[Place, Modules] = {}

    def sources(self, b_layout: str) -> tuple[dict[Place, Source], dict[str, BLayout]]:
        """All matrices of experts by layer and kind, and how fused ones were read. Raises InputError."""
        unknown: list[str] = []
        for module, b, a in self._pairs():
            found = peft_names.parse(module)
            if found is None:
                (unknown if peft_names.is_routed(module) else self.others).append(module)
            elif found.expert is None or found.kind is None:
                self.stacks[found.layer].append(peft_fused.Stack(self.weights, module, b, a))
            else:
                self._add(module, (found.layer, found.kind), found.expert, (b, a))
        self._refuse(unknown)
        fused, layouts = peft_fused.sources(self.stacks, self.config, self.model, b_layout)
        if not fused and not self.modules:
            raise InputError(
                f"{self.weights.path}: has no LoRA of experts, expected layers.L. ... .experts.E.gate_proj"
            )
        for layer, kind in fused.keys() & self.modules.keys():
            raise self._error(
                f"layer {layer} has {kind} fused and as modules of single experts: expected one of both"
            )
        return {**fused, **self.modules}, layouts

    def _refuse(self, unknown: Iterable[str]) -> None:
        """Routed experts under names that aren't known: to leave them out would change what the adapter does."""
        if names := sorted(unknown):
            known = ", ".join(peft_names.MODULE_KINDS)
            raise self._error(
                f"{shown(names)} is no matrix of an expert that is known here, expected layers.L. ... .experts.E. and "
                f"one of {known}, fused experts (target_parameters), or Granite's input_linear and output_linear: "
                "convert the adapter to one of these"
            )

    def _pairs(self) -> Iterator[tuple[str, str, str]]:
        """Each module and the names of its B and A; all else goes to the others, unless it belongs to an expert."""
        sides: dict[str, dict[str, str]] = defaultdict(dict)
        for name in self.weights.names:
            path = name.removeprefix(PREFIX)
            found = _MATRIX.fullmatch(path)
            if found:
                sides[found["module"]][found["side"]] = name
            elif peft_names.is_routed(path):
                raise self._error(f"{name} is no lora_A or lora_B: only plain LoRA of experts can be merged")
            else:
                self.others.append(path)
        for module, names in sides.items():
            if len(names) < 2:
                has, lacks = ("A", "B") if "A" in names else ("B", "A")
                raise self._error(
                    f"{module} has lora_{has} but no lora_{lacks}: the file is incomplete, save it again"
                )
            yield module, names["B"], names["A"]

    def _add(self, module: str, place: Place, expert: int, names: tuple[str, str]) -> None:
        layer, kind = place
        shape = self.model.need(layer, kind, self.weights.path, module)
        if expert >= shape.experts:
            raise self._error(
                f"{module}: {self.model.path} has experts 0 to {shape.experts - 1} in a layer: an adapter of another "
                "model"
            )
        b, a = names
        check_pair(self.weights, (b, a), self.config.rank_of(module))
        rows, columns = self.weights.shape(b)[0], self.weights.shape(a)[1]
        if (rows, columns) != (shape.rows, shape.columns):
            raise self._error(
                f"{module} changes a matrix of {rows} x {columns}, but that of {self.model.path} is {shape.rows} x "
                f"{shape.columns}: an adapter of another model"
            )
        interleaved = kind == "gate_up" and peft_fused.interleaves(self.model.architecture)
        source = self.modules.setdefault(place, Modules(self.weights, interleaved))
        if expert in source.pairs:
            raise self._error(f"{module} is there twice, under two names: expected one of both")
        source.pairs[expert] = (b, a, self.config.scaling(module))

    def _error(self, text: str) -> InputError:
        return InputError(f"{self.weights.path}: {text}")


def check_pair(weights: SafetensorsWeights, names: tuple[str, str], rank: int) -> None:
    """Refuse a B [out, rank] and A [rank, in] of other ranks than the configuration says. Raises InputError."""
    b, a = (weights.shape(name) for name in names)
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or a[0] != rank:
        raise InputError(
            f"{weights.path}: {names[1]} is {list(a)} and {names[0]} is {list(b)}, expected [{rank}, in] and [out, "
            f"{rank}] as {NAME} says: the two files don't belong together"
        )
