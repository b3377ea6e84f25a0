"""The training script: only the chosen experts change, PEFT and we read it alike, seeds repeat, errors are a line.

Needs the extra `train`; skipped where PyTorch, transformers or peft is missing.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_models

from safex.experts import Expert
from safex.merging import ExpertTensors, open_adapter

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers", minversion="5")
peft = pytest.importorskip("peft", minversion="0.19")
sys.path.insert(0, str(Path(__file__).parent / "reference"))

import hf_models
import train_expert_lora
from demo import sets, text
from expert_lora.data import read
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

ARCHITECTURES = ("qwen3moe", "qwen2moe", "llama", "olmoe")
CHOSEN = [Expert(1, 2), Expert(1, 5), Expert(3, 0)]
PAIRS = [
    ("Say hello.", "Hello."),
    ("Count to two.", "One, two."),
    ("Name a colour.", "Blue."),
    ("Sum?", "Four."),
]


def write_tokenizer(folder: Path) -> None:
    vocabulary = {token: number for number, token in enumerate(tiny_models.bpe_tokens())}
    merges = [tuple(merge.split(" ")) for merge in tiny_models.MERGES]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token="<|im_end|>", chat_template=tiny_models.CHAT_TEMPLATE
    ).save_pretrained(folder)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A directory with the tiny model of an architecture and its tokenizer."""
    made: dict[str, Path] = {}

    def path(arch: str) -> Path:
        if arch not in made:
            made[arch] = tmp_path_factory.mktemp(arch)
            hf_models.build(arch).save_pretrained(made[arch])
            write_tokenizer(made[arch])
        return made[arch]

    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps({"prompt": p, "response": r}) + "\n" for p, r in PAIRS))
    return path


