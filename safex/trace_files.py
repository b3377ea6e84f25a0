"""Readers of other tools' traces, one prompt a file: the official SAFEx JSON and llama.cpp's moe-trace CSV.

Both readers check all they can and name the file in what they refuse. What a user should know of a file that is
accepted anyway goes into ``Notes``.
"""

from __future__ import annotations

import functools
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.errors import InputError

PHASE_OF = {"input": "prompt", "output": "response"}  # by the prefix of the JSON's keys
HEADER = b"layer,expert"
COLLAPSE = 0.5  # see refuse_unfilled
UNLIKELY = 1e-6  # the chance below which disjoint selections are taken for a fault of the tracer

SHIFTED = (
    "only the first rows are filled: taken as the last blocks, since the official tool counts layers with "
    "experts from row 0 on (say which blocks they are with --layers if not)"
)
MIXED = (
    "input_expert_usage counts more tokens than input_tokens holds: phase prompt then holds tokens of the answer "
    "too, as the official tool writes it for models with dense layers"
)
NO_ANSWER = "output_tokens holds an answer that was not traced, so there is no phase response"
NO_PROBS = "holds no gate probabilities, only zeros"
PROBS_OF_ALL = (
    "experts that no token selects have a mean probability above 0: if these are means over all tokens and not over "
    "those that selected the expert, the sums of probabilities are too small"
)
ONE_PHASE = (
    "a moe-trace CSV doesn't tell prompt from answer, so all its tokens count as phase prompt (with "
    "llama-moe-trace -n 0 there are none of the answer)"
)
CUT = "the last layer was computed for a few tokens only and is left out (llama-moe-trace -ub 1 traces all of them)"
INFERRED = "top_k is taken from the shortest run of rows of one layer, which is one token's (or say --top-k)"

Counts: TypeAlias = npt.NDArray[np.int64]


class Notes(dict[str, list[str]]):
    """What to know of files that were accepted: texts, and the files each is about."""

    def add(self, path: Path, text: str) -> None:
        """Say it of one more file."""
        self.setdefault(text, []).append(path.name)

    def lines(self) -> list[str]:
        """A line for each text, naming the first file and how many others.

        >>> notes = Notes()
        >>> notes.add(Path("a.csv"), "is short")
        >>> notes.add(Path("b.csv"), "is short")
        >>> notes.lines()
        ['a.csv and 1 more: is short']
        """
        return [
            f"{files[0]}{f' and {len(files) - 1} more' if files[1:] else ''}: {text}"
            for text, files in self.items()
        ]


@dataclass(frozen=True)
class Trace:
    """One prompt's counts as a file holds them.

    ``counts`` by phase, int64 [L, E], of ``layers`` (block indices); ``probs`` likewise, the mean gate
    probabilities, or None; ``n_tokens`` by phase; ``listed``: how many tokens the file lists, by the prefix of its
    keys; ``short`` are layers that were not traced for every token (their counts are not to be used).
    """

    path: Path
    layers: list[int]
    top_k: int
    counts: dict[str, Counts]
    n_tokens: dict[str, int]
    probs: dict[str, npt.NDArray[np.float64]] | None = None
    short: list[int] = field(default_factory=list)
    model: str | None = None
    text_hash: str | None = None
    listed: Mapping[str, int | None] = field(default_factory=dict)

    @property
    def n_experts(self) -> int:
        """Experts in a layer."""
        return int(self.counts["prompt"].shape[1])


def compare_tokens(trace: Trace, notes: Notes) -> None:
    """Refuse counts of more or fewer tokens than the file lists.

    The official tool advances its token counter in row L - 1, which stays empty where layers are dense: then all
    tokens count as input. It never computes the last token of an answer; a trace of this package does.
    """
    listed, answered = trace.listed.get("input"), trace.listed.get("output")
    path, n_in, n_out = trace.path, trace.n_tokens["prompt"], trace.n_tokens["response"]
    mixed = listed is not None and not n_out and listed < n_in <= listed + (answered or 0)
    if mixed:
        notes.add(path, MIXED)
    elif listed is not None and n_in != listed:
        what = "a token is missing" if n_in < listed else "more than there are"
        raise InputError(
            f"{path}: input_expert_usage counts {n_in} tokens in every layer, input_tokens holds {listed}: {what}; "
            "take the trace again"
        )
    if answered is None or mixed:
        return
    if not n_out and answered > 1:
        notes.add(path, NO_ANSWER)
    elif n_out and n_out not in (answered, answered - 1):
        raise InputError(
            f"{path}: output_expert_usage counts {n_out} tokens in every layer, output_tokens holds {answered}, of "
            "which all or all but the last are computed; take the trace again"
        )


