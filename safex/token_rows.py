"""Token rows: what chosen experts put out at every token. ``model.dump_tokens`` makes them.

The file is safetensors. For each expert: ``L:E`` F32 [rows, n_embd], and of each row ``L:E.prompt`` U32,
``L:E.position`` U32 and ``L:E.router_prob`` F32. ``n_rows`` U32 [n_experts, n_prompts]. ``tokens`` I32: the ids of all
prompts (and answers) one after another, of which ``n_tokens`` U32 [n_prompts] belong to each. Metadata as in a features
file.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from safex import roster
from safex.experts import Expert, ExpertLike, to_expert
from safex.features import not_dumped
from safex.profile_arrays import MetaValue, PromptTable
from safex.roster import Roster
from safex.tensors_file import (
    Kind,
    Layout,
    Tensor,
    list_of,
    map_tensors,
    named_errors,
    object_of,
    prompts_of,
    read_content,
)

KIND = Kind("safex_tokens", "token rows")

Values: TypeAlias = npt.NDArray[np.float32]
Counts: TypeAlias = npt.NDArray[np.uint32]


class Rows(NamedTuple):
    """An expert's output at tokens of the phase, prompt by prompt: all of them, or those that selected it.

    ``values`` float32 [rows, n_embd], before the gate weight. Of each row: ``prompts`` and ``positions`` uint32 say
    which token of which prompt, ``router_probs`` float32 what probability the router gave the expert there.
    """

    values: Values
    prompts: Counts
    positions: Counts
    router_probs: Values


PARTS = {"": "F32", ".prompt": "U32", ".position": "U32", ".router_prob": "F32"}  # of Rows, as tensors


@dataclass(frozen=True)
class TokenRows:
    """Outputs of E experts at the tokens of P prompts; see ``of``.

    ``tokens``: the token ids of each prompt, with those of its answer where ``phase`` is "response"; positions count in
    these. The other fields as in ``Features``.
    """

    experts: list[Expert]
    rows: list[Rows]
    n_rows: Counts  # [E, P]
    tokens: list[npt.NDArray[np.int32]]
    prompts: PromptTable
    texts: list[str]
    roster: Roster
    routing: str
    phase: str
    meta: Mapping[str, MetaValue]

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> TokenRows:
        """Open a file of ``dump_tokens`` with memory-mapped, read-only arrays. Raises InputError."""
        path = Path(path)
        with named_errors(path):
            content = read_content(path, KIND)
            experts = [to_expert(text) for text in list_of(content, "experts")]
            names = {f"{expert}{part}": dtype for expert in experts for part, dtype in PARTS.items()}
            arrays = map_tensors(path, names | {"n_rows": "U32", "tokens": "I32", "n_tokens": "U32"})
            return cls(
                experts,
                [Rows(*(arrays[f"{expert}{part}"] for part in PARTS)) for expert in experts],
                arrays["n_rows"],
                np.split(arrays["tokens"], np.cumsum(arrays["n_tokens"], dtype=np.int64)[:-1]),
                prompts_of(content),
                list_of(content, "texts"),
                roster.from_json(content.get("roster")),
                str(content.get("routing")),
                str(content.get("phase")),
                object_of(content, "meta"),
            )

    def of(self, expert: ExpertLike) -> Rows:
        """The rows of an expert. Raises InputError for one that was not dumped."""
        wanted = to_expert(expert)
        if wanted not in self.experts:
            raise not_dumped(wanted, self.experts)
        return self.rows[self.experts.index(wanted)]

    def __repr__(self) -> str:
        """Say the size in one line."""
        n_rows = sum(len(rows.values) for rows in self.rows)
        return (
            f"TokenRows({len(self.experts)} experts x {len(self.tokens)} prompts, {n_rows} rows, {self.routing}, "
            f"{self.phase})"
        )


def layout_of(
    experts: Sequence[Expert], n_rows: Counts, n_tokens: Counts, n_embd: int, content: Mapping[str, Any]
) -> Layout:
    """Where everything lies: ``n_rows`` [n_experts, n_prompts], ``n_tokens`` [n_prompts]."""
    tensors = {}
    for expert, total in zip(experts, n_rows.sum(axis=1, dtype=np.int64).tolist(), strict=True):
        for part, dtype in PARTS.items():
            tensors[f"{expert}{part}"] = Tensor(dtype, [total] if part else [total, n_embd])
    tensors["n_rows"] = Tensor("U32", n_rows.shape)
    tensors["tokens"] = Tensor("I32", [int(n_tokens.sum(dtype=np.int64))])
    tensors["n_tokens"] = Tensor("U32", n_tokens.shape)
    return Layout(KIND, tensors, content)
