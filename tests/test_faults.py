"""What users and machines do wrong: each fault gives one clear line, the right exit code, and nothing half-written."""

from __future__ import annotations

import os
import resource
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from cli_runner import (
    EXACT,
    PROGRAM,
    STEADY,
    Ran,
    assert_same_counts,
    cli,
    environment,
    grown,
    many_prompts,
    signalled,
    start,
    wait_until,
)

import safex

TinyPath = Callable[..., Path]
DEMO = Path(safex.__file__).parent / "data" / "demo.gguf"
PROMPTS = "How do I bake bread?\nHow do I plant a tree?\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder that holds a good prompt file."""
    (tmp_path / "a.txt").write_text(PROMPTS)
    return tmp_path


def profile(folder: Path, *words: object, model: object = "demo", prompts: str = "benign=a.txt") -> Ran:
    return cli("profile", model, "--prompts", prompts, *STEADY, *words, cwd=folder)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


# --- models


def test_a_dense_model(folder: Path, tiny_path: TinyPath) -> None:
    model = folder / "dense.gguf"
    model.symlink_to(tiny_path("dense-llama"))
    masked = cli("eval", model, "--mask", "0:1", "--prompts", "regular=a.txt", cwd=folder)
    for done in (profile(folder, model=model), cli("trace", model, "a"), masked):
        done.fails(2, "dense.gguf: a dense model", "no routed experts")
    assert names(folder) == ["a.txt", "dense.gguf"]


@pytest.mark.parametrize("share", [0.02, 0.5, 0.99])
def test_a_truncated_model(folder: Path, share: float) -> None:
    data = DEMO.read_bytes()
    (folder / "cut.gguf").write_bytes(data[: int(len(data) * share)])
    profile(folder, model="cut.gguf").fails(2, "cut.gguf: not a model that can", "not within the file")
    assert names(folder) == ["a.txt", "cut.gguf"]


def test_a_file_of_random_bytes(folder: Path) -> None:
    data = np.random.default_rng(0).bytes(100_000)
    (folder / "noise.gguf").write_bytes(data)
    profile(folder, model="noise.gguf").fails(2, "noise.gguf: not a GGUF file", "expected b'GGUF'")
    (folder / "noise.gguf").write_bytes(b"GGUF" + data)
    profile(folder, model="noise.gguf").fails(2, "noise.gguf: not a model that can", "GGUF file is version")
    assert names(folder) == ["a.txt", "noise.gguf"]


def test_an_empty_model_file(folder: Path) -> None:
    (folder / "empty.gguf").touch()
    profile(folder, model="empty.gguf").fails(2, "empty.gguf: not a GGUF file")


def test_a_directory_as_model(folder: Path) -> None:
    profile(folder, model=folder).fails(2, "a directory, expected a GGUF file", "name the file inside it")
    cli("info", folder).fails(2, "a directory, expected a GGUF file")


def test_a_missing_model(folder: Path) -> None:
    profile(folder, model="nowhere.gguf").fails(2, "nowhere.gguf: no such model file")


def test_an_unknown_model_word(folder: Path) -> None:
    profile(folder, model="dmeo").fails(2, "dmeo: no such model file", "demo, demo-planted")


def test_a_profile_as_model(folder: Path) -> None:
    assert profile(folder, "--quiet").code == 0
    profile(folder, model="demo.profile.gguf").fails(2, "demo.profile.gguf: a profile, expected a model")


# --- options


def test_a_bad_buffer_in_override_tensor(folder: Path) -> None:
    profile(folder, "--override-tensor", "ffn_.*_exps=GPU99").fails(2, "no buffer type 'GPU99'", "CPU")
    profile(folder, "--override-tensor", "ffn").fails(2, "expected REGEX=BUFFER", "found 'ffn'")


def test_a_bad_regex_in_override_tensor(folder: Path) -> None:
    profile(folder, "--override-tensor", "ffn_(.*=CPU").fails(2, "'ffn_(.*' is no regular expression")
    assert names(folder) == ["a.txt"]


def test_a_good_override_is_taken(folder: Path) -> None:
    assert profile(folder, "--override-tensor", "ffn_.*_exps=CPU", "--quiet").code == 0


def test_an_invalid_kv_type(folder: Path) -> None:
    profile(folder, "--kv-type", "q9_9").fails(2, "--kv-type", "'q9_9'", "q8_0")


