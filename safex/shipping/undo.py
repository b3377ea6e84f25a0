"""Undo files: what an in-place edit of a model needs to be taken back, written and synced before the model is touched.

``MODEL.undo`` = a magic, the old bytes of every range that the edit writes, JSON that says which, the length of the
JSON and the SHA-256 of all before it. Writing the ranges takes the edit back, however far it came.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from safex import disk, model_file
from safex.errors import DiskError, InputError

from .provenance import sidecar_path

VERSION = 1
_MAGIC = b"SAFEXUND"
_TAIL = struct.Struct("<Q32s")
_CHUNK = 4 << 20

Range: TypeAlias = tuple[int, int, int]  # number of the model's file, offset, size
Descriptors: TypeAlias = Sequence[int]


@dataclass(frozen=True)
class Undo:
    """What an undo file says: how to know the model, which ranges to write, and what the edit was."""

    sizes: list[int]  # of the model's files
    fingerprint: str  # of the base
    rest: str  # fingerprint with the ranges left out: the same before, during and after the edit
    ranges: list[Range]
    request: dict[str, Any]  # operation, experts, parameters
    provenance: dict[str, Any]  # JSON of the side-car
    sidecar: str | None  # text of the side-car that was there before


def undo_path(path: Path) -> Path:
    """Where the undo file of a model lies."""
    return path.with_name(path.name + ".undo")


# --- the model's files, held alone


@contextmanager
def held(paths: Sequence[Path]) -> Iterator[list[int]]:
    """Open all files of a model for writing, with locks. Raises InputError, DiskError."""
    with ExitStack() as stack:
        yield [stack.enter_context(_held(path)) for path in paths]


@contextmanager
def _held(path: Path) -> Iterator[int]:
    _refuse_unfit(path)
    try:
        fd = os.open(path, os.O_RDWR)
    except OSError as error:
        raise DiskError(f"{path}: can't be written: {error.strerror}; write a new file with -o") from error
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield fd
    except BlockingIOError:
        raise InputError(f"{path}: another run is editing this file: wait for it") from None
    finally:
        os.close(fd)


def _refuse_unfit(path: Path) -> None:
    """Refuse files whose change would show where nobody expects it."""
    if path.is_symlink():
        raise InputError(f"{path}: is a symbolic link: name {path.resolve()} itself to change it in place")
    if path.resolve().parent == model_file.DATA.resolve():
        raise InputError(f"{path}: ships with safex-native: write a new file with -o")
    status = path.stat()
    if status.st_nlink > 1:
        raise InputError(
            f"{path}: has {status.st_nlink} names (hard links) that would all change: write a new file with -o"
        )
    if not status.st_mode & (stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH):
        raise InputError(
            f"{path}: is read-only: chmod u+w to change it in place, or write a new file with -o"
        )


# --- writing


def write_undo(path: Path, undo: Undo, files: Descriptors) -> None:
    """Write the undo file of the model at ``path``, with the ranges' bytes as they are now, and wait for the disk."""
    with disk.replacing(undo_path(path)) as (fd, _):
        state, at = hashlib.sha256(), 0
        for data in _content(undo, files):
            state.update(data)
            at = disk.write_at(fd, at, data)
        disk.write_at(fd, at, state.digest())


def _content(undo: Undo, files: Descriptors) -> Iterator[bytes]:
    yield _MAGIC
    for number, offset, size in undo.ranges:
        yield from _chunks(files[number], offset, size)
    said = json.dumps({"safex_undo": VERSION, **asdict(undo)}).encode()
    yield said
    yield struct.pack("<Q", len(said))


def write_sidecar(path: Path, text: str | None) -> None:
    """Make the side-car of the model at ``path`` hold this, or take it away."""
    sidecar = sidecar_path(path)
    if text is None:
        sidecar.unlink(missing_ok=True)
        return
    with disk.replacing(sidecar) as (fd, _):
        disk.write_at(fd, 0, text.encode())


def read_sidecar_text(path: Path) -> str | None:
    """The text of a model's side-car, None where there is none."""
    with suppress(FileNotFoundError):
        return sidecar_path(path).read_text(encoding="utf-8")
    return None


def write_ranges(path: Path, files: Descriptors, pieces: Iterable[tuple[Range, bytes]]) -> None:
    """Write into the model and wait for the disk."""
    with disk.writing(path):
        for (number, offset, _), data in pieces:
            disk.write_at(files[number], offset, data)
        for fd in files:
            os.fsync(fd)


# --- reading


def read_undo(path: Path) -> Undo:
    """The undo file of the model at ``path``, checked whole. Raises InputError."""
    with _opened(path) as fd:
        return _parse(undo_path(path), fd)


