"""Journals: what a long run keeps beside its output, record by record, until it is finished.

``FILE.journal`` = a magic, then records of [length, CRC-32, payload]. A record is handed to the operating system at
once, so that a killed process loses nothing that ``append`` returned for; a torn last record is cut off on resume.
"""

from __future__ import annotations

import json
import os
import struct
import time
import zlib
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from safex import disk
from safex.errors import InputError
from safex.profile_arrays import first_difference

SYNC_SECONDS = 5.0
N_HEADERS = (
    2  # records before the first of the run's own: what must be the same on resume, and what may differ
)

MAX_MAGIC = 32
_HEAD = struct.Struct("<II")  # length of the payload (never 0), its CRC-32


def journal_path(path: Path) -> Path:
    """Where the journal of an unfinished run lies."""
    return path.with_name(path.name + ".journal")


class Journal:
    """Records in a file that this process holds alone. ``end`` is the offset behind the last good record."""

    def __init__(self, path: Path, magic: bytes, command: str) -> None:
        """Open or make the file; ``magic`` is what files of ``command`` begin with. Raises InputError, DiskError."""
        self.path, self._magic, self._command = path, magic, command
        with disk.writing(path):
            self.fd = disk.open_locked(path)
        self.end, self.damaged = 0, False
        self._synced = time.monotonic()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return os.fstat(self.fd).st_size

    def start(self) -> None:
        """Begin an empty journal."""
        with disk.writing(self.path):
            os.ftruncate(self.fd, 0)
            self.end = disk.write_at(self.fd, 0, self._magic)

    def append(self, payload: bytes) -> None:
        """Write a record whole or not at all."""
        with disk.writing(self.path):
            try:
                record = _HEAD.pack(len(payload), zlib.crc32(payload)) + payload
                self.end = disk.write_at(self.fd, self.end, record)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self.fd, self.end)
                raise
            if time.monotonic() - self._synced > SYNC_SECONDS:
                self.sync()

    def sync(self) -> None:
        """Wait until all is on the disk itself (power loss)."""
        with disk.writing(self.path):
            os.fsync(self.fd)
        self._synced = time.monotonic()

    def begin(self, fixed: Mapping[str, Any], free: Mapping[str, Any]) -> tuple[Any, Iterator[bytes]]:
        """Start the journal, or read that of the run to go on with: what its ``free`` was, and its records.

        ``fixed`` must be the same in both runs, ``free`` may differ. Raises InputError, naming what differs.
        """
        records = self.records() if self.size else iter(())
        theirs, freely = next(records, None), next(records, None)
        if self.damaged and freely is None:
            raise InputError(f"{self.path}: its header is damaged: delete it to start again")
        if theirs is None or freely is None:  # killed before its first record
            self.start()
            self.append(to_json(fixed))
            self.append(to_json(free))
            self.sync()
            return free, iter(())
        if theirs != to_json(fixed):
            _refuse_other_run(self.path, json.loads(theirs), fixed)
        return json.loads(freely), records

    def records(self) -> Iterator[bytes]:
        """Yield the good records from the first on, moving ``end`` behind each.

        Stops at the end, at a torn record (cut short) or at a damaged one (whole but wrong: sets
        ``damaged``). Raises InputError for a file of another kind.
        """
        if os.pread(self.fd, len(self._magic), 0) != self._magic[: self.size]:
            raise InputError(
                f"{self.path}: is not a journal of `{self._command}`: delete it, or choose another -o"
            )
        self.end, self.damaged = len(self._magic), False
        size = self.size
        while self.end + _HEAD.size < size:
            length, crc = _HEAD.unpack(os.pread(self.fd, _HEAD.size, self.end))
            start = self.end + _HEAD.size
            if length > size - start:
                return
            payload = os.pread(self.fd, length, start)
            if not length or zlib.crc32(payload) != crc:
                self.damaged = True
                return
            self.end = start + length
            yield payload

    def cut(self) -> int:
        """Drop what lies behind the last good record that was read; how many bytes that was."""
        dropped = self.size - self.end
        with disk.writing(self.path):
            os.ftruncate(self.fd, self.end)
        return dropped

    def close(self, *, remove: bool) -> None:
        """Let go of the file, and delete it where ``remove``."""
        if remove:
            self.path.unlink(missing_ok=True)
        os.close(self.fd)


def header_of(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What must be the same in a run that goes on with the unfinished one beside ``path``; empty without one."""
    try:
        with journal_path(Path(path)).open("rb") as file:
            file.readline(MAX_MAGIC)  # the magic is a line
            head = file.read(_HEAD.size)
            length, crc = _HEAD.unpack(head) if len(head) == _HEAD.size else (0, 0)
            payload = file.read(length)
    except OSError:
        return {}
    if not payload or len(payload) < length or zlib.crc32(payload) != crc:
        return {}  # what opens it says what is wrong
    header = json.loads(payload)
    return header if isinstance(header, dict) else {}


def check_start(path: Path, found: bool, resume: bool, force: bool) -> None:
    """Refuse to begin a run that writes ``path``; ``found``: an unfinished one lies beside it. Raises InputError."""
    disk.check_target(path)
    if found and not resume:
        journal = journal_path(path)
        raise InputError(f"{path}: an unfinished run lies beside it: --resume to go on, or delete {journal}")
    if path.exists() and not found and not force:
        raise InputError(f"{path}: exists already: --force to replace it, or choose another -o")


def _refuse_other_run(journal: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> NoReturn:
    """Name the first setting in which the unfinished run and this one differ."""
    names = [*ours, *(name for name in theirs if name not in ours)]
    differences = (first_difference(name, theirs.get(name), ours.get(name)) for name in names)
    difference = next((d for d in differences if d), "the order of its settings")
    raise InputError(
        f"{journal}: can't resume: the unfinished run and this one differ in {difference}; or delete it"
    )


def to_json(value: object) -> bytes:
    """A value as compact JSON; the same value gives the same bytes."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
