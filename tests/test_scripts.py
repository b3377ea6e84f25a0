"""The shell scripts: what they refuse, when they install, and which stage they stop at. Nothing is installed here."""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from safex.cores import available_cores

ROOT = Path(__file__).parents[1]
SCRIPTS = [*sorted((ROOT / "scripts").glob("*.sh")), ROOT / ".ci" / "run"]


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


@dataclass
class Tree:
    """The scripts in a tree of their own, whose .venv holds stubs that write down how they were called."""

    root: Path

    @property
    def venv(self) -> Path:
        return self.root / ".venv"

    def run(self, *command: str, **variables: object) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, **{name: str(value) for name, value in variables.items()}}
        done = subprocess.run(
            command, env=environment, cwd=self.root, capture_output=True, text=True, check=False
        )
        assert "unbound variable" not in done.stderr
        return done

    def script(self, name: str, *arguments: str, **variables: object) -> subprocess.CompletedProcess[str]:
        return self.run("bash", f"scripts/{name}.sh", *arguments, **variables)

    def function(self, call: str, **variables: object) -> subprocess.CompletedProcess[str]:
        return self.run("bash", "-c", f"set -euo pipefail; source scripts/lib.sh; {call}", **variables)

    def calls(self) -> list[str]:
        """How the stubs were called since the last question."""
        log = self.root / "calls"
        said = log.read_text().splitlines() if log.exists() else []
        log.unlink(missing_ok=True)
        return said


STUB = """#!/bin/bash
echo "$(basename "$0") $*" >>"{root}/calls"
[[ "$*" == *importlib.metadata* ]] && exit 1
[[ "$*" == *"upstream.py fetch" ]] && echo /cache/llama-cpp-python.tar.gz
[[ "$0 $*" == *"/pip --version" ]] && echo "pip 1.0 from {venv}/lib (python 3.11)"
[[ -n "${{BREAK:-}}" && "$0 $*" == *"$BREAK"* ]] && exit 3
exit 0
"""


@pytest.fixture
def tree(tmp_path: Path) -> Tree:
    tree = Tree(tmp_path / "tree")
    shutil.copytree(ROOT / "scripts", tree.root / "scripts", ignore=shutil.ignore_patterns("__pycache__"))
    copied = (
        "pyproject.toml",
        "CMakeLists.txt",
        "native/upstream/PIN",
        "bindings/module.cpp",
        "safex/__init__.py",
    )
    for name in copied:
        (tree.root / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, tree.root / name)
    for name in ("python", "pip", "safex-native", "cmake", "ctest", "clang-format"):
        executable(tree.venv / "bin" / name, STUB.format(root=tree.root, venv=tree.venv))
    for folder in ("native/src", "native/include", "tests/native"):
        (tree.root / folder).mkdir(parents=True)
        (tree.root / folder / "some.h").touch()
    return tree


