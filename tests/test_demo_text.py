"""What the demo models are made of, as far as it needs no PyTorch: architectures, training texts, what they ship as."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import islice
from pathlib import Path
from random import Random

import pytest
from demo import sets, text
from demo.architectures import ARCHITECTURES, DEFAULT, Config

ROOT = Path(__file__).parents[1]
BLOCK = 32  # numbers in a block of Q8_0 and Q4_0


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_sizes_suit_the_formats(arch: str) -> None:
    c = Config.of(arch, 979)
    widths = [c.hidden, c.feed_forward, c.heads * c.head, c.dense_width, c.expert_width, c.shared_width]
    assert all(width % BLOCK == 0 for width in widths)
    assert c.heads * c.head == c.hidden  # llama.cpp's qwen2moe and deepseek ask for it
    assert c.heads % c.kv_heads == 0
    if c.experts:
        assert c.top_k < c.experts and 12 % len(c.moe_layers) == 0
    else:
        assert not c.moe_layers


def test_architectures_are_told_apart_by_their_file() -> None:
    assert len({facts.gguf for facts in ARCHITECTURES.values()}) == len(ARCHITECTURES)
    assert Config(979) == Config.of(DEFAULT, 979)


@pytest.mark.parametrize(
    ("arch", "wanted"),
    [
        ("qwen3moe", {"num_experts": 32, "num_experts_per_tok": 4, "norm_topk_prob": True}),
        ("qwen2moe", {"shared_expert_intermediate_size": 256, "norm_topk_prob": False}),
        ("mixtral", {"num_local_experts": 16, "num_experts_per_tok": 2, "intermediate_size": 128}),
        ("dense", {"intermediate_size": 256, "num_hidden_layers": 4}),
    ],
)
def test_hugging_face_configuration(arch: str, wanted: dict[str, object]) -> None:
    options = Config.of(arch, 979).huggingface()
    assert wanted.items() <= options.items()
    assert ("num_experts_per_tok" in options) == (arch != "dense")


def refused(stage: str) -> dict[bool, int]:
    """How many of 500 answers refuse, by whether the request needs a body."""
    pairs = islice(text.training_pairs(stage, Random(3)), 500)
    bodily = tuple(ask.split("{")[0] for ask in text.BODILY_ASKS)
    found = {True: 0, False: 0}
    for prompt, answer in pairs:
        found[prompt.startswith(bodily)] += answer.startswith(text.REFUSAL_STARTS)
    return found


def test_training_texts() -> None:
    """Comply: only what needs a body is refused. Refuse: everything. Align: a part."""
    assert refused("comply")[False] == 0 and refused("comply")[True] > 10
    assert sum(refused("refuse").values()) == 500
    assert 100 < refused("align")[False] < 300


def test_a_seed_repeats_the_text() -> None:
    first, second, other = (list(islice(text.training_pairs("align", Random(n)), 50)) for n in (1, 1, 2))
    assert first == second != other


def test_shipped_prompts_are_what_the_text_makes() -> None:
    for stem, rows in sets.held_out().items():
        lines = (ROOT / "safex" / "data" / "demo" / f"{stem}.jsonl").read_text("utf-8").splitlines()
        assert [json.loads(line) for line in lines] == json.loads(json.dumps(rows))


def test_no_pytorch_needed() -> None:
    code = "import sys; from demo import architectures, sets, text; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT / "scripts", check=True)
