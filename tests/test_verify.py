"""`verify` and `diff`: what they find is what NumPy and the gguf package find, and a false account is caught."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import tiny_models
from cli_runner import cli

import safex

TinyPath = Callable[..., Path]
EXPERTS = [(1, 3), (2, 0)]


@pytest.fixture
def pair(tmp_path: Path, tiny_path: TinyPath) -> tuple[Path, Path]:
    """A base and a masked file of the test's own."""
    base = Path(shutil.copy(tiny_path("gpt-oss", "q8_0"), tmp_path / "base.gguf"))
    safex.write_mask(base, tmp_path / "edited.gguf", EXPERTS)
    return base, tmp_path / "edited.gguf"


def place(path: Path, name: str) -> tuple[int, int]:
    """Where a tensor's bytes begin, and how many there are."""
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == name)
    return int(tensor.data_offset), int(tensor.n_bytes)


def flip(path: Path, offset: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 1]))


def test_an_honest_file_holds(pair: tuple[Path, Path]) -> None:
    base, edited = pair
    found = safex.verify(base, edited)
    assert found.holds and found.problems == []
    assert found.account.origin == "metadata"
    listed = sorted((c.layer, c.expert, c.tensor) for c in found.difference.slices)
    assert listed == sorted(
        (layer, expert, f"blk.{layer}.ffn_down_exps.{kind}")
        for layer, expert in EXPERTS
        for kind in ("weight", "bias")
    )
    assert set(found.difference.metadata) == {
        key for key in gguf.GGUFReader(edited).fields if key.startswith("safex.")
    } | {"general.name"}
    assert found.difference.tensors == {} and found.difference.layout == []


