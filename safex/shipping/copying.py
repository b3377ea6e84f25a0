"""Ranges of files copied by the kernel: shared blocks where the file system has them, else no detour."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import struct
from collections.abc import Callable

from .header import BLOCK

CHUNK = 64 << 20
_CLONE_RANGE = 0x4020940D  # Linux: FICLONERANGE, with source, offset, length, target offset
_SYNC_RANGE = getattr(ctypes.CDLL(None), "sync_file_range", None)  # Linux
_SYNC_WRITE = 2
_CANT = (errno.EXDEV, errno.ENOSYS, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOTTY, errno.EPERM)

OnCopied = Callable[[int], None]


def copy_range(source: int, offset: int, target: int, to: int, size: int, on_copied: OnCopied) -> None:
    """Copy ``size`` bytes from descriptor to descriptor; hears of the bytes done. Raises OSError."""
    head = min(-offset % BLOCK, size)
    blocks = (size - head) // BLOCK * BLOCK
    if (offset - to) % BLOCK == 0 and blocks and _share(source, offset + head, target, to + head, blocks):
        _copy(source, offset, target, to, head, on_copied)
        on_copied(blocks)
        done = head + blocks
        _copy(source, offset + done, target, to + done, size - done, on_copied)
    else:
        _copy(source, offset, target, to, size, on_copied)


def _share(source: int, offset: int, target: int, to: int, size: int) -> bool:
    """Let both files have the same blocks; false where the file system can't."""
    try:
        fcntl.ioctl(target, _CLONE_RANGE, struct.pack("=qQQQ", source, offset, size, to))
    except OSError as error:
        if error.errno in _CANT:
            return False
        raise
    return True


def _copy(source: int, offset: int, target: int, to: int, size: int, on_copied: OnCopied) -> None:
    by_kernel = hasattr(os, "copy_file_range")
    done = 0
    while done < size:
        n = min(CHUNK, size - done)
        try:
            if by_kernel:
                n = os.copy_file_range(source, target, n, offset + done, to + done)
            else:
                n = _pass_on(source, offset + done, target, to + done, n)
        except OSError as error:
            if not by_kernel or error.errno not in _CANT:
                raise
            by_kernel = False
            continue
        if n == 0:
            raise OSError(errno.EIO, "the source has become shorter while it was copied")
        _start_writing(target, to + done, n)
        done += n
        on_copied(n)


def _start_writing(target: int, offset: int, size: int) -> None:
    """Let the disk begin at once, where the system can be asked to: it is waited for in the end."""
    if _SYNC_RANGE is not None:
        _SYNC_RANGE(target, ctypes.c_int64(offset), ctypes.c_int64(size), _SYNC_WRITE)


def _pass_on(source: int, offset: int, target: int, to: int, size: int) -> int:
    data = os.pread(source, min(size, 1 << 20), offset)
    return os.pwrite(target, data, to) if data else 0