# --- prompts


@pytest.mark.parametrize(
    "name, content, parts",
    [
        ("empty.txt", "", ["empty.txt: is empty", "at least one prompt"]),
        ("header.csv", "prompt,id\n", ["header.csv: holds no prompts"]),
        ("columns.csv", "name,height\nfox,3\n", ["no column known to hold prompts", "'name'", "--column"]),
        ("gap.csv", "prompt,id\nfox,1\n,2\n", ["gap.csv, line 3: empty prompt"]),
        ("twice.csv", "prompt,id\nfox,1\ndog,1\n", ["id '1' occurs twice"]),
        ("latin.txt", b"caf\xe9\n", ["latin.txt, line 1", "not UTF-8"]),
        ("broken.jsonl", '{"prompt": "a"\n', ["broken.jsonl, line 1", "broken JSON"]),
        ("kind.docx", "a", ["unknown kind of prompt file"]),
    ],
)
def test_bad_prompt_files(tmp_path: Path, name: str, content: str | bytes, parts: list[str]) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    profile(tmp_path, prompts=f"benign={name}").fails(2, *parts)
    assert names(tmp_path) == [name]


def test_a_prompt_file_that_is_not_there(tmp_path: Path) -> None:
    profile(tmp_path, prompts="benign=no.txt").fails(2, "no.txt: no such file")
    profile(tmp_path, prompts="benign=").fails(2, "name no file", "SET=FILE")
    (tmp_path / "bare.txt").write_text("a\n")
    profile(tmp_path, prompts="bare.txt").fails(2, "no set is named", "SET=FILE")


def test_a_prompt_longer_than_the_context(tmp_path: Path) -> None:
    (tmp_path / "long.txt").write_text("short\n" + "bread " * 600 + "\n")
    done = profile(tmp_path, prompts="benign=long.txt")
    done.fails(2, "prompt 'benign-0001' of set 'benign' is too long", "the context holds 512", "shorten")
    assert "raise the context" not in done.err
    (tmp_path / "long.txt").write_text("short\n" + "bread " * 120 + "\n")
    assert profile(tmp_path, "--quiet", "-o", "x", prompts="benign=long.txt").code == 0
    done = profile(tmp_path, "--ctx", "256", prompts="benign=long.txt")
    done.fails(2, "'benign-0001'", "too long", "the context holds 256", "--ctx")
    assert names(tmp_path) == ["long.txt", "x"]


# --- outputs


def test_an_output_that_exists(folder: Path) -> None:
    out = folder / "demo.profile.gguf"
    out.write_text("precious")
    profile(folder).fails(2, "demo.profile.gguf: exists already", "--force")
    assert out.read_text() == "precious" and names(folder) == ["a.txt", out.name]
    assert profile(folder, "--force", "--quiet").code == 0
    assert len(safex.Profile.load(out).ids) == 2


def test_an_output_that_cannot_be_made(folder: Path) -> None:
    """Said before the model is loaded: no line tells of loading."""
    (folder / "dir").mkdir()
    for output, parts in (
        ("no/where/x.gguf", ["no/where/x.gguf", "no such folder", "-o"]),
        ("a.txt/x.gguf", ["a.txt/x.gguf", "no such folder", "-o"]),
        ("dir", ["dir: is not a regular file", "-o"]),
        ("/proc/x.gguf", ["/proc/x.gguf", "-o"]),
    ):
        done = profile(folder, "-o", output)
        done.fails(done.code, *parts)
        assert done.code in (2, 3) and "loading" not in done.err
    assert names(folder) == ["a.txt", "dir"] and names(folder / "dir") == []


def test_a_read_only_folder(folder: Path, read_only: Path) -> None:
    done = profile(folder, "-o", read_only / "x.profile.gguf")
    done.fails(3, "x.profile.gguf", "can't be written: Read-only file system")
    assert "loading" not in done.err and names(read_only) == []


def test_the_model_itself_as_output(folder: Path) -> None:
    shutil.copy(DEMO, folder / "m.gguf")
    profile(folder, "-o", "m.gguf", "--force", model="m.gguf").fails(2, "m.gguf: is the model itself")
    assert (folder / "m.gguf").read_bytes() == DEMO.read_bytes()


