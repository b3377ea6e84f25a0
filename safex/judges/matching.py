"""Many phrases searched at once: at each word only those that can begin with it are tried.

Python's ``re`` tries all alternatives of a long list at every place of a text; with some hundred phrases that takes
longer than everything else the judge does. The first words of a phrase are read off its parsed pattern.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from re import Match, Pattern
from typing import Any

try:
    from re import _parser as parser  # type: ignore[attr-defined,unused-ignore]  # Python 3.11 and later
except ImportError:
    import sre_parse as parser  # type: ignore[no-redef,unused-ignore]

_WORD = re.compile(r"\w+")
MOST_CHARACTERS = 8  # of a set such as [sz] that is written out


class WildcardError(ValueError):
    """A pattern may begin with any word."""


class Phrasebook:
    """Patterns of phrases, by the words that they begin with; they match whole words."""

    def __init__(self, patterns: Sequence[str]) -> None:
        """Raises WildcardError for a pattern whose first word can be anything."""
        self._sources: dict[str, list[str]] = defaultdict(list)
        self._compiled: dict[str, Pattern[str]] = {}
        for pattern in patterns:
            for word in first_words(pattern):
                self._sources[word].append(pattern)

    def finditer(self, text: str, start: int = 0) -> Iterator[Match[str]]:
        """Every place from ``start`` on where a phrase begins, with its longest pattern's match."""
        for word in _WORD.finditer(text, start):
            if (pattern := self._beginning_with(word[0])) and (found := pattern.match(text, word.start())):
                yield found

    def match(self, text: str) -> Match[str] | None:
        """A phrase at the beginning of the text."""
        word = _WORD.match(text)
        pattern = self._beginning_with(word[0]) if word else None
        return pattern.match(text) if pattern else None

    def _beginning_with(self, word: str) -> Pattern[str] | None:
        if word not in self._compiled:
            if word not in self._sources:
                return None
            longest_first = sorted(self._sources[word], key=len, reverse=True)
            self._compiled[word] = re.compile(rf"\b(?:{'|'.join(longest_first)})(?!\w)")
        return self._compiled[word]


def first_words(pattern: str) -> set[str]:
    """The words with which a match of a pattern can begin. Raises WildcardError where it can be any.

    >>> sorted(first_words(r"(i|we) (do|will) not", )), sorted(first_words(r"(the )?steps?"))
    (['i', 'we'], ['step', 'steps', 'the'])
    """
    begun, whole = _read(parser.parse(pattern), {""})
    if "" in begun | whole:
        raise WildcardError(f"pattern {pattern!r} may begin with any word")
    return begun | whole


def _read(nodes: Any, begun: set[str]) -> tuple[set[str], set[str]]:
    """Words that are still open behind some nodes of a parsed pattern, and those that have ended."""
    whole: set[str] = set()
    for op, value in nodes:
        if not begun:
            break
        begun, ended = _step(str(op), value, begun)
        whole |= ended
    return begun, whole


def _step(op: str, value: Any, begun: set[str]) -> tuple[set[str], set[str]]:
    if op == "LITERAL":
        return _letter(chr(value), begun)
    if op == "SUBPATTERN":
        return _read(value[-1], begun)
    if op == "BRANCH":
        return _either([_read(branch, begun) for branch in value[1]])
    if op in ("MAX_REPEAT", "MIN_REPEAT"):
        least, _, repeated = value
        return _repeated(repeated, begun, optional=least == 0)
    if op == "IN" and all(_ends_a_word(kind, char) for kind, char in value):
        return set(), begun
    if op == "IN" and len(value) <= MOST_CHARACTERS and all(str(kind) == "LITERAL" for kind, _ in value):
        return _either([_letter(chr(char), begun) for _, char in value])
    if op in ("AT", "ASSERT", "ASSERT_NOT"):
        return begun, set()
    raise WildcardError(f"a phrase may begin with any word ({op})")


def _repeated(nodes: Any, begun: set[str], optional: bool) -> tuple[set[str], set[str]]:
    """What may be left out is, where it can be any word: the match then begins behind it."""
    try:
        once = _read(nodes, begun)
    except WildcardError:
        if not optional:
            raise
        return begun, set()
    return _either([once, (begun, set())]) if optional else once


def _ends_a_word(kind: Any, char: Any) -> bool:
    if str(kind) == "LITERAL":
        return not (chr(char).isalnum() or chr(char) == "_")
    return str(char) in ("CATEGORY_SPACE", "CATEGORY_NOT_WORD")


def _letter(char: str, begun: set[str]) -> tuple[set[str], set[str]]:
    if char.isalnum() or char == "_":
        return {word + char for word in begun}, set()
    return set(), begun


def _either(results: Sequence[tuple[set[str], set[str]]]) -> tuple[set[str], set[str]]:
    return set().union(*(begun for begun, _ in results)), set().union(*(whole for _, whole in results))
