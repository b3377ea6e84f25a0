"""The features file, in safetensors format: how it is written and read.

Tensors: ``L:E`` F32 [n_prompts, n_embd] for each expert; ``n_tokens`` U32 and ``router_probs`` F32 [n_experts,
n_prompts], experts in the order of the metadata: experts, prompts (ids, sets, pairs, categories, texts_hash), texts,
roster (groups, controls, notes), routing, pool, phase, meta (keys as in a profile).
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from safex import disk, roster
from safex.experts import Expert, to_expert
from safex.features import Features
from safex.profile_arrays import PromptTable, blocks
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

KIND = Kind("safex_features", "features")
N_TOKENS, ROUTER_PROBS = "n_tokens", "router_probs"


def layout_of(experts: Sequence[Expert], n_prompts: int, n_embd: int, content: Mapping[str, Any]) -> Layout:
    """Where everything of a features file lies."""
    tensors = {str(expert): Tensor("F32", [n_prompts, n_embd]) for expert in experts}
    tensors[N_TOKENS] = Tensor("U32", [len(experts), n_prompts])
    tensors[ROUTER_PROBS] = Tensor("F32", [len(experts), n_prompts])
    return Layout(KIND, tensors, content)


def content_of(
    experts: Sequence[Expert],
    prompts: PromptTable,
    texts: Sequence[str] | None,
    roster: roster.Roster,
    settings: Mapping[str, str],
    meta: Mapping[str, Any],
) -> dict[str, Any]:
    """What the metadata holds; ``settings``: routing, pool, phase."""
    return {
        "experts": [str(expert) for expert in experts],
        "prompts": asdict(prompts),
        "texts": texts,
        "roster": roster.to_json(),
        **settings,
        "meta": meta,
    }


def save_features(features: Features, path: str | os.PathLike[str]) -> None:
    """Write features in blocks to a temporary file that replaces ``path``. Raises DiskError, InputError."""
    f = features
    settings = {"routing": f.routing, "pool": f.pool, "phase": f.phase}
    content = content_of(f.experts, f.prompts, f.texts, f.roster, settings, f.meta)
    layout = layout_of(f.experts, len(f.sets), f.n_embd, content)
    with disk.replacing(Path(path)) as (fd, _):
        layout.write_header(fd)
        for expert, array in zip(f.experts, f.values, strict=True):
            for rows in blocks(array):
                layout.write_rows(fd, str(expert), rows.start, array[rows])
        layout.write_rows(fd, N_TOKENS, 0, f.n_tokens)
        layout.write_rows(fd, ROUTER_PROBS, 0, f.router_probs)


def load_features(path: str | os.PathLike[str]) -> Features:
    """Map a features file and check all of it. Raises InputError: path, what was expected, what was found."""
    path = Path(path)
    with named_errors(path):
        content = read_content(path, KIND)
        experts = [to_expert(text) for text in list_of(content, "experts")]
        names = dict.fromkeys(map(str, experts), "F32") | {N_TOKENS: "U32", ROUTER_PROBS: "F32"}
        arrays = map_tensors(path, names)
        texts = content.get("texts")
        return Features(
            experts,
            [arrays[str(expert)] for expert in experts],
            arrays[N_TOKENS],
            prompts_of(content),
            None if texts is None else list_of(content, "texts"),
            roster.from_json(content.get("roster")),
            str(content.get("routing")),
            str(content.get("pool")),
            str(content.get("phase")),
            object_of(content, "meta"),
            arrays[ROUTER_PROBS],
        )
