"""Prompts out of the rows of a prompt file: text, chat turns, ids, and what was left out."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from safex.errors import InputError
from safex.prompt_columns import (
    CATEGORY_COLUMNS,
    CONTEXT_COLUMNS,
    CONVERSATIONS,
    DIVIDER,
    GAP,
    HISTORY_COLUMNS,
    ID_COLUMNS,
    INPUT_COLUMNS,
    MEDIA_COLUMNS,
    SIDE_COLUMNS,
    SYSTEM_COLUMNS,
    TRANSCRIPTS,
    Layout,
    find_column,
)
from safex.prompt_files import NAMED, Row, Table, choose_layout, shown
from safex.prompt_labels import kinds_of, selected
from safex.prompt_turns import Turn, conversation, read_turns, transcript

Messages: TypeAlias = "tuple[Turn | Mapping[str, Any], ...]"

DEFAULT_SET = "prompts"
_SURROGATE = re.compile("[\ud800-\udfff]")
_JOINED = 15  # characters from which on an input that the instruction holds already is not joined again


@dataclass(frozen=True)
class Prompt:
    """One prompt: the user's ``text``, the name of its ``set``, and an ``id`` unique within that set.

    ``pair`` joins twins of different sets: a plain request, its disguise, its harmless look-alike.
    ``messages`` holds the chat turns ``(role, content)`` where the file had turns; ``text`` is then the
    last user turn. A turn that calls tools has a third part, JSON of what more a template shows. In Python a
    content may also be a list of parts or None, and a turn an object such as
    ``{"role": "assistant", "content": None, "tool_calls": [...]}``.
    """

    text: str
    set: str
    id: str
    pair: str | None = None
    category: str | None = None
    messages: Messages | None = None

    def turns(self) -> list[dict[str, Any]]:
        """The conversation as chat templates take it.

        >>> Prompt("What is a fox?", "benign", "1").turns()
        [{'role': 'user', 'content': 'What is a fox?'}]
        """
        if not self.messages:
            return [{"role": "user", "content": self.text}]
        return [dict(turn) if isinstance(turn, Mapping) else _message(*turn) for turn in self.messages]


def _message(role: str, content: Any, more: str = "{}") -> dict[str, Any]:
    return {"role": role, "content": content, **json.loads(more)}


@dataclass(frozen=True)
class Loaded:
    """What a file gave: its prompts, the row of each, and what to know of the rest."""

    prompts: list[Prompt]
    rows: list[Row]
    notes: list[str]


def read_prompts(
    table: Table, set_name: str | None = None, column: str | None = None, where: Sequence[str] = ()
) -> Loaded:
    """The prompts of a table; what :meth:`safex.PromptSet.load` does after reading the file. Raises InputError."""
    layout = choose_layout(table, column)
    table, notes = selected(table, layout, set_name, where)
    columns = _Columns.of(table, layout)
    rows, left = _with_prompts(table, columns)
    if left:
        notes.append(f"{table.path}: {left} of {len(table.rows)} rows have no prompt and are left out")
    sets = _sets(Table(table.path, table.columns, rows), layout, set_name)
    made = [_prompt(row, n, columns, name) for n, (row, name) in enumerate(zip(rows, sets, strict=True))]
    prompts = [prompt for prompt, _ in made]
    n_answers = sum(answered for _, answered in made)
    if n_answers:
        what = "the answers with which conversations end are left out: the model is to give its own"
        notes.append(f"{table.path}: {what} ({n_answers} of {len(made)})")
    places = [row.where for row in rows]
    check_ids(zip(prompts, places, strict=True), str(table.path))
    notes += _side_notes(table, columns) + _repeats(table, prompts) + columns.notes
    return Loaded(prompts, rows, notes)


def default_id(set_name: str, row: int) -> str:
    """The id of a prompt without one."""
    return f"{set_name}-{row:04d}"


def check_ids(prompts: Any, source: str = "prompts") -> None:
    """Raise InputError where an id occurs twice in a set, among pairs of a prompt and where it stands."""
    first: dict[tuple[str, str], str] = {}
    for prompt, where in prompts:
        earlier = first.setdefault((prompt.set, prompt.id), where)
        if earlier != where:
            what = f"id {prompt.id!r} occurs twice in set {prompt.set!r}, at {earlier} and {where}"
            raise InputError(f"{source}: {what}; ids must be unique within a set, so rename one")


# --- columns


@dataclass(frozen=True)
class _Columns:
    """The columns that a table is read by; None where it has none of a kind."""

    layout: Layout
    id: str | None
    category: str | None
    above: str | None
    below: str | None
    system: str | None
    history: str | None
    media: list[str]
    notes: list[str]

    @classmethod
    def of(cls, table: Table, layout: Layout) -> _Columns:
        present, notes = table.columns, []
        used = set(layout.text)
        id_column, note = _id_column(table, layout)
        if note:
            notes.append(note)
        rest = [name for name in present if name not in used]
        named = layout.name == NAMED
        above = layout.above or (None if named else find_column(rest, CONTEXT_COLUMNS))
        below = layout.below or (None if named else find_column(rest, INPUT_COLUMNS))
        if layout.below == above:
            above = None
        category = layout.category if layout.category in present else find_column(rest, CATEGORY_COLUMNS)
        return cls(
            layout,
            id_column,
            category,
            above,
            below,
            None if named else find_column(rest, SYSTEM_COLUMNS),
            None if named else find_column(rest, HISTORY_COLUMNS),
            [name for name in rest if find_column([name], MEDIA_COLUMNS)],
            notes,
        )


def _id_column(table: Table, layout: Layout) -> tuple[str | None, str]:
    """The column of ids, and a note where values that repeat can't be ids."""
    if layout.id is None and "id" in table.columns:
        return "id", ""
    names = (layout.id,) if layout.id in table.columns else ("id", *ID_COLUMNS)
    column = find_column(table.columns, [name for name in names if name])
    if column is None or column == "id":
        return column, ""
    labels = [label(row, column) for row in table.rows]
    if None not in labels and len(set(labels)) == len(labels):
        return column, ""
    twice = len(labels) - len(set(labels) - {None})
    if twice == len(labels):
        return None, ""
    return (
        None,
        f"{table.path}: column {column!r} repeats or lacks values ({twice}), so prompts are numbered instead",
    )


