"""What a GGUF file is by its own metadata: a model, a part of a split one, or something else; and its name."""

from __future__ import annotations

import functools
import mmap
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from .errors import InputError
from .gguf_header import Header

_SHARD = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<total>\d{5})\.gguf", re.DOTALL)
_HASH = re.compile(r"(sha256[-_:])?[0-9a-f]{32,}", re.IGNORECASE)  # blobs of ollama and of the hub's cache
NAME_CHARACTERS = 80
_SHORT_HASH = 19

Keys: TypeAlias = Mapping[str, Any]


@dataclass(frozen=True)
class Facts:
    """The metadata of a file (without lists) and the names of its tensors."""

    keys: Keys
    tensors: tuple[str, ...]

    @property
    def n_parts(self) -> int:
        """Files of the model that this one is a part of: 1 where it is not split."""
        return max(1, _whole(self.keys.get("split.count")))

    @property
    def part(self) -> int:
        """Which part it is, from 1 on."""
        return _whole(self.keys.get("split.no")) + 1


def facts_of(path: Path) -> Facts | None:
    """What a file says of itself; None for one that is no readable GGUF file (who opens it says what is wrong)."""
    try:
        status = path.stat()
        return _read_facts(path, status.st_ino, status.st_size, status.st_mtime_ns)
    except (OSError, ValueError, InputError):
        return None


@functools.lru_cache(maxsize=256)
def _read_facts(path: Path, *stamp: int) -> Facts:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        header = Header(data, skip_lists=True)
        return Facts(header.keys, tuple(header.tensors))


def _whole(value: object) -> int:
    return value if isinstance(value, int) and value >= 0 else 0


# --- files that are no models


def _text(facts: Facts, key: str) -> str:
    return str(facts.keys.get(key) or "")


KINDS: tuple[tuple[Callable[[Facts], bool], str, str], ...] = (
    (
        lambda f: (
            _text(f, "general.type") == "mmproj" or _text(f, "general.architecture") in ("clip", "mmproj")
        ),
        "a multimodal projector (mmproj)",
        "give the language model that it belongs to",
    ),
    (
        lambda f: _text(f, "general.type") == "adapter" or "adapter.type" in f.keys,
        "a LoRA adapter",
        "give the model that it was trained on; `safex-native merge MODEL ADAPTER` joins them",
    ),
    (
        lambda f: (
            _text(f, "general.type") == "imatrix" or any(name.endswith(".in_sum2") for name in f.tensors)
        ),
        "an importance matrix (imatrix)",
        "give the model that it was made with; `safex-native merge` takes this file as --imatrix",
    ),
    (
        lambda f: _text(f, "general.architecture") == "controlvector",
        "a control vector",
        "give the model that it was made for",
    ),
    (
        lambda f: not f.tensors and f.n_parts == 1 and any(key.startswith("tokenizer.") for key in f.keys),
        "a vocabulary without weights",
        "give the model itself",
    ),
    (
        lambda f: not _text(f, "general.architecture"),
        "a GGUF file that names no architecture (general.architecture)",
        "give a model made for llama.cpp",
    ),
)
"""What else GGUF files are: how to tell, what it is called, what to do."""


def refuse_other_kinds(path: Path, facts: Facts) -> None:
    """Raise InputError, naming what it is, for a file that is no model."""
    for is_so, kind, remedy in KINDS:
        if is_so(facts):
            raise InputError(f"{path}: {kind}, expected a model; {remedy}")


# --- parts


def named_parts(path: Path) -> list[Path]:
    """All parts of the split model that a name belongs to, whether they are there or not; else the file itself."""
    shard = _SHARD.fullmatch(path.name)
    if not shard:
        return [path]
    total = int(shard["total"])
    return [path.with_name(f"{shard['stem']}-{i:05d}-of-{total:05d}.gguf") for i in range(1, total + 1)]


def parts_of(path: Path) -> list[Path]:
    """All files of a model: the file itself, or every part of one that is split by its metadata."""
    named = named_parts(path)
    facts = facts_of(path) if len(named) > 1 else None
    return [path] if facts and facts.n_parts == 1 else named


def check_parts(path: Path, facts: Facts | None) -> None:
    """Refuse a part that no loader finds by its name, and parts that don't belong together. Raises InputError.

    llama.cpp reads ``split.count`` from the file that it is given and looks for the others by name.
    """
    shard = _SHARD.fullmatch(path.name)
    if facts is None:
        if shard and int(shard["number"]) > 1:
            raise InputError(_not_the_first(path, int(shard["number"])))
        return
    if facts.n_parts == 1:
        return
    part = f"part {facts.part} of {facts.n_parts} of a split model"
    if not shard:
        raise InputError(
            f"{path}: {part} (split.count) under a name that doesn't say so, so nothing finds the other parts: call "
            f"all of them NAME-00001-of-{facts.n_parts:05d}.gguf and so on, side by side, and give the first"
        )
    if (int(shard["number"]), int(shard["total"])) != (facts.part, facts.n_parts):
        raise InputError(f"{path}: {part} by its metadata (split.no, split.count): name it as what it is")
    if facts.part != 1:
        raise InputError(_not_the_first(path, facts.part))
    _check_together(path, facts)


def _not_the_first(path: Path, number: int) -> str:
    return f"{path}: part {number} of a split model; give the first, {named_parts(path)[0].name}"


def _check_together(path: Path, first: Facts) -> None:
    """Check the other parts: there, each the part that its name says, no tensor twice and none missing."""
    home = dict.fromkeys(first.tensors, path)
    for number, other in enumerate(named_parts(path)[1:], start=2):
        if not other.exists():
            raise InputError(f"{path}: first part of a split model, but {other.name} is missing beside it")
        facts = facts_of(other)
        if facts is None:
            raise InputError(f"{other}: is no readable GGUF file, expected part {number} of {path.name}")
        if (facts.part, facts.n_parts) != (number, first.n_parts):
            raise InputError(
                f"{other}: part {facts.part} of {facts.n_parts} by its metadata, expected part {number} of "
                f"{first.n_parts} of {path.name}: fetch or name the parts again"
            )
        twice = next((name for name in facts.tensors if name in home), None)
        if twice is not None:
            raise InputError(
                f"{other}: tensor {twice} stands in {home[twice].name} too: a part of another model?"
            )
        home |= dict.fromkeys(facts.tensors, other)
    expected = first.keys.get("split.tensors.count")
    if expected is not None and expected != len(home):
        raise InputError(
            f"{path}: the {first.n_parts} parts hold {len(home)} tensors, expected {expected} (split.tensors.count): "
            "are they of one model?"
        )


# --- names


def name_of(path: Path) -> str:
    """A name for what is made from a file: its own without its ending and the number of its part.

    A blob, whose name is a hash, is called by its ``general.name``.

    >>> name_of(Path("big-00001-of-00002.gguf"))
    'big'
    """
    shard = _SHARD.fullmatch(path.name)
    stem = shard["stem"] if shard else path.stem
    if not _HASH.fullmatch(stem):
        return stem
    facts = facts_of(path)
    return plain_name(_text(facts, "general.name") if facts else "") or stem[:_SHORT_HASH]


def plain_name(text: str) -> str:
    """A text as the name of a file: letters, digits, dots, dashes and underscores, not hidden, not long.

    >>> plain_name("Qwen3 30B/A3B: Instruct\\n"), plain_name("../..")
    ('Qwen3-30B-A3B-Instruct', '')
    """
    return re.sub(r"[^\w.+-]+", "-", text).strip("-._ ")[:NAME_CHARACTERS].rstrip("-._ ")
