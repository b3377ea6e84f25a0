"""What an evaluation gives, and the JSON file of it."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

from safex.errors import InputError
from safex.evaluation.counting import Row
from safex.result_file import check_kind, checked_parts, read_json, write_json

SCHEMA_VERSION = 1


@dataclass
class Evaluation:
    """What ``evaluate`` returns; its fields are the parts of the JSON file.

    ``results`` holds for each judge: ``sets`` (a row each: rates ``before`` and ``after``, the paired change of each
    reading, what became of lost refusals, ``categories``), ``jailbreak`` (refusal against regular prompts, no mask),
    ``controls`` (a row for each set and kind: values and the mask's placement among them), ``conclusion`` and
    ``evidence``. The first judge's conclusion is the evaluation's. ``mask`` and ``controls`` say which experts were
    masked and how much of the routing they carry; ``utility`` is None where it wasn't measured. ``at_limit`` counts
    the answers that reached the token limit, by set and mask; ``length_curve`` holds refusals against the length read
    where the limit is 100 tokens or more. Rates are 0 to 1.
    """

    conclusion: str
    evidence: Row = field(default_factory=dict)
    model: Row = field(default_factory=dict)
    parameters: Row = field(default_factory=dict)
    mask: Row | None = None
    controls: list[Row] = field(default_factory=list)
    judges: list[str] = field(default_factory=list)
    results: Row = field(default_factory=dict)
    agreement: list[Row] = field(default_factory=list)
    utility: Row | None = None
    at_limit: list[Row] = field(default_factory=list)
    length_curve: list[Row] = field(default_factory=list)
    responses: str | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The file's content as plain values."""
        return {"safex_evaluation": SCHEMA_VERSION, **dataclasses.asdict(self)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file through a temporary one. Raises DiskError, InputError."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Read a file of ``save``. Raises InputError: path, what is wrong, what was expected."""
        return read_json(path, "a file made by `eval -o`", from_json)


def from_json(value: Any) -> Evaluation:
    """An evaluation of parsed JSON. Raises InputError."""
    check_kind(value, "safex_evaluation", SCHEMA_VERSION, "evaluation")
    if not isinstance(value.get("conclusion"), str):
        raise InputError("has no 'conclusion': use a file made by `eval -o`")
    return Evaluation(**checked_parts(value, dataclasses.asdict(Evaluation(""))))
