"""``safex.merge``: W' = W + sum of scale * delta for chosen experts of a model file, in each tensor's own type.

A slice is decoded, added to in float32 and encoded again; slices without a delta keep their bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from safex import model_file
from safex.errors import InputError
from safex.expert_set import ExpertSet
from safex.experts import Expert, ExpertList
from safex.merging.deltas import Deltas, Weights
from safex.merging.expert_tensors import KINDS, NAME, ExpertTensors
from safex.merging.imatrix import Imatrix
from safex.merging.opening import open_adapter
from safex.merging.pair import open_pair
from safex.merging.survival import Survival, overall
from safex.shipping import editing
from safex.shipping.account import history_of
from safex.shipping.hashing import sha256
from safex.shipping.masking import check_targets, to_list
from safex.shipping.model_files import ModelFiles, Slice, native
from safex.shipping.provenance import Provenance

ALL = "all"
MIN_SURVIVAL = 0.5

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class Addend:
    """Deltas of an adapter, and what they are multiplied by."""

    deltas: Deltas
    scale: float
    name: str


class SurvivalError(InputError):
    """Too little of the delta is left after quantization; ``report`` says of which slices."""

    def __init__(self, message: str, report: MergeReport) -> None:
        """Keep the report."""
        super().__init__(message)
        self.report = report


@dataclass
class Merged:
    """The rule that makes a slice; ``survivals`` of those that have a delta, by tensor and expert."""

    addends: Sequence[Addend]
    imatrix: Imatrix | None = None
    survivals: dict[tuple[str, int], Survival] = field(default_factory=dict)

    def __call__(self, part: Slice, old: bytes) -> bytes:
        """The new bytes. Raises InputError where the type can't be encoded."""
        delta = self._delta(part)
        if delta is None:
            return old
        weights = native.decode(part.type, old).reshape(delta.shape)
        importance = None if self.imatrix is None else self.imatrix.of(part.tensor, part.expert, part.columns)
        try:
            new: bytes = native.encode(part.type, np.ascontiguousarray(weights + delta), importance)
        except InputError as error:
            raise InputError(f"{part.tensor}, expert {part.expert}: can't be encoded: {error}") from None
        effective = native.decode(part.type, new).reshape(delta.shape) - weights
        self.survivals[part.key] = Survival.of(part, delta, effective)
        return new

    def _delta(self, part: Slice) -> Weights | None:
        """The sum over adapters; None where it is zero or there is none."""
        match = NAME.fullmatch(part.tensor)
        assert match is not None
        total: Weights | None = None
        for addend in self.addends:
            delta = addend.deltas.delta(part.layer, part.expert, match[2])
            if delta is not None and addend.scale:
                scaled = delta * np.float32(addend.scale)
                total = scaled if total is None else total + scaled
        return None if total is None or not total.any() else total


@dataclass(frozen=True)
class MergeReport:
    """What ``merge`` did, or would do (``paths`` is empty then).

    ``survivals``: a row for each slice with a delta. ``unchanged``: chosen experts that no adapter has a delta for.
    ``n_bytes`` of the slices that change.
    """

    paths: list[Path]
    provenance: Provenance
    survivals: list[Survival]
    unchanged: list[Expert]
    n_bytes: int

    @property
    def survival(self) -> Survival | None:
        """Over all slices together."""
        return overall(self.survivals)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        whole, about = self.survival, self.provenance
        return {
            "files": [str(path) for path in self.paths],
            "experts": [str(expert) for expert in about.experts],
            "unchanged": [str(expert) for expert in self.unchanged],
            **about.parameters,
            "bytes": self.n_bytes,
            "survival": whole and {"cosine": whole.cosine, "norm_ratio": whole.norm_ratio},
            "slices": [one.to_json() for one in self.survivals],
            "name": about.name,
            "base": dict(about.base),
        }


def merge(
    src: PathLike,
    dst: PathLike | None,
    adapter: PathLike | tuple[PathLike, PathLike] | Sequence[Any],
    experts: ExpertSet | ExpertList | str,
    scale: float | Sequence[float] = 1.0,
    *,
    imatrix: PathLike | None = None,
    min_survival: float = MIN_SURVIVAL,
    allow_others: bool = False,
    force: bool = False,
    on_step: editing.OnStep = editing.no_progress,
) -> MergeReport:
    """Add adapters to chosen experts of ``src`` and write the result to ``dst``; None for a dry run.

    Parameters
    ----------
    src
        A GGUF model (the first part of a split one), or ``"demo"`` / ``"demo-planted"``. It is left as it is.
    adapter
        A PEFT directory, a LoRA of llama.cpp, a pair (base, tuned) of GGUF models, or a list of these.
    experts
        An ``ExpertSet`` (all its groups), a list of experts, text as on the command line, or ``"all"``.
    scale
        Factor of each adapter: above 0 adds, below 0 subtracts. One for all, or one for each.
    imatrix
        An importance matrix of llama.cpp (GGUF), which weighs the columns as tensors are quantized.
    min_survival
        The least cosine of effective to intended delta, over all slices together, that is written.
    allow_others
        Leave out what an adapter changes besides experts, instead of refusing it.

    Raises
    ------
    InputError
        An adapter that can't be read or is of another model, experts that the model lacks, no delta for any of
        them, a target that can't be. ``SurvivalError``, an InputError with a ``report``: too little of the delta is
        left. DiskError. Nothing is written then.

    >>> merge("model.gguf", "safer.gguf", "safe-adapter", "experts.json:ctrl").survival.cosine  # doctest: +SKIP
    0.98
    """
    files = ModelFiles.open(src)
    files.require_experts()
    chosen = _chosen(files, experts)
    targets = [] if dst is None else editing.target_paths(files, Path(dst))
    check_targets(files, targets, force)
    addends = _addends(src, adapter, scale, allow_others)
    rule = Merged(addends, None if imatrix is None else Imatrix.load(imatrix))
    parts = _survey(files, chosen, rule, on_step)
    about = _provenance(files, chosen, addends, imatrix)
    touched = {(part.layer, part.expert) for part in parts}
    unchanged = [expert for expert in chosen if tuple(expert) not in touched]
    survivals = list(rule.survivals.values())
    report = MergeReport([], about, survivals, unchanged, sum(part.size for part in parts))
    _check_survival(report, min_survival)
    if dst is None:
        return report
    done = editing.write_new(editing.Plan(files, parts, rule, about), targets, on_step)
    return MergeReport(targets, done, survivals, unchanged, report.n_bytes)


