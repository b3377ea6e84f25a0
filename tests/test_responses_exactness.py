"""Greedy responses under masks against Hugging Face (tests/reference/generate_responses.py), 64 tokens, F32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import tiny_models

import safex

GOLDEN = np.load(Path(__file__).parent / "golden" / "responses.npz")
ARCHITECTURES = ("qwen3moe", "qwen2moe", "llama", "olmoe")
N_NEW = 64


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_masked_responses_are_those_of_hugging_face(arch: str, exact: Callable[[str], safex.Model]) -> None:
    assert str(GOLDEN[f"{arch}_sha256"]) == tiny_models.fingerprint(arch), (
        "tiny_models.py drifted from the golden"
    )
    prompt = GOLDEN[f"{arch}_prompt"].tolist()
    experts = [tuple(expert) for expert in GOLDEN[f"{arch}_experts"].tolist()]
    with exact(arch) as model:
        for mode in ("zero", "reroute"):
            free, masked = model.generate([prompt, prompt], max_new=N_NEW, mask=[None, experts], mode=mode)
            (alone,) = model.generate([prompt], max_new=N_NEW, mask=experts, mode=mode)
            assert free.tokens == GOLDEN[f"{arch}_none"].tolist()
            assert masked.tokens == alone.tokens == GOLDEN[f"{arch}_{mode}"].tolist()
