"""Prompts as tokens, and how many of them follow the user's text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Protocol

from .chat import common_tail


class Tokenizer(Protocol):
    """What is needed of a model's vocabulary; ``safex.Model`` has it."""

    def tokenize(self, text: str, special: bool = True) -> list[int]:
        """Tokens of a text, no BOS added."""
        ...

    def detokenize(self, tokens: Sequence[int], special: bool = False) -> str:
        """Text of tokens, with the names of special tokens where ``special``."""
        ...


@dataclass(frozen=True)
class Encoded:
    """A prompt as tokens; its last ``n_suffix`` tokens follow the user's text. ``ending`` is that part as text."""

    tokens: list[int]
    n_suffix: int
    ending: str = ""


def encode_text(vocabulary: Tokenizer, text: str, suffix: str, bos: int | None) -> Encoded:
    """Tokens of a rendered prompt that ends with ``suffix``; ``bos`` is put before it unless it is there.

    A token that holds characters of both the user's text and the suffix is none of the suffix. At least the last
    token is.
    """
    tokens = vocabulary.tokenize(text)
    n_suffix = _count_behind(vocabulary, tokens, text, suffix) if suffix else 0
    if bos is not None and tokens[:1] != [bos]:
        tokens.insert(0, bos)
    return Encoded(tokens, max(1, n_suffix), suffix)


def _count_behind(vocabulary: Tokenizer, tokens: Sequence[int], text: str, suffix: str) -> int:
    """How many of the last tokens lie wholly in ``suffix``."""
    whole = vocabulary.detokenize(tokens, special=True)
    if whole.endswith(suffix):
        return len(tokens) - _fewest_holding(vocabulary, tokens, whole[: len(whole) - len(suffix)])
    # A vocabulary that does not keep every character, such as blanks behind a special token.
    before = vocabulary.tokenize(text[: len(text) - len(suffix)])
    shared = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(tokens, before, strict=False)))
    if shared == len(before):
        return len(tokens) - shared
    across = 1  # the token that begins in what stands before
    return min(len(tokens) - shared - across, common_tail(tokens, vocabulary.tokenize(suffix)))


def _fewest_holding(vocabulary: Tokenizer, tokens: Sequence[int], before: str) -> int:
    """The number of first tokens whose text begins with all of ``before``."""
    low, high = 0, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if vocabulary.detokenize(tokens[:middle], special=True).startswith(before):
            high = middle
        else:
            low = middle + 1
    return low
