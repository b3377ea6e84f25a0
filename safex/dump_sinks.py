"""Where a dump's prompts go as they finish: into memory, or into a journal that becomes the file when all are there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from safex import disk, features_file, token_rows
from safex.experts import Expert
from safex.features import Features, Tokens, Values
from safex.journal import N_HEADERS, Journal, check_start, journal_path
from safex.token_rows import Rows, TokenRows

MAGIC = b"safex dump 2\n"


class Pooled(NamedTuple):
    """What is kept of one prompt: of each expert, tokens pooled, the router's probability, and output [n_embd]."""

    n_tokens: Tokens
    router_probs: Values
    values: Values

    def pack(self) -> bytes:
        """As bytes."""
        return self.n_tokens.tobytes() + self.router_probs.tobytes() + self.values.tobytes()

    @classmethod
    def unpack(cls, data: memoryview, n_experts: int) -> Pooled:
        """The inverse of ``pack``."""
        size = 4 * n_experts
        n_tokens, probs = (
            np.frombuffer(data[:size], np.uint32),
            np.frombuffer(data[size : 2 * size], np.float32),
        )
        return cls(n_tokens, probs, np.frombuffer(data[2 * size :], np.float32).reshape(n_experts, -1))


class Unpooled(NamedTuple):
    """What is kept of one prompt's token rows: its token ids, and of each row expert, position, probability, output."""

    tokens: npt.NDArray[np.int32]
    experts: Tokens
    positions: Tokens
    router_probs: Values
    values: Values

    def pack(self) -> bytes:
        """As bytes."""
        sizes = np.array([len(self.tokens), len(self.experts)], np.uint32)
        return b"".join(array.tobytes() for array in (sizes, *self))

    def n_rows(self, n_experts: int) -> Tokens:
        """Rows of each expert."""
        return np.bincount(self.experts, minlength=n_experts).astype(np.uint32)

    @classmethod
    def unpack(cls, data: memoryview) -> Unpooled:
        """The inverse of ``pack``."""
        n_tokens, n_rows = np.frombuffer(data[:8], np.uint32).tolist()
        ends = (8 + 4 * np.cumsum([n_tokens, n_rows, n_rows, n_rows])).tolist()
        tokens, experts, positions, probs, values = (
            data[start:end] for start, end in zip([8, *ends], [*ends, None], strict=True)
        )
        return cls(
            np.frombuffer(tokens, np.int32),
            np.frombuffer(experts, np.uint32),
            np.frombuffer(positions, np.uint32),
            np.frombuffer(probs, np.float32),
            np.frombuffer(values, np.float32).reshape(n_rows, -1 if n_rows else 0),
        )


Kept = TypeVar("Kept", Pooled, Unpooled)


class MemorySink(Generic[Kept]):
    """Keeps what prompts gave, for runs without an output file."""

    def __init__(self) -> None:
        """Nothing is done yet."""
        self._kept: dict[int, Kept] = {}

    @property
    def done(self) -> set[int]:
        """Indices of finished prompts."""
        return set(self._kept)

    def append(self, index: int, kept: Kept) -> None:
        """Keep one prompt."""
        self._kept[index] = kept

    def records(self) -> Iterator[tuple[int, Kept]]:
        """What was kept, prompt by prompt in their order."""
        return iter(sorted(self._kept.items()))