def refuse_unfilled(trace: Trace, notes: Notes) -> None:
    """Refuse a trace whose tokens all select experts 0 to top_k - 1, as ids that were never filled read.

    A router may prefer these, too: ``COLLAPSE`` is taken as the chance that a token selects what the one before it
    did, and any choice is as likely as another. What is less clear gets a note. Raises InputError naming the layers.
    """
    for phase in ("prompt", "response"):
        if trace.n_tokens[phase] and trace.top_k < trace.n_experts:
            _refuse_unfilled_phase(trace, phase, notes)


def _refuse_unfilled_phase(trace: Trace, phase: str, notes: Notes) -> None:
    k, n_tokens = trace.top_k, trace.n_tokens[phase]
    whole = [i for i, layer in enumerate(trace.layers) if layer not in trace.short]
    first = (trace.counts[phase][whole, :k] == n_tokens).all(axis=1)
    layers = [trace.layers[whole[i]] for i in np.flatnonzero(first).tolist()]
    if not layers:
        return
    chance = -len(layers) * math.log(math.comb(trace.n_experts, k))
    if len(layers) == len(whole):
        chance += len(layers) * (n_tokens - 1) * math.log(COLLAPSE)
    which = f"layer{'s' * (len(layers) > 1)} {', '.join(map(str, layers[:12]))}{', ...' * (len(layers) > 12)}"
    what = f"all {n_tokens} tokens of phase {phase} select experts 0 to {k - 1} in {which}"
    if chance < math.log(UNLIKELY):
        raise InputError(
            f"{trace.path}: {what}, as if the ids had never been filled, or the router had not been loaded; take "
            "the trace again"
        )
    if n_tokens > 1:
        notes.add(trace.path, f"{what}: were the ids filled?")


# --- the official JSON


def read_json_trace(
    path: Path, notes: Notes, top_k: int | None, n_experts: int | None, layers: Sequence[int] | None
) -> Trace:
    """Read one prompt of the official layout (keys in ``trace.py``).

    Rows of zeros are dense layers and left out. Where just the first rows are filled they are taken as the last
    blocks, unless the model is a GGUF file (then this package wrote the trace, and row N is block N) or
    ``layers`` names the blocks of the filled rows. ``n_experts`` below the file's own drops the last columns,
    shared experts, which must be zeros. Raises InputError naming file and row.
    """
    data = _load(path)
    shape = (_count(path, data, "num_layers"), _count(path, data, "num_experts"))
    k = _count(path, data, "top_k")
    if top_k not in (None, k):
        raise InputError(f"{path}: top_k is {k}, expected {top_k}: leave out --top-k, it stands in the file")
    if k > shape[1]:
        raise InputError(f"{path}: top_k is {k}, more than num_experts = {shape[1]}")
    kept = shape[1] if n_experts is None else n_experts
    usage = {key: _usage(path, data, f"{key}_expert_usage", shape, kept) for key in PHASE_OF}
    probs = {key: _probs(path, data, f"{key}_avg_probs", shape)[:, :kept] for key in PHASE_OF}
    rows = np.flatnonzero(usage["input"].any(axis=1))
    if not rows.size:
        raise InputError(f"{path}: input_expert_usage holds only zeros: no token was traced")
    model = data.get("model") if isinstance(data.get("model"), str) else None
    blocks = _blocks(path, rows.tolist(), shape[0], layers, model, notes)
    said = {key: _said_tokens(data, key) for key in PHASE_OF}
    n_tokens = {
        key: _tokens(path, f"{key}_expert_usage", usage[key], blocks, k, said[key]) for key in PHASE_OF
    }
    for key in PHASE_OF:
        _check_counts(path, f"{key}_expert_usage", usage[key], blocks, n_tokens[key])
    return Trace(
        path,
        list(blocks.values()),
        k,
        counts={phase: usage[key][rows] for key, phase in PHASE_OF.items()},
        n_tokens={phase: n_tokens[key] for key, phase in PHASE_OF.items()},
        probs=_checked_probs(path, usage, probs, blocks, notes),
        model=model,
        text_hash=_hash(data.get("prompt")),
        listed=said,
    )


def _load(path: Path) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror}; check the path") from None
    except (ValueError, RecursionError) as error:
        raise InputError(
            f"{path}: is no JSON ({error}); expected a trace of the official SAFEx layout"
        ) from None
    if not isinstance(data, dict):
        raise InputError(f"{path}: holds a {type(data).__name__}, expected one object: one prompt a file")
    return data


