"""``manifest.json``: what an audit was asked, what it did, when, and the hashes of what it wrote."""

from __future__ import annotations

import glob
import platform
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

from safex.auditing.stages import MANIFEST, STAGES, Stage, all_files
from safex.cores import available_cores
from safex.errors import InputError
from safex.profile_arrays import first_difference
from safex.result_file import check_kind, checked_parts, read_json, write_json
from safex.shipping.hashing import FileHashes

SCHEMA_VERSION = 1
MARK = "safex_audit"
LIBRARIES = ("numpy", "scipy", "scikit-learn", "gguf")
DONE, RUNNING, SKIPPED, IMPOSSIBLE = "done", "running", "skipped", "not possible"
LOCK = ".lock"
OWN = (LOCK, MANIFEST)  # how names begin that a run leaves that was killed before its first stage
SHOWN = 4  # differences that a refusal names


@dataclass
class Record:
    """What is known of a stage. ``inputs`` and ``files`` hold SHA-256 by name, ``note`` says why it did not run.

    ``seconds`` are those of the last attempt, ``attempts`` counts the starts.
    """

    state: str
    note: str = ""
    seconds: float | None = None
    attempts: int = 0
    started: str = ""
    inputs: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)


@dataclass
class Manifest:
    """The parts of the file. ``parameters`` must be the same in a run that goes on.

    ``sizes``, ``estimates`` (seconds by stage) and ``trial`` (what trial answers showed) are fixed at its start.
    """

    parameters: dict[str, Any]
    sizes: dict[str, Any] = field(default_factory=dict)
    estimates: dict[str, float] = field(default_factory=dict)
    trial: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    prompts: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, Any] = field(default_factory=dict)
    machine: dict[str, Any] = field(default_factory=dict)
    stages: dict[str, Any] = field(default_factory=dict)
    verdict: str = ""

    def record(self, name: str) -> Record | None:
        """What is known of a stage; None: it never began."""
        found = self.stages.get(name)
        return None if found is None else Record(**found)

    def to_json(self) -> dict[str, Any]:
        """The file's content."""
        return {MARK: SCHEMA_VERSION, **asdict(self)}

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read a file. Raises InputError."""
        return read_json(path, "the manifest of an audit", _from_json)


def _from_json(value: Any) -> Manifest:
    check_kind(value, MARK, SCHEMA_VERSION, "manifest of an audit")
    return Manifest(**checked_parts(value, asdict(Manifest({}))))


class Journal:
    """The manifest of a directory, written after every change, and what the files there are worth."""

    def __init__(self, directory: Path, stem: str, manifest: Manifest) -> None:
        """Nothing is written yet."""
        self.directory, self.stem, self.manifest = directory, stem, manifest

    def save(self) -> None:
        """Write the file. Raises DiskError."""
        write_json(self.directory / MANIFEST, self.manifest.to_json())

    def paths(self, stage: Stage) -> list[Path]:
        """The files of a stage."""
        return [self.directory / name for name in stage.names(self.stem)]

    def is_done(self, stage: Stage) -> bool:
        """Whether a stage needs no run: its files, and those that it read, are what they were."""
        record = self.manifest.record(stage.name)
        return (
            record is not None
            and record.state == DONE
            and record.inputs == self.inputs(stage)
            and set(record.files) == set(stage.names(self.stem))
            and record.files == hashes([self.directory / name for name in record.files])
        )

    def inputs(self, stage: Stage) -> dict[str, str]:
        """The files that a stage reads, as the stages that wrote them left them."""
        records = [self.manifest.record(name) for name in stage.needs]
        return {name: digest for record in records if record for name, digest in record.files.items()}

    def begin(self, stage: Stage) -> float:
        """Note that a stage begins. What an attempt on other inputs left is removed; returns the time."""
        before, inputs = self.manifest.record(stage.name), self.inputs(stage)
        if before is None or before.state != RUNNING or before.inputs != inputs:
            remove(self.paths(stage))
            before = None
        record = before or Record(RUNNING)
        record.inputs = inputs
        record.attempts += 1
        record.started = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self._put(stage, record)
        return time.monotonic()

    def end(self, stage: Stage, began: float) -> None:
        """Note that a stage is done."""
        record = self.manifest.record(stage.name) or Record(DONE)
        record.state, record.seconds = DONE, round(time.monotonic() - began, 2)
        record.files = hashes(self.paths(stage))
        self._put(stage, record)

    def leave_out(self, stage: Stage, state: str, note: str) -> None:
        """Note that a stage does not run, and why."""
        self._put(stage, Record(state, note))

    def _put(self, stage: Stage, record: Record) -> None:
        self.manifest.stages[stage.name] = asdict(record)
        self.save()


def hashes(paths: Sequence[Path]) -> dict[str, str]:
    """SHA-256 by name of those files that exist."""
    there = [path for path in paths if path.is_file()]
    with FileHashes(there) as running:
        return dict(zip((path.name for path in there), running.result(), strict=True))


def remove(paths: Sequence[Path]) -> None:
    """Delete files and what lies beside them while they are made: journals, pieces, temporary files."""
    for path in paths:
        for found in path.parent.glob(glob.escape(path.name) + "*"):
            if found == path or found.name.startswith(path.name + "."):
                found.unlink()


def found_in(directory: Path) -> Manifest | None:
    """The manifest of an earlier run; None where the directory holds none. Raises InputError for other content."""
    if directory.exists() and not directory.is_dir():
        raise InputError(f"{directory}: is a file, an audit needs a folder: choose another -o")
    if (directory / MANIFEST).is_file():
        return Manifest.load(directory / MANIFEST)
    if directory.is_dir() and any(not path.name.startswith(OWN) for path in directory.iterdir()):
        raise InputError(
            f"{directory}: holds files but no {MANIFEST}, so it is no audit: choose another -o, or empty it"
        )
    return None


def check_same(directory: Path, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
    """Refuse to go on with an audit that was asked something else. Raises InputError naming what differs."""
    names = [*ours, *(name for name in theirs if name not in ours)]
    found = [first_difference(name, theirs.get(name), ours.get(name)) for name in names]
    differences = [text for text in found if text]
    if differences:
        more = f" and {len(differences) - SHOWN} more" if len(differences) > SHOWN else ""
        raise InputError(
            f"{directory}: holds an audit that was asked something else: {'; '.join(differences[:SHOWN])}{more}; "
            "ask the same to go on with it, start again with --force, or choose another -o"
        )


def clear(directory: Path, stem: str) -> None:
    """Delete what an audit wrote into a directory, and nothing else."""
    remove([directory / name for name in [*all_files(stem, STAGES), MANIFEST]])


def versions() -> dict[str, str]:
    """Of what computes the numbers."""
    from safex import __version__
    from safex.library import UPSTREAM_ID

    known = {"safex-native": __version__, "llama.cpp": UPSTREAM_ID, "python": platform.python_version()}
    return known | {name: metadata.version(name) for name in LIBRARIES}


def machine() -> dict[str, Any]:
    """Where it runs: times mean nothing without it."""
    return {
        "cpus": available_cores(),
        "processor": platform.processor() or platform.machine(),
        "system": platform.system(),
    }
