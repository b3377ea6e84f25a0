"""Files that mix safe and harmful prompts: which rows a set takes, told by the file's own labels."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import NoReturn

from safex.errors import InputError
from safex.prompt_columns import ANSWER_COLUMNS, Layout, Rule, find_column, normal
from safex.prompt_files import Row, Table, fail, shown

SET_OF = {"safe": "benign", "harmful": "regular", "jailbreak": "jailbreak"}
TAKES = {
    "benign": ("safe",),
    "safe": ("safe",),
    "harmless": ("safe",),
    "regular": ("harmful",),
    "harmful": ("harmful", "jailbreak"),
    "unsafe": ("harmful", "jailbreak"),
    "jailbreak": ("jailbreak",),
}
"""The kinds of rows that a set of this name takes from a file that mixes them."""

WORDS = {
    "safe": "safe benign harmless unharmful non-toxic nontoxic",
    "harmful": "unsafe harmful toxic malicious",
    "jailbreak": "jailbreak",
    "": "controversial borderline",
}
_KIND_OF = {word: kind for kind, words in WORDS.items() for word in words.split()}
WORD_COLUMNS = (
    "prompt_label",
    "prompt_harm_label",
    "label",
    "labels",
    "harmfulness",
    "safety",
    "type",
    "class",
)
FLAGS = {
    "is_safe": "safe",
    "safe": "safe",
    "is_harmful": "harmful",
    "harmful": "harmful",
    "is_unsafe": "harmful",
    "unsafe": "harmful",
    "is_toxic": "harmful",
    "toxic": "harmful",
    "is_malicious": "harmful",
    "malicious": "harmful",
    "is_jailbreak": "jailbreak",
}
_NAME_WORDS = {
    "toxic": "harmful",
    "harmful": "harmful",
    "unsafe": "harmful",
    "benign": "safe",
    "harmless": "safe",
}
_TRUE, _FALSE = ("true", "1", "yes"), ("false", "0", "no")
MAYBE_COLUMNS = ("label", "labels", "toxicity", "jailbreaking", "jailbreak", "adversarial", "harmfulness")
"""Columns that may tell safe prompts from harmful ones in a way that isn't known: they get a note."""


def selected(
    table: Table, layout: Layout, set_name: str | None, where: Sequence[str]
) -> tuple[Table, list[str]]:
    """The rows that the set takes, and what to know of the others.

    ``where`` are conditions ``COLUMN=VALUE``; of one column any may hold. Where they say something of this file, its
    labels are not asked. Raises InputError: no row is left, or it can't be told which rows the set means.
    """
    conditions = [parse_where(one) for one in where]
    asked = {column: [v for c, v in conditions if c == column] for column, _ in conditions}
    asked = {column: values for column, values in asked.items() if column in table.columns}
    if asked:
        return _filtered(table, asked)
    rules = layout.rules or _rules_of(table)
    if not rules or (set_name is None and "set" in table.columns):
        return table, [] if rules else _doubtful(table) + _misnamed(table, set_name)
    return _split(table, rules, set_name)


def kinds_of(table: Table, layout: Layout) -> list[str | None]:
    """The set that each row belongs to by the file's labels; None without one."""
    rules = layout.rules or _rules_of(table)
    if "set" in table.columns:
        return [None] * len(table.rows)
    return [SET_OF.get(_kind(row, rules) or "") for row in table.rows]


def parse_where(text: str) -> tuple[str, str]:
    """A condition ``COLUMN=VALUE``. Raises InputError.

    >>> parse_where("label=safe")
    ('label', 'safe')
    """
    column, equals, value = text.partition("=")
    if not (column and equals):
        raise InputError(f"--where {text!r}: expected COLUMN=VALUE, as in label=safe")
    return column, value


def check_where(where: Sequence[str], columns: Iterable[str]) -> None:
    """Refuse a condition on a column that no file has. Raises InputError."""
    present = set(columns)
    for column, _ in map(parse_where, where):
        if column not in present:
            raise InputError(
                f"--where {column}=...: no prompt file has a column {column!r}; they have {shown(sorted(present))}"
            )


def _filtered(table: Table, asked: dict[str, list[str]]) -> tuple[Table, list[str]]:
    kept = [
        row
        for row in table.rows
        if all(_word(row.values.get(column)) in map(_word, values) for column, values in asked.items())
    ]
    said = " and ".join(f"{column}={' or '.join(values)}" for column, values in asked.items())
    if not kept:
        first = next(iter(asked))
        found = dict.fromkeys(_word(row.values.get(first)) for row in table.rows)
        fail(table.path, f"no row has {said}; column {first!r} holds {shown(found)}")
    left = len(table.rows) - len(kept)
    notes = [f"{table.path}: {left} of {len(table.rows)} rows are left out by {said}"] if left else []
    return Table(table.path, table.columns, kept), notes


