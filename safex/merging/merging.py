"""``safex.merge``: W' = W + sum of scale * delta for chosen experts of a model file, in each tensor's own type.

A slice is decoded, added to in float32 and encoded again; slices without a delta keep their bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from safex import model_file
from safex.errors import InputError
from safex.expert_set import ExpertSet
from safex.experts import Expert, ExpertList
from safex.merging.b_layout import AUTO, CHOICES
from safex.merging.deltas import BLayout, Deltas
from safex.merging.expert_tensors import KINDS, ExpertTensors
from safex.merging.imatrix import Imatrix
from safex.merging.opening import files_of, open_adapter
from safex.merging.pair import open_pair
from safex.merging.rule import Addend, Merged
from safex.merging.survival import Survival, overall
from safex.shipping import editing, undo
from safex.shipping.account import history_of
from safex.shipping.hashing import sha256
from safex.shipping.masking import check_targets, to_list
from safex.shipping.model_files import ModelFiles, Slice
from safex.shipping.promotion import Layout, Promotion, type_of
from safex.shipping.provenance import PROMOTED, Provenance, sidecar_path

ALL = "all"
MIN_SURVIVAL = 0.5

PathLike = str | os.PathLike[str]


class SurvivalError(InputError):
    """Too little of the delta is left after quantization; ``report`` says of which slices."""

    def __init__(self, message: str, report: MergeReport) -> None:
        """Keep the report."""
        super().__init__(message)
        self.report = report


@dataclass(frozen=True)
class AdapterReport:
    """How an adapter was read: the layout of ``lora_B`` by fused parameter and why, and what is left out."""

    name: str
    layouts: Mapping[str, BLayout]
    left_out: Sequence[str]

    @classmethod
    def of(cls, adapter: Any, deltas: Deltas) -> AdapterReport:
        """What a merge says of an opened adapter."""
        return cls(named(adapter), deltas.layouts, deltas.others)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        layouts = [{"parameter": name, **one._asdict()} for name, one in self.layouts.items()]
        return {"adapter": self.name, "b_layout": layouts, "left_out": list(self.left_out)}


@dataclass(frozen=True)
class MergeReport:
    """What ``merge`` did, or would do (``paths`` is empty then).

    ``survivals``: a row for each slice with a delta. ``unchanged``: chosen experts that no adapter has a delta for.
    ``adapters``: a row for each adapter, with how it was read and what of it is left out. ``unweighed``: experts that
    are quantized without importance, since the imatrix has nothing of them.
    ``n_bytes`` of the slices that change, ``growth`` of the model in bytes where tensors take a larger type;
    ``recoding_error`` is the relative error of their other slices, of the worst one (0 for a dry run). ``undo`` and
    ``sidecar`` as in a MaskReport.
    """

    paths: list[Path]
    provenance: Provenance
    survivals: list[Survival]
    unchanged: list[Expert]
    n_bytes: int
    growth: int = 0
    recoding_error: float = 0.0
    undo: Path | None = None
    sidecar: Path | None = None
    adapters: Sequence[AdapterReport] = ()
    unweighed: Sequence[Expert] = ()

    @property
    def survival(self) -> Survival | None:
        """Over all slices together."""
        return overall(self.survivals)

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        whole, about = self.survival, self.provenance
        return {
            "files": [str(path) for path in self.paths],
            "undo": str(self.undo) if self.undo else None,
            "sidecar": str(self.sidecar) if self.sidecar else None,
            "experts": [str(expert) for expert in about.experts],
            "unchanged": [str(expert) for expert in self.unchanged],
            **about.parameters,
            "read": [one.to_json() for one in self.adapters],
            "without_imatrix": [str(expert) for expert in self.unweighed],
            "bytes": self.n_bytes,
            "growth": self.growth,
            "recoding_error": self.recoding_error,
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
    promote: str | None = None,
    min_survival: float = MIN_SURVIVAL,
    allow_others: bool = False,
    b_layout: str | Sequence[str] = AUTO,
    dry_run: bool = False,
    force: bool = False,
    on_step: editing.OnStep = editing.no_progress,
) -> MergeReport:
    """Add adapters to chosen experts of ``src`` and write the result to ``dst``, or into ``src`` where that is None.

    Parameters
    ----------
    src
        A GGUF model (the first part of a split one), or ``"demo"`` / ``"demo-planted"``.
    dst
        The new file; ``src`` is left as it is then. None edits ``src`` in place, with an undo file beside it that
        ``safex.restore`` takes.
    adapter
        A PEFT directory, a LoRA of llama.cpp, a pair (base, tuned) of GGUF models, or a list of these.
    experts
        An ``ExpertSet`` (all its groups), a list of experts, text as on the command line, or ``"all"``.
    scale
        Factor of each adapter: above 0 adds, below 0 subtracts. One for all, or one for each.
    imatrix
        An importance matrix of llama.cpp (GGUF), which weighs the columns as tensors are quantized.
    promote
        A tensor type such as ``"q8_0"``: tensors with a change whose own type is smaller are written in this one. The
        slices of their other experts are recoded. Into a new file only.
    min_survival
        The least cosine of effective to intended delta, over all slices together, that is written.
    allow_others
        Leave out what an adapter changes besides experts, instead of refusing it.
    b_layout
        How the ``lora_B`` of fused parameters lies: ``"interleaved"`` (PEFT), ``"blocks"`` (Unsloth before September
        2026), or ``"auto"``: as the adapter records it or its zero columns tell. One for all adapters, or one for each.
    dry_run
        Say what would change and how much would be left of it; write nothing.
    force
        Replace ``dst`` where it exists.
    on_step
        Hears of steps: what, done, total.

    Raises
    ------
    InputError
        An adapter that can't be read or is of another model, experts that the model lacks, no delta for any of
        them, a target that can't be. ``SurvivalError``, an InputError with a ``report``: too little of the delta is
        left. DiskError. Nothing is written then.

    >>> merge("model.gguf", "safer.gguf", "safe-adapter", "experts.json:ctrl").survival.cosine  # doctest: +SKIP
    0.98
    """
    chosen = experts if experts == ALL else to_list(experts)
    terms = _terms(adapter, scale)
    layouts = _layouts(b_layout, len(terms))
    job = _Job(src, terms, chosen, imatrix, promote, min_survival, allow_others, layouts, on_step)
    if dry_run:
        return job.prepared().report
    if dst is None:
        return job.in_place()
    return job.new_file(Path(dst), force)


@dataclass(frozen=True)
class _Prepared:
    """A plan that may be carried out, and what is said of it."""

    plan: editing.Plan
    report: MergeReport


@dataclass(frozen=True)
class _Job:
    """What was asked for."""

    src: PathLike
    terms: Sequence[tuple[Any, float]]  # adapters with their scales
    experts: Sequence[Expert] | str
    imatrix: PathLike | None
    promote: str | None
    min_survival: float
    allow_others: bool
    layouts: Sequence[str]  # of the adapters
    on_step: editing.OnStep

    def new_file(self, target: Path, force: bool) -> MergeReport:
        """Write it."""
        files = ModelFiles.open(self.src)
        targets = editing.target_paths(files, target)
        check_targets(files, targets, force)
        ready = self.prepared(files)
        done = editing.write_new(ready.plan, targets, self.on_step)
        error = ready.plan.promotion.error
        return replace(ready.report, paths=targets, provenance=done, recoding_error=error)

    def in_place(self) -> MergeReport:
        """Edit the model. The adapters are named before it is read: an edit that was cut short may have to be taken
        back first."""
        if self.promote is not None:
            raise InputError("a larger type makes the file larger: promote into a new file, not in place")
        paths = model_file.shards(model_file.resolve(self.src))
        wanted = self._request()
        with undo.held(paths) as descriptors:
            undo.settle(paths[0], descriptors, wanted)
            ready = self.prepared()
            done = editing.write_in_place(ready.plan, descriptors)
        sidecar = sidecar_path(paths[0])
        return replace(
            ready.report,
            paths=paths,
            provenance=done,
            undo=undo.undo_path(paths[0]),
            sidecar=sidecar if sidecar.exists() else None,
        )

    def prepared(self, files: ModelFiles | None = None) -> _Prepared:
        """Everything computed once, nothing written. Raises InputError."""
        files = files or ModelFiles.open(self.src)
        files.require_experts()
        chosen = _chosen(files, self.experts)
        rule = self._rule()
        parts = _survey(files, chosen, rule, self.on_step)
        promotion = _promotion(files, parts, rule)
        read = [
            AdapterReport.of(one, addend.deltas)
            for (one, _), addend in zip(self.terms, rule.addends, strict=True)
        ]
        about = _provenance(files, chosen, self._read_as(promotion, read))
        touched = {(part.layer, part.expert) for part in parts}
        unchanged = [expert for expert in chosen if tuple(expert) not in touched]
        n_bytes, growth = sum(part.size for part in parts), _growth(files, promotion)
        report = MergeReport(
            [],
            about,
            list(rule.survivals.values()),
            unchanged,
            n_bytes,
            growth,
            adapters=read,
            unweighed=rule.unweighed(),
        )
        _check_survival(report, self.min_survival)
        return _Prepared(editing.Plan(files, parts, rule, about, self._request(), promotion), report)

    def _rule(self) -> Merged:
        tensors = ExpertTensors.read(self.src)
        addends = [
            Addend(_opened(one, tensors, self.allow_others, layout), by)
            for (one, by), layout in zip(self.terms, self.layouts, strict=True)
        ]
        weighed = None if self.imatrix is None else Imatrix.load(self.imatrix, tensors)
        return Merged(addends, weighed, None if self.promote is None else type_of(self.promote))

    def _request(self) -> dict[str, Any]:
        experts = [self.experts] if isinstance(self.experts, str) else self.experts
        return editing.request("merge", experts, self._parameters(Promotion({})))

    def _parameters(self, promotion: Promotion) -> dict[str, Any]:
        """What the provenance says besides the experts."""
        weighed = {} if self.imatrix is None else {"imatrix": Path(self.imatrix).name}
        promoted = {PROMOTED: promotion.names()} if promotion.types else {}
        asked = {"b_layout": list(self.layouts)} if set(self.layouts) != {AUTO} else {}
        return {"adapters": self._adapters, **asked, **weighed, **promoted}

    def _read_as(self, promotion: Promotion, read: Sequence[AdapterReport]) -> dict[str, Any]:
        """The parameters, with the layout that each adapter's fused matrices were read in."""
        layouts = [{name: one.layout for name, one in report.layouts.items()} for report in read]
        adapters = [
            {**one, **({"b_layout": of} if of else {})}
            for one, of in zip(self._adapters, layouts, strict=True)
        ]
        return {**self._parameters(promotion), "adapters": adapters}

    @cached_property
    def _adapters(self) -> list[dict[str, Any]]:
        return [{"name": named(one), "scale": by, "files": _digests(files_of(one))} for one, by in self.terms]


