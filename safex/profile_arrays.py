"""What a profile is made of, and every check on it: arrays by phase, routers, the table of prompts, metadata.

Arrays may be memory-mapped and far larger than memory: they are walked over in blocks of prompts.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from safex import disk
from safex.errors import InputError

SCHEMA_VERSION = 1
PHASES = ("prompt", "suffix", "response")
BLOCK_BYTES = 2 << 20  # arrays are read, checked and written in pieces of about this size

# Names that the file gives to the profile's own fields; ``meta`` can't use them.
RESERVED = frozenset(
    {"schema_version", "phases", "set_names", "layers", "n_experts", "top_k"}
    | {"ids", "sets", "pairs", "categories", "texts_hash"}
)

DTYPES: dict[str, np.dtype[Any]] = {  # of the fields of PhaseArrays
    "counts": np.dtype(np.uint32),
    "gate_sum": np.dtype(np.float64),
    "prob_sum": np.dtype(np.float64),
    "n_tokens": np.dtype(np.int64),
}

Array: TypeAlias = npt.NDArray[Any]
MetaValue: TypeAlias = str | bool | int | float | list[str] | list[int]


class PhaseArrays(NamedTuple):
    """The statistics of one phase; P prompts, L layers, E experts.

    ``counts`` uint32 [P, L, E]: tokens of the prompt whose top-k in that layer holds the expert. ``gate_sum``
    and ``prob_sum`` float64 [P, L, E]: sums of gate weights and of gate probabilities over those selections.
    ``n_tokens`` int64 [P].
    """

    counts: npt.NDArray[np.uint32]
    gate_sum: npt.NDArray[np.float64]
    prob_sum: npt.NDArray[np.float64]
    n_tokens: npt.NDArray[np.int64]


@dataclass(frozen=True)
class Routers:
    """The MoE layers of a model: GGUF block indices, routed experts, selections per token in each layer."""

    layers: list[int]
    n_experts: int
    top_k: list[int]

    @classmethod
    def build(cls, layers: Sequence[int], n_experts: int, top_k: int | Sequence[int]) -> Routers:
        """Check and normalise; an integer ``top_k`` holds for every layer. Raises InputError."""
        layers = [int(layer) for layer in layers]
        k_of = [int(k) for k in np.ravel(top_k)] * (len(layers) if np.ndim(top_k) == 0 else 1)
        if not layers or layers[0] < 0 or any(b <= a for a, b in itertools.pairwise(layers)):
            raise InputError(f"layers: expected increasing block indices, found {shorten(layers)}")
        if len(k_of) != len(layers):
            raise InputError(f"top_k: expected {len(layers)} values, one per layer, found {len(k_of)}")
        if not all(1 <= k <= n_experts for k in k_of):
            raise InputError(
                f"top_k: expected values from 1 to n_experts = {n_experts}, found {shorten(k_of)}"
            )
        return cls(layers, int(n_experts), k_of)


@dataclass(frozen=True)
class PromptTable:
    """What is known of each prompt, in lists of one length; ``ids`` are unique within a set."""

    ids: list[str]
    sets: list[str]
    pairs: list[str | None]
    categories: list[str | None]
    texts_hash: list[str | None]

    @classmethod
    def build(
        cls,
        sets: Sequence[str],
        ids: Sequence[str] | None = None,
        pairs: Sequence[str | None] | None = None,
        categories: Sequence[str | None] | None = None,
        texts_hash: Sequence[str | None] | None = None,
    ) -> PromptTable:
        """Check and normalise; missing ids are numbers from 0. Raises InputError naming list or prompt."""
        n = len(sets)
        if not n:
            raise InputError("a profile needs at least one prompt")
        table = cls(
            _texts("ids", range(n) if ids is None else ids, n),
            _texts("sets", sets, n),
            _texts_or_none("pairs", pairs, n),
            _texts_or_none("categories", categories, n),
            _texts_or_none("texts_hash", texts_hash, n),
        )
        duplicate = first_duplicate(table)
        if duplicate:
            raise InputError(
                f"two prompts of set {duplicate[0]!r} have the id {duplicate[1]!r}: make ids unique"
            )
        return table


def blocks(array: Array) -> Iterator[slice]:
    """Slices over the first axis, each of about BLOCK_BYTES. Of a mapped file, no more than one stays resident."""
    step = max(1, BLOCK_BYTES // max(1, array[:1].nbytes))
    for start in range(0, len(array), step):
        yield slice(start, min(start + step, len(array)))
        disk.let_go(array)


def check_phase_names(names: Mapping[str, Any] | Sequence[str]) -> tuple[str, ...]:
    """Return the names in their fixed order. Raises InputError for an unknown one or without "prompt"."""
    for name in names:
        if name not in PHASES:
            raise InputError(f"unknown phase {name!r}: expected {', '.join(PHASES)}")
    if "prompt" not in names:
        raise InputError("a profile needs the phase 'prompt'")
    return tuple(name for name in PHASES if name in names)


def check_phase(name: str, arrays: PhaseArrays, routers: Routers, ids: Sequence[str]) -> None:
    """Check shapes, sum_e counts[p, l, :] == top_k[l] * n_tokens[p], and sums finite and not negative.

    Raises InputError naming the phase and, where one is at fault, prompt id, layer, expected and found
    values.
    """
    cube = (len(ids), len(routers.layers), routers.n_experts)
    for field, dtype in DTYPES.items():
        array: Array = getattr(arrays, field)
        shape = cube[:1] if field == "n_tokens" else cube
        if (array.shape, array.dtype) != (shape, dtype):
            found = f"{array.dtype} {list(array.shape)}"
            raise InputError(f"phase {name!r}: {field} is {found}, expected {dtype} {list(shape)}")
    _check_tokens(name, arrays.n_tokens, routers, ids)
    for rows in blocks(arrays.counts):
        _check_counts(name, rows, arrays, routers, ids)
    for field in ("gate_sum", "prob_sum"):
        _check_sums(name, field, getattr(arrays, field), routers, ids)


def _check_tokens(name: str, n_tokens: Array, routers: Routers, ids: Sequence[str]) -> None:
    limit = (2**31 - 1) // max(routers.top_k)  # counts are stored as I32
    bad = (n_tokens < 0) | (n_tokens > limit)
    if bad.any():
        p = int(bad.argmax())
        raise InputError(
            f"phase {name!r}, prompt {ids[p]!r}: n_tokens is {n_tokens[p]}, expected 0 to {limit}"
        )


def _check_counts(name: str, rows: slice, arrays: PhaseArrays, routers: Routers, ids: Sequence[str]) -> None:
    tokens = np.asarray(arrays.n_tokens[rows])
    found = np.asarray(arrays.counts[rows]).sum(axis=2, dtype=np.int64)
    wrong = found != tokens[:, None] * np.array(routers.top_k)
    if wrong.any():
        p, layer = np.argwhere(wrong)[0]
        k, n = routers.top_k[layer], int(tokens[p])
        raise InputError(
            f"phase {name!r}, prompt {ids[rows.start + p]!r}, layer {routers.layers[layer]}: "
            f"expected {k * n} selections (top_k {k} x {n} tokens), found {found[p, layer]}"
        )


def _check_sums(name: str, field: str, array: Array, routers: Routers, ids: Sequence[str]) -> None:
    if all_zero(array):
        array = array[:1, :1, :1]
    for rows in blocks(array):
        block = np.asarray(array[rows])
        if not (block.min() >= 0 and block.max() < np.inf):  # a NaN fails the first comparison
            p, layer, expert = np.argwhere(~((block >= 0) & (block < np.inf)))[0]
            raise InputError(
                f"phase {name!r}, prompt {ids[rows.start + p]!r}, layer {routers.layers[layer]}, "
                f"expert {expert}: expected a finite {field} of at least 0, found {block[p, layer, expert]}"
            )


def all_zero(array: Array) -> bool:
    """Whether the array is the one zero, spread out, that stands for absent values."""
    return not any(array.strides) and not array[:1, :1, :1].any()


def clean_meta(meta: Mapping[str, Any]) -> dict[str, MetaValue]:
    """Keep what a GGUF file can hold: text, bool, int, float, lists of text or int.

    None and empty lists are dropped.

    Raises InputError naming the key of another value, or a name that belongs to the profile itself.
    """
    clean: dict[str, MetaValue] = {}
    for key, value in sorted(meta.items()):
        if key in RESERVED:
            raise InputError(f"meta key {key!r} is a field of the profile itself")
        value = list(value) if isinstance(value, tuple) else value
        value = value.item() if isinstance(value, np.generic) else value
        if value is None or value == []:
            continue
        if not _storable(value):
            raise InputError(f"meta key {key!r}: can't store {shorten(value)} ({type(value).__name__})")
        clean[key] = value
    return clean


def _storable(value: object) -> bool:
    if isinstance(value, list):
        return all(isinstance(v, str) and _encodes(v) for v in value) or all(
            type(v) is int and -(2**63) <= v < 2**63 for v in value
        )
    if isinstance(value, str):
        return _encodes(value)
    return isinstance(value, (bool, float)) or (isinstance(value, int) and -(2**63) <= value < 2**64)


def _encodes(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:  # a lone surrogate
        return False
    return True


def _texts(name: str, values: Sequence[object], n: int) -> list[str]:
    """Check a column of names; numbers become text."""
    if len(values) != n:
        raise InputError(f"{name}: expected {n} values, one per prompt, found {len(values)}")
    texts = [str(v) if isinstance(v, (str, int, np.integer)) else None for v in values]
    for i, text in enumerate(texts):
        if text is None or not _encodes(text):
            raise InputError(f"{name}[{i}]: expected text, found {shorten(values[i])}")
    return [text for text in texts if text is not None]


def _texts_or_none(name: str, values: Sequence[object] | None, n: int) -> list[str | None]:
    """As ``_texts``, but a value or the whole column may be missing."""
    if values is None:
        return [None] * n
    texts = iter(_texts(name, ["" if v is None else v for v in values], n))
    return [None if v is None else text for v, text in zip(values, texts, strict=True)]


def first_duplicate(table: PromptTable) -> tuple[str, str] | None:
    """Return the first (set, id) that occurs twice, or None."""
    seen: set[tuple[str, str]] = set()
    for key in zip(table.sets, table.ids, strict=True):
        if key in seen:
            return key
        seen.add(key)
    return None


def first_difference(name: str, a: object, b: object) -> str | None:
    """Say where two values differ, as ``name: 1 and 2`` or ``name[3]: 1 and 2``; None if they are equal."""
    if a == b and type(a) is type(b):
        return None
    if isinstance(a, list) and isinstance(b, list):
        if len(a) != len(b):
            return f"{name}: {len(a)} values and {len(b)} values"
        i = next(i for i, (x, y) in enumerate(zip(a, b, strict=True)) if x != y)
        return f"{name}[{i}]: {shorten(a[i])} and {shorten(b[i])}"
    return f"{name}: {shorten(a)} and {shorten(b)}"


PROMPT_NOTES = "prompts.notes"
FREE_META = ("created", PROMPT_NOTES)
"""Metadata that may differ between a run and the one that it resumes: when, and where the prompts' files lay."""


