"""Causal attribution: what masking each expert alone does to the model's choice between refusing and complying."""

from .result import Sweep, check_join
from .starts import NoStartsError, Starts
from .sweeping import sweep

__all__ = ["NoStartsError", "Starts", "Sweep", "check_join", "sweep"]
