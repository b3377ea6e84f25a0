"""A tiny dense guard model with weights made by hand: it says one word where a marker occurs in its text, else another.

    write_guard(path, marker=" cannot", present=[" yes"], absent=[" no"])

One attention head looks for the marker's token anywhere in the text; everything else is zero. So its answers are
known, while tokenizer, chat template and every step of the computation are those of a real file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import gguf
import numpy as np
import tiny_models
from tiny_models import CHAT_TEMPLATE, HIDDEN, MERGES, VOCAB

ARCH = "dense-llama"
_STILL = 14  # a dimension of the head that rotary embedding hardly turns
_ALWAYS, _MARKER, _FOUND = range(3)  # dimensions of the residual stream
_N_MERGES = len(MERGES)

# The llama tokenizer's pieces: three specials, the bytes, then words with all their beginnings.
_SPM_SPECIALS = ["<unk>", "<s>", "</s>"]
_N_PIECES = VOCAB - 256 - len(_SPM_SPECIALS)


def write_guard(
    path: Path,
    marker: str = " cannot",
    present: Sequence[str] = (" yes", "yes"),
    absent: Sequence[str] = (" no", "no"),
    known: Sequence[str] = (),
    strength: float = 1.0,
    spm: bool = False,
    quant: str | None = None,
) -> Path:
    """Write a guard that answers ``present`` where its text holds the word ``marker`` and else ``absent``.

    All these words and the ``known`` ones are single tokens. A guard of small ``strength`` is not sure. ``spm``: with a
    tokenizer as Llama 2 and Mistral have it, else as Llama 3.
    """
    words = sorted({marker, *present, *absent, *known}, key=lambda word: (-len(word), word))
    tokens, add_tokenizer = _spm(words) if spm else _bpe(words)
    space = "▁" if spm else "Ġ"

    def ids(spellings: Sequence[str]) -> list[int]:
        return [tokens.index(word.replace(" ", space)) for word in spellings]

    tensors = _weights(ids([marker]), ids(present), ids(absent))
    tensors["output.weight"] *= strength
    return tiny_models.write_gguf(path, ARCH, tensors, quant, add_tokenizer=add_tokenizer)


def _weights(marker: list[int], present: list[int], absent: list[int]) -> tiny_models.Tensors:
    shapes = tiny_models.tensor_shapes(ARCH)
    tensors = {name: np.full(shape, float("norm" in name), np.float32) for name, shape in shapes.items()}
    tensors["token_embd.weight"][:, _ALWAYS] = 1
    tensors["token_embd.weight"][marker, _MARKER] = 1
    tensors["blk.0.attn_q.weight"][_STILL, _ALWAYS] = 1
    tensors["blk.0.attn_k.weight"][_STILL, _MARKER] = 5
    tensors["blk.0.attn_v.weight"][0, _MARKER] = 1
    tensors["blk.0.attn_output.weight"][_FOUND, 0] = 2 / HIDDEN**0.5
    tensors["output.weight"][present, _FOUND] = 4
    tensors["output.weight"][absent, _ALWAYS] = 2
    tensors["output.weight"][absent, _FOUND] = -4
    return tensors


def _chain(words: Sequence[str]) -> list[tuple[str, str]]:
    """The merges that make each word of its characters."""
    return [(word[:i], word[i]) for word in words for i in range(1, len(word))]


def _bpe(words: Sequence[str]) -> tuple[list[str], Callable[[gguf.GGUFWriter], None]]:
    chain = [f"{head} {tail}" for head, tail in _chain([word.replace(" ", "Ġ") for word in words])]
    merges = list(dict.fromkeys([*chain, *MERGES]))[:_N_MERGES]
    assert len(chain) <= _N_MERGES
    return tiny_models.bpe_tokens(merges), partial(tiny_models.add_bpe, merges=merges)


def _spm(words: Sequence[str]) -> tuple[list[str], Callable[[gguf.GGUFWriter], None]]:
    made = [head + tail for head, tail in _chain([word.replace(" ", "▁") for word in words])]
    pieces = list(dict.fromkeys(["▁", *made]))
    assert len(pieces) <= _N_PIECES
    pieces += [f"<unused{i}>" for i in range(_N_PIECES - len(pieces))]
    tokens = [*_SPM_SPECIALS, *(f"<0x{byte:02X}>" for byte in range(256)), *pieces]
    return tokens, partial(_add_spm, tokens=tokens)


def _add_spm(writer: gguf.GGUFWriter, tokens: list[str]) -> None:
    kinds = gguf.TokenType
    types = [kinds.UNKNOWN, kinds.CONTROL, kinds.CONTROL, *[kinds.BYTE] * 256, *[kinds.NORMAL] * _N_PIECES]
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores([-float(i) for i in range(VOCAB)])
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(True)
    writer.add_chat_template(CHAT_TEMPLATE)
