"""In-place edits: always taken back or finished, whatever stops them, and refused where they would surprise."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import bench_model
import pytest
import tiny_models
from cli_runner import PROGRAM, Ran, cli, environment
from test_mask_file import metadata_of, tensors_of

import safex
from safex import model_file
from safex.shipping import editing

TinyPath = Callable[..., Path]
MASK = "0:1,2:3"


@pytest.fixture
def model(tmp_path: Path, tiny_path: TinyPath) -> Path:
    """A model of the test's own, in a folder of its own."""
    folder = tmp_path / "models"
    folder.mkdir()
    return Path(shutil.copy(tiny_path("gpt-oss", "q8_0"), folder / "model.gguf"))


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_an_edit_and_its_way_back(model: Path, tmp_path: Path) -> None:
    base, out = model.read_bytes(), tmp_path / "out.gguf"
    safex.write_mask(model, out, MASK)
    report = safex.write_mask(model, None, MASK)
    assert names(model.parent) == ["model.gguf", "model.gguf.safex.json", "model.gguf.undo"]
    assert report.undo == model.with_name("model.gguf.undo")
    assert tensors_of(model) == tensors_of(out)
    assert len(model.read_bytes()) == len(base)
    undone = safex.restore(model)
    assert undone.request == {
        "operation": "mask",
        "experts": ["0:1", "2:3"],
        "parameters": {"mode": "zero", "gain": 0.0},
    }
    assert model.read_bytes() == base
    assert names(model.parent) == ["model.gguf"]


def test_only_the_slices_bytes_are_written(model: Path) -> None:
    base = model.read_bytes()
    report = safex.write_mask(model, None, MASK)
    edited = model.read_bytes()
    changed = sum(a != b for a, b in zip(base, edited, strict=True))
    assert 0.9 * report.n_bytes < changed <= report.n_bytes


def test_doing_it_again_gives_the_same(model: Path) -> None:
    base = model.read_bytes()
    safex.write_mask(model, None, MASK, gain=0.3)
    once = model.read_bytes()
    safex.write_mask(model, None, MASK, gain=0.3)
    assert model.read_bytes() == once != base
    safex.restore(model)
    assert model.read_bytes() == base


def test_another_edit_needs_a_decision_first(model: Path) -> None:
    safex.write_mask(model, None, MASK)
    once = model.read_bytes()
    for experts, settings in (("1:1", {}), (MASK, {"gain": 0.5})):
        with pytest.raises(
            safex.InputError, match=r"another in-place edit can still be taken back: .* restore"
        ):
            safex.write_mask(model, None, experts, **settings)
    assert model.read_bytes() == once
    model.with_name("model.gguf.undo").unlink()  # kept for good
    safex.write_mask(model, None, "1:1")
    said = json.loads(model.with_name("model.gguf.safex.json").read_text())["metadata"]
    assert said["safex.experts"] == ["1:1"]
    (earlier,) = said["safex.history"]
    assert json.loads(earlier)["experts"] == ["0:1", "2:3"]
    safex.restore(model)
    assert model.read_bytes() == once
    said = json.loads(model.with_name("model.gguf.safex.json").read_text())["metadata"]
    assert said["safex.experts"] == ["0:1", "2:3"]


def test_a_header_with_room_says_it_itself(model: Path, tmp_path: Path) -> None:
    roomy = tmp_path / "roomy.gguf"
    safex.write_mask(model, roomy, [])  # reserves up to a block
    base = roomy.read_bytes()
    reserved = metadata_of(roomy)["safex.reserved"]
    report = safex.write_mask(roomy, None, "0:1")
    if report.sidecar is None:
        assert metadata_of(roomy)["safex.experts"] == ["0:1"]
        assert len(metadata_of(roomy)["safex.reserved"]) < len(reserved)
        assert "1 expert masked" in metadata_of(roomy)["general.name"]
    assert len(roomy.read_bytes()) == len(base)
    safex.restore(roomy)
    assert roomy.read_bytes() == base


def test_split_models(tmp_path: Path) -> None:
    tensors = tiny_models.tiny_tensors("qwen3moe")
    tiny_models.write_gguf(tmp_path / "big.gguf", "qwen3moe", tensors, split=10)
    (first,) = tmp_path.glob("big-00001-of-*.gguf")
    base = {path.name: path.read_bytes() for path in model_file.shards(first)}
    safex.write_mask(first, None, "0:1,3:2")
    edited = {path.name: path.read_bytes() for path in model_file.shards(first)}
    assert 1 <= sum(edited[name] != base[name] for name in base) <= 2
    safex.restore(first)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == base


