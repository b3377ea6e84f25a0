"""Router statistics of a run: how often each expert was selected, for each prompt, layer and phase.

A ``Profile`` is checked when it is made, so code that holds one needs no further checks. Its arrays may be
memory-mapped (``Profile.load``) and far larger than memory: everything here walks over them in blocks of
prompts. The file format is in ``profile_file.py``.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from safex.chat_settings import CHAT_KEYS
from safex.errors import DiskError, InputError
from safex.profile_arrays import (
    PROMPT_NOTES,
    Array,
    MetaValue,
    PhaseArrays,
    PromptTable,
    Routers,
    all_zero,
    blocks,
    check_phase,
    check_phase_names,
    clean_meta,
    first_difference,
    first_duplicate,
    prompts_hash,
    to_phase,
)

IN_MEMORY_BYTES = 512 << 20  # a merged array above this goes to a temporary file

# Settings that change which experts are selected: shards that differ in one of them must not be joined.
ROUTING_SETTINGS = (
    "model.fingerprint",
    "model.quant_types",
    *CHAT_KEYS,
    "template_hash",
    "upstream_id",
    "session.flash_attn",
    "session.kv_type",
)


class Profile:
    """Router statistics of many prompts, with the model and the settings that they were made with.

    ``counts``, ``gate_sum``, ``prob_sum`` [P, L, E] and ``n_tokens`` [P] are those of phase "prompt";
    ``phase(name)`` gives another phase. ``sets``, ``ids``, ``pairs``, ``categories``, ``texts_hash`` are
    lists of length P; ``layers`` and ``top_k`` lists of length L. ``meta`` says where the data come from
    (keys in ``profile_file.py``).

    >>> counts = [[[3, 1]], [[0, 4]]]
    >>> p = Profile.from_arrays(counts=counts, n_tokens=[4, 4], sets=["benign", "regular"], top_k=1)
    >>> p.activation("regular").tolist()
    [[0.0, 1.0]]
    """

    def __init__(
        self,
        arrays: Mapping[str, PhaseArrays],
        routers: Routers,
        prompts: PromptTable,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        """Check every invariant (design 4.1). Raises InputError naming phase, prompt and layer."""
        self._arrays = {name: arrays[name] for name in check_phase_names(arrays)}
        self._routers = routers
        self._prompts = prompts
        self.meta: dict[str, MetaValue] = clean_meta(meta or {})
        for name, phase in self._arrays.items():
            check_phase(name, phase, routers, prompts.ids)
        self.counts, self.gate_sum, self.prob_sum, self.n_tokens = self._arrays["prompt"]
        self.sets, self.ids, self.pairs = prompts.sets, prompts.ids, prompts.pairs
        self.categories, self.texts_hash = prompts.categories, prompts.texts_hash
        self.layers, self.n_experts, self.top_k = routers.layers, routers.n_experts, routers.top_k

    @classmethod
    def from_arrays(
        cls,
        *,
        counts: npt.ArrayLike,
        n_tokens: npt.ArrayLike,
        sets: Sequence[str],
        top_k: int | Sequence[int],
        pairs: Sequence[str | None] | None = None,
        layers: Sequence[int] | None = None,
        gate_sum: npt.ArrayLike | None = None,
        prob_sum: npt.ArrayLike | None = None,
        ids: Sequence[str] | None = None,
        categories: Sequence[str | None] | None = None,
        phases: Mapping[str, Mapping[str, Any]] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Profile:
        """Make a profile of simulated or imported data; shapes as in PhaseArrays, any integer type.

        ``phases`` adds others: ``{"suffix": {"counts": ..., "n_tokens": ...}}``, with gate_sum and prob_sum
        if known. Gate sums that are not given are zeros, and ``meta["absent"]`` names them. Raises
        InputError.
        """
        given = {"counts": counts, "n_tokens": n_tokens, "gate_sum": gate_sum, "prob_sum": prob_sum}
        if phases and "prompt" in phases:
            raise InputError("phases: give the arrays of phase 'prompt' as counts and n_tokens")
        data: dict[str, Mapping[str, Any]] = {"prompt": given, **(phases or {})}
        arrays = {name: to_phase(name, values) for name, values in data.items()}
        n_layers, n_experts = arrays["prompt"].counts.shape[1:]
        routers = Routers.build(range(n_layers) if layers is None else layers, n_experts, top_k)
        absent = [f for f in ("gate_sum", "prob_sum") if any(v.get(f) is None for v in data.values())]
        absent += ["ids"] if ids is None else []
        table = PromptTable.build(sets, ids, pairs, categories)
        return cls(arrays, routers, table, {**(meta or {}), "absent": absent})

    @classmethod
    def from_traces(
        cls,
        sets: Mapping[str, str | os.PathLike[str] | Sequence[str | os.PathLike[str]]],
        top_k: int | None = None,
        n_experts: int | None = None,
        layers: Sequence[int] | None = None,
    ) -> Profile:
        """Make a profile of other tools' traces, one prompt a file: files or folders for each set.

        Files are traces of the official SAFEx layout (``*.json``, also made by ``safex.trace``; phases prompt
        and response) or of llama.cpp's moe-trace (``*.csv``; all tokens are of phase prompt, and its last layer
        is left out where it is incomplete). File names are the ids. ``meta["import.notes"]`` says what to know
        of them. Gate sums are absent, with CSV files the sums of gate probabilities too.

        ``top_k`` and ``n_experts`` stand in JSON files; a CSV needs ``n_experts``, and ``top_k`` unless it can be
        told from the order of the rows. ``n_experts`` below a JSON file's own leaves out the last columns, of
        shared experts. ``layers`` names the blocks of the filled rows of JSON files, where it isn't clear.
        Raises InputError naming the file at fault.
        """
        from safex.trace_import import import_traces

        return import_traces(sets, top_k, n_experts, layers)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Profile:
        """Open a ``*.profile.gguf`` with memory-mapped, read-only arrays and check it. Raises InputError."""
        from safex.profile_file import load_profile

        return load_profile(path)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write ``path`` through a temporary file, replacing what is there. Raises DiskError, InputError."""
        from safex.profile_file import save_profile

        save_profile(self, path)

    @classmethod
    def merge(cls, profiles: Sequence[Profile]) -> Profile:
        """Join shards of one model, prompts in the order given.

        Raises InputError that names the first setting in which a shard differs, or the first prompt that
        occurs twice.
        """
        if not profiles:
            raise InputError("merge needs at least one profile")
        for i, other in enumerate(profiles[1:], 2):
            _refuse_mismatch(i, profiles[0], other)
        table = _join_tables(profiles)
        arrays = {
            name: PhaseArrays(
                *(_join(column) for column in zip(*(p.phase(name) for p in profiles), strict=True))
            )
            for name in profiles[0].phases
        }
        return cls(arrays, profiles[0]._routers, table, _merged_meta(profiles, table))

    @property
    def phases(self) -> tuple[str, ...]:
        """The phases that the profile holds, in the order prompt, suffix, response."""
        return tuple(self._arrays)

    @property
    def set_names(self) -> list[str]:
        """The distinct sets in order of first appearance."""
        return list(dict.fromkeys(self.sets))

    @property
    def prompts(self) -> PromptTable:
        """The lists of ids, sets, pairs, categories and text hashes as one object."""
        return self._prompts

    @property
    def routers(self) -> Routers:
        """Layers, number of experts and top_k as one object."""
        return self._routers

    def phase(self, name: str) -> PhaseArrays:
        """Return the arrays of a phase. Raises InputError if the profile doesn't hold it."""
        if name not in self._arrays:
            raise InputError(f"phase {name!r} is not in this profile: it holds {', '.join(self.phases)}")
        return self._arrays[name]

    def activation(self, set: str | None = None, phase: str = "prompt") -> npt.NDArray[np.float64]:
        """Activation probability of each expert over a set (None: all prompts), float64 [L, E].

        Sum of counts / sum of tokens (paper, section 3.1), so each row sums to the layer's top_k.
        Raises InputError for an unknown set, an unknown phase, or a set without tokens in the phase.
        """
        arrays = self.phase(phase)
        if set is not None and set not in self.sets:
            raise InputError(f"set {set!r} is not in this profile: it holds {', '.join(self.set_names)}")
        chosen = np.array([set is None or s == set for s in self.sets])
        tokens = int(arrays.n_tokens[chosen].sum())
        if not tokens:
            raise InputError(f"phase {phase!r} has no tokens" + (f" in set {set!r}" if set else ""))
        total = np.zeros(arrays.counts.shape[1:], np.int64)
        for rows in blocks(arrays.counts):
            total += arrays.counts[rows][chosen[rows]].sum(axis=0, dtype=np.int64)
        return np.asarray(total / tokens, np.float64)

    def select(self, rows: Sequence[int]) -> Profile:
        """The profile of some of its prompts, by place and in the order given; arrays are copies."""
        chosen = np.asarray(rows, np.int64)
        columns = {name: [values[row] for row in chosen] for name, values in vars(self._prompts).items()}
        arrays = {
            name: PhaseArrays(p.counts[chosen], p.gate_sum[chosen], p.prob_sum[chosen], p.n_tokens[chosen])
            for name, p in self._arrays.items()
        }
        table = PromptTable.build(**columns)
        origin = {"prompts_hash": prompts_hash(table), "part_of": self.meta.get("prompts_hash")}
        return Profile(arrays, self._routers, table, {**self.meta, **origin})

    def __repr__(self) -> str:
        """Say the shape and the sets in one line."""
        p, n_layers, n_experts = self.counts.shape
        return (
            f"Profile({p} prompts x {n_layers} layers x {n_experts} experts,"
            f" phases {'/'.join(self.phases)}, sets {'/'.join(self.set_names)})"
        )


