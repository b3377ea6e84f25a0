"""What an audit gives: the verdict, the numbers it rests on, and where everything lies."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safex.errors import InputError
from safex.result_file import check_kind, read_json

SCHEMA_VERSION = 1
MARK = "safex_audit_verdict"


@dataclass(frozen=True)
class Audit:
    """``verdict`` is the content of ``verdict.json``, ``manifest`` that of ``manifest.json``."""

    directory: Path
    verdict: Mapping[str, Any]
    manifest: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The verdict: one of those of ``safex.auditing.verdict``."""
        return str(self.verdict["verdict"])

    @property
    def conclusion(self) -> str:
        """The verdict in words and numbers."""
        return str(self.verdict["conclusion"])

    @property
    def drop(self) -> float | None:
        """Points by which masking the tested experts lowers refusal of regular prompts; None: not measured."""
        found = self.verdict["measured"].get("drop")
        return None if found is None else 100 * float(found["value"])

    def exceeds(self, points: float) -> bool:
        """Whether a release is to be stopped: the drop is above ``points``, or there is none to go by.

        The measured value counts, not the end of its interval: a gate must not open because prompts were few.
        """
        return self.drop is None or self.drop > points

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        return {"directory": str(self.directory), "verdict": self.verdict, "manifest": self.manifest}


def load_verdict(path: Path) -> dict[str, Any]:
    """Read ``verdict.json``. Raises InputError."""
    return read_json(path, "the verdict of an audit", _from_json)


def _from_json(value: Any) -> dict[str, Any]:
    check_kind(value, MARK, SCHEMA_VERSION, "verdict of an audit")
    for name, kind in (("verdict", str), ("conclusion", str), ("measured", dict)):
        if not isinstance(value.get(name), kind):
            raise InputError(f"has no {name!r}: use the verdict.json of an audit")
    return dict(value)
