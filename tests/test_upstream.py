"""upstream.py: one clear line for each failure, no half-made tree, and the id that this build reports."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from safex import _build

SCRIPT = Path(__file__).parents[1] / "native" / "upstream" / "upstream.py"
TOUCHED = "src/llama-graph.cpp"


def load(path: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("upstream", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


upstream = load(SCRIPT)


def run(*arguments: str, script: Path = SCRIPT, **variables: object) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "SAFEX_LLAMA_CPP_DIR": "",
        **{name: str(value) for name, value in variables.items()},
    }
    command = [sys.executable, str(script), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one line of our own that a failure ends with."""
    assert done.returncode != 0
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("safex-native: ")]
    assert len(lines) == 1
    assert done.stderr.splitlines()[-1] == lines[0]
    return lines[0]


def trees(cache: Path) -> list[str]:
    return sorted(path.name for path in cache.iterdir() if "source" in path.name and path.suffix != ".lock")


def contents(tree: Path) -> dict[str, bytes]:
    return {str(path.relative_to(tree)): path.read_bytes() for path in tree.rglob("*") if path.is_file()}


def own_copy(folder: Path) -> Path:
    """upstream.py and what it reads, to be changed by a test."""
    folder.mkdir()
    for name in (*upstream.OURS, "upstream.py"):
        shutil.copy2(SCRIPT.parent / name, folder / name)
    return folder / "upstream.py"


@pytest.fixture(scope="session")
def stock_tree() -> Path:
    """The cached unpatched tree."""
    done = run("source", "--stock", SAFEX_LLAMA_CPP_DIR=os.environ.get("SAFEX_LLAMA_CPP_DIR", ""))
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip())


@pytest.fixture
def local_tree(stock_tree: Path, tmp_path: Path) -> Path:
    """A tree of the user's: only what the patch touches and a little more, so that copies are quick."""
    local = tmp_path / "llama.cpp"
    touched = [name for name in upstream.read_pin().files if not name.startswith("src/")]
    for name in ("src", "include", "LICENSE", *touched):
        source, target = stock_tree / name, local / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.is_dir():
            shutil.copytree(source, target)
        else:
            shutil.copy2(source, target)
    return local


@pytest.fixture
def cache(tmp_path: Path) -> Iterator[Path]:
    """A cache of the test's own. No failure may leave part of a tree in it."""
    folder = tmp_path / "cache"
    folder.mkdir()
    yield folder
    assert not [name for name in trees(folder) if ".part-" in name]


def test_the_id_is_what_the_build_was_made_from() -> None:
    said = run("id").stdout.strip()
    assert said == upstream.upstream_id() == _build.UPSTREAM_ID
    assert said.startswith(upstream.read_pin().commit + "+safex.")


def test_the_compiled_prefix_says_the_same_id() -> None:
    marks = [path.read_text().strip() for path in upstream.cache_dir().glob("patched-*/complete")]
    assert _build.UPSTREAM_ID in marks


@pytest.mark.parametrize("name", upstream.OURS)
def test_every_file_we_add_changes_the_id(name: str, tmp_path: Path) -> None:
    script = own_copy(tmp_path / "upstream")
    before = run("id", script=script).stdout
    with (script.parent / name).open("a") as file:
        file.write("# one more line\n")
    assert run("id", script=script).stdout != before == run("id").stdout


CORE2 = "fpu sse2 ssse3 sse4_1 sse4_2"
HASWELL = f"{CORE2} avx f16c fma avx2 bmi1 bmi2"
SAPPHIRE = f"{HASWELL} avx_vnni avx512f avx512bw avx512vbmi avx512_vnni avx512_bf16 amx_tile amx_int8"


@pytest.mark.parametrize(
    ("flags", "variants"),
    [
        (CORE2, []),
        (HASWELL, ["haswell"]),
        (f"{HASWELL} avx512f avx512bw avx512_vnni", ["haswell", "skylakex"]),  # Cascade Lake
        (SAPPHIRE, ["haswell", "alderlake", "skylakex", "icelake", "zen4"]),
    ],
)
def test_kernels_for_this_machine_only(
    flags: str, variants: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: f"flags\t\t: {flags}\n")
    said = upstream.with_variants(["-DGGML_CUDA=ON", "-DGGML_NATIVE=ON"])
    assert said[:2] == ["-DGGML_CUDA=ON", f"-DSAFEX_CPU_VARIANTS={';'.join(variants)}"]
    assert [option.partition("=")[0] for option in said[2:]] == [f"-DSAFEX_CPU_{name}" for name in variants]
    stock = upstream.cpu_options()  # unpatched, to compare with: what our dispatch would pick
    assert ("-DGGML_AVX2=ON" in stock) == bool(variants)
    assert ("-DGGML_AVX512_BF16=ON" in stock) == ("zen4" in variants)


