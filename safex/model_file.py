"""Model files: the words ``demo`` and ``demo-planted``, early checks with clear messages, and fingerprints."""

from __future__ import annotations

import bisect
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from .errors import InputError
from .model_parts import check_parts, facts_of, name_of, named_parts, parts_of, refuse_other_kinds

__all__ = ["BUNDLED", "DATA", "fingerprint", "is_demo", "name_of", "named_parts", "resolve", "shards"]

BUNDLED = ("demo", "demo-planted")
DATA = Path(__file__).parent / "data"
DEMO_KEY = "safex_demo.kind"

# A fingerprint tells models apart without reading them whole: this many samples of this many bytes from each file.
SAMPLES = 1024
SAMPLE_BYTES = 16384

shards = parts_of


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
    path = resolve(model)
    if path.parent == DATA:
        return True
    facts = facts_of(path)
    return facts is not None and DEMO_KEY in facts.keys


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
    facts = facts_of(path)
    check_parts(path, facts)
    if facts is not None:
        refuse_other_kinds(path, facts)


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
