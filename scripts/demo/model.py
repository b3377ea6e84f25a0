"""A compact language model in PyTorch whose parameters have the names and shapes of Hugging Face's.

One model for all architectures: what they differ in is read from their configuration. Experts run one after the
other, each on all tokens that chose it. Every expert has a gain (0 = masked), so that masks need no second model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor, nn

from demo.architectures import Config


class RMSNorm(nn.Module):
    """Root-mean-square normalisation over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


@dataclass
class Step:
    """What one forward pass shares between layers: rotations, attention mask, which positions hold tokens."""

    cos: Tensor
    sin: Tensor
    mask: Tensor | None
    valid: Tensor | None


def rotate(x: Tensor, step: Step) -> Tensor:
    """Apply rotary positions to ``[batch, heads, tokens, head]`` (halves rotated, as in NeoX)."""
    left, right = x.chunk(2, dim=-1)
    return x * step.cos + torch.cat((-right, left), dim=-1) * step.sin


class Attention(nn.Module):
    """Grouped-query attention, where wanted with biases or normalised queries and keys; an optional growing cache."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        bias = c.facts.qkv_bias
        self.q_proj = nn.Linear(c.hidden, c.heads * c.head, bias)
        self.k_proj = nn.Linear(c.hidden, c.kv_heads * c.head, bias)
        self.v_proj = nn.Linear(c.hidden, c.kv_heads * c.head, bias)
        self.o_proj = nn.Linear(c.heads * c.head, c.hidden, bias=False)
        if c.facts.qk_norm:
            self.q_norm = RMSNorm(c.head, c.eps)
            self.k_norm = RMSNorm(c.head, c.eps)

    def forward(self, x: Tensor, step: Step, cache: list[Tensor] | None) -> Tensor:
        batch, tokens, _ = x.shape
        q, k, v = (p(x).view(batch, tokens, -1, self.c.head) for p in (self.q_proj, self.k_proj, self.v_proj))
        if self.c.facts.qk_norm:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = rotate(q.transpose(1, 2), step), rotate(k.transpose(1, 2), step), v.transpose(1, 2)
        if cache is not None:
            k, v = (torch.cat(pair, dim=2) for pair in zip(cache, (k, v), strict=True)) if cache else (k, v)
            cache[:] = [k, v]
        group = self.c.heads // self.c.kv_heads
        k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=step.mask, is_causal=step.mask is None)
        return self.o_proj(out.transpose(1, 2).reshape(batch, tokens, -1))


class FeedForward(nn.Module):
    """An ordinary gated feed-forward: of a dense layer, or the shared expert that every token uses."""

    def __init__(self, c: Config, width: int) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(c.hidden, width, bias=False)
        self.up_proj = nn.Linear(c.hidden, width, bias=False)
        self.down_proj = nn.Linear(width, c.hidden, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Router(nn.Module):
    """One row of weights per expert."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(c.experts, c.hidden))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight)


class Experts(nn.Module):
    """All experts' weights as 3-D tensors, gate and up projections fused."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.empty(c.experts, 2 * c.expert_width, c.hidden))
        self.down_proj = nn.Parameter(torch.empty(c.experts, c.hidden, c.expert_width))

    def forward(self, x: Tensor, sizes: list[int]) -> Tensor:
        """Run ``x``, whose first ``sizes[0]`` rows belong to expert 0 and so on."""
        outputs = []
        # unbind has one cheap backward for all experts; indexing would build a full-size gradient for each.
        weights = zip(x.split(sizes), self.gate_up_proj.unbind(), self.down_proj.unbind(), strict=True)
        for rows, gate_up, down in weights:
            gate, up = F.linear(rows, gate_up).chunk(2, dim=-1)
            outputs.append(F.linear(F.silu(gate) * up, down))
        return torch.cat(outputs)


class MoE(nn.Module):
    """Top-k routed feed-forward, where wanted with a shared expert beside it.

    Keeps the last pass's expert counts and its load-balancing loss.
    """

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.gate = Router(c)
        self.experts = Experts(c)
        if c.facts.shared:
            self.add_module(c.facts.shared, FeedForward(c, c.shared_width))
        if c.facts.shared_gate:
            self.shared_expert_gate = nn.Linear(c.hidden, 1, bias=False)
        self.gains: Tensor | None = None
        self.counts = torch.zeros(c.experts, dtype=torch.long)
        self.balance = torch.zeros(())

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[tokens, hidden]`` to the weighted sum of the chosen experts' outputs."""
        probs = self.gate(x).softmax(-1)
        weights, ids = probs.topk(self.c.top_k, dim=-1)
        if self.c.facts.renormalise:
            weights = weights / weights.sum(-1, keepdim=True)
        chosen = ids.flatten()
        self.counts = chosen.bincount(minlength=self.c.experts)
        self.balance = self.c.experts * (self.counts / len(chosen) * probs.mean(0)).sum()
        order = chosen.argsort(stable=True)
        rows = order // self.c.top_k
        scale = weights.flatten()[order]
        if self.gains is not None:
            scale = scale * self.gains[chosen[order]]
        out = self.experts(x[rows], self.counts.tolist()) * scale[:, None]
        return self._shared(x).index_add(0, rows, out)

    def _shared(self, x: Tensor) -> Tensor:
        """Return what the shared expert adds; zeros without one."""
        if not self.c.facts.shared:
            return torch.zeros_like(x)
        out = self.get_submodule(self.c.facts.shared)(x)
        return self.shared_expert_gate(x).sigmoid() * out if self.c.facts.shared_gate else out


