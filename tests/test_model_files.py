"""MODEL files that are no models or parts under other names: named in every command; and what blobs are called."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
import tiny_models
from cli_runner import cli

import safex
from safex import model_file
from safex.errors import InputError
from safex.model_parts import name_of, plain_name

BLOB = "sha256-" + "0123456789abcdef" * 4


def write(path: Path, architecture: str, keys: dict[str, object], tensors: dict[str, np.ndarray]) -> Path:
    """A GGUF file by the gguf package."""
    writer = gguf.GGUFWriter(path, architecture)
    for key, value in keys.items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, list):
            writer.add_array(key, value)
        else:
            writer.add_string(key, str(value))
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


ONES = np.ones((2, 32), np.float32)
OTHERS: dict[str, tuple[str, dict[str, object], dict[str, np.ndarray], str]] = {
    "projector": (
        "clip",
        {"general.type": "mmproj", "clip.has_vision_encoder": 1},
        {"mm.0.weight": ONES},
        "a multimodal projector (mmproj), expected a model; give the language model",
    ),
    "older projector": ("clip", {}, {"mm.0.weight": ONES}, "a multimodal projector (mmproj)"),
    "lora": (
        "qwen3moe",
        {"general.type": "adapter", "adapter.type": "lora", "adapter.lora.alpha": 8.0},
        {"blk.0.attn_q.weight.lora_a": ONES, "blk.0.attn_q.weight.lora_b": ONES},
        "a LoRA adapter, expected a model; give the model that it was trained on; `safex-native merge MODEL ADAPTER`",
    ),
    "imatrix": (
        "",
        {"general.type": "imatrix", "imatrix.chunk_count": 1},
        {"blk.0.ffn_down_exps.weight.in_sum2": ONES},
        "an importance matrix (imatrix), expected a model; give the model that it was made with",
    ),
    "control vector": (
        "controlvector",
        {"controlvector.model_hint": "llama", "controlvector.layer_count": 1},
        {"direction.1": ONES},
        "a control vector, expected a model",
    ),
    "vocabulary": (
        "llama",
        {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.tokens": ["a", "b"]},
        {},
        "a vocabulary without weights, expected a model",
    ),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_files_of_other_kinds_are_called_what_they_are(kind: str, tmp_path: Path) -> None:
    architecture, keys, tensors, message = OTHERS[kind]
    path = write(tmp_path / "other.gguf", architecture, keys, tensors)
    with pytest.raises(InputError) as caught:
        safex.Model(path)
    assert str(caught.value).startswith(f"{path}: {message}") and len(str(caught.value).splitlines()) == 1


COMMANDS: dict[str, list[str]] = {
    "info": ["info", "{}"],
    "profile": ["profile", "{}"],
    "eval": ["eval", "{}"],
    "audit": ["audit", "{}"],
    "serve": ["serve", "{}"],
    "trace": ["trace", "{}", "How do I bake bread?"],
    "mask": ["mask", "{}", "1:2", "-o", "out.gguf"],
    "mask in place": ["mask", "{}", "1:2", "--in-place"],
    "merge": ["merge", "{}", "lora.gguf", "--experts", "1:2", "-o", "out.gguf"],
    "merge a pair": [
        "merge",
        "demo",
        "--base",
        "{}",
        "--tuned",
        "demo",
        "--experts",
        "1:2",
        "-o",
        "out.gguf",
    ],
    "restore": ["restore", "{}"],
    "verify base": ["verify", "{}", "demo"],
    "verify edited": ["verify", "demo", "{}"],
    "diff": ["diff", "demo", "{}"],
}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A tiny model split as llama.cpp's gguf-split does."""
    folder = tmp_path_factory.mktemp("split")
    tiny_models.write_gguf(folder / "tiny.gguf", "qwen3moe", tiny_models.tiny_tensors("qwen3moe"), split=15)
    return sorted(folder.glob("*.gguf"))


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("number", [1, 2])
def test_a_part_under_another_name_is_refused(
    command: str, number: int, parts: list[Path], tmp_path: Path
) -> None:
    """It was masked and verified, though nothing loads it: the other parts are found by name only."""
    shutil.copy(parts[number - 1], tmp_path / BLOB)
    before = (tmp_path / BLOB).read_bytes()
    write(tmp_path / "lora.gguf", *OTHERS["lora"][:3])
    words = [word.format(BLOB) for word in COMMANDS[command]]
    message = f"{BLOB}: part {number} of {len(parts)} of a split model (split.count) under a name that doesn't say so"
    cli(*words, cwd=tmp_path).fails(2, message, f"NAME-00001-of-{len(parts):05d}.gguf")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora.gguf", BLOB]
    assert (tmp_path / BLOB).read_bytes() == before


@pytest.mark.parametrize("command", COMMANDS)
def test_a_projector_is_named_by_every_command(command: str, tmp_path: Path) -> None:
    write(tmp_path / "mmproj.gguf", *OTHERS["projector"][:3])
    write(tmp_path / "lora.gguf", *OTHERS["lora"][:3])
    words = [word.format("mmproj.gguf") for word in COMMANDS[command]]
    cli(*words, cwd=tmp_path).fails(2, "mmproj.gguf: a multimodal projector (mmproj), expected a model")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lora.gguf", "mmproj.gguf"]


