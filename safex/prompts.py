"""Prompts in named sets: from lists, from prompt files as published, or from the sets that ship here."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, overload

from safex.errors import InputError
from safex.prompt_files import Layout, Row, Table, choose_layout, read_table, shown

Messages = tuple[
    Any, ...
]  # turns: (role, content), or objects with tool calls and what else a template knows

DEFAULT_SET = "prompts"
SETS = ("regular", "jailbreak", "benign")
_BUNDLED = {"default": "prompts", "demo": "demo"}
_DATA = Path(__file__).parent / "data"
_SURROGATE = re.compile("[\ud800-\udfff]")
_SET_AND_FILE = re.compile(r"([A-Za-z0-9_-]+)=(.*)", re.DOTALL)


@dataclass(frozen=True)
class Prompt:
    """One prompt: the user's ``text``, the name of its ``set``, and an ``id`` unique within that set.

    ``pair`` joins twins of different sets: a plain request, its disguise, its harmless look-alike.
    ``messages`` holds the chat turns ``(role, content)`` where the file had turns; ``text`` is then the
    last user turn. In Python a content may also be a list of parts or None, and a turn an object such as
    ``{"role": "assistant", "content": None, "tool_calls": [...]}``.
    """

    text: str
    set: str
    id: str
    pair: str | None = None
    category: str | None = None
    messages: Messages | None = None


def evenly_spaced(sets: Sequence[str], n: int) -> list[int]:
    """Places of at most ``n`` prompts of each set, set by set.

    >>> evenly_spaced(["a", "a", "b", "a", "a"], 2)
    [0, 3, 2]
    """
    kept: list[int] = []
    for name in dict.fromkeys(sets):
        of_set = [place for place, its in enumerate(sets) if its == name]
        size = min(n, len(of_set))
        kept += [of_set[i * len(of_set) // size] for i in range(size)]
    return kept


class PromptSet(Sequence[Prompt]):
    """An ordered, immutable list of prompts; ids are unique within each set (else :class:`InputError`).

    >>> foxes = PromptSet.of(["What is a fox?", "Where do foxes live?"], set="benign")
    >>> (foxes + PromptSet.of(["How do I forge a ticket?"], set="regular")).ids
    ['benign-0000', 'benign-0001', 'regular-0000']
    """

    def __init__(self, prompts: Iterable[Prompt] = ()) -> None:
        """Keep ``prompts`` in order; raise :class:`InputError` if an id occurs twice in a set."""
        self._prompts = tuple(prompts)
        _check_ids((prompt, f"prompt {number}") for number, prompt in enumerate(self._prompts, start=1))

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], set: str | None = None, column: str | None = None
    ) -> PromptSet:
        """Read a prompt file: txt (a prompt a line), csv, tsv, json or jsonl (each also .gz), or parquet.

        The prompt stands in ``column``, or in the first of ``TEXT_COLUMNS`` that the file has. Headers of
        published benchmarks (``LAYOUTS``) are recognised: JailbreakBench's request is its ``Goal``, not its
        ``Behavior`` (a title); a HarmBench context goes before its behavior, divided by ``---``, as
        HarmBench itself sends it. XSTest and WildGuardTest mix safe and unsafe prompts and come whole.
        Files of bare strings have no columns and ignore ``column``. A value that is a list of ``{"role",
        "content"}`` turns gives ``messages``.

        ``set`` names all prompts; only with ``set=None`` does a row's own ``set`` count, and ``"prompts"``
        where it has none. Without an ``id``, a row gets ``{set}-{row:04d}``, rows counted from 0.

        Raises :class:`InputError` if the file is missing, broken, not UTF-8 or without a usable column, if
        a row has no prompt, or if an id occurs twice in a set.

        >>> PromptSet.load(_DATA / "prompts" / "regular.jsonl")
        PromptSet(regular: 100)
        """
        return cls(_prompts_of(read_table(Path(path)), set, column))

    @classmethod
    def of(cls, texts: Iterable[str], set: str = DEFAULT_SET) -> PromptSet:
        """Prompts from plain strings, ids ``{set}-{row:04d}``.

        >>> PromptSet.of(["one", "two"]).ids
        ['prompts-0000', 'prompts-0001']
        """
        if isinstance(texts, str):
            raise InputError('PromptSet.of takes a list of strings, not one string; write ["..."]')
        source = Path("PromptSet.of")
        rows = [Row(source, f"prompt {number}", {"": text}) for number, text in enumerate(texts, start=1)]
        return cls(_prompts_of(Table(source, (), rows), set, None))

    def limited(self, n: int | None) -> PromptSet:
        """At most ``n`` prompts of each set (None: all), evenly spaced: twins of sets in one order stay together.

        >>> PromptSet.of(["one", "two", "three", "four"]).limited(2).texts
        ['one', 'three']
        """
        return self if n is None else PromptSet([self[row] for row in evenly_spaced(self.sets, n)])

    @classmethod
    def concat(cls, parts: Iterable[PromptSet]) -> PromptSet:
        """All prompts of ``parts`` in order; default ids that would occur twice in a set are numbered on.

        >>> PromptSet.concat([PromptSet.of(["one"]), PromptSet.of(["two"])]).ids
        ['prompts-0000', 'prompts-0001']
        """
        joined: list[Prompt] = []
        taken: set[tuple[str, str]] = set()
        for part in parts:
            for row, prompt in enumerate(part):
                if (prompt.set, prompt.id) in taken and prompt.id == _default_id(prompt.set, row):
                    prompt = replace(prompt, id=_default_id(prompt.set, len(joined)))
                taken.add((prompt.set, prompt.id))
                joined.append(prompt)
        return cls(joined)

    @classmethod
    def default(cls) -> PromptSet:
        """The sets for real models that ship with safex: 100 regular, 100 jailbreak and 100 benign prompts.

        >>> PromptSet.default()
        PromptSet(regular: 100, jailbreak: 100, benign: 100)
        """
        return cls.bundled("default")

    @classmethod
    def bundled(cls, name: str) -> PromptSet:
        """The three shipped sets of a name: ``"default"`` for real models, ``"demo"`` for the demo models."""
        if name not in _BUNDLED:
            raise InputError(f"no bundled prompts {name!r}; expected one of {shown(_BUNDLED)}")
        folder = _DATA / _BUNDLED[name]
        return cls.concat(cls.load(folder / f"{one}.jsonl", set=one) for one in SETS)

    @property
    def texts(self) -> list[str]:
        """The prompts' texts."""
        return [prompt.text for prompt in self._prompts]

    @property
    def sets(self) -> list[str]:
        """The set name of each prompt."""
        return [prompt.set for prompt in self._prompts]

    @property
    def ids(self) -> list[str]:
        """The id of each prompt, unique within its set."""
        return [prompt.id for prompt in self._prompts]

    @property
    def pairs(self) -> list[str | None]:
        """The pair id of each prompt, the same for twins; ``None`` without one."""
        return [prompt.pair for prompt in self._prompts]

    @property
    def categories(self) -> list[str | None]:
        """The category of each prompt; ``None`` without one."""
        return [prompt.category for prompt in self._prompts]

    @cached_property
    def hash(self) -> str:
        """SHA-256 (hex) over the canonical JSON of all prompts and all their fields, in order."""
        data = json.dumps([vars(prompt) for prompt in self._prompts], sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(data.encode("ascii")).hexdigest()

    def __len__(self) -> int:
        """Number of prompts."""
        return len(self._prompts)

    def __iter__(self) -> Iterator[Prompt]:
        """Go over the prompts in order."""
        return iter(self._prompts)

    @overload
    def __getitem__(self, index: int) -> Prompt: ...
    @overload
    def __getitem__(self, index: slice) -> PromptSet: ...
    def __getitem__(self, index: int | slice) -> Prompt | PromptSet:
        """One prompt, or the PromptSet of a slice."""
        return PromptSet(self._prompts[index]) if isinstance(index, slice) else self._prompts[index]

    def __add__(self, other: object) -> PromptSet:
        """Join two sets as :meth:`concat` does."""
        return PromptSet.concat([self, other]) if isinstance(other, PromptSet) else NotImplemented

    def __eq__(self, other: object) -> bool:
        """Whether both hold equal prompts in the same order."""
        return self._prompts == other._prompts if isinstance(other, PromptSet) else NotImplemented

    def __hash__(self) -> int:
        """Python's hash; :attr:`hash` is the one that lasts."""
        return hash(self._prompts)

    def __repr__(self) -> str:
        """The number of prompts in each set."""
        counts = ", ".join(f"{name}: {count}" for name, count in Counter(self.sets).items())
        return f"PromptSet({counts})"


def parse_prompt_arguments(arguments: Sequence[str], column: str | None = None) -> PromptSet:
    """The prompts of repeated ``SET=FILE`` arguments in order; ``FILE`` alone needs a ``set`` column.

    The part before the first ``=`` is a set name only if it is a plain word of letters, digits, ``_`` and
    ``-``; so a file ``a=b.txt`` is written ``./a=b.txt``. Raises :class:`InputError` as
    :meth:`PromptSet.load` does.

    >>> parse_prompt_arguments([f"harmless={_DATA}/prompts/benign.jsonl"])
    PromptSet(harmless: 100)
    """
    return PromptSet.concat(_load_argument(argument, column) for argument in arguments)


def _load_argument(argument: str, column: str | None) -> PromptSet:
    match = _SET_AND_FILE.fullmatch(argument)
    name, file = match.groups() if match else (None, argument)
    if not file:
        raise InputError(f"prompts {argument!r} name no file; expected SET=FILE, as in regular=prompts.csv")
    table = read_table(Path(file))
    for row in table.rows if name is None else ():
        if _label(row, "set") is None:
            row.fail(f"no set is named, here or in a column 'set'; write SET=FILE, as in regular={file}")
    return PromptSet(_prompts_of(table, name, column))


def _default_id(set_name: str, row: int) -> str:
    return f"{set_name}-{row:04d}"


def _prompts_of(table: Table, set_name: str | None, column: str | None) -> list[Prompt]:
    layout = choose_layout(table, column)
    prompts = [_prompt(row, index, layout, set_name) for index, row in enumerate(table.rows)]
    places = [row.where for row in table.rows]
    _check_ids(zip(prompts, places, strict=True), str(table.path))
    return prompts


def _check_ids(prompts: Iterable[tuple[Prompt, str]], source: str = "prompts") -> None:
    first: dict[tuple[str, str], str] = {}
    for prompt, where in prompts:
        earlier = first.setdefault((prompt.set, prompt.id), where)
        if earlier != where:
            what = f"id {prompt.id!r} occurs twice in set {prompt.set!r}, at {earlier} and {where}"
            raise InputError(f"{source}: {what}; ids must be unique within a set, so rename one")


def _prompt(row: Row, index: int, layout: Layout, set_name: str | None) -> Prompt:
    text, messages = _content(row, layout)
    name = set_name or _label(row, "set") or DEFAULT_SET
    return Prompt(
        text=text,
        set=name,
        id=_label(row, layout.id) or _default_id(name, index),
        pair=_label(row, "pair"),
        category=_label(row, layout.category),
        messages=messages,
    )


def _content(row: Row, layout: Layout) -> tuple[str, Messages | None]:
    """A row's text, its HarmBench context before it, and its chat turns if the column holds turns."""
    value, messages = row.values.get(layout.text), None
    if layout.text == "messages" and isinstance(value, str):
        value = _turns_from_text(row, value)
    if isinstance(value, list):
        messages = _messages(row, value)
        value = next((content for role, content in reversed(messages) if role == "user"), None)
        if value is None:
            row.fail("chat turns without a user turn; expected at least one with role 'user'")
    text = _checked_text(row, layout.text, value)
    context = _label(row, layout.context) if layout.context else None
    return (f"{context}\n\n---\n\n{text}" if context else text), messages


def _checked_text(row: Row, column: str, value: object) -> str:
    place = f" in column {column!r}" if column else ""
    if value is None or (isinstance(value, str) and not value.strip()):
        row.fail(f"empty prompt{place}; give it a text or delete the row")
    if not isinstance(value, str):
        row.fail(f"{type(value).__name__} where a prompt was expected{place}; write it as text")
    return _checked_unicode(row, value)


def _checked_unicode(row: Row, text: str) -> str:
    if _SURROGATE.search(text):
        row.fail("half a surrogate pair (\\ud800 to \\udfff) is not a character; write the text as UTF-8")
    return text


def _turns_from_text(row: Row, text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        row.fail("column 'messages' is not JSON; expected a list of chat turns")


def _messages(row: Row, turns: list[object]) -> Messages:
    messages: list[tuple[str, str]] = []
    for number, turn in enumerate(turns, start=1):
        role, content = (turn.get("role"), turn.get("content")) if isinstance(turn, dict) else (None, None)
        if not isinstance(role, str) or not isinstance(content, str):
            row.fail(f"chat turn {number} is not {{'role': text, 'content': text}}; write every turn so")
        messages.append((role, _checked_unicode(row, content)))
    return tuple(messages)


def _label(row: Row, column: str) -> str | None:
    """A row's id, set, pair, category or context as text (lists and objects as JSON); ``None`` if empty."""
    value = row.values.get(column)
    if isinstance(value, float):
        # A column of whole numbers with gaps is stored as floats, gaps as NaN.
        value = None if value != value else int(value) if value.is_integer() else value
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value, default=str)
    return _checked_unicode(row, text) if text.strip() else None
