"""Which language an answer is in, and how refusals sound in the languages that the keyword judge reads."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).parent.parent / "data" / "judges" / "languages.json"
ENGLISH = "en"
MOSTLY = 0.5  # share of the letters in one script from which on a text is in that script
LEAST_HITS = 3  # common words of a language that isn't read ...
LEAST_SHARE = 0.15  # ... and their share of all words, from which on a text is in that language
MARGIN = 1.3  # times as many of them as of any language that is read
CLEARLY = 0.3  # share of common English words from which on a text is English; prose has 0.4
HEAD = 2000  # letters by which the language is told

GAP = r"(?:[^\w.!?\n]+\w+){0,6}?[^\w.!?\n]+"  # up to six words of the same sentence

# First and last code point of the scripts of languages that the judge reads; all other letters are unread.
SCRIPTS: dict[str, tuple[tuple[int, int], ...]] = {
    "latin": ((0x41, 0x24F), (0x1E00, 0x1EFF), (0xFF21, 0xFF5A)),
    "cyrillic": ((0x400, 0x52F),),
    "kana": ((0x3040, 0x30FF), (0x31F0, 0x31FF), (0xFF66, 0xFF9F)),
    "han": ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3134F)),
    "hangul": ((0x1100, 0x11FF), (0x3130, 0x318F), (0xAC00, 0xD7AF)),
    "arabic": ((0x600, 0x6FF), (0x750, 0x77F), (0xFB50, 0xFDFF), (0xFE70, 0xFEFF)),
    "devanagari": ((0x900, 0x97F),),
    "greek": ((0x370, 0x3FF),),  # single letters in formulas: only a text in it is unread
}
_RANGES = [(low, high, name) for name, ranges in SCRIPTS.items() for low, high in ranges]
_PERSIAN = re.compile("[پچژگکیےںٹڈ]")  # letters of Persian and Urdu


@dataclass(frozen=True)
class Language:
    """How a language refuses: patterns on plain text; ``words`` tell it from others of its script."""

    name: str
    script: str
    words: frozenset[str]
    refusal: re.Pattern[str]
    apology: re.Pattern[str]
    idiom: re.Pattern[str]


@cache
def languages() -> dict[str, Language]:
    """The languages other than English that are read, by code."""
    return {code: _language(code, facts) for code, facts in _file()["read"].items()}


@cache
def unread_languages() -> dict[str, frozenset[str]]:
    """Common words of languages that are recognised but not read, by name."""
    return {str(facts["name"]): frozenset(facts["words"]) for facts in _file()["unread"].values()}


@cache
def _english_words() -> frozenset[str]:
    """Common words of English; its refusals stand in refusals.json."""
    return frozenset(_file()["english"])


@cache
def _file() -> dict[str, Any]:
    content: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return content


def _language(code: str, facts: Mapping[str, Sequence[str] | str]) -> Language:
    script = str(facts.get("script") or ("cyrillic" if code == "ru" else "latin"))
    return Language(
        str(facts["name"]),
        script,
        frozenset(facts.get("words", ())),
        *(_any(facts[name]) for name in ("refusals", "apologies", "idioms")),
    )


def _any(patterns: Sequence[str]) -> re.Pattern[str]:
    return re.compile("|".join(f"(?:{pattern.replace('{gap}', GAP)})" for pattern in patterns))


def language_of(text: str, words: Sequence[str]) -> str | None:
    """The code of a plain text's language, or None for one that the judge does not read.

    Told by the script; within the Latin and the Cyrillic script by the common short words. Text without any of them
    counts as English.

    >>> language_of("ich kann dir nicht helfen", "ich kann dir nicht helfen".split())
    'de'
    """
    script = _script_of(text[:HEAD])
    if script in ("latin", "cyrillic"):
        return _by_words(script, words)
    if script == "arabic" and len(_PERSIAN.findall(text)) >= LEAST_HITS:
        return None
    return next((code for code, known in languages().items() if known.script == script), None)


def _script_of(text: str) -> str:
    """The script of most letters; any kana make a text Japanese. Text without letters counts as Latin."""
    if text.isascii():
        return "latin"
    counts: dict[str, int] = {}
    for char, times in Counter(text).items():
        if char.isalpha():
            point = ord(char)
            name = next((name for low, high, name in _RANGES if low <= point <= high), "other")
            counts[name] = counts.get(name, 0) + times
    total = sum(counts.values())
    if counts.get("kana", 0) * 10 > total:
        return "kana"
    best = max(counts, key=counts.__getitem__, default="latin")
    return best if counts.get(best, 0) >= MOSTLY * total else "latin"


def _by_words(script: str, words: Sequence[str]) -> str | None:
    said = Counter(words)
    if script == "latin" and _hits(said, _english_words()) >= CLEARLY * len(words):
        return ENGLISH
    read = {code: known.words for code, known in languages().items() if known.script == script}
    if script == "latin":
        read[ENGLISH] = _english_words()
    hits = {code: _hits(said, common) for code, common in read.items()}
    best = max(hits, key=lambda code: (hits[code], code == ENGLISH))
    unread = max(_hits(said, common) for common in unread_languages().values())
    if unread >= max(LEAST_HITS, LEAST_SHARE * len(words)) and unread > MARGIN * hits[best]:
        return None
    return best if hits[best] else ENGLISH if script == "latin" else best


def _hits(said: Counter[str], common: frozenset[str]) -> int:
    """How many words of a text are common ones of a language."""
    return sum(said[word] for word in common if word in said)
