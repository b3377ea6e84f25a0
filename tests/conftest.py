"""Shared fixtures: tiny models written once for all tests, and the demo model."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import tiny_models
from browser import chromium

import safex
from safex import serve_llama

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))  # tests import them


def pytest_configure() -> None:
    """Give each of xdist's workers a core: their threads, which spin while they wait, would take 4 times as long."""
    worker = os.environ.get("PYTEST_XDIST_WORKER")
    if worker and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        os.sched_setaffinity(0, {cores[int(worker.removeprefix("gw")) % len(cores)]})


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Path of a tiny random-weight model of an architecture, F32 unless ``quant`` says otherwise."""
    folder = tmp_path_factory.mktemp("tiny")

    def path(arch: str, quant: str | None = None) -> Path:
        target = folder / f"{arch}-{quant or 'f32'}.gguf"
        if not target.exists():
            tiny_models.write_tiny(target, arch, quant=quant)
        return target

    return path


@pytest.fixture(scope="session")
def exact(tiny_path: Callable[..., Path]) -> Callable[[str], safex.Model]:
    """Open a tiny model for exact comparison: no flash attention, F32 KV cache."""

    def open_model(arch: str, **settings: object) -> safex.Model:
        return safex.Model(tiny_path(arch), flash_attn=False, kv_type="f32", n_threads=2, **settings)  # type: ignore[arg-type]

    return open_model


@pytest.fixture(scope="session")
def demo() -> Iterator[safex.Model]:
    with safex.Model("demo", n_threads=2) as model:
        yield model


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """One for all tests: Playwright can't be started twice in a process."""
    with chromium() as started:
        yield started


# --- unpatched llama.cpp, to compare with


@pytest.fixture(scope="session")
def llama() -> Any:
    """llama-cpp-python's Llama on our library, which applies adapters at run time."""
    return serve_llama.llama_cpp_python().Llama


@pytest.fixture(scope="session")
def face() -> Path:
    """llama-cpp-python as it lies in site-packages, without libraries of its own."""
    spec = importlib.util.find_spec("llama_cpp")
    if spec is None or spec.origin is None:
        pytest.skip("llama-cpp-python is not installed; scripts/test.sh installs it")
    return Path(spec.origin).parent


@pytest.fixture(scope="session")
def stock_bin() -> Path:
    """The unpatched libraries under their ordinary names, compiled once into the cache."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    command = [sys.executable, str(ROOT / "native" / "upstream" / "upstream.py"), "stock"]
    done = subprocess.run(
        command, env={**os.environ, "PATH": path}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return Path(done.stdout.strip()) / "bin"


@pytest.fixture(scope="session")
def ordinary(face: Path, stock_bin: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user's own installation of llama-cpp-python holds: the package with its libraries in lib/."""
    folder = tmp_path_factory.mktemp("ordinary")
    shutil.copytree(face, folder / "llama_cpp", ignore=shutil.ignore_patterns("__pycache__"))
    (folder / "llama_cpp" / "lib").mkdir(exist_ok=True)
    for path in stock_bin.glob("lib*.so*"):
        shutil.copy2(path, folder / "llama_cpp" / "lib" / path.name, follow_symlinks=False)
    return folder
