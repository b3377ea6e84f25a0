"""What judges read and what they say: items, verdicts, and the five labels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeAlias

REFUSE = "refuse"  # the answer declines
COMPLY = "comply"  # the answer does what was asked
OTHER = "other"  # neither: broken text, no content, not what was expected
EMPTY = "empty"  # nothing was said outside of reasoning
TRUNCATED = "truncated"  # the token limit came before anything could be judged

LABELS = (REFUSE, COMPLY, OTHER, EMPTY, TRUNCATED)
THREE = (REFUSE, COMPLY, OTHER)

# Why an answer can't be read: such an answer is no evidence for any of the three readings.
REASONING = "reasoning"  # nothing but reasoning
DEGENERATE = "degenerate"  # text that repeats itself, or no language
UNREADABLE = (EMPTY, TRUNCATED, REASONING, DEGENERATE)

Counter: TypeAlias = Callable[[int, int], None]  # done, total


@dataclass(frozen=True)
class Mask:
    """The mask an answer was made with: experts as ``"L:E"`` texts, mode, gain, and the phase it acted in."""

    experts: tuple[str, ...] = ()
    mode: str = "zero"
    gain: float = 0.0
    phase: str = "both"


@dataclass(frozen=True)
class Item:
    """One answer to judge.

    ``finish`` is "stop" or "length". ``comply`` holds the texts that an answer must contain to count as real
    compliance; None where nothing is expected. ``mask`` matters only to judges that ask the model itself.
    """

    id: str
    set: str
    prompt: str
    response: str
    finish: str = "stop"
    comply: Sequence[str] | None = None
    mask: Mask = Mask()


@dataclass(frozen=True)
class Verdict:
    """One judgement: one of ``LABELS``, a probability of refusal or harm where the judge has one, and why.

    ``unreadable`` is one of ``UNREADABLE`` where the answer could not be read, else None; the labels ``empty`` and
    ``truncated`` say so by themselves.

    >>> Verdict(EMPTY).unreadable, Verdict(OTHER, unreadable=DEGENERATE).reading, Verdict(REFUSE).reading
    ('empty', 'degenerate', 'refuse')
    """

    label: str
    score: float | None = None
    detail: str | None = None
    unreadable: str | None = None

    def __post_init__(self) -> None:
        """Let a label that means "nothing to read" say so."""
        object.__setattr__(self, "unreadable", why_unreadable(self.label, self.unreadable))

    @property
    def readable(self) -> bool:
        """Whether the answer could be read, so that its label is evidence."""
        return self.unreadable is None

    @property
    def reading(self) -> str:
        """What tables count: one of ``THREE``, or of ``UNREADABLE``."""
        return reading(self.label, self.unreadable)


class Judge(Protocol):
    """Anything with a name and ``judge``; the verdicts come in the order of the items."""

    name: str

    def judge(self, items: Sequence[Item], progress: Counter | None = None) -> list[Verdict]:
        """One verdict for each item."""
        ...


def why_unreadable(label: str, unreadable: str | None = None) -> str | None:
    """The kind of unreadable answer; None where it could be read. Verdicts of before it was written have a label only.

    >>> why_unreadable("truncated"), why_unreadable("empty", "reasoning"), why_unreadable("comply")
    ('truncated', 'reasoning', None)
    """
    return unreadable or (label if label in (EMPTY, TRUNCATED) else None)


def reading(label: str, unreadable: str | None = None) -> str:
    """What tables count an answer as: refuse, comply or other, or the kind of unreadable answer that it is.

    >>> reading("other"), reading("other", "degenerate"), reading("empty")
    ('other', 'degenerate', 'empty')
    """
    return why_unreadable(label, unreadable) or three_way(label)


def three_way(label: str) -> str:
    """The label as a table of three columns counts it.

    >>> [three_way(label) for label in LABELS]
    ['refuse', 'comply', 'other', 'other', 'other']
    """
    return label if label in THREE else OTHER
