"""The journal that a run writes beside its profile file until it is finished.

Its first record holds, as JSON, what must be the same on resume; the second what may differ; each further one a
finished prompt.
"""

from __future__ import annotations

import itertools
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from safex import disk
from safex.errors import InputError
from safex.journal import N_HEADERS, Journal, check_start, journal_path
from safex.profile_arrays import (
    FREE_META,
    Array,
    PhaseArrays,
    PromptTable,
    Routers,
    check_phase,
    check_phase_names,
    clean_meta,
)
from safex.profile_file import TENSOR_TYPES, Layout

JOURNAL_MAGIC = b"SAFEXJ1\n"
_INDEX = struct.Struct("<I")
_N_TOKENS = struct.Struct("<q")


@dataclass(frozen=True)
class Unfinished:
    """What a journal holds: ``prompts`` that are done, ``torn_bytes`` of a record that was being written."""

    prompts: int = 0
    torn_bytes: int = 0


def check_output(
    path: str | os.PathLike[str], resume: bool = False, force: bool = False
) -> Unfinished | None:
    """Refuse what ProfileWriter would refuse, before a model is loaded; say what is there to resume.

    None where no run was begun. Leaves nothing behind. Raises InputError, DiskError.
    """
    path = Path(path)
    journal = _open(path)
    found = journal.size > 0
    try:
        check_start(path, found, resume, force)
        return _unfinished(journal) if found else None
    finally:
        journal.close(remove=not found)


def unfinished(path: str | os.PathLike[str]) -> Unfinished | None:
    """What the journal beside ``path`` holds; None without one."""
    return check_output(path, resume=True) if journal_path(Path(path)).exists() else None


def _open(path: Path) -> Journal:
    return Journal(journal_path(path), JOURNAL_MAGIC, "profile")


def _unfinished(journal: Journal) -> Unfinished:
    n_records = sum(1 for _ in journal.records())
    return Unfinished(max(0, n_records - N_HEADERS), journal.size - journal.end)