def _get(path: Path, data: Mapping[str, Any], key: str) -> Any:
    if key not in data:
        raise InputError(f"{path}: has no {key!r}; expected a trace of the official SAFEx layout")
    return data[key]


def _count(path: Path, data: Mapping[str, Any], key: str) -> int:
    value = _get(path, data, key)
    if type(value) is not int or not 1 <= value < 2**31:
        raise InputError(f"{path}: {key} is {value!r}, expected a whole number from 1 on")
    return value


def _matrix(path: Path, data: Mapping[str, Any], key: str, shape: tuple[int, int]) -> npt.NDArray[Any]:
    """The numbers of a key, each of them checked to be finite and at least 0."""
    value = _get(path, data, key)
    try:
        array = np.asarray(value)
    except ValueError:
        raise InputError(f"{path}: {key} has rows of different lengths, expected {list(shape)}") from None
    if array.shape != shape:
        raise InputError(
            f"{path}: {key} is {list(array.shape)}, expected [num_layers, num_experts] = {list(shape)}"
        )
    if array.dtype.kind not in "iuf":
        raise InputError(f"{path}: {key} holds values that are no numbers")
    wrong = ~((array >= 0) & (array < 2**31))
    if wrong.any():
        _refuse(path, key, array, wrong, "a finite number from 0 on")
    return array


def _refuse(
    path: Path, key: str, array: npt.NDArray[Any], wrong: npt.NDArray[np.bool_], expected: str
) -> NoReturn:
    row, expert = np.argwhere(wrong)[0]
    raise InputError(f"{path}: {key}, row {row}, expert {expert}: {array[row, expert]}, expected {expected}")


def _usage(path: Path, data: Mapping[str, Any], key: str, shape: tuple[int, int], kept: int) -> Counts:
    array = _matrix(path, data, key, shape)
    if (array % 1 != 0).any():
        _refuse(path, key, array, array % 1 != 0, "a whole number")
    if kept > shape[1]:
        raise InputError(f"{path}: num_experts is {shape[1]}, fewer than the {kept} of --experts")
    beyond = array > 0
    beyond[:, :kept] = False
    if beyond.any():
        _refuse(path, key, array, beyond, f"0 from expert {kept} on, as --experts says")
    return array[:, :kept].astype(np.int64)


def _probs(path: Path, data: Mapping[str, Any], key: str, shape: tuple[int, int]) -> npt.NDArray[np.float64]:
    array = _matrix(path, data, key, shape).astype(np.float64)
    too_large = array > 1.001  # float32 rounding may pass 1
    if too_large.any():
        _refuse(path, key, array, too_large, "a probability")
    return array


def _said_tokens(data: Mapping[str, Any], key: str) -> int | None:
    """How many tokens the file lists for a phase, if it lists them."""
    listed = data.get(f"{key}_tokens")
    return len(listed) if isinstance(listed, list) else None


def _tokens(
    path: Path, key: str, usage: Counts, blocks: Mapping[int, int], top_k: int, said: int | None
) -> int:
    """Tokens of a phase: the row sum by ``top_k``, which every filled row must agree on.

    ``blocks``: the block of each filled row; ``said``: how many tokens the file lists.
    """
    sums = usage.sum(axis=1)
    if not sums.any():
        return 0
    filled = sums[list(blocks)].tolist()
    usual = max(filled, key=lambda found: (found == top_k * (said or 0), filled.count(found)))
    like = list(blocks)[filled.index(usual)]
    for row, found in enumerate(sums.tolist()):
        if row in blocks and found % top_k:
            raise InputError(
                f"{path}: {key}, row {row}: {found} selections, expected a multiple of top_k = {top_k} "
                f"(layer {blocks[row]})"
            )
        if found != (usual if row in blocks else 0):
            raise InputError(
                f"{path}: {key}, row {row}: {found} selections, expected "
                + (
                    f"{usual} as in row {like} (layer {blocks[row]})"
                    if row in blocks
                    else "none, as in input_expert_usage"
                )
            )
    return int(usual) // top_k


def _check_counts(path: Path, key: str, usage: Counts, blocks: Mapping[int, int], n_tokens: int) -> None:
    """A token selects an expert once at most. Raises InputError naming the layers where it is otherwise."""
    wrong = usage > n_tokens
    if not wrong.any():
        return
    row, expert = np.argwhere(wrong)[0].tolist()
    layers = [blocks[i] for i in np.flatnonzero(wrong.any(axis=1)).tolist()]
    others = f" (so in {len(layers)} layers: {', '.join(map(str, layers[:12]))})" if len(layers) > 1 else ""
    raise InputError(
        f"{path}: {key}, row {row}, expert {expert}: layer {blocks[row]} selects it {usage[row, expert]} times in "
        f"{n_tokens} tokens{others}; the trace was not taken right, so take it again"
    )