# --- killed


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose edit takes a while: 64 experts of 0.4 MB each."""
    shape = bench_model.Shape(
        layers=4, experts=16, top_k=2, width=768, expert_width=512, heads=4, kv_heads=2, vocabulary=512
    )
    return bench_model.write(tmp_path_factory.mktemp("larger") / "larger.gguf", shape)


ALL = ",".join(f"{layer}:{expert}" for layer in range(4) for expert in range(16))
KILL = [*PROGRAM, "mask", "model.gguf", ALL, "--in-place", "--quiet"]
# Announces each system call that could be the last, so that kills fall between all of them.
SLOWED = """
import os, sys, time
from safex import cli
def slow(function):
    def call(*arguments):
        result = function(*arguments)
        time.sleep(0.002)
        return result
    return call
os.pwrite, os.fsync = slow(os.pwrite), slow(os.fsync)
sys.exit(cli.main(sys.argv[1:]))
"""


def test_killed_at_fifty_random_moments(larger: Path, tmp_path: Path) -> None:
    """Half of them go on with `restore`, half with the same command again."""
    model = Path(shutil.copy(larger, tmp_path / "model.gguf"))
    base = model.read_bytes()
    slowed = [sys.executable, "-c", SLOWED, *KILL[len(PROGRAM) :]]
    started = time.monotonic()
    assert subprocess.run(slowed, cwd=tmp_path, env=environment(), check=False).returncode == 0
    whole_run = time.monotonic() - started
    finished = model.read_bytes()
    safex.restore(model)
    assert finished != base == model.read_bytes()
    draw, states = random.Random(6), []
    for number in range(50):
        process = subprocess.Popen(slowed, cwd=tmp_path, env=environment())
        time.sleep(draw.uniform(0.15, 1.0) * whole_run)
        process.send_signal(signal.SIGKILL)
        process.wait()
        states.append((model.read_bytes() == base, (tmp_path / "model.gguf.undo").exists()))
        if number % 2:
            assert cli(*KILL[len(PROGRAM) :], cwd=tmp_path).code == 0
            assert model.read_bytes() == finished
        if (tmp_path / "model.gguf.undo").exists():
            assert cli("restore", "model.gguf", cwd=tmp_path).code == 0
        assert model.read_bytes() == base
        assert set(names(tmp_path)) <= {"model.gguf", "model.gguf.undo.tmp", "model.gguf.safex.json.tmp"}
    assert sum(not same and undo for same, undo in states) >= 5, "no kill fell into the writing"
    assert sum(same for same, _ in states) >= 3, "no kill fell before it"


def test_a_restore_that_was_killed_is_done_again(model: Path) -> None:
    base = model.read_bytes()
    safex.write_mask(model, None, MASK)
    undo = model.with_name("model.gguf.undo").read_bytes()
    safex.restore(model)
    model.with_name("model.gguf.undo").write_bytes(undo)  # as if killed before it was removed
    safex.restore(model)
    assert model.read_bytes() == base


def test_leftovers_of_killed_runs_do_no_harm(model: Path, tmp_path: Path) -> None:
    base, junk = model.read_bytes(), b"junk" * 1_000_000
    safex.write_mask(model, tmp_path / "clean.gguf", MASK)
    for name in ("model.gguf.undo.tmp", "model.gguf.safex.json.tmp"):
        model.with_name(name).write_bytes(junk)
    (tmp_path / "out.gguf.tmp").write_bytes(junk)
    safex.write_mask(model, tmp_path / "out.gguf", MASK)
    assert (tmp_path / "out.gguf").read_bytes() == (tmp_path / "clean.gguf").read_bytes()
    safex.write_mask(model, None, MASK)
    safex.restore(model)
    assert model.read_bytes() == base and names(model.parent) == ["model.gguf"]


# --- what goes wrong


def test_nothing_to_restore(model: Path) -> None:
    cli("restore", model).fails(2, "no undo file model.gguf.undo beside it: nothing to restore")
    cli("restore", "nowhere.gguf").fails(2, "nowhere.gguf: no such model file")


def test_the_undo_file_of_another_model(model: Path, tiny_path: TinyPath) -> None:
    safex.write_mask(model, None, MASK)
    other = Path(shutil.copy(tiny_path("gpt-oss"), model.with_name("other.gguf")))
    shutil.copy(model.with_name("model.gguf.undo"), other.with_name("other.gguf.undo"))
    before = other.read_bytes()
    cli("restore", other).fails(2, "belongs to another model", "nothing was written")
    assert other.read_bytes() == before


def test_a_model_that_was_changed_since(model: Path) -> None:
    safex.write_mask(model, None, MASK)
    data = bytearray(model.read_bytes())
    data[100] ^= 1
    model.write_bytes(data)
    cli("restore", model).fails(2, "was changed by something else since")
    assert model.read_bytes() == data


@pytest.mark.parametrize("what", ["cut", "flipped", "notes", "empty"])
def test_a_damaged_undo_file(what: str, model: Path) -> None:
    safex.write_mask(model, None, MASK)
    undo, edited = model.with_name("model.gguf.undo"), model.read_bytes()
    data = bytearray(undo.read_bytes())
    data[len(data) // 2] ^= 1
    undo.write_bytes(
        {"cut": undo.read_bytes()[:-9], "flipped": bytes(data), "notes": b"my notes\n", "empty": b""}[what]
    )
    cli("restore", model).fails(2, "model.gguf.undo: is ")
    cli("mask", model, MASK, "--in-place").fails(2, "model.gguf.undo: is ")
    assert model.read_bytes() == edited


def test_links_and_read_only_files(model: Path, tmp_path: Path) -> None:
    base = model.read_bytes()
    link = tmp_path / "link.gguf"
    link.symlink_to(model)
    cli("mask", link, MASK, "--in-place").fails(2, "link.gguf: is a symbolic link: name", "itself")
    hard = tmp_path / "hard.gguf"
    hard.hardlink_to(model)
    cli("mask", model, MASK, "--in-place").fails(2, "has 2 names (hard links)", "write a new file with -o")
    hard.unlink()
    model.chmod(0o444)
    cli("mask", model, MASK, "--in-place").fails(2, "is read-only: chmod u+w")
    assert model.read_bytes() == base and names(model.parent) == ["model.gguf"]


def test_the_bundled_models_stay_as_they_are() -> None:
    cli("mask", "demo", "0:1", "--in-place").fails(2, "ships with safex-native: write a new file with -o")


def limited(words: list[object], folder: Path, n_bytes: int) -> Ran:
    """What a full disk is without root: writes beyond a size fail."""

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, n_bytes))

    done = subprocess.run(
        [*PROGRAM, *map(str, words)],
        cwd=folder,
        env=environment(),
        capture_output=True,
        text=True,
        preexec_fn=limit,
        check=False,
    )
    return Ran(done.returncode, done.stdout, done.stderr)


def test_a_disk_without_room_for_the_undo_file(model: Path) -> None:
    base = model.read_bytes()
    limited(["mask", model, MASK, "--in-place"], model.parent, 1000).fails(
        3, "model.gguf.undo: can't be written: File too large"
    )
    assert model.read_bytes() == base and names(model.parent) == ["model.gguf"]


def test_a_disk_that_fails_while_the_model_is_written(model: Path) -> None:
    base = model.read_bytes()
    limited(["mask", model, MASK, "--in-place"], model.parent, 150_000).fails(
        3, "can't be written: File too large", "run it again to finish, or `safex-native restore"
    )
    assert cli("restore", model).code == 0
    assert model.read_bytes() == base and names(model.parent) == ["model.gguf"]


def test_a_file_without_room_for_the_new_one(model: Path, tmp_path: Path) -> None:
    base = model.read_bytes()
    limited(["mask", model, MASK, "-o", tmp_path / "out.gguf"], tmp_path, 100_000).fails(
        3, "out.gguf: can't be written: File too large"
    )
    assert names(tmp_path) == ["models"] and model.read_bytes() == base


def test_two_edits_at_once(model: Path) -> None:
    fd = os.open(model, os.O_RDWR)
    fcntl.flock(fd, fcntl.LOCK_EX)
    try:
        cli("mask", model, MASK, "--in-place").fails(2, "another run is editing this file")
    finally:
        os.close(fd)


def test_a_file_that_changes_under_us(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy_all = editing._copy_all

    def meddle(*arguments: object) -> None:
        copy_all(*arguments)  # type: ignore[arg-type]
        os.utime(model, ns=(1, 1))

    monkeypatch.setattr(editing, "_copy_all", meddle)
    with pytest.raises(safex.InputError, match="was changed while it was read"):
        safex.write_mask(model, tmp_path / "out.gguf", MASK)
    assert names(tmp_path) == ["models"]


def test_a_file_that_is_cut_short_under_us(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy_all = editing._copy_all

    def cut(*arguments: object) -> None:
        os.truncate(model, 20_000)
        copy_all(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(editing, "_copy_all", cut)
    with pytest.raises((safex.InputError, safex.DiskError), match="become shorter while it was"):
        safex.write_mask(model, tmp_path / "out.gguf", MASK)
    assert names(tmp_path) == ["models"]
