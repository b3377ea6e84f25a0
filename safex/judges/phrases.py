"""The phrase lists of data/judges/refusals.json as patterns, and a user's own phrases."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from safex.errors import InputError

from .matching import Phrasebook
from .text import long_forms, plain

DATA = Path(__file__).parent.parent / "data" / "judges"
_OF_SYSTEMS = ("meta", "system_nouns", "system_states", "system_words")
EXPECTED = "expected one phrase a line (# begins a comment), or a JSON list of phrases"


@dataclass(frozen=True)
class Phrases:
    """The phrase lists as patterns; what each list means stands in data/judges/README.md."""

    filler: re.Pattern[str]
    no: re.Pattern[str]
    apology: re.Pattern[str]
    persona: re.Pattern[str]
    compliance: re.Pattern[str]
    clause: Phrasebook
    bare_clause: re.Pattern[str]
    curt: re.Pattern[str]
    lecture: re.Pattern[str]
    lecture_turn: re.Pattern[str]
    idiom: re.Pattern[str]
    talk: re.Pattern[str]
    moral: re.Pattern[str]
    mention: re.Pattern[str]
    own_words: re.Pattern[str]
    late_not: re.Pattern[str]
    prelude: re.Pattern[str]
    denial: re.Pattern[str]
    asked: re.Pattern[str]
    wanted: re.Pattern[str]
    late: Phrasebook
    aside: re.Pattern[str]
    withdrawal: re.Pattern[str]
    meta: frozenset[str]
    meta_late: frozenset[str]
    system: frozenset[str]
    system_nouns: frozenset[str]
    system_states: frozenset[str]
    unfinished: frozenset[str]


@cache
def phrases() -> Phrases:
    """The shipped lists, read once."""
    lists = json.loads((DATA / "refusals.json").read_text(encoding="utf-8"))
    names = {name: _any(lists[name]) for name in ("rules", "things", "requested", "wanted", "goods")}
    names["adverbs"] = rf"(?:[\s,]+{_any(lists['adverbs'])})*"
    known = {name: _any(_named(texts, names)) for name, texts in lists.items() if name != "comment"}
    act = rf"{names['adverbs']},?\s+{known['acts']}"
    subject_and_head = rf"{known['subjects']}{names['adverbs']}\s+{known['heads']}"
    return Phrases(
        filler=re.compile(known["fillers"]),
        no=re.compile(known["noes"]),
        apology=re.compile(known["apologies"]),
        persona=re.compile(known["personas"]),
        compliance=re.compile(known["compliances"]),
        clause=Phrasebook([f"{subject_and_head}{act}", *_named(lists["whole"], names)]),
        bare_clause=re.compile(known["bare_heads"] + act),
        curt=re.compile(rf"(?:{known['curt']}|{subject_and_head})(?=\s*(?:[.!;]|$))"),
        lecture=re.compile(known["lectures"]),
        lecture_turn=re.compile(_beginning(lists["lecture_turns"])),
        idiom=re.compile(known["idioms"]),
        talk=re.compile(_beginning(lists["talk"])),
        moral=re.compile(_beginning(lists["morals"])),
        mention=re.compile(known["mentions"] + r"[\s:,\"'-]*$"),
        own_words=re.compile(known["own_words"]),
        late_not=re.compile(rf"\s*(?:you )?{known['late_not']}"),
        prelude=re.compile(_beginning(lists["prelude"])),
        denial=re.compile(known["denials"]),
        asked=re.compile(known["asked"]),
        wanted=re.compile(known["wanted"]),
        late=Phrasebook(_named(lists["late"], names)),
        aside=re.compile(known["asides"]),
        withdrawal=re.compile(known["withdrawals"]),
        meta=frozenset(lists["meta"]),
        meta_late=frozenset((*lists["meta"], *lists["meta_late"])),
        system=frozenset(word for name in _OF_SYSTEMS for word in lists[name]),
        system_nouns=frozenset(lists["system_nouns"]),
        system_states=frozenset(lists["system_states"]),
        unfinished=frozenset(lists["unfinished"]),
    )


def _named(texts: Sequence[str], names: Mapping[str, str]) -> list[str]:
    """The phrases with ``{name}`` replaced."""
    for name, pattern in names.items():
        texts = [text.replace(f"{{{name}}}", pattern) for text in texts]
    return list(texts)


def _any(alternatives: Sequence[str]) -> str:
    """Any of the phrases as whole words, the longest first."""
    return r"\b(?:" + "|".join(sorted(alternatives, key=len, reverse=True)) + r")(?!\w)"


def _beginning(alternatives: Sequence[str]) -> str:
    """Any of the phrases at the beginning of a sentence."""
    return "(?:" + "|".join(alternatives) + ")"


def own_phrases(texts: Sequence[str]) -> re.Pattern[str] | None:
    """A user's refusal phrases as one pattern for plain text; None without any. Raises InputError.

    >>> own_phrases(["That isn't on our menu"]).search("sorry! that is not on our menu today.")[0]
    'that is not on our menu'
    """
    known = [long_forms(plain(text)) for text in texts]
    for text, phrase in zip(texts, known, strict=True):
        if sum(map(str.isalnum, phrase)) < 2:
            raise InputError(f"refusal phrase {text!r} holds no words; expected such as 'not on our menu'")
    if not known:
        return None
    longest_first = sorted(set(known), key=len, reverse=True)
    return re.compile(r"(?<!\w)(?:" + "|".join(map(re.escape, longest_first)) + r")(?!\w)")


def read_phrases(path: str | os.PathLike[str]) -> list[str]:
    """The refusal phrases in a file: one a line, or a JSON list. Raises InputError: path, what is wrong."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        what = error.strerror if isinstance(error, OSError) else "is no UTF-8 text"
        raise InputError(f"{path}: refusal phrases can't be read: {what}; {EXPECTED}") from None
    found = _json_list(path, text) if text.lstrip().startswith("[") else _lines(text)
    if not found:
        raise InputError(f"{path}: holds no refusal phrase; {EXPECTED}")
    try:
        own_phrases(found)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return found


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip() and not line.lstrip().startswith("#")]


def _json_list(path: str | os.PathLike[str], text: str) -> list[str]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        raise InputError(f"{path}: begins as a JSON list, but is none; {EXPECTED}") from None
    if not all(isinstance(phrase, str) for phrase in value):
        raise InputError(f"{path}: its list holds something that is no text; {EXPECTED}")
    return [phrase.strip() for phrase in value if phrase.strip()]
