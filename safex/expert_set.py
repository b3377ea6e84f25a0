"""Expert sets: named groups of experts with what is known of each, and their JSON file.

A file by hand may be as short as ``["3:17", "4:2"]`` or ``{"safex_expert_set": 1, "groups": {"ctrl": ["3:17"]}}``.
A file of ``identify`` also holds the model, the parameters, the controls and a sentence of conclusion.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safex.errors import InputError
from safex.experts import Expert, to_expert
from safex.result_file import read_json, write_json

SCHEMA_VERSION = 1
UNNAMED = "experts"  # the group of a file that is a bare list

Entry = dict[str, Any]  # layer, expert, and what is known of it: score, frequency, activation, interval ...


@dataclass
class ExpertSet:
    """Groups of experts; what ``identify`` returns.

    ``entries`` holds a dictionary for each expert, best first: ``layer``, ``expert`` and, where known,
    ``score``, ``frequency``, ``activation`` and ``interval`` by set. The other fields say where the groups come
    from; they are empty in a set made by hand. Raises InputError for an expert that a group lists twice or that
    the model lacks.

    >>> experts = ExpertSet({"ctrl": [{"layer": 3, "expert": 17}]})
    >>> experts.groups["ctrl"]
    [Expert(layer=3, expert=17)]
    """

    entries: dict[str, list[Entry]]
    model: dict[str, Any] = field(
        default_factory=dict
    )  # fingerprint, name, architecture, layers, n_experts, top_k
    profile: dict[str, Any] = field(default_factory=dict)  # prompts by set, hashes, versions
    parameters: dict[str, Any] = field(default_factory=dict)
    conclusion: str | None = None
    controls: dict[str, Any] = field(default_factory=dict)
    curves: dict[str, Any] = field(default_factory=dict)
    clusters: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        """Check the groups."""
        for name, experts in self.groups.items():
            _refuse_duplicates(name, experts)
        self._check_own_model()

    @property
    def groups(self) -> dict[str, list[Expert]]:
        """The experts of each group, best first."""
        return {name: [Expert(e["layer"], e["expert"]) for e in rows] for name, rows in self.entries.items()}

    def check_model(self, layers: Sequence[int], n_experts: int, what: str) -> None:
        """Refuse experts that ``what`` (a model or profile, by name) lacks. Raises InputError."""
        for name, experts in self.groups.items():
            for expert in experts:
                if expert.layer not in layers:
                    raise InputError(
                        f"group {name!r}: expert {expert}: {what} has no experts in layer {expert.layer}; "
                        f"its MoE layers are {_ranges(layers)}"
                    )
                if not 0 <= expert.expert < n_experts:
                    raise InputError(
                        f"group {name!r}: expert {expert}: {what} has experts 0 to {n_experts - 1} in a layer"
                    )

    def _check_own_model(self) -> None:
        if self.model.get("layers") and self.model.get("n_experts"):
            self.check_model(self.model["layers"], self.model["n_experts"], "the model it was made from")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ExpertSet:
        """Read a file of ``identify`` or one made by hand. Raises InputError: path, what is wrong, what is expected."""
        expected = "an expert set made by `identify`, or a list of 'L:E' texts"
        return read_json(path, expected, from_json)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file through a temporary one. Raises DiskError, InputError."""
        write_json(path, self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The file's content as plain values; empty parts are left out."""
        parts = {
            "safex_expert_set": SCHEMA_VERSION,
            "conclusion": self.conclusion,
            "model": self.model,
            "profile": self.profile,
            "parameters": self.parameters,
            "groups": self.entries,
            "controls": self.controls,
            "curves": self.curves,
            "clusters": self.clusters,
        }
        return {key: value for key, value in parts.items() if key == "groups" or value not in (None, {})}


def parse_experts(text: str) -> list[Expert]:
    """Experts as a command line names them: ``FILE`` (all its groups), ``FILE:group``, or ``L:E,L:E``.

    Raises InputError for a list that can't be read, an unknown group (the message names the groups), an empty one.

    >>> parse_experts("3:17,4:2")
    [Expert(layer=3, expert=17), Expert(layer=4, expert=2)]
    """
    if re.fullmatch(r"[\d:,\s-]+", text):
        experts = [to_expert(part.strip()) for part in text.split(",")]
        _refuse_duplicates("the list", experts)
        return experts
    path, colon, group = text.rpartition(":")
    if not colon or Path(text).exists():
        path, group = text, ""
    groups = ExpertSet.load(path).groups
    if group and group not in groups:
        raise InputError(f"{path}: has no group {group!r}; its groups are {', '.join(groups) or 'none'}")
    chosen = groups[group] if group else [expert for experts in groups.values() for expert in experts]
    if not chosen:
        raise InputError(f"{text}: holds no experts: there is nothing to do")
    return list(dict.fromkeys(chosen))


def is_expert_set(value: Any) -> bool:
    """Whether parsed JSON is an expert set, rather than some other result file."""
    return isinstance(value, list) or (isinstance(value, Mapping) and "safex_expert_set" in value)


def from_json(value: Any) -> ExpertSet:
    """An expert set of parsed JSON. Raises InputError naming group and place."""
    if isinstance(value, list):
        value = {"safex_expert_set": SCHEMA_VERSION, "groups": {UNNAMED: value}}
    if not isinstance(value, Mapping) or "safex_expert_set" not in value:
        raise InputError(
            "is no expert set: expected an object with 'safex_expert_set', or a list of 'L:E' texts"
        )
    if value["safex_expert_set"] != SCHEMA_VERSION:
        found = value["safex_expert_set"]
        raise InputError(
            f"has schema version {found!r}, expected {SCHEMA_VERSION}: use the version that wrote it"
        )
    groups = value.get("groups")
    if not isinstance(groups, Mapping):
        raise InputError('has no \'groups\': expected an object such as {"ctrl": ["3:17"]}')
    entries = {str(name): _to_entries(str(name), rows) for name, rows in groups.items()}
    parts = {name: _object(value, name) for name in ("model", "profile", "parameters", "controls", "curves")}
    return ExpertSet(
        entries, **parts, conclusion=value.get("conclusion"), clusters=_object(value, "clusters") or None
    )


def _object(value: Mapping[str, Any], name: str) -> dict[str, Any]:
    part = value.get(name, {})
    if not isinstance(part, dict):
        raise InputError(f"{name!r} is {type(part).__name__}, expected an object")
    return part


def _to_entries(group: str, rows: Any) -> list[Entry]:
    if not isinstance(rows, list):
        raise InputError(f"group {group!r} is {type(rows).__name__}, expected a list of experts")
    return [_to_entry(group, i, row) for i, row in enumerate(rows)]


def _to_entry(group: str, i: int, row: Any) -> Entry:
    try:
        if isinstance(row, Mapping):
            expert = to_expert((row["layer"], row["expert"]))
            return {**row, "layer": expert.layer, "expert": expert.expert}
        expert = to_expert(row)
    except (InputError, KeyError, TypeError):
        raise InputError(
            f'group {group!r}, entry {i}: found {row!r}, expected \'L:E\' or {{"layer": L, "expert": E}}'
        ) from None
    return {"layer": expert.layer, "expert": expert.expert}


def _refuse_duplicates(group: str, experts: Sequence[Expert]) -> None:
    seen: set[Expert] = set()
    for expert in experts:
        if min(expert) < 0:
            raise InputError(f"group {group!r}: expert {expert}: layers and experts count from 0")
        if expert in seen:
            raise InputError(f"group {group!r} lists expert {expert} twice")
        seen.add(expert)


def _ranges(layers: Sequence[int]) -> str:
    return f"{layers[0]} to {layers[-1]}" if len(layers) > 6 else ", ".join(map(str, layers))
