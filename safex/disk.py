"""Writing files so that nothing is lost: locks, whole-or-nothing replacement, refusals as one line.

Files are written with seek-and-write, never through a writable map: a full disk is then an error and not a SIGBUS.
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from safex.errors import DiskError, InputError


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's refusals into one line."""
    try:
        yield
    except DiskError:
        raise
    except (FileNotFoundError, NotADirectoryError) as error:
        raise InputError(f"{path}: no such folder: make it, or choose another place with -o") from error
    except OSError as error:
        reason = error.strerror or str(error)
        raise DiskError(f"{path}: can't be written: {reason}. Make room, or choose another place") from error


def open_locked(path: Path) -> int:
    """Open or make a file, hold it alone and return the descriptor. Raises InputError."""
    check_target(path)
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(fd, path):
                return fd
        except BlockingIOError:
            os.close(fd)
            raise InputError(
                f"{path}: another run is writing this file: wait for it, or choose another -o"
            ) from None
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.ENOTSUP):
                os.close(fd)
                raise
            return fd  # a file system without locks
        os.close(fd)  # the other run renamed or removed the file just now


def _is_at(fd: int, path: Path) -> bool:
    """Whether the path still leads to the open file."""
    with suppress(FileNotFoundError):
        return os.path.samestat(os.fstat(fd), path.stat())
    return False


def check_target(path: Path) -> None:
    """Refuse to replace a folder or a device."""
    if path.exists() and not path.is_file():
        raise InputError(f"{path}: is not a regular file: choose another -o")


def write_at(fd: int, offset: int, data: Any) -> int:
    """Write the whole buffer at ``offset`` and return the offset behind it."""
    view = memoryview(data).cast("B")
    while view:
        n = os.pwrite(fd, view, offset)
        view, offset = view[n:], offset + n
    return offset


@contextmanager
def replacing(path: Path) -> Iterator[tuple[int, Path]]:
    """Give a locked temporary file (descriptor, path) that becomes ``path`` when the block ends well."""
    temporary = path.with_name(path.name + ".tmp")
    with writing(path):
        check_target(path)
        fd = open_locked(temporary)
        try:
            os.ftruncate(fd, 0)  # of a run that was killed
            yield fd, temporary
            os.fsync(fd)
            temporary.replace(path)
            _sync_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            os.close(fd)


def let_go(array: npt.NDArray[Any]) -> None:
    """Take a read-only mapped file's pages out of this process; they come back when touched. Others stay."""
    if isinstance(array, np.memmap) and array.mode == "r":
        base: Any = array
        while isinstance(base, np.ndarray):
            base = base.base
        if hasattr(base, "madvise"):
            base.madvise(mmap.MADV_DONTNEED)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
