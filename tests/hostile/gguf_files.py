"""Hostile GGUF files, each with why it is dangerous and a part of the one line that refuses it.

    for name, (data, part) in hostile_files(tiny.read_bytes()).items(): ...

They are made from a good file of the gguf package's writer by changing single fields, found with the package's reader.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import gguf

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


class Fields:
    """Where the numbers of a good file lie."""

    def __init__(self, path: Path) -> None:
        self.data = path.read_bytes()
        self.reader = gguf.GGUFReader(path)

    def put(self, at: int, raw: bytes) -> bytes:
        return self.data[:at] + raw + self.data[at + len(raw) :]

    def tensor(self, name: str) -> dict[str, int]:
        """Offsets of a tensor's name length, name, dimensions, type and place."""
        field = next(t for t in self.reader.tensors if t.name == name).field
        n_dims = int(field.parts[2][0])
        at = field.offset
        after = at + 8 + len(name) + 4
        return {
            "length": at,
            "name": at + 8,
            "n_dims": at + 8 + len(name),
            "dims": after,
            "type": after + 8 * n_dims,
            "place": after + 8 * n_dims + 4,
        }

    def entry(self, key: str) -> dict[str, int]:
        """Offsets of a metadata entry's key length, key, type and value."""
        at = self.reader.fields[key].offset
        return {"length": at, "key": at + 8, "type": at + 8 + len(key), "value": at + 12 + len(key)}


def hostile_files(path: Path) -> Iterator[tuple[str, bytes, str]]:
    """Name, bytes and what the refusal says, for each hostile file made from the good one at ``path``."""
    good = Fields(path)
    yield from _cut(good)
    yield from _counts(good)
    yield from _tensors(good)
    yield from _metadata(good)


def _cut(good: Fields) -> Iterator[tuple[str, bytes, str]]:
    """Truncated: a reader that trusts the header reads behind the end of its map (SIGBUS) or of its buffer."""
    n = len(good.data)
    for size, part in (
        (10, "it ends at byte 10"),
        (n // 3, "damaged GGUF"),
        (n - 1, "is not within the file"),
    ):
        yield f"cut after {size} bytes", good.data[:size], part
    yield "cut in the magic", good.data[:3], "not a GGUF file"
    yield "empty", b"", "not a GGUF file"


def _counts(good: Fields) -> Iterator[tuple[str, bytes, str]]:
    """Counts that ask for more memory than there is, before a byte of it is looked at."""
    for value in (1 << 20, 1 << 40, (1 << 64) - 1):
        yield f"{value} tensors", good.put(8, U64.pack(value)), "tensors, more than it has room for"
        yield f"{value} entries", good.put(16, U64.pack(value)), "metadata entries, more than"
    key = good.entry("general.name")
    yield "a key as long as all memory", good.put(key["length"], U64.pack(1 << 62)), "within the key of"
    value = good.entry("general.name")["value"]
    yield (
        "a text as long as all memory",
        good.put(value, U64.pack((1 << 64) - 8)),
        "within metadata 'general.name'",
    )
    array = good.entry("tokenizer.ggml.tokens")["value"]
    yield "an endless array", good.put(array + 4, U64.pack((1 << 64) - 1)), "within"
    types = good.entry("tokenizer.ggml.token_type")["value"]
    yield "an array whose size overflows", good.put(types + 4, U64.pack(1 << 62)), "claims more values"


def _tensors(good: Fields) -> Iterator[tuple[str, bytes, str]]:
    """Places and shapes: out of range, on top of each other, or products that wrap around to something small."""
    down, up = (good.tensor(f"blk.1.ffn_{name}_exps.weight") for name in ("down", "up"))
    behind = U64.pack(len(good.data) // 32 * 32)
    yield "a tensor behind the end", good.put(down["place"], behind), "is not within the file"
    yield "a tensor at -32", good.put(down["place"], U64.pack((1 << 64) - 32)), "is not within the file"
    other = good.data[up["place"] : up["place"] + 8]
    yield "two tensors in one place", good.put(down["place"], other), "overlap"
    yield "a tensor off its alignment", good.put(down["place"], U64.pack(33)), "expected a multiple of 32"
    wrap = U64.pack(1 << 32) * 2
    yield "a shape that wraps around", good.put(down["dims"], wrap), "larger than any file"
    yield "a shape of 2^63 rows", good.put(down["dims"] + 8, U64.pack(1 << 63)), "larger than any file"
    yield "a shape below zero", good.put(down["dims"] + 16, U64.pack((1 << 64) - 1)), "larger than any file"
    yield "seventy dimensions", good.put(down["n_dims"], U32.pack(70)), "70 dimensions, expected at most 4"
    yield "no such type", good.put(down["type"], U32.pack(31)), "is of type 31, which there is not"
    yield "a type from nowhere", good.put(down["type"], U32.pack((1 << 32) - 1)), "which there is not"
    name = b"blk.1.ffn_gate_exps.weight"
    renamed = good.put(good.tensor("blk.2.ffn_gate_exps.weight")["name"], name)
    yield "a tensor twice", renamed, "tensor 'blk.1.ffn_gate_exps.weight' is there twice"
    yield "a name that is no text", good.put(down["name"], b"\xff\xfe"), "no UTF-8 text"
    yield "other numbers of experts", good.put(down["dims"] + 16, U64.pack(7)), "holds 8 experts"
    yield "no experts at all", good.put(down["dims"] + 16, U64.pack(0)), "has another shape than experts have"


def _metadata(good: Fields) -> Iterator[tuple[str, bytes, str]]:
    """Types that don't exist, values of other types than their meaning, and arrays of arrays without an end."""
    name, count = good.entry("general.name"), good.entry("llama.expert_used_count")
    yield "a value of no type", good.put(name["type"], U32.pack(13)), "is of type 13, which there is not"
    nested = good.put(good.entry("tokenizer.ggml.tokens")["value"], U32.pack(9))
    yield "an array of arrays", nested, "is an array of arrays"
    yield (
        "a model that is called no text",
        good.put(name["value"] + 8, b"\xc3\x28"),
        "'general.name' is no UTF-8 text",
    )
    yield (
        "more experts used than there are",
        good.put(count["value"], U32.pack(99)),
        "is 99, expected at most 8",
    )
    yield "a count that is a float", good.put(count["type"], U32.pack(6)), "is no whole number"
    # Both keys have twenty letters.
    yield "a key twice", good.data.replace(b"general.architecture", b"llama.rope.freq_base"), "is there twice"
    yield "big-endian", good.put(4, b"\x00\x00\x00\x03"), "big-endian"
    yield "version 1", good.put(4, U32.pack(1)), "GGUF of version 1"
