"""Edits carried out: slices of experts rewritten by a rule, into a new file or in place.

New bytes are made slice by slice, so memory does not grow with the model or the number of experts.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

from safex import disk, model_file
from safex.errors import InputError

from . import header, undo
from .copying import copy_range
from .hashing import FileHashes, sha256
from .model_files import ModelFiles, Slice
from .provenance import SHA256_HEX, Provenance, Written, to_json

Rule: TypeAlias = Callable[[Slice, bytes], bytes]
OnStep: TypeAlias = Callable[[str, int, int], None]  # what, done, total


def no_progress(what: str, done: int, total: int) -> None:
    """Hear and say nothing."""


@dataclass(frozen=True)
class Plan:
    """Which slices of a model a rule rewrites (same size, same type), and what the result will say of itself."""

    files: ModelFiles
    parts: Sequence[Slice]
    rule: Rule
    provenance: Provenance

    @property
    def request(self) -> dict[str, Any]:
        """What was asked for, as an undo file keeps it."""
        about = self.provenance
        return request(about.operation, map(str, about.experts), about.parameters)

    def described(self, slices: Sequence[Written], digests: Sequence[str] = ()) -> Provenance:
        """The provenance with these slices and the SHA-256 of the base's files."""
        base = dict(self.provenance.base)
        if digests:
            base["sha256"] = ",".join(digests)
        return replace(self.provenance, base=base, slices=slices)


def request(operation: str, experts: Iterable[str], parameters: Any) -> dict[str, Any]:
    """An edit in plain values, the same for the same command."""
    return {"operation": operation, "experts": list(experts), "parameters": dict(parameters)}


# --- a new file


def target_paths(files: ModelFiles, target: Path) -> list[Path]:
    """The files to write: as many as the model has, named as split models are. Raises InputError."""
    total = len(files.paths)
    stem, as_part = model_file.name_of(target), model_file.shards(target)
    if as_part != [target] and len(as_part) != total:
        raise InputError(
            f"{target}: is the name of a part of {len(as_part)}, but the model has {total}: choose another -o"
        )
    if total == 1:
        return [target]
    return model_file.shards(target.with_name(f"{stem}-00001-of-{total:05d}.gguf"))


def write_new(plan: Plan, targets: Sequence[Path], on_step: OnStep = no_progress) -> Provenance:
    """Write the edited model beside its base. Raises InputError, DiskError; then nothing is left behind."""
    files = plan.files
    blank = plan.described(
        [Written.blank(part) for part in plan.parts], ["0" * SHA256_HEX] * len(files.paths)
    )
    head = header.rebuilt(files.files[0], blank.metadata())
    assert head is not None
    with FileHashes(files.paths) as hashes, ExitStack() as stack:
        # The first part gets its name last: without it the others are no model.
        outputs = [stack.enter_context(disk.replacing(path))[0] for path in targets]
        shift = len(head) - files.files[0].header.data
        _copy_all(files, outputs, len(head), on_step)
        written = [
            _write_slice(plan, part, outputs[part.file], 0 if part.file else shift) for part in plan.parts
        ]
        on_step("waiting for the disk", 0, 1)
        _sync(targets, outputs)  # meanwhile the base is hashed
        on_step("hashing the base", 0, 1)
        done = plan.described(written, hashes.result())
        final = header.rebuilt(files.files[0], done.metadata(), length=len(head))
        assert final is not None
        disk.write_at(outputs[0], 0, final)
        files.check_unchanged()
    return done


def _sync(targets: Sequence[Path], outputs: Sequence[int]) -> None:
    for path, output in zip(targets, outputs, strict=True):
        with disk.writing(path):
            os.fsync(output)


def _copy_all(files: ModelFiles, outputs: Sequence[int], data_at: int, on_step: OnStep) -> None:
    """Every byte but the first file's header, from the kernel's hand to the kernel's hand."""
    total, done = sum(file.size for file in files.files), 0

    def on_copied(n: int) -> None:
        nonlocal done
        done += n
        on_step("copying", done >> 20, total >> 20)

    for number, (file, path, output) in enumerate(zip(files.files, files.paths, outputs, strict=True)):
        start, to = (file.header.data, data_at) if number == 0 else (0, 0)
        with path.open("rb") as source:
            copy_range(source.fileno(), start, output, to, max(file.size - start, 0), on_copied)


def _write_slice(plan: Plan, part: Slice, output: int, shift: int) -> Written:
    old, new, written = _made(plan, part)
    if new != old:
        disk.write_at(output, part.offset + shift, new)
    return written


def _made(plan: Plan, part: Slice) -> tuple[bytes, bytes, Written]:
    """A slice as it was, as it shall be, and what is said of it."""
    old = plan.files.read(part)
    new = plan.rule(part, old)
    assert len(new) == len(old)
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
    head = header.rebuilt(files.files[0], done.metadata(), length=head_size)
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
    return undo.Undo(sizes, fingerprint, rest, ranges, plan.request, sidecar, before)


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
