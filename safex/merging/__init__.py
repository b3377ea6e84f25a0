"""Deltas for expert weights: from PEFT and llama.cpp LoRA adapters, and from pairs of GGUF models."""

from .deltas import Deltas
from .expert_tensors import KINDS, ExpertTensors, Shape
from .merging import MergeReport, SurvivalError, merge
from .opening import open_adapter
from .pair import open_pair

__all__ = [
    "KINDS",
    "Deltas",
    "ExpertTensors",
    "MergeReport",
    "Shape",
    "SurvivalError",
    "merge",
    "open_adapter",
    "open_pair",
]
