"""The bundled libraries: never confused with another llama.cpp in the process, and safe on any x86-64-v2 CPU."""

from __future__ import annotations

import ctypes
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from test_upstream import upstream

from safex import library

ROOT = Path(__file__).parents[1]
DEMO = ROOT / "safex" / "data" / "demo.gguf"
LIB = library.folder()

needs_elf = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="ELF and /proc are Linux's")
needs_objdump = pytest.mark.skipif(
    shutil.which("objdump") is None, reason="objdump (binutils) is not installed"
)

# Each step runs in one process with the others, in the order that the test gives.
STEPS = """
import ctypes, json, os, sys
import numpy as np

DEMO, TOKENS = sys.argv[1], list(range(40, 70))
said = {}

def ordinary():
    sys.path.insert(0, os.environ["ORDINARY"])
    import llama_cpp
    said["ordinary_file"] = llama_cpp.__file__
    model = llama_cpp.Llama(DEMO, n_ctx=128, logits_all=True, verbose=False, n_threads=2)
    model.eval(TOKENS)
    said["ordinary"] = np.array(model.scores[: len(TOKENS)])

def ours():
    import safex
    from safex import library
    with safex.Model(DEMO, n_ctx=128, n_threads=2) as model:
        said["ours"] = model.logits(TOKENS)
        said["counts"] = int(model.profile([TOKENS]).counts.sum())
        said["wanted_counts"] = len(TOKENS) * model.top_k * len(model.layers)
    said["path"] = library.native().llama_library_path()

def ordinary_for_everybody():
    folder = os.environ["ORDINARY"] + "/llama_cpp/lib/"
    for name in ("ggml-base", "ggml-cpu", "ggml", "llama"):
        ctypes.CDLL(folder + f"lib{name}.so", mode=ctypes.RTLD_GLOBAL)

def face():
    import llama_cpp
    said["version"] = llama_cpp.llama_cpp.llama_max_devices()

def face_model():
    import llama_cpp
    model = llama_cpp.Llama(DEMO, n_ctx=128, logits_all=True, verbose=False, n_threads=2)
    model.eval(TOKENS)
    said["face"] = np.array(model.scores[: len(TOKENS)])

def ordinary_dense():
    sys.path.insert(0, os.environ["ORDINARY"])
    import llama_cpp
    f32 = dict(flash_attn=False, type_k=0, type_v=0)
    model = llama_cpp.Llama(os.environ["DENSE"], n_ctx=128, logits_all=True, verbose=False, n_threads=2, **f32)
    rows = []
    for tokens in PROMPTS:
        model.reset()
        model.eval(tokens)
        row = np.array(model.scores[len(tokens) - 1], float)
        rows.append(row - np.log(np.exp(row).sum()))
    said["ordinary"] = np.array(rows)

def our_dense():
    import safex
    with safex.Model(os.environ["DENSE"], n_ctx=4096, n_threads=2, flash_attn=False, kv_type="f32") as model:
        said["ours"] = model.score(PROMPTS, range(model.facts.n_vocab))[:, 0]

PROMPTS = [[(7 * i * i + 3 * j * j + j) % 288 for j in range(1 + i % 40)] for i in range(100)]

for step in sys.argv[2:]:
    globals()[step]()
if "ours" in said:
    for other in {"ordinary", "face"} & said.keys():
        said["distance"] = float(np.linalg.norm(said[other] - said["ours"]) / np.linalg.norm(said["ours"]))
with open("/proc/self/maps") as maps:
    said["mapped"] = sorted({line.split(maxsplit=5)[5].strip() for line in maps if ".so" in line})
print(json.dumps({key: value for key, value in said.items() if not isinstance(value, np.ndarray)}))
"""


def run(*steps: str, **variables: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", STEPS, str(DEMO), *steps]
    environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)


