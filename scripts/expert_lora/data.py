"""Prompt/response files as batches of token ids; only response tokens count in the loss."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from safex.errors import InputError

IGNORED = -100  # a label that torch's cross entropy leaves out


class Example(NamedTuple):
    """Token ids of a rendered prompt with its response, and where the response starts."""

    ids: list[int]
    start: int


class Batch(NamedTuple):
    """[rows, tokens], padded on the right."""

    ids: Tensor
    attention: Tensor
    labels: Tensor


def read(path: Path) -> list[tuple[str, str]]:
    """The pairs of a JSONL file. Raises InputError with the line."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise InputError(f"{path}: can't be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no UTF-8 text ({error}); expected JSONL") from None
    pairs = [_pair(line, f"{path}:{n}") for n, line in enumerate(lines, 1) if line.strip()]
    if not pairs:
        raise InputError(f'{path}: is empty; expected lines such as {{"prompt": "...", "response": "..."}}')
    return pairs


def _pair(line: str, where: str) -> tuple[str, str]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise InputError(f"{where}: is no JSON ({error})") from None
    values = [row.get(key) if isinstance(row, dict) else None for key in ("prompt", "response")]
    if not all(isinstance(value, str) and value for value in values):
        raise InputError(f'{where}: expected an object with texts "prompt" and "response"')
    return values[0], values[1]


def encode(pairs: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase, longest: int) -> list[Example]:
    """Prompts rendered by the chat template, then response and end token; without the too long. Raises InputError."""
    if not tokenizer.chat_template:
        raise InputError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template: use an instruction-tuned checkpoint"
        )
    if tokenizer.eos_token is None:
        raise InputError(f"{tokenizer.name_or_path}: its tokenizer has no end token: set eos_token")
    examples = [_example(prompt, response, tokenizer) for prompt, response in pairs]
    kept = [example for example in examples if len(example.ids) <= longest]
    if not kept:
        raise InputError(f"all {len(pairs)} examples are longer than {longest} tokens: raise --max-tokens")
    if len(kept) < len(pairs):
        print(f"left out {len(pairs) - len(kept)} of {len(pairs)} examples, longer than {longest} tokens")
    return kept


def _example(prompt: str, response: str, tokenizer: PreTrainedTokenizerBase) -> Example:
    message = [{"role": "user", "content": prompt}]
    rendered = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    start = tokenizer(rendered, add_special_tokens=False)["input_ids"]
    answer = tokenizer(response + tokenizer.eos_token, add_special_tokens=False)["input_ids"]
    return Example(start + answer, len(start))


def batches(examples: list[Example], size: int, epochs: int, seed: int) -> Iterator[Batch]:
    """All examples once an epoch, in an order that the seed decides."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        order = torch.randperm(len(examples), generator=generator).tolist()
        for start in range(0, len(order), size):
            yield collate([examples[i] for i in order[start : start + size]])


def collate(examples: list[Example]) -> Batch:
    """Pad examples to one length."""
    width = max(len(example.ids) for example in examples)
    ids = torch.zeros(len(examples), width, dtype=torch.long)
    attention, labels = torch.zeros_like(ids), torch.full_like(ids, IGNORED)
    for row, (tokens, start) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        attention[row, : len(tokens)] = 1
        labels[row, start : len(tokens)] = ids[row, start : len(tokens)]
    return Batch(ids, attention, labels)


def to(batch: Batch, device: Any) -> Batch:
    """The batch on a device."""
    return Batch(*(part.to(device) for part in batch))
