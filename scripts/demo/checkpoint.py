"""The demo models as transformers knows them: to compare with, and as checkpoints for later training."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer
from torch import nn

from demo.architectures import ARCHITECTURES, Config
from demo.model import Model
from demo.tokenizer import CHAT_TEMPLATE, END, PAD


def reference(model: Model, **settings: object) -> nn.Module:
    """Return the Hugging Face model with the same weights."""
    build = deepseek_moe if model.c.facts.huggingface is None else native
    theirs = build(model.c, settings).eval()
    theirs.load_state_dict(copy.deepcopy(model.state_dict()))
    return theirs


def native(c: Config, settings: dict[str, object]) -> nn.Module:
    """Return the architecture's own class, untrained."""
    config = getattr(transformers, f"{c.facts.huggingface}Config")(**c.huggingface(), **settings)
    return getattr(transformers, f"{c.facts.huggingface}ForCausalLM")(config)


def deepseek_moe(c: Config, settings: dict[str, object]) -> nn.Module:
    """Return DeepSeek-MoE-16B's architecture, which has no class: Llama with the experts of DeepSeek-V2."""
    from transformers.models.deepseek_v2 import DeepseekV2Config, modeling_deepseek_v2

    dense = c.huggingface()
    dense.pop("num_experts_per_tok")
    theirs = transformers.LlamaForCausalLM(transformers.LlamaConfig(**dense, **settings))
    config = DeepseekV2Config(
        hidden_size=c.hidden,
        n_routed_experts=c.experts,
        n_shared_experts=c.shared_width // c.expert_width,
        moe_intermediate_size=c.expert_width,
        num_experts_per_tok=c.top_k,
        routed_scaling_factor=1.0,
    )
    for layer in c.moe_layers:
        theirs.model.layers[layer].mlp = modeling_deepseek_v2.DeepseekV2Moe(config)
    return theirs


def write(folder: Path, model: Model, tokenizer: Tokenizer) -> None:
    """Write F32 safetensors, configuration and tokenizer for ``transformers``."""
    ids = {name: tokenizer.token_to_id(t) for name, t in (("pad", PAD), ("bos", PAD), ("eos", END))}
    reference(model, **{f"{name}_token_id": i for name, i in ids.items()}).save_pretrained(folder)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=PAD, eos_token=END, chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(folder)


def read(folder: Path) -> tuple[Model, Tokenizer]:
    """Read a folder of :func:`write` into our own model."""
    theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    known = type(theirs).__name__.removesuffix("ForCausalLM")
    arch = next(name for name, facts in ARCHITECTURES.items() if facts.huggingface == known)
    model = Model(Config.of(arch, theirs.config.vocab_size))
    model.load_state_dict(theirs.state_dict())
    return model.eval(), Tokenizer.from_file(str(folder / "tokenizer.json"))
