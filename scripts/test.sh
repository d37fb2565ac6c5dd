#!/usr/bin/env bash
# `bash scripts/test.sh [--all] [PYTEST ARGUMENTS]`: the linter and the fast tests; --all adds the slow ones, after the fast.
set -euo pipefail
source "$(dirname "$0")/environment.sh"
marks="not slow"
if [ "${1:-}" = --all ]; then
  marks="" # no selection
  shift
fi
install requirements.txt
install requirements-dev.txt

.venv/bin/ruff check .
.venv/bin/ruff format --check .
.venv/bin/python -m pytest -m "$marks" -rs --durations=15 "$@"