@pytest.mark.parametrize("options", [[], ["-DGGML_NATIVE=OFF"], ["-DGGML_NATIVE=ON", "-DGGML_NATIVE=OFF"]])
def test_kernels_for_all_machines_are_the_default(options: list[str]) -> None:
    said = upstream.with_variants(options)
    assert said[0] == "-DSAFEX_CPU_VARIANTS=haswell;alderlake;skylakex;icelake;zen4"
    assert not [option for option in said if "GGML_NATIVE" in option or "AMX" in option]


def test_a_system_without_cpuinfo_gets_all_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(path: Path) -> str:
        raise FileNotFoundError(path)

    monkeypatch.setattr(Path, "read_text", missing)
    assert upstream.with_variants(["-DGGML_NATIVE=ON"]) == upstream.with_variants([])
    assert upstream.cpu_options() == ["-DGGML_NATIVE=ON"]


def test_no_network(cache: Path) -> None:
    line = refusal(
        run("source", SAFEX_CACHE=cache, PIP_NO_INDEX=1, PIP_FIND_LINKS="", PIP_CONFIG_FILE=os.devnull)
    )
    assert "llama.cpp's source (llama-cpp-python " in line
    assert "check the network, or set SAFEX_LLAMA_CPP_DIR" in line
    assert trees(cache) == []


def test_no_pip(cache: Path) -> None:
    broken = cache.parent / "modules" / "pip"
    broken.mkdir(parents=True)
    (broken / "__init__.py").write_text("")
    line = refusal(run("source", SAFEX_CACHE=cache, PYTHONPATH=broken.parent))
    assert "can't be downloaded with pip" in line


def test_a_wrong_hash_is_refused(cache: Path) -> None:
    script = own_copy(cache.parent / "upstream")
    pin = script.parent / "PIN"
    pin.write_text(
        pin.read_text().replace(f"sha256     {upstream.read_pin().sha256}", "sha256     " + "0" * 64)
    )
    shelf = cache.parent / "shelf"
    shelf.mkdir()
    (shelf / "pip.py").write_text(FAKE_PIP)
    line = refusal(run("source", script=script, SAFEX_CACHE=cache, PYTHONPATH=shelf))
    assert "SHA-256 is " in line
    assert f"expected {'0' * 64}; the download is not the pinned source" in line
    assert [path for path in cache.iterdir() if path.name.endswith(".tar.gz")] == []


FAKE_PIP = """
import pathlib, sys
folder = pathlib.Path(sys.argv[sys.argv.index("-d") + 1])
(folder / "llama_cpp_python-0.tar.gz").write_bytes(b"something else")
"""


def test_a_folder_that_is_no_tree(cache: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "absent", tmp_path):
        line = refusal(run("source", SAFEX_CACHE=cache, SAFEX_LLAMA_CPP_DIR=folder))
        assert line.endswith(f"{folder} is not a llama.cpp source tree (no src/llama-graph.cpp)")
    assert trees(cache) == []


@pytest.mark.parametrize("name", upstream.read_pin().files)
def test_a_tree_that_differs_by_a_byte(name: str, cache: Path, local_tree: Path) -> None:
    path = local_tree / name
    path.write_bytes(path.read_bytes()[:-1] + b" ")
    line = refusal(run("source", SAFEX_CACHE=cache, SAFEX_LLAMA_CPP_DIR=local_tree))
    assert f"the patch does not apply exactly: {name} is " in line
    assert trees(cache) == []


def test_a_tree_that_lacks_a_touched_file(cache: Path, local_tree: Path) -> None:
    (local_tree / "src" / "llama-context.h").unlink()
    line = refusal(run("source", SAFEX_CACHE=cache, SAFEX_LLAMA_CPP_DIR=local_tree))
    assert "does not apply exactly: src/llama-context.h is missing" in line


