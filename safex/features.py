"""Features: what chosen experts put out for each prompt, pooled over its tokens. ``model.dump`` makes them.

A ``Features`` is checked when it is made, so code that holds one needs no further checks. Its arrays may be
memory-mapped (``Features.load``) and far larger than memory. The file format is in ``features_file.py``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import astuple
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.errors import InputError
from safex.experts import Expert, ExpertLike, ExpertList, to_expert
from safex.profile_arrays import PHASES, MetaValue, PromptTable, blocks, clean_meta
from safex.prompts import evenly_spaced
from safex.roster import Roster, to_experts

Values: TypeAlias = npt.NDArray[np.float32]
Tokens: TypeAlias = npt.NDArray[np.uint32]

ROUTINGS = ("forced", "natural")
POOLS = ("mean", "last")


class Features:
    """Outputs of E experts' feed-forward networks, before the gate weight, for P prompts.

    ``values``: for each of ``experts`` a float32 array [P, n_embd]. ``n_tokens`` uint32 [E, P] says how many tokens
    were pooled; where it is 0 (with "natural" routing: no token selected the expert) the row is NaN, everywhere else it
    is finite. ``router_probs`` float32 [E, P]: the router's probability of the expert, pooled like the outputs but over
    all tokens of the phase; NaN where it is not known. ``sets``, ``ids``, ``pairs``, ``categories`` and ``texts`` (or
    None) are lists of length P. ``roster`` says which groups the experts form and of which they are controls.
    ``routing``: all tokens went through the expert ("forced"), or those that selected it ("natural"). ``pool``: "mean"
    or "last" token of ``phase``. ``meta``: where they come from, keys as in a profile (model.fingerprint,
    prompts_hash, tool_version, upstream_id ...).

    >>> f = Features.from_arrays(experts=["0:3"], values=[[[1.0, 2.0], [3.0, 4.0]]], sets=["regular", "benign"])
    >>> f.of("0:3")[1].tolist(), f.n_tokens.tolist()
    ([3.0, 4.0], [[1, 1]])
    """

    def __init__(
        self,
        experts: Sequence[Expert],
        values: Sequence[Values],
        n_tokens: Tokens,
        prompts: PromptTable,
        texts: Sequence[str] | None = None,
        roster: Roster | None = None,
        routing: str = "forced",
        pool: str = "mean",
        phase: str = "prompt",
        meta: Mapping[str, Any] | None = None,
        router_probs: Values | None = None,
    ) -> None:
        """Check everything. Raises InputError naming expert and prompt."""
        self.experts, self.values, self.n_tokens = list(experts), list(values), n_tokens
        unknown = np.full(n_tokens.shape, np.nan, np.float32)
        self.router_probs = unknown if router_probs is None else router_probs
        self.texts = None if texts is None else list(texts)
        self.roster = roster or Roster()
        self.routing, self.pool, self.phase = routing, pool, phase
        self.meta: dict[str, MetaValue] = clean_meta(meta or {})
        self._prompts = prompts
        self.sets, self.ids = prompts.sets, prompts.ids
        self.pairs, self.categories = prompts.pairs, prompts.categories
        self._place = {expert: row for row, expert in enumerate(self.experts)}
        self._check_names()
        self._check_shapes()
        for expert, array, counts in zip(self.experts, self.values, self.n_tokens, strict=True):
            _check_values(expert, array, counts, prompts)

    @classmethod
    def from_arrays(
        cls,
        *,
        experts: ExpertList,
        values: npt.NDArray[Any] | Sequence[npt.ArrayLike],
        sets: Sequence[str],
        n_tokens: npt.ArrayLike | None = None,
        ids: Sequence[str] | None = None,
        pairs: Sequence[str | None] | None = None,
        categories: Sequence[str | None] | None = None,
        texts: Sequence[str] | None = None,
        roster: Roster | None = None,
        routing: str = "forced",
        pool: str = "mean",
        phase: str = "prompt",
        meta: Mapping[str, Any] | None = None,
        router_probs: npt.ArrayLike | None = None,
    ) -> Features:
        """Make features of simulated or imported data: ``values`` [E, P, n_embd], or a list of [P, n_embd].

        Without ``n_tokens`` [E, P] it is 0 for rows of NaN and 1 for others. Raises InputError.
        """
        if not len(sets):
            raise InputError("features need at least one prompt")
        arrays = [_to_floats(f"values[{i}]", array) for i, array in enumerate(values)]
        counts = [~np.isnan(array).all(axis=1) for array in arrays] if n_tokens is None else n_tokens
        table = PromptTable.build(sets, ids, pairs, categories)
        tokens = _to_counts(counts)
        probs = (
            None
            if router_probs is None
            else _to_floats("router_probs", router_probs, "[n_experts, n_prompts]")
        )
        return cls(
            to_experts(experts), arrays, tokens, table, texts, roster, routing, pool, phase, meta, probs
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Features:
        """Open a file of ``save`` with memory-mapped, read-only arrays and check it. Raises InputError."""
        from safex.features_file import load_features

        return load_features(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a safetensors file through a temporary one, replacing what is there. Raises DiskError, InputError."""
        from safex.features_file import save_features

        save_features(self, path)

    def limited(self, n: int | None) -> Features:
        """Those of at most ``n`` prompts of each set (None: all), evenly spaced, as ``PromptSet.limited``."""
        if n is None:
            return self
        rows = evenly_spaced(self.sets, n)
        table = PromptTable(*([column[row] for row in rows] for column in astuple(self._prompts)))
        return Features(
            self.experts,
            [array[rows] for array in self.values],
            self.n_tokens[:, rows],
            table,
            None if self.texts is None else [self.texts[row] for row in rows],
            self.roster,
            self.routing,
            self.pool,
            self.phase,
            self.meta,
            self.router_probs[:, rows],
        )

    @property
    def prompts(self) -> PromptTable:
        """The lists of ids, sets, pairs, categories and text hashes as one object."""
        return self._prompts

    @property
    def n_embd(self) -> int:
        """Width of an expert's output."""
        return int(self.values[0].shape[1])

    @property
    def roles(self) -> list[list[str]]:
        """What each expert is there for: names of groups, and ``control:KIND``."""
        known = self.roster.roles
        return [known.get(expert, []) for expert in self.experts]

    def of(self, expert: ExpertLike) -> Values:
        """The features of an expert, float32 [P, n_embd]. Raises InputError for one that was not dumped."""
        return self.values[self.row(expert)]

    def present(self, expert: ExpertLike) -> npt.NDArray[np.bool_]:
        """The prompts that the expert has features of, bool [P]."""
        return np.asarray(self.n_tokens[self.row(expert)] > 0)

    def row(self, expert: ExpertLike) -> int:
        """Place of an expert among ``experts``. Raises InputError for one that was not dumped."""
        found = self._place.get(to_expert(expert))
        if found is None:
            raise not_dumped(to_expert(expert), self.experts)
        return found

    def __repr__(self) -> str:
        """Say the shape and the sets in one line."""
        sets = "/".join(dict.fromkeys(self.sets))
        return (
            f"Features({len(self.experts)} experts x {len(self.sets)} prompts x {self.n_embd}, "
            f"{self.routing}, {self.pool} of {self.phase}, sets {sets})"
        )

    def _check_names(self) -> None:
        for name, value, known in (
            ("routing", self.routing, ROUTINGS),
            ("pool", self.pool, POOLS),
            ("phase", self.phase, PHASES),
        ):
            if value not in known:
                raise InputError(f"{name} is {value!r}, expected one of {', '.join(known)}")
        if len(self._place) != len(self.experts):
            twice = next(expert for expert in self.experts if self.experts.count(expert) > 1)
            raise InputError(f"expert {twice} is listed twice")
        if self.texts is not None and len(self.texts) != len(self.sets):
            raise InputError(
                f"texts: expected {len(self.sets)} values, one per prompt, found {len(self.texts)}"
            )
        for expert in self.roster.experts:
            self.row(expert)

    def _check_shapes(self) -> None:
        n_experts, n_prompts = len(self.experts), len(self.sets)
        if not n_experts or len(self.values) != n_experts:
            raise InputError(
                f"values: expected one array for each of {n_experts} experts, found {len(self.values)}"
            )
        expected = (n_experts, n_prompts)
        if (self.n_tokens.shape, self.n_tokens.dtype) != (expected, np.dtype(np.uint32)):
            found = f"{self.n_tokens.dtype} {list(self.n_tokens.shape)}"
            raise InputError(
                f"n_tokens is {found}, expected uint32 [n_experts, n_prompts] = {list(expected)}"
            )
        probs = self.router_probs
        if (
            (probs.shape, probs.dtype) != (expected, np.dtype(np.float32))
            or (probs < 0).any()
            or np.isinf(probs).any()
        ):
            raise InputError(
                f"router_probs is {probs.dtype} {list(probs.shape)}, expected float32 [n_experts, n_prompts] = "
                f"{list(expected)}, from 0 on"
            )
        width = self.values[0].shape[-1] if self.values[0].ndim else 0
        for expert, array in zip(self.experts, self.values, strict=True):
            if (array.shape, array.dtype) != ((n_prompts, width), np.dtype(np.float32)) or not width:
                raise InputError(
                    f"expert {expert}: features are {array.dtype} {list(array.shape)}, expected float32 "
                    f"[n_prompts, n_embd] = {[n_prompts, width or 'at least 1']}"
                )


