"""What a sweep has measured so far, piece by piece: in memory, and in a journal beside its output until that is whole.

A piece is what one call of the model gives. It is run whole or not at all, so that a sweep that goes on packs its
batches as one that was never stopped, and gives the same numbers to the last bit.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias

from safex.errors import InputError
from safex.journal import N_HEADERS, Journal, check_start, journal_path, to_json

Key: TypeAlias = tuple[str | float, ...]  # one of the kinds, then what tells it from others of its kind

MAGIC = b"SAFEXW1\n"
TRIAL, ANSWERS, STARTS = "trial", "answers", "starts"
COUNTS, UNMASKED, MASKED = "counts", "unmasked", "masked"


@dataclass(frozen=True)
class Unfinished:
    """What a stopped sweep left: answers and masked prompts that are done, bytes of a record cut short."""

    answers: int = 0
    masked: int = 0
    torn_bytes: int = 0

    def __str__(self) -> str:
        """How much is done, in words."""
        parts = ((self.answers, "answers"), (self.masked, "masked prompts"))
        return " and ".join(f"{n:,} {what}" for n, what in parts if n) or "nothing"


def check_output(
    path: str | os.PathLike[str], resume: bool = False, force: bool = False
) -> Unfinished | None:
    """Refuse what ``Kept`` would refuse, before a model is loaded; say what is there to go on with (None: nothing).

    Leaves nothing behind. Raises InputError, DiskError.
    """
    path = Path(path)
    journal = _open(path)
    found = journal.size > 0
    try:
        _check(path, found, resume, force)
        return _unfinished(journal) if found and resume else None
    finally:
        journal.close(remove=not found)


def unfinished(path: str | os.PathLike[str]) -> Unfinished | None:
    """What the journal beside ``path`` holds; None without one."""
    return check_output(path, resume=True) if journal_path(Path(path)).exists() else None


class Kept:
    """Pieces by their keys; with ``output`` also in a journal beside it, one at a time as they are done.

    >>> with Kept() as kept:
    ...     kept.get((MASKED, 0), lambda: [0.5]), kept.get((MASKED, 0), lambda: [0.7])
    ([0.5], [0.5])
    """

    def __init__(
        self,
        output: str | os.PathLike[str] | None = None,
        header: Mapping[str, Any] | None = None,
        resume: bool = False,
        force: bool = False,
    ) -> None:
        """Open the journal; ``header`` must be the same in a run that goes on.

        With ``resume`` and no journal the run starts fresh; ``force`` replaces a journal or a finished file. Raises
        InputError for a file or journal that exists, a header that differs (by name), a journal that another process
        writes; DiskError.
        """
        self._pieces: dict[Key, Any] = {}
        self._journal: Journal | None = None
        if output is None:
            return
        self._journal = _open(Path(output))
        found = self._journal.size > 0
        try:
            _check(Path(output), found, resume, force)
            self._begin(header or {}, fresh=not resume)
        except BaseException:
            self._close(remove=not found)
            raise

    def _begin(self, header: Mapping[str, Any], fresh: bool) -> None:
        assert self._journal is not None
        if fresh:
            self._journal.start()
        _, records = self._journal.begin(header, {})
        self._pieces = {tuple(key): value for key, value in map(json.loads, records)}
        self._journal.cut()

    def __contains__(self, key: Key) -> bool:
        """Whether a piece is done."""
        return key in self._pieces

    def get(self, key: Key, compute: Callable[[], Any]) -> Any:
        """A piece as plain JSON values: as it is kept, or as ``compute`` makes it now. Raises DiskError."""
        if key not in self._pieces:
            value = compute()
            if self._journal:
                self._journal.append(to_json([key, value]))
            self._pieces[key] = value
        return self._pieces[key]

    def finish(self) -> None:
        """Delete the journal: the output is written."""
        self._close(remove=True)

    def __enter__(self) -> Kept:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the journal, which stays to be resumed unless it holds nothing."""
        if self._journal:
            try:
                self._journal.sync()
            finally:
                self._close(remove=not self._pieces)

    def _close(self, *, remove: bool) -> None:
        if self._journal:
            self._journal.close(remove=remove)
            self._journal = None


def _open(path: Path) -> Journal:
    return Journal(journal_path(path), MAGIC, "sweep")


def _check(path: Path, found: bool, resume: bool, force: bool) -> None:
    if resume and force:
        raise InputError("--resume goes on with the run that --force would replace: give one of them")
    check_start(path, found and not force, resume, force)


def _unfinished(journal: Journal) -> Unfinished:
    done: Counter[str] = Counter()
    for number, payload in enumerate(journal.records()):
        if number >= N_HEADERS:
            (kind, *_), value = json.loads(payload)
            done[kind] += len(value)
    return Unfinished(done[ANSWERS], done[MASKED], journal.size - journal.end)
