"""Proof of an edit: what changed is what the edited file says, all of it, and nothing else did."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from safex import model_file
from safex.errors import InputError, SafexError

from . import header, provenance
from .account import Account, account_of
from .differences import Difference, SliceChange, compare
from .editing import OnStep, no_progress
from .hashing import FileHashes, sha256
from .masking import make_plan
from .model_files import ModelFiles, native
from .promotion import Promotion, type_of


@dataclass(frozen=True)
class Verification:
    """Whether an edited file is what it says. ``problems`` are sentences; empty where all ``holds``."""

    difference: Difference
    account: Account
    problems: list[str]

    @property
    def holds(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "holds": self.holds,
            "problems": self.problems,
            "provenance": dict(self.account.values),
            "provenance_from": self.account.origin,
            "name": self.account.name,
            **self.difference.to_json(),
        }


def verify(
    base: str | os.PathLike[str], edited: str | os.PathLike[str], *, on_step: OnStep = no_progress
) -> Verification:
    """Compare an edited model with its base, and what it says of itself with what was found.

    Both files are read whole. Raises InputError for a file that can't be read; an edit that is not what it says is no
    error but has ``problems``.

    >>> verify("model.gguf", "masked.gguf").holds  # doctest: +SKIP
    True
    """
    a, b = ModelFiles.open(base), ModelFiles.open(edited)
    account = account_of(b)
    with FileHashes(a.paths if account.values.get("base.sha256") else []) as hashes:
        difference = compare(a, b, on_step)
        digests = hashes.result()
    found = provenance.problems(account.name, account.values)
    promoted: Mapping[str, str] = {}
    if not found:
        found = _base_problems(a, account.values, digests)
        promoted, wrong = _promoted(a, b, account.values, difference)
        found += wrong + _slice_problems(account.values, difference) + _mask_problems(a, account.values)
    return Verification(difference, account, found + difference.unlabelled(promoted))


def _base_problems(base: ModelFiles, values: Mapping[str, header.Value], digests: list[str]) -> list[str]:
    """Whether it is the base that the file names."""
    found = []
    fingerprint = model_file.fingerprint(base.path)
    if values["base.fingerprint"] != fingerprint:
        found.append(
            f"it was made from another base (fingerprint {values['base.fingerprint']}, not {fingerprint})"
        )
    if digests and values["base.sha256"] != ",".join(digests):
        found.append(
            f"it was made from another base (SHA-256 {values['base.sha256']}, not {','.join(digests)})"
        )
    return found


def _promoted(
    a: ModelFiles, b: ModelFiles, values: Mapping[str, header.Value], difference: Difference
) -> tuple[Mapping[str, str], list[str]]:
    """The tensors that have the larger type which the file names, and problems with that.

    Their slices that are more than the base's in that type are added to the difference's.
    """
    try:
        wanted = dict(json.loads(str(values["parameters"])).get(provenance.PROMOTED, {}))
        types = {name: int(type_of(str(kind)).id) for name, kind in wanted.items()}
    except (SafexError, AttributeError, TypeError, ValueError) as error:
        return {}, [f"safex.parameters can't be read: {error}"]
    ours, theirs = ({t.name: t for t in files.native.expert_tensors} for files in (a, b))
    wrong = [
        f"tensor {name} is listed as {wanted[name]} but is not"
        for name, kind in types.items()
        if not _can_be(ours.get(name), theirs.get(name), kind)
    ]
    if not wrong:
        rule = Promotion(types)
        for name in types:
            difference.slices += _changes(a, b, ours[name], theirs[name], rule)
    return {} if wrong else wanted, wrong


def _can_be(ours: Any, theirs: Any, kind: int) -> bool:
    """Whether the second tensor may be the first one in that type."""
    if ours is None or theirs is None or theirs.type != kind or ours.type == kind:
        return False
    shapes = [(tensor.n_experts, tensor.rows, tensor.columns) for tensor in (ours, theirs)]
    return shapes[0] == shapes[1] and ours.columns % native.tensor_type(kind).block_size == 0


def _changes(a: ModelFiles, b: ModelFiles, ours: Any, theirs: Any, rule: Promotion) -> Iterator[SliceChange]:
    """Slices of a promoted tensor that are not what recoding makes of the base's."""
    for expert in range(min(ours.n_experts, theirs.n_experts)):
        part = a.slice(ours, expert)
        old, new = a.read(part), b.read(b.slice(theirs, expert))
        if rule.recoded(part, old) != new:
            yield SliceChange(ours.layer, expert, ours.name, len(new), sha256(old), sha256(new))


def _slice_problems(values: Mapping[str, header.Value], difference: Difference) -> list[str]:
    """Whether the slices that differ are those that the file lists, with the bytes that it lists."""
    try:
        listed = {written.key: written for written in provenance.slices_of(values)}
        experts = {str(expert) for expert in provenance.experts_of(values)}
    except InputError as error:
        return [str(error)]
    changed = {change.key: change for change in difference.slices}
    found = [
        f"{change.tensor}, expert {change.expert}: changed, but not listed"
        for key, change in changed.items()
        if key not in listed
    ]
    for key, written in listed.items():
        now = changed.get(key)
        same = written.base_sha256 == written.sha256 if now is None else _matches(now, written)
        if not same:
            how = "has other bytes than listed" if now else "is listed as changed but is not"
            found.append(f"{written.tensor}, expert {written.expert}: {how}")
    touched = {f"{change.layer}:{change.expert}" for change in difference.slices}
    return found + [f"expert {name}: changed, but not named" for name in sorted(touched - experts)]


def _mask_problems(base: ModelFiles, values: Mapping[str, header.Value]) -> list[str]:
    """Whether the slices listed are what the base's become under the mask that the file names."""
    if values["operation"] != "mask":
        return []
    try:
        chosen = json.loads(str(values["parameters"]))
        plan, _ = make_plan(base, provenance.experts_of(values), chosen["mode"], chosen.get("gain", 0.0))
        expected = {part.key: sha256(plan.rule(part, base.read(part))) for part in plan.parts}
        listed = {written.key: written.sha256 for written in provenance.slices_of(values)}
    except (SafexError, AttributeError, KeyError, TypeError, ValueError) as error:
        return [f"experts and parameters are no mask of the base: {error}"]
    return [] if listed == expected else ["the slices listed are not what this mask makes of the base"]


def _matches(change: Any, written: provenance.Written) -> bool:
    return (change.a_sha256, change.b_sha256) == (written.base_sha256, written.sha256)
