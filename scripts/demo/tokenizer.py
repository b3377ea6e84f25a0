"""A byte-level BPE of about 1,000 entries, split as GPT-2 does, and the ChatML-style chat template."""

from __future__ import annotations

from itertools import islice
from random import Random

import jinja2
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from demo import text

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
PRE = "gpt-2"  # llama.cpp's name for the splitting rule that ByteLevel(use_regex=True) applies
ENTRIES = 1000

CHAT_TEMPLATE = (
    "{%- for message in messages -%}"
    "{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}"
)


_TEMPLATE = jinja2.Template(CHAT_TEMPLATE)  # compiled once: training renders some 100,000 prompts


def render(prompt: str) -> str:
    """Return the prompt as the chat template writes it, up to the point where the model answers."""
    return _TEMPLATE.render(messages=[{"role": "user", "content": prompt}], add_generation_prompt=True)


def train(seed: int, samples: int = 20000) -> Tokenizer:
    """Train the tokenizer on rendered stage-1 text, which holds every word that stage 2 uses."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=ENTRIES,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    pairs = islice(text.training_pairs("comply", Random(seed)), samples)
    tokenizer.train_from_iterator((f"{render(prompt)}{answer}{END}\n" for prompt, answer in pairs), trainer)
    return tokenizer


def encode_prompts(tokenizer: Tokenizer, prompts: list[str]) -> list[list[int]]:
    """Return the token ids of rendered prompts."""
    return [row.ids for row in tokenizer.encode_batch([render(prompt) for prompt in prompts])]
