"""Responses files: the answers of an evaluation as JSON lines, appended as they come, and read again to be judged.

The first line is a header ``{"safex_responses": 1, "model": {...}, "parameters": {...}}``; each further one an answer
(``Record``). A line is handed to the operating system whole; a torn last one is cut off on resume.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, TypeAlias

from safex import disk
from safex.errors import InputError
from safex.experts import ExpertLike, to_expert
from safex.judges.verdicts import LABELS, UNREADABLE, Item, Mask, Verdict, reading

SCHEMA_VERSION = 1
MARK = "safex_responses"
SYNC_SECONDS = 5.0

Key: TypeAlias = tuple[str, str, str, int]

_TYPES: dict[str, tuple[type, ...]] = {
    "id": (str,),
    "set": (str,),
    "prompt": (str,),
    "response": (str,),
    "finish": (str,),
    "mask": (str,),
    "mode": (str,),
    "phase": (str,),
    "sample": (int,),
    "tokens": (int,),
    "gain": (int, float),
    "category": (str, type(None)),
    "pair": (str, type(None)),
    "experts": (list,),
    "comply": (list, type(None)),
    "cuts": (dict, type(None)),
    "verdicts": (dict,),
}
_REQUIRED = ("id", "set", "prompt", "response")


@dataclass(frozen=True)
class Record:
    """One answer.

    ``mask`` names the mask ("none", "mask", "control-uniform-3"), ``experts`` are its experts as ``"L:E"``,
    ``tokens`` is the number of generated tokens, ``comply`` holds the texts that real compliance must contain (None:
    nothing is expected), ``verdicts`` ``{judge: {"label": ..., "score": ..., "detail": ..., "unreadable": ...}}``, the
    last one only where the judge could not read the answer. ``response`` is the text with its reasoning marked, as
    ``Response.marked or Response.text``; ``cuts`` says how many of its characters the first 30, 60 ... tokens are, as
    ``{"30": 132}`` (None: it has fewer). ``extra`` keeps fields of other tools.
    """

    id: str
    set: str
    prompt: str
    response: str
    category: str | None = None
    pair: str | None = None
    mask: str = "none"
    experts: Sequence[ExpertLike] = ()
    mode: str = "zero"
    gain: float = 0.0
    phase: str = "both"
    sample: int = 0
    tokens: int = 0
    finish: str = "stop"
    comply: Sequence[str] | None = None
    cuts: Mapping[str, int] | None = None
    verdicts: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Write experts as ``"L:E"``, however they are given. Raises InputError."""
        object.__setattr__(self, "experts", tuple(str(to_expert(expert)) for expert in self.experts))

    @property
    def key(self) -> Key:
        """What tells an answer from all others of its file: set, id, mask, sample."""
        return self.set, self.id, self.mask, self.sample

    @property
    def item(self) -> Item:
        """What a judge reads of it."""
        mask = Mask(tuple(map(str, self.experts)), self.mode, self.gain, self.phase)
        return Item(self.id, self.set, self.prompt, self.response, self.finish, self.comply, mask)

    def item_at(self, n_tokens: int) -> Item:
        """What a judge reads of its first tokens: as a token limit of so many would have cut it."""
        n_chars = (self.cuts or {}).get(str(n_tokens))
        if n_chars is None:
            return self.item
        return replace(self.item, response=self.response[:n_chars], finish="length")

    @property
    def labels(self) -> dict[str, str]:
        """The label of each judge."""
        return {name: verdict["label"] for name, verdict in self.verdicts.items()}

    @property
    def readings(self) -> dict[str, str]:
        """What each judge's tables count the answer as: refuse, comply or other, or why it could not be read."""
        return {
            name: reading(verdict["label"], verdict.get("unreadable"))
            for name, verdict in self.verdicts.items()
        }

    def judged(self, judge: str, verdict: Verdict) -> Record:
        """The same with a judge's verdict added or replaced."""
        said = {name: value for name, value in vars(verdict).items() if name == "label" or value is not None}
        return replace(self, verdicts={**self.verdicts, judge: {"score": None, **said}})

    def to_json(self) -> dict[str, Any]:
        """The line's object; ``comply``, ``cuts`` and what other tools wrote only where there is some."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "extra"}
        for name in ("comply", "cuts"):
            if values[name] is None:
                del values[name]
        return {**values, **self.extra}


@dataclass(frozen=True)
class Header:
    """The first line: the model's facts and the parameters of the evaluation, both plain JSON values."""

    model: Mapping[str, Any] = field(default_factory=dict)
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The line's object."""
        return {MARK: SCHEMA_VERSION, "model": dict(self.model), "parameters": dict(self.parameters)}


