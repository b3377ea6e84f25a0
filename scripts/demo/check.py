"""Comparison of a written model with two other implementations: transformers, and llama.cpp if installed."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch
from tokenizers import Tokenizer

from demo.evaluate import answer
from demo.files import read_gguf
from demo.model import Model
from demo.text import Item
from demo.tokenizer import encode_prompts, render

TOLERANCE = 1e-5
PER_SET = 5


@torch.inference_mode()
def transformers_error(model: Model, tokenizer: Tokenizer, prompts: list[str]) -> float:
    """Return the worst relative L2 error of our logits against the architecture in transformers."""
    from demo import checkpoint

    reference = checkpoint.reference(model)
    worst = 0.0
    for ids in encode_prompts(tokenizer, prompts):
        batch = torch.tensor([ids])
        theirs = reference(batch).logits
        worst = max(worst, float((model.logits(batch) - theirs).norm() / theirs.norm()))
    return worst


def llama_answers(path: Path, tokenizer: Tokenizer, prompts: list[str]) -> tuple[list[str], int]:
    """Return llama.cpp's greedy answers and how many prompts it tokenizes as we do."""
    from llama_cpp import Llama

    llama = Llama(str(path), n_ctx=256, n_threads=1, verbose=False, flash_attn=False, type_k=0, type_v=0)
    answers, same = [], 0
    for prompt, ids in zip(prompts, encode_prompts(tokenizer, prompts), strict=True):
        same += llama.tokenize(render(prompt).encode(), add_bos=False, special=True) == ids
        message = {"role": "user", "content": prompt}
        reply = llama.create_chat_completion([message], temperature=0.0, max_tokens=40, repeat_penalty=1.0)
        answers.append(reply["choices"][0]["message"]["content"])
    return answers, same


def run(path: Path, sets: dict[str, list[Item]]) -> bool:
    """Print both comparisons; return whether they hold."""
    model, tokenizer, _ = read_gguf(path)
    items = [item for part in sets.values() for item in part[:PER_SET]]
    prompts = [item.prompt for item in items]
    worst = transformers_error(model, tokenizer, prompts)
    print(f"transformers: worst relative L2 error of logits over {len(prompts)} prompts {worst:.1e}")
    if importlib.util.find_spec("llama_cpp") is None:
        print("llama.cpp: llama_cpp is not installed, not compared")
        return worst < TOLERANCE
    theirs, tokenized = llama_answers(path, tokenizer, prompts)
    same = sum(a == b for a, b in zip(theirs, answer(model, tokenizer, items), strict=True))
    print(f"llama.cpp: {tokenized} prompts tokenized alike, {same} of {len(prompts)} greedy answers equal")
    return worst < TOLERANCE and tokenized == same == len(prompts)
