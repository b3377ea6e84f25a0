"""Masks of experts written into a model file: what an expert puts out becomes 0, is multiplied, or is never selected.

- ``zero`` with a gain of 0: the expert's slice of ``ffn_down_exps`` and of its bias become zero bytes, which are 0 in
  every tensor type. Other gains multiply them: exactly through the blocks' scales where those can hold the product,
  else the scales are rounded, else the slice is encoded anew; the report says which.
- ``reroute``: the router's bias of the expert becomes ``NEVER``, where the architecture has a bias that decides the
  selection as a router score of minus infinity does.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from safex import model_file
from safex.errors import InputError, UnsupportedError
from safex.expert_set import ExpertSet, parse_experts
from safex.experts import Expert, ExpertList, to_expert

from . import editing, undo
from .account import history_of
from .model_files import ModelFiles, Slice, native
from .provenance import Provenance, sidecar_path

MODES = ("zero", "reroute")
NEVER = -1e30  # finite, so that no reader takes the file for broken
DOWN, DOWN_BIAS, DOWN_SCALE = "ffn_down_exps.weight", "ffn_down_exps.bias", "ffn_down_exps.scale"
SELECTION_BIAS, ROUTER_BIAS = "exp_probs_b.bias", "ffn_gate_inp.bias"
F32 = "f32"

ZEROED, UNCHANGED, EXACT, ROUNDED, REQUANTIZED = "zeroed", "unchanged", "rescaled", "rounded", "requantized"
BIASED = "never selected"

Experts: TypeAlias = "ExpertSet | ExpertList | str"
Floats: TypeAlias = npt.NDArray[np.float32]


@dataclass
class Multiplied:
    """Slices times a gain. ``how`` counts them by what was done, ``error`` is the largest relative error of one."""

    gain: float
    how: Counter[str] = field(default_factory=Counter)
    error: float = 0.0

    def __call__(self, part: Slice, old: bytes) -> bytes:
        """The new bytes of a slice. Raises InputError where its type can't hold the product."""
        if self.gain == 0:
            return self._done(ZEROED, bytes(len(old)))
        if self.gain == 1:
            return self._done(UNCHANGED, old)
        new, scaling = native.scale_blocks(part.type, old, self.gain)
        if scaling == "exact":
            return self._done(EXACT, new)
        if scaling == "impossible":
            new = self._requantized(part, old)
        self.error = max(self.error, relative_error(part, old, new, self.gain))
        return self._done(ROUNDED if scaling == "rounded" else REQUANTIZED, new)

    def _done(self, how: str, new: bytes) -> bytes:
        self.how[how] += 1
        return new

    def _requantized(self, part: Slice, old: bytes) -> bytes:
        rows = native.decode(part.type, old).reshape(-1, part.columns) * np.float32(self.gain)
        try:
            encoded: bytes = native.encode(part.type, rows, None)
        except InputError as error:
            raise InputError(
                f"{part.tensor}, expert {part.expert}: can't be multiplied by {self.gain:g}: {error}"
            ) from None
        return encoded


def relative_error(part: Slice, old: bytes, new: bytes, gain: float) -> float:
    """Norm of (new - gain * old) over norm of (gain * old), of the decoded values."""
    wanted = native.decode(part.type, old).astype(np.float64) * float(np.float32(gain))
    norm = float(np.linalg.norm(wanted))
    return float(np.linalg.norm(native.decode(part.type, new) - wanted)) / norm if norm else 0.0


def never_selected(part: Slice, old: bytes) -> bytes:
    """The router bias of an expert that can't be selected."""
    return np.array([NEVER], "<f4").tobytes()


# --- the report


@dataclass(frozen=True)
class MaskReport:
    """What ``write_mask`` did.

    ``paths`` are the files written, ``undo`` the undo file of an edit in place, ``sidecar`` where its provenance lies
    if not in the file's own header. ``how`` counts slices by what was done to them.
    """

    paths: list[Path]
    provenance: Provenance
    how: dict[str, int]
    error: float
    n_bytes: int
    undo: Path | None = None
    sidecar: Path | None = None

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        about = self.provenance
        return {
            "files": [str(path) for path in self.paths],
            "undo": str(self.undo) if self.undo else None,
            "sidecar": str(self.sidecar) if self.sidecar else None,
            "experts": [str(expert) for expert in about.experts],
            **about.parameters,
            "how": self.how,
            "relative_error": self.error,
            "bytes": self.n_bytes,
            "name": about.name,
            "base": dict(about.base),
            "slices": [vars(written) for written in about.slices],
        }