@dataclass(frozen=True)
class Responses:
    """A file in memory. ``torn`` says that its last line was cut short and left out."""

    header: Header
    records: list[Record]
    torn: bool = False


def load(path: str | os.PathLike[str]) -> Responses:
    """Read a file. Raises InputError: path, line, what is wrong, what is expected.

    A torn last line, as a killed run leaves it, is left out.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; expected a responses file of `safex-native eval`") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    header, records, end = _parse(path, data)
    return Responses(header, records, torn=end < len(data))


def header_of(path: str | os.PathLike[str]) -> Header:
    """The first line of a file; an empty one where there is no file or no whole line."""
    try:
        with Path(path).open("rb") as file:
            line = file.readline()
    except OSError:
        return Header()
    return _header(Path(path), _object(line)) if line.endswith(b"\n") else Header()


def save(path: str | os.PathLike[str], header: Header, records: Iterable[Record]) -> None:
    """Write a whole file through a temporary one. Raises InputError, DiskError."""
    with disk.replacing(Path(path)) as (fd, _):
        end = disk.write_at(fd, 0, _line(header.to_json()))
        for record in records:
            end = disk.write_at(fd, end, _line(record.to_json()))


class ResponsesWriter:
    """Appends answers to a file as they come; a run that was stopped goes on with ``resume``.

    ``done`` are the keys of the answers that the file holds, ``dropped_bytes`` the length of a torn line that was cut
    off. The file is held alone while it is open.

    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "a.responses.jsonl"
    >>> with ResponsesWriter(path, Header({"name": "demo"})) as writer:
    ...     writer.append(Record("0", "benign", "Bread?", "Mix and bake."))
    >>> with ResponsesWriter(path, Header({"name": "demo"}), resume=True) as writer:
    ...     writer.done
    {('benign', '0', 'none', 0)}
    """

    def __init__(
        self, path: str | os.PathLike[str], header: Header, resume: bool = False, force: bool = False
    ) -> None:
        """Open a file. With ``resume`` and no file the run starts fresh; ``force`` replaces a file.

        Raises InputError for a file that exists, that another process writes, or whose header differs (by name);
        DiskError.
        """
        self.path = Path(path)
        self.done: set[Key] = set()
        self.dropped_bytes = 0
        with disk.writing(self.path):
            self._fd = disk.open_locked(self.path)
        try:
            self._end = self._start(header, resume, force)
        except BaseException:
            os.close(self._fd)
            raise
        self._synced = time.monotonic()

    def append(self, record: Record) -> None:
        """Write a line whole or not at all; returns when the operating system holds it.

        Raises InputError for an answer that the file holds already, DiskError.
        """
        if record.key in self.done:
            raise InputError(f"{self.path}: {_named(record.key)} is recorded already")
        self._write(_line(record.to_json()))
        self.done.add(record.key)

    def close(self) -> None:
        """Sync and let go of the file. May be called twice."""
        if self._fd >= 0:
            try:
                with disk.writing(self.path):
                    os.fsync(self._fd)
            finally:
                os.close(self._fd)
                self._fd = -1

    def __enter__(self) -> ResponsesWriter:
        """Return the writer itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close; what was appended stays."""
        self.close()

    def _start(self, header: Header, resume: bool, force: bool) -> int:
        """Begin the file or find its end; the offset behind the last good line."""
        data = os.pread(self._fd, os.fstat(self._fd).st_size, 0)
        if data and not force and not resume:
            raise InputError(
                f"{self.path}: exists already: --resume to go on, --force to replace it, or another -o"
            )
        if not data or force or _has_no_line(data):
            with disk.writing(self.path):
                os.ftruncate(self._fd, 0)
                return disk.write_at(self._fd, 0, _line(header.to_json()))
        theirs, records, end = _parse(self.path, data)
        _check_same(self.path, theirs, header)
        self.done, self.dropped_bytes = {record.key for record in records}, len(data) - end
        return self._cut(data, end)

    def _cut(self, data: bytes, end: int) -> int:
        """Cut a torn line off, and end a last line that lacks only its end."""
        with disk.writing(self.path):
            os.ftruncate(self._fd, end)
            return end if data[end - 1 : end] == b"\n" else disk.write_at(self._fd, end, b"\n")

    def _write(self, line: bytes) -> None:
        if self._fd < 0:
            raise InputError(f"{self.path}: the writer is closed")
        with disk.writing(self.path):
            try:
                self._end = disk.write_at(self._fd, self._end, line)
            except OSError:
                with suppress(OSError):
                    os.ftruncate(self._fd, self._end)
                raise
            if time.monotonic() - self._synced > SYNC_SECONDS:
                os.fsync(self._fd)
                self._synced = time.monotonic()


# --- lines


def _line(value: Mapping[str, Any]) -> bytes:
    """One line of JSON; half a surrogate pair is written as an escape."""
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, allow_nan=False).encode() + b"\n"


def _lines(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """Number, offset behind it, and text of each line; only a line feed ends one."""
    end = 0
    for number, line in enumerate(data.split(b"\n"), start=1):
        end = min(end + len(line) + 1, len(data))
        if line.strip():
            yield number, end, line


def _has_no_line(data: bytes) -> bool:
    """Whether a run was killed before its header was whole; what else is there is not ours to replace."""
    start = f'{{"{MARK}"'.encode()
    return b"\n" not in data and (data.startswith(start) or start.startswith(data))


def _parse(path: Path, data: bytes) -> tuple[Header, list[Record], int]:
    """Header, records, and the offset behind the last good line. Raises InputError."""
    rows = _lines(data)
    number, end, line = next(rows, (1, 0, b""))
    header = _header(path, _object(line))
    records: dict[Key, Record] = {}
    for number, behind, line in rows:
        value = _object(line)
        if value is None and behind == len(data) and not data.endswith(b"\n"):
            break
        record = _record(f"{path}, line {number}", value)
        if record.key in records:
            raise InputError(
                f"{path}, line {number}: {_named(record.key)} occurs twice; delete one of the lines"
            )
        records[record.key], end = record, behind
    return header, list(records.values()), end


def _object(line: bytes) -> Any:
    """The line's JSON object; None where it is none."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _header(path: Path, value: Any) -> Header:
    if value is None or MARK not in value:
        raise InputError(f"{path}: is no responses file: its first line must be an object with '{MARK}'")
    if value[MARK] != SCHEMA_VERSION:
        found = value[MARK]
        raise InputError(
            f"{path}: has schema version {found!r}, expected {SCHEMA_VERSION}: use what wrote it"
        )
    parts = {name: value.get(name, {}) for name in ("model", "parameters")}
    for name, part in parts.items():
        if not isinstance(part, dict):
            raise InputError(f"{path}, line 1: {name!r} is {type(part).__name__}, expected an object")
    return Header(**parts)


