#!/usr/bin/env bash
# Installs safex-native into .venv and profiles the demo model: bash scripts/quickstart.sh [OUT.profile.gguf]
# A first run took 6 min 19 s on 2 idle cores, most of it compiling llama.cpp; later ones take a second.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"

profile="${1:-demo.profile.gguf}"

ensure_core
say "profile the demo model"
"$VENV/bin/safex-native" profile demo --force -o "$profile"
