"""PEFT LoRA of fused 3-D parameters (``target_parameters``): all experts' matrices side by side in one A and one B.

A is [experts * rank, in], one expert after the other; B is [out, rank * experts], in an order that ``b_layout`` finds
out. Versions of PEFT differ in which side of the parameter they call in
(``peft.tuners.lora.layer.ParamWrapper.get_delta_weight``):

- PEFT below 0.19: the second dimension of the parameter is in, whatever the architecture.
- From 0.19: the third, unless the module says ``is_transposed``.

Where a matrix is no square its shape tells. Which parameter of a module a pair of matrices belongs to is not written
either, only nested; its shape tells gate_up [2 f, h] from down [h, f] always. Where up is a parameter of its own
[f, h] (Nemotron-H), up and down are each other's swapped, so that the version has to tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from safex.errors import InputError
from safex.merging import b_layout
from safex.merging.b_layout import AUTO, BLOCKS, Pair
from safex.merging.deltas import BLayout, Weights
from safex.merging.expert_tensors import ExpertTensors, Place
from safex.merging.lora import Factors, Source
from safex.merging.peft_config import PeftConfig
from safex.merging.safetensors_weights import SafetensorsWeights

# The parameters of a module by its last name, and of which kind they are. Granite's modules have one each, "weight".
PARAMETERS = {
    "experts": {"gate_up": "gate_up_proj", "down": "down_proj"},
    "input_linear": {"gate_up": "weight"},
    "output_linear": {"down": "weight"},
}
APART = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}  # instead of a fused gate_up
SINCE = (0, 19)  # PEFT that swaps the sides


class Storage(NamedTuple):
    """How transformers keeps fused parameters where that is not [experts, out, in] with all gates before all ups."""

    transposed: bool = False  # [experts, in, out]
    told: bool = False  # and the module is marked so for PEFT
    interleaved: bool = False  # gate, up, gate, up ...


STORAGE = {"gpt-oss": Storage(True, told=True, interleaved=True), "llama4": Storage(True)}
USUAL = Storage()


class Stack(NamedTuple):
    """An A and a B of all experts, not yet known of which parameter."""

    weights: SafetensorsWeights
    module: str
    b: str
    a: str

    @property
    def sides(self) -> tuple[int, int]:
        """What PEFT took for out and in."""
        return self.weights.shape(self.b)[0], self.weights.shape(self.a)[1]


class Match(NamedTuple):
    """A parameter that a stack fits, as the model has it or with its sides swapped."""

    kind: str
    swapped: bool


class Placed(NamedTuple):
    """A stack whose parameter is known."""

    stack: Stack
    layer: int
    match: Match
    name: str
    pair: Pair


@dataclass(frozen=True)
class Fused:
    """The matrices of one parameter. See Source."""

    pair: Pair
    experts: range
    scaling: float
    swapped: bool
    interleaved: bool  # gates and ups
    blocks: bool  # columns of B, else interleaved too

    def read(self, expert: int) -> Factors:
        """Those of one expert."""
        pair, n = self.pair, self.pair.experts
        rank = pair.weights.shape(pair.a)[0] // n
        rows = slice(expert * rank, (expert + 1) * rank)
        columns = rows if self.blocks else slice(expert, None, n)
        a, b = pair.weights.read(pair.a, rows), pair.weights.read(pair.b, (slice(None), columns))
        if self.swapped:
            a, b = b.T, a.T
        return Factors(apart(b) if self.interleaved else b, a, self.scaling)


def apart(rows: Weights) -> Weights:
    """Gate, up, gate, up ... as all gates before all ups."""
    return np.concatenate((rows[::2], rows[1::2]))


def interleaves(architecture: str) -> bool:
    """Whether a model's fused parameters hold gate, up, gate, up ..."""
    return STORAGE.get(architecture, USUAL).interleaved


def sources(
    stacks: Mapping[int, list[Stack]], config: PeftConfig, model: ExpertTensors, asked: str = AUTO
) -> tuple[dict[Place, Source], dict[str, BLayout]]:
    """The sources of all layers, and how the B of each parameter was read. Raises InputError."""
    matches = {stack: _matches(stack, layer, config, model) for layer, of in stacks.items() for stack in of}
    swapped = _orientation(matches, config, model) if matches else False
    placed: dict[Place, Placed] = {}
    for layer, of in stacks.items():
        for stack in of:
            match = next((m for m in matches[stack] if m.swapped == swapped), None)
            if match is None or (layer, match.kind) in placed:
                raise _error(stack, "does not go with the adapter's other matrices: the file is damaged")
            placed[layer, match.kind] = _placed(stack, layer, match, config, model)
    layouts = _layouts(list(placed.values()), config, model, asked)
    return {place: _fused(one, config, model, layouts[one.name]) for place, one in placed.items()}, layouts