def _record(where: str, value: Any) -> Record:
    """A record of a line's object. Raises InputError."""
    if value is None:
        _fail(where, "is no JSON object; expected an answer, delete or mend the line")
    for name in _REQUIRED:
        if name not in value:
            _fail(where, f"has no {name!r}")
    for name, types in _TYPES.items():
        if name in value and (not isinstance(value[name], types) or isinstance(value[name], bool)):
            kinds = " or ".join("null" if t is type(None) else t.__name__ for t in types)
            _fail(where, f"{name!r} is {type(value[name]).__name__}, expected {kinds}")
    _check_parts(where, value)
    known = {name: value[name] for name in _TYPES if name in value}
    return Record(**known, extra={name: part for name, part in value.items() if name not in _TYPES})


def _check_parts(where: str, value: Mapping[str, Any]) -> None:
    if not all(isinstance(mark, str) for mark in value.get("comply") or ()):
        _fail(where, "'comply' must be a list of texts")
    if not all(type(n) is int and n >= 0 for n in (value.get("cuts") or {}).values()):
        _fail(where, "'cuts' must hold numbers of characters")
    try:
        for expert in value.get("experts", ()):
            to_expert(expert)
    except (InputError, TypeError):
        _fail(where, "'experts' must be a list of 'L:E' texts")
    for judge, verdict in value.get("verdicts", {}).items():
        label = verdict.get("label") if isinstance(verdict, dict) else None
        if label not in LABELS:
            _fail(where, f"verdict of {judge!r} has label {label!r}, expected one of {', '.join(LABELS)}")
        why = verdict.get("unreadable")
        if why is not None and why not in UNREADABLE:
            expected = f"null or one of {', '.join(UNREADABLE)}"
            _fail(where, f"verdict of {judge!r} has unreadable {why!r}, expected {expected}")


def _fail(where: str, what: str) -> NoReturn:
    raise InputError(f"{where}: {what}")


def _named(key: Key) -> str:
    return f"answer {key[1]!r} of set {key[0]!r}, mask {key[2]!r}, sample {key[3]}"


def _check_same(path: Path, theirs: Header, ours: Header) -> None:
    """Refuse to go on with another model or other parameters, naming the first that differs."""
    ours = _header(path, _object(_line(ours.to_json())))  # tuples become lists, as in the file
    for part in ("model", "parameters"):
        a, b = getattr(theirs, part), getattr(ours, part)
        for name in [*a, *(name for name in b if name not in a)]:
            if a.get(name) != b.get(name):
                raise InputError(
                    f"{path}: can't resume: {part} {name!r} is {_shown(a.get(name))} there and {_shown(b.get(name))} "
                    "here; use the same, or another -o"
                )


def _shown(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."