def answer(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def mapped(said: dict[str, Any], name: str) -> set[Path]:
    """The distinct files of that library (libNAME.so, libNAME.so.0, libsafex-NAME.so ...) in the process."""
    pattern = re.compile(rf"lib(safex-)?{name}\.so[.\d]*")
    return {Path(path) for path in said["mapped"] if pattern.fullmatch(Path(path).name)}


@needs_elf
@pytest.mark.parametrize("order", [("ordinary", "ours"), ("ours", "ordinary")], ids="-then-".join)
def test_both_copies_work_in_one_process(order: tuple[str, str], ordinary: Path) -> None:
    library_folder = ordinary / "llama_cpp" / "lib"
    said = answer(
        run(*order, ORDINARY=ordinary, LD_LIBRARY_PATH=library_folder, LLAMA_CPP_LIB_PATH=library_folder)
    )
    assert said["ordinary_file"] == str(ordinary / "llama_cpp" / "__init__.py")
    assert Path(said["path"]).resolve() == LIB / "libsafex-llama.so"
    assert said["counts"] == said["wanted_counts"]
    assert said["distance"] < 0.05
    for name in ("llama", "ggml", "ggml-base"):
        folders = {path.parent for path in mapped(said, name)}
        assert folders == {LIB, library_folder.resolve()}, name


@needs_elf
@pytest.mark.parametrize("arch", ["dense-llama", "dense-qwen3"])
def test_packed_dense_models_compute_what_unpatched_llama_cpp_does(
    arch: str, ordinary: Path, tiny_path: Callable[..., Path]
) -> None:
    said = answer(
        run(
            "ordinary_dense",
            "our_dense",
            ORDINARY=ordinary,
            DENSE=tiny_path(arch),
            LLAMA_CPP_LIB_PATH=ordinary / "llama_cpp" / "lib",
        )
    )
    assert {path.parent for path in mapped(said, "llama")} == {
        LIB,
        (ordinary / "llama_cpp" / "lib").resolve(),
    }
    assert said["distance"] < 1e-5


@needs_elf
def test_a_copy_that_was_put_in_front_of_ours_is_refused(ordinary: Path) -> None:
    done = run(
        "ordinary_for_everybody", "ours", ORDINARY=ordinary, LD_LIBRARY_PATH=ordinary / "llama_cpp" / "lib"
    )
    assert (
        done.returncode
    )  # 1, or SIGABRT: the two copies share their globals then, and both destroy them at exit
    (last,) = (line for line in done.stderr.splitlines() if line.startswith("safex.errors."))
    assert last.startswith("safex.errors.DeviceError: llama.cpp's functions come from ")
    assert "another copy was loaded with RTLD_GLOBAL" in last


@needs_elf
def test_llama_cpp_python_drives_our_library(face: Path) -> None:
    assert not list(face.glob("lib/*")), "installed with libraries of its own; LLAMA_BUILD=OFF was not given"
    said = answer(run("face", LLAMA_CPP_LIB_PATH=LIB / "llama_cpp"))
    assert mapped(said, "llama") == {LIB / "libsafex-llama.so", LIB / "llama_cpp" / "libllama.so"}


@needs_elf
@pytest.mark.usefixtures("face")
def test_llama_cpp_python_computes_with_our_library() -> None:
    said = answer(run("ours", "face_model", LLAMA_CPP_LIB_PATH=LIB / "llama_cpp"))
    assert said["distance"] < 0.05
    assert {path.parent for path in mapped(said, "ggml-base")} == {LIB}


def dynamic_names(path: Path) -> dict[str, list[str]]:
    """{"SONAME": [...], "NEEDED": [...]} of an ELF file."""
    said = subprocess.run(["readelf", "-d", str(path)], capture_output=True, text=True, check=True).stdout
    found = re.findall(r"\((SONAME|NEEDED)\).*\[(.+)\]", said)
    return {key: [name for kind, name in found if kind == key] for key in ("SONAME", "NEEDED")}


@needs_elf
@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf (binutils) is not installed")
@pytest.mark.parametrize("path", sorted(LIB.rglob("*.so")), ids=lambda path: str(path.relative_to(LIB)))
def test_no_library_has_or_needs_an_ordinary_name(path: Path) -> None:
    names = dynamic_names(path)
    ordinary = re.compile(r"lib(llama|ggml|mtmd)([.-].*)?\.so.*")
    assert [name for name in names["SONAME"] + names["NEEDED"] if ordinary.fullmatch(name)] == []
    if path.parent == LIB:
        assert names["SONAME"] in ([], [path.name])


def plugins() -> list[Path]:
    return sorted(LIB.glob("libggml-cpu*.so"))


@functools.cache
def instructions(path: Path) -> str:
    command = ["objdump", "-d", "--no-show-raw-insn", str(path)]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


x86 = pytest.mark.skipif(not (LIB / "libggml-cpu-haswell.so").exists(), reason="the build is not for x86")


def variant(path: Path) -> str:
    return path.name.removeprefix("libggml-cpu").removesuffix(".so").lstrip("-")


@x86
def test_the_cpu_variants_are_those_we_chose() -> None:
    assert {"", "haswell"} <= set(map(variant, plugins()))
    assert set(map(variant, plugins())) <= {"", "haswell", "alderlake", "skylakex", "icelake", "zen4"}


@x86
@pytest.mark.parametrize("path", plugins(), ids=lambda path: path.name)
def test_ggml_agrees_on_what_this_machine_can_run(path: Path) -> None:
    """A build for this machine (GGML_NATIVE) goes by /proc/cpuinfo, ggml by the processor's own answers."""
    runs = ctypes.CDLL(str(path)).ggml_backend_score() > 0
    assert runs == (variant(path) in {"", *(upstream.runnable() or ())})


@x86
@needs_objdump
@pytest.mark.parametrize("path", plugins(), ids=lambda path: path.name)
def test_no_variant_uses_amx(path: Path) -> None:
    assert re.findall(r"\b(?:tileloadd|tilestored|ldtilecfg|tdp\w+|tilezero)\b", instructions(path)) == []


@x86
@needs_objdump
@pytest.mark.parametrize(
    "name", ["libggml-cpu.so", "libsafex-llama.so", "libsafex-ggml.so", "libsafex-ggml-base.so"]
)
def test_what_every_machine_runs_has_no_avx(name: str) -> None:
    assert re.findall(r"%[yz]mm\d+", instructions(LIB / name)) == []


@x86
@needs_objdump
def test_the_variants_do_use_avx() -> None:
    for path in LIB.glob("libggml-cpu-*.so"):
        assert "%ymm" in instructions(path)
    for path in LIB.glob("libggml-cpu-zen4.so"):
        assert "%zmm" in instructions(path)