def test_the_hash_of_the_rest_is_that_of_all_other_bytes(pair: tuple[Path, Path]) -> None:
    base, edited = pair
    found = safex.verify(base, edited).difference
    data, rest = base.read_bytes(), hashlib.sha256()
    left_out = set()
    for layer, expert in EXPERTS:
        for kind in ("weight", "bias"):
            left_out.add((f"blk.{layer}.ffn_down_exps.{kind}", expert))
    gaps, n_bytes = b"", 0
    end = gguf.GGUFReader(base).data_offset
    for tensor in sorted(gguf.GGUFReader(base).tensors, key=lambda t: int(t.data_offset)):
        start, n = int(tensor.data_offset), int(tensor.n_bytes)
        gaps += data[end:start]
        end = start + n
        n_slices = 8 if "_exps" in tensor.name or "gate_inp" in tensor.name else 1
        for i in range(n_slices):
            if (tensor.name, i) not in left_out:
                part = data[start + i * n // n_slices : start + (i + 1) * n // n_slices]
                rest.update(part)
                n_bytes += len(part)
    gaps += data[end:]
    rest.update(gaps)
    assert found.rest_sha256 == rest.hexdigest()
    assert found.rest_bytes == n_bytes + len(gaps)


def test_the_hashes_of_slices(pair: tuple[Path, Path]) -> None:
    base, edited = pair
    for change in safex.diff(base, edited).slices:
        hashes = []
        for path in (base, edited):
            start, n = place(path, change.tensor)
            size = n // 8
            data = path.read_bytes()[start + change.expert * size : start + (change.expert + 1) * size]
            hashes.append(hashlib.sha256(data).hexdigest())
        assert [change.a_sha256, change.b_sha256] == hashes


def test_equal_files_differ_in_nothing(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = pair
    copy = Path(shutil.copy(base, tmp_path / "copy.gguf"))
    assert safex.diff(base, copy).equal
    said = cli("diff", base, copy, "--json")
    assert said.code == 0 and said.json["equal"] is True


# --- false accounts


def problems(base: Path, edited: Path) -> list[str]:
    done = cli("verify", base, edited, "--json", "--quiet")
    assert done.code == 1 and done.err == ""
    assert done.json["holds"] is False
    found: list[str] = done.json["problems"]
    return found


def test_a_byte_elsewhere(pair: tuple[Path, Path]) -> None:
    base, edited = pair
    start, n = place(edited, "blk.0.attn_q.weight")
    flip(edited, start + n // 2)
    assert problems(base, edited) == ["tensor blk.0.attn_q.weight has other values"]


def test_a_byte_in_another_expert(pair: tuple[Path, Path]) -> None:
    base, edited = pair
    start, n = place(edited, "blk.3.ffn_up_exps.weight")
    flip(edited, start + 5 * n // 8)
    assert problems(base, edited) == [
        "blk.3.ffn_up_exps.weight, expert 5: changed, but not listed",
        "expert 3:5: changed, but not named",
    ]


def test_a_byte_in_a_masked_slice(pair: tuple[Path, Path]) -> None:
    base, edited = pair
    start, n = place(edited, "blk.1.ffn_down_exps.weight")
    flip(edited, start + 3 * n // 8 + 7)
    assert problems(base, edited) == ["blk.1.ffn_down_exps.weight, expert 3: has other bytes than listed"]


def test_a_slice_that_was_put_back(pair: tuple[Path, Path]) -> None:
    base, edited = pair
    (there, n), (here, _) = (place(path, "blk.1.ffn_down_exps.weight") for path in (base, edited))
    data = bytearray(edited.read_bytes())
    size = n // 8
    data[here + 3 * size : here + 4 * size] = base.read_bytes()[there + 3 * size : there + 4 * size]
    edited.write_bytes(data)
    assert problems(base, edited) == ["blk.1.ffn_down_exps.weight, expert 3: is listed as changed but is not"]


def test_bytes_between_tensors(pair: tuple[Path, Path]) -> None:
    base, edited = pair
    with edited.open("ab") as file:
        file.write(b"more")
    with base.open("ab") as file:
        file.write(b"MORE")
    said = problems(base, edited)
    assert any("bytes between tensors differ" in line for line in said)


def rewritten(edited: Path, old: bytes, new: bytes) -> None:
    data = edited.read_bytes()
    assert old in data and len(old) == len(new)
    edited.write_bytes(data.replace(old, new))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        (b"safex.statement", b"other.statement", "metadata safex.statement is missing"),
        (b"safety behaviour altered by", b"all is as it was since the ", "general.name does not say"),
        (b'"gain": 0.0', b'"gain": 0.5', "the slices listed are not what this mask makes of the base"),
        (b"1:3", b"1:4", "expert 1:3: changed, but not named"),
        (
            b"tokenizer.ggml.model",
            b"tokenizer.ggml.modem",
            "metadata tokenizer.ggml.model is only in the first",
        ),
    ],
)
def test_other_metadata(old: bytes, new: bytes, message: str, pair: tuple[Path, Path]) -> None:
    base, edited = pair
    rewritten(edited, old, new)
    assert any(message in line for line in problems(base, edited))


def test_another_base(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, edited = pair
    start, n = place(base, "blk.0.attn_q.weight")
    flip(base, start + n // 2)
    said = problems(base, edited)
    assert any("made from another base (SHA-256" in line for line in said)
    unrelated = tiny_models.write_tiny(tmp_path / "other.gguf", "olmoe")
    assert len(problems(unrelated, edited)) > 3


def test_a_file_without_an_account(pair: tuple[Path, Path]) -> None:
    base, edited = pair
    assert "it carries no provenance (no metadata safex.*, no side-car, no undo file)" in problems(
        edited, base
    )


# --- accounts beside the file


def test_an_edit_in_place_is_proven_by_its_side_car(pair: tuple[Path, Path], tmp_path: Path) -> None:
    base, _ = pair
    model = Path(shutil.copy(base, tmp_path / "model.gguf"))
    safex.write_mask(model, None, EXPERTS)
    found = safex.verify(base, model)
    assert found.holds and found.account.origin == "sidecar"
    model.with_name("model.gguf.safex.json").unlink()
    found = safex.verify(base, model)
    assert found.holds and found.account.origin == "undo"
    model.with_name("model.gguf.undo").unlink()
    assert not safex.verify(base, model).holds


def test_a_side_car_that_is_no_json(pair: tuple[Path, Path]) -> None:
    base, edited = pair
    edited.with_name("edited.gguf.safex.json").write_text("notes")
    cli("verify", base, edited).fails(2, "edited.gguf.safex.json: is no JSON")
    edited.with_name("edited.gguf.safex.json").write_text(json.dumps({"a": 1}))
    cli("verify", base, edited).fails(2, "is no provenance of safex-native")


# --- diff of models that are not edits


def write(path: Path, change: Callable[[dict[str, np.ndarray]], Any], **settings: Any) -> Path:
    tensors = tiny_models.tiny_tensors("qwen3moe")
    change(tensors)
    return tiny_models.write_gguf(path, "qwen3moe", tensors, **settings)


def test_other_tensors(tmp_path: Path) -> None:
    def change(tensors: dict[str, np.ndarray]) -> None:
        tensors["blk.0.attn_norm.weight"] += 1
        del tensors["blk.1.attn_norm.weight"]
        tensors["blk.2.more.weight"] = np.ones(3, np.float32)
        tensors["blk.3.attn_k.weight"] = tensors["blk.3.attn_k.weight"].reshape(32, -1)

    a, b = write(tmp_path / "a.gguf", lambda tensors: None), write(tmp_path / "b.gguf", change)
    found = safex.diff(a, b)
    assert found.slices == [] and not found.equal
    assert found.tensors["blk.0.attn_norm.weight"] == "has other values"
    assert found.tensors["blk.1.attn_norm.weight"] == "is only in the first"
    assert found.tensors["blk.2.more.weight"] == "is only in the second"
    assert found.tensors["blk.3.attn_k.weight"].startswith("has shape")
    assert len(found.tensors) == 4


def test_other_types_and_other_order(tmp_path: Path) -> None:
    def reversed_order(tensors: dict[str, np.ndarray]) -> None:
        items = list(tensors.items())[::-1]
        tensors.clear()
        tensors.update(items)

    a = write(tmp_path / "a.gguf", lambda tensors: None)
    b = write(tmp_path / "b.gguf", lambda tensors: None, quant="q8_0")
    found = safex.diff(a, b)
    assert found.tensors["blk.0.attn_q.weight"] == "has type f32, in the second q8_0"
    assert found.metadata["general.file_type"] == "differs"
    c = write(tmp_path / "c.gguf", reversed_order)
    found = safex.diff(a, c)
    assert found.tensors == {} and found.slices == []
    assert found.layout == ["the tensors lie in another order or at other distances"]


def test_the_command_prints_a_table(pair: tuple[Path, Path]) -> None:
    base, edited = pair
    done = cli("verify", base, edited)
    assert done.code == 0
    assert "Slices that differ: 4" in done.out
    assert "Verified: the edited file is what it says, and nothing else changed." in done.out
    done = cli("diff", base, edited)
    assert (
        done.code == 0
        and "metadata, is only in the second: safex.schema_version, safex.operation" in done.out
    )