def not_dumped(expert: Expert, experts: Sequence[Expert]) -> InputError:
    """What to say of an expert that is not among those of a dump."""
    layers = ", ".join(map(str, sorted({one.layer for one in experts})))
    return InputError(
        f"expert {expert} is not among the {len(experts)} experts of these features (of layers {layers}): dump it too, "
        "or is it an expert of another model?"
    )


def _check_values(expert: Expert, array: Values, n_tokens: Tokens, prompts: PromptTable) -> None:
    """Rows are finite where tokens were pooled, NaN where none were."""
    for rows in blocks(array):
        block = np.asarray(array[rows])
        pooled = n_tokens[rows] > 0
        wrong = np.where(pooled, ~np.isfinite(block).all(axis=1), ~np.isnan(block).all(axis=1))
        if wrong.any():
            at = int(wrong.argmax())
            name = f"expert {expert}, prompt {prompts.ids[rows.start + at]!r} of set {prompts.sets[rows.start + at]!r}"
            if pooled[at]:
                raise InputError(f"{name}: holds NaN or infinite values, expected finite ones: dump it again")
            raise InputError(f"{name}: no token was pooled, expected a row of NaN")


def _to_floats(what: str, values: npt.ArrayLike, shape: str = "[n_prompts, n_embd]") -> Values:
    try:
        array = np.asarray(values, np.float32)
    except (ValueError, TypeError):
        raise InputError(f"{what}: expected numbers in rows of one length") from None
    if array.ndim != 2:
        raise InputError(f"{what}: expected {shape}, found {list(array.shape)}")
    return array


def _to_counts(values: Any) -> Tokens:
    try:
        array = np.asarray(values)
    except ValueError:
        raise InputError("n_tokens: rows differ in length, expected [n_experts, n_prompts]") from None
    if array.dtype.kind not in "biu" or (array.size and not (array.min() >= 0 and array.max() < 2**32)):
        raise InputError("n_tokens: expected whole numbers from 0 on")
    return array.astype(np.uint32)