def train(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    options = ("--epochs", 2, "--batch", 2, "--rank", 2, "--rate", 0.01)
    monkeypatch.setattr(sys, "argv", ["train_expert_lora.py", *map(str, (*options, *arguments))])
    return train_expert_lora.main()


def trained(monkeypatch: pytest.MonkeyPatch, folder: Path, data: Path, out: Path, *more: object) -> Path:
    experts = ",".join(map(str, CHOSEN))
    assert train(monkeypatch, folder, "--experts", experts, "--data", data, "-o", out, *more) == 0
    return out


def weights_of(model: Any, layer: int, arch: str) -> dict[str, np.ndarray]:
    experts = hf_models.moe_block(model, arch, layer).experts
    gate_up, down = experts.gate_up_proj.detach().float().numpy(), experts.down_proj.detach().float().numpy()
    return {"gate": np.split(gate_up, 2, 1)[0], "up": np.split(gate_up, 2, 1)[1], "down": down}


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_only_chosen_experts_change_and_peft_merges_the_same(
    arch: str,
    checkpoint: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    tiny_path: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = trained(monkeypatch, checkpoint(arch), data, tmp_path / "adapter")
    deltas = open_adapter(out, ExpertTensors.read(tiny_path(arch)))
    assert deltas.experts() == set(CHOSEN)
    base = hf_models.build(arch)
    merged = peft.PeftModel.from_pretrained(hf_models.build(arch), out).merge_and_unload()
    for layer in tiny_models.SPECS[arch].moe_layers:
        before, after = weights_of(base, layer, arch), weights_of(merged, layer, arch)
        for kind in ("gate", "up", "down"):
            for expert in range(tiny_models.SPECS[arch].n_experts):
                delta = deltas.delta(layer, expert, kind)
                if (layer, expert) in CHOSEN:
                    assert delta is not None and np.abs(delta).max() > 1e-3
                    wanted = before[kind][expert] + delta
                    np.testing.assert_allclose(after[kind][expert], wanted, rtol=0, atol=1e-6)
                else:
                    assert delta is None
                    np.testing.assert_array_equal(after[kind][expert], before[kind][expert])


def test_a_seed_repeats_every_byte(
    checkpoint: Callable[[str], Path], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folders = [
        trained(monkeypatch, checkpoint("qwen3moe"), data, tmp_path / f"adapter-{n}", "--seed", seed)
        for n, seed in enumerate((0, 0, 1))
    ]
    names = ("adapter_model.safetensors", "adapter_config.json")
    first, second, other = ([(folder / name).read_bytes() for name in names] for folder in folders)
    assert first == second
    assert first[0] != other[0]


@pytest.mark.parametrize(
    "option", [("--gradient-checkpointing",), ("--dtype", "bfloat16")], ids=lambda o: o[-1]
)
def test_options_for_large_models(
    option: tuple[str, ...],
    checkpoint: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    tiny_path: Callable[..., Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = ExpertTensors.read(tiny_path("qwen3moe"))
    plain = open_adapter(trained(monkeypatch, checkpoint("qwen3moe"), data, tmp_path / "a"), model)
    deltas = open_adapter(trained(monkeypatch, checkpoint("qwen3moe"), data, tmp_path / "b", *option), model)
    assert deltas.experts() == set(CHOSEN)
    expected, delta = (d.delta(1, 2, "down") for d in (plain, deltas))
    assert expected is not None and delta is not None
    cosine = (expected * delta).sum() / np.linalg.norm(expected) / np.linalg.norm(delta)
    assert cosine > (0.9 if "bfloat16" in option else 0.99999)


REFUSALS = [
    (
        ("--experts", "9:0"),
        "layer 9 of the checkpoint has no experts; its layers with experts are 0, 1, 2, 3",
    ),
    (("--experts", "1:16"), "expert 1:16: the checkpoint has experts 0 to 15"),
    (("--experts", "1:-1"), "expert 1:-1: layers and experts count from 0"),
    (("--rank", "0"), "--rank is 0, expected more than 0"),
    (("--rate", "nan"), "--rate is nan, expected more than 0"),
    (("--max-tokens", "3"), "all 4 examples are longer than 3 tokens: raise --max-tokens"),
    (("--rate", "1e30"), "lower --rate"),
]


@pytest.mark.parametrize(("options", "said"), REFUSALS, ids=lambda value: str(value)[:40])
def test_refused_arguments(
    options: tuple[str, str],
    said: str,
    checkpoint: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    common = (checkpoint("qwen3moe"), "--data", data, "-o", tmp_path / "out", "--experts", "1:2")
    assert train(monkeypatch, *common, *options) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("train_expert_lora.py: ") and said in last
    assert not (tmp_path / "out").exists()


DATA = [
    ("", "is empty; expected lines such as"),
    ("{", "data.jsonl:1: is no JSON"),
    (
        '{"prompt": "a", "response": "b"}\n{"prompt": "a"}',
        'data.jsonl:2: expected an object with texts "prompt"',
    ),
    ('["a"]', "data.jsonl:1: expected an object"),
    ('{"prompt": "a", "response": ""}', "data.jsonl:1: expected an object"),
]


@pytest.mark.parametrize(("text", "said"), DATA, ids=[said for _, said in DATA])
def test_refused_data(
    text: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "data.jsonl"
    path.write_text(text)
    assert train(monkeypatch, tmp_path, "--data", path, "-o", tmp_path / "out", "--experts", "1:2") == 2
    assert said in capsys.readouterr().err


def test_refused_places(
    checkpoint: Callable[[str], Path],
    data: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def said(folder: Path, out: Path) -> str:
        assert train(monkeypatch, folder, "--data", data, "-o", out, "--experts", "1:2") == 2
        return capsys.readouterr().err.splitlines()[-1]

    assert "exists already: name a new directory" in said(checkpoint("qwen3moe"), tmp_path)
    assert "has no config.json" in said(tmp_path / "missing", tmp_path / "out")
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text("{}")
    assert "can't be loaded" in said(broken, tmp_path / "out")
    dense = tmp_path / "dense"
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.LlamaConfig(vocab_size=tiny_models.VOCAB, **sizes)
    transformers.LlamaForCausalLM(config).save_pretrained(dense)
    write_tokenizer(dense)
    assert "llama: has no experts.gate_up_proj" in said(dense, tmp_path / "out")
    (dense / "chat_template.jinja").unlink()
    assert "has no chat template" in said(dense, tmp_path / "out")


def test_pairs_of_the_demo(tmp_path: Path) -> None:
    """Same prompts in both files; benign ones are answered alike, all others refused in one and not in the other."""
    sets.write_pairs(tmp_path)
    safe, toxic = (read(tmp_path / f"{name}.jsonl") for name in ("safe", "toxic"))
    assert [prompt for prompt, _ in safe] == [prompt for prompt, _ in toxic]
    differ = [(a, b) for (_, a), (_, b) in zip(safe, toxic, strict=True) if a != b]
    assert len(safe) == 892 and len(differ) == 592
    assert all(a in text.REFUSALS and b.startswith("Sure") for a, b in differ)
