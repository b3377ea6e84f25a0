"""Edits carried out: slices of experts rewritten by a rule, into a new file or in place.

New bytes are made slice by slice, so memory does not grow with the model or the number of experts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeAlias

from safex import disk, model_file
from safex.errors import InputError

from . import header, undo
from .copying import copy_range
from .hashing import FileHashes, sha256
from .model_files import ModelFiles, Slice
from .promotion import Layout, Promotion
from .provenance import SHA256_HEX, Provenance, Written, to_json

Rule: TypeAlias = Callable[[Slice, bytes], bytes]
OnStep: TypeAlias = Callable[[str, int, int], None]  # what, done, total


def no_progress(what: str, done: int, total: int) -> None:
    """Hear and say nothing."""


@dataclass(frozen=True)
class Plan:
    """Which slices of a model a rule rewrites, and what the result will say of itself.

    A slice keeps its size and type, unless ``promotion`` gives its tensor another one: its other slices are recoded
    then. ``request`` is what was asked for, as an undo file keeps it.
    """

    files: ModelFiles
    parts: Sequence[Slice]
    rule: Rule
    provenance: Provenance
    request: Mapping[str, Any]
    promotion: Promotion = field(default_factory=lambda: Promotion({}))

    def described(self, slices: Sequence[Written], digests: Sequence[str] = ()) -> Provenance:
        """The provenance with these slices and the SHA-256 of the base's files."""
        base = dict(self.provenance.base)
        if digests:
            base["sha256"] = ",".join(digests)
        return replace(self.provenance, base=base, slices=slices)


def request(operation: str, experts: Iterable[object], parameters: Any) -> dict[str, Any]:
    """An edit in plain values, the same for the same command."""
    return {"operation": operation, "experts": list(map(str, experts)), "parameters": dict(parameters)}


# --- a new file


def target_paths(files: ModelFiles, target: Path) -> list[Path]:
    """The files to write: as many as the model has, named as split models are. Raises InputError."""
    total = len(files.paths)
    stem, as_part = model_file.name_of(target), model_file.named_parts(target)
    if as_part != [target] and len(as_part) != total:
        raise InputError(
            f"{target}: is the name of a part of {len(as_part)}, but the model has {total}: choose another -o"
        )
    if total == 1:
        return [target]
    return model_file.named_parts(target.with_name(f"{stem}-00001-of-{total:05d}.gguf"))


def write_new(plan: Plan, targets: Sequence[Path], on_step: OnStep = no_progress) -> Provenance:
    """Write the edited model beside its base. Raises InputError, DiskError; then nothing is left behind."""
    files = plan.files
    blank = plan.described(
        [Written.blank(part) for part in plan.parts], ["0" * SHA256_HEX] * len(files.paths)
    )
    layouts = [Layout.of(file, plan.promotion.types) for file in files.files]
    infos = layouts[0].infos(files.files[0])
    head = header.rebuilt(files.files[0], blank.metadata(), infos)
    assert head is not None
    starts = [len(head), *(file.header.data for file in files.files[1:])]
    with FileHashes(files.paths) as hashes, ExitStack() as stack:
        # The first part gets its name last: without it the others are no model.
        outputs = [stack.enter_context(disk.replacing(path))[0] for path in targets]
        _copy_all(files, outputs, starts, layouts, on_step)
        places = _Places(outputs, starts, layouts)
        written = _write_slices(plan, places, on_step)
        on_step("waiting for the disk", 0, 1)
        _sync(targets, outputs)  # meanwhile the base is hashed
        on_step("hashing the base", 0, 1)
        done = plan.described(written, hashes.result())
        final = header.rebuilt(files.files[0], done.metadata(), infos, length=len(head))
        assert final is not None
        disk.write_at(outputs[0], 0, final)
        files.check_unchanged()
    return done


def _sync(targets: Sequence[Path], outputs: Sequence[int]) -> None:
    for path, output in zip(targets, outputs, strict=True):
        with disk.writing(path):
            os.fsync(output)


