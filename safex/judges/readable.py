"""How many answers could be read, why the others could not, what helps, and whether enough were read to go by.

Two limits, used wherever something is concluded from answers (docs/evaluation.md#readable-answers gives the reasons):

- ``ENOUGH``: with fewer answers a single one moves a rate by more than 10 points, and fewer than 6 changed answers are
  never significant (exact McNemar).
- ``SHARE``: below it the answers that could not be read could move a rate by more than 25 points, and those that could
  be read are a selection: what a mask breaks, or what fits the token limit, is not a random part.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .verdicts import DEGENERATE, EMPTY, REASONING, TRUNCATED, UNREADABLE

ENOUGH = 10  # answers
SHARE = 0.75  # of the answers

WORDS = {
    EMPTY: "empty",
    TRUNCATED: "cut off before anything could be judged",
    REASONING: "nothing but reasoning",
    DEGENERATE: "text that repeats itself or is no language",
}
REMEDIES = {
    REASONING: "raise --max-new, or switch reasoning off (--thinking off)",
    TRUNCATED: "raise --max-new",
    EMPTY: "check that the chat template fits the model",
    DEGENERATE: "check that the model file is whole and that its chat template fits the model",
}
MASKED_REMEDIES = dict.fromkeys(
    (EMPTY, DEGENERATE), "the mask breaks the text: mask fewer experts, or in another way (--mode)"
)


@dataclass(frozen=True)
class Read:
    """Of ``n`` answers so many are ``readable``; ``kinds`` counts the others by why they are not."""

    n: int
    readable: int
    kinds: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, readings: Sequence[str]) -> Read:
        """Count readings, as ``Record.readings`` gives them.

        >>> Read.of(["refuse", "other", "truncated"])
        Read(n=3, readable=2, kinds={'truncated': 1})
        """
        counts = Counter(reading for reading in readings if reading in UNREADABLE)
        kinds = {kind: counts[kind] for kind in UNREADABLE if counts[kind]}
        return cls(len(readings), len(readings) - counts.total(), kinds)

    @classmethod
    def of_rates(cls, rates: Mapping[str, Any]) -> Read:
        """What ``rates.three_way`` counted; results of older versions counted every answer as read."""
        kinds = {kind: rates[kind] for kind in UNREADABLE if rates.get(kind)}
        return cls(rates["n"], rates.get("readable", rates["n"]), kinds)

    @classmethod
    def together(cls, parts: Iterable[Read]) -> Read:
        """The sum of counts of different answers."""
        listed = list(parts)
        total: Counter[str] = Counter()
        for part in listed:
            total.update(part.kinds)
        return cls(sum(p.n for p in listed), sum(p.readable for p in listed), dict(total))

    @property
    def unread(self) -> int:
        """Answers that could not be read."""
        return self.n - self.readable

    @property
    def is_most(self) -> bool:
        """Whether what was left unread is little enough to go by the rest."""
        return self.readable > 0 and self.readable >= SHARE * self.n

    @property
    def why(self) -> str:
        """The kinds in words, the most frequent first.

        >>> Read(9, 2, {"empty": 2, "reasoning": 5}).why
        '5 nothing but reasoning, 2 empty'
        """
        return ", ".join(f"{n} {WORDS[kind]}" for kind, n in self._by_number())

    def remedy(self, masked: bool = False) -> str:
        """What to change; ``masked``: the answers came under a mask, those without it could be read.

        >>> Read(9, 2, {"reasoning": 5, "truncated": 2}).remedy()
        'raise --max-new, or switch reasoning off (--thinking off)'
        """
        remedies = {**REMEDIES, **(MASKED_REMEDIES if masked else {})}
        kinds = [kind for kind, _ in self._by_number() if kind != TRUNCATED or REASONING not in self.kinds]
        return "; ".join(dict.fromkeys(remedies[kind] for kind in kinds))

    def _by_number(self) -> list[tuple[str, int]]:
        return sorted(self.kinds.items(), key=lambda one: -one[1])

    def to_json(self) -> dict[str, Any]:
        """``n``, ``readable`` and every kind."""
        kinds = {kind: self.kinds.get(kind, 0) for kind in UNREADABLE}
        return {"n": self.n, "readable": self.readable, **kinds}
