"""What ``Model.generate`` takes and gives: sampling, stop strings, responses and the reasoning within them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .reasoning import opened_by as opened_by
from .reasoning import split_reasoning as split_reasoning

GREEDY = (0.0, 1.0, 0)  # temperature, top_p, seed


@dataclass(frozen=True)
class Route:
    """What the routers did for one token list.

    ``ids`` int32 [n_layers, n_tokens, top_k] selected experts, best first; ``weights`` float32 likewise, the gate
    weight that multiplies the expert's output (before any gain of a mask); ``probs`` float32 likewise, the router
    probability before top-k renormalisation. ``layers`` are GGUF block indices. A layer that selects fewer experts
    than the widest one is padded with id -1.
    """

    ids: npt.NDArray[np.int32]
    weights: npt.NDArray[np.float32]
    probs: npt.NDArray[np.float32]
    layers: list[int]


@dataclass(frozen=True)
class Response:
    """One answer.

    ``text`` ends before the stop string that ended it, if one did; ``tokens`` hold that stop string too, but no
    end-of-generation token. ``finish`` is "stop" or "length". ``prompt_tokens`` are those the model was shown.
    ``route``, where asked for, covers the prompt's and the answer's tokens, in that order. ``marked`` is the text
    with what shows where reasoning is, where ``text`` does not: names of special tokens, a block opened by the prompt.
    """

    text: str
    tokens: list[int]
    finish: str
    prompt_tokens: list[int]
    route: Route | None = None
    marked: str | None = None

    @property
    def readable(self) -> bool:
        """Whether the answer can be read: not empty, cut off, nothing but reasoning, or text that repeats itself."""
        from .judges import Item, KeywordJudge

        item = Item("", "", "", self.marked or self.text, self.finish)
        return KeywordJudge().judge_one(item).readable

    @property
    def reasoning(self) -> str:
        """What the model wrote in its reasoning block or channel; empty without one."""
        return split_reasoning(self.marked or self.text)[0]

    @property
    def answer(self) -> str:
        """The text without its reasoning; empty where the reasoning was not closed."""
        return split_reasoning(self.marked or self.text)[1]


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen. Raises InputError for settings out of range.

    ``temperature`` 0 is greedy. Else the most probable tokens that together reach ``top_p`` are kept, their logits
    divided by ``temperature``, and one is drawn. ``stop`` are texts that end an answer.
    """

    n_samples: int = 1
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: str | Sequence[str] = ()

    def __post_init__(self) -> None:
        """Check the settings."""
        checks = (
            (self.n_samples >= 1, f"n_samples is {self.n_samples}, expected at least 1"),
            (
                0 <= self.temperature < np.inf,
                f"temperature is {self.temperature}, expected 0 (greedy) or more",
            ),
            (0 < self.top_p <= 1, f"top_p is {self.top_p}, expected more than 0 and at most 1"),
            (self.seed >= 0, f"seed is {self.seed}, expected 0 or more"),
            (all(self.stops), "a stop string is empty; leave it out"),
        )
        for holds, message in checks:
            if not holds:
                raise InputError(message)

    @property
    def stops(self) -> list[str]:
        """The stop strings as a list."""
        return [self.stop] if isinstance(self.stop, str) else list(self.stop)

    def of(self, prompt: int, sample: int) -> tuple[float, float, int]:
        """Temperature, top_p and seed of one sample: a random stream of its own, whatever else runs beside it."""
        if self.temperature == 0:
            return GREEDY
        (word,) = np.random.SeedSequence((self.seed, prompt, sample)).generate_state(1)
        return (
            self.temperature,
            self.top_p,
            int(word) % 0xFFFFFFFF,
        )  # the largest would mean "any" to llama.cpp


def cut_at_stop(text: str, stops: Sequence[str]) -> str:
    """``text`` up to the first of the stop strings in it.

    >>> cut_at_stop("one two three", ["three", "two"])
    'one '
    """
    return text[: min((at for stop in stops if (at := text.find(stop)) >= 0), default=len(text))]