def pip_calls(tree: Tree) -> list[str]:
    return [call for call in tree.calls() if "pip install" in call]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_a_script_follows_the_house_rules(path: Path) -> None:
    text = path.read_text()
    assert "://" not in text
    assert subprocess.run(["bash", "-n", str(path)], check=False).returncode == 0
    if path.name != "lib.sh":
        assert text.startswith("#!/usr/bin/env bash\n# ")
        assert "\nset -euo pipefail\n" in text
        assert os.access(path, os.X_OK)


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_shellcheck_finds_nothing() -> None:
    command = ["shellcheck", "-x", "-P", str(ROOT / "scripts"), *map(str, SCRIPTS)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_ci_runs_the_tests() -> None:
    assert "bash scripts/test.sh\n" in (ROOT / ".ci" / "run").read_text()


def python_without(folder: Path, *lacking: str) -> Path:
    """A Python that fails as Debian's does where a package is missing."""
    patterns = " | ".join(f'*"{word}"*' for word in lacking)
    text = f'#!/bin/bash\ncase "$*" in {patterns}) exit 1 ;; esac\nexec "{sys.executable}" "$@"\n'
    return executable(folder / "python3", text)


@pytest.mark.parametrize(
    ("lacking", "packages"),
    [
        (["ensurepip"], "python3-venv"),
        (["Python.h"], "python3-dev"),
        (["ensurepip", "Python.h"], "python3-venv python3-dev"),
        (["version_info"], "python3 python3-venv python3-dev"),  # too old
    ],
)
def test_what_python_lacks_is_named_in_one_line(
    lacking: list[str], packages: str, tree: Tree, tmp_path: Path
) -> None:
    done = tree.script("quickstart", PYTHON=python_without(tmp_path, *lacking))
    assert done.returncode == 1
    assert f"    apt-get update && apt-get install -y {packages} \n" in done.stderr
    assert pip_calls(tree) == []


@pytest.mark.parametrize("compiler", ["CC", "CXX"])
def test_a_missing_compiler_is_named(compiler: str, tree: Tree) -> None:
    done = tree.script("quickstart", **{compiler: "no-such-compiler"})
    assert done.returncode == 1
    assert "    apt-get update && apt-get install -y g++ \n" in done.stderr


def test_everything_missing_is_one_line(tree: Tree) -> None:
    done = tree.script("test", CC="no-such-compiler", PYTHON="no-such-python")
    assert done.returncode == 1
    assert "    apt-get update && apt-get install -y g++ python3 python3-venv python3-dev \n" in done.stderr


def test_a_system_that_has_all_passes(tree: Tree) -> None:
    assert tree.function("check_system", PYTHON=sys.executable).returncode == 0


def test_quickstart_installs_then_profiles(tree: Tree) -> None:
    done = tree.script("quickstart")
    assert done.returncode == 0, done.stderr
    installs = pip_calls(tree)
    assert "build-tools.txt" in installs[0]
    assert "LLAMA_BUILD=OFF /cache/llama-cpp-python.tar.gz" in installs[1]
    assert installs[2].endswith(f"-e {tree.root}")
    assert len(installs) == 3
    assert (tree.venv / "build-tools.txt").read_text().split()[:2] == ["cmake", "scikit-build-core>=0.10"]


def test_an_unchanged_tree_is_not_installed_again(tree: Tree) -> None:
    tree.script("quickstart")
    tree.calls()
    done = tree.script("quickstart", "here.profile.gguf")
    assert tree.calls() == ["python -VV", "safex-native profile demo --force -o here.profile.gguf"]
    assert done.stdout == "==> profile the demo model\n"


@pytest.mark.parametrize(
    "name", ["pyproject.toml", "CMakeLists.txt", "native/src/some.h", "bindings/new.cpp"]
)
def test_a_changed_native_file_is_installed_again(name: str, tree: Tree) -> None:
    tree.script("quickstart")
    tree.calls()
    with (tree.root / name).open("a") as file:
        file.write("\n")
    tree.script("quickstart")
    assert len(pip_calls(tree)) == 3


@pytest.mark.parametrize(
    "name", ["safex/__init__.py", "native/upstream/__pycache__/upstream.pyc", "tests/test_new.py"]
)
def test_a_changed_python_file_is_not(name: str, tree: Tree) -> None:
    tree.script("quickstart")
    tree.calls()
    (tree.root / name).parent.mkdir(parents=True, exist_ok=True)
    with (tree.root / name).open("a") as file:
        file.write("# changed")
    tree.script("quickstart")
    assert pip_calls(tree) == []


def test_a_module_that_moved_is_installed_again(tree: Tree) -> None:
    """The editable install maps modules to files: after comparison.py became a folder, the old map found nothing."""
    module = tree.root / "safex" / "comparison.py"
    module.touch()
    tree.script("quickstart")
    tree.calls()
    module.unlink()
    (tree.root / "safex" / "comparison").mkdir()
    (tree.root / "safex" / "comparison" / "__init__.py").touch()
    tree.script("quickstart")
    assert len(pip_calls(tree)) == 3


def test_other_build_options_are_another_installation(tree: Tree) -> None:
    tree.script("quickstart")
    tree.calls()
    tree.script("quickstart", CMAKE_ARGS="-DGGML_CUDA=ON")
    assert len(pip_calls(tree)) == 3


def test_a_failed_installation_says_so_and_is_tried_again(tree: Tree) -> None:
    done = tree.script("quickstart", BREAK=f"-e {tree.root}")
    assert done.returncode == 1
    assert "safex-native: this failed (exit 3): " in done.stderr
    assert f"all of its output is in {tree.venv}/install.log" in done.stderr
    tree.calls()
    tree.script("quickstart")
    assert len(pip_calls(tree)) == 3


def test_a_moved_venv_is_made_anew(tree: Tree) -> None:
    assert tree.function("ensure_venv").stdout == ""
    executable(tree.venv / "bin" / "pip", '#!/bin/bash\necho "pip 1.0 from /elsewhere/lib (python 3.11)"\n')
    maker = executable(tree.root / "maker", STUB.format(root=tree.root, venv=tree.venv))
    tree.calls()
    tree.function(f"find_python() {{ echo {maker}; }}; ensure_venv")
    assert tree.calls() == [f"maker -m venv --clear {tree.venv}"]


STAGES = [
    ("-m ruff check", "ruff check"),
    ("-m ruff format", "ruff format"),
    ("clang-format --dry-run", "clang-format"),
    ("-m mypy", "mypy"),
    ("-m mkdocs build", "manual"),
    ("cmake --build", "C++ tests"),
    ("ctest ", "C++ tests"),
    ("upstream.py stock", "unpatched llama.cpp, to compare with (once: 3 minutes)"),
]


@pytest.mark.parametrize(("broken", "name"), STAGES)
def test_the_first_failing_stage_is_named(broken: str, name: str, tree: Tree) -> None:
    done = tree.script("test", BREAK=broken)
    assert done.returncode != 0
    assert done.stderr.splitlines()[-1] == f"test.sh: stage failed: {name}"
    assert not any("-m pytest" in call for call in tree.calls())


def test_all_stages_run_in_order_and_pytest_gets_the_arguments(tree: Tree) -> None:
    done = tree.script("test", "-k", "some")
    assert done.returncode == 0, done.stderr
    calls = tree.calls()
    order = [next(i for i, call in enumerate(calls) if broken in call) for broken, _ in STAGES]
    assert order == sorted(order)
    assert calls[-1] == f"python -m pytest -n {available_cores()} --dist loadfile -k some"
    assert "stage failed" not in done.stderr


def test_pytest_s_verdict_is_the_script_s(tree: Tree) -> None:
    assert tree.script("test", BREAK="-m pytest").returncode == 3


def test_sanitize_builds_with_the_sanitizers(tree: Tree) -> None:
    assert tree.script("sanitize").returncode == 0
    configured = next(call for call in tree.calls() if call.startswith("cmake -S"))
    for option in (
        "-DGGML_NATIVE=ON",  # as the installation: llama.cpp isn't compiled a second time
        "-DSAFEX_SANITIZE=ON",
        "-DSAFEX_TESTS=ON",
        "-DSAFEX_BINDINGS=OFF",
        f"{tree.root}/build/sanitize",
    ):
        assert option in configured
