"""GGUF headers written anew: metadata entries replaced, added or dropped, every other byte as it was.

A header may have to have an exact length (in place) or one that leaves the data on the old place within a file-system
block (so that copies can share blocks): ``safex.reserved`` fills it up, a text of spaces.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from safex.errors import InputError

BLOCK = 4096  # of the file systems that share blocks between files
RESERVED = "safex.reserved"

_U32, _STRING, _ARRAY = 4, 8, 9
_HEAD = struct.Struct("<4sIQQ")  # GGUF, version, tensors, entries

Value = int | str | Sequence[str]


def pack(key: str, value: Value) -> bytes:
    """A metadata entry: a whole number (u32), a text, or an array of texts."""
    if isinstance(value, int):
        return _text(key) + struct.pack("<II", _U32, value)
    if isinstance(value, str):
        return _text(key) + struct.pack("<I", _STRING) + _text(value)
    texts = b"".join(map(_text, value))
    return _text(key) + struct.pack("<IIQ", _ARRAY, _STRING, len(value)) + texts


def unpack(file: Any, entry: Any) -> Value:
    """The value of an entry of a type that ``pack`` writes. Raises InputError for others and for bad UTF-8."""
    kind: str = entry.type.name
    raw: bytes = file.read(entry.value, entry.end - entry.value)
    try:
        if kind == "u32":
            return int.from_bytes(raw, "little")
        if kind == "string":
            return raw[8:].decode()
        if kind == "array" and entry.element.name == "string":
            return [text.decode() for text in _texts(raw)]
    except UnicodeDecodeError as error:
        raise InputError(f"{file.path}: metadata {entry.key!r} is no UTF-8 text") from error
    raise InputError(
        f"{file.path}: metadata {entry.key!r} is of type {kind}, which safex-native never writes"
    )


def rebuilt(
    file: Any, changes: Mapping[str, Value | None], infos: bytes, *, length: int | None = None
) -> bytes | None:
    """The file's header with ``changes`` (None drops a key) and ``infos``, what describes its tensors, padded up to
    where the data begins.

    With ``length`` exactly that long, or None where it has no room. Else the data moves by a multiple of ``BLOCK``.
    """
    head = file.header
    changes = {RESERVED: None, **changes}
    entries = [raw for raw in _entries(file, changes) if raw]
    bare = _HEAD.size + sum(map(len, entries)) + len(infos)
    total = _next_place(bare, head) if length is None else length
    if _aligned(bare, head.alignment) != total:
        filler = total - bare - len(pack(RESERVED, ""))
        if filler < 0:
            return None
        entries.append(pack(RESERVED, " " * filler))
        bare = total
    start = _HEAD.pack(b"GGUF", head.version, len(head.tensors), len(entries))
    return start + b"".join(entries) + infos + bytes(total - bare)


def _entries(file: Any, changes: Mapping[str, Value | None]) -> Iterator[bytes]:
    """Raw entries in the old order, changed ones in their old place, new ones behind; empty where dropped."""
    rest = dict(changes)
    for entry in file.header.entries:
        if entry.key in rest:
            value = rest.pop(entry.key)
            yield b"" if value is None else pack(entry.key, value)
        else:
            yield file.read(entry.begin, entry.end - entry.begin)
    for key, value in rest.items():
        yield b"" if value is None else pack(key, value)


def _next_place(bare: int, head: Any) -> int:
    """Where the data begins: as far into a block as in the old file, behind the entries and a filler."""
    least = bare + len(pack(RESERVED, ""))
    step = max(BLOCK, head.alignment)
    place: int = least + (head.data - least) % step
    return place


def _aligned(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _text(text: str) -> bytes:
    raw = text.encode()
    return struct.pack("<Q", len(raw)) + raw


def _texts(raw: bytes) -> Iterator[bytes]:
    at = 0
    while at < len(raw):
        (length,) = struct.unpack_from("<Q", raw, at)
        yield raw[at + 8 : at + 8 + length]
        at += 8 + length
