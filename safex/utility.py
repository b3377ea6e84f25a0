"""What a mask costs on harmless text: perplexity, divergence from the unmasked model, agreement of the best token."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from safex.errors import DeviceError, InputError
from safex.experts import ExpertList
from safex.model import Model
from safex.model_file import is_demo
from safex.rates import Estimate, cluster_bootstrap, rate

Floats: TypeAlias = npt.NDArray[np.float64]
Progress: TypeAlias = Callable[[int, int], None]

WINDOW = 128  # tokens
RESAMPLES = 2000
_ROWS = 32  # rows of logits in double precision at once: 40 MB at 150,000 tokens of vocabulary
_DATA = Path(__file__).parent / "data"


class Window(NamedTuple):
    """A piece that the model is shown alone; its tokens from number ``first`` (at least 1) on are predicted."""

    tokens: list[int]
    first: int


@dataclass(frozen=True)
class Utility:
    """What a mask changes on ``n_tokens`` predicted tokens of ``n_windows`` windows.

    ``kl``: mean KL(unmasked || masked) of the next-token distributions, in nats a token. ``perplexity`` of the unmasked
    model, ``masked_perplexity``, and their ``ratio`` (masked / unmasked). ``agreement``: share of positions where both
    have the same best token. 95 % intervals: windows resampled, the same ones for both models (``agreement``: Wilson
    with the effective number of tokens). They speak for more text of this kind, not for other text.
    """

    n_tokens: int
    n_windows: int
    kl: Estimate
    perplexity: Estimate
    masked_perplexity: Estimate
    ratio: Estimate
    agreement: Estimate

    def to_json(self) -> dict[str, Any]:
        """Plain values."""
        parts = ("kl", "perplexity", "masked_perplexity", "ratio", "agreement")
        estimates = {name: getattr(self, name).to_json() for name in parts}
        return {"n_tokens": self.n_tokens, "n_windows": self.n_windows, **estimates}


def measure_utility(
    model: Model,
    masks: Mapping[str, ExpertList],
    windows: Sequence[Window] | None = None,
    mode: str = "zero",
    gain: float = 0.0,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Utility]:
    """Utility under each of the named masks, on ``windows`` (None: ``default_windows``).

    The unmasked model runs once for all masks. In memory at a time: the logits of one window, unmasked and masked.
    ``progress(runs done, runs in all)``. Raises InputError for fewer than two windows or one longer than the
    context, before anything is computed; DeviceError for logits that are no numbers.

    >>> with Model("demo", n_threads=1) as model:
    ...     measure_utility(model, {"none": []})["none"].kl
    Estimate(value=0.0, low=0.0, high=0.0)
    """
    chosen = default_windows(model) if windows is None else list(windows)
    _check(chosen, model.n_ctx)
    found: dict[str, list[_Scores]] = {name: [] for name in masks}
    total, done = len(chosen) * (1 + len(masks)), 0
    for number, window in enumerate(chosen):
        unmasked = _logits(model, window, number, None, mode, gain)
        for name, experts in masks.items():
            masked = _logits(model, window, number, experts, mode, gain)
            found[name].append(_compare(unmasked, masked, np.array(window.tokens[window.first :])))
        done += 1 + len(masks)
        if progress:
            progress(done, total)
    return {name: _summary(scores, seed) for name, scores in found.items()}


# --- windows


def default_windows(model: Model, size: int = WINDOW) -> list[Window]:
    """The benign text that ships, or for a demo model, which knows no other language, its ``demo_windows``."""
    return demo_windows(model) if is_demo(model.path) else text_windows(model, benign_text(), size)


def text_windows(model: Model, text: str, size: int = WINDOW) -> list[Window]:
    """Raw text cut into windows of ``size`` tokens, each after a BOS where the model wants one.

    Names of special tokens in the text stand for themselves. A last piece too short to predict a token is left out.
    """
    if size < 2:
        raise InputError(f"a window of {size} tokens predicts nothing: expected at least 2")
    opening = [model.facts.bos] if model.facts.adds_bos and model.facts.bos >= 0 else []
    tokens, step = model.tokenize(text, special=False), size - len(opening)
    pieces = (opening + tokens[start : start + step] for start in range(0, len(tokens), step))
    return [Window(piece, 1) for piece in pieces if len(piece) > 1]


def demo_windows(model: Model) -> list[Window]:
    """The demo models' own language: the 80 held-out benign prompts in the chat template, each with its right answer.

    The answer and the token that ends it are predicted. (The same answers without a prompt are no text that the demo
    models know: perplexity 20, with it 1.002.)
    """
    lines = (_DATA / "demo" / "benign.jsonl").read_text(encoding="utf-8").splitlines()
    return [answer_window(model, row["prompt"], row["comply"]) for row in map(json.loads, lines)]


def answer_window(model: Model, prompt: str, answer: str) -> Window:
    """A templated prompt and the answer to be predicted, with the end-of-text token where the model has one."""
    opening = model.encode(prompt).tokens
    end = [model.facts.eos] if model.facts.eos >= 0 else []
    return Window(opening + model.tokenize(answer, special=False) + end, len(opening))


def benign_text() -> str:
    """The plain prose that ships: about 1,500 words written for this project."""
    return read_text(_DATA / "text" / "benign.txt")


def read_text(path: str | os.PathLike[str]) -> str:
    """A text file. Raises InputError where it is missing, can't be read, is not UTF-8 or is empty."""
    try:
        text = Path(path).read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text (byte {error.start}); save it as UTF-8") from None
    if not text.strip():
        raise InputError(f"{path}: is empty; expected some pages of plain text")
    return text