def _refuse_mismatch(i: int, first: Profile, other: Profile) -> None:
    imported = "model.fingerprint" not in first.meta  # then its name is all that is known of the model
    settings = (*ROUTING_SETTINGS, *(["model.name"] if imported else []))
    pairs: list[tuple[str, object, object]] = [
        *((key, first.meta.get(key), other.meta.get(key)) for key in settings),
        *((key, getattr(first, key), getattr(other, key)) for key in ("layers", "n_experts", "top_k")),
        ("phases", list(first.phases), list(other.phases)),
        *(
            (f + " recorded", f not in _absent(first), f not in _absent(other))
            for f in ("gate_sum", "prob_sum")
        ),
    ]
    for name, a, b in pairs:
        difference = first_difference(name, a, b)
        if difference:
            raise InputError(f"profiles 1 and {i} are not shards of one run: they differ in {difference}")


def _absent(profile: Profile) -> list[Any]:
    return _texts(profile.meta.get("absent"))


def _texts(value: object) -> list[Any]:
    return value if isinstance(value, list) else []


def _join_tables(profiles: Sequence[Profile]) -> PromptTable:
    tables = [profile.prompts for profile in profiles]
    columns = {name: [v for t in tables for v in getattr(t, name)] for name in vars(tables[0])}
    if all("ids" in _absent(profile) for profile in profiles):
        columns["ids"] = [str(i) for i in range(len(columns["sets"]))]
    duplicate = first_duplicate(PromptTable(**columns))
    if duplicate:
        raise InputError(
            f"prompt {duplicate[1]!r} of set {duplicate[0]!r} occurs in the profiles more than once"
        )
    return PromptTable.build(**columns)


