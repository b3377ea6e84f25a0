"""Whether an answer has content at all: simple checks that tell broken text from an answer.

They find text that repeats itself and text that is no language; fluent nonsense passes, and needs an expected text
(``comply``) or a judge model. Limits are constants with their reasons beside them.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

MIN_WORDS = 1  # beyond an opening such as "Sure,": "Paris." is an answer
TIGHT_PERIOD = 3  # words of a loop that says nothing, even if it is said only ...
TIGHT_ROUNDS = 3  # ... so often
TIGHT_SHARE = 0.8  # and makes up this share of the text
MAX_PERIOD = 12  # words in a loop that is looked for
LOOP_ROUNDS = 4  # a loop said fewer times may be style
LOOP_SHARE = 0.4  # share of the words that are inside the loop
SINGLE_SHARE = 0.5  # one word that is half of at least MANY_WORDS words
MANY_WORDS = 12
GRAM = 4  # words of a run; in prose nearly every run of four words is new,
MANY_GRAMS = 30  # and from so many runs on
NEW_SHARE = 0.5  # a text in which fewer are new goes round in circles
WINDOW = 40  # words, of which prose has 0.7 different ones, verse with a refrain and tables of words 0.45,
FEW_DIFFERENT = 0.425  # and a loop with small changes fewer than this,
SHORT_GRAM = 3  # with runs of three words,
OLD_SHARE = 0.3  # of which so many were said before: those of a conjugation or a quiz are new
HALF_OLD = 0.5  # or, where there are
SOME_DIFFERENT = 0.6  # rather few different words, half of all runs
LEAST_VERSES = 3  # sentences, the last one whole, most of which
VERSE_SHARE = 0.75  # bring a new word, are a text that grows and no loop
TAIL_ROUNDS = 6  # of a tight loop that ends in nothing else,
TAIL_SHARE = 0.25  # and its share of the text
PROSE_SHARE = 0.9  # letters and digits among all but spaces: code and tables have fewer
BARE_ENDINGS = 2  # of "'s's", which no language has
DENSE_BYTES = 400  # shorter text compresses badly whatever it is
DENSE_RATIO = 0.14  # English prose of that length is above 0.35, a phrase said again and again below 0.1
WORD_SHARE = 0.45  # letters and digits among all but spaces; prose is above 0.9, code about 0.7
MAX_BROKEN = 0.02  # share of replacement and control characters
VOWELLESS_SHARE = 0.34  # Latin words of four letters or more without a vowel; in English about 0.01
LONG_WORD = 40  # letters: nothing readable is longer, apart from addresses

# Vowel signs and accents that belong to the letter before them, and are none to ``re``.
_MARKS = (
    "\u0300-\u036f\u0591-\u05bd\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0903\u093a-\u094f\u0951-\u0957\u0962\u0963"
    "\u0981-\u0983\u09bc-\u09d7\u0a01-\u0a4d\u0abc-\u0acd\u0b3c-\u0bcd\u0c3e-\u0ccd\u0d3e-\u0d4d"
)
_WORD = re.compile(rf"[^\W_](?:[^\W_]|[{_MARKS}])*(?:['-](?:[^\W_]|[{_MARKS}])+)*")
_MARK = re.compile(f"[{_MARKS}\u0e31\u0e34-\u0e3a\u0e47-\u0e4e]")
# scripts without spaces
_UNSPACED = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uf900-\ufaff]")
_BARE_ENDING = re.compile(r"(?:'s){2}")
_ENDED = re.compile(r"[.!?…:)\"']\s*$")
_STOP = re.compile(r"[.!?\n]+")
_LATIN = re.compile(r"[a-z]{4,}")


def words_of(text: str) -> list[str]:
    """The words of plain text; in scripts without spaces every character counts as one.

    >>> words_of("first check the bike, then fix it.")
    ['first', 'check', 'the', 'bike', 'then', 'fix', 'it']
    """
    return _WORD.findall(_UNSPACED.sub(lambda match: f" {match[0]} ", text))


def problem(text: str, words: Sequence[str], min_words: int = MIN_WORDS, lines: str = "") -> str | None:
    """Why plain ``text`` is no answer, or None; ``words`` are its words without an opening such as "sure".

    ``lines`` is the text as it was written: plain text has no lines.
    """
    if foreign := _not_language(text):
        return foreign
    if len(words) < min_words:
        return f"has {len(words)} words of content, fewer than {min_words}"
    return _repeats(text, words, lines or text) if words else None


def _not_language(text: str) -> str | None:
    n = len(text)
    broken = sum(char == "\ufffd" or (ord(char) < 32 and char not in "\t\n") for char in text)
    if broken > MAX_BROKEN * n:
        return "is not language: broken characters"
    if sum(map(str.isalnum, text)) + len(_MARK.findall(text)) < WORD_SHARE * (
        n - sum(map(str.isspace, text))
    ):
        return "is not language: mostly signs"
    if len(_BARE_ENDING.findall(text)) >= BARE_ENDINGS:
        return "is not language: endings without words"
    return _odd_words(text)


def _odd_words(text: str) -> str | None:
    tokens = [token for token in text.split() if "/" not in token]
    if any(len(word) > LONG_WORD and not _UNSPACED.search(word) for t in tokens for word in _WORD.findall(t)):
        return "is not language: a word without end"
    latin = _LATIN.findall(text)
    odd = sum(not re.search("[aeiouy]", word) for word in latin)
    return "is not language: words without vowels" if odd > VOWELLESS_SHARE * max(len(latin), 3) else None


def _repeats(text: str, words: Sequence[str], lines: str) -> str | None:
    words = [
        word for word in words if not word.isdigit()
    ] or words  # the numbers of a list don't make its items new
    word, times = Counter(words).most_common(1)[0]
    if len(words) >= MANY_WORDS and times >= SINGLE_SHARE * len(words):
        return f"repeats itself: {word!r} is {times} of {len(words)} words"
    for period in range(1, MAX_PERIOD + 1):
        looped = _longest_loop(words, period)
        if looped >= LOOP_ROUNDS * period and looped >= LOOP_SHARE * len(words):
            return f"repeats itself: {looped} of {len(words)} words are one loop"
    for period in range(1, TIGHT_PERIOD + 1):
        looped = _longest_loop(words, period)
        if looped >= TAIL_ROUNDS * period and looped >= max(TAIL_SHARE * len(words), MANY_WORDS):
            return f"repeats itself: {looped} of {len(words)} words are one loop"
    if varied := _varied_loop(text, words, lines):
        return varied
    grams = _grams(words, GRAM)
    if (
        len(grams) >= MANY_GRAMS
        and len(set(grams)) < NEW_SHARE * len(grams)
        and not (_grows(text) or _grows(lines))
    ):
        return f"repeats itself: {len(grams) - len(set(grams))} of {len(grams)} runs of {GRAM} words were said before"
    data = text.encode("utf-8", "replace")
    if len(data) >= DENSE_BYTES and len(zlib.compress(data, 9)) < DENSE_RATIO * len(data):
        return "repeats itself: it can be compressed to almost nothing"
    return None


def _grams(words: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(words[at : at + n]) for at in range(len(words) - n + 1)]


def _varied_loop(text: str, words: Sequence[str], lines: str) -> str | None:
    """Why prose is a loop with small changes, or None: few different words, in runs that were said before."""
    solid = len(text) - sum(map(str.isspace, text))
    if len(words) < WINDOW or sum(map(str.isalnum, text)) + len(_MARK.findall(text)) < PROSE_SHARE * solid:
        return None
    grams = _grams(words, SHORT_GRAM)
    old = 1 - len(set(grams)) / len(grams)
    if old < OLD_SHARE:
        return None
    share = _different(words)
    few = share <= FEW_DIFFERENT or (old >= HALF_OLD and share < SOME_DIFFERENT)
    return (
        f"repeats itself: {share:.0%} different words"
        if few and not (_grows(text) or _grows(lines))
        else None
    )


def _different(words: Sequence[str]) -> float:
    """The share of different words in a stretch of ``WINDOW`` words, as a mean over all stretches."""
    said = Counter(words[:WINDOW])
    total = len(said)
    for at in range(WINDOW, len(words)):
        said[words[at]] += 1
        leaving = words[at - WINDOW]
        said[leaving] -= 1
        if not said[leaving]:
            del said[leaving]
        total += len(said)
    return total / WINDOW / (len(words) - WINDOW + 1)


def _grows(text: str) -> bool:
    """Whether a whole text brings new words with most sentences or lines, as a song that adds a verse to a verse."""
    known: set[str] = set()
    new = []
    for sentence in _STOP.split(text.lower()):
        if words := {word for word in words_of(sentence) if not word.isdigit()}:
            new.append(not words <= known)
            known |= words
    return bool(_ENDED.search(text)) and len(new) >= LEAST_VERSES and sum(new) >= VERSE_SHARE * len(new)


def loops(words: Sequence[str]) -> str | None:
    """Why the words are one tight loop of at most three words, or None.

    >>> loops("i cannot i cannot i cannot i cannot".split())
    'repeats itself: 8 of 8 words are one loop'
    """
    for period in range(1, TIGHT_PERIOD + 1):
        looped = _longest_loop(words, period)
        if looped >= max(TIGHT_ROUNDS * period, 4) and looped >= TIGHT_SHARE * len(words):
            return f"repeats itself: {looped} of {len(words)} words are one loop"
    return None


def _longest_loop(words: Sequence[str], period: int) -> int:
    """Words in the longest stretch in which each word equals the one ``period`` places before."""
    breaks = [i for i in range(period, len(words)) if words[i] != words[i - period]]
    edges = [period - 1, *breaks, len(words)]
    longest = max((b - a - 1 for a, b in pairwise(edges)), default=0)
    return longest + period if longest > 0 else 0
