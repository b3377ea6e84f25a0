"""Model files: the words ``demo`` and ``demo-planted``, early checks with clear messages, and fingerprints."""

from __future__ import annotations

import bisect
import hashlib
import mmap
import os
import re
from collections.abc import Sequence
from pathlib import Path

from .errors import InputError

BUNDLED = ("demo", "demo-planted")
DATA = Path(__file__).parent / "data"
DEMO_KEY = "safex_demo.kind"

# A fingerprint tells models apart without reading them whole: this many samples of this many bytes from each file.
SAMPLES = 1024
SAMPLE_BYTES = 16384

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf")


def resolve(model: str | os.PathLike[str]) -> Path:
    """The file to open for ``model``, a path or the name of a bundled model. Raises InputError."""
    name = os.fspath(model)
    if name in BUNDLED:
        return DATA / f"{name}.gguf"
    path = Path(name)
    _check(path)
    return path


def is_demo(model: str | os.PathLike[str]) -> bool:
    """Whether it is a bundled model, or a file made from one (`mask`, `merge`): the demo's prompts suit it."""
    from .gguf_header import Header

    path = resolve(model)
    if path.parent == DATA:
        return True
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        try:
            return DEMO_KEY in Header(data, skip_lists=True).keys
        except InputError:
            return False  # who opens the model says what is wrong with it


def _check(path: Path) -> None:
    if not path.exists():
        raise InputError(
            f"{path}: no such model file (a path to a GGUF file, or one of: {', '.join(BUNDLED)})"
        )
    if path.is_dir():
        raise InputError(f"{path}: a directory, expected a GGUF file; name the file inside it")
    try:
        with path.open("rb") as handle:
            start = handle.read(256)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror})") from error
    if not start.startswith(b"GGUF"):
        raise InputError(f"{path}: not a GGUF file (starts with {start[:4]!r}, expected b'GGUF')")
    if b"safex-profile" in start:
        raise InputError(
            f"{path}: a profile, expected a model; `safex-native info` shows what a profile holds"
        )
    _check_parts(path)


def _check_parts(path: Path) -> None:
    shard = _SHARD.fullmatch(path.name)
    if shard and int(shard["number"]) != 1:
        first = f"{shard['stem']}-00001-of-{shard['total']}.gguf"
        raise InputError(f"{path}: part {int(shard['number'])} of a split model; give the first, {first}")
    missing = next((part for part in shards(path) if not part.exists()), None)
    if missing:
        raise InputError(f"{path}: first part of a split model, but {missing.name} is missing beside it")


def shards(path: Path) -> list[Path]:
    """All files of a model: the file itself, or every part of a split one."""
    shard = _SHARD.fullmatch(path.name)
    if not shard:
        return [path]
    total = int(shard["total"])
    return [path.with_name(f"{shard['stem']}-{i:05d}-of-{total:05d}.gguf") for i in range(1, total + 1)]


def name_of(path: Path) -> str:
    """The file's name without its ending and, of a split model, without its part's number.

    >>> name_of(Path("big-00001-of-00002.gguf"))
    'big'
    """
    shard = _SHARD.fullmatch(path.name)
    return shard["stem"] if shard else path.stem


def fingerprint(path: Path, without: Sequence[tuple[int, int, int]] = ()) -> str:
    """A SHA-256 in hex over evenly spaced samples, the start and the length of each of the model's files.

    It identifies a model within a second, whatever its size. It is no proof that two files are equal. ``without``
    leaves out ranges: (number of the file, offset, size) each.
    """
    state = hashlib.sha256()
    for number, part in enumerate(shards(path)):
        size = part.stat().st_size
        state.update(size.to_bytes(8, "little"))
        step = max(SAMPLE_BYTES, size // SAMPLES)
        left_out = sorted((start, start + n) for file, start, n in without if file == number)
        with part.open("rb") as handle:
            for offset in range(0, size, step):
                handle.seek(offset)
                state.update(_without(handle.read(SAMPLE_BYTES), offset, left_out))
    return state.hexdigest()


def _without(data: bytes, offset: int, ranges: Sequence[tuple[int, int]]) -> bytes:
    """The bytes of a file from ``offset`` on with zeros where one of the sorted, disjoint ranges lies."""
    end, blanked = offset + len(data), None
    for start, stop in ranges[max(bisect.bisect(ranges, (offset,)) - 1, 0) :]:
        if start >= end:
            break
        if stop > offset:
            blanked = blanked or bytearray(data)
            first, last = max(start - offset, 0), min(stop - offset, len(data))
            blanked[first:last] = bytes(last - first)
    return bytes(blanked) if blanked else data