def prompts_hash(table: PromptTable) -> str | None:
    """SHA-256 of the set, id and text hash of each prompt in order; None where a text hash is missing.

    A merged profile has the hash that one run over all its prompts would have.
    """
    if None in table.texts_hash:
        return None
    digest = hashlib.sha256()
    for fields in zip(table.sets, table.ids, table.texts_hash, strict=True):
        digest.update("\0".join(map(str, fields)).encode() + b"\n")
    return digest.hexdigest()


def shorten(value: object) -> str:
    """A value as it stands in a message."""
    text = "not given" if value is None else repr(value)
    return text if len(text) <= 70 else text[:67] + "..."


def to_phase(name: str, values: Mapping[str, Any]) -> PhaseArrays:
    """Arrays of the right types from what a user gave. Raises InputError."""
    try:
        counts = _to_integers(f"phase {name!r}: counts", values["counts"], DTYPES["counts"])
        n_tokens = _to_integers(f"phase {name!r}: n_tokens", values["n_tokens"], DTYPES["n_tokens"])
    except KeyError as missing:
        raise InputError(f"phase {name!r}: {missing.args[0]} is missing") from None
    if counts.ndim != 3:
        raise InputError(
            f"phase {name!r}: expected counts [n_prompts, n_layers, n_experts], found {counts.shape}"
        )
    sums = [
        np.broadcast_to(np.float64(0), counts.shape)
        if values.get(field) is None
        else _to_floats(f"phase {name!r}: {field}", values[field])
        for field in ("gate_sum", "prob_sum")
    ]
    return PhaseArrays(counts, sums[0], sums[1], n_tokens)


def _to_integers(what: str, values: Any, dtype: np.dtype[Any]) -> Array:
    try:
        array: Array = np.asanyarray(values)
    except ValueError:
        raise InputError(f"{what}: rows differ in length") from None
    if array.dtype == dtype:
        return array
    if array.dtype.kind not in "iuf" or (array.size and not (array.min() >= 0 and array.max() < 2**31)):
        raise InputError(f"{what}: expected whole numbers from 0 to 2**31 - 1")
    if array.dtype.kind == "f" and (array != np.floor(array)).any():
        raise InputError(f"{what}: expected whole numbers, found fractions")
    return array.astype(dtype)


def _to_floats(what: str, values: Any) -> Array:
    try:
        floats: Array = np.asanyarray(values, np.float64)
    except (ValueError, TypeError):
        raise InputError(f"{what}: expected numbers in rows of one length") from None
    return floats
