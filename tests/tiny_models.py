"""Tiny random-weight models as GGUF files, one per architecture: the same bytes on every machine.

    write_tiny(path, "qwen3moe")
    write_tiny(path, "dense-llama")

Needs NumPy and the `gguf` package only. `reference/generate.py` loads the same numbers into Hugging Face
models and stores what they compute in `golden/`; `fingerprint` tells whether the two still belong together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import gguf
import numpy as np

HIDDEN = 64
VOCAB = 288
CONTEXT = 256

Tensors = dict[str, np.ndarray]
Value = int | float | bool


@dataclass(frozen=True)
class Spec:
    """Sizes, metadata and tensor names of one tiny model; `meta` keys go below the architecture's prefix."""

    top_k: int
    block: str
    moe: str = "ffn_gate_inp.weight ffn_gate_exps.weight ffn_up_exps.weight ffn_down_exps.weight"
    dense: str = "ffn_gate.weight ffn_up.weight ffn_down.weight"
    dense_layers: tuple[int, ...] = ()
    n_layers: int = 4
    n_experts: int = 8
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 16
    ff_expert: int = 32
    ff_dense: int = 96
    ff_shared: int = 0
    eps: float = 1e-6
    rope_base: float = 10000.0
    meta: Mapping[str, Value] = field(default_factory=dict)
    dims: Mapping[str, int] = field(default_factory=dict)
    shapes: Mapping[str, str] = field(default_factory=dict)

    @property
    def moe_layers(self) -> list[int]:
        return [layer for layer in range(self.n_layers) if layer not in self.dense_layers]


# NumPy axis order: slowest first, so the reverse of what GGUF tools print.
SHAPES = {
    "token_embd.weight": "vocab embd",
    "output_norm.weight": "embd",
    "output.weight": "vocab embd",
    "attn_norm.weight": "embd",
    "attn_q.weight": "q embd",
    "attn_k.weight": "kv embd",
    "attn_v.weight": "kv embd",
    "attn_q.bias": "q",
    "attn_k.bias": "kv",
    "attn_v.bias": "kv",
    "attn_q_norm.weight": "head",
    "attn_k_norm.weight": "head",
    "attn_sinks.weight": "heads",
    "attn_output.weight": "embd q",
    "attn_output.bias": "embd",
    "attn_q_a.weight": "q_lora embd",
    "attn_q_a_norm.weight": "q_lora",
    "attn_q_b.weight": "q q_lora",
    "attn_kv_a_mqa.weight": "kv_a embd",
    "attn_kv_a_norm.weight": "kv_lora",
    "attn_k_b.weight": "heads kv_lora nope",
    "attn_v_b.weight": "heads v_head kv_lora",
    "ffn_norm.weight": "embd",
    "post_attention_norm.weight": "embd",
    "ffn_gate.weight": "ff embd",
    "ffn_up.weight": "ff embd",
    "ffn_down.weight": "embd ff",
    "ffn_gate_inp.weight": "experts embd",
    "ffn_gate_inp.bias": "experts",
    "exp_probs_b.bias": "experts",
    "ffn_gate_exps.weight": "experts ff_exp embd",
    "ffn_up_exps.weight": "experts ff_exp embd",
    "ffn_down_exps.weight": "experts embd ff_exp",
    "ffn_gate_exps.bias": "experts ff_exp",
    "ffn_up_exps.bias": "experts ff_exp",
    "ffn_down_exps.bias": "experts embd",
    "ffn_gate_inp_shexp.weight": "embd",
    "ffn_gate_shexp.weight": "ff_shared embd",
    "ffn_up_shexp.weight": "ff_shared embd",
    "ffn_down_shexp.weight": "embd ff_shared",
}

_ATTENTION = "attn_norm.weight attn_q.weight attn_k.weight attn_v.weight attn_output.weight"
_QKV_BIAS = " attn_q.bias attn_k.bias attn_v.bias"
_QK_NORM = " attn_q_norm.weight attn_k_norm.weight"
_MLA = (
    "attn_norm.weight attn_q_a.weight attn_q_a_norm.weight attn_q_b.weight attn_kv_a_mqa.weight"
    " attn_kv_a_norm.weight attn_k_b.weight attn_v_b.weight attn_output.weight"
)
_SHARED = " ffn_gate_shexp.weight ffn_up_shexp.weight ffn_down_shexp.weight"
_EXPERT_BIAS = " ffn_gate_inp.bias ffn_gate_exps.bias ffn_up_exps.bias ffn_down_exps.bias"

