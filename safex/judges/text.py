"""Answers made comparable: markup, quotes, case and short forms made one."""

from __future__ import annotations

import re
import unicodedata

_SPECIAL = re.compile(r"<\|[^|<>\n]{1,40}\|>(?:assistant\b)?|</?s>")

_SAME = str.maketrans(
    {
        **dict.fromkeys("‘’‛′ʼ`´", "'"),
        **dict.fromkeys("“”„‟″«»", '"'),
        **dict.fromkeys("‐‑‒–—―", "-"),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff\u00ad"),
        **dict.fromkeys(map(chr, range(0x64B, 0x653))),  # Arabic vowel signs
    }
)
_LINE_MARKS = re.compile(r"^[ \t]*(?:#{1,6}[ \t]+|>[ \t]?|[-+*•][ \t]+)", re.MULTILINE)
_INLINE_MARKS = re.compile(r"\*+|~~|(?<!\w)_+|_+(?!\w)")
_TAGS = re.compile(r"</?[a-z][a-z0-9]{0,11}(?:\s[^<>]{0,80})?/?>")

# Short forms, with and without their apostrophe, and what they stand for.
_SHORT_FORMS: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), full)
    for pattern, full in (
        (r"\bcan'?t\b|\bcan not\b", "cannot"),
        (r"\bwon'?t\b", "will not"),
        (r"\bshan'?t\b", "shall not"),
        (r"\b(is|are|was|do|does|did|would|should|could|must|has|have|had|need|might|ought)n't\b", r"\1 not"),
        (r"\b(is|are|was|do|does|did|would|should|could)nt\b", r"\1 not"),
        (r"\bi'?m\b", "i am"),
        (r"\blet's\b", "let us"),
        (r"\bain't\b", "is not"),
        (r"\b(we|you|they)'re\b", r"\1 are"),
        (r"\b(it|that|there|here|what)'s\b", r"\1 is"),
        (r"\b(i|we|you|they)'d\b", r"\1 would"),
        (r"\b(i|we|you|they|it|that|this|there|what|who)'ll\b", r"\1 will"),
        (r"\b(i|we|you|they)'ve\b", r"\1 have"),
    )
)


def plain(text: str) -> str:
    """Lower case without markup, quotes and apostrophes of one kind, every run of white space one space.

    >>> plain("**I’m** _sorry_,\\n> but   I can’t")
    "i'm sorry, but i can't"
    """
    text = unicodedata.normalize("NFKC", text).translate(_SAME).lower().replace("i\u0307", "i")
    for marks in (_SPECIAL, _TAGS, _LINE_MARKS, _INLINE_MARKS):
        text = marks.sub("", text)
    return " ".join(text.split())


def long_forms(text: str) -> str:
    """Plain text with short forms written out, so that phrase lists need one spelling.

    >>> long_forms("i'm sorry, but i can't and won't")
    'i am sorry, but i cannot and will not'
    """
    for pattern, full in _SHORT_FORMS:
        text = pattern.sub(full, text)
    return text