def _merged_meta(profiles: Sequence[Profile], table: PromptTable) -> dict[str, Any]:
    first = profiles[0].meta
    meta: dict[str, Any] = {k: v for k, v in first.items() if all(p.meta.get(k) == v for p in profiles)}
    created = [str(p.meta["created"]) for p in profiles if "created" in p.meta]
    parts = [str(p.meta.get("prompts_hash", "")) for p in profiles]
    meta["created"] = max(created, default=None)
    notes = dict.fromkeys(note for p in profiles for note in _texts(p.meta.get(PROMPT_NOTES)))
    if notes:
        meta[PROMPT_NOTES] = list(notes)
    if len(profiles) > 1 and all(parts):
        meta["prompts_hash"] = prompts_hash(table) or hashlib.sha256("\n".join(parts).encode()).hexdigest()
    if not all("ids" in _absent(p) for p in profiles):
        meta["absent"] = [f for f in _absent(profiles[0]) if f != "ids"]
    return meta


def _join(arrays: Sequence[Array]) -> Array:
    """Concatenate over prompts; into a temporary file where the result would not fit well in memory."""
    if all(map(all_zero, arrays)):
        return np.broadcast_to(np.float64(0), (sum(map(len, arrays)), *arrays[0].shape[1:]))
    if sum(array.nbytes for array in arrays) <= IN_MEMORY_BYTES:
        return np.concatenate(arrays)
    try:
        with tempfile.TemporaryFile() as file:
            for array in arrays:
                for rows in blocks(array):
                    file.write(np.ascontiguousarray(array[rows]).data)
            file.flush()
            shape = (sum(map(len, arrays)), *arrays[0].shape[1:])
            return np.memmap(file, arrays[0].dtype, "r", shape=shape)
    except OSError as error:
        where = tempfile.gettempdir()
        raise DiskError(f"{where}: can't hold the merged profile: {error.strerror}; set TMPDIR") from error