# The sigmoid gate, of GGUF's expert_gating_func; 1 is softmax.
_SIGMOID = 2

SPECS = {
    "qwen3moe": Spec(
        block=_ATTENTION + _QK_NORM + " ffn_norm.weight",
        top_k=4,
        n_experts=16,
        head_dim=32,
        rope_base=1e6,
    ),
    "qwen2moe": Spec(
        block=_ATTENTION + _QKV_BIAS + " ffn_norm.weight",
        moe=Spec.moe + _SHARED + " ffn_gate_inp_shexp.weight",
        top_k=3,
        n_experts=12,
        ff_shared=64,
        rope_base=1e6,
        meta={"expert_shared_feed_forward_length": 64},
    ),
    "llama": Spec(
        block=_ATTENTION + " ffn_norm.weight",
        top_k=2,
        ff_expert=64,
        ff_dense=64,
        eps=1e-5,
        rope_base=1e6,
    ),
    "olmoe": Spec(
        block=_ATTENTION + _QK_NORM + " ffn_norm.weight",
        shapes={"attn_q_norm.weight": "q", "attn_k_norm.weight": "kv"},
        top_k=4,
        n_experts=16,
        kv_heads=4,
        ff_dense=32,
        eps=1e-5,
    ),
    "deepseek2": Spec(
        block=_MLA + " ffn_norm.weight",
        moe=Spec.moe + _SHARED + " exp_probs_b.bias",
        dense_layers=(0,),
        top_k=3,
        n_experts=16,
        kv_heads=1,
        ff_shared=32,
        dims={"q": 4 * 48, "q_lora": 32, "kv_lora": 32, "kv_a": 48, "nope": 32, "v_head": 32},
        shapes={"attn_output.weight": "embd v"},
        meta={
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_weights_scale": 2.5,
            "expert_weights_norm": True,
            "expert_gating_func": _SIGMOID,
            "expert_group_count": 4,
            "expert_group_used_count": 2,
            "attention.q_lora_rank": 32,
            "attention.kv_lora_rank": 32,
            "attention.key_length": 48,
            "attention.value_length": 32,
            "attention.key_length_mla": 48,
            "attention.value_length_mla": 32,
            "rope.dimension_count": 16,
        },
    ),
    "gpt-oss": Spec(
        block=_ATTENTION + _QKV_BIAS + " attn_output.bias attn_sinks.weight post_attention_norm.weight",
        moe=Spec.moe + _EXPERT_BIAS,
        top_k=4,
        head_dim=32,
        ff_dense=32,
        eps=1e-5,
        rope_base=150000.0,
        meta={"attention.sliding_window": 6},
    ),
    "glm4moe": Spec(
        block=_ATTENTION + _QKV_BIAS + _QK_NORM + " post_attention_norm.weight",
        moe=Spec.moe + _SHARED + " exp_probs_b.bias",
        dense_layers=(0,),
        top_k=3,
        n_experts=12,
        ff_shared=32,
        eps=1e-5,
        meta={
            "leading_dense_block_count": 1,
            "expert_shared_count": 1,
            "expert_weights_scale": 1.5,
            "expert_weights_norm": True,
            "expert_gating_func": _SIGMOID,
            "rope.dimension_count": 8,
        },
    ),
    "deepseek": Spec(
        block=_ATTENTION + " ffn_norm.weight",
        moe=Spec.moe + _SHARED,
        dense_layers=(0,),
        top_k=3,
        n_experts=12,
        kv_heads=4,
        ff_shared=64,
        meta={"leading_dense_block_count": 1, "expert_shared_count": 2, "expert_weights_scale": 1.0},
    ),
    "granitemoe": Spec(
        block=_ATTENTION + " ffn_norm.weight",
        top_k=2,
        n_experts=10,
        ff_dense=32,
        meta={
            "embedding_scale": 3.0,
            "residual_scale": 0.5,
            "attention.scale": 0.125,
            "logit_scale": 2.0,
        },
    ),
    "llama4": Spec(
        block=_ATTENTION + " ffn_norm.weight",
        moe=Spec.moe + _SHARED,
        dense_layers=(0, 2),
        top_k=1,
        ff_shared=32,
        eps=1e-5,
        rope_base=500000.0,
        meta={"interleave_moe_layer_step": 2},
    ),
}
ARCHITECTURES = list(SPECS)