@pytest.fixture
def read_only(tmp_path: Path) -> Iterator[Path]:
    with Tmpfs(tmp_path / "readonly", "ro") as target:
        yield target


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    with Tmpfs(tmp_path / "small", "size=256k") as target:
        yield target


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, tiny_path: TinyPath) -> Path:
    """The profile of an uninterrupted run over many_prompts."""
    folder = tmp_path_factory.mktemp("whole")
    many_prompts(folder / "many.txt")
    words = ["--prompts", "benign=many.txt", *STEADY, *EXACT, "-o", "whole.profile.gguf", "--quiet"]
    assert cli("profile", tiny_path("qwen3moe"), *words, cwd=folder).code == 0
    return folder / "whole.profile.gguf"


class Tmpfs:
    """A tmpfs on a folder; needs root, as in the containers that run these tests."""

    def __init__(self, target: Path, options: str) -> None:
        self.target, self.options = target, options

    def __enter__(self) -> Path:
        self.target.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", self.options, "tmpfs", str(self.target)]
        if os.geteuid() or subprocess.run(words, capture_output=True).returncode:
            pytest.skip("mounting a tmpfs needs root; the file size limit is tested without")
        return self.target

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "-l", str(self.target)], check=True)


def test_a_full_disk_then_more_room(folder: Path, small_disk: Path, tiny_path: TinyPath, whole: Path) -> None:
    many_prompts(folder / "many.txt")
    words = ["--prompts", "benign=many.txt", *STEADY, *EXACT]
    run = ["profile", tiny_path("qwen3moe"), *words, "-o", small_disk / "x.profile.gguf"]
    done = cli(*run, cwd=folder)
    done.fails(3, "can't be written: No space left on device", "of 400 prompts saved", "--resume")
    assert names(small_disk) == ["x.profile.gguf.journal"]
    cli(*run, "--resume", cwd=folder).fails(3, "No space left on device", "of 400 prompts saved")
    subprocess.run(["mount", "-o", "remount,size=64m", str(small_disk)], check=True)
    resumed = cli(*run, "--resume", "--json", cwd=folder)
    assert resumed.code == 0 and resumed.json["resumed_prompts"] > 0
    assert names(small_disk) == ["x.profile.gguf"]
    assert_same_counts(small_disk / "x.profile.gguf", whole)


