#!/usr/bin/env python3
"""Write a random-weight Mixture-of-Experts GGUF to measure speed and memory with: the same bytes for the same seed.

    python scripts/bench_model.py [--shape full|narrow|tiny] [--quant q8_0|bf16|f32] [-o FILE]

Prints the file's path. Without -o it lands in the cache ($SAFEX_CACHE, else $XDG_CACHE_HOME/safex-native, else
~/.cache/safex-native) and is made once. The architecture is qwen3moe. Needs NumPy and the `gguf` package only.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import itertools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist
from typing import Any, NamedTuple

import gguf
import numpy as np

ARCH = "qwen3moe"


@dataclass(frozen=True)
class Shape:
    """Sizes of a model. The default is 1.1 GB in Q8_0 and 0.29 GFLOP a token."""

    layers: int = 12
    experts: int = 64
    top_k: int = 8
    width: int = 1024
    expert_width: int = 384
    heads: int = 16
    kv_heads: int = 4
    head_dim: int = 64
    vocabulary: int = 32_000
    context: int = 8192

    @property
    def flops_per_token(self) -> int:
        """Multiplications and additions of the blocks' matrices for one token; attention and head left out."""
        experts = 3 * self.top_k * self.width * self.expert_width + self.width * self.experts
        attention = 2 * self.width * self.head_dim * (self.heads + self.kv_heads)
        return 2 * self.layers * (experts + attention)


# `narrow` keeps what a profile's size depends on (layers, experts, vocabulary) and is about 15 times as fast.
SHAPES = {
    "full": Shape(),
    "wide": Shape(expert_width=512),
    "narrow": Shape(width=256, expert_width=64, heads=4, kv_heads=2),
    "tiny": Shape(
        layers=2, experts=8, top_k=2, width=64, expert_width=32, heads=2, kv_heads=1, vocabulary=512
    ),
}

SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


class Tensor(NamedTuple):
    """Name, NumPy shape, and the standard deviation of the weights; norms are all ones (deviation None)."""

    name: str
    shape: tuple[int, ...]
    deviation: float | None


def tensors(shape: Shape) -> Iterator[Tensor]:
    """Every tensor in file order; the deviations keep activations near 1 and selections diverse."""
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    matrices = {
        "attn_q": (q, shape.width),
        "attn_k": (kv, shape.width),
        "attn_v": (kv, shape.width),
        "attn_output": (shape.width, q),
        "ffn_gate_inp": (shape.experts, shape.width),
        "ffn_gate_exps": (shape.experts, shape.expert_width, shape.width),
        "ffn_up_exps": (shape.experts, shape.expert_width, shape.width),
        "ffn_down_exps": (shape.experts, shape.width, shape.expert_width),
    }
    norms = {"attn_norm": shape.width, "ffn_norm": shape.width}
    norms |= {"attn_q_norm": shape.head_dim, "attn_k_norm": shape.head_dim}
    yield Tensor("token_embd.weight", (shape.vocabulary, shape.width), 1.0)
    yield Tensor("output_norm.weight", (shape.width,), None)
    yield Tensor("output.weight", (shape.vocabulary, shape.width), shape.width**-0.5)
    for layer in range(shape.layers):
        for name, size in norms.items():
            yield Tensor(f"blk.{layer}.{name}.weight", (size,), None)
        for name, dimensions in matrices.items():
            yield Tensor(f"blk.{layer}.{name}.weight", dimensions, dimensions[-1] ** -0.5)


# --- weights

# 256 levels of a normal distribution, as integers of standard deviation UNIT: a random byte picks one.
UNIT = 44.0
SCALE_6_BIT = 15  # fits into four bits
LEVELS = np.array([round(UNIT * NormalDist().inv_cdf((i + 0.5) / 256)) for i in range(256)], np.int8)


def draw(tensor: Tensor, seed: int) -> np.ndarray:
    """Random levels int8 of the tensor's shape, keyed by seed and name."""
    key = hashlib.sha256(f"{seed}:{tensor.name}".encode()).digest()
    rng = np.random.default_rng(np.frombuffer(key, dtype="<u4"))
    picks = np.frombuffer(rng.bytes(int(np.prod(tensor.shape))), np.uint8)
    return LEVELS[picks].reshape(tensor.shape)


def as_f32(levels: np.ndarray, deviation: float) -> np.ndarray:
    return levels.astype(np.float32) * np.float32(deviation / UNIT)


def as_bf16(levels: np.ndarray, deviation: float) -> np.ndarray:
    """Truncated to the upper half: bytes, since NumPy has no such type."""
    return (as_f32(levels, deviation).view(np.uint32) >> 16).astype("<u2").view(np.uint8)


def as_q8_0(levels: np.ndarray, deviation: float) -> np.ndarray:
    """Blocks of 32: a float16 scale, then the levels as they are."""
    blocks = levels.reshape(-1, 32)
    packed = np.empty((len(blocks), 34), np.uint8)
    packed[:, :2] = np.array([deviation / UNIT], "<f2").view(np.uint8)
    packed[:, 2:] = blocks.view(np.uint8)
    return packed.reshape(*levels.shape[:-1], -1)


def as_q4_k(levels: np.ndarray, deviation: float) -> np.ndarray:
    """Blocks of 256: scale and offset, eight equal 6-bit scales and offsets, then a random nibble a weight."""
    blocks = levels.reshape(-1, 256).view(np.uint8)
    packed = np.empty((len(blocks), 144), np.uint8)
    scale = deviation / (SCALE_6_BIT * np.std(np.arange(16)))
    packed[:, :4] = np.array([scale, 7.5 * scale], "<f2").view(np.uint8)
    packed[:, 4:12] = SCALE_6_BIT  # of blocks 0 to 3, then their offsets
    packed[:, 12:16] = SCALE_6_BIT & 15 | (SCALE_6_BIT & 15) << 4  # of blocks 4 to 7, whose upper bits are 0
    packed[:, 16:] = blocks[:, :128] & 15 | blocks[:, 128:] << 4  # the lower bits of a level are even
    return packed.reshape(*levels.shape[:-1], -1)