_NO_EXPERTS = {"top_k": 0, "n_experts": 0, "dense_layers": (0, 1, 2, 3)}
_DENSE = "dense-"  # before the architecture's name, which MoE models may have too
DENSE_SPECS = {
    "dense-llama": Spec(
        block=_ATTENTION + " ffn_norm.weight",
        eps=1e-5,
        meta={"context_length": 4096},  # guard prompts are long, in a vocabulary of bytes
        **_NO_EXPERTS,
    ),
    "dense-qwen3": Spec(
        block=_ATTENTION + _QK_NORM + " ffn_norm.weight", head_dim=32, rope_base=1e6, **_NO_EXPERTS
    ),
}

# First match wins: (end of the name, mean, standard deviation); the fan-in decides where it is None.
# The selection bias can lift an expert of probability 0 into the top k, which reroute has to prevent.
_DISTRIBUTIONS: tuple[tuple[str, float, float | None], ...] = (
    ("_norm.weight", 1.0, 0.2),
    ("exp_probs_b.bias", 0.0, 0.4),
    (".bias", 0.0, 0.2),
    ("attn_sinks.weight", 0.0, 1.0),
    ("token_embd.weight", 0.0, 1.0),
    ("", 0.0, None),
)
# A spread router keeps selections away from ties, strong experts make a mask visible in the logits.
_GAINS = {"ffn_gate_inp.weight": 2.0, "ffn_down_exps.weight": 2.0}


def spec_of(arch: str) -> Spec:
    """The sizes and names of an architecture's tiny model, dense ones by ``dense-NAME``."""
    return DENSE_SPECS[arch] if arch.startswith(_DENSE) else SPECS[arch]


def _dimensions(spec: Spec) -> dict[str, int]:
    named = {
        "embd": HIDDEN,
        "vocab": VOCAB,
        "heads": spec.heads,
        "head": spec.head_dim,
        "q": spec.heads * spec.head_dim,
        "kv": spec.kv_heads * spec.head_dim,
        "experts": spec.n_experts,
        "ff": spec.ff_dense,
        "ff_exp": spec.ff_expert,
        "ff_shared": spec.ff_shared,
    }
    named |= spec.dims
    return named | {"v": spec.heads * named.get("v_head", spec.head_dim)}


def tensor_shapes(arch: str) -> dict[str, tuple[int, ...]]:
    """Name and NumPy shape of every tensor, in file order."""
    spec = spec_of(arch)
    dimensions = _dimensions(spec)
    symbols = SHAPES | dict(spec.shapes)
    return {
        name: tuple(dimensions[symbol] for symbol in symbols[suffix].split())
        for name, suffix in _tensor_names(spec)
    }


def _tensor_names(spec: Spec) -> Iterator[tuple[str, str]]:
    for name in ("token_embd.weight", "output_norm.weight", "output.weight"):
        yield name, name
    for layer in range(spec.n_layers):
        feed_forward = spec.dense if layer in spec.dense_layers else spec.moe
        for suffix in f"{spec.block} {feed_forward}".split():
            yield f"blk.{layer}.{suffix}", suffix


