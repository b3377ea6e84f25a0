"""What an edited file says of itself: metadata ``safex.*`` and the name, or the same as JSON beside an in-place edit.

| key | type | what |
|---|---|---|
| ``safex.schema_version`` | u32 | 1 |
| ``safex.operation`` | text | ``mask`` or ``merge`` |
| ``safex.statement`` | text | that safety behaviour was altered, in plain words |
| ``safex.experts`` | texts | ``L:E`` of each expert |
| ``safex.parameters`` | text | JSON: mode, gain; of a merge adapters, b_layout, imatrix, promoted |
| ``safex.base.name``, ``safex.base.file`` | text | what the base calls itself, and the name of its (first) file |
| ``safex.base.fingerprint`` | text | the model's fingerprint, as in profiles and expert sets |
| ``safex.base.sha256`` | text | of the whole base file; of a split model one for each file, by commas. Not in place |
| ``safex.tool`` | text | program and version |
| ``safex.slices`` | texts | ``TENSOR EXPERT BASE_SHA256 SHA256`` of each slice that was written |
| ``safex.history`` | texts | JSON of the base's own provenance, oldest first, where it was an edited file |
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safex.errors import InputError
from safex.experts import Expert, to_expert
from safex.result_file import read_json

from . import header
from .model_files import NAME, ModelFiles, Slice

SCHEMA_VERSION = 1
PREFIX = "safex."
MARK = "[safety behaviour altered by safex-native: "  # in general.name, then what was done, then "]"
SHA256_HEX = 64
PROMOTED = "promoted"  # among the parameters: tensors in another type

_TEXTS = (
    "operation",
    "statement",
    "parameters",
    "base.name",
    "base.file",
    "base.fingerprint",
    "base.sha256",
    "tool",
)
_LISTS = ("experts", "slices", "history")
_MAY_LACK = ("base.sha256", "history")


@dataclass(frozen=True)
class Written:
    """A slice that an edit wrote: SHA-256 in hex of its bytes in the base and in the edited file."""

    tensor: str
    expert: int
    base_sha256: str
    sha256: str

    @property
    def key(self) -> tuple[str, int]:
        """What names the slice."""
        return self.tensor, self.expert

    def __str__(self) -> str:
        """As ``safex.slices`` holds it."""
        return f"{self.tensor} {self.expert} {self.base_sha256} {self.sha256}"

    @classmethod
    def blank(cls, part: Slice) -> Written:
        """As long as the real one will be."""
        return cls(part.tensor, part.expert, "0" * SHA256_HEX, "0" * SHA256_HEX)

    @classmethod
    def parse(cls, text: str) -> Written:
        """Read what ``str`` made. Raises InputError."""
        try:
            tensor, expert, before, after = text.split(" ")
            return cls(tensor, int(expert), before, after)
        except ValueError:
            raise InputError(f"safex.slices holds {text!r}, expected TENSOR EXPERT SHA256 SHA256") from None


@dataclass(frozen=True)
class Provenance:
    """Operation, experts and parameters of an edit, its base, and the slices it wrote."""

    operation: str
    what: str  # a few words for the name, e.g. "12 experts masked"
    statement: str
    experts: Sequence[Expert]
    parameters: Mapping[str, Any]
    base: Mapping[str, str]  # name, file, fingerprint, sha256
    tool: str
    slices: Sequence[Written] = ()
    history: Sequence[str] = field(default=())

    @property
    def name(self) -> str:
        """``general.name`` of the edited file."""
        return f"{self.base['name']} {MARK}{self.what}]"

    def metadata(self) -> dict[str, header.Value | None]:
        """The entries of a GGUF header; None for those that an earlier edit may have left and this one lacks."""
        values: dict[str, header.Value | None] = {
            NAME: self.name,
            "schema_version": SCHEMA_VERSION,
            "operation": self.operation,
            "statement": self.statement,
            "experts": [str(expert) for expert in self.experts],
            "parameters": json.dumps(self.parameters),
            **{f"base.{key}": self.base.get(key) for key in ("name", "file", "fingerprint", "sha256")},
            "tool": self.tool,
            "slices": [str(written) for written in self.slices],
            "history": list(self.history) or None,
        }
        return {key if key == NAME else PREFIX + key: value for key, value in values.items()}


def read_metadata(files: ModelFiles) -> dict[str, header.Value]:
    """``safex.*`` of a model's first file without the prefix, and what fills its header left out. Raises InputError."""
    file = files.files[0]
    found = [entry for entry in file.header.entries if entry.key.startswith(PREFIX)]
    values = {entry.key: header.unpack(file, entry) for entry in found if entry.key != header.RESERVED}
    return {key.removeprefix(PREFIX): value for key, value in values.items()}


def sidecar_path(path: Path) -> Path:
    """Where the provenance of an in-place edit lies whose header had no room for it."""
    return path.with_name(path.name + ".safex.json")


def to_json(provenance: Provenance) -> dict[str, Any]:
    """The side-car's content: what the metadata would say."""
    values = {key: value for key, value in provenance.metadata().items() if value is not None}
    return {"safex_provenance": SCHEMA_VERSION, "metadata": values}


def read_sidecar(path: Path) -> tuple[str, dict[str, header.Value]]:
    """The name and the ``safex.*`` values of a side-car. Raises InputError."""
    return read_json(path, "the provenance of an in-place edit", from_json)


def from_json(value: Any) -> tuple[str, dict[str, header.Value]]:
    """The name and the ``safex.*`` values, without the prefix, of parsed JSON. Raises InputError."""
    if not isinstance(value, Mapping) or not isinstance(value.get("metadata"), Mapping):
        raise InputError("is no provenance of safex-native: expected an object with 'metadata'")
    values = dict(value["metadata"])
    name = values.pop(NAME, "")
    return str(name), {str(key).removeprefix(PREFIX): item for key, item in values.items()}


def problems(name: str, values: Mapping[str, header.Value]) -> list[str]:
    """What a file's own account lacks or gets wrong, whatever its bytes are; empty where all is there."""
    if not values:
        return ["it carries no provenance (no metadata safex.*, no side-car, no undo file)"]
    found = [f"metadata safex.{key} is missing" for key in _required() if key not in values]
    for keys, kind in ((_TEXTS, str), (_LISTS, list)):
        found += [
            f"safex.{key} has another type than it should" for key in keys if not _is(values, key, kind)
        ]
    if values.get("schema_version") != SCHEMA_VERSION:
        found.append(f"safex.schema_version is {values.get('schema_version')}, expected {SCHEMA_VERSION}")
    if MARK not in name:
        found.append("general.name does not say that safety behaviour was altered")
    return found


def _required() -> list[str]:
    return [key for key in (*_TEXTS, *_LISTS) if key not in _MAY_LACK]


def _is(values: Mapping[str, header.Value], key: str, kind: type) -> bool:
    value = values.get(key)
    if value is None:
        return True  # said elsewhere
    if kind is str:
        return isinstance(value, str)
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def experts_of(values: Mapping[str, header.Value]) -> list[Expert]:
    """The experts that a file names. Raises InputError."""
    texts = values.get("experts", [])
    return [to_expert(text) for text in texts] if isinstance(texts, list) else []


def slices_of(values: Mapping[str, header.Value]) -> list[Written]:
    """The slices that a file says were written. Raises InputError."""
    texts = values.get("slices", [])
    return [Written.parse(text) for text in texts] if isinstance(texts, list) else []