def test_a_full_disk_from_the_start(folder: Path, small_disk: Path) -> None:
    filler = small_disk / "filler"
    with pytest.raises(OSError), filler.open("wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass
    done = profile(folder, "-o", small_disk / "x.profile.gguf")
    done.fails(3, "No space left on device")
    assert names(small_disk) == ["filler"]


def test_a_limit_on_file_sizes(folder: Path) -> None:
    """What a full disk is without root: writes beyond a size fail."""
    many_prompts(folder / "many.txt", 200)

    def limit() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    words = ["profile", "demo", "--prompts", "benign=many.txt", *STEADY]
    done = subprocess.run(
        [*PROGRAM, *words], cwd=folder, env=environment(), capture_output=True, text=True, preexec_fn=limit
    )
    ran = Ran(done.returncode, done.stdout, done.stderr)
    ran.fails(3, "can't be written: File too large", "of 200 prompts saved", "--resume")
    assert names(folder) == ["a.txt", "demo.profile.gguf.journal", "many.txt"]
    assert cli(*words, "--resume", "--quiet", cwd=folder).code == 0


# --- stopped runs


def test_killed_runs_resume_with_nothing_lost_or_counted_twice(
    tmp_path: Path, tiny_path: TinyPath, whole: Path
) -> None:
    many_prompts(tmp_path / "many.txt")
    words = ["profile", tiny_path("qwen3moe"), "--prompts", "benign=many.txt", *STEADY, *EXACT]
    journal = tmp_path / "a.profile.gguf.journal"
    # Twice, the second time a run that was itself resumed.
    for size, kill in ((100_000, signal.SIGTERM), (400_000, signal.SIGKILL)):
        process = start(*words, "-o", "a.profile.gguf", "--resume", cwd=tmp_path)
        wait_until(process, grown(journal, size))
        done, _ = signalled(process, kill)
        assert done.code == -kill and names(tmp_path) == [journal.name, "many.txt"]
    with journal.open("ab") as file:
        file.write(b"\x40\x00\x00\x00torn")
    resumed = cli(*words, "-o", "a.profile.gguf", "--resume", "--json", cwd=tmp_path)
    assert resumed.code == 0 and resumed.json["resumed_prompts"] > 0
    assert resumed.json["dropped_bytes"] >= 8
    assert f"{resumed.json['dropped_bytes']} bytes of a record cut short are dropped" in resumed.err
    assert_same_counts(tmp_path / "a.profile.gguf", whole)
    assert names(tmp_path) == ["a.profile.gguf", "many.txt"]


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    """A folder with a run that was killed half-way."""
    many_prompts(tmp_path / "a.txt")
    process = start("profile", "demo", "--prompts", "benign=a.txt", *STEADY, cwd=tmp_path)
    wait_until(process, grown(tmp_path / "demo.profile.gguf.journal", 200_000))
    signalled(process, signal.SIGKILL)
    return tmp_path


def test_resuming_with_other_settings_is_refused(stopped: Path) -> None:
    before = (stopped / "demo.profile.gguf.journal").read_bytes()
    many_prompts(stopped / "other.txt", 390)
    lines = (stopped / "a.txt").read_text().splitlines()
    (stopped / "edited.txt").write_text("\n".join(["How do I fly?", *lines[1:]]) + "\n")
    for prompts, words, part in (
        ("benign=other.txt", [], "prompts_hash"),
        ("benign=edited.txt", [], "prompts_hash"),
        ("benign=a.txt", ["--kv-type", "f32"], "session.kv_type: 'f16' and 'f32'"),
        ("benign=a.txt", ["--response"], "session.max_new: 0 and 64"),
    ):
        done = profile(stopped, "--resume", *words, prompts=prompts)
        done.fails(2, "can't resume: the unfinished run and this one differ in", part)
    done = cli("profile", "demo-planted", "--prompts", "benign=a.txt", "--resume", *STEADY, cwd=stopped)
    assert done.code == 0, "another model has another default output"
    done = profile(stopped, "--resume", "-o", "demo.profile.gguf", model="demo-planted")
    done.fails(2, "differ in model.fingerprint")
    assert (stopped / "demo.profile.gguf.journal").read_bytes() == before


def test_an_unfinished_run_is_not_overwritten(stopped: Path) -> None:
    profile(stopped).fails(2, "an unfinished run lies beside it", "--resume")
    profile(stopped, "--force").fails(2, "an unfinished run lies beside it", "--resume")
    cli("info", "demo.profile.gguf", cwd=stopped).fails(2, "its run is unfinished, go on with --resume")


def test_a_damaged_journal(stopped: Path) -> None:
    journal = stopped / "demo.profile.gguf.journal"
    data = bytearray(journal.read_bytes())
    middle = len(data) - 20_000
    data[middle] ^= 0xFF
    journal.write_bytes(data)
    resumed = profile(stopped, "--resume", "--json")
    assert resumed.code == 0 and resumed.json["dropped_bytes"] > 0
    journal.write_text("these are my notes\n")
    profile(stopped, "--resume").fails(2, "is not a journal of `profile`")
    assert journal.read_text() == "these are my notes\n"


def test_two_runs_into_one_file(tmp_path: Path) -> None:
    many_prompts(tmp_path / "a.txt")
    process = start("profile", "demo", "--prompts", "benign=a.txt", *STEADY, cwd=tmp_path)
    wait_until(process, grown(tmp_path / "demo.profile.gguf.journal", 1))
    profile(tmp_path, "--resume").fails(2, "another run is writing this file")
    signalled(process, signal.SIGKILL)


# --- damaged profiles


def test_a_damaged_profile_file(folder: Path) -> None:
    assert profile(folder, "--quiet").code == 0
    data = (folder / "demo.profile.gguf").read_bytes()
    (folder / "cut.profile.gguf").write_bytes(data[: len(data) // 2])
    cli("info", "cut.profile.gguf", cwd=folder).fails(2, "cut.profile.gguf: truncated")
    shutil.copy(DEMO, folder / "model.profile.gguf")
    done = cli("info", "model.profile.gguf", cwd=folder)
    done.fails(2, "is a GGUF of architecture 'qwen3moe', expected 'safex-profile'")


def test_a_long_message_stays_one_line(folder: Path) -> None:
    cli("info", "no\nsuch\nfile").fails(2, "no such file: no such model file")
