"""What an evaluation gives, and the JSON file of it."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safex import disk
from safex.errors import InputError
from safex.evaluation.counting import Row

SCHEMA_VERSION = 1


@dataclass
class Evaluation:
    """What ``evaluate`` returns; its fields are the parts of the JSON file.

    ``results`` holds for each judge: ``sets`` (a row each: rates ``before`` and ``after``, the paired change of each
    reading, what became of lost refusals, ``categories``), ``jailbreak`` (refusal against regular prompts, no mask),
    ``controls`` (a row for each set and kind: values and the mask's placement among them), ``conclusion`` and
    ``evidence``. The first judge's conclusion is the evaluation's. ``mask`` and ``controls`` say which experts were
    masked and how much of the routing they carry; ``utility`` is None where it wasn't measured. Rates are 0 to 1.
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
    responses: str | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """The file's content as plain values."""
        return {"safex_evaluation": SCHEMA_VERSION, **dataclasses.asdict(self)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file through a temporary one. Raises DiskError, InputError."""
        text = json.dumps(self.to_json(), indent=1, allow_nan=False) + "\n"
        with disk.replacing(Path(path)) as (fd, _):
            disk.write_at(fd, 0, text.encode())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Evaluation:
        """Read a file of ``save``. Raises InputError: path, what is wrong, what was expected."""
        try:
            return from_json(json.loads(Path(path).read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise InputError(f"{path}: no such file") from None
        except OSError as error:
            raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise InputError(f"{path}: is no JSON ({error}); expected a file made by `eval -o`") from None
        except InputError as error:
            raise InputError(f"{path}: {error}") from None


def from_json(value: Any) -> Evaluation:
    """An evaluation of parsed JSON. Raises InputError."""
    if not isinstance(value, Mapping) or "safex_evaluation" not in value:
        raise InputError("is no evaluation: expected an object with 'safex_evaluation'")
    if value["safex_evaluation"] != SCHEMA_VERSION:
        found = value["safex_evaluation"]
        raise InputError(
            f"has schema version {found!r}, expected {SCHEMA_VERSION}: use the version that wrote it"
        )
    if not isinstance(value.get("conclusion"), str):
        raise InputError("has no 'conclusion': use a file made by `eval -o`")
    parts = {f.name: value[f.name] for f in dataclasses.fields(Evaluation) if f.name in value}
    for name, default in Evaluation("").to_json().items():
        part = parts.get(name)
        if part is not None and default is not None and not isinstance(part, type(default)):
            raise InputError(f"{name!r} is {type(part).__name__}, expected {type(default).__name__}")
    return Evaluation(**parts)
