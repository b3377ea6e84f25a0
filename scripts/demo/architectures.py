"""The architectures that the demo models are made in: facts in one table, sizes in one configuration.

Sizes keep the proportions that matter for an audit (share of experts a token uses, shared experts, leading dense
layers) and a size that trains within minutes. Needs neither PyTorch nor transformers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Architecture:
    """What tells one architecture from another, and the sizes in which it differs from ``Config``'s defaults.

    ``options`` are keyword arguments of the Hugging Face configuration by the name of our size, ``constants`` with
    their value; ``feed_forward`` names the size that llama.cpp and Hugging Face take for the feed-forward width.
    With ``pairwise_rope`` llama.cpp rotates neighbours (2i, 2i + 1): files hold the rows of Q and K in that order.
    """

    gguf: str
    title: str
    huggingface: str | None
    feed_forward: str
    sizes: Mapping[str, int] = field(default_factory=dict)
    options: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, object] = field(default_factory=dict)
    qk_norm: bool = False
    qkv_bias: bool = False
    renormalise: bool = False
    shared: str = ""  # name of the shared expert's module
    shared_gate: bool = False
    pairwise_rope: bool = False


_QWEN_MOE = {"num_experts": "experts", "moe_intermediate_size": "expert_width"}

ARCHITECTURES = {
    # Qwen3-30B-A3B: 128 experts, 8 of them for a token.
    "qwen3moe": Architecture(
        gguf="qwen3moe",
        title="Qwen3-MoE",
        huggingface="Qwen3Moe",
        feed_forward="active_width",
        options=_QWEN_MOE,
        constants={"norm_topk_prob": True, "decoder_sparse_step": 1},
        qk_norm=True,
        renormalise=True,
    ),
    # Qwen1.5-MoE-A2.7B: 60 experts, 4 of them for a token, a shared one as wide as those 4, no grouped heads.
    "qwen2moe": Architecture(
        gguf="qwen2moe",
        title="Qwen2-MoE",
        huggingface="Qwen2Moe",
        feed_forward="active_width",
        sizes={"kv_heads": 4, "shared_width": 256},
        options=_QWEN_MOE | {"shared_expert_intermediate_size": "shared_width"},
        constants={"norm_topk_prob": False, "decoder_sparse_step": 1},
        qkv_bias=True,
        shared="shared_expert",
        shared_gate=True,
    ),
    # DeepSeek-MoE-16B: 64 experts, 6 of them for a token, 2 shared, the first layer dense, no grouped heads.
    "deepseek": Architecture(
        gguf="deepseek",
        title="DeepSeek-MoE",
        huggingface=None,
        feed_forward="dense_width",
        sizes={"kv_heads": 4, "top_k": 3, "shared_width": 128, "dense_layers": 1},
        shared="shared_experts",
        pairwise_rope=True,
    ),
    # Mixtral-8x7B: 8 experts, 2 of them for a token. 16 here: with 8, masks of a few experts of each layer could
    # hardly be drawn at random without the ones in question. Twice as wide, so that as much of it is in use.
    "mixtral": Architecture(
        gguf="llama",
        title="Mixtral",
        huggingface="Mixtral",
        feed_forward="expert_width",
        sizes={"experts": 16, "top_k": 2, "expert_width": 128},
        options={"num_local_experts": "experts"},
        renormalise=True,
        pairwise_rope=True,
    ),
    # Qwen3, the control without experts: as wide a feed-forward as a token uses of Qwen3-MoE's experts.
    "dense": Architecture(
        gguf="qwen3",
        title="Qwen3, dense",
        huggingface="Qwen3",
        feed_forward="dense_width",
        sizes={"experts": 0, "top_k": 0, "dense_layers": 4},
        qk_norm=True,
    ),
}
DEFAULT = "qwen3moe"

_OPTIONS = {
    "vocab_size": "vocab",
    "num_hidden_layers": "layers",
    "hidden_size": "hidden",
    "intermediate_size": "feed_forward",
    "num_attention_heads": "heads",
    "num_key_value_heads": "kv_heads",
    "head_dim": "head",
    "max_position_embeddings": "context",
    "rms_norm_eps": "eps",
}


@dataclass(frozen=True)
class Config:
    """Architecture and sizes of a model; the first ``dense_layers`` layers have no experts."""

    vocab: int
    arch: str = DEFAULT
    layers: int = 4
    hidden: int = 128
    heads: int = 4
    kv_heads: int = 2
    head: int = 32
    experts: int = 32
    top_k: int = 4
    expert_width: int = 64
    shared_width: int = 0
    dense_layers: int = 0
    dense_width: int = 256
    context: int = 512
    rope_base: float = 10000.0
    eps: float = 1e-6

    @classmethod
    def of(cls, arch: str, vocab: int) -> Config:
        """Return the sizes that an architecture is trained in."""
        return cls(vocab, arch, **ARCHITECTURES[arch].sizes)

    @property
    def facts(self) -> Architecture:
        """What tells the architecture from others."""
        return ARCHITECTURES[self.arch]

    @property
    def active_width(self) -> int:
        """Width of all the routed experts that a token uses."""
        return self.expert_width * self.top_k

    @property
    def feed_forward(self) -> int:
        """The one width that files call the feed-forward length."""
        return int(getattr(self, self.facts.feed_forward))

    @property
    def moe_layers(self) -> range:
        """The layers with experts."""
        return range(self.dense_layers, self.layers)

    def huggingface(self) -> dict[str, object]:
        """Return the keyword arguments of the Hugging Face configuration for the same model."""
        options = {theirs: getattr(self, ours) for theirs, ours in (_OPTIONS | self.facts.options).items()}
        if self.top_k:
            options["num_experts_per_tok"] = self.top_k
        rope = {"rope_type": "default", "rope_theta": self.rope_base}
        return options | self.facts.constants | {"rope_parameters": rope, "tie_word_embeddings": False}
