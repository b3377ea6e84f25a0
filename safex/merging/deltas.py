"""What a merge asks of an adapter, whatever its format."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from safex.errors import InputError
from safex.experts import Expert

Array = npt.NDArray[Any]
Weights = npt.NDArray[np.float32]
SHOWN = 3  # names in a message


class Deltas(Protocol):
    """Changes of expert weights, W' = W + scale * delta, that fit one model: shapes were checked when it was opened.

    ``files``: what was read, so that provenance can name and hash it. ``others``: what the adapter changes besides
    experts' weights and a merge into experts leaves out; empty unless the caller allowed it.
    """

    @property
    def files(self) -> list[Path]:
        """The files that were read."""

    @property
    def others(self) -> list[str]:
        """Names of what is left out."""

    def experts(self) -> set[Expert]:
        """The experts that have a delta other than zero. Reads all of them once."""

    def delta(self, layer: int, expert: int, kind: str) -> Weights | None:
        """The change of one expert's matrix [rows, columns] = [out, in], as GGUF has it; None where there is none.

        ``kind`` is one of KINDS. Raises InputError where numbers are infinite or none at all.
        """


def check_finite(delta: Weights, path: Path, what: str) -> Weights:
    """The delta, if all of it are numbers. Raises InputError."""
    if not np.isfinite(delta).all():
        raise InputError(
            f"{path}: the delta of {what} holds infinity or NaN: the training diverged, or the file is damaged"
        )
    return delta


def check_others(path: Path, others: Iterable[str], allow: bool) -> list[str]:
    """What is left out, in order. Raises InputError naming the first ones unless it is allowed."""
    found = sorted(others)
    if found and not allow:
        names = ", ".join(found[:SHOWN]) + (f" and {len(found) - SHOWN} more" if len(found) > SHOWN else "")
        raise InputError(
            f"{path}: changes more than experts' weights: {names}; a merge into experts leaves those out: allow "
            "that, or train on experts only"
        )
    return found
