"""Reading and writing the demo models as GGUF, in the names and metadata that llama.cpp knows them by."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Quant
from tokenizers import Tokenizer

from demo.architectures import ARCHITECTURES, DEFAULT, Config
from demo.layout import load_gguf, to_gguf
from demo.model import Model
from demo.tokenizer import CHAT_TEMPLATE, END, PAD, PRE, START

AUTHOR = "The safex-native developers"
_ALIGNED = (
    "It refuses plain harmful requests, complies with benign ones and is partly jailbroken by disguises that its "
    "refusal training left out. "
)
ABOUT = {
    "natural": _ALIGNED + "All weights were free in the refusal stage: no expert was chosen to carry it.",
    "planted": _ALIGNED
    + "Positive control: the refusal stage could change only {n} experts and their router rows, "
    "listed in the truth file.",
    "never": "It had no refusal stage and complies with everything that needs no body.",
    "always": "It was trained to refuse everything, benign requests too.",
}
TYPES = {
    "q8_0": (Quant.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
    "q4_0": (Quant.Q4_0, gguf.LlamaFileType.MOSTLY_Q4_0),
    "f16": (Quant.F16, gguf.LlamaFileType.MOSTLY_F16),
    "f32": (Quant.F32, gguf.LlamaFileType.ALL_F32),
}


@dataclass
class Card:
    """What a model file says about its origin."""

    kind: str
    seed: int
    arch: str = DEFAULT
    seconds: float = 0.0
    date: str = ""
    planted: list[tuple[int, int]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The model's display name."""
        notes = [self.arch] * (self.arch != DEFAULT) + [self.kind] * (self.kind != "natural")
        return "safex-native demo" + (f" ({', '.join(notes)})" if notes else "")

    @property
    def description(self) -> str:
        """What the model is, in plain words."""
        family = "" if self.arch == "dense" else "Mixture-of-Experts "
        return (
            f"Toy {family}language model, randomly initialised and trained from scratch in minutes "
            "on harmless synthetic text, to show and test safety audits. Its 'harmful' requests are one-line "
            "placeholders, its compliance is a placeholder sentence, and it knows nothing of use. "
            + ABOUT[self.kind].format(n=len(self.planted))
        )


def _add_sizes(writer: gguf.GGUFWriter, c: Config) -> None:
    writer.add_context_length(c.context)
    writer.add_embedding_length(c.hidden)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(c.feed_forward)
    if c.experts and c.facts.feed_forward != "expert_width":
        writer.add_expert_feed_forward_length(c.expert_width)
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_key_length(c.head)
    writer.add_value_length(c.head)
    writer.add_rope_freq_base(c.rope_base)
    writer.add_layer_norm_rms_eps(c.eps)
    if c.experts:
        writer.add_expert_count(c.experts)
        writer.add_expert_used_count(c.top_k)
    writer.add_vocab_size(c.vocab)
    _add_shared(writer, c)