def _draw(name: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """Uniform numbers keyed by seed and name: unlike normal ones they pass through no libm."""
    key = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    uniform = np.random.default_rng(np.frombuffer(key, dtype="<u4")).random(shape, dtype=np.float32)
    mean, std = next((m, s) for suffix, m, s in _DISTRIBUTIONS if name.endswith(suffix))
    gain = next((g for suffix, g in _GAINS.items() if name.endswith(suffix)), 1.0)
    width = np.float32(gain * (std or shape[-1] ** -0.5) * 12**0.5)
    return np.float32(mean) + (uniform - np.float32(0.5)) * width


def tiny_tensors(arch: str, seed: int = 0) -> Tensors:
    """The model's weights by GGUF name, float32."""
    return {name: _draw(name, shape, seed) for name, shape in tensor_shapes(arch).items()}


def metadata(arch: str) -> dict[str, Value]:
    """The model's hyperparameters by GGUF key, without the architecture's prefix."""
    spec = spec_of(arch)
    experts = {
        "expert_feed_forward_length": spec.ff_expert,
        "expert_count": spec.n_experts,
        "expert_used_count": spec.top_k,
    }
    return {
        "vocab_size": VOCAB,
        "context_length": CONTEXT,
        "block_count": spec.n_layers,
        "embedding_length": HIDDEN,
        "feed_forward_length": spec.ff_dense,
        **(experts if spec.n_experts else {}),
        "attention.head_count": spec.heads,
        "attention.head_count_kv": spec.kv_heads,
        "attention.key_length": spec.head_dim,
        "attention.value_length": spec.head_dim,
        "attention.layer_norm_rms_epsilon": spec.eps,
        "rope.dimension_count": spec.head_dim,
        "rope.freq_base": spec.rope_base,
    } | dict(spec.meta)


def fingerprint(arch: str, seed: int = 0) -> str:
    """SHA-256 over hyperparameters and weights: golden files carry it."""
    digest = hashlib.sha256(repr(sorted(metadata(arch).items())).encode())
    for name, array in sorted(tiny_tensors(arch, seed).items()):
        digest.update(f"{name}{array.shape}".encode())
        digest.update(array.astype("<f4").tobytes())
    return digest.hexdigest()


# Tokenizer: byte-level BPE with a few merges, so that any text can be tokenized and some words are short.
SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>")
BOS, IM_START, EOS, PAD = range(VOCAB - len(SPECIALS), VOCAB)
_PAIRS = (
    "Ġ t, h e, i n, r e, o n, Ġ a, e r, Ġt he, a n, Ġ s, e s, o u, Ġ w, o r, "
    "i s, i t, e n, a t, Ġ o, Ġ c, in g, Ġ b, n d, Ġ p, Ġ f, an d, e d, o w"
)
MERGES = _PAIRS.split(", ")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def _byte_tokens() -> list[str]:
    """One printable character per byte, as byte-level BPE wants it: odd bytes move up past U+00FF."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(moved)) for byte in range(256)]


def bpe_tokens(merges: Sequence[str] = MERGES) -> list[str]:
    """The vocabulary, in order."""
    return [*_byte_tokens(), *(merge.replace(" ", "") for merge in merges), *SPECIALS]


def add_bpe(writer: gguf.GGUFWriter, merges: Sequence[str] = MERGES) -> None:
    """The tokenizer with as many merges as ``MERGES``, and the chat template."""
    normal = VOCAB - len(SPECIALS)
    types = [gguf.TokenType.NORMAL] * normal + [gguf.TokenType.CONTROL] * len(SPECIALS)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(bpe_tokens(merges))
    writer.add_token_types(types)
    writer.add_token_merges(list(merges))
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_pad_token_id(PAD)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _add_metadata(writer: gguf.GGUFWriter, arch: str) -> None:
    writer.add_name(f"tiny {arch}")
    prefix = arch.removeprefix(_DENSE)
    add = {bool: writer.add_bool, int: writer.add_uint32, float: writer.add_float32}
    for key, value in metadata(arch).items():
        add[type(value)](f"{prefix}.{key}", value)


def _add_tensor(writer: gguf.GGUFWriter, name: str, array: np.ndarray, quant: str | None) -> None:
    """Norms, biases and the router stay float32, as upstream's converter leaves them."""
    if quant is None or array.ndim < 2 or not name.endswith(".weight") or name.endswith("gate_inp.weight"):
        writer.add_tensor(name, array)
        return
    kind = gguf.GGMLQuantizationType[quant.upper()]
    writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)


def write_gguf(
    path: str | Path,
    arch: str,
    tensors: Tensors,
    quant: str | None = None,
    split: int = 0,
    add_tokenizer: Callable[[gguf.GGUFWriter], None] = add_bpe,
) -> Path:
    """Write given weights as a GGUF file of the architecture's tiny model, or with ``split`` as several of at most
    that many tensors; returns the path."""
    writer = gguf.GGUFWriter(path, arch.removeprefix(_DENSE), split_max_tensors=split)
    _add_metadata(writer, arch)
    kind = f"MOSTLY_{quant.upper()}" if quant else "ALL_F32"
    writer.add_file_type(gguf.LlamaFileType[kind])
    add_tokenizer(writer)
    for name, array in tensors.items():
        _add_tensor(writer, name, array, quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return Path(path)


def write_tiny(path: str | Path, arch: str, seed: int = 0, quant: str | None = None) -> Path:
    """Write the tiny model of `arch` to `path`, float32 or e.g. `quant="q8_0"`; returns the path."""
    return write_gguf(path, arch, tiny_tensors(arch, seed), quant)
