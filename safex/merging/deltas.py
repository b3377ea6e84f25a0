"""What a merge asks of an adapter, whatever its format."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from safex.errors import InputError
from safex.experts import Expert

Array = npt.NDArray[Any]
Weights = npt.NDArray[np.float32]
SHOWN = 3  # names in a message


class BLayout(NamedTuple):
    """The order of the columns of a fused parameter's B (see ``b_layout``), and in a few words how it is known."""

    layout: str
    why: str


class Deltas(Protocol):
    """Changes of expert weights, W' = W + scale * delta, that fit one model: shapes were checked when it was opened.

    ``files``: what was read, so that provenance can name and hash it. ``others``: what the adapter changes besides
    experts' weights and a merge into experts leaves out; empty unless the caller allowed it. ``layouts``: how the
    matrices of fused parameters were read, by parameter.
    """

    @property
    def files(self) -> list[Path]:
        """The files that were read."""

    @property
    def others(self) -> list[str]:
        """Names of what is left out."""

    @property
    def layouts(self) -> Mapping[str, BLayout]:
        """How fused parameters were read; empty where there are none."""

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


def shown(names: Sequence[str]) -> str:
    """The first names of many.

    >>> shown(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    return ", ".join(names[:SHOWN]) + (f" and {len(names) - SHOWN} more" if len(names) > SHOWN else "")


def check_others(path: Path, others: Iterable[str], allow: bool) -> list[str]:
    """What is left out, in order. Raises InputError naming the first ones unless it is allowed."""
    found = sorted(others)
    if found and not allow:
        raise InputError(
            f"{path}: changes more than experts' weights: {shown(found)}; a merge into experts leaves those out: allow "
            "that, or train on experts only"
        )
    return found