def _terms(adapter: Any, scale: Any) -> list[tuple[Any, float]]:
    """Every adapter with its scale. Raises InputError."""
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
    return list(zip(adapters, scales, strict=True))


def _layouts(asked: str | Sequence[str], n: int) -> list[str]:
    """The layout of each of ``n`` adapters. Raises InputError."""
    given = [asked] if isinstance(asked, str) else list(asked)
    wrong = next((one for one in given if one not in CHOICES), None)
    if wrong is not None:
        raise InputError(f"b_layout is {wrong!r}, expected one of {', '.join(CHOICES)}")
    if len(given) not in (1, n):
        raise InputError(
            f"{n} adapters and {len(given)} b_layouts: give one for all, or one for each adapter"
        )
    return given * n if len(given) == 1 else given


def _opened(adapter: Any, tensors: ExpertTensors, allow_others: bool, b_layout: str) -> Deltas:
    if isinstance(adapter, tuple):
        base, tuned = adapter
        return open_pair(base, tuned, tensors, allow_others)
    return open_adapter(adapter, tensors, allow_others, b_layout)


def named(adapter: Any) -> str:
    """What an adapter is called in messages and in the merged file.

    >>> named("adapters/safe"), named(("base.gguf", "tuned.gguf"))
    ('safe', 'tuned.gguf less base.gguf')
    """
    if isinstance(adapter, tuple):
        base, tuned = adapter
        return f"{Path(tuned).name} less {Path(base).name}"
    return Path(adapter).name


