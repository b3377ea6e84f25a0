"""Prompts in named sets: from lists, from prompt files as published, or from the sets that ship here."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import overload

from safex.errors import InputError
from safex.prompt_files import Row, Table, read_table, shown
from safex.prompt_labels import check_where
from safex.prompt_reading import (
    DEFAULT_SET,
    Loaded,
    Messages,
    Prompt,
    check_ids,
    default_id,
    label,
    read_prompts,
)

__all__ = [
    "SETS",
    "Messages",
    "Prompt",
    "PromptSet",
    "evenly_spaced",
    "load_arguments",
    "parse_prompt_arguments",
]

SETS = ("regular", "jailbreak", "benign")
_BUNDLED = {"default": "prompts", "demo": "demo"}
_DATA = Path(__file__).parent / "data"
_SET_AND_FILE = re.compile(r"([A-Za-z0-9_-]+)=(.*)", re.DOTALL)


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

    def __init__(self, prompts: Iterable[Prompt] = (), notes: Iterable[str] = ()) -> None:
        """Keep ``prompts`` in order; raise :class:`InputError` if an id occurs twice in a set."""
        self._prompts = tuple(prompts)
        self.notes = tuple(notes)
        """What to know of the files that the prompts come from: rows and answers left out, columns not read."""
        check_ids((prompt, f"prompt {number}") for number, prompt in enumerate(self._prompts, start=1))

    @classmethod
    def load(
        cls,
        path: str | os.PathLike[str],
        set: str | None = None,
        column: str | None = None,
        where: str | Sequence[str] = (),
    ) -> PromptSet:
        """Read a prompt file: txt (a prompt a line), csv, tsv, json or jsonl (each also .gz), or parquet.

        The prompt stands in ``column``, or in the first of ``TEXT_COLUMNS`` that the file has. Headers of
        published benchmarks (``LAYOUTS``) are recognised: JailbreakBench's request is its ``Goal``, not its
        ``Behavior`` (a title); a HarmBench context goes before its behavior, divided by ``---``, as
        HarmBench itself sends it. Files of bare strings have no columns and ignore ``column``. A list of chat
        turns (``role`` and ``content``, or ShareGPT's ``from`` and ``value``) gives ``messages``, without the
        answer that it may end with; columns ``system``, ``context``, ``input`` and ``history`` are joined.

        ``set`` names all prompts; only with ``set=None`` does a row's own ``set`` count, and ``"prompts"``
        where it has none. Of a file whose labels mix safe and harmful prompts (XSTest, WildGuardTest, ...)
        set ``benign`` takes the safe ones, ``regular`` the harmful, ``jailbreak`` the disguised, and
        ``set=None`` sorts them into these; ``where`` (``"COLUMN=VALUE"``, or several) chooses rows for any
        other set. Without an ``id``, a row gets ``{set}-{row:04d}``, rows counted from 0. What was left out
        stands in ``notes``.

        Raises :class:`InputError` if the file is missing, broken, not UTF-8 or without a usable column, if
        a row has no prompt or more than text, if an id occurs twice in a set, or if it can't be told which
        rows of a mixed file the set means.

        >>> PromptSet.load(_DATA / "prompts" / "regular.jsonl")
        PromptSet(regular: 100)
        """
        table = read_table(Path(path))
        conditions = [where] if isinstance(where, str) else [*where]
        check_where(conditions, table.columns)
        loaded = read_prompts(table, set, column, conditions)
        return cls(loaded.prompts, loaded.notes)

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
        return cls(read_prompts(Table(source, (), rows), set).prompts)

    def limited(self, n: int | None) -> PromptSet:
        """At most ``n`` prompts of each set (None: all), evenly spaced: twins of sets in one order stay together.

        >>> PromptSet.of(["one", "two", "three", "four"]).limited(2).texts
        ['one', 'three']
        """
        if n is None:
            return self
        return PromptSet([self[row] for row in evenly_spaced(self.sets, n)], self.notes)

    @classmethod
    def concat(cls, parts: Iterable[PromptSet]) -> PromptSet:
        """All prompts of ``parts`` in order; default ids that would occur twice in a set are numbered on.

        >>> PromptSet.concat([PromptSet.of(["one"]), PromptSet.of(["two"])]).ids
        ['prompts-0000', 'prompts-0001']
        """
        joined: list[Prompt] = []
        notes: dict[str, None] = {}
        taken: set[tuple[str, str]] = set()
        for part in parts:
            notes |= dict.fromkeys(part.notes)
            for row, prompt in enumerate(part):
                if (prompt.set, prompt.id) in taken and prompt.id == default_id(prompt.set, row):
                    prompt = replace(prompt, id=default_id(prompt.set, len(joined)))
                taken.add((prompt.set, prompt.id))
                joined.append(prompt)
        return cls(joined, notes)

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


def parse_prompt_arguments(
    arguments: Sequence[str], column: str | None = None, where: Sequence[str] = ()
) -> PromptSet:
    """The prompts of repeated ``SET=FILE`` arguments in order; ``FILE`` alone needs a ``set`` column or labels.

    The part before the first ``=`` is a set name only if it is a plain word of letters, digits, ``_`` and
    ``-``; so a file ``a=b.txt`` is written ``./a=b.txt``. Raises :class:`InputError` as
    :meth:`PromptSet.load` does.

    >>> parse_prompt_arguments([f"harmless={_DATA}/prompts/benign.jsonl"])
    PromptSet(harmless: 100)
    """
    loaded = load_arguments(arguments, column, where)
    return PromptSet.concat(PromptSet(one.prompts, one.notes) for one in loaded)


def load_arguments(
    arguments: Sequence[str], column: str | None = None, where: Sequence[str] = ()
) -> list[Loaded]:
    """What each argument gave, with the rows that the prompts come from; see :func:`parse_prompt_arguments`."""
    named = [_named_file(argument) for argument in arguments]
    tables = [read_table(Path(file)) for _, file in named]
    check_where(where, (name for table in tables for name in table.columns))
    loaded = []
    for (name, file), table in zip(named, tables, strict=True):
        one = read_prompts(table, name, column, where)
        if name is None:
            _require_sets(one, file)
        loaded.append(one)
    return loaded


def _named_file(argument: str) -> tuple[str | None, str]:
    match = _SET_AND_FILE.fullmatch(argument)
    name, file = match.groups() if match else (None, argument)
    if not file:
        raise InputError(f"prompts {argument!r} name no file; expected SET=FILE, as in regular=prompts.csv")
    return name, file


def _require_sets(loaded: Loaded, file: str) -> None:
    """Refuse rows that neither name their set nor have a label."""
    for prompt, row in zip(loaded.prompts, loaded.rows, strict=True):
        if prompt.set == DEFAULT_SET and label(row, "set") is None:
            row.fail(f"no set is named, here or in a column 'set'; write SET=FILE, as in regular={file}")