def _checked_probs(
    path: Path,
    usage: Mapping[str, Counts],
    probs: Mapping[str, npt.NDArray[np.float64]],
    blocks: Mapping[int, int],
    notes: Notes,
) -> dict[str, npt.NDArray[np.float64]] | None:
    """The mean probabilities of the filled rows; None where the file has none. Raises InputError.

    An expert that is selected has a probability above 0, though rounding may hide that of one or another.
    """
    rows = list(blocks)
    if not any(found.any() for found in probs.values()):
        notes.add(path, NO_PROBS)
        return None
    for key in PHASE_OF:
        empty = usage[key][rows].any(axis=1) & ~(probs[key][rows] * usage[key][rows]).any(axis=1)
        if empty.any():
            row = rows[int(empty.argmax())]
            raise InputError(
                f"{path}: {key}_avg_probs, row {row}: all 0, though layer {blocks[row]} selects experts there; "
                "expected a mean probability above 0 for each of them"
            )
        active = [row for row in rows if usage[key][row].any()]
        if (probs[key][active][usage[key][active] == 0] > 0).any():
            notes.add(path, PROBS_OF_ALL)
    return {phase: probs[key][rows] for key, phase in PHASE_OF.items()}


def _blocks(
    path: Path,
    rows: list[int],
    n_rows: int,
    layers: Sequence[int] | None,
    model: str | None,
    notes: Notes,
) -> dict[int, int]:
    """The block index of each filled row."""
    if layers is not None:
        if len(layers) != len(rows):
            raise InputError(
                f"{path}: {len(rows)} rows are filled, but {len(layers)} layers were named for them"
            )
        return dict(zip(rows, layers, strict=True))
    ours = model is not None and model.endswith(".gguf")
    if ours or len(rows) == n_rows or rows != list(range(len(rows))):
        return {row: row for row in rows}
    notes.add(path, SHIFTED)
    return {row: row + n_rows - len(rows) for row in rows}


def _hash(prompt: Any) -> str | None:
    if not isinstance(prompt, str):
        return None
    return hashlib.sha256(prompt.encode("utf-8", "surrogatepass")).hexdigest()


# --- moe-trace CSV


def read_csv_trace(path: Path, notes: Notes, top_k: int | None, n_experts: int) -> Trace:
    """Read a ``layer,expert`` file of llama.cpp's moe-trace (pull request 28544): one row a selection.

    Rows stand in the order of computation: batch by batch, layer by layer, token by token, ``top_k`` rows each.
    In the last layer llama.cpp computes only tokens whose output is asked for; that layer is then left out
    (``Trace.short``). Without ``top_k`` the shortest run of rows of one layer gives it, one token's: the last
    layer's in any batch, every layer's in a batch of one. Raises InputError naming file and row.
    """
    layer, expert = _rows(path, n_experts)
    starts = np.flatnonzero(np.diff(layer, prepend=-1))
    lengths = np.diff(starts, append=len(layer))
    numbers, per_layer = np.unique(layer, return_counts=True)
    top_k = _choose_top_k(path, top_k, lengths, len(numbers), notes)
    if top_k > n_experts:
        raise InputError(f"{path}: top_k {top_k} exceeds the {n_experts} experts of a layer")
    _refuse_wrong_stride(path, expert, starts, lengths, top_k, n_experts)
    _check_tokens(path, layer, expert, numbers, per_layer, top_k)
    n_tokens = int(per_layer.max()) // top_k
    short = _short_layers(path, numbers, per_layer // top_k)
    notes.add(path, ONE_PHASE)
    if short:
        notes.add(path, CUT)
    counts = np.zeros((len(numbers), n_experts), np.int64)
    np.add.at(counts, (np.searchsorted(numbers, layer), expert), 1)
    return Trace(
        path,
        numbers.tolist(),
        top_k,
        counts={"prompt": counts, "response": np.zeros_like(counts)},
        n_tokens={"prompt": n_tokens, "response": 0},
        short=short,
    )


def _rows(path: Path, n_experts: int) -> tuple[Counts, Counts]:
    """The two columns, each value in range."""
    import pyarrow as pa
    import pyarrow.csv

    try:
        with path.open("rb") as file:
            header = file.readline().strip().lower() == HEADER
        read = pa.csv.ReadOptions(column_names=["layer", "expert"], skip_rows=int(header), use_threads=False)
        types = {"layer": pa.int32(), "expert": pa.int32()}
        convert = pa.csv.ConvertOptions(column_types=types, null_values=[])
        table = pa.csv.read_csv(path, read, convert_options=convert)
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}; check the path") from None
    except pa.ArrowInvalid as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{path}: expected rows of two whole numbers, layer,expert: {reason}") from None
    columns = [table[name].to_numpy().astype(np.int64) for name in ("layer", "expert")]
    if not len(columns[0]):
        raise InputError(f"{path}: holds no rows; expected layer,expert")
    for name, values, limit in zip(("layer", "expert"), columns, (2**31, n_experts), strict=True):
        wrong = (values < 0) | (values >= limit)
        if wrong.any():
            row = int(wrong.argmax())
            remedy = f"0 to {n_experts - 1} (--experts)" if name == "expert" else "a block index"
            raise InputError(f"{path}: row {row + 1 + header}: {name} {values[row]}, expected {remedy}")
    return columns[0], columns[1]