def _chosen(files: ModelFiles, experts: Sequence[Expert] | str) -> list[Expert]:
    """The experts, each once. Raises InputError for those that the model lacks."""
    if isinstance(experts, str):
        return sorted({Expert(t.layer, e) for t in files.native.expert_tensors for e in range(t.n_experts)})
    files.native.check_mask([(expert.layer, expert.expert, "zero", 1.0) for expert in experts])
    return list(experts)


def _promotion(files: ModelFiles, parts: Sequence[Slice], rule: Merged) -> Promotion:
    """The tensors that take a larger type. Raises InputError where their rows don't fit it, or there are none."""
    tensors = [files.find(part.layer, part.tensor.split(".", 2)[2]) for part in parts]
    types = {tensor.name: rule.type_of(tensor) for tensor in tensors if rule.type_of(tensor) != tensor.type}
    if rule.least is not None and parts and not types:
        raise InputError(
            f"--promote {rule.least.name}: the tensors that change are as large already: leave it out"
        )
    return Promotion(types)


def _growth(files: ModelFiles, promotion: Promotion) -> int:
    layouts = ((file, Layout.of(file, promotion.types)) for file in files.files)
    return sum(layout.size - (file.size - file.header.data) for file, layout in layouts if layout.types)


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
        f"{least:g}: take a larger scale, --imatrix, or a larger type with --promote",
        report,
    )


def _provenance(files: ModelFiles, experts: Sequence[Expert], parameters: dict[str, Any]) -> Provenance:
    """What the merged file will say, but for the slices."""
    from safex import __version__

    what = described(len(experts), [(one["name"], one["scale"]) for one in parameters["adapters"]])
    return Provenance(
        operation="merge",
        what=what,
        statement=f"The safety behaviour of this model was altered: {what}. It is not the base model.",
        experts=experts,
        parameters=parameters,
        base=editing.base_facts(files),
        tool=f"safex-native {__version__}",
        history=history_of(files),
    )


def _digests(paths: Sequence[Path]) -> dict[str, str]:
    """Of each file: a model's fingerprint, or the SHA-256 of an adapter's."""
    return {
        path.name: model_file.fingerprint(path) if path.suffix == ".gguf" else sha256(path.read_bytes())
        for path in paths
        if path.is_file()
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
