"""Running a profile: prompts in windows through the model, what comes of each kept when it is done (dumps too)."""

from __future__ import annotations

import datetime
import hashlib
import os
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from .errors import InputError
from .journal import header_of
from .profile import Profile
from .profile_arrays import PROMPT_NOTES, PhaseArrays, PromptTable, Routers, prompts_hash
from .profile_journal import ProfileWriter
from .prompts import PromptSet

if TYPE_CHECKING:
    from .model import Model

# (n_tokens, counts, gate_sum, prob_sum) of one phase of one prompt, the arrays [n_layers, n_experts].
PhaseOfPrompt: TypeAlias = tuple[
    int, npt.NDArray[np.uint32], npt.NDArray[np.float64], npt.NDArray[np.float64]
]
Phases: TypeAlias = dict[str, PhaseOfPrompt]
Progress: TypeAlias = Callable[[int, int, int], None]
# Encoded prompts, what to do with each one's result, and whom to tell the tokens processed.
RunWindow: TypeAlias = Callable[[Sequence[Any], Callable[[int, Any], None], Callable[[int], None]], None]

# Prompts handed to the session at once: enough to fill ubatches well, few enough to keep memory flat.
WINDOW = 1024


class Sink(Protocol):
    """Where finished prompts go."""

    @property
    def done(self) -> set[int]:
        """Indices of the prompts that need not be run again."""

    def append(self, index: int, result: Any, /) -> None:
        """Keep what came of one prompt."""


class MemorySink:
    """Keeps a profile in arrays, for runs without an output file."""

    def __init__(self, phases: Sequence[str], n_prompts: int, routers: Routers) -> None:
        """Arrays of zeros for all prompts."""
        shape = (n_prompts, len(routers.layers), routers.n_experts)
        self.done: set[int] = set()
        self.arrays = {name: _empty_phase(shape) for name in phases}

    def append(self, index: int, phases: Phases) -> None:
        """Keep one prompt."""
        for name, (n_tokens, counts, gate_sum, prob_sum) in phases.items():
            target = self.arrays[name]
            target.n_tokens[index] = n_tokens
            target.counts[index] = counts
            target.gate_sum[index] = gate_sum
            target.prob_sum[index] = prob_sum
        self.done.add(index)


def _empty_phase(shape: tuple[int, int, int]) -> PhaseArrays:
    return PhaseArrays(
        np.zeros(shape, np.uint32), np.zeros(shape), np.zeros(shape), np.zeros(shape[0], np.int64)
    )


def profile_prompts(
    model: Model,
    prompts: PromptSet,
    inputs: Sequence[Any],
    max_new: int,
    *,
    output: str | os.PathLike[str] | None,
    resume: bool,
    force: bool,
    progress: Progress | None,
) -> Profile:
    """Profile ``inputs`` (what the model encodes), described by ``prompts`` (their ids and sets)."""
    if not len(prompts):
        raise InputError("there is no prompt to profile")
    if resume and output is not None:
        model.use_date_of(header_of(output))
    check_all_lengths(model, inputs, max_new)
    routers = Routers.build(model.layers, model.n_experts, model.top_k_of_layers)
    texts_hash = [hashlib.sha256(prompt.text.encode()).hexdigest() for prompt in prompts]
    table = PromptTable.build(prompts.sets, prompts.ids, prompts.pairs, prompts.categories, texts_hash)
    phases = ("prompt", "suffix", "response") if max_new else ("prompt", "suffix")
    meta = provenance(model, table, max_new)
    if prompts.notes:
        meta[PROMPT_NOTES] = list(prompts.notes)

    def run(
        encoded: Sequence[Any], deliver: Callable[[int, Phases], None], on_tokens: Callable[[int], None]
    ) -> None:
        model.stream_statistics(encoded, max_new, deliver, on_tokens)

    if output is None:
        memory = MemorySink(phases, len(prompts), routers)
        run_windows(model, inputs, run, memory, progress)
        return Profile(memory.arrays, routers, table, meta)
    settings = (meta, routers.layers, routers.n_experts, routers.top_k, table, phases)
    with ProfileWriter(output, *settings, resume=resume, force=force) as writer:
        run_windows(model, inputs, run, writer, progress)
        return Profile.load(writer.finish())


def provenance(model: Model, table: PromptTable, max_new: int) -> dict[str, Any]:
    """The metadata of a profile."""
    now = datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
    return {
        **model.provenance(),
        "prompts_hash": prompts_hash(table),
        "session.max_new": max_new,
        "session.templated": bool(model.chat),
        "created": now,
    }


def run_windows(
    model: Model, inputs: Sequence[Any], run: RunWindow, sink: Sink, progress: Progress | None
) -> None:
    """``run`` what the sink has not got yet."""
    left = [index for index in range(len(inputs)) if index not in sink.done]
    n_tokens = in_window = 0

    def report(tokens: int) -> None:
        nonlocal in_window
        in_window = tokens
        if progress:
            progress(len(sink.done), len(inputs), n_tokens + tokens)

    report(0)
    for start in range(0, len(left), WINDOW):
        window = left[start : start + WINDOW]
        encoded = [model.encode(inputs[index]) for index in window]
        run(encoded, _into(sink, window), report)
        n_tokens += in_window
        in_window = 0
    report(0)


def _into(sink: Sink, window: Sequence[int]) -> Callable[[int, Any], None]:
    """Append by place in the window."""
    return lambda place, result: sink.append(window[place], result)


def check_all_lengths(model: Model, inputs: Sequence[Any], max_new: int) -> None:
    """Refuse a prompt that does not fit before hours are spent on those before it."""
    for start in range(0, len(inputs), WINDOW):
        window = inputs[start : start + WINDOW]
        model.check_lengths([model.encode(item) for item in window], window, max_new, first=start)
