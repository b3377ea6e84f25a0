"""Whether a mark in a text is one, or is only talked about: in quotes, in code, in the middle of a sentence."""

from __future__ import annotations

import re

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


def quoted(text: str, start: int, end: int) -> bool:
    """Whether the mark itself stands in quotes, brackets or code signs."""
    before, after = text[:start].rstrip(" ")[-1:], text[end:].lstrip(" ")[:1]
    return before in _CLOSERS and after == _CLOSERS[before] and text[start - 1] != "\n"


def in_code(text: str, start: int, since: int = 0) -> bool:
    """Whether a place lies in code, fenced, indented or within its line, that began behind ``since``."""
    before = text[since:start]
    if len(re.findall(r"^[ \t]*(?:```|~~~)", before, re.MULTILINE)) % 2:
        return True
    above, _, line = before.rpartition("\n")
    indented = line.startswith(("    ", "\t")) and bool(above.strip()) and above.endswith("\n")
    return indented or bool(line.replace("```", "").count("`") % 2)


def opening_is_mentioned(text: str, start: int, end: int, since: int, block: str | None) -> bool:
    """Whether an opening outside of reasoning is only talked about.

    ``since`` is where the text behind the last mark begins, ``block`` what the opening would enclose, None where
    nothing closes it. A real one stands at the beginning, on a new line, or behind a whole sentence.
    """
    if quoted(text, start, end) or in_code(text, start, since) or _PUNCTUATION.match(text, end):
        return True
    if text[end - 1 : end + 1] == "](":  # a link
        return True
    before = text[since:start]
    line = before.rpartition("\n")[2]
    if line.strip() and not _may_open(before, line, text[end:], block):
        return True
    if block is not None:
        word = bool(before.strip()) or block.strip().isalpha()
        return bool(block.strip()) and word and bool(_LINK.match(block))
    return bool((_LOWER if line.strip() else _VERB).match(text, end))


def _may_open(before: str, line: str, after: str, block: str | None) -> bool:
    """Whether a block can begin behind what stands before it on its line."""
    if _LIST.match(line):
        return False
    if _SENTENCE_END.search(line.rstrip()) or (
        _SPEAKER.match(line) and before.strip() == before[-len(line) :].strip()
    ):
        return True
    if line.rstrip().endswith(":"):
        return block is not None and after.lstrip(" ").startswith("\n")
    return line[-1].isascii() and line[-1].isalnum()


def closing_is_mentioned(text: str, start: int, end: int, since: int = 0) -> bool:
    """Whether a closing is only talked about: quoted, in code, or with a sentence going on through it."""
    line = text[:start].rpartition("\n")[2]
    if quoted(text, start, end) or in_code(text, start, since) or (line.strip() and _LIST.match(line)):
        return True
    return goes_through(text, start, end) or (not text[:start].strip() and bool(_VERB.match(text, end)))


def is_named_pair(text: str, opening: int, start: int, end: int) -> bool:
    """Whether a closing belongs to an opening on its line that is only talked about."""
    goes_on = not text[end:].strip() or _PUNCTUATION.match(text, end) or _NOT_UPPER.match(text, end)
    return "\n" not in text[opening:start] and bool(goes_on)


def goes_through(text: str, start: int, end: int) -> bool:
    """Whether a sentence goes on from before a mark to behind it."""
    line = text[:start].rpartition("\n")[2]
    before = line.rstrip()
    if not before or before == line or _SENTENCE_END.search(before):
        return False
    return bool(_PUNCTUATION.match(text, end) or _LOWER.match(text, end))