# --- writing


def write_mask(
    src: str | os.PathLike[str],
    dst: str | os.PathLike[str] | None,
    experts: Experts,
    *,
    mode: str = "zero",
    gain: float = 0.0,
    force: bool = False,
    on_step: editing.OnStep = editing.no_progress,
) -> MaskReport:
    """Write a mask into a model file: a new one at ``dst``, or ``src`` itself where ``dst`` is None.

    Parameters
    ----------
    src
        A GGUF file (the first part of a split one), or ``"demo"`` / ``"demo-planted"``. It is left as it is.
    dst
        The new file; of a split model its first part, or a name from which the parts' names are made. None edits
        ``src`` in place, with an undo file beside it that ``safex.restore`` takes.
    experts
        An ``ExpertSet`` (all its groups), a list of experts, or text as on the command line. May be empty.
    mode
        ``"zero"``: the expert's output is multiplied by ``gain``. ``"reroute"``: it can't be selected.
    gain
        Any finite number; 0 silences the expert. Powers of two are exact in nearly all tensor types.
    force
        Replace ``dst`` where it exists.
    on_step
        Hears of steps: what, done, total.

    Raises
    ------
    InputError
        An expert that the model lacks, a bad file, a target that can't be. UnsupportedError: a dense model, or
        ``reroute`` where no router bias can carry it. DiskError: the file can't be written; ``src`` is intact.

    >>> write_mask("demo", "masked.gguf", [(1, 2), (3, 9)]).how  # doctest: +SKIP
    {'zeroed': 2}
    """
    chosen = to_list(experts)
    if mode not in MODES:
        raise InputError(f"mode is {mode!r}, expected one of {', '.join(MODES)} (a file can't force experts)")
    if dst is None:
        return _in_place(src, chosen, mode, gain)
    files = ModelFiles.open(src)
    targets = editing.target_paths(files, Path(dst))
    check_targets(files, targets, force)
    plan, rule = make_plan(files, chosen, mode, gain)
    done = editing.write_new(plan, targets, on_step)
    return _report(targets, plan, done, rule)


def _in_place(src: str | os.PathLike[str], experts: list[Expert], mode: str, gain: float) -> MaskReport:
    paths = model_file.shards(model_file.resolve(src))
    wanted = editing.request("mask", experts, parameters(mode, gain))
    with undo.held(paths) as descriptors:
        undo.settle(paths[0], descriptors, wanted)
        plan, rule = make_plan(ModelFiles.open(src), experts, mode, gain)
        done = editing.write_in_place(plan, descriptors)
    sidecar = sidecar_path(paths[0])
    report = _report(paths, plan, done, rule, undo.undo_path(paths[0]), sidecar if sidecar.exists() else None)
    return report


def to_list(experts: Experts) -> list[Expert]:
    """The experts, each once. Raises InputError."""
    if isinstance(experts, str):
        return parse_experts(experts)
    if isinstance(experts, ExpertSet):
        found = [expert for group in experts.groups.values() for expert in group]
        return list(dict.fromkeys(found))
    return [to_expert(expert) for expert in experts]


def check_targets(files: ModelFiles, targets: Sequence[Path], force: bool) -> None:
    """Refuse to write over the model itself, or over anything else without ``force``. Raises InputError."""
    for target in targets:
        if not target.exists():
            continue
        if any(target.samefile(path) for path in files.paths):
            raise InputError(f"{target}: is the model itself: choose another -o, or edit it with --in-place")
        if not force:
            raise InputError(f"{target}: exists: choose another -o, or replace it with --force")