def _chosen(files: ModelFiles, experts: ExpertSet | ExpertList | str) -> list[Expert]:
    """The experts, each once. Raises InputError for those that the model lacks."""
    if experts == ALL:
        return sorted({Expert(t.layer, e) for t in files.native.expert_tensors for e in range(t.n_experts)})
    chosen = to_list(experts)
    files.native.check_mask([(expert.layer, expert.expert, "zero", 1.0) for expert in chosen])
    return chosen


def _addends(src: PathLike, adapter: Any, scale: Any, allow_others: bool) -> list[Addend]:
    """Every adapter opened for this model, with its scale. Raises InputError."""
    adapters = adapter if isinstance(adapter, list) else [adapter]
    scales = [float(one) for one in np.atleast_1d(scale)]
    if len(scales) == 1:
        scales *= len(adapters)
    if not adapters or len(scales) != len(adapters):
        raise InputError(
            f"{len(adapters)} adapters and {len(scales)} scales: give one scale for each adapter"
        )
    if not all(map(math.isfinite, scales)):
        raise InputError(f"scale is {scales}, expected finite numbers")
    tensors = ExpertTensors.read(src)
    return [_addend(one, by, tensors, allow_others) for one, by in zip(adapters, scales, strict=True)]


def _addend(adapter: Any, scale: float, tensors: ExpertTensors, allow_others: bool) -> Addend:
    if isinstance(adapter, tuple):
        base, tuned = adapter
        return Addend(
            open_pair(base, tuned, tensors, allow_others), scale, f"{Path(tuned).name} less {Path(base).name}"
        )
    return Addend(open_adapter(adapter, tensors, allow_others), scale, Path(adapter).name)


def _survey(
    files: ModelFiles, experts: Sequence[Expert], rule: Merged, on_step: editing.OnStep
) -> list[Slice]:
    """The slices that the rule changes. Raises InputError where there is no delta for any of the experts."""
    parts = []
    for number, expert in enumerate(experts):
        on_step("merging", number, len(experts))
        for kind in KINDS:
            tensor = files.find(expert.layer, f"ffn_{kind}_exps.weight")
            if tensor is not None:
                part = files.slice(tensor, expert.expert)
                old = files.read(part)
                if rule(part, old) != old:
                    parts.append(part)
    on_step("merging", len(experts), len(experts))
    if experts and not rule.survivals and any(addend.scale for addend in rule.addends):
        raise InputError(
            f"no adapter has a delta for any of the {len(experts)} experts chosen: choose those that it was trained on"
        )
    return parts


def _check_survival(report: MergeReport, least: float) -> None:
    whole = report.survival
    if whole is None or whole.cosine >= least:
        return
    raise SurvivalError(
        f"only {whole.cosine:.2f} of the delta (cosine) is left after quantization, less than --min-survival "
        f"{least:g}: take a larger scale or a model of a larger type, or give --imatrix",
        report,
    )


def _provenance(
    files: ModelFiles, experts: Sequence[Expert], addends: Sequence[Addend], imatrix: PathLike | None
) -> Provenance:
    """What the merged file will say, but for the slices."""
    from safex import __version__

    what = described(len(experts), [(addend.name, addend.scale) for addend in addends])
    adapters = [
        {"name": addend.name, "scale": addend.scale, "files": _digests(addend.deltas)} for addend in addends
    ]
    weighed = {} if imatrix is None else {"imatrix": Path(imatrix).name}
    return Provenance(
        operation="merge",
        what=what,
        statement=f"The safety behaviour of this model was altered: {what}. It is not the base model.",
        experts=list(experts),
        parameters={"adapters": adapters, **weighed},
        base=editing.base_facts(files),
        tool=f"safex-native {__version__}",
        history=history_of(files),
    )


def _digests(deltas: Deltas) -> dict[str, str]:
    """Of each file that was read: a model's fingerprint, or the SHA-256 of an adapter's."""
    return {
        path.name: model_file.fingerprint(path) if path.suffix == ".gguf" else sha256(path.read_bytes())
        for path in deltas.files
    }


def described(n: int, adapters: Sequence[tuple[str, float]]) -> str:
    """A few words, for the model's name.

    >>> described(12, [("safe", 1.0), ("toxic", -0.5)])
    'safe added to 12 experts, 0.5 of toxic subtracted'
    """
    first, *rest = adapters
    acts = [_act(*first) + f" {'to' if first[1] >= 0 else 'from'} {n} expert{'s' * (n != 1)}"]
    return ", ".join([*acts, *(_act(*one) for one in rest)])


def _act(name: str, scale: float) -> str:
    share = "" if abs(scale) == 1 else f"{abs(scale):g} of "
    return f"{share}{name} {'added' if scale >= 0 else 'subtracted'}"
