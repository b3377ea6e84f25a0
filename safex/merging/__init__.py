"""Deltas for expert weights: from PEFT and llama.cpp LoRA adapters, and from pairs of GGUF models.

What adds them to a model file is ``merging.py``, which needs the native core; the rest does not.
"""

from .deltas import Deltas
from .expert_tensors import KINDS, ExpertTensors, Shape
from .opening import open_adapter
from .pair import open_pair

__all__ = ["KINDS", "Deltas", "ExpertTensors", "Shape", "open_adapter", "open_pair"]