class Quant(NamedTuple):
    kind: gguf.GGMLQuantizationType
    file_type: gguf.LlamaFileType
    pack: Callable[[np.ndarray, float], np.ndarray]


QUANTS = {
    "f32": Quant(gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32, as_f32),
    "bf16": Quant(gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16, as_bf16),
    "q8_0": Quant(gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0, as_q8_0),
    "q4_k": Quant(gguf.GGMLQuantizationType.Q4_K, gguf.LlamaFileType.MOSTLY_Q4_K_M, as_q4_k),
}


def quant_of(tensor: Tensor, quant: str) -> Quant:
    """Norms and the router stay float32, as upstream's converter leaves them."""
    return QUANTS["f32" if len(tensor.shape) == 1 or "gate_inp" in tensor.name else quant]


def weights(tensor: Tensor, quant: str, seed: int) -> np.ndarray:
    """The tensor's data as it stands in the file."""
    if tensor.deviation is None:
        return np.ones(tensor.shape, np.float32)
    return quant_of(tensor, quant).pack(draw(tensor, seed), tensor.deviation)


# --- tokenizer


def byte_tokens() -> list[str]:
    """One printable character a byte, as byte-level BPE wants it."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    moved = iter(range(0x100, 0x200))
    return [chr(byte if byte in printable else next(moved)) for byte in range(256)]


def merges() -> Iterator[tuple[str, str]]:
    """Merges that build all short words letter by letter, shortest first; "Ġ" is a leading space."""
    letters = "etaoinshrdlcumwfgypbvkjxqz"
    words = ["Ġ", *letters]
    while True:
        longer = list(itertools.product(words, letters))
        yield from longer
        words = ["".join(pair) for pair in longer]


def add_tokenizer(writer: gguf.GGUFWriter, vocabulary: int) -> None:
    plain = byte_tokens()
    pairs = list(itertools.islice(merges(), vocabulary - len(plain) - len(SPECIALS)))
    tokens = [*plain, *map("".join, pairs), *SPECIALS]
    types = [gguf.TokenType.NORMAL] * (vocabulary - len(SPECIALS))
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([*types, *[gguf.TokenType.CONTROL] * len(SPECIALS)])
    writer.add_token_merges(list(map(" ".join, pairs)))
    writer.add_bos_token_id(vocabulary - 3)
    writer.add_eos_token_id(vocabulary - 1)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


# --- file


def add_metadata(writer: gguf.GGUFWriter, shape: Shape, quant: str) -> None:
    writer.add_name("safex bench")
    writer.add_file_type(QUANTS[quant].file_type)
    writer.add_vocab_size(shape.vocabulary)
    writer.add_context_length(shape.context)
    writer.add_block_count(shape.layers)
    writer.add_embedding_length(shape.width)
    writer.add_feed_forward_length(shape.expert_width)
    writer.add_expert_feed_forward_length(shape.expert_width)
    writer.add_expert_count(shape.experts)
    writer.add_expert_used_count(shape.top_k)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_key_length(shape.head_dim)
    writer.add_value_length(shape.head_dim)
    writer.add_layer_norm_rms_eps(1e-6)
    writer.add_rope_dimension_count(shape.head_dim)
    writer.add_rope_freq_base(1e6)


def add_tensor_infos(writer: gguf.GGUFWriter, shape: Shape, quant: str) -> None:
    for tensor in tensors(shape):
        kind = quant_of(tensor, quant).kind
        block, size = gguf.GGML_QUANT_SIZES[kind]
        n_bytes = int(np.prod(tensor.shape)) // block * size
        writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), n_bytes, raw_dtype=kind)


def write(path: Path, shape: Shape, quant: str = "q8_0", seed: int = 0) -> Path:
    """Write the model, one tensor in memory at a time; the file appears when it is complete."""
    part = path.with_name(f"{path.name}.part-{os.getpid()}")
    writer = gguf.GGUFWriter(part, ARCH)
    try:
        add_metadata(writer, shape, quant)
        add_tokenizer(writer, shape.vocabulary)
        add_tensor_infos(writer, shape, quant)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for tensor in tensors(shape):
            writer.write_tensor_data(weights(tensor, quant, seed))
        writer.close()
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
    return path


def cache_dir() -> Path:
    """Where made models are kept."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(os.environ.get("SAFEX_CACHE") or Path(home) / "safex-native") / "bench"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def cached(shape: Shape, quant: str = "q8_0", seed: int = 0) -> Path:
    """The model from the cache, made where missing; another generator makes another file."""
    recipe: dict[str, Any] = {**dataclasses.asdict(shape), "quant": quant, "seed": seed}
    key = hashlib.sha256(repr(recipe).encode() + Path(__file__).read_bytes()).hexdigest()[:12]
    path = cache_dir() / f"{ARCH}-{shape.layers}x{shape.experts}x{shape.width}-{quant}-{key}.gguf"
    return path if path.exists() else write(path, shape, quant, seed)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=SHAPES, default="full")
    parser.add_argument("--quant", choices=QUANTS, default="q8_0")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path)
    options = parser.parse_args()
    shape = SHAPES[options.shape]
    if options.output:
        print(write(options.output, shape, options.quant, options.seed))
    else:
        print(cached(shape, options.quant, options.seed))


if __name__ == "__main__":
    main()