def _report(
    paths: Sequence[Path],
    plan: editing.Plan,
    done: Provenance,
    rule: Multiplied | None,
    undo_file: Path | None = None,
    sidecar: Path | None = None,
) -> MaskReport:
    n_bytes = sum(part.size for part in plan.parts)
    n_slices = len(plan.parts)
    # In place every slice is made more than once.
    how = {name: n_slices * n // rule.how.total() for name, n in rule.how.items()} if rule else {}
    if not rule and n_slices:
        how = {BIASED: n_slices}
    return MaskReport(list(paths), done, how, rule.error if rule else 0.0, n_bytes, undo_file, sidecar)


# --- the plan


def parameters(mode: str, gain: float) -> dict[str, Any]:
    """What a mask's provenance says besides its experts."""
    return {"mode": mode, "gain": gain} if mode == "zero" else {"mode": mode}


def make_plan(
    files: ModelFiles, experts: Sequence[Expert], mode: str, gain: float
) -> tuple[editing.Plan, Multiplied | None]:
    """Which slices to write, and how. Raises InputError, UnsupportedError."""
    files.require_experts()
    files.native.check_mask([(expert.layer, expert.expert, mode, gain) for expert in experts])
    roles = reroute_roles if mode == "reroute" else lambda of, layer: output_roles(of, layer, gain)
    parts = [
        files.slice(tensor, expert.expert) for expert in experts for tensor in roles(files, expert.layer)
    ]
    multiplied = None if mode == "reroute" else Multiplied(gain)
    rule: Callable[[Slice, bytes], bytes] = multiplied or never_selected
    wanted = editing.request("mask", experts, parameters(mode, gain))
    return editing.Plan(files, parts, rule, provenance(files, experts, mode, gain), wanted), multiplied


def output_roles(files: ModelFiles, layer: int, gain: float) -> list[Any]:
    """The tensors that make an expert's output: the last weights and their bias; or a factor it has of its own."""
    weights = files.find(layer, DOWN)
    if gain != 0:
        weights = files.find(layer, DOWN_SCALE) or weights
    return [tensor for tensor in (weights, files.find(layer, DOWN_BIAS)) if tensor]


def reroute_roles(files: ModelFiles, layer: int) -> list[Any]:
    """The router bias that decides whether an expert is selected. Raises UnsupportedError where there is none."""
    tensor = files.find(layer, SELECTION_BIAS) or files.find(layer, ROUTER_BIAS)
    here = f"{files.path}: block {layer} (architecture {files.native.architecture})"
    otherwise = "use mode zero, or `eval --mode reroute` at run time"
    if tensor is None:
        raise UnsupportedError(f"{here} has no router bias that could keep an expert out: {otherwise}")
    if native.tensor_type(tensor.type).name != F32:
        raise UnsupportedError(f"{here} has a router bias that is not f32: {otherwise}")
    if tensor.role == SELECTION_BIAS and not files.native.scores_are_independent:
        raise UnsupportedError(
            f"{here} selects by a softmax or does not say how: its selection bias would leave the other experts' "
            f"weights as they are, where reroute renormalises them: {otherwise}"
        )
    return [tensor]


def provenance(files: ModelFiles, experts: Sequence[Expert], mode: str, gain: float) -> Provenance:
    """What the edited file will say, but for the slices."""
    from safex import __version__

    what = described(len(experts), mode, gain)
    return Provenance(
        operation="mask",
        what=what,
        statement=f"The safety behaviour of this model was altered for analysis: {what}. It is not the base model and "
        "must not be used or passed on as if it were.",
        experts=list(experts),
        parameters=parameters(mode, gain),
        base=editing.base_facts(files),
        tool=f"safex-native {__version__}",
        history=history_of(files),
    )


def described(n: int, mode: str, gain: float) -> str:
    """A few words, for the model's name.

    >>> described(12, "zero", 0.0), described(1, "zero", 0.5), described(2, "reroute", 0.0)
    ('12 experts masked', '1 expert multiplied by 0.5', '2 experts never selected')
    """
    act = "never selected" if mode == "reroute" else "masked" if gain == 0 else f"multiplied by {gain:g}"
    return f"{n} expert{'s' * (n != 1)} {act}"
