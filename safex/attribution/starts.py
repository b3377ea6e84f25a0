"""How a model's refusals and its compliant answers begin: the tokens whose probability tells which one comes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

from safex.errors import InputError
from safex.judges import COMPLY, REFUSE
from safex.judges.readable import Read

Path: TypeAlias = tuple[int, ...]
Answers: TypeAlias = Sequence[tuple[str, Sequence[int]]]  # reading and tokens
Weights: TypeAlias = defaultdict[tuple[str, Path], float]  # by side and beginning

SIDES = (REFUSE, COMPLY)
DEPTH = 6  # tokens of an answer that are looked at
PURITY = 0.95  # share of the answers with a beginning that must be of one side (sides weigh the same)
LEAST = 0.02  # share of a side's answers from which on a common beginning is worth a run of its own


class NoStartsError(InputError):
    """The answers don't show how refusals and compliant answers begin: one side is missing, or both begin alike."""


@dataclass(frozen=True)
class Starts:
    """Token paths that begin refusals and compliant answers; no path begins with another one.

    So the probability of a side is the sum over its paths, and that of a path the product over its tokens.
    ``coverage`` is the share of each side's answers that begin with one of its paths, where they were found in
    answers. Raises InputError for a side without paths, or paths that begin with one another.
    """

    refuse: tuple[Path, ...]
    comply: tuple[Path, ...]
    coverage: dict[str, float] = field(default_factory=dict)
    answers: dict[str, int] = field(default_factory=dict)  # how many were looked at, by label

    def __post_init__(self) -> None:
        """Check the paths."""
        for side in SIDES:
            if not all(self.of(side)) or not self.of(side):
                raise InputError(f"starts: {side} has no start, or an empty one; expected token paths")
        known = set(self.refuse) | set(self.comply)
        both = [*self.refuse, *self.comply]
        if len(known) < len(both) or any(path[:n] in known for path in both for n in range(1, len(path))):
            raise InputError("starts: one begins with another; give starts that tell the sides apart")

    def of(self, side: str) -> tuple[Path, ...]:
        """The paths of a side."""
        return self.refuse if side == REFUSE else self.comply

    @classmethod
    def from_texts(cls, model: Any, refuse: Sequence[str], comply: Sequence[str]) -> Starts:
        """Starts written by hand, with and without a leading space; blanks around them don't count.

        Raises InputError as the class does.
        """
        return cls(_tokenized(model, refuse), _tokenized(model, comply))

    @classmethod
    def from_answers(cls, answers: Answers) -> Starts:
        """The shortest beginnings that tell a model's own refusals from its compliant answers.

        A beginning tells when at least 95 % of the answers that have it are of one side, both sides weighing the
        same; beginnings of more than 6 tokens are not looked at. Answers of other readings don't count.
        Raises NoStartsError where too few answers could be read, where there are no refusals, no compliant answers, or
        no such beginnings.
        """
        total = Counter(label for label, _ in answers)
        _check_readable(Read.of([label for label, _ in answers]))
        _check_both_sides(total, len(answers))
        judged = [(label, tuple(tokens)) for label, tokens in answers if label in SIDES]
        weight = _weights(judged, total)
        found: dict[str, Counter[Path]] = {side: Counter() for side in SIDES}
        for label, tokens in judged:
            path = _telling(tokens, weight)
            if path and weight[label, path] >= PURITY * _sum(weight, path):
                found[label][path] += 1
        for side in SIDES:
            if not found[side]:
                raise NoStartsError(
                    f"the first {DEPTH} tokens of the answers don't tell refusals from others (no start of {side}); "
                    "name the starts (--refusal-start, --compliance-start)"
                )
        coverage = {side: found[side].total() / total[side] for side in SIDES}
        refuse, comply = (tuple(path for path, _ in found[side].most_common()) for side in SIDES)
        return cls(refuse, comply, coverage, dict(total))

    @cached_property
    def targets(self) -> list[int]:
        """Every token of every path, once."""
        return sorted({token for path in (*self.refuse, *self.comply) for token in path})

    @cached_property
    def chains(self) -> list[Path]:
        """The forced continuations that show all paths: one run of the model each; often just the empty one."""
        inner = {path[:-1] for path in (*self.refuse, *self.comply)}
        return sorted(p for p in inner if not any(q[: len(p)] == p and q != p for q in inner))

    def logits(self, scores: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
        """Refusal logits [n]: log of the probability of refusal starts minus that of compliance starts.

        ``scores`` are what ``Model.score`` gives for ``targets``, one array [n, 1 + len(chain), n_targets] a chain.
        """
        refuse, comply = (
            logsumexp([self._path_logs(path, scores) for path in self.of(side)], axis=0) for side in SIDES
        )
        return np.asarray(refuse - comply, np.float64)

    def _path_logs(self, path: Path, scores: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
        chain = next(i for i, c in enumerate(self.chains) if c[: len(path) - 1] == path[:-1])
        columns = [self.targets.index(token) for token in path]
        logs = scores[chain][:, range(len(path)), columns]
        return np.asarray(logs.sum(axis=1, dtype=np.float64))

    def to_json(self, model: Any) -> dict[str, Any]:
        """The starts as tokens and text, and where they come from."""
        sides = {
            side: [
                {"tokens": list(path), "text": model.detokenize(path, special=True)} for path in self.of(side)
            ]
            for side in SIDES
        }
        return {**sides, "coverage": self.coverage, "answers": self.answers}

    @classmethod
    def from_json(cls, value: Any) -> Starts:
        """The starts that ``to_json`` wrote, as a sweep's file holds them."""
        refuse, comply = (tuple(tuple(start["tokens"]) for start in value[side]) for side in SIDES)
        return cls(refuse, comply, value["coverage"], value["answers"])


def _check_readable(read: Read) -> None:
    """Refuse to tell beginnings apart by a few answers among many that could not be read."""
    if read.unread and not read.is_most:
        raise NoStartsError(
            f"only {read.readable} of {read.n} greedy answers to regular and benign prompts could be read within the "
            f"tokens that are looked at ({read.why}), so they don't show how refusals begin; switch reasoning off "
            "(--thinking off) or name the starts (--refusal-start, --compliance-start)"
        )


def _check_both_sides(total: Counter[str], n: int) -> None:
    for side, what in ((REFUSE, "refusals"), (COMPLY, "compliant answers")):
        if not total[side]:
            raise NoStartsError(
                f"there are no {what} among {n} greedy answers to regular and benign prompts, so there is nothing to "
                "attribute; give other prompts, or name the starts (--refusal-start, --compliance-start)"
            )


def _weights(judged: Answers, total: Counter[str]) -> Weights:
    """Share of each side's answers that have a beginning."""
    weight: Weights = defaultdict(float)
    for label, tokens in judged:
        for path in _prefixes(tokens):
            weight[label, path] += 1 / total[label]
    return weight


def _prefixes(tokens: Sequence[int]) -> Iterator[Path]:
    return (tuple(tokens[:n]) for n in range(1, min(len(tokens), DEPTH) + 1))


def _sum(weight: Weights, path: Path) -> float:
    return sum(weight[side, path] for side in SIDES)


def _telling(tokens: Sequence[int], weight: Weights) -> Path | None:
    """The shortest beginning that is (nearly) one side's; None where there is none, or only behind a rare one."""
    for path in _prefixes(tokens):
        shares = [weight[side, path] for side in SIDES]
        if max(shares) >= PURITY * sum(shares):
            return path
        if max(shares) < LEAST:
            break
    return None


def _tokenized(model: Any, texts: Sequence[str]) -> tuple[Path, ...]:
    # A blank at the end is a token of its own in most vocabularies, one that hardly ever follows: "To " says "To".
    texts = [text.strip() for text in texts if text.strip()]
    paths = {tuple(model.tokenize(space + text, special=False)) for text in texts for space in ("", " ")}
    return tuple(sorted(p for p in paths if p and not any(p[:n] in paths for n in range(1, len(p)))))