@pytest.mark.parametrize("bad", ["-removed line", " context line", "@@ -1,2 +1,3 @@"])
def test_a_patch_that_does_more_than_insert(bad: str, cache: Path, local_tree: Path) -> None:
    script = own_copy(cache.parent / "upstream")
    with (script.parent / "call_sites.patch").open("a") as patch:
        patch.write(bad + "\n")
    line = refusal(run("source", script=script, SAFEX_CACHE=cache, SAFEX_LLAMA_CPP_DIR=local_tree))
    assert line.endswith(f"call_sites.patch holds a line that is no insertion: {bad!r}")
    assert trees(cache) == []


def test_a_local_tree_gives_the_same_patched_tree(cache: Path, stock_tree: Path, tmp_path: Path) -> None:
    local = tmp_path / "llama.cpp"
    shutil.copytree(stock_tree, local)
    done = run("source", SAFEX_CACHE=cache, SAFEX_LLAMA_CPP_DIR=local)
    assert done.returncode == 0, done.stderr
    ours, normal = contents(Path(done.stdout.strip())), contents(Path(run("source").stdout.strip()))
    assert ours.keys() == normal.keys()
    assert [name for name in ours if ours[name] != normal[name]] == []
    assert contents(local) == contents(stock_tree)  # the user's tree is left alone


def test_the_patch_only_inserts_our_lines(stock_tree: Path) -> None:
    patched = Path(run("source").stdout.strip())
    for name, hunks in upstream.insertions((SCRIPT.parent / "call_sites.patch").read_text()).items():
        lines = (patched / name).read_text().split("\n")
        shift = 0
        for after, added in hunks:
            assert lines[after + shift : after + shift + len(added)] == added
            shift += len(added)
        for after, added in hunks:  # taken out again from the top, what is left is upstream's file
            del lines[after : after + len(added)]
        assert "\n".join(lines) == (stock_tree / name).read_text()


def test_a_failure_in_the_middle_leaves_no_tree(
    cache: Path, local_tree: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(tree: Path) -> None:
        assert (tree / TOUCHED).is_file()
        raise RuntimeError("disk full")

    monkeypatch.setenv("SAFEX_CACHE", str(cache))
    monkeypatch.setenv("SAFEX_LLAMA_CPP_DIR", str(local_tree))
    monkeypatch.setattr(upstream, "apply_patch", stop)
    with pytest.raises(RuntimeError, match="disk full"):
        upstream.source()
    assert trees(cache) == []


KILLED_WHILE_PATCHING = f"""
import importlib.util, time
spec = importlib.util.spec_from_file_location("upstream", {str(SCRIPT)!r})
upstream = importlib.util.module_from_spec(spec)
spec.loader.exec_module(upstream)
def wait(tree):
    print("half-way", flush=True)
    time.sleep(600)
upstream.apply_patch = wait
upstream.source()
"""


def test_a_killed_process_leaves_no_tree_of_that_name(cache: Path, local_tree: Path) -> None:
    environment = {**os.environ, "SAFEX_CACHE": str(cache), "SAFEX_LLAMA_CPP_DIR": str(local_tree)}
    command = [sys.executable, "-c", KILLED_WHILE_PATCHING]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "half-way\n"
        process.send_signal(signal.SIGKILL)
    left = trees(cache)
    assert len(left) == 1 and ".part-" in left[0]
    started = time.monotonic()
    done = run("source", SAFEX_CACHE=cache, SAFEX_LLAMA_CPP_DIR=local_tree)  # the lock went with the process
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - started < 30
    assert "tap->head_input" in (Path(done.stdout.strip()) / TOUCHED).read_text()
    shutil.rmtree(cache / left[0])


def test_no_compiler(cache: Path, local_tree: Path) -> None:
    line = refusal(run("build", SAFEX_CACHE=cache, SAFEX_LLAMA_CPP_DIR=local_tree, CXX="no-such-compiler"))
    assert (
        "the C++ compiler 'no-such-compiler' does not run; install one (Debian: apt-get install g++)" in line
    )


def test_a_cache_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    line = refusal(run("source", SAFEX_CACHE=tmp_path / "file" / "cache"))
    assert "can't be made (Not a directory); set SAFEX_CACHE to a writable folder" in line