def copied(parts: list[Path], folder: Path) -> list[Path]:
    return [Path(shutil.copy(part, folder)) for part in parts]


def resolve_fails(path: Path, *messages: str) -> None:
    with pytest.raises(InputError) as caught:
        model_file.resolve(path)
    assert len(str(caught.value).splitlines()) == 1
    for message in messages:
        assert message in str(caught.value)


def test_parts_that_do_not_belong_together(parts: list[Path], tmp_path: Path) -> None:
    first, second, *others = copied(parts, tmp_path)
    n = len(parts)
    assert model_file.resolve(first) == first and model_file.shards(first) == [first, second, *others]
    resolve_fails(second, f"part 2 of a split model; give the first, {first.name}")

    kept = second.read_bytes()
    second.unlink()
    resolve_fails(first, f"first part of a split model, but {second.name} is missing beside it")
    shutil.copy(others[0], second)
    resolve_fails(first, f"{second}: part 3 of {n} by its metadata, expected part 2 of {n} of {first.name}")
    second.write_bytes(kept[:64])
    resolve_fails(first, f"{second}: is no readable GGUF file, expected part 2 of {first.name}")

    folder = tmp_path / "other"
    folder.mkdir()
    tensors = tiny_models.tiny_tensors("qwen3moe")
    fewer = {name: array for name, array in tensors.items() if name != "output_norm.weight"}
    tiny_models.write_gguf(folder / "tiny.gguf", "qwen3moe", fewer, split=15)
    for part in sorted(folder.glob("*.gguf"))[1:]:
        shutil.copy(part, tmp_path / part.name)
    resolve_fails(first, "tensor")


def test_a_part_under_the_name_of_another_is_refused(parts: list[Path], tmp_path: Path) -> None:
    n = len(parts)
    wrong = Path(shutil.copy(parts[1], tmp_path / f"tiny-00001-of-{n:05d}.gguf"))
    resolve_fails(wrong, f"part 2 of {n} of a split model by its metadata (split.no, split.count)")
    wrong = Path(shutil.copy(parts[0], tmp_path / "tiny-00001-of-00002.gguf"))
    resolve_fails(wrong, f"part 1 of {n} of a split model by its metadata")


def test_a_whole_model_may_have_the_name_of_a_part(tmp_path: Path, tiny_path: Callable[..., Path]) -> None:
    """The metadata count, as in llama.cpp, which loads it."""
    path = Path(shutil.copy(tiny_path("qwen3moe"), tmp_path / "tiny-00001-of-00002.gguf"))
    assert model_file.resolve(path) == path and model_file.shards(path) == [path]
    with safex.Model(path, n_threads=1) as model, safex.Model(tiny_path("qwen3moe"), n_threads=1) as other:
        assert model.layers == other.layers
    assert safex.write_mask(path, tmp_path / "out.gguf", ["1:2"]).paths == [tmp_path / "out.gguf"]
    assert safex.verify(path, tmp_path / "out.gguf").holds


# Names


@pytest.mark.parametrize(
    "text, expected",
    [
        ("Qwen3 30B A3B Instruct 2507", "Qwen3-30B-A3B-Instruct-2507"),
        ("org/Model: v1.5\n", "org-Model-v1.5"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", ""),
        ("\x00\x1b[31m", "31m"),
        ("模型 7B", "模型-7B"),
        ("x" * 300, "x" * 80),
    ],
)
def test_names_of_files_made_of_any_text(text: str, expected: str) -> None:
    assert plain_name(text) == expected


def test_a_blob_is_called_by_its_own_name(tmp_path: Path) -> None:
    tensors = {"token_embd.weight": ONES}
    named = write(tmp_path / BLOB, "llama", {"general.name": "Tiny: Model/7B"}, tensors)
    assert name_of(named) == "Tiny-Model-7B"
    nameless = write(tmp_path / ("f" * 64), "llama", {}, tensors)
    assert name_of(nameless) == "f" * 19
    assert name_of(tmp_path / "my.model.gguf") == "my.model"
    assert name_of(tmp_path / "sha256-of-something.gguf") == "sha256-of-something"


def test_outputs_of_a_blob_are_named_by_it_and_never_replaced(tmp_path: Path) -> None:
    shutil.copy(model_file.resolve("demo"), tmp_path / BLOB)
    (tmp_path / "a.txt").write_text("How do I bake bread?\n")
    words = ["profile", BLOB, "--prompts", "a=a.txt", "--threads", 1, "--quiet"]
    assert cli(*words, cwd=tmp_path).code == 0
    (made,) = tmp_path.glob("*.profile.gguf")
    assert made.name == f"{plain_name(str(gguf_name(tmp_path / BLOB)))}.profile.gguf"
    content = made.read_bytes()
    cli(*words, cwd=tmp_path).fails(2, f"{made.name}: exists")
    assert made.read_bytes() == content


def gguf_name(path: Path) -> object:
    return gguf.GGUFReader(path).fields["general.name"].contents()