def _with_prompts(table: Table, columns: _Columns) -> tuple[list[Row], int]:
    """The rows to read; without those that have no prompt where the layout allows it."""
    if not columns.layout.sparse:
        return table.rows, 0
    kept = [row for row in table.rows if _filled(row.values.get(columns.layout.text[0]))]
    if not kept:
        raise InputError(f"{table.path}: no row has a prompt; expected some that are not null")
    return kept, len(table.rows) - len(kept)


def _sets(table: Table, layout: Layout, set_name: str | None) -> list[str]:
    if set_name is not None:
        return [set_name] * len(table.rows)
    by_label = kinds_of(table, layout)
    return [label(row, "set") or kind or DEFAULT_SET for row, kind in zip(table.rows, by_label, strict=True)]


def _side_notes(table: Table, columns: _Columns) -> list[str]:
    """What may belong to the prompts and was not read."""
    read = {*columns.layout.text, columns.system, columns.history, *columns.layout.over}
    side = [*SIDE_COLUMNS]
    if columns.layout.name == NAMED:
        side += [*SYSTEM_COLUMNS, *CONTEXT_COLUMNS, *INPUT_COLUMNS, *HISTORY_COLUMNS]
    found = [
        name
        for name in table.columns
        if name not in read
        and find_column([name], side)
        and any(_filled(row.values.get(name)) for row in table.rows)
    ]
    if not found:
        return []
    return [f"{table.path}: not read, though it may belong to the prompts: column {shown(found)}"]


def _repeats(table: Table, prompts: Sequence[Prompt]) -> list[str]:
    counts = Counter((prompt.set, prompt.text, prompt.messages) for prompt in prompts)
    n = sum(count - 1 for count in counts.values())
    if not n:
        return []
    return [
        f"{table.path}: {n} of {len(prompts)} prompts repeat an earlier one, and each counts as one of its own"
    ]


# --- rows


def _prompt(row: Row, index: int, columns: _Columns, name: str) -> tuple[Prompt, bool]:
    """A row's prompt, and whether an answer at its end was left out."""
    text, messages, answered = _content(row, columns)
    prompt = Prompt(
        text=text,
        set=name,
        id=(label(row, columns.id) if columns.id else None) or default_id(name, index),
        pair=label(row, columns.layout.pair),
        category=label(row, columns.category) if columns.category else None,
        messages=messages,
    )
    return prompt, answered