def _split(table: Table, rules: Sequence[Rule], set_name: str | None) -> tuple[Table, list[str]]:
    """The rows of the kinds that the set takes; without a set's name all that are of some kind."""
    kinds = [_kind(row, rules) for row in table.rows]
    present = sorted({kind for kind in kinds if kind is not None})
    column = rules[0].column
    wanted = tuple(SET_OF) if set_name is None else TAKES.get(set_name, ())
    if len(present) < 2 and not set(present) & set(wanted):
        return table, _contradiction(table, present, wanted, column, set_name)
    ambiguous = _about_answers(table, column)
    if ambiguous or not {rule.kind for rule in rules} & set(wanted):
        _refuse(table, column, set_name or "prompts", kinds, ambiguous)
    kept = [row for row, kind in zip(table.rows, kinds, strict=True) if kind in wanted]
    if not kept:
        fail(
            table.path,
            f"holds no {' or '.join(wanted)} prompts for set {set_name!r} ({_counts(kinds, column)})",
        )
    left = [kind for kind in kinds if kind not in wanted]
    if not left:
        return table, []
    of_set = f" of set {set_name!r}" if set_name else ""
    what = f"{len(left)} of {len(kinds)} prompts are left out{of_set}: {_counts(left, column)}"
    return Table(table.path, table.columns, kept), [f"{table.path}: {what}"]


def _contradiction(
    table: Table, present: Sequence[str], wanted: Sequence[str], column: str, set_name: str | None
) -> list[str]:
    """A note where all rows of a file are labelled as what the set's name denies; it is taken all the same."""
    if not (present and wanted) or ("safe" in present) == ("safe" in wanted):
        return []
    return [
        f"{table.path}: all prompts are labelled {present[0]} by column {column!r}, yet the set is {set_name!r}"
    ]


def _refuse(
    table: Table, column: str, set_name: str, kinds: Sequence[str | None], ambiguous: str = ""
) -> NoReturn:
    values = dict.fromkeys(_word(row.values.get(column)) for row in table.rows)
    value = next((value for value in values if value), "VALUE")
    ways = [name for name in ("benign", "regular", "jailbreak") if set(TAKES[name]) & set(kinds)]
    named = "" if ambiguous else f" call the set {' or '.join(ways)}, or"
    why = ambiguous or "mixes kinds of prompts"
    fail(
        table.path,
        f"{why} ({_counts(kinds, column)}), so which are meant by set {set_name!r} can't be told;{named} choose "
        f"rows with --where (where= in Python), as in --where {column}={value}",
    )


def _counts(kinds: Sequence[str | None], column: str) -> str:
    """How many of each kind, by which column.

    >>> _counts(["safe", "safe", None], "label")
    "2 safe, 1 not labelled, by column 'label'"
    """
    counts = Counter(kind or "not labelled" for kind in kinds)
    return f"{', '.join(f'{n} {kind}' for kind, n in counts.items())}, by column {column!r}"


def _kind(row: Row, rules: Sequence[Rule]) -> str | None:
    """The kind of the first rule that holds."""
    for rule in rules:
        if fnmatch.fnmatchcase(_word(row.values.get(rule.column)), rule.value):
            return rule.kind
    return None


def _word(value: object) -> str:
    """A value as rules and conditions write it.

    >>> _word(True), _word(1.0), _word(" Safe "), _word(None)
    ('true', '1', 'safe', '')
    """
    if value is None or value != value:
        return ""
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value).strip().casefold()


def _rules_of(table: Table) -> tuple[Rule, ...]:
    """Rules for a file that is not published but has a column of labels."""
    for name in WORD_COLUMNS:
        column = find_column(table.columns, [name])
        words = {_word(row.values.get(column)) for row in table.rows} - {""} if column else set()
        if column and words and words <= set(_KIND_OF):
            return tuple(Rule(column, word, _KIND_OF[word] or None) for word in sorted(words))
    for name, kind in FLAGS.items():
        column = find_column(table.columns, [name])
        words = {_word(row.values.get(column)) for row in table.rows} - {""} if column else set()
        if column and words and words <= {*_TRUE, *_FALSE}:
            other = "safe" if kind != "safe" else "harmful"
            return tuple(Rule(column, word, kind if word in _TRUE else other) for word in sorted(words))
    return ()


def _about_answers(table: Table, column: str) -> str:
    """Why a file's labels can't be taken for the prompts': they stand beside answers."""
    answers = find_column(table.columns, ANSWER_COLUMNS)
    if normal(column) not in (*FLAGS, "label", "labels", "safety", "harmfulness") or answers is None:
        return ""
    return f"column {column!r} may be about the answers in column {answers!r}"


def _misnamed(table: Table, set_name: str | None) -> list[str]:
    """A note where a file's own name denies the set's, as OR-Bench's ``or-bench-toxic.csv`` does ``benign``."""
    kinds = TAKES.get(set_name or "", ())
    words = [word for word in _words(table) if word in _NAME_WORDS] if kinds else []
    found = next((word for word in words if (_NAME_WORDS[word] == "safe") != ("safe" in kinds)), None)
    return [f"{table.path}: the file is called {found}, yet the set is {set_name!r}"] if found else []


def _words(table: Table) -> list[str]:
    return re.split(r"[^a-z]+", table.path.name.casefold())


def _doubtful(table: Table) -> list[str]:
    """A note where a column may divide the prompts in a way that isn't known."""
    column = find_column(table.columns, MAYBE_COLUMNS)
    values = dict.fromkeys(_word(row.values.get(column)) for row in table.rows) if column else {}
    if not 1 < len(values) <= 5:
        return []
    return [
        f"{table.path}: all prompts are taken, whatever column {column!r} says ({shown(values)}); choose rows with "
        f"--where {column}=VALUE"
    ]