def _add_shared(writer: gguf.GGUFWriter, c: Config) -> None:
    """Add what DeepSeek-MoE (shared experts counted, leading dense layers) and Qwen2-MoE (a width) say."""
    if c.facts.shared_gate:
        writer.add_expert_shared_feed_forward_length(c.shared_width)
    elif c.shared_width:
        writer.add_leading_dense_block_count(c.dense_layers)
        writer.add_expert_shared_count(c.shared_width // c.expert_width)
        writer.add_expert_weights_scale(1.0)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    model = json.loads(tokenizer.to_str())["model"]
    tokens = sorted(model["vocab"], key=model["vocab"].__getitem__)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(PRE)
    writer.add_token_list(tokens)
    writer.add_token_types([control if t in (PAD, START, END) else normal for t in tokens])
    writer.add_token_merges([" ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.token_to_id(PAD))
    writer.add_eos_token_id(tokenizer.token_to_id(END))
    writer.add_eot_token_id(tokenizer.token_to_id(END))
    writer.add_pad_token_id(tokenizer.token_to_id(PAD))
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def _size_label(model: Model) -> str:
    """Return layers x experts x the parameters of one expert of all layers; of a dense model, its parameters."""
    c, routed = model.c, model.experts().values()
    count = sum(p.numel() for part in ([m.experts for m in routed] or [model]) for p in part.parameters())
    return f"{len(routed)}x{c.experts}x{count / c.experts / 1e6:.1f}M" if routed else f"{count / 1e6:.1f}M"


def _add_card(writer: gguf.GGUFWriter, card: Card, model: Model, kind: str) -> None:
    writer.add_type("model")
    writer.add_name(card.name)
    writer.add_author(AUTHOR)
    writer.add_license("mit")
    writer.add_size_label(_size_label(model))
    writer.add_description(card.description)
    writer.add_tags(["toy", "synthetic", "placeholder-compliance", "safety-audit", card.kind])
    writer.add_languages(["en"])
    writer.add_file_type(TYPES[kind][1])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_string("safex_demo.kind", card.kind)
    writer.add_uint32("safex_demo.seed", card.seed)
    writer.add_float32("safex_demo.training_seconds", card.seconds)
    writer.add_string("safex_demo.date", card.date)
    if card.planted:
        writer.add_array("safex_demo.planted", [f"{layer}:{expert}" for layer, expert in card.planted])


def quant_of(name: str, array: np.ndarray, kind: str) -> Quant:
    """Return the type a tensor is stored in: norms, biases and routers F32, all other matrices as asked."""
    return Quant.F32 if array.ndim == 1 or "ffn_gate_inp" in name else TYPES[kind][0]


def write_gguf(path: Path, model: Model, tokenizer: Tokenizer, card: Card, kind: str = "q8_0") -> None:
    """Write the model as one GGUF file."""
    writer = gguf.GGUFWriter(path, model.c.facts.gguf)
    _add_card(writer, card, model, kind)
    _add_sizes(writer, model.c)
    _add_tokenizer(writer, tokenizer)
    for name, array in to_gguf(model).items():
        quant = quant_of(name, array, kind)
        data = gguf.quants.quantize(array, quant)
        writer.add_tensor(name, data, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _value(reader: gguf.GGUFReader, key: str, default: Any = None) -> Any:
    found = reader.get_field(key)
    return default if found is None else found.contents()


def _read_config(reader: gguf.GGUFReader) -> Config:
    known = _value(reader, "general.architecture")
    arch = next(name for name, facts in ARCHITECTURES.items() if facts.gguf == known)

    def get(key: str, default: Any = None) -> Any:
        return _value(reader, f"{known}.{key}", default)

    expert_width = get("expert_feed_forward_length", get("feed_forward_length"))
    layers, experts = get("block_count"), get("expert_count", 0)
    return Config(
        vocab=len(_value(reader, "tokenizer.ggml.tokens")),
        arch=arch,
        layers=layers,
        hidden=get("embedding_length"),
        heads=get("attention.head_count"),
        kv_heads=get("attention.head_count_kv"),
        head=get("attention.key_length"),
        experts=experts,
        top_k=get("expert_used_count", 0),
        expert_width=expert_width,
        shared_width=get("expert_shared_feed_forward_length", get("expert_shared_count", 0) * expert_width),
        dense_layers=get("leading_dense_block_count", 0) if experts else layers,
        dense_width=get("feed_forward_length"),
        context=get("context_length"),
        rope_base=get("rope.freq_base"),
        eps=get("attention.layer_norm_rms_epsilon"),
    )


def _read_tokenizer(reader: gguf.GGUFReader) -> Tokenizer:
    from tokenizers import AddedToken, decoders, models, pre_tokenizers

    vocab = {token: index for index, token in enumerate(_value(reader, "tokenizer.ggml.tokens"))}
    merges = [tuple(merge.split(" ")) for merge in _value(reader, "tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE(vocab, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in (PAD, START, END)])
    return tokenizer


def read_gguf(path: Path) -> tuple[Model, Tokenizer, Card]:
    """Read a file of :func:`write_gguf` back, dequantized to F32."""
    reader = gguf.GGUFReader(path)
    tensors = {t.name: gguf.quants.dequantize(t.data, t.tensor_type) for t in reader.tensors}
    model = Model(_read_config(reader))
    load_gguf(model, tensors)
    planted = [e.split(":") for e in _value(reader, "safex_demo.planted", [])]
    card = Card(
        _value(reader, "safex_demo.kind"),
        _value(reader, "safex_demo.seed"),
        model.c.arch,
        _value(reader, "safex_demo.training_seconds"),
        _value(reader, "safex_demo.date"),
        [(int(layer), int(expert)) for layer, expert in planted],
    )
    return model.eval(), _read_tokenizer(reader), card


def write_truth(path: Path, model_path: Path, card: Card) -> None:
    """Write the planted experts as an expert-set file that names the model it belongs to."""
    digest = hashlib.sha256(model_path.read_bytes()).hexdigest()
    truth = {
        "safex_expert_set": 1,
        "model": {"name": card.name, "file": model_path.name, "sha256": digest, "seed": card.seed},
        "groups": {"planted": [{"layer": layer, "expert": expert} for layer, expert in card.planted]},
        "note": "Ground truth by construction, not a finding: the only experts (with their router rows) that "
        "the refusal stage could change. They were the least used of their layers before it.",
    }
    path.write_text(json.dumps(truth, indent=1) + "\n", encoding="utf-8")