class JournalSink(Generic[Kept]):
    """Keeps prompts in a journal beside ``path``, which stays where the run is stopped."""

    def __init__(
        self, path: Path, settings: dict[str, Any], unpack: Any, *, resume: bool, force: bool
    ) -> None:
        """Begin, or go on where the run that was stopped left off. Raises InputError, DiskError."""
        check_start(path, journal_path(path).exists(), resume, force)
        self.path, self._unpack = path, unpack
        self._journal = Journal(journal_path(path), MAGIC, "dump")
        try:
            _, records = self._journal.begin(settings, {})
            self.done = {_index_of(record) for record in records}
            self._journal.cut()
        except BaseException:
            self._journal.close(remove=False)
            raise

    def append(self, index: int, kept: Kept) -> None:
        """Keep one prompt. Raises DiskError."""
        self._journal.append(index.to_bytes(4, "little") + kept.pack())
        self.done.add(index)

    def records(self) -> Iterator[tuple[int, Kept]]:
        """What was kept, in the order in which prompts finished."""
        for number, record in enumerate(self._journal.records()):
            if number >= N_HEADERS:
                yield _index_of(record), self._unpack(memoryview(record)[4:])

    def __enter__(self) -> JournalSink[Kept]:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the journal; it stays where the run did not end."""
        self._journal.close(remove=kind is None)


def _index_of(record: bytes) -> int:
    return int.from_bytes(record[:4], "little")


# --- from records to a file


def write_features(sink: JournalSink[Pooled], experts: list[Expert], n_embd: int, content: Any) -> Features:
    """Write the features file and map it. Raises DiskError, InputError."""
    shape = (len(experts), len(content["prompts"]["ids"]))
    n_tokens, probs = np.zeros(shape, np.uint32), np.zeros(shape, np.float32)
    layout = features_file.layout_of(experts, shape[1], n_embd, content)
    with disk.replacing(sink.path) as (fd, _):
        layout.write_header(fd)
        for index, kept in sink.records():
            n_tokens[:, index], probs[:, index] = kept.n_tokens, kept.router_probs
            for expert, row in zip(experts, kept.values, strict=True):
                layout.write_rows(fd, str(expert), index, row)
        layout.write_rows(fd, features_file.N_TOKENS, 0, n_tokens)
        layout.write_rows(fd, features_file.ROUTER_PROBS, 0, probs)
    return Features.load(sink.path)


def write_token_rows(
    sink: JournalSink[Unpooled], experts: list[Expert], n_embd: int, content: Any
) -> TokenRows:
    """Write the file of token rows in the order of the prompts, and map it. Raises DiskError, InputError."""
    n_prompts = len(content["prompts"]["ids"])
    n_rows, n_tokens = np.zeros((len(experts), n_prompts), np.uint32), np.zeros(n_prompts, np.uint32)
    for index, kept in sink.records():
        n_rows[:, index] = kept.n_rows(len(experts))
        n_tokens[index] = len(kept.tokens)
    layout = token_rows.layout_of(experts, n_rows, n_tokens, n_embd, content)
    row_starts, token_starts = _starts(n_rows), _starts(n_tokens)
    with disk.replacing(sink.path) as (fd, _):
        layout.write_header(fd)
        layout.write_rows(fd, "n_rows", 0, n_rows)
        layout.write_rows(fd, "n_tokens", 0, n_tokens)
        for index, kept in sink.records():
            layout.write_rows(fd, "tokens", int(token_starts[index]), kept.tokens)
            for place in np.unique(kept.experts).tolist():
                start = int(row_starts[place, index])
                for part, array in zip(token_rows.PARTS, _rows_of(kept, place, index), strict=True):
                    layout.write_rows(fd, f"{experts[place]}{part}", start, array)
    return TokenRows.load(sink.path)


def _starts(sizes: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Where each part begins, along the last axis."""
    return np.asarray(np.cumsum(sizes, axis=-1, dtype=np.int64) - sizes)


def _rows_of(kept: Unpooled, place: int, index: int) -> Rows:
    """The rows of one expert in what was kept of prompt ``index``."""
    chosen = np.flatnonzero(kept.experts == place)
    prompts = np.full(len(chosen), index, np.uint32)
    return Rows(kept.values[chosen], prompts, kept.positions[chosen], kept.router_probs[chosen])


# --- from records in memory


def stack_pooled(sink: MemorySink[Pooled]) -> tuple[list[Values], Tokens, Values]:
    """Of each expert the features [n_prompts, n_embd], then n_tokens and router_probs [n_experts, n_prompts]."""
    kept = [record for _, record in sink.records()]
    values = np.stack([record.values for record in kept], axis=1)
    probs = np.stack([record.router_probs for record in kept], axis=1)
    return list(values), np.stack([record.n_tokens for record in kept], axis=1), probs


def stack_rows(sink: MemorySink[Unpooled], n_experts: int) -> tuple[list[Rows], Tokens]:
    """The rows of each expert, and how many of each prompt [n_experts, n_prompts]."""
    records = list(sink.records())
    rows = []
    for place in range(n_experts):
        parts = [_rows_of(kept, place, index) for index, kept in records]
        rows.append(Rows(*(np.concatenate(arrays) for arrays in zip(*parts, strict=True))))
    return rows, np.stack([kept.n_rows(n_experts) for _, kept in records], axis=1)
