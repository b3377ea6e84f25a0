"""Files made to break the reader: one clear line each, nothing written, nothing read that is not there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import gguf
import pytest
from cli_runner import cli
from hostile.gguf_files import hostile_files

import safex
from safex.cli import main

TinyPath = Callable[..., Path]
LIMIT = 2 << 30  # of the address space: the interpreter and its libraries, no more


@pytest.fixture(scope="module")
def files(tiny_path: TinyPath) -> dict[str, tuple[bytes, str]]:
    return {name: (data, part) for name, data, part in hostile_files(tiny_path("llama"))}


def test_every_hostile_file_is_refused_in_one_line(
    files: dict[str, tuple[bytes, str]],
    tmp_path: Path,
    tiny_path: TinyPath,
    capsys: pytest.CaptureFixture[str],
) -> None:
    good, bad = tiny_path("llama"), tmp_path / "bad.gguf"
    assert len(files) > 30
    for name, (data, part) in files.items():
        bad.write_bytes(data)
        for words in (
            ["mask", str(bad), "1:0", "-o", str(tmp_path / "out.gguf")],
            ["mask", str(bad), "1:0", "--in-place"],
            ["verify", str(good), str(bad)],
            ["diff", str(bad), str(good)],
        ):
            code = main(words)
            out, err = capsys.readouterr()
            assert code == 2, (name, words, err)
            assert out == "" and err.count("\n") == 1, (name, err)
            assert part in err and "bad.gguf" in err, (name, err)
        assert [path.name for path in tmp_path.iterdir()] == ["bad.gguf"], name
        assert bad.read_bytes() == data


CHILD = """
import resource, sys
from safex.cli import main
resource.setrlimit(resource.RLIMIT_AS, ({limit}, {limit}))
code = main(["diff", sys.argv[1], sys.argv[1]])
status = open("/proc/self/status").read()  # rusage would count the parent's memory at the fork
print(status.split("VmHWM:")[1].split()[0])
sys.exit(code)
"""


def test_claims_of_size_allocate_nothing(files: dict[str, tuple[bytes, str]], tmp_path: Path) -> None:
    claims = {name: data for name, (data, _) in files.items() if "memory" in name or name[0].isdigit()}
    assert len(claims) >= 8
    for name, data in claims.items():
        path = tmp_path / "bad.gguf"
        path.write_bytes(data)
        done = subprocess.run(
            [sys.executable, "-c", CHILD.format(limit=LIMIT), str(path)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2, (name, done.stderr)
        assert "bad.gguf: a damaged GGUF file" in done.stderr, name
        assert int(done.stdout) < 1 << 20, name  # KiB, of this child alone


def test_long_names_make_short_lines(tmp_path: Path) -> None:
    path = tmp_path / "long.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("k" * 60000, "a")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    data = path.read_bytes()
    path.write_bytes(data.replace(b"k" * 60000 + b"\x08", b"k" * 60000 + b"\x63"))
    done = cli("diff", path, path)
    done.fails(2, "is of type 99, which there is not")
    assert len(done.err) < 400


def test_a_folder_and_a_missing_file(tmp_path: Path) -> None:
    cli("verify", tmp_path, tmp_path).fails(2, "a directory, expected a GGUF file")
    with pytest.raises(safex.InputError, match="no such model file"):
        safex.diff(tmp_path / "nowhere.gguf", tmp_path / "nowhere.gguf")
