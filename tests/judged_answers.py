"""Answers written by hand with the verdict of a careful reader, and how the keyword judge reads them.

``judged_answers.jsonl``, one a line: ``response``, ``finish`` ("length" where the token limit cut it), ``set`` of its
prompt, ``human`` (refuse, comply, other, truncated or empty, under the policy "strict"), ``lenient`` where that policy
gives another verdict, ``unreadable`` where the answer can't be read and why. ``part``:

    tuned      written before the judge was changed, and looked at while it was
    held out   the other half of those; looked at by kind (how many of each kind were wrong), and mixed-10 by its words
    later      written afterwards in several lots, each measured at first sight and looked at since

Nothing in them is harmful: placeholders stand where a real answer would be. The table in docs/evaluation.md is made by
``python tests/judged_answers.py``; a test compares.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from safex.judges import LABELS, LENIENT, STRICT, Item, KeywordJudge, Verdict

FILE = Path(__file__).with_name("judged_answers.jsonl")
PAGE = Path(__file__).parent.parent / "docs" / "evaluation.md"
BEGIN, END = "<!-- judged answers: begin -->\n", "<!-- judged answers: end -->"
PARTS = ("tuned", "held out", "later")


@dataclass(frozen=True)
class Answer:
    """One answer with the reader's verdict."""

    id: str
    part: str
    set: str
    response: str
    human: str
    finish: str = "stop"
    lenient: str | None = None
    unreadable: str | None = None

    @property
    def kind(self) -> str:
        return self.id.rpartition("-")[0]

    def wanted(self, policy: str) -> str:
        """The reader's verdict under a policy."""
        return self.lenient if policy == LENIENT and self.lenient else self.human

    @property
    def item(self) -> Item:
        return Item(self.id, self.set, "", self.response, self.finish)


def load() -> list[Answer]:
    """All answers of the file."""
    return [Answer(**json.loads(line)) for line in FILE.read_text(encoding="utf-8").splitlines()]


def read(answers: Sequence[Answer], policy: str = STRICT) -> list[Verdict]:
    """How the keyword judge reads them."""
    return KeywordJudge(policy=policy).judge([answer.item for answer in answers])


def tables(answers: Sequence[Answer]) -> str:
    """Confusion matrices by part, and agreement under both policies, as Markdown."""
    blocks = [_matrix(part, [answer for answer in answers if answer.part == part]) for part in PARTS]
    return "\n\n".join([*blocks, _policies(answers)]) + "\n"


def _matrix(part: str, answers: Sequence[Answer]) -> str:
    labels = [verdict.label for verdict in read(answers)]
    counts = Counter(zip((answer.human for answer in answers), labels, strict=True))
    right = sum(counts[label, label] for label in LABELS)
    head = [f"| {part}: {right} of {len(answers)} right; a reader says | {' | '.join(LABELS)} |"]
    rule = ["|---" + "|---:" * len(LABELS) + "|"]
    rows = [
        f"| {row} | {' | '.join(str(counts[row, column]) for column in LABELS)} |"
        for row in LABELS
        if any(counts[row, column] for column in LABELS)
    ]
    return "\n".join([*head, *rule, *rows])


def _policies(answers: Sequence[Answer]) -> str:
    mixed = [answer for answer in answers if answer.kind == "mixed"]
    rows = []
    for policy in (STRICT, LENIENT):
        right = [
            sum(v.label == a.wanted(policy) for a, v in zip(some, read(some, policy), strict=True))
            for some in (answers, mixed)
        ]
        rows.append(f"| {policy} | {right[0]} of {len(answers)} | {right[1]} of {len(mixed)} |")
    return "\n".join(
        ["| policy | right, all answers | right, answers that refuse and help |", "|---|---|---|", *rows]
    )


def block_of_page() -> str:
    """What the page says now."""
    return PAGE.read_text(encoding="utf-8").partition(BEGIN)[2].partition(END)[0]


def main() -> None:
    """Write the tables into the page."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(BEGIN)
    PAGE.write_text(f"{before}{BEGIN}{tables(load())}{END}{rest.partition(END)[2]}", encoding="utf-8")


if __name__ == "__main__":
    main()
