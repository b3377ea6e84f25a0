"""``Sweep``: effects of experts, their file, and how they join an expert set."""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.errors import InputError
from safex.expert_set import ExpertSet
from safex.experts import Expert
from safex.result_file import check_kind, read_json, write_json

Row: TypeAlias = dict[str, Any]

SCHEMA_VERSION = 1
JOINED = ("effect", "interval", "p_value", "p_adjusted", "specificity", "specificity_interval")
JOINED_TOO = ("gradient", "gradient_interval", "lowers", "specific")


@dataclass
class Sweep:
    """What ``sweep`` returns; logits are natural logs, effects are masked minus unmasked (below 0: less refusal).

    ``rows`` hold an object for each expert, the most refusal-lowering first: ``layer``, ``expert``, ``role`` (listed or
    neighbour), ``effect`` and ``interval`` by set, ``used`` (share of regular prompts that the mask changes),
    ``p_value`` and ``p_adjusted`` of the effect on regular prompts, ``lowers`` (it lowers refusal after adjustment);
    with benign prompts ``specificity`` (effect on regular minus on benign), its ``_interval``, and ``specific``
    (lowers, and the interval below 0); with gradients ``gradient``, its ``_interval``, and ``gradient_change`` (what
    half the step changes). ``pairs``, strongest first: ``experts``, joint ``effect``, ``interaction`` with its
    ``_interval``, ``p_value``, ``p_adjusted``. ``baseline``: unmasked logits by set. ``deltas`` float64
    [n_experts, n_prompts], in the order of ``rows`` and prompts, is not in the file.
    """

    rows: list[Row]
    pairs: list[Row] = field(default_factory=list)
    baseline: dict[str, Row] = field(default_factory=dict)
    starts: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    parameters: dict[str, Any] = field(default_factory=dict)
    conclusion: str = ""
    deltas: npt.NDArray[np.float64] | None = field(default=None, compare=False, repr=False)

    @property
    def experts(self) -> list[Expert]:
        """The experts, the most refusal-lowering first."""
        return [Expert(row["layer"], row["expert"]) for row in self.rows]

    def joined(self, experts: ExpertSet) -> ExpertSet:
        """The expert set with ``sweep`` in the entries of experts that were swept; others stay as they are.

        Raises InputError where both name their model and it isn't the same.
        """
        check_join(self.model.get("fingerprint"), experts)
        known = dict(zip(self.experts, (self._to_join(row) for row in self.rows), strict=True))
        entries = {
            group: [
                {
                    **entry,
                    **(
                        {"sweep": known[e]} if (e := Expert(entry["layer"], entry["expert"])) in known else {}
                    ),
                }
                for entry in rows
            ]
            for group, rows in experts.entries.items()
        }
        return replace(experts, entries=entries)

    def _to_join(self, row: Row) -> Row:
        scores = {name: row[name] for name in (*JOINED, *JOINED_TOO) if name in row}
        return {**scores, "mode": self.parameters.get("mode"), "gain": self.parameters.get("gain")}

    def to_json(self) -> dict[str, Any]:
        """The file's content as plain values."""
        names = ("conclusion", "model", "parameters", "starts", "baseline", "rows", "pairs")
        return {"safex_sweep": SCHEMA_VERSION, **{name: getattr(self, name) for name in names}}

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file through a temporary one. Raises DiskError, InputError."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Sweep:
        """Read a file of ``save``. Raises InputError: path, what is wrong, what is expected."""
        return read_json(path, "a file of `sweep`", _from_json)


def check_join(fingerprint: str | None, experts: ExpertSet) -> None:
    """Refuse to join a sweep of the model with this fingerprint into the set of another model. Raises InputError."""
    theirs = experts.model.get("fingerprint")
    if fingerprint and theirs and fingerprint != theirs:
        raise InputError(
            f"the sweep is of model {fingerprint[:12]}, the expert set of {theirs[:12]}: join those of one model"
        )


def _from_json(value: Any) -> Sweep:
    check_kind(value, "safex_sweep", SCHEMA_VERSION, "sweep")
    kinds = {"rows": list, "pairs": list, "baseline": dict, "starts": dict, "model": dict, "parameters": dict}
    parts = {name: value.get(name, kind()) for name, kind in kinds.items()}
    for name, kind in kinds.items():
        if not isinstance(parts[name], kind):
            raise InputError(f"{name!r} is {type(parts[name]).__name__}, expected {kind.__name__}")
    for i, row in enumerate(parts["rows"]):
        if not (isinstance(row, dict) and {"layer", "expert", "effect"} <= row.keys()):
            raise InputError(f"row {i} lacks layer, expert or effect; make the file again with `sweep`")
    return Sweep(**parts, conclusion=str(value.get("conclusion", "")))
