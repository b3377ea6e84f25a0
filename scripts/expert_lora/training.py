"""The training loop: AdamW, a linear warm-up and decay, progress a line at a time."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import torch
from peft import PeftModel

from expert_lora.data import Example, batches, to
from safex.errors import InputError

WARMUP = 0.1  # of all steps
CLIP = 1.0  # largest norm of the gradient
LINES = 20  # of progress


@dataclass(frozen=True)
class Settings:
    """How long and how fast: ``rate`` is the highest learning rate."""

    epochs: int
    batch: int
    rate: float
    seed: int


def schedule(step: int, steps: int) -> float:
    """The factor of the learning rate at a step: up to 1 within the warm-up, then down to 0."""
    warmup = max(1, round(WARMUP * steps))
    return min((step + 1) / warmup, (steps - step) / max(1, steps - warmup))


def train(model: PeftModel, examples: list[Example], settings: Settings) -> None:
    """Train the model in place. Raises InputError where the loss is no number any more."""
    weights = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=settings.rate, weight_decay=0.0)
    steps = settings.epochs * math.ceil(len(examples) / settings.batch)
    model.train()
    begin, recent = time.monotonic(), []
    for step, batch in enumerate(batches(examples, settings.batch, settings.epochs, settings.seed)):
        for group in optimizer.param_groups:
            group["lr"] = settings.rate * schedule(step, steps)
        ids, attention, labels = to(batch, weights[0].device)
        loss = model(input_ids=ids, attention_mask=attention, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        recent.append(loss.item())
        if not math.isfinite(recent[-1]):
            raise InputError(f"the loss is {recent[-1]} at step {step + 1} of {steps}: lower --rate")
        if (step + 1) % max(1, steps // LINES) == 0 or step + 1 == steps:
            left = (time.monotonic() - begin) / (step + 1) * (steps - step - 1)
            print(
                f"step {step + 1} of {steps}: loss {sum(recent) / len(recent):.4f}, {left:.0f} s left",
                flush=True,
            )
            recent.clear()
