"""Prompt files as tables: txt, csv, tsv, json, jsonl (each also .gz) and parquet, and published headers.

Rows keep the name of their place in the file. Every fault of a file is an :class:`~safex.errors.InputError`
of one line. :mod:`safex.prompts` makes prompts of the rows.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from safex.errors import InputError
from safex.prompt_columns import TEXT_COLUMNS, Layout, find_column, layout_of

Values = dict[str, object]

NAMED = "named"  # the layout of a file whose column of prompts the user names
DELIMITERS = (",", ";", "\t", "|")  # spreadsheets write into a .csv what the country uses
BYTE_ORDER_MARKS = ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))


@dataclass(frozen=True)
class Row:
    """One record and where it stands (``line 7`` or ``row 7``, counted from 1)."""

    path: Path
    where: str
    values: Values

    def fail(self, what: str) -> NoReturn:
        """Raise an :class:`InputError` about this row."""
        fail(self.path, what, self.where)


@dataclass(frozen=True)
class Table:
    """A file's rows. ``columns`` is empty for a file of bare strings, which stand under ``""``."""

    path: Path
    columns: tuple[str, ...]
    rows: list[Row]


def fail(path: Path, what: str, where: str = "") -> NoReturn:
    """Raise an :class:`InputError` that starts with the file and, if given, the place in it."""
    raise InputError(f"{path}, {where}: {what}" if where else f"{path}: {what}")


def shown(names: Iterable[object], most: int = 12) -> str:
    """Names in quotes, comma separated, long names and long lists cut, so that a message stays one line."""
    words = [repr(text if len(text) <= 40 else text[:37] + "...") for text in map(str, names)]
    return ", ".join(words[:most] + ([f"and {len(words) - most} more"] if len(words) > most else []))


def read_table(path: Path) -> Table:
    """The rows of a prompt file; its format is told by the extension.

    Raises :class:`InputError` for a file that is missing, empty, of unknown extension, not UTF-8 or broken.

    >>> read_table(Path("prompts.docx"))
    Traceback (most recent call last):
    safex.errors.InputError: prompts.docx: no such file; check the path
    """
    table = _reader_of(path)(path)
    if not table.rows:
        fail(path, "holds no prompts; expected at least one row")
    return table


def choose_layout(table: Table, column: str | None = None) -> Layout:
    """The columns to read a table by: ``column``, else the first of ``TEXT_COLUMNS`` that the table has.

    A published header (``LAYOUTS``) decides over that order among its own columns, not over a column added to them.
    Raises :class:`InputError` when there is no such column, or for a published file that can't be read.
    """
    if not table.columns:
        return Layout("strings", frozenset(), text=("",))
    layout = layout_of(table.columns) or Layout("generic", frozenset(), text=())
    if column is not None:
        return _by_column(table, layout, column)
    if layout.refusal:
        fail(table.path, f"is {layout.name}: {layout.refusal}")
    text = find_column([name for name in table.columns if name not in layout.over], TEXT_COLUMNS)
    if layout.text and (text is None or text in layout.header | set(layout.text)):
        return layout
    if text is None:
        fail(table.path, _no_column(table))
    return replace(layout, text=(text,), above=None, below=None)


def _by_column(table: Table, layout: Layout, column: str) -> Layout:
    if column not in table.columns:
        found = f"columns found: {shown(table.columns)}"
        fail(table.path, f"no column {column!r} ({found}); give --column one of these")
    if column in layout.text[:1]:
        return layout
    return replace(layout, name=NAMED, text=(column,), above=None, below=None, refusal="")


def _no_column(table: Table) -> str:
    """What to say of a table without a column known to hold prompts."""
    columns = table.columns
    found = f"columns found: {shown(columns)}"
    languages = [name for name in columns if re.fullmatch(r"(?!id\b)[a-z]{2}([-_][A-Za-z]{2,4})?", name)]
    if len(languages) > 2:
        return (
            f"has a column for each language ({shown(languages)}); name one with --column (column= in Python)"
        )
    if len(columns) == 1 and " " in columns[0].strip():
        return (
            f"its first line {shown(columns)} is no name of a column; if the file has no header, put the line "
            "'prompt' first"
        )
    return f"no column known to hold prompts ({found}); name it with --column (column= in Python)"


def _reader_of(path: Path) -> Callable[[Path], Table]:
    _require_file(path)
    for extension, reader in _READERS.items():
        if path.name.lower().endswith(extension):
            return reader
    fail(path, f"unknown kind of prompt file; expected {', '.join(_READERS)}, so convert or rename it")


def _require_file(path: Path) -> None:
    try:
        exists, is_directory = path.exists(), path.is_dir()
    except OSError as error:
        fail(path, f"can't be read ({error.strerror or error}); check the path and its permissions")
    if is_directory:
        fail(path, "is a directory; expected a prompt file, so name one file in it")
    if not exists:
        fail(path, "no such file; check the path")


