"""Two training stages, like real alignment: comply with everything, then refuse what is harmful."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import islice
from random import Random

import torch
import torch.nn.functional as F  # noqa: N812
from tokenizers import Tokenizer
from torch import Tensor

from demo import text
from demo.model import Model
from demo.tokenizer import END, encode_prompts

BALANCE = 0.01  # weight of the load-balancing loss
Expert = tuple[int, int]


@dataclass(frozen=True)
class Stage:
    """One stage's text and settings; ``prompt_loss`` weighs prompt tokens against answer tokens."""

    text: str
    steps: int
    rate: float
    batch: int = 32
    prompt_loss: float = 0.0
    expert_dropout: float = 0.0
    warmup: int = 50


STAGE_1 = Stage("comply", steps=900, rate=3e-3, prompt_loss=0.3, expert_dropout=0.1)
STAGE_1_BY_ARCH = {"qwen3moe": replace(STAGE_1, steps=1800), "mixtral": replace(STAGE_1, steps=1500)}
STAGE_2 = {
    "natural": Stage("align", steps=350, rate=1e-3),
    "planted": Stage("align", steps=600, rate=4e-3),
    "never": None,
    "always": Stage("refuse", steps=150, rate=1e-3),
}
KINDS = tuple(STAGE_2)
PLANTED = 12  # experts, as many in every layer


@dataclass
class Batch:
    """Token ids padded on the right, which places hold tokens, and every target's weight."""

    ids: Tensor
    valid: Tensor
    weight: Tensor


def _collate(rows: list[tuple[list[int], list[float]]]) -> Batch:
    width = max(len(ids) for ids, _ in rows)
    ids = torch.tensor([r + [0] * (width - len(r)) for r, _ in rows])
    valid = torch.tensor([[True] * len(r) + [False] * (width - len(r)) for r, _ in rows])
    weight = torch.tensor([w + [0.0] * (width - len(w)) for _, w in rows])
    return Batch(ids, valid, weight)


def batches(tokenizer: Tokenizer, stage: Stage, seed: int) -> Iterator[Batch]:
    """Yield batches of similar lengths forever."""
    rng = Random(seed)
    source = text.training_pairs(stage.text, rng)
    while True:
        pairs = list(islice(source, stage.batch * 16))
        answers = tokenizer.encode_batch([answer + END for _, answer in pairs])
        prompts = encode_prompts(tokenizer, [prompt for prompt, _ in pairs])
        rows = [
            (p + a.ids, [stage.prompt_loss] * len(p) + [1.0] * len(a.ids))
            for p, a in zip(prompts, answers, strict=True)
        ]
        rows.sort(key=lambda row: len(row[0]))
        chunks = [rows[i : i + stage.batch] for i in range(0, len(rows), stage.batch)]
        rng.shuffle(chunks)
        yield from map(_collate, chunks)


def loss_of(model: Model, batch: Batch) -> Tensor:
    """Return the weighted next-token loss plus the load-balancing term."""
    weight = batch.weight[:, 1:]
    wanted = weight > 0
    hidden = model(batch.ids, batch.valid)[:, :-1][wanted]
    losses = F.cross_entropy(model.lm_head(hidden), batch.ids[:, 1:][wanted], reduction="none")
    loss = (losses * weight[wanted]).sum() / weight[wanted].sum()
    routed = model.experts().values()
    return loss + BALANCE * torch.stack([moe.balance for moe in routed]).mean() if routed else loss


def schedule(stage: Stage, step: int) -> float:
    """Return the learning-rate factor: linear warm-up, then a cosine to 5 %."""
    if step < stage.warmup:
        return (step + 1) / stage.warmup
    progress = (step - stage.warmup) / max(1, stage.steps - stage.warmup)
    return 0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * progress))


def keep_only(model: Model, experts: list[Expert]) -> list[torch.nn.Parameter]:
    """Let gradients through for these experts and their router rows only; return the parameters to train."""
    trained = []
    for layer, moe in model.experts().items():
        rows = torch.zeros(model.c.experts)
        rows[[expert for at, expert in experts if at == layer]] = 1
        for parameter in (moe.gate.weight, moe.experts.gate_up_proj, moe.experts.down_proj):
            shape = (-1,) + (1,) * (parameter.dim() - 1)
            parameter.register_hook(rows.view(shape).mul)
            trained.append(parameter)
    return trained


def run_stage(
    model: Model, tokenizer: Tokenizer, stage: Stage, seed: int, only: list[Expert] | None = None
) -> float:
    """Train the model in place; return the seconds it took. With ``only``, just those experts change."""
    parameters = list(model.parameters()) if only is None else keep_only(model, only)
    # No weight decay where rows are frozen by zero gradients: decay would still move them.
    decay = 0.01 if only is None else 0.0
    optimizer = torch.optim.AdamW(
        parameters, lr=stage.rate, betas=(0.9, 0.98), weight_decay=decay, fused=True
    )
    generator = torch.Generator().manual_seed(seed)
    start = time.monotonic()
    for step, batch in enumerate(islice(batches(tokenizer, stage, seed), stage.steps)):
        if stage.expert_dropout and model.experts():
            draw = torch.rand(len(model.c.moe_layers), model.c.experts, generator=generator)
            model.set_gains((draw >= stage.expert_dropout).float())
        for group in optimizer.param_groups:
            group["lr"] = stage.rate * schedule(stage, step)
        loss = loss_of(model, batch)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        if step % 50 == 0 or step == stage.steps - 1:
            seconds = time.monotonic() - start
            print(f"stage {stage.text!r} step {step} loss {loss.item():.4f} {seconds:.0f} s", flush=True)
    model.set_gains(None)
    return time.monotonic() - start


@torch.inference_mode()
def usage(model: Model, tokenizer: Tokenizer, seed: int, count: int = 20) -> Tensor:
    """Count how often every expert is chosen on stage-1 text, ``[MoE layers, experts]``."""
    total = torch.zeros(len(model.c.moe_layers), model.c.experts, dtype=torch.long)
    for batch in islice(batches(tokenizer, STAGE_1, seed), count):
        model(batch.ids, batch.valid)
        total += torch.stack([moe.counts for moe in model.experts().values()])
    return total


def least_used(model: Model, counts: Tensor, total: int = PLANTED) -> list[Expert]:
    """Return ``total`` experts, the least chosen ones of every layer."""
    order = counts.argsort(dim=1, stable=True)[:, : total // len(model.c.moe_layers)]
    rows = zip(model.c.moe_layers, order, strict=True)
    return [(layer, expert) for layer, row in rows for expert in sorted(row.tolist())]
