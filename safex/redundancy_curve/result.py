"""What a redundancy curve gives, and the JSON file of it."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

from safex.errors import InputError
from safex.result_file import check_kind, checked_parts, read_json, write_json

SCHEMA_VERSION = 1
MARK = "safex_redundancy"

Row = dict[str, Any]


@dataclass
class Redundancy:
    """What ``redundancy`` returns; its fields are the parts of the JSON file. Rates and areas are 0 to 1.

    ``experts`` is the order that was masked, ``sizes`` how many of its first experts (0 among them), ``activation`` the
    summed activation of as many. ``sets``: for each set a ``curve``, a row a size with the rates of each reading, their
    paired ``change`` and what became of lost refusals. ``half``: the measured ``size`` from which on refusal of regular
    prompts stays at or below half, its ``value`` between sizes with ``interval`` (None: not reached), the share of
    resamples that ``reached`` it. ``area``: of refusal relative to that without a mask, of compliance and other as
    they are. ``controls``: for each kind the areas, the order's difference to their mean and its place among them,
    how many are halved, and every control order with its curves. Half-point and areas are taken up to the size
    ``measured``, up to which most answers could be read (0 or None: there are none), without the control orders that
    ``left_out`` counts by kind, whose answers could not. ``utility``: the cost on harmless text, a row a size;
    empty where it wasn't measured.
    """

    conclusion: str
    evidence: Row = field(default_factory=dict)
    model: Row = field(default_factory=dict)
    parameters: Row = field(default_factory=dict)
    experts: list[str] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    activation: list[float] = field(default_factory=list)
    sets: list[Row] = field(default_factory=list)
    half: Row = field(default_factory=dict)
    area: Row = field(default_factory=dict)
    controls: list[Row] = field(default_factory=list)
    measured: int | None = None
    left_out: Row = field(default_factory=dict)
    utility: list[Row] = field(default_factory=list)
    responses: str | None = None
    notes: list[str] = field(default_factory=list)

    def curve(self, name: str) -> list[Row]:
        """The rows of a set, one a size; none where the prompts don't hold it."""
        return next((row["curve"] for row in self.sets if row["set"] == name), [])

    def to_json(self) -> dict[str, Any]:
        """The file's content as plain values."""
        return {MARK: SCHEMA_VERSION, **dataclasses.asdict(self)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file through a temporary one. Raises DiskError, InputError."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Redundancy:
        """Read a file of ``save``. Raises InputError: path, what is wrong, what was expected."""
        return read_json(path, "a file made by `redundancy -o`", from_json)


def from_json(value: Any) -> Redundancy:
    """A redundancy curve of parsed JSON. Raises InputError."""
    check_kind(value, MARK, SCHEMA_VERSION, "redundancy curve")
    if not isinstance(value.get("conclusion"), str):
        raise InputError("has no 'conclusion': use a file made by `redundancy -o`")
    return Redundancy(**checked_parts(value, dataclasses.asdict(Redundancy(""))))
