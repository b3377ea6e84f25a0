"""Dumping: prompts in windows through the model, what chosen experts put out for each kept when it is done."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from safex.dump_sinks import (
    JournalSink,
    MemorySink,
    Pooled,
    Unpooled,
    stack_pooled,
    stack_rows,
    write_features,
    write_token_rows,
)
from safex.errors import InputError
from safex.expert_set import UNNAMED, ExpertSet
from safex.experts import ExpertList
from safex.features import POOLS, ROUTINGS, Features
from safex.features_file import content_of
from safex.journal import header_of
from safex.profile_arrays import PHASES, PromptTable
from safex.profiling import Progress, Sink, check_all_lengths, provenance, run_windows
from safex.prompts import PromptSet
from safex.roster import Roster, to_experts
from safex.token_rows import TokenRows

if TYPE_CHECKING:
    from safex.model import Encoded, Model

Keep: TypeAlias = Callable[["Encoded", dict[str, Any]], Any]  # what is kept of one prompt's result


def as_roster(experts: ExpertList | ExpertSet | Roster) -> Roster:
    """Who is dumped: a roster as it is, the groups of an expert set, or a list as one group."""
    if isinstance(experts, Roster):
        return experts
    if isinstance(experts, ExpertSet):
        return Roster({name: members for name, members in experts.groups.items() if members})
    return Roster({UNNAMED: list(dict.fromkeys(to_experts(experts)))})


@dataclass(frozen=True)
class Dump:
    """A dump that is about to run. ``inputs`` are what the model encodes, described by ``prompts``."""

    model: Model
    roster: Roster
    prompts: PromptSet
    inputs: Sequence[Any]
    routing: str
    pool: str
    phase: str
    max_new: int
    resume: bool
    force: bool
    progress: Progress | None

    def features(self, output: str | os.PathLike[str] | None) -> Features:
        """Run it, pooled."""
        _check("pool", self.pool, POOLS)
        content, settings = self._prepare(output)
        experts, n_embd = self.roster.experts, self.model.facts.n_embd
        if output is not None:
            how = {"resume": self.resume, "force": self.force}
            with JournalSink[Pooled](Path(output), settings, self._unpack, **how) as sink:
                self._run(sink, _pooled)
                return write_features(sink, experts, n_embd, content)
        memory: MemorySink[Pooled] = MemorySink()
        self._run(memory, _pooled)
        values, n_tokens, probs = stack_pooled(memory)
        about = (self.roster, self.routing, self.pool, self.phase, content["meta"])
        return Features(experts, values, n_tokens, self._table, content["texts"], *about, probs)

    def token_rows(self, output: str | os.PathLike[str] | None) -> TokenRows:
        """Run it, every token for itself."""
        content, settings = self._prepare(output)
        experts, n_embd = self.roster.experts, self.model.facts.n_embd
        if output is not None:
            how = {"resume": self.resume, "force": self.force}
            with JournalSink[Unpooled](Path(output), settings, Unpooled.unpack, **how) as sink:
                self._run(sink, _unpooled)
                return write_token_rows(sink, experts, n_embd, content)
        memory: MemorySink[Unpooled] = MemorySink()
        self._run(memory, _unpooled)
        tokens = [kept.tokens for _, kept in memory.records()]
        about = (self.roster, self.routing, self.phase, content["meta"])
        rows, n_rows = stack_rows(memory, len(experts))
        return TokenRows(experts, rows, n_rows, tokens, self._table, content["texts"], *about)

    @property
    def _n_new(self) -> int:
        return self.max_new if self.phase == "response" else 0

    @cached_property
    def _table(self) -> PromptTable:
        prompts = self.prompts
        hashes = [hashlib.sha256(prompt.text.encode()).hexdigest() for prompt in prompts]
        return PromptTable.build(prompts.sets, prompts.ids, prompts.pairs, prompts.categories, hashes)

    def _prepare(self, output: str | os.PathLike[str] | None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Check everything; the metadata of the file, and what must be the same for a run to go on."""
        if self.resume and output is not None:
            self.model.use_date_of(header_of(output))
        settings = {"routing": self.routing, "pool": self.pool, "phase": self.phase}
        _check("routing", self.routing, ROUTINGS)
        _check("phase", self.phase, PHASES)
        if not len(self.prompts):
            raise InputError("there is no prompt to dump")
        check_all_lengths(self.model, self.inputs, self._n_new)
        meta = provenance(self.model, self._table, self._n_new)
        experts = self.roster.experts
        texts = [prompt.text for prompt in self.prompts]
        content = content_of(experts, self._table, texts, self.roster, settings, meta)
        fixed = {**{key: value for key, value in meta.items() if key != "created"}, **settings}
        return content, fixed | {"experts": ",".join(map(str, experts)), "n_embd": self.model.facts.n_embd}

    def _unpack(self, data: memoryview) -> Pooled:
        return Pooled.unpack(data, len(self.roster.experts))

    def _run(self, sink: Sink, keep: Keep) -> None:
        pairs = [(expert.layer, expert.expert) for expert in self.roster.experts]
        capture = (pairs, self.routing == "forced", self.pool, self.phase)

        def run(
            encoded: Sequence[Any], deliver: Callable[[int, Any], None], on_tokens: Callable[[int], None]
        ) -> None:
            def on_result(index: int, result: dict[str, Any]) -> None:
                deliver(index, keep(encoded[index], result))

            self.model.stream_captured(encoded, capture, self._n_new, on_result, on_tokens)

        run_windows(self.model, self.inputs, run, sink, self.progress)


def _pooled(_: Encoded, result: dict[str, Any]) -> Pooled:
    captured = result["captured"]
    n_tokens, values = captured["n_pooled"], captured["features"]
    values[n_tokens == 0] = np.nan
    return Pooled(n_tokens, captured["probs"], values)


def _unpooled(encoded: Encoded, result: dict[str, Any]) -> Unpooled:
    captured = result["captured"]
    tokens = np.array([*encoded.tokens, *result["generated"]], np.int32)
    parts = (captured[name] for name in ("experts", "positions", "probs", "features"))
    return Unpooled(tokens, *parts)


def _check(name: str, value: str, known: Sequence[str]) -> None:
    if value not in known:
        raise InputError(f"{name} is {value!r}, expected one of {', '.join(known)}")
