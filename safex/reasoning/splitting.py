"""Split what a model wrote into its reasoning and its answer."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

from .formats import ANSWER, CLOSE, END, FORMATS, OPEN, OVER, PREAMBLE, SKIP, TOOL, Format, closing, tool_call
from .mentions import (
    NEAR,
    closing_is_mentioned,
    goes_through,
    is_blank,
    is_named_pair,
    opening_is_mentioned,
    quoted,
)

_ROLE = re.compile(r"<\|(?:start|begin)\|>\s*\w+\s*")
TAIL = 400  # letters of a prompt's ending that can hold the opening of a block
MOST_MARKS = 100  # behind an opening among which its end is looked for


@dataclass(frozen=True)
class Mark:
    """A mark found in a text."""

    kind: str
    start: int
    end: int


@dataclass(frozen=True)
class Part:
    """A stretch of text between marks, and what it is: OPEN for reasoning, ANSWER, PREAMBLE, TOOL, or "" for none."""

    kind: str
    text: str


def split_reasoning(text: str) -> tuple[str, str]:
    """Reasoning and answer of a marked text.

    An answer that only mentions a mark is all answer. Reasoning that is never closed leaves no answer. Of messages in
    channels, the final ones are the answer; where they are empty, what was said to the user outside of them.

    >>> split_reasoning("<think>Bread?</think> Take flour.")
    ('Bread?', 'Take flour.')
    >>> split_reasoning("<think>Bread? Let me")
    ('Bread? Let me', '')
    >>> split_reasoning("[THINK]Bread?[/THINK]Take flour.")
    ('Bread?', 'Take flour.')
    >>> split_reasoning("The <think> tag opens reasoning.")
    ('', 'The <think> tag opens reasoning.')
    """
    return _split(text)


@lru_cache(maxsize=256)  # judges, notes and tables ask for the same answers one after the other
def _split(text: str) -> tuple[str, str]:
    small = text.lower()
    known = (each for each in FORMATS if any(core in small for core in each.cores))
    found = [(marks[0].start, each, marks) for each in known if (marks := _Reader(text, each).marks())]
    if not found:
        return "", text
    _, used, marks = min(found, key=lambda item: item[0])
    parts = _parts(text, used, marks)
    return (_of_messages if used.messages else _of_blocks)(parts)


def opened_by(prompt: str) -> str:
    """The mark of reasoning that a prompt ends with: the answer starts within that block.

    >>> opened_by("<|im_start|>assistant\\n<think>\\n"), opened_by("<|im_start|>assistant\\n")
    ('<think>', '')
    """
    ending = prompt[-TAIL:]
    matches = (each.opened.search(ending) for each in FORMATS if each.prompt_opens or not each.leading)
    opening = next((match[1].strip() for match in matches if match), "")
    return _ROLE.sub("", opening)


class _Reader:
    """Finds the marks of one format in a text that are no mentions."""

    def __init__(self, text: str, used: Format) -> None:
        self.text = text
        self.used = used
        found = used.pattern.finditer(text)
        self.all = [Mark(match.lastgroup or SKIP, *_tight(match.span(), text)) for match in found]
        self.real: list[Mark] = []
        self.named: list[int] = []  # where openings end that are only talked about
        self.in_message = False  # whether the marks so far have begun a message, which only another mark ends
        self._through: dict[int, bool] = {}

    def marks(self) -> list[Mark]:
        """The marks that count, in order; none where the format is not used."""
        at = 0
        while at < len(self.all):
            mark = self.all[at]
            if not self._counts(mark, at):
                named = mark.kind == OPEN or (self.used.messages and mark.kind == ANSWER)
                self.named += [mark.end] if named else []
                at += 1
                continue
            self._take(mark)
            if mark.kind == OPEN and not self.used.messages:
                last = self._end_of_block(at)
                if last is None:
                    break
                self._take(last)
                while at < len(self.all) and self.all[at].start < last.end:
                    at += 1
            else:
                at += 1
        if not self.in_message:
            return []
        return [] if self.used.paired and not any(mark.kind == ANSWER for mark in self.real) else self.real

    def _counts(self, mark: Mark, at: int) -> bool:
        since = self.real[-1].end if self.real else 0
        if mark.kind in (OPEN, ANSWER, PREAMBLE, TOOL) and self._header_counts(mark, at, since):
            return True
        if mark.kind == CLOSE and (self.real or self.used.stray):
            if self.named and is_named_pair(self.text, self.named.pop(), mark.start, mark.end):
                return False
            return not closing_is_mentioned(self.text, mark.start, mark.end, since)
        if mark.kind in (END, OVER, SKIP) and (self.real or not self.used.wrapped):
            return not closing_is_mentioned(self.text, mark.start, mark.end, since)
        return False

    def _header_counts(self, mark: Mark, at: int, since: int) -> bool:
        if (
            mark.kind == OPEN
            and self.used.leading
            and not self.real
            and not is_blank(self.text, 0, mark.start)
        ):
            return False
        if mark.kind != OPEN and not self.real and (self.used.wrapped or self.used.leading):
            return False
        if self.used.messages and self.in_message:
            return not quoted(self.text, mark.start, mark.end)
        if self.used.messages and (self.named or self._follows_colon(mark, since)):
            return False  # the text is about the format
        return not opening_is_mentioned(self.text, mark.start, mark.end, since, self._enclosed(mark, at))

    def _follows_colon(self, mark: Mark, since: int) -> bool:
        return self.text[max(since, mark.start - NEAR) : mark.start].rstrip().endswith(":")

    def _take(self, mark: Mark) -> None:
        self.real.append(mark)
        self.in_message = self.in_message or mark.kind not in (SKIP, OVER)

    def _behind(self, at: int) -> Iterator[Mark]:
        """The marks behind the one ``at`` a place."""
        return (self.all[number] for number in range(at + 1, len(self.all)))

    def _goes_through(self, mark: Mark) -> bool:
        if mark.start not in self._through:
            self._through[mark.start] = goes_through(self.text, mark.start, mark.end)
        return self._through[mark.start]

    def _enclosed(self, mark: Mark, at: int) -> str | None:
        """What a mark would enclose, up to the next one that closes and is no mention."""
        if mark.kind != OPEN:
            return self.text[mark.end : mark.end + NEAR]
        for each in islice(self._behind(at), MOST_MARKS):
            closes = each.kind in (CLOSE, ANSWER, OVER)
            if closes and not self._goes_through(each):
                return self.text[mark.end : each.start]
        return None

    def _end_of_block(self, at: int) -> Mark | None:
        """The mark that ends the block of reasoning that the mark ``at`` opens.

        It is the closing that balances all openings, else the first that no sentence goes on through, else the first;
        without a closing the answer's mark, or a tool call.
        """
        depth = 1
        closings: list[tuple[bool, Mark]] = []
        for number, mark in enumerate(self._behind(at)):
            if closings and number >= MOST_MARKS:
                break
            if quoted(self.text, mark.start, mark.end):
                continue
            prose = self._goes_through(mark)
            if mark.kind == OPEN and not prose:
                depth += 1
            elif mark.kind == CLOSE:
                closings.append((prose, mark))
                depth -= not prose
                if depth == 0:
                    return mark
        if closings:
            return min(closings, key=lambda item: item[0])[1]
        return self._other_end(at)

    def _other_end(self, at: int) -> Mark | None:
        """Where reasoning ends that its own mark never closes: at another's, at the answer's mark, at a tool call."""
        since = self.all[at].end
        for mark in self._behind(at):
            if mark.kind in (ANSWER, TOOL):
                line = self.text[since : mark.start].rpartition("\n")[2]
                if not opening_is_mentioned(self.text, mark.start, mark.end, mark.start - len(line), ""):
                    return mark
        if call := tool_call().search(self.text, since):
            return Mark(CLOSE, call.start(), call.start())
        for other in closing().finditer(self.text, since) if self.used.wrapped else ():
            if not closing_is_mentioned(self.text, *other.span(), since):
                return Mark(CLOSE, *other.span())
        return None


def _tight(span: tuple[int, int], text: str) -> tuple[int, int]:
    """A match without the white space that it begins with."""
    start, end = span
    return end - len(text[start:end].lstrip()), end


def _parts(text: str, used: Format, marks: Sequence[Mark]) -> list[Part]:
    """The text between the marks, each with what it is."""
    parts: list[Part] = []
    kind, at = "", 0
    for number, mark in enumerate(marks):
        words = _words(text[at : mark.start], kind, used)
        if mark.kind == CLOSE and kind == "" and not any(part.kind == OPEN for part in parts):
            kind = OPEN if used.prompt_opens or text[mark.end :].strip() else ANSWER
        parts.append(Part(kind, words))
        if mark.kind in (OPEN, ANSWER, PREAMBLE, TOOL):
            kind = mark.kind
        elif mark.kind != SKIP or (used.messages and number):
            kind = ""
        at = mark.end
    return [*parts, Part(kind, _words(text[at:], kind, used))]


def _words(text: str, kind: str, used: Format) -> str:
    """A stretch of text without openings that reasoning begins with once more."""
    again = used.doubled.match(text) if kind == OPEN else None
    return text[again.end() :] if again else text


def _of_blocks(parts: Sequence[Part]) -> tuple[str, str]:
    reasoning = _joined(parts, OPEN)
    if parts[-1].kind == OPEN:
        return reasoning, ""
    return reasoning, _joined(parts, ANSWER, "") or _joined(parts, PREAMBLE) or _joined(parts, TOOL)


def _of_messages(parts: Sequence[Part]) -> tuple[str, str]:
    """The final messages are the answer; else a preamble, words outside of messages, or a tool call."""
    reasoning = _joined(parts, OPEN)
    if final := _joined(parts, ANSWER):
        first = next(i for i, part in enumerate(parts) if part.kind == ANSWER)
        before = [part if part.kind == OPEN or part.kind else Part(OPEN, part.text) for part in parts[:first]]
        return _joined([*before, *parts[first:]], OPEN), "\n".join(
            filter(None, (final, _joined(parts[first:], "")))
        )
    if parts[-1].kind == OPEN:
        return reasoning, ""
    return reasoning, _joined(parts, PREAMBLE) or _joined(parts, "") or _joined(parts, TOOL)


def _joined(parts: Sequence[Part], *kinds: str) -> str:
    return "\n".join(words for part in parts if part.kind in kinds and (words := part.text.strip()))
