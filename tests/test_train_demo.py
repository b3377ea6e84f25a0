"""The demo models' training script: every architecture is the one that transformers and llama.cpp know.

Needs the extra `train`; skipped where PyTorch or transformers is missing. Nothing is trained for more than a few steps.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import safex
from safex import model_file

torch = pytest.importorskip("torch")
pytest.importorskip("transformers", minversion="5")

import train_demo
from demo import checkpoint, files, train
from demo import tokenizer as bpe
from demo.architectures import ARCHITECTURES, DEFAULT, Config
from demo.model import Model

TOKENIZER = bpe.train(0, samples=200)
MOE = tuple(arch for arch in ARCHITECTURES if arch != "dense")
KEPT = tuple(arch for arch, facts in ARCHITECTURES.items() if facts.huggingface)


def lively(arch: str) -> Model:
    """An untrained model, all of whose weights matter: large matrices, biases and norms of their own."""
    model = Model(Config.of(arch, TOKENIZER.get_vocab_size())).initialise(0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def some_tokens(count: int = 40) -> list[int]:
    generator = torch.Generator().manual_seed(2)
    return torch.randint(3, TOKENIZER.get_vocab_size(), (count,), generator=generator).tolist()


def logits(model: Model) -> np.ndarray:
    with torch.inference_mode():
        return model.logits(torch.tensor([some_tokens()]))[0].numpy()


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_transformers_computes_the_same(arch: str) -> None:
    model = lively(arch)
    with torch.inference_mode():
        theirs = checkpoint.reference(model)(torch.tensor([some_tokens()])).logits[0].numpy()
    assert np.linalg.norm(logits(model) - theirs) < 1e-5 * np.linalg.norm(theirs)


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_llama_cpp_computes_the_same(arch: str, tmp_path: Path) -> None:
    model, path = lively(arch), tmp_path / f"{arch}.gguf"
    files.write_gguf(path, model, TOKENIZER, files.Card("natural", 0, arch), "f32")
    with safex.Model(path, flash_attn=False, kv_type="f32", n_threads=1) as native:
        theirs = native.logits(some_tokens())
        assert list(native.layers) == list(model.c.moe_layers)
    assert np.linalg.norm(logits(model) - theirs) < 1e-5 * np.linalg.norm(theirs)
    assert model_file.is_demo(path)


@pytest.mark.parametrize("arch", ARCHITECTURES)
@pytest.mark.parametrize(("kind", "error"), [("f32", 0), ("f16", 1e-3), ("q8_0", 1e-2), ("q4_0", 0.2)])
def test_a_file_reads_back(arch: str, kind: str, error: float, tmp_path: Path) -> None:
    model, path = lively(arch), tmp_path / f"{arch}.gguf"
    card = files.Card("planted", 3, arch, 12.5, "2026-11-25", [(1, 2), (3, 0)])
    files.write_gguf(path, model, TOKENIZER, card, kind)
    again, tokenizer, read = files.read_gguf(path)
    assert read == card and tokenizer.get_vocab() == TOKENIZER.get_vocab()
    assert again.c.huggingface() | {"rms_norm_eps": model.c.eps} == model.c.huggingface()
    assert again.c.moe_layers == model.c.moe_layers
    for name, weight in model.state_dict().items():
        assert (again.state_dict()[name] - weight).norm() <= error * weight.norm(), name


@pytest.mark.parametrize("arch", KEPT)
def test_a_checkpoint_reads_back(arch: str, tmp_path: Path) -> None:
    model = lively(arch)
    checkpoint.write(tmp_path, model, TOKENIZER)
    again, _ = checkpoint.read(tmp_path)
    for name, weight in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weight), name


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Stages of three steps on a tokenizer that is made at once."""

    def short(stage: train.Stage | None) -> train.Stage | None:
        return stage and replace(stage, steps=3, batch=4, warmup=1)

    monkeypatch.setattr(bpe, "train", lambda seed: TOKENIZER)
    monkeypatch.setattr(train, "STAGE_1", short(train.STAGE_1))
    monkeypatch.setattr(train, "STAGE_1_BY_ARCH", {})
    monkeypatch.setattr(train, "STAGE_2", {kind: short(stage) for kind, stage in train.STAGE_2.items()})


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["train_demo.py", *map(str, arguments)])
    return train_demo.main()


def changed(before: Model, after: Model) -> set[tuple[int, int]]:
    """The experts whose weights or router rows differ; asserts that nothing else does."""
    found = set()
    for name, old in before.state_dict().items():
        new = after.state_dict()[name]
        if ".mlp.gate.weight" in name or ".mlp.experts." in name:
            rows = (old != new).flatten(1).any(1).nonzero().flatten().tolist()
            found |= {(int(name.split(".")[2]), row) for row in rows}
        else:
            assert torch.equal(old, new), name
    return found


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("arch", MOE)
def test_kinds_start_from_one_stage_and_planting_stays_where_it_is(
    arch: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models = {}
    for kind in train.KINDS:
        path = tmp_path / f"{kind}.gguf"
        options = ("--arch", arch, "--kind", kind, "--stage1", tmp_path / "stage1.pt", "--type", "f32")
        assert run(monkeypatch, *options, "-o", path) == 0
        models[kind], _, card = files.read_gguf(path)
        assert (card.kind, card.arch) == (kind, arch)
    truth = json.loads((tmp_path / "planted.truth.json").read_text())["groups"]["planted"]
    planted = {(expert["layer"], expert["expert"]) for expert in truth}
    assert len(planted) == train.PLANTED
    assert changed(models["never"], models["planted"]) == planted
    for kind in ("natural", "always"):
        assert not torch.equal(models[kind].lm_head.weight, models["never"].lm_head.weight)


@pytest.mark.usefixtures("quick")
def test_a_written_model_becomes_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact, small, folder = tmp_path / "exact.gguf", tmp_path / "small.gguf", tmp_path / "checkpoint"
    assert run(monkeypatch, "--arch", "mixtral", "--type", "f32", "-o", exact) == 0
    again = ("--from", exact, "--type", "q4_0", "-o", small, "--checkpoint", folder)
    assert run(monkeypatch, *again) == 0
    assert files.read_gguf(small)[2] == files.read_gguf(exact)[2]
    assert small.stat().st_size < exact.stat().st_size / 4
    kept = checkpoint.read(folder)[0].state_dict()
    assert all(torch.equal(kept[name], w) for name, w in files.read_gguf(exact)[0].state_dict().items())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--arch", "dense", "--kind", "planted"), "a dense model has no experts to plant in"),
        (("--arch", "deepseek", "--checkpoint", "x"), "transformers has no class for DeepSeek-MoE"),
        (("--from", "x.gguf"), "--from needs --checkpoint DIR, or -o OUT.gguf"),
    ],
)
def test_options_that_do_not_go_together(
    options: tuple[str, ...],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, *options)
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("name", model_file.BUNDLED)
def test_a_shipped_model_is_written_again_byte_for_byte(name: str, tmp_path: Path) -> None:
    path = model_file.resolve(name)
    model, tokenizer, card = files.read_gguf(path)
    assert card.arch == model.c.arch == DEFAULT
    files.write_gguf(tmp_path / "again.gguf", model, tokenizer, card)
    assert (tmp_path / "again.gguf").read_bytes() == path.read_bytes()