def _check(windows: Sequence[Window], n_ctx: int) -> None:
    if len(windows) < 2:
        raise InputError(
            f"the text gives {len(windows)} window{'' if len(windows) == 1 else 's'}, intervals need at least 2: "
            "take a longer text or shorter windows"
        )
    for number, window in enumerate(windows):
        if not 1 <= window.first < len(window.tokens):
            raise InputError(
                f"window {number} of {len(window.tokens)} tokens predicts none from number {window.first}"
            )
        if len(window.tokens) > n_ctx:
            raise InputError(
                f"window {number} has {len(window.tokens)} tokens, the context holds {n_ctx}: take shorter windows"
            )


# --- one window


class _Scores(NamedTuple):
    """Of each predicted token: divergence, negative log-likelihood unmasked and masked, whether the best agree."""

    kl: Floats
    unmasked: Floats
    masked: Floats
    same: npt.NDArray[np.bool_]


def _logits(
    model: Model, window: Window, number: int, experts: ExpertList | None, mode: str, gain: float
) -> npt.NDArray[np.float32]:
    """Rows that predict the window's tokens from ``first`` on."""
    rows = model.logits(window.tokens, experts, mode, gain)[window.first - 1 : -1]
    if np.isnan(rows).any():
        which = f"under the mask of {len(experts)} experts" if experts else "without a mask"
        raise DeviceError(
            f"window {number}: the model's logits {which} are no numbers (NaN): is the file broken?"
        )
    return rows


def _compare(
    unmasked: npt.NDArray[np.float32], masked: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
) -> _Scores:
    n = len(targets)
    kl, nll = np.empty(n), np.empty((2, n))
    for start in range(0, n, _ROWS):
        rows = slice(start, min(n, start + _ROWS))
        p, q = _log_softmax(unmasked[rows]), _log_softmax(masked[rows])
        kl[rows] = _divergence(p, q)
        picked = np.arange(len(p)), targets[rows]
        nll[:, rows] = -p[picked], -q[picked]
    return _Scores(kl, nll[0], nll[1], unmasked.argmax(axis=1) == masked.argmax(axis=1))


def _log_softmax(logits: npt.NDArray[np.float32]) -> Floats:
    values = logits.astype(np.float64)
    values -= values.max(axis=1, keepdims=True)
    values -= np.log(np.exp(values).sum(axis=1, keepdims=True))
    return values


def _divergence(p: Floats, q: Floats) -> Floats:
    """KL(p || q) of rows of log-probabilities, in nats; tokens that p rules out add nothing."""
    gap = np.subtract(p, q, out=np.zeros_like(p), where=p > -np.inf)
    return np.asarray(np.maximum((np.exp(p) * gap).sum(axis=1), 0.0))


# --- all windows


def _summary(scores: Sequence[_Scores], seed: int) -> Utility:
    sizes = np.array([len(one.kl) for one in scores])
    unmasked, masked = (np.array([one[i].sum() for one in scores]) for i in (1, 2))
    agreement = rate(
        np.concatenate([one.same for one in scores]).tolist(),
        np.repeat(np.arange(len(sizes)), sizes).tolist(),
    )
    assert agreement is not None  # there are windows
    return Utility(
        n_tokens=int(sizes.sum()),
        n_windows=len(sizes),
        kl=_per_token(np.array([one.kl.sum() for one in scores]), sizes, seed),
        perplexity=_exp(_per_token(unmasked, sizes, seed)),
        masked_perplexity=_exp(_per_token(masked, sizes, seed)),
        ratio=_exp(_per_token(masked - unmasked, sizes, seed)),
        agreement=agreement,
    )


def _per_token(sums: Floats, sizes: npt.NDArray[np.int64], seed: int) -> Estimate:
    """Mean over tokens, windows resampled; the same seed draws the same windows."""
    return cluster_bootstrap(
        lambda rows: float(sums[rows].sum() / sizes[rows].sum()), range(len(sums)), RESAMPLES, seed
    )


def _exp(estimate: Estimate) -> Estimate:
    return Estimate(*(float(np.exp(value)) for value in estimate))
