#!/usr/bin/env bash
# Builds the manual into build/manual: bash scripts/manual.sh [options of `mkdocs build`]
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

ensure_core
ensure_dev
cd "$ROOT"
manual "$@"
say "build/manual/index.html"
