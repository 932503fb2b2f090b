#!/usr/bin/env bash
# Set-up and all checks: formatting, lint, types, then the whole test suite. Stops at the first that fails.
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

if [[ "${1:-}" == --help || "${1:-}" == -h ]]; then
  cat <<TEXT
usage: bash launch/test.sh [--dry-run | --help] [PYTEST_ARGUMENT...]

Makes a virtual environment, checks formatting, lint and types, and runs all tests. Arguments go to pytest, for
example: bash launch/test.sh -x tests/test_layout.py

  --dry-run   print the commands, run none
  --help      this text

PLAN_VENV names the virtual environment to use or make (default: .venv in the project folder).
TEXT
  exit 0
fi
if [[ "${1:-}" == --dry-run ]]; then DRY_RUN=yes && shift; fi

set_up requirements.txt tests/requirements.txt
stage "formatting (ruff format . repairs it)" "$PYTHON" -m ruff format --check .
stage "lint (ruff check)" "$PYTHON" -m ruff check .
stage "types (basedpyright)" "$PYTHON" -m basedpyright --pythonpath "$PYTHON"
say "== tests (pytest)"
# A worker for each core, at most four; a file's tests stay together, as they share what is slow to make.
run exec "$PYTHON" -m pytest -n auto --maxprocesses 4 --dist loadfile "$@" </dev/null
