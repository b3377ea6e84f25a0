"""What differs between two model files: slices of experts, other tensors, metadata; and proof that nothing else does.

Both are read once, front to back, a few megabytes at a time. Tensors are matched by name, so that headers of other
lengths, and tensors at other places, are no difference by themselves.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Container, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from .editing import OnStep, no_progress
from .hashing import sha256
from .model_files import NAME, ModelFiles, native
from .provenance import PREFIX

CHUNK = 8 << 20


class SliceChange(NamedTuple):
    """An expert's slice whose bytes differ; SHA-256 in hex of both."""

    layer: int
    expert: int
    tensor: str
    size: int
    a_sha256: str
    b_sha256: str

    @property
    def key(self) -> tuple[str, int]:
        """What names the slice."""
        return self.tensor, self.expert


@dataclass
class Difference:
    """All that differs between models A and B. ``equal`` where nothing does.

    ``tensors`` and ``metadata`` say in words how they differ. ``rest_sha256`` is over the tensor data that is the same
    in both, in the order of A: ``rest_bytes`` bytes, all but ``slices`` and ``tensors``.
    """

    slices: list[SliceChange] = field(default_factory=list)
    tensors: dict[str, str] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    layout: list[str] = field(default_factory=list)
    rest_sha256: str = ""
    rest_bytes: int = 0

    @property
    def equal(self) -> bool:
        """Whether tensors and metadata are all the same."""
        return not (self.slices or self.tensors or self.metadata or self.layout)

    def unlabelled(self, promoted: Container[str] = ()) -> list[str]:
        """Differences other than slices of experts, these tensors, and what an edit says of itself, in words."""
        found = [f"tensor {name} {how}" for name, how in self.tensors.items() if name not in promoted]
        found += [f"metadata {key} {how}" for key, how in self.metadata.items() if not is_label(key)]
        return found + self.layout

    def to_json(self) -> dict[str, Any]:
        """As plain values."""
        return {
            "slices": [change._asdict() for change in self.slices],
            "tensors": self.tensors,
            "metadata": self.metadata,
            "layout": self.layout,
            "rest_sha256": self.rest_sha256,
            "rest_bytes": self.rest_bytes,
        }


def is_label(key: str) -> bool:
    """Whether a metadata key is one that an edit writes."""
    return key == NAME or key.startswith(PREFIX)


def diff(
    a: str | os.PathLike[str], b: str | os.PathLike[str], *, on_step: OnStep = no_progress
) -> Difference:
    """What differs between two models. Raises InputError for a file that is no model."""
    return compare(ModelFiles.open(a), ModelFiles.open(b), on_step)


def compare(a: ModelFiles, b: ModelFiles, on_step: OnStep = no_progress) -> Difference:
    """What differs between two models that are open. Raises InputError where one changes while it is read."""
    comparison = _Comparison(a, b, on_step)
    comparison.run()
    for files in (a, b):
        files.check_unchanged()
    return comparison.found


class _Region(NamedTuple):
    """Bytes of one model: a tensor, a part of it, or what lies between tensors."""

    file: Any
    offset: int
    size: int