def _layouts(
    placed: list[Placed], config: PeftConfig, model: ExpertTensors, asked: str
) -> dict[str, BLayout]:
    pairs: dict[str, list[Pair]] = {}
    for one in placed:
        pairs.setdefault(one.name, []).append(one.pair)
    folder = placed[0].pair.weights.path.parent if placed else Path()
    return b_layout.decide(pairs, config.origin, folder, model.architecture, asked)


def _parameters(stack: Stack, config: PeftConfig) -> Mapping[str, str]:
    """The kinds that a stack may be of, with their parameters' names. Raises InputError."""
    module = stack.module.replace(".base_layer", "").rpartition(".")[2]
    if module != "experts" or not config.parameters & {APART["gate"], APART["up"]}:
        return PARAMETERS[module]
    if {APART["gate"], APART["up"]} <= config.parameters:
        raise _error(
            stack,
            "has gate_proj and up_proj as parameters of their own, of one shape, and which is which is not written: "
            "it can't be merged",
        )
    return {kind: name for kind, name in APART.items() if name in config.parameters or kind == "down"}


def _matches(stack: Stack, layer: int, config: PeftConfig, model: ExpertTensors) -> list[Match]:
    sizes = [stack.weights.shape(name) for name in (stack.b, stack.a)]
    if any(len(size) != 2 for size in sizes):
        raise _error(stack, f"has matrices of shape {sizes[0]} and {sizes[1]}, expected two dimensions")
    found, wanted = [], []
    for kind, name in _parameters(stack, config).items():
        shape = model.need(layer, kind, stack.weights.path, stack.module)
        sides = (shape.rows, shape.columns)
        wanted.append(f"{name} {sides[0]} x {sides[1]}")
        seen = {False: stack.sides, True: stack.sides[::-1]}
        found += [Match(kind, swapped) for swapped, of in seen.items() if of == sides]
    if not found:
        out, inner = stack.sides
        raise _error(
            stack,
            f"changes matrices of {out} x {inner}, but those of {model.path} are {' and '.join(wanted)}: an adapter of "
            "another model",
        )
    return found


def _orientation(matches: Mapping[Stack, list[Match]], config: PeftConfig, model: ExpertTensors) -> bool:
    """Whether all matrices are swapped: as those say that are no squares, else as PEFT's version says."""
    told = {found[0].swapped for found in matches.values() if len(found) == 1}
    if len(told) == 1:
        return told.pop()
    stack = next(iter(matches))
    if told:
        raise _error(stack, "and others disagree on which side is in: the file is damaged")
    if config.version is None:
        raise _error(
            stack,
            "is square, so that only PEFT's version tells which side is in, and adapter_config.json has no "
            "peft_version: add the version that trained it",
        )
    storage = STORAGE.get(model.architecture, USUAL)
    if config.version < SINCE:
        return not storage.transposed
    return storage.transposed and not storage.told


def _placed(stack: Stack, layer: int, match: Match, config: PeftConfig, model: ExpertTensors) -> Placed:
    """A stack with the parameter that it fits, checked. Raises InputError."""
    name = _parameters(stack, config)[match.kind]
    if name not in config.parameters:
        raise _error(
            stack,
            f"fits {name}, which target_parameters ({', '.join(sorted(config.parameters)) or 'none'}) lacks: only "
            "gate_up_proj and down_proj can be merged",
        )
    n = model.need(layer, match.kind, stack.weights.path, stack.module).experts
    rank = config.rank_of(_path(stack, name))
    (_, columns), (rows, _) = (stack.weights.shape(side) for side in (stack.b, stack.a))
    if rows != n * rank or columns != n * rank:
        raise _error(
            stack,
            f"has {rows} rows in lora_A and {columns} columns in lora_B, expected {n * rank}: {n} experts of "
            f"{model.path} times rank {rank} of adapter_config.json",
        )
    shown = stack.module.rpartition(".")[2] if name == "weight" else name
    return Placed(stack, layer, match, shown, Pair(stack.weights, stack.b, stack.a, n))


def _fused(one: Placed, config: PeftConfig, model: ExpertTensors, layout: BLayout) -> Fused:
    name = _parameters(one.stack, config)[one.match.kind]
    scaling = config.scaling(_path(one.stack, name))
    interleaved = one.match.kind == "gate_up" and interleaves(model.architecture)
    experts = range(one.pair.experts)
    return Fused(one.pair, experts, scaling, one.match.swapped, interleaved, layout.layout == BLOCKS)


def _path(stack: Stack, name: str) -> str:
    """The parameter's path in the model."""
    return f"{stack.module.replace('.base_layer', '')}.{name}"


def _error(stack: Stack, text: str) -> InputError:
    return InputError(f"{stack.weights.path}: {stack.module} {text}")
