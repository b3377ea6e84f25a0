#!/usr/bin/env bash
# Installs what is missing and runs every check: bash scripts/test.sh [pytest arguments]
# A fresh clone on 2 cores: 23 minutes where llama.cpp is compiled already; afterwards 16. Stops at the first stage that fails.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

# Not "if" or "||" around the command: they would switch -e off within a function.
stage() {  # NAME COMMAND...
    current="$1"
    shift
    say "$current"
    "$@"
    current=""
}

name_failed_stage() {
    if [[ -n "$current" && $BASHPID == "$$" ]]; then
        echo "test.sh: stage failed: $current" >&2
    fi
}

format_cpp() {
    find native/src native/include bindings tests/native \( -name '*.cpp' -o -name '*.h' \) -print0 |
        xargs -0 clang-format --dry-run --Werror
}

cd "$ROOT"
current=""
trap name_failed_stage EXIT
ensure_core
ensure_dev
export PATH="$VENV/bin:$PATH"

stage "ruff check" "$PY" -m ruff check
stage "ruff format" "$PY" -m ruff format --check
stage "clang-format" format_cpp
stage "mypy" "$PY" -m mypy
stage "manual" manual
stage "C++ tests" native_tests tests
stage "unpatched llama.cpp, to compare with (once: 3 minutes)" quietly "$PY" native/upstream/upstream.py stock
say "pytest"
exec "$PY" -m pytest -n "$(nproc)" --dist loadfile "$@"  # -n 0: in one process, as a debugger needs it