def _bytes(path: Path) -> bytes:
    try:
        if path.suffix.lower() != ".gz":
            return path.read_bytes()
        with gzip.open(path) as file:
            return file.read()
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        fail(path, f"is not a whole gzip file ({error}); fetch or compress it again")
    except OSError as error:
        fail(path, f"can't be read ({error.strerror or error}); check the file and its permissions")


def _text(path: Path) -> str:
    data = _bytes(path)
    # A spreadsheet's "Unicode text" is UTF-16, whose byte order mark can't begin a UTF-8 file.
    encoding = next((name for mark, name in BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8-sig")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        fail(path, *_undecodable(data, error, encoding))
    if not text.strip():
        fail(path, "is empty; expected at least one prompt")
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        what = "holds a zero byte, as UTF-16 does that is not marked as such; save the file as UTF-8"
        fail(path, what, f"line {line}")
    return text


def _undecodable(data: bytes, error: UnicodeDecodeError, encoding: str) -> tuple[str, str]:
    """What is wrong with a file's bytes, and in which line."""
    if encoding == "utf-16":
        return f"begins as UTF-16 and is not ({error.reason}); save the file as UTF-8", ""
    # The codec counts from behind a BOM; the file's own offset is what a user can look up.
    offset = error.start + len(data) - len(error.object)
    line = data.count(b"\n", 0, offset) + 1
    what = f"byte 0x{data[offset]:02x} at offset {offset} is not UTF-8"
    return f"{what}; save the file as UTF-8 (in a spreadsheet: CSV UTF-8)", f"line {line}"


def _lines(text: str) -> Iterator[tuple[str, str]]:
    # Not str.splitlines: it also breaks at U+2028 and others that may stand inside a prompt.
    for number, line in enumerate(io.StringIO(text, newline=None), start=1):
        if line.strip():
            yield f"line {number}", line.strip()


def _bare(path: Path, texts: Iterable[tuple[str, object]]) -> Table:
    return Table(path, (), [Row(path, where, {"": text}) for where, text in texts])


def _read_txt(path: Path) -> Table:
    text = _text(path)
    first = next(_lines(text))[1].split("\t")
    if len(first) > 1 and find_column(first, TEXT_COLUMNS):
        fail(
            path,
            f"is a table with the columns {shown(first)}, not a prompt a line; rename it to .tsv",
            "line 1",
        )
    return _bare(path, _lines(text))


def _read_csv(path: Path) -> Table:
    return _read_delimited(path, ",")


def _read_tsv(path: Path) -> Table:
    return _read_delimited(path, "\t")


def _read_delimited(path: Path, usual: str) -> Table:
    text = _text(path)
    # Spreadsheets may name the delimiter in a line of its own.
    named = re.match(r"sep=(.)\r?\n", text)
    if named:
        return _delimited(path, "\n" + text[named.end() :], named.group(1))
    return _delimited(path, text, _delimiter(text, usual))


def _delimiter(text: str, usual: str) -> str:
    """What divides the fields: ``usual``, unless another one gives a header that has a column of prompts."""
    headers = {one: _header(text, one) for one in (usual, *DELIMITERS)}
    if find_column(headers[usual], TEXT_COLUMNS) is None:
        for one, header in headers.items():
            if len(header) > 1 and find_column(header, TEXT_COLUMNS):
                return one
    # A header of names that nobody knows: what divides it into the most names.
    return usual if len(headers[usual]) != 1 else max(headers, key=lambda one: len(headers[one]))


def _header(text: str, delimiter: str) -> list[str]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    try:
        return next((fields for fields in reader if any(field.strip() for field in fields)), [])
    except csv.Error:
        return []


def _delimited(path: Path, text: str, delimiter: str) -> Table:
    records = _records(path, text, delimiter)
    if not records:
        fail(path, "is empty; expected a header and at least one row")
    columns = [name.strip() for name in records.pop(0)[1]]
    _check_columns(path, columns)
    for where, fields in records:
        if len(fields) > len(columns):
            what = f"{len(fields)} fields under a header of {len(columns)}"
            fail(path, f"{what}; put a field that holds {delimiter!r} in quotes", where)
    rows = [Row(path, where, dict(zip(columns, fields, strict=False))) for where, fields in records]
    return Table(path, tuple(columns), rows)


def _records(path: Path, text: str, delimiter: str) -> list[tuple[str, list[str]]]:
    # strict: an unclosed quote would otherwise swallow the rest of the file without a word.
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    limit = csv.field_size_limit(max(len(text), 131072))
    records, start = [], 1
    try:
        for fields in reader:
            if any(field.strip() for field in fields):
                records.append((f"line {start}", fields))
            start = reader.line_num + 1
    except csv.Error as error:
        remedy = "check its quotes, and double a quote inside a quoted field"
        fail(path, f"broken record ({error}); {remedy}", f"line {start}")
    finally:
        csv.field_size_limit(limit)
    return records


def _check_columns(path: Path, columns: list[str]) -> None:
    twice = sorted({name for name in columns if name and columns.count(name) > 1})
    if twice:
        fail(path, f"column {shown(twice)} occurs twice; rename one")


def _parse_json(path: Path, text: str, line: str = "") -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        expected = "one JSON value a line" if line else "one JSON value (a file with one a line is a .jsonl)"
        what = f"broken JSON at column {error.colno} ({error.msg}); expected {expected}"
        fail(path, what, line or f"line {error.lineno}")
    except (ValueError, RecursionError) as error:
        fail(path, f"JSON that can't be read ({error}); expected strings or flat objects", line)


def _read_jsonl(path: Path) -> Table:
    return _objects(path, [(where, _parse_json(path, line, where)) for where, line in _lines(_text(path))])


def _read_json(path: Path) -> Table:
    data = _parse_json(path, _text(path))
    if isinstance(data, dict):
        data = _unwrap(path, data)
    if not isinstance(data, list):
        fail(path, f"holds {_kind(data)}; expected a list of prompts, or an object that holds one")
    return _objects(path, [(f"row {number}", item) for number, item in enumerate(data, start=1)])


def _unwrap(path: Path, data: Values) -> list[object]:
    """The list in ``{"data": [...]}``, or the rows of columns (lists, or pandas' objects by index)."""
    lists = {name: value for name, value in data.items() if isinstance(value, list)}
    if len(lists) == 1 and all(isinstance(item, (str, dict)) for item in next(iter(lists.values()))):
        return next(iter(lists.values()))
    by_index = {name: list(value.values()) for name, value in data.items() if isinstance(value, dict)}
    if cases := _test_cases(lists):
        return cases
    columns = lists or by_index
    if not columns:
        what = f"an object without a list (keys: {shown(data)})"
        fail(path, f"{what}; expected a list of prompts, or lists as columns")
    if len({len(values) for values in columns.values()}) > 1:
        sizes = ", ".join(f"{name!r} {len(values)}" for name, values in columns.items())
        fail(path, f"columns of different length ({sizes}); expected a value a row in each, or one list only")
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def _test_cases(lists: dict[str, list[object]]) -> list[object]:
    """HarmBench's test cases, the attempts at each behavior by its id, as rows; nothing for other objects."""
    several = len({len(texts) for texts in lists.values()}) > 1
    single = len(lists) > 1 and all(len(texts) == 1 for texts in lists.values())
    texts_only = all(isinstance(text, str) for texts in lists.values() for text in texts)
    if not (several or single) or not texts_only or find_column(lists, TEXT_COLUMNS):
        return []
    return [
        {"id": name if number == 1 else f"{name}-{number}", "prompt": text}
        for name, texts in lists.items()
        for number, text in enumerate(texts, start=1)
    ]


def _objects(path: Path, items: list[tuple[str, object]]) -> Table:
    if all(isinstance(item, str) for _, item in items):
        return _bare(path, items)
    rows = []
    for where, item in items:
        if not isinstance(item, dict):
            what = f"{_kind(item)} where an object was expected"
            fail(path, f"{what}; use objects or strings throughout", where)
        rows.append(Row(path, where, item))
    columns = dict.fromkeys(name for row in rows for name in row.values)
    return Table(path, tuple(columns), rows)


def _kind(value: object) -> str:
    names = {dict: "an object", list: "a list", str: "a string", bool: "a truth value", type(None): "null"}
    return names.get(type(value), "a number")


def _read_parquet(path: Path) -> Table:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            table = file.read()
        records: list[Values] = table.to_pylist()
    except (pa.ArrowException, OSError, ValueError) as error:
        first_line = (str(error).splitlines() or ["no reason given"])[0]
        fail(path, f"is not a readable parquet file ({first_line}); fetch or write it again")
    _check_columns(path, table.column_names)
    rows = [Row(path, f"row {number}", record) for number, record in enumerate(records, start=1)]
    return Table(path, tuple(table.column_names), rows)


_TEXT_READERS: dict[str, Callable[[Path], Table]] = {
    ".txt": _read_txt,
    ".csv": _read_csv,
    ".tsv": _read_tsv,
    ".json": _read_json,
    ".jsonl": _read_jsonl,
}
_COMPRESSED_READERS = {f"{extension}.gz": reader for extension, reader in _TEXT_READERS.items()}
_READERS = {**_TEXT_READERS, **_COMPRESSED_READERS, ".parquet": _read_parquet}
