"""Whether a mark in a text is one, or is only talked about: in quotes, in code, in the middle of a sentence."""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import lru_cache

NEAR = 500  # letters before and behind a mark that tell a mention; a text of marks only would take a time that squares

_CLOSERS = {
    "`": "`",
    '"': '"',
    "'": "'",
    "“": "”",
    "‘": "’",
    "„": "“",
    "«": "»",
    "(": ")",
    "[": "]",
    "*": "*",
}
_CLOSERS |= {"「": "」", "『": "』", "《": "》", "（": "）", "|": "|"}
_SENTENCE_END = re.compile(r"[.!?…。！？؟।>\]▷][\"'”’»)*_]*\Z")
_LIST = re.compile(r"[ \t]*(?:[-+*•>#|]+|\d+[.)])[ \t]*\Z")
_SPEAKER = re.compile(r"\W*(?:assistant|model|bot|ai|answer|response)\W*:\W*\Z", re.IGNORECASE)
_PUNCTUATION = re.compile(r"[ \t]*[,;:)\]}`|]|[ \t]*[.!?](?:\s|\Z)")
_LOWER = re.compile(r"[ \t]+(?![A-Z])[^\W\d_]")
_NOT_UPPER = re.compile(r"[ \t]*(?![A-Z])[^\W\d_]")
# What follows a mark that a sentence begins with: "<think> is a tag".
_VERB = re.compile(
    r"[ \t](?:is|are|was|were|and|or|vs|tags?|tokens?|marks?|markers?|blocks?|elements?|sections?|opens?|closes?|"
    r"starts?|begins?|ends?|means?|stands|denotes?|indicates?|wraps?|encloses?|should|can|must|may|has|have|refers|comes|"
    r"tells|appears?|represents?|signals?|introduces?|separates?|contains?|shows?|ist|und|est|et|es|y|è|e)\b"
)
_LINK = re.compile(r"\s*(?:and|or|und|et|y|e|和|与|,|/|&|to|…|\.\.\.)?\s*\Z", re.IGNORECASE)


_FENCE = re.compile(r"[ \t]*(?:```|~~~)")
_FENCE_LINE = re.compile(rf"^{_FENCE.pattern}", re.MULTILINE)
_TICKS = re.compile(r"```|`")
_NO_SPACE = re.compile(r"\S")


def quoted(text: str, start: int, end: int) -> bool:
    """Whether the mark itself stands in quotes, brackets or code signs."""
    before, after = (
        text[max(0, start - NEAR) : start].rstrip(" ")[-1:],
        text[end : end + NEAR].lstrip(" ")[:1],
    )
    return before in _CLOSERS and after == _CLOSERS[before] and text[start - 1] != "\n"


def in_code(text: str, start: int, since: int = 0) -> bool:
    """Whether a place lies in code, fenced, indented or within its line, that began behind ``since``."""
    at_line = since == 0 or text[since - 1] == "\n"
    cut = 0 if at_line or not _FENCE.match(text, since, start) else 1  # a fence right behind a mark
    fences, ticks = _code_signs(text)
    if (_within(fences, since, start) + cut) % 2:
        return True
    begin = max(text.rfind("\n", since, start) + 1, since)
    indented = text.startswith(("    ", "\t"), begin) and text[max(since, begin - 2) : begin] == "\n\n"
    return (indented and not is_blank(text, since, begin)) or bool(_within(ticks, begin, start) % 2)


@lru_cache(maxsize=4)
def _code_signs(text: str) -> tuple[list[int], list[int]]:
    """Where in a text the lines of code fences begin, and where single code signs stand."""
    fences = [found.start() for found in _FENCE_LINE.finditer(text)]
    return fences, [found.start() for found in _TICKS.finditer(text) if found[0] == "`"]


def _within(places: list[int], start: int, end: int) -> int:
    return bisect_left(places, end) - bisect_left(places, start)


def is_blank(text: str, start: int, end: int) -> bool:
    """Whether nothing but white space stands in a stretch of text."""
    return not _NO_SPACE.search(text, start, end)


def line_before(text: str, start: int, since: int = 0) -> str:
    """What stands before a place on its line, or the last letters of it."""
    return text[max(since, start - NEAR, text.rfind("\n", 0, start) + 1) : start]


def opening_is_mentioned(text: str, start: int, end: int, since: int, block: str | None) -> bool:
    """Whether an opening outside of reasoning is only talked about.

    ``since`` is where the text behind the last mark begins, ``block`` what the opening would enclose, None where
    nothing closes it. A real one stands at the beginning, on a new line, or behind a whole sentence.
    """
    if quoted(text, start, end) or in_code(text, start, since) or _PUNCTUATION.match(text, end):
        return True
    if text[end - 1 : end + 1] == "](":  # a link
        return True
    line = line_before(text, start, since)
    alone = is_blank(text, since, start - len(line))
    if line.strip() and not _may_open(line, alone, text[end : end + NEAR], block):
        return True
    if block is not None:
        word = not is_blank(text, since, start) or block.strip().isalpha()
        return bool(block.strip()) and word and bool(_LINK.match(block))
    return bool((_LOWER if line.strip() else _VERB).match(text, end))


def _may_open(line: str, alone: bool, after: str, block: str | None) -> bool:
    """Whether a block can begin behind what stands before it on its line; ``alone``: nothing stands before that."""
    if _LIST.match(line):
        return False
    if _SENTENCE_END.search(line.rstrip()) or (alone and _SPEAKER.match(line)):
        return True
    if line.rstrip().endswith(":"):
        return block is not None and after.lstrip(" ").startswith("\n")
    return line[-1].isascii() and line[-1].isalnum()


def closing_is_mentioned(text: str, start: int, end: int, since: int = 0) -> bool:
    """Whether a closing is only talked about: quoted, in code, or with a sentence going on through it."""
    line = line_before(text, start)
    if quoted(text, start, end) or in_code(text, start, since) or (line.strip() and _LIST.match(line)):
        return True
    return goes_through(text, start, end) or (is_blank(text, 0, start) and bool(_VERB.match(text, end)))


def is_named_pair(text: str, opening: int, start: int, end: int) -> bool:
    """Whether a closing belongs to an opening on its line that is only talked about."""
    goes_on = is_blank(text, end, len(text)) or _PUNCTUATION.match(text, end) or _NOT_UPPER.match(text, end)
    return text.find("\n", opening, start) < 0 and bool(goes_on)


def goes_through(text: str, start: int, end: int) -> bool:
    """Whether a sentence goes on from before a mark to behind it."""
    line = line_before(text, start)
    before = line.rstrip()
    if not before or before == line or _SENTENCE_END.search(before):
        return False
    return bool(_PUNCTUATION.match(text, end) or _LOWER.match(text, end))