@contextmanager
def _opened(path: Path) -> Iterator[int]:
    undo = undo_path(path)
    try:
        fd = os.open(undo, os.O_RDONLY)
    except FileNotFoundError:
        raise InputError(
            f"{path}: no undo file {undo.name} beside it: nothing to restore (it was not edited in place)"
        ) from None
    except OSError as error:
        raise InputError(f"{undo}: can't be read: {error.strerror}") from None
    try:
        yield fd
    finally:
        os.close(fd)


def _parse(path: Path, fd: int) -> Undo:
    size = os.fstat(fd).st_size
    if os.pread(fd, len(_MAGIC), 0) != _MAGIC or size < len(_MAGIC) + _TAIL.size:
        raise InputError(f"{path}: is no undo file of safex-native")
    length, digest = _TAIL.unpack(os.pread(fd, _TAIL.size, size - _TAIL.size))
    state = hashlib.sha256()
    for data in _chunks(fd, 0, size - len(digest)):
        state.update(data)
    start = size - _TAIL.size - length
    if state.digest() != digest or start < len(_MAGIC):
        raise InputError(f"{path}: is damaged: the model can't be restored from it")
    return _from_json(path, json.loads(os.pread(fd, length, start)), start - len(_MAGIC))


def _from_json(path: Path, said: Any, n_bytes: int) -> Undo:
    try:
        values = dict(said)
        version = values.pop("safex_undo")
        values["ranges"] = [
            (int(number), int(offset), int(size)) for number, offset, size in values["ranges"]
        ]
        undo = Undo(**values)
        inside = all(
            0 <= offset <= offset + size <= undo.sizes[number] for number, offset, size in undo.ranges
        )
    except (KeyError, IndexError, TypeError, ValueError):
        version, inside, undo = None, False, None
    if undo is None or version != VERSION or not inside or sum(size for *_, size in undo.ranges) != n_bytes:
        raise InputError(f"{path}: does not hold together, or is of another version than {VERSION}")
    return undo


def _old_bytes(fd: int, undo: Undo) -> Iterator[tuple[Range, bytes]]:
    at = len(_MAGIC)
    for number, offset, size in undo.ranges:
        for data in _chunks(fd, at, size):
            yield (number, offset, len(data)), data
            at, offset = at + len(data), offset + len(data)


def _chunks(fd: int, offset: int, size: int) -> Iterator[bytes]:
    while size:
        data = os.pread(fd, min(size, _CHUNK), offset)
        if not data:
            raise OSError(f"descriptor {fd} ends before byte {offset}")
        yield data
        offset, size = offset + len(data), size - len(data)


# --- taking back


def restore(model: str | os.PathLike[str]) -> Undo:
    """Take an in-place edit back, finished or cut short, and remove its undo file; what was taken back.

    Raises InputError: no undo file, a damaged one, or one of another model. DiskError where the model can't be written.
    """
    path = Path(model)
    _check_there(path)
    paths = model_file.shards(path)
    with held(paths) as files:
        undo = take_back(path, files)
        undo_path(path).unlink()
    return undo


def _check_there(path: Path) -> None:
    missing = next((part for part in model_file.shards(path) if not part.is_file()), None)
    if missing:
        raise InputError(f"{missing}: no such model file")
    if not undo_path(path).exists():
        model_file.resolve(path)  # says what the file is, if it is no model


def take_back(path: Path, files: Descriptors) -> Undo:
    """Write the old bytes and the old side-car; the undo file stays. Raises InputError, DiskError."""
    with _opened(path) as fd:
        undo = _parse(undo_path(path), fd)
        _check_model(path, files, undo)
        write_ranges(path, files, _old_bytes(fd, undo))
    if model_file.fingerprint(path) != undo.fingerprint:
        raise InputError(f"{path}: is not the base again: something else writes it")
    write_sidecar(path, undo.sidecar)
    return undo


def _check_model(path: Path, files: Descriptors, undo: Undo) -> None:
    sizes = [os.fstat(fd).st_size for fd in files]
    if sizes != undo.sizes or model_file.fingerprint(path, undo.ranges) != undo.rest:
        raise InputError(
            f"{undo_path(path)}: belongs to another model, or {path.name} was changed by something else since: "
            "nothing was written"
        )


def settle(path: Path, files: Descriptors, request: Mapping[str, Any]) -> None:
    """Make way for an in-place edit: take the same edit back where it was cut short or done, refuse another."""
    if not undo_path(path).exists():
        return
    if read_undo(path).request != request:
        raise InputError(
            f"{undo_path(path)}: another in-place edit can still be taken back: "
            f"`safex-native restore {path}` first, or delete this file to keep that edit for good"
        )
    take_back(path, files)
