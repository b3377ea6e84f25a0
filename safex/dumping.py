"""Dumping features: prompts in windows through the model, each one's pooled expert outputs kept when it is done."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from safex import disk
from safex.errors import InputError
from safex.expert_set import UNNAMED, ExpertSet
from safex.experts import Expert, ExpertList
from safex.features import POOLS, ROUTINGS, Features, Tokens, Values
from safex.features_file import Layout, content_of
from safex.journal import Journal, check_start, journal_path
from safex.profile_arrays import PromptTable
from safex.profiling import Progress, RunWindow, Sink, check_all_lengths, provenance, run_windows
from safex.prompts import PromptSet
from safex.roster import Roster, to_experts

if TYPE_CHECKING:
    from safex.model import Model

PHASE_NAMES = ("prompt", "suffix", "response")
MAGIC = b"safex dump 1\n"

Pooled: TypeAlias = tuple[Tokens, Values]  # of one prompt: n_tokens [n_experts], features [n_experts, n_embd]


class MemorySink:
    """Keeps features in arrays, for runs without an output file."""

    def __init__(self, n_experts: int, n_prompts: int, n_embd: int) -> None:
        """Nothing is done yet."""
        self.done: set[int] = set()
        self.values = np.full((n_experts, n_prompts, n_embd), np.nan, np.float32)
        self.n_tokens = np.zeros((n_experts, n_prompts), np.uint32)

    def append(self, index: int, pooled: Pooled) -> None:
        """Keep one prompt; experts that pooled no token stay missing."""
        n_tokens, values = pooled
        self.n_tokens[:, index] = n_tokens
        self.values[n_tokens > 0, index] = values[n_tokens > 0]
        self.done.add(index)


class FileSink:
    """Keeps each prompt in a journal beside the features file, which is written when all are there."""

    def __init__(
        self, path: Path, layout: Layout, n_prompts: int, settings: dict[str, Any], resume: bool, force: bool
    ) -> None:
        """Begin, or go on where the run that was stopped left off. Raises InputError, DiskError."""
        check_start(path, journal_path(path).exists(), resume, force)
        self._path, self._layout, self._shape = path, layout, (len(layout.experts), n_prompts)
        self._journal = Journal(journal_path(path), MAGIC, "dump")
        try:
            _, records = self._journal.begin(settings, {})
            self.done = {self._parts(record)[0] for record in records}
            self._journal.cut()
        except BaseException:
            self._journal.close(remove=False)
            raise

    def _parts(self, record: bytes) -> tuple[int, Tokens, Values]:
        """Index, n_tokens and features of a record."""
        head = np.frombuffer(record, "<u4", 1 + self._shape[0])
        values = np.frombuffer(record, "<f4", offset=head.nbytes).reshape(self._shape[0], -1)
        return int(head[0]), head[1:], values

    def append(self, index: int, pooled: Pooled) -> None:
        """Keep one prompt. Raises DiskError."""
        n_tokens, values = pooled
        values = np.where(n_tokens[:, None] > 0, values, np.float32(np.nan))
        head = np.concatenate([[index], n_tokens]).astype("<u4")
        self._journal.append(head.tobytes() + values.astype("<f4").tobytes())
        self.done.add(index)

    def finish(self) -> Features:
        """Write the features file from the journal and map it. Raises DiskError."""
        n_tokens = np.zeros(self._shape, np.uint32)
        with disk.replacing(self._path) as (fd, _):
            self._layout.write_header(fd)
            for number, record in enumerate(self._journal.records()):
                if number < 2:  # the headers of the run
                    continue
                index, n_tokens[:, index], values = self._parts(record)
                for expert, row in zip(self._layout.experts, values, strict=True):
                    self._layout.write_rows(fd, expert, index, row)
            self._layout.write_n_tokens(fd, n_tokens)
        self._journal.close(remove=True)
        return Features.load(self._path)

    def __enter__(self) -> FileSink:
        """Itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of the journal; it stays where the run did not end."""
        if kind is not None:
            self._journal.close(remove=False)


def as_roster(experts: ExpertList | ExpertSet | Roster) -> Roster:
    """Who is dumped: a roster as it is, the groups of an expert set, or a list as one group."""
    if isinstance(experts, Roster):
        return experts
    if isinstance(experts, ExpertSet):
        return Roster({name: members for name, members in experts.groups.items() if members})
    return Roster({UNNAMED: list(dict.fromkeys(to_experts(experts)))})


def dump_experts(
    model: Model,
    roster: Roster,
    prompts: PromptSet,
    inputs: Sequence[Any],
    *,
    routing: str,
    pool: str,
    phase: str,
    max_new: int,
    output: str | os.PathLike[str] | None,
    resume: bool,
    force: bool,
    progress: Progress | None,
) -> Features:
    """Features of all experts of ``roster`` on ``inputs`` (what the model encodes), described by ``prompts``."""
    settings = {"routing": routing, "pool": pool, "phase": phase}
    _check(prompts, settings)
    experts = roster.experts
    n_new = max_new if phase == "response" else 0
    check_all_lengths(model, inputs, n_new)
    hashes = [hashlib.sha256(prompt.text.encode()).hexdigest() for prompt in prompts]
    table = PromptTable.build(prompts.sets, prompts.ids, prompts.pairs, prompts.categories, hashes)
    texts = [prompt.text for prompt in prompts]
    meta = provenance(model, table, n_new)
    n_embd = model.facts.n_embd

    def run(sink: Sink) -> None:
        run_windows(model, inputs, _stream(model, experts, settings, n_new), sink, progress)

    if output is None:
        memory = MemorySink(len(experts), len(prompts), n_embd)
        run(memory)
        return Features(
            experts, list(memory.values), memory.n_tokens, table, texts, roster, **settings, meta=meta
        )
    layout = Layout(experts, len(prompts), n_embd, content_of(experts, table, texts, roster, settings, meta))
    fixed = {**{key: value for key, value in meta.items() if key != "created"}, **settings}
    fixed |= {"experts": ",".join(map(str, experts)), "n_embd": n_embd}
    with FileSink(Path(output), layout, len(prompts), fixed, resume, force) as file:
        run(file)
        return file.finish()


def _check(prompts: PromptSet, settings: dict[str, str]) -> None:
    if not len(prompts):
        raise InputError("there is no prompt to dump")
    known = {"routing": ROUTINGS, "pool": POOLS, "phase": PHASE_NAMES}
    for name, value in settings.items():
        if value not in known[name]:
            raise InputError(f"{name} is {value!r}, expected one of {', '.join(known[name])}")


def _stream(model: Model, experts: Sequence[Expert], settings: dict[str, str], max_new: int) -> RunWindow:
    """What runs a window of encoded prompts."""
    capture = (
        [(expert.layer, expert.expert) for expert in experts],
        settings["routing"] == "forced",
        settings["pool"] == "last",
        settings["phase"],
    )
    return lambda encoded, deliver, on_tokens: model.stream_features(
        encoded, capture, max_new, deliver, on_tokens
    )