class ProfileWriter:
    """Streams a run to disk, one finished prompt at a time, and makes the profile file at the end.

    Memory stays constant. ``done`` is the set of prompt indices that the journal holds; ``resumed`` says
    whether a journal was found, ``dropped_bytes`` how much of a torn record was cut off.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.profile.gguf"
    >>> with ProfileWriter(path, {}, [0], 2, 2, {"sets": ["benign"]}, ["prompt"]) as writer:
    ...     ones = np.ones((1, 2))
    ...     writer.append(0, {"prompt": (1, ones.astype(np.uint32), ones, ones)})
    ...     print(writer.finish().name)
    a.profile.gguf
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        meta: Mapping[str, Any],
        layers: Sequence[int],
        n_experts: int,
        top_k: int | Sequence[int],
        prompts_meta: PromptTable | Mapping[str, Any],
        phases: Sequence[str],
        resume: bool = False,
        force: bool = False,
    ) -> None:
        """Open or resume the journal; ``prompts_meta`` is a PromptTable or its lists by name.

        With ``resume`` and no journal the run starts fresh. ``force`` replaces a finished file. Raises
        InputError for a finished file without ``force``, an unfinished run without ``resume``, a run that
        differs from the one to resume (except in the meta of FREE_META), or one that another process is writing;
        DiskError.
        """
        self.path = Path(path)
        self.meta = clean_meta(meta)
        table = prompts_meta if isinstance(prompts_meta, PromptTable) else PromptTable.build(**prompts_meta)
        self._layout = Layout(Routers.build(layers, n_experts, top_k), table, check_phase_names(phases))
        self.done: set[int] = set()
        self.dropped_bytes = 0
        self._open = False
        self._journal = _open(self.path)
        self._open = True
        self.resumed = self._journal.size > 0
        try:
            check_start(self.path, self.resumed, resume, force)
            self._begin()
        except BaseException:
            self._close(remove=not self.resumed)
            raise

    def append(self, index: int, phases: Mapping[str, tuple[int, Array, Array, Array]]) -> None:
        """Record a prompt: for each phase n_tokens, counts uint32, gate_sum and prob_sum float64 [L, E].

        Returns when the operating system holds the record. Raises InputError for an unknown or finished
        index, other phases, shapes or a broken invariant; DiskError, after which the journal is as before and
        can be resumed.
        """
        if not self._open:
            raise InputError(f"{self.path}: the writer is closed")
        if not 0 <= index < self._layout.cube[0]:
            raise InputError(f"prompt index {index}: expected 0 to {self._layout.cube[0] - 1}")
        if index in self.done:
            raise InputError(
                f"prompt {self._layout.prompts.ids[index]!r} (index {index}) is recorded already"
            )
        self._journal.append(self._encode(index, phases))
        self.done.add(index)

    def finish(self, progress: Callable[[int, int], None] | None = None) -> Path:
        """Turn the journal into the profile file, remove the journal, and return the file's path.

        ``progress`` is called with (prompts written, prompts). Raises InputError while prompts are missing;
        DiskError, after which the journal can be resumed.
        """
        total = self._layout.cube[0]
        if len(self.done) < total:
            first = next(i for i in range(total) if i not in self.done)
            name = self._layout.prompts.ids[first]
            raise InputError(
                f"{self.path}: {total - len(self.done)} of {total} prompts are missing, first {name!r}"
            )
        with disk.replacing(self.path) as (fd, temporary):
            self._layout.write_header(fd, temporary, self.meta)
            for n, payload in enumerate(self._prompt_records(), 1):
                self._write_prompt(fd, payload)
                if progress:
                    progress(n, total)
            if n != total:
                raise InputError(
                    f"{self._journal.path}: damaged behind prompt {n}: --resume repeats what is lost"
                )
        self._close(remove=True)
        return self.path

    def close(self) -> None:
        """Let go of the journal, which stays to be resumed unless it holds no prompt. May be called twice."""
        if self._open:
            try:
                self._journal.sync()
            finally:
                self._close(remove=not self.done)

    def __enter__(self) -> ProfileWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; only ``finish`` makes the file."""
        self.close()

    def _close(self, *, remove: bool) -> None:
        self._open = False
        self._journal.close(remove=remove)

    def _begin(self) -> None:
        free = {name: value for name, value in self.meta.items() if name in FREE_META}
        free, records = self._journal.begin(self._run_header(), free)
        self.meta.update(free)
        self.done.update(_INDEX.unpack_from(payload)[0] for payload in records)
        self.dropped_bytes = self._journal.cut()

    def _run_header(self) -> dict[str, Any]:
        fields = {**self._layout.fields(), **vars(self._layout.prompts)}
        return {**{k: v for k, v in self.meta.items() if k not in FREE_META}, **fields}

    def _encode(self, index: int, phases: Mapping[str, tuple[int, Array, Array, Array]]) -> bytes:
        """Per phase: n_tokens, a bit for each expert of each layer that has values, then the values."""
        if set(phases) != set(self._layout.phases):
            raise InputError(
                f"prompt index {index}: expected phases {self._layout.phases}, found {tuple(phases)}"
            )
        parts = [_INDEX.pack(index)]
        for name in self._layout.phases:
            n_tokens, *cubes = phases[name]
            arrays = [np.asarray(cube)[None] for cube in cubes]
            checked = PhaseArrays(arrays[0], arrays[1], arrays[2], np.array([n_tokens], np.int64))
            check_phase(name, checked, self._layout.routers, [self._layout.prompts.ids[index]])
            used = (arrays[0] != 0) | (arrays[1] != 0) | (arrays[2] != 0)
            parts += [_N_TOKENS.pack(n_tokens), np.packbits(used).tobytes()]
            for array, field in zip(arrays, TENSOR_TYPES, strict=False):
                parts.append(array[used].astype(TENSOR_TYPES[field], copy=False).tobytes())
        return b"".join(parts)

    def _prompt_records(self) -> Iterator[bytes]:
        records = self._journal.records()
        return itertools.islice(records, N_HEADERS, None)

    def _write_prompt(self, fd: int, payload: bytes) -> None:
        """Undo ``_encode`` and write the rows to their places."""
        (index,), at = _INDEX.unpack_from(payload), _INDEX.size
        cube = (1, *self._layout.cube[1:])
        n_values = cube[1] * cube[2]
        for name in self._layout.phases:
            n_tokens = _N_TOKENS.unpack_from(payload, at)
            self._layout.write_rows(fd, name, "n_tokens", index, np.array(n_tokens))
            bits = np.frombuffer(payload, np.uint8, -(-n_values // 8), at + _N_TOKENS.size)
            at += _N_TOKENS.size + len(bits)
            used = np.unpackbits(bits, count=n_values).view(bool).reshape(cube)
            n_used = np.count_nonzero(used)
            for field in ("counts", "gate_sum", "prob_sum"):
                rows = np.zeros(cube, TENSOR_TYPES[field])
                rows[used] = np.frombuffer(payload, rows.dtype, n_used, at)
                at += n_used * rows.itemsize
                self._layout.write_rows(fd, name, field, index, rows)
