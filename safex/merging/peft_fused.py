"""PEFT LoRA of fused 3-D parameters (``target_parameters``): all experts' matrices side by side in one A and one B.

A is [experts * rank, in], one expert after the other; B is [out, rank * experts], all experts of a rank together
(``peft.tuners.lora.layer.ParamWrapper.get_delta_weight``). Versions differ in which side of the parameter they call in:

- PEFT below 0.19: the second dimension of the parameter is in, whatever the architecture.
- From 0.19: the third, unless the module says ``is_transposed``.

Where a matrix is no square its shape tells. Which parameter a pair of matrices belongs to is not written either, only
nested; its shape tells that always, since gate_up is [2 f, h] and down [h, f].
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from safex.errors import InputError
from safex.merging.expert_tensors import ExpertTensors, Place
from safex.merging.lora import Factors, Source
from safex.merging.peft_config import PeftConfig
from safex.merging.safetensors_weights import SafetensorsWeights

PARAMETERS = {"gate_up": "gate_up_proj", "down": "down_proj"}
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


@dataclass(frozen=True)
class Fused:
    """The matrices of one parameter. See Source."""

    stack: Stack
    experts: range
    scaling: float
    swapped: bool
    interleaved: bool

    def read(self, expert: int) -> Factors:
        """Those of one expert."""
        n = len(self.experts)
        rank = self.stack.weights.shape(self.stack.a)[0] // n
        a = self.stack.weights.read(self.stack.a, np.s_[expert * rank : (expert + 1) * rank])
        b = self.stack.weights.read(self.stack.b, np.s_[:, expert::n])
        if self.swapped:
            a, b = b.T, a.T
        return Factors(np.concatenate((b[::2], b[1::2])) if self.interleaved else b, a, self.scaling)


def sources(
    stacks: Mapping[int, list[Stack]], config: PeftConfig, model: ExpertTensors
) -> dict[Place, Source]:
    """The sources of all layers. Raises InputError."""
    matches = {stack: _matches(stack, layer, model) for layer, of in stacks.items() for stack in of}
    swapped = _orientation(matches, config, model) if matches else False
    found: dict[Place, Source] = {}
    for layer, of in stacks.items():
        for stack in of:
            match = next((m for m in matches[stack] if m.swapped == swapped), None)
            if match is None or (layer, match.kind) in found:
                raise _error(stack, "does not go with the adapter's other matrices: the file is damaged")
            found[layer, match.kind] = _fused(stack, layer, match, config, model)
    return found


def _matches(stack: Stack, layer: int, model: ExpertTensors) -> list[Match]:
    sizes = [stack.weights.shape(name) for name in (stack.b, stack.a)]
    if any(len(size) != 2 for size in sizes):
        raise _error(stack, f"has matrices of shape {sizes[0]} and {sizes[1]}, expected two dimensions")
    found, wanted = [], []
    for kind in PARAMETERS:
        shape = model.need(layer, kind, stack.weights.path, stack.module)
        sides = (shape.rows, shape.columns)
        wanted.append(f"{PARAMETERS[kind]} {sides[0]} x {sides[1]}")
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


def _fused(stack: Stack, layer: int, match: Match, config: PeftConfig, model: ExpertTensors) -> Fused:
    name = PARAMETERS[match.kind]
    if name not in config.parameters:
        raise _error(
            stack,
            f"fits {name}, which target_parameters ({', '.join(sorted(config.parameters)) or 'none'}) lacks: only "
            "gate_up_proj and down_proj can be merged",
        )
    n = model.need(layer, match.kind, stack.weights.path, stack.module).experts
    parameter = f"{stack.module.replace('.base_layer', '')}.{name}"
    rank = config.rank_of(parameter)
    (_, columns), (rows, _) = (stack.weights.shape(side) for side in (stack.b, stack.a))
    if rows != n * rank or columns != n * rank:
        raise _error(
            stack,
            f"has {rows} rows in lora_A and {columns} columns in lora_B, expected {n * rank}: {n} experts of "
            f"{model.path} times rank {rank} of adapter_config.json",
        )
    interleaved = match.kind == "gate_up" and STORAGE.get(model.architecture, USUAL).interleaved
    return Fused(stack, range(n), config.scaling(parameter), match.swapped, interleaved)


def _error(stack: Stack, text: str) -> InputError:
    return InputError(f"{stack.weights.path}: {stack.module} {text}")