def _choose_top_k(path: Path, given: int | None, lengths: Counts, n_layers: int, notes: Notes) -> int:
    """The number given, or else the shortest run, which is one token's; with one layer there are no runs."""
    shortest = int(lengths.min())
    clear = n_layers > 1 and not (lengths % shortest).any()
    if given is None and not clear:
        raise InputError(f"{path}: doesn't say how many experts a token selects: give --top-k")
    if given is None:
        notes.add(path, INFERRED)
        return shortest
    if clear and given != shortest:
        notes.add(
            path, f"no layer has fewer than {shortest} rows at a time: is top_k {shortest} and not {given}?"
        )
    return given


def _refuse_wrong_stride(
    path: Path, expert: Counts, starts: Counts, lengths: Counts, top_k: int, n_experts: int
) -> None:
    """Refuse a file of the tool as first published, which is wrong wherever a batch holds several tokens.

    The tool copies the ids without their row stride, out of a sort order of all experts: what it writes are the
    whole sort orders of the first few tokens. So within each n_experts rows of a batch no expert comes twice,
    which tokens that choose for themselves do.
    """
    log_chance = 0.0
    several = lengths > top_k
    for start, length in zip(starts[several].tolist(), lengths[several].tolist(), strict=True):
        for at in range(start, start + length, n_experts):
            piece = expert[at : min(at + n_experts, start + length)]
            if len(np.unique(piece)) < len(piece):
                return
            log_chance += _log_chance_disjoint(len(piece) // top_k, top_k, n_experts)
    if log_chance < math.log(UNLIKELY):
        raise InputError(
            f"{path}: no expert is selected twice in a batch, as if tokens avoided each other's: llama-moe-trace wrote "
            "sort orders, not selections (it skips the row stride); run it with -ub 1, or use `safex-native trace`"
        )


@functools.cache
def _log_chance_disjoint(n_tokens: int, top_k: int, n_experts: int) -> float:
    """Log of the chance that tokens which select at random select no expert twice; real routers do so rather."""
    ways = [math.comb(n_experts - i * top_k, top_k) for i in range(n_tokens)]
    return sum(math.log(w) - math.log(math.comb(n_experts, top_k)) for w in ways)


def _check_tokens(
    path: Path, layer: Counts, expert: Counts, numbers: Counts, per_layer: Counts, top_k: int
) -> None:
    """Every layer's rows, in groups of ``top_k``, must be selections of one token each."""
    if (per_layer % top_k).any():
        i = int((per_layer % top_k > 0).argmax())
        raise InputError(
            f"{path}: layer {numbers[i]} has {per_layer[i]} rows, no multiple of top_k = {top_k}: "
            "is the file cut short, or is it another --top-k?"
        )
    order = np.argsort(layer, kind="stable")
    tokens = np.sort(expert[order].reshape(-1, top_k), axis=1)
    twice = tokens[:, 1:] == tokens[:, :-1]
    if twice.any():
        token, place = np.argwhere(twice)[0]
        raise InputError(
            f"{path}: layer {layer[order[token * top_k]]}: a token selects expert {tokens[token, place]} twice "
            f"with top_k = {top_k}: give the right --top-k, and leave the rows in their order"
        )


def _short_layers(path: Path, numbers: Counts, n_tokens: Counts) -> list[int]:
    """The last layer, if it has fewer tokens than the others, which must agree."""
    others = n_tokens[:-1] if len(n_tokens) > 1 else n_tokens
    wrong = others != n_tokens.max()
    if wrong.any():
        i = int(wrong.argmax())
        raise InputError(
            f"{path}: layer {numbers[i]} has {n_tokens[i]} tokens, another {n_tokens.max()}: is the file cut short?"
        )
    return [] if n_tokens[-1] == n_tokens.max() else [int(numbers[-1])]