class _Comparison:
    """Two models, read side by side."""

    def __init__(self, a: ModelFiles, b: ModelFiles, on_step: OnStep) -> None:
        self.a, self.b, self.on_step = a, b, on_step
        self.found = Difference()
        self._hash = hashlib.sha256()
        self._total = sum(file.size for file in a.files)
        self._done = 0
        self._experts = {tensor.name: tensor for tensor in a.native.expert_tensors}

    def run(self) -> None:
        self.found.metadata = metadata_changes(self.a, self.b)
        theirs = {name: (file, tensor) for file, name, tensor in _tensors(self.b)}
        for file, name, tensor in _tensors(self.a):
            other = theirs.pop(name, None)
            if other is None:
                self.found.tensors[name] = "is only in the first"
            elif how := _other_kind(tensor, other[1]):
                self.found.tensors[name] = how
            else:
                self._tensor(_whole(file, tensor), _whole(*other), name)
        self.found.tensors |= dict.fromkeys(theirs, "is only in the second")
        self._gaps()
        self.found.rest_sha256 = self._hash.hexdigest()

    # --- tensors

    def _tensor(self, a: _Region, b: _Region, name: str) -> None:
        """A tensor in pieces: the slices of its experts, as many together as make a chunk."""
        experts = self._experts.get(name)
        piece = experts.slice * max(CHUNK // experts.slice, 1) if experts else CHUNK
        for at in range(0, a.size, piece):
            data = _read(a, at, piece), _read(b, at, piece)
            if data[0] == data[1]:
                self._same(data[0])
            elif experts:
                self._slices(experts, at // experts.slice, data)
            else:
                self.found.tensors[name] = "has other values"
            self._done += len(data[0])
            self.on_step("comparing", self._done >> 20, self._total >> 20)

    def _slices(self, experts: Any, first: int, data: tuple[bytes, bytes]) -> None:
        n = experts.slice
        for at in range(0, len(data[0]), n):
            a, b = data[0][at : at + n], data[1][at : at + n]
            if a == b:
                self._same(a)
            else:
                expert = first + at // n
                change = SliceChange(experts.layer, expert, experts.name, n, sha256(a), sha256(b))
                self.found.slices.append(change)

    def _same(self, data: bytes) -> None:
        self._hash.update(data)
        self.found.rest_bytes += len(data)

    # --- what lies between tensors

    def _gaps(self) -> None:
        """Compare the bytes between tensors where both models have the same layout, else say that they have not."""
        places = [[_places(file) for file in files.files] for files in (self.a, self.b)]
        if places[0] != places[1]:
            if not any("type" in how or "only" in how for how in self.found.tensors.values()):
                self.found.layout.append("the tensors lie in another order or at other distances")
            return
        for a, b in zip(self.a.files, self.b.files, strict=True):
            for gap in _gaps(a):
                other = _Region(b, gap.offset - a.header.data + b.header.data, gap.size)
                self._gap(gap, other)

    def _gap(self, a: _Region, b: _Region) -> None:
        for at in range(0, a.size, CHUNK):
            data = _read(a, at, CHUNK)
            if data == _read(b, at, CHUNK):
                self._same(data)
            elif not self.found.layout:
                self.found.layout.append(
                    f"bytes between tensors differ, from {a.offset + at} of {a.file.path}"
                )


def _read(region: _Region, at: int, size: int) -> bytes:
    data: bytes = region.file.read(region.offset + at, min(size, region.size - at))
    return data


def _tensors(files: ModelFiles) -> Iterator[tuple[Any, str, Any]]:
    for file in files.files:
        for tensor in sorted(file.header.tensors, key=lambda tensor: tensor.offset):
            yield file, tensor.name, tensor


def _whole(file: Any, tensor: Any) -> _Region:
    return _Region(file, tensor.offset, tensor.size)


def _other_kind(a: Any, b: Any) -> str:
    """How two tensors of a name differ before any value is read; empty where they don't."""
    if a.type != b.type:
        types = (native.tensor_type(tensor.type).name for tensor in (a, b))
        return "has type {}, in the second {}".format(*types)
    if a.shape != b.shape:
        return f"has shape {a.shape}, in the second {b.shape} (other type of tensor)"
    return ""


def _places(file: Any) -> tuple[Any, ...]:
    """Where tensors lie within the data, and how much of it there is."""
    head = file.header
    tensors = sorted((tensor.offset - head.data, tensor.size, tensor.name) for tensor in head.tensors)
    return (tuple(tensors), file.size - head.data if tensors else 0)


def _gaps(file: Any) -> Iterator[_Region]:
    """What lies between tensors and behind the last one."""
    at = file.header.data
    for tensor in sorted(file.header.tensors, key=lambda tensor: tensor.offset):
        if tensor.offset > at:
            yield _Region(file, at, tensor.offset - at)
        at = max(at, tensor.offset + tensor.size)
    if file.size > at and file.header.tensors:
        yield _Region(file, at, file.size - at)


# --- metadata


def metadata_changes(a: ModelFiles, b: ModelFiles) -> dict[str, str]:
    """How each metadata key differs that does, in words; of split models the first file's keys and then the others'."""
    changes: dict[str, str] = {}
    if len(a.files) != len(b.files):
        changes["split.count"] = f"differs: {len(a.files)} and {len(b.files)} files"
    for number, (one, other) in enumerate(zip(a.files, b.files, strict=False)):
        for key, how in _entry_changes(one, other).items():
            changes[key if number == 0 else f"{key} (file {number + 1})"] = how
    return changes


def _entry_changes(a: Any, b: Any) -> dict[str, str]:
    ours, theirs = ({entry.key: _raw(file, entry) for entry in file.header.entries} for file in (a, b))
    changes = {key: "is only in the first" for key in ours if key not in theirs}
    changes |= {key: "differs" for key, raw in ours.items() if key in theirs and theirs[key] != raw}
    changes |= {key: "is only in the second" for key in theirs if key not in ours}
    if (a.header.version, a.header.alignment) != (b.header.version, b.header.alignment):
        changes["GGUF version or alignment"] = "differs"
    return changes


def _raw(file: Any, entry: Any) -> bytes:
    """Key, type and value as they stand in the file."""
    raw: bytes = file.read(entry.begin, entry.end - entry.begin)
    return raw
