"""``Probing``: what the probes gave, and its file."""

from __future__ import annotations

import dataclasses
import os
from dataclasses import dataclass, field
from typing import Any

from safex.errors import InputError
from safex.probing.scores import Row
from safex.result_file import check_kind, checked_parts, read_json, write_json

SCHEMA_VERSION = 1


@dataclass
class Probing:
    """What ``probe`` returns; its fields are the parts of the JSON file. Estimates are ``{value, interval}``, or None.

    ``tasks`` hold a row each: ``n`` prompts, ``n_positive``, ``units`` (twins counted once), ``majority`` (accuracy of
    always naming the larger class), ``words`` (the bag of words), and

    - ``groups``: probes on all experts of a group together: the measures ``accuracy``, ``balanced_accuracy``,
      ``precision``, ``recall``, ``specificity``, ``f1``, ``auc``; ``curve`` by number of training prompts; ``shuffled``
      (labels), ``versus_words`` (accuracy less that of the words), ``transfer`` (the same measures on prompts of the
      sets ``transfer``), ``mean_single`` (mean of its experts' own probes), ``controls`` (a row for each kind of draw:
      where the group falls among them), ``evidence``, ``conclusion``
    - ``experts``: each expert of a group alone, likewise; ``controls`` are single random experts of its layer
    - ``layers``: means over single experts, of the groups and random ones
    - ``control_groups``, ``control_experts``: what each control gave.

    ``projection``: for each group the first two principal components of its features, a point for each prompt.
    ``features`` says what was probed.
    """

    conclusion: str
    evidence: Row = field(default_factory=dict)
    model: Row = field(default_factory=dict)
    features: Row = field(default_factory=dict)
    parameters: Row = field(default_factory=dict)
    tasks: list[Row] = field(default_factory=list)
    projection: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def task(self, name: str) -> Row:
        """The part of a task. Raises InputError for one that was not run."""
        for row in self.tasks:
            if row["task"] == name:
                return row
        raise InputError(
            f"task {name!r} was not run: there are {', '.join(row['task'] for row in self.tasks)}"
        )

    def to_json(self) -> dict[str, Any]:
        """The file's content as plain values."""
        return {"safex_probing": SCHEMA_VERSION, **dataclasses.asdict(self)}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file through a temporary one. Raises DiskError, InputError."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Probing:
        """Read a file of ``save``. Raises InputError: path, what is wrong, what was expected."""
        return read_json(path, "a file made by `probe`", from_json)


def from_json(value: Any) -> Probing:
    """A probing of parsed JSON. Raises InputError."""
    check_kind(value, "safex_probing", SCHEMA_VERSION, "probing")
    if not isinstance(value.get("conclusion"), str):
        raise InputError("has no 'conclusion': use a file made by `probe`")
    parts = checked_parts(value, dataclasses.asdict(Probing("")))
    for i, row in enumerate(parts.get("tasks", [])):
        if not (isinstance(row, dict) and {"task", "groups", "experts"} <= row.keys()):
            raise InputError(f"task {i} lacks its name, groups or experts; make the file again with `probe`")
    return Probing(**parts)