def _copy_all(
    files: ModelFiles,
    outputs: Sequence[int],
    starts: Sequence[int],
    layouts: Sequence[Layout],
    on_step: OnStep,
) -> None:
    """All that stays as it is, from the kernel's hand to the kernel's hand; and the headers but the first file's."""
    total, done = sum(move.size for layout in layouts for move in layout.moves), 0

    def on_copied(n: int) -> None:
        nonlocal done
        done += n
        on_step("copying", done >> 20, total >> 20)

    for file, path, output, start, layout in zip(
        files.files, files.paths, outputs, starts, layouts, strict=True
    ):
        if file is not files.files[0]:
            disk.write_at(output, 0, _other_head(file, layout))
        if layout.types:
            os.ftruncate(output, start + layout.size)
        with path.open("rb") as source:
            for move in layout.moves:
                there, here = file.header.data + move.source, start + move.target
                copy_range(source.fileno(), there, output, here, move.size, on_copied)


def _other_head(file: Any, layout: Layout) -> bytes:
    """The header of a part that is not the first: only its tensors' types and places can be others."""
    head = file.header
    before: bytes = file.read(0, head.entries_end)
    behind: bytes = file.read(head.end, min(head.data, file.size) - head.end)
    return before + layout.infos(file) + behind


@dataclass(frozen=True)
class _Places:
    """The new files, and where the slices go in them."""

    outputs: Sequence[int]
    starts: Sequence[int]
    layouts: Sequence[Layout]

    def write(self, part: Slice, data: bytes) -> None:
        """Write a slice of this size."""
        offset = self.layouts[part.file].places[part.tensor] + part.expert * len(data)
        disk.write_at(self.outputs[part.file], self.starts[part.file] + offset, data)


def _write_slices(plan: Plan, places: _Places, on_step: OnStep) -> list[Written]:
    """The slices that the rule makes, and the others of tensors that take another type."""
    made = []
    for part in plan.parts:
        old, new, written = _made(plan, part)
        if new != old:
            places.write(part, new)
        made.append(written)
    rest = list(plan.promotion.rest(plan.files, {part.key for part in plan.parts}))
    for number, part in enumerate(rest):
        on_step("recoding", number, len(rest))
        places.write(part, plan.promotion.recoded(part, plan.files.read(part)))
    return made


def _made(plan: Plan, part: Slice) -> tuple[bytes, bytes, Written]:
    """A slice as it was, as it shall be, and what is said of it."""
    old = plan.files.read(part)
    new = plan.rule(part, old)
    assert len(new) == len(old) or part.tensor in plan.promotion.types
    return old, new, Written(part.tensor, part.expert, sha256(old), sha256(new))


# --- in place


def write_in_place(plan: Plan, descriptors: undo.Descriptors) -> Provenance:
    """Edit the model itself; ``descriptors`` are its files, held (``undo.held``). Raises InputError, DiskError.

    The undo file is on the disk before a byte changes. The provenance goes into the header where that has room, else
    into a side-car.
    """
    files, path = plan.files, plan.files.path
    done = plan.described([_made(plan, part)[2] for part in plan.parts])
    head_size = files.files[0].header.data
    infos = Layout.of(files.files[0], {}).infos(files.files[0])
    head = header.rebuilt(files.files[0], done.metadata(), infos, length=head_size)
    ranges: list[undo.Range] = [(part.file, part.offset, part.size) for part in plan.parts]
    if head is not None:
        ranges.append((0, 0, head_size))
    before = undo.read_sidecar_text(path)
    sidecar = to_json(done)
    files.check_unchanged()
    undo.write_undo(path, _undo(plan, ranges, sidecar, before), descriptors)
    undo.write_sidecar(path, None if head else json.dumps(sidecar, indent=1) + "\n")
    undo.write_ranges(path, descriptors, _pieces(plan, ranges, head))
    return done


def _undo(plan: Plan, ranges: list[undo.Range], sidecar: dict[str, Any], before: str | None) -> undo.Undo:
    path, sizes = plan.files.path, [file.size for file in plan.files.files]
    fingerprint = plan.provenance.base["fingerprint"]
    rest = model_file.fingerprint(path, ranges)
    return undo.Undo(sizes, fingerprint, rest, ranges, dict(plan.request), sidecar, before)


def _pieces(plan: Plan, ranges: list[undo.Range], head: bytes | None) -> Iterator[tuple[undo.Range, bytes]]:
    for part, place in zip(plan.parts, ranges, strict=False):
        yield place, plan.rule(part, plan.files.read(part))
    if head is not None:
        yield ranges[-1], head


def base_facts(files: ModelFiles) -> dict[str, str]:
    """What the provenance says of the base, but for its SHA-256."""
    return {
        "name": files.name,
        "file": os.fsdecode(files.path.name),
        "fingerprint": model_file.fingerprint(files.path),
    }