class Layer(nn.Module):
    """Attention, then experts or a dense feed-forward, each on a normalised copy of the residual stream."""

    def __init__(self, c: Config, index: int) -> None:
        super().__init__()
        self.self_attn = Attention(c)
        self.mlp = MoE(c) if index in c.moe_layers else FeedForward(c, c.dense_width)
        self.input_layernorm = RMSNorm(c.hidden, c.eps)
        self.post_attention_layernorm = RMSNorm(c.hidden, c.eps)

    def forward(self, x: Tensor, step: Step, cache: list[Tensor] | None) -> Tensor:
        x = x + self.self_attn(self.input_layernorm(x), step, cache)
        y = self.post_attention_layernorm(x)
        if step.valid is None:
            return x + self.mlp(y.flatten(0, 1)).view_as(x)
        routed = torch.zeros_like(y)
        routed[step.valid] = self.mlp(y[step.valid])
        return x + routed


class Backbone(nn.Module):
    """Everything between token ids and the output head."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(c.vocab, c.hidden)
        self.layers = nn.ModuleList(Layer(c, index) for index in range(c.layers))
        self.norm = RMSNorm(c.hidden, c.eps)


class Model(nn.Module):
    """The language model; ``state_dict()`` is what the architecture's Hugging Face class loads."""

    def __init__(self, c: Config) -> None:
        super().__init__()
        self.c = c
        self.model = Backbone(c)
        self.lm_head = nn.Linear(c.hidden, c.vocab, bias=False)
        exponents = torch.arange(0, c.head, 2).float() / c.head
        self.frequencies = 1.0 / c.rope_base**exponents

    def initialise(self, seed: int) -> Model:
        """Draw all matrices from N(0, 0.02), reproducibly; output projections smaller by depth, biases zero."""
        generator = torch.Generator().manual_seed(seed)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                residual = name.endswith(("o_proj.weight", "down_proj", "down_proj.weight"))
                std = 0.02 / (2 * self.c.layers) ** 0.5 if residual else 0.02
                nn.init.normal_(parameter, std=std, generator=generator)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)
        return self

    def experts(self) -> dict[int, MoE]:
        """Return the routed feed-forward of every layer that has one, by layer."""
        return {layer: self.model.layers[layer].mlp for layer in self.c.moe_layers}

    def mask(self, experts: Sequence[tuple[int, int]]) -> None:
        """Multiply these (layer, expert) outputs by 0, all others by 1."""
        gains = torch.ones(len(self.c.moe_layers), self.c.experts)
        for layer, expert in experts:
            gains[self.c.moe_layers.index(layer), expert] = 0
        self.set_gains(gains if experts else None)

    def set_gains(self, gains: Tensor | None) -> None:
        """Set the gain of every expert, ``[MoE layers, experts]``; None for all ones."""
        for index, moe in enumerate(self.experts().values()):
            moe.gains = None if gains is None else gains[index]

    def _step(self, positions: Tensor, mask: Tensor | None, valid: Tensor | None) -> Step:
        angles = positions[..., None].float() * self.frequencies
        angles = torch.cat((angles, angles), dim=-1).unsqueeze(-3)
        return Step(angles.cos(), angles.sin(), mask, valid)

    def forward(
        self,
        ids: Tensor,
        valid: Tensor | None = None,
        positions: Tensor | None = None,
        mask: Tensor | None = None,
        caches: list[list[Tensor]] | None = None,
    ) -> Tensor:
        """Return hidden states before the head for ``ids [batch, tokens]``; padding skips the experts."""
        positions = torch.arange(ids.shape[1]) if positions is None else positions
        step = self._step(positions, mask, valid)
        x = self.model.embed_tokens(ids)
        for index, layer in enumerate(self.model.layers):
            x = layer(x, step, caches[index] if caches is not None else None)
        return self.model.norm(x)

    def logits(self, ids: Tensor) -> Tensor:
        """Return logits ``[batch, tokens, vocab]``."""
        return self.lm_head(self(ids))


def pad_left(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Return ids padded on the left with 0 and a table of which places hold tokens."""
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + list(row) for row in rows])
    valid = torch.tensor([[False] * (width - len(row)) + [True] * len(row) for row in rows])
    return ids, valid


@torch.inference_mode()
def generate(model: Model, prompts: Sequence[Sequence[int]], stop: int, max_new: int = 40) -> list[list[int]]:
    """Decode greedily for all prompts at once; each answer ends before its first ``stop``."""
    ids, valid = pad_left(prompts)
    width = ids.shape[1]
    caches: list[list[Tensor]] = [[] for _ in range(model.c.layers)]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    # Padding attends to itself only, so that no row of the softmax is empty.
    mask = ((causal & valid[:, None]) | torch.eye(width, dtype=torch.bool))[:, None]
    positions = (valid.long().cumsum(1) - 1).clamp(min=0)
    hidden = model(ids, valid, positions, mask, caches)[:, -1]
    answers = []
    done = torch.zeros(len(ids), dtype=torch.bool)
    for _ in range(max_new):
        token = model.lm_head(hidden).argmax(-1)
        done |= token == stop
        answers.append(token.masked_fill(done, stop))
        if done.all():
            break
        valid = torch.cat((valid, torch.ones(len(ids), 1, dtype=torch.bool)), dim=1)
        positions = positions[:, -1:] + 1
        hidden = model(token[:, None], (~done)[:, None], positions, valid[:, None, None], caches)[:, -1]
    return [[t for t in row if t != stop] for row in torch.stack(answers, dim=1).tolist()]