def _content(row: Row, columns: _Columns) -> tuple[str, Messages | None, bool]:
    """A row's text with what belongs before and after it, and its chat turns if it has turns."""
    for name in columns.media:
        if _filled(row.values.get(name)):
            row.fail(f"column {name!r} holds what is no text; only text is read, so leave the row out")
    column = next((c for c in columns.layout.text if _filled(row.values.get(c))), columns.layout.text[0])
    value = conversation(row, column, row.values.get(column))
    if columns.layout.name in TRANSCRIPTS and isinstance(value, str):
        value = transcript(value) or value
    if isinstance(value, list):
        turns, answered = read_turns(row, value)
    else:
        turns, answered = [("user", _joined(row, columns, column, value))], False
    before = _before(row, columns, turns)
    text = next((turn[1] for turn in reversed(turns) if turn[0] == "user"), None)
    if text is None:
        row.fail("chat turns without a user turn; expected at least one with role 'user'")
    text = _checked_text(row, column, text)
    told = isinstance(value, list) or bool(before)
    messages = tuple(_checked_turn(row, turn) for turn in [*before, *turns]) if told else None
    return text, messages, answered


def _joined(row: Row, columns: _Columns, column: str, value: object) -> str:
    text = _checked_text(row, column, value)
    above = label(row, columns.above) if columns.above else None
    below = label(row, columns.below) if columns.below else None
    if below and len(below) >= _JOINED and below in text:
        below = None
    text = f"{above}{DIVIDER}{text}" if above else text
    return f"{text}{GAP}{below}" if below else text


def _before(row: Row, columns: _Columns, turns: Sequence[Turn]) -> list[Turn]:
    """The turns before those of the prompt's column: a system prompt, an earlier conversation."""
    system = label(row, columns.system) if columns.system else None
    earlier = _history(row, columns.history) if columns.history else []
    has_system = any(turn[0] in ("system", "developer") for turn in turns)
    if system and has_system:
        if any(turn[:2] == ("system", system) for turn in turns):
            return earlier
        row.fail(f"a system turn beside column {columns.system!r}; expected one of them, so leave one out")
    return [("system", system), *earlier] if system else earlier


def _history(row: Row, column: str) -> list[Turn]:
    """Earlier rounds as LLaMA-Factory writes them: pairs of what was asked and answered."""
    rounds = row.values.get(column)
    if isinstance(rounds, str) and rounds.strip():
        rounds = conversation(row, CONVERSATIONS[0], rounds)
    turns: list[Turn] = []
    for number, pair in enumerate(rounds if isinstance(rounds, list) else [], start=1):
        if not (
            isinstance(pair, (list, tuple)) and len(pair) == 2 and all(isinstance(part, str) for part in pair)
        ):
            row.fail(
                f"column {column!r}, round {number}: expected a pair of texts, what was asked and answered"
            )
        turns += [("user", pair[0]), ("assistant", pair[1])]
    return turns


def _checked_turn(row: Row, turn: Turn) -> Turn:
    return (turn[0], *(checked_unicode(row, text) for text in turn[1:]))


def _checked_text(row: Row, column: str, value: object) -> str:
    place = f" in column {column!r}" if column else ""
    if not _filled(value):
        row.fail(f"empty prompt{place}; give it a text or delete the row")
    if not isinstance(value, str):
        row.fail(f"{type(value).__name__} where a prompt was expected{place}; write it as text")
    return checked_unicode(row, value)


def checked_unicode(row: Row, text: str) -> str:
    """The text. Raises InputError for half a surrogate pair, which no tokenizer takes."""
    if _SURROGATE.search(text):
        row.fail("half a surrogate pair (\\ud800 to \\udfff) is not a character; write the text as UTF-8")
    return text


def _filled(value: object) -> bool:
    if isinstance(value, str):
        return bool(value.strip())
    return not (value is None or value != value or value == [])


def label(row: Row, column: str) -> str | None:
    """A row's id, set, pair, category or context as text; ``None`` if empty.

    Lists and objects are JSON, but an object of true and false (BeaverTails' categories) is the names that hold.
    """
    value = row.values.get(column)
    if isinstance(value, float):
        # A column of whole numbers with gaps is stored as floats, gaps as NaN.
        value = None if value != value else int(value) if value.is_integer() else value
    if isinstance(value, Mapping) and value and all(isinstance(flag, bool) for flag in value.values()):
        value = ", ".join(str(name) for name, flag in value.items() if flag)
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return checked_unicode(row, text) if text.strip() else None
