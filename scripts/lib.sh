# What the scripts beside it share: checks of the system, the virtual environment, the installation. Sourced, not run.
# shellcheck shell=bash
#
# PYTHON   the Python to make .venv with (default: the first python3 that is 3.10 or newer)
# CC, CXX, CMAKE_ARGS, SAFEX_CACHE, SAFEX_LLAMA_CPP_DIR mean what they mean to the build.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="$ROOT/.venv"
PY="$VENV/bin/python"
LOG="$VENV/install.log"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1

say() {
    printf '==> %s\n' "$*"
}

fail() {
    printf 'safex-native: %s\n' "$*" >&2
    exit 1
}

# --- the system ---

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3 python3.14 python3.13 python3.12 python3.11 python3.10}; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            command -v "$candidate"
            return
        fi
    done
}

compiles() {  # LANGUAGE HEADER COMPILER FLAGS...
    local language="$1" header="$2"
    shift 2
    echo "#include <$header>" | "$@" -x "$language" -fsyntax-only - 2>/dev/null
}

# The Debian packages that hold what is missing here, one a line.
missing_packages() {
    local python="$1"
    if ! compiles c stdio.h "${CC:-cc}" || ! compiles c++ span "${CXX:-c++}" -std=c++20; then
        echo g++
    fi
    if [[ -z "$python" ]]; then
        printf '%s\n' python3 python3-venv python3-dev
        return
    fi
    "$python" -c 'import ensurepip, venv' 2>/dev/null || echo python3-venv
    "$python" -c 'import os, sysconfig; os.stat(sysconfig.get_path("include") + "/Python.h")' 2>/dev/null ||
        echo python3-dev
}

check_system() {
    local python missing
    python="$(find_python)"
    missing="$(missing_packages "$python" | tr '\n' ' ')"
    if [[ -n "$missing" ]]; then
        fail "this needs a C and a C++20 compiler and Python 3.10 or newer with venv and headers (PYTHON=... chooses one)." \
            $'What is missing comes with\n\n    apt-get update && apt-get install -y' "$missing"
    fi
}

# --- long steps ---

# Every 20 seconds, how far ninja is; ends with the script.
heartbeat() {
    while sleep 20 >/dev/null 2>&1 && kill -0 $$ 2>/dev/null; do
        printf '    %s\n' "$(grep -ao '\[[0-9]*/[0-9]*\]' "$LOG" | tail -n 1)"
    done
}

# Runs a command with its output in the log; shows the log's end where it fails.
quietly() {
    local pulse status=0
    heartbeat 2>/dev/null &
    pulse=$!
    "$@" >>"$LOG" 2>&1 </dev/null || status=$?
    kill "$pulse" 2>/dev/null || true
    wait "$pulse" 2>/dev/null || true
    if ((status)); then
        tail -n 30 "$LOG" >&2
        fail "this failed (exit $status): $*; all of its output is in $LOG"
    fi
}

pip_install() {
    quietly "$PY" -m pip install "$@"
}

# --- .venv and what is in it ---

# A .venv that was moved or copied, or lost its Python, is made anew.
ensure_venv() {
    if [[ "$("$VENV/bin/pip" --version 2>/dev/null)" == *" from $VENV/"* ]]; then
        return
    fi
    say "make .venv"
    "$(find_python)" -m venv --clear "$VENV"
}

# Changes whenever what is compiled or installed changes. Of Python files only the names count: the install is editable,
# but it keeps a map from modules to files.
install_key() {
    (
        cd "$ROOT" || exit
        printf '%s\n' "$VENV" "$("$PY" -VV 2>/dev/null)" "${CC:-}" "${CXX:-}" "${CMAKE_ARGS:-}" "${SAFEX_LLAMA_CPP_DIR:-}"
        find pyproject.toml CMakeLists.txt native bindings -name __pycache__ -prune -o -type f -print0 |
            LC_ALL=C sort -z | xargs -0 sha256sum
        find safex -name '*.py' | LC_ALL=C sort
    ) | sha256sum | cut -d ' ' -f 1
}

is_installed() {  # STAMP KEY
    [[ -f "$VENV/$1.stamp" && "$(<"$VENV/$1.stamp")" == "$2" ]]
}

# llama-cpp-python without a library of its own: it drives ours. From the archive that llama.cpp's source came in.
install_llama_cpp_python() {
    local package version archive
    read -r _ package version < <(grep '^package ' "$ROOT/native/upstream/PIN")
    if [[ "$("$PY" -c "import importlib.metadata as m; print(m.version('$package'))" 2>/dev/null)" == "$version" ]]; then
        return
    fi
    archive="$package==$version"
    if [[ -z "${SAFEX_LLAMA_CPP_DIR:-}" ]]; then
        archive="$("$PY" "$ROOT/native/upstream/upstream.py" fetch)"
    fi
    pip_install --no-build-isolation -C cmake.define.LLAMA_BUILD=OFF "$archive"
}

# What pyproject.toml asks for, and CMake, which scikit-build-core would otherwise take from the system.
build_tools() {
    echo cmake
    sed -n 's/^requires = //p' "$ROOT/pyproject.toml" | grep -o '[^][", ]\+'
}

ensure_core() {
    if is_installed core "$(install_key)"; then
        return
    fi
    local key
    check_system
    ensure_venv
    key="$(install_key)"
    rm -f "$VENV"/*.stamp "$LOG"
    say "install the build tools (10 s) and fetch llama.cpp's source (76 MB, once)"
    build_tools >"$VENV/build-tools.txt"
    pip_install -r "$VENV/build-tools.txt"
    install_llama_cpp_python
    say "compile llama.cpp (once: 4 minutes on 2 cores) and the native core (2 minutes); details in $LOG"
    # The CPU kernels of this machine only: the others' are two fifths of the work. CMAKE_ARGS can ask for all.
    CMAKE_ARGS="-DGGML_NATIVE=ON ${CMAKE_ARGS:-}" \
        pip_install --verbose --no-build-isolation -C build-dir="$VENV/build" -e "$ROOT"
    echo "$key" >"$VENV/core.stamp"
}

ensure_dev() {
    local key
    key="$(install_key)"
    if is_installed dev "$key"; then
        return
    fi
    say "install the development tools (20 s)"
    pip_install 'safex-native[dev]'
    echo "$key" >"$VENV/dev.stamp"
}

# --- the manual ---

# Strict: a warning, such as a link that leads nowhere, is an error (with --quiet warnings would not count). Says nothing
# where all is well; mkdocs-material would advertise its successor.
manual() {
    local said
    said="$(NO_MKDOCS_2_WARNING=1 "$PY" -m mkdocs build --config-file "$ROOT/.mkdocs.yml" "$@" 2>&1)" && return
    grep -v '^INFO' <<<"$said" >&2
    return 1
}

# --- our own CMake builds ---

# Configures and builds the C++ tests in a folder of their own, then runs them.
native_tests() {  # FOLDER OPTIONS...
    local folder="$ROOT/build/$1"
    shift
    cmake -S "$ROOT" -B "$folder" -G Ninja --log-level=WARNING -DGGML_NATIVE=ON \
        -DPython_EXECUTABLE="$PY" -DSAFEX_TESTS=ON -DSAFEX_BINDINGS=OFF "$@"
    cmake --build "$folder"
    ctest --test-dir "$folder" --output-on-failure
}
