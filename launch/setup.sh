# shellcheck shell=bash
# Sourced by launch/*.sh: a virtual environment with what the project needs, and how to run commands in it.
#
#   set_up NAME...        makes $VENV and installs these, once: requirements files, or extras of pyproject.toml
#   stage TEXT CMD...     prints TEXT, runs CMD, names TEXT if CMD fails
#   fail CODE TEXT        one line on stderr, then exit
#
# Set here: ROOT (the project), VENV (PLAN_VENV or ROOT/.venv), PYTHON (its interpreter).
# After DRY_RUN=yes commands are printed, not run. Works with bash 3.2 (macOS) and later.

set -euo pipefail
unset CDPATH

SCRIPT="launch/$(basename -- "$0")"
ROOT="$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)"
DRY_RUN=no

say() { printf '%s\n' "$*"; }
fail() {
  local code="$1"
  shift
  printf '%s: %s\n' "$SCRIPT" "$*" >&2
  exit "$code"
}

# The path $1 as seen from the caller's directory.
absolute() { case "$1" in /*) say "$1" ;; *) say "$PWD/$1" ;; esac; }

# The configuration $1: a file beside the caller, else one of the project; what stands behind a colon is its argument.
config_path() { if [[ "$PWD" != "$ROOT" && -f "${1%%:*}" ]]; then absolute "$1"; else say "$1"; fi; }

# Refuses option $1 unless a value, $2, follows it; $3 says what it must be.
valued() { [[ -n "${2:-}" ]] || fail 2 "$1 must be followed by $3"; }

VENV="$(absolute "${PLAN_VENV:-$ROOT/.venv}")"
PYTHON="$VENV/bin/python"

run() {
  if [[ "$DRY_RUN" == yes ]]; then
    printf '%q ' "$@" && printf '\n'
  else
    "$@"
  fi
}

stage() {
  local text="$1" code=0
  shift
  say "== $text"
  run "$@" || code=$?
  [[ "$code" == 0 ]] || fail "$code" "failed at: $text (exit code $code)"
}

# Settings of the caller's shell that would change which packages are found or where they are installed.
isolate() {
  unset PYTHONPATH PYTHONHOME PYTHONSTARTUP PYTHONSAFEPATH PYTHONOPTIMIZE PYTHONWARNINGS
  unset PIP_USER PIP_TARGET PIP_PREFIX PIP_ROOT UV_SYSTEM_PYTHON UV_TARGET UV_PREFIX VIRTUAL_ENV CONDA_PREFIX
  export PYTHONNOUSERSITE=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_INPUT=1 MPLBACKEND=Agg
}

# Without a home folder that can be written, caches go into the virtual environment, and installers keep none.
place_caches() {
  [[ -n "${HOME:-}" && -d "$HOME" && -w "$HOME" ]] && return
  export HOME="${HOME:-$VENV/cache}" XDG_CACHE_HOME="$VENV/cache" MPLCONFIGDIR="$VENV/cache/matplotlib"
  export PIP_NO_CACHE_DIR=1 UV_NO_CACHE=1
}

has_uv() { uv --version >/dev/null 2>&1; }

# 0 if $1 runs and is a Python we support; $2 names modules it must have. PATH may hold wrappers that cannot run.
suitable() { "$1" -c "import sys, $2; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))" </dev/null >/dev/null 2>&1; }

find_python() {
  local candidate needs="venv, ensurepip"
  has_uv && needs="venv" # uv makes environments without ensurepip, which Debian packages apart
  while IFS= read -r candidate; do
    suitable "$candidate" "$needs" && say "$candidate" && return
  done < <(type -aP python3.13 python3.12 python3.11 python3 python)
  return 1
}

make_venv() {
  local base
  base="$(find_python)" || fail 1 "needs Python 3.11, 3.12 or 3.13 with its venv module, found none on PATH;" \
    "install one (Debian, Ubuntu: apt install python3 python3-venv; macOS: brew install python@3.12) and run this again"
  say "== Python environment in $VENV"
  local make=("$base" -m venv "$VENV")
  if has_uv; then make=(uv venv --quiet --python "$base" "$VENV"); fi
  run "${make[@]}" || fail 1 "making the environment $VENV failed (above); PLAN_VENV can name another place"
}

check_venv() {
  "$PYTHON" -c "" </dev/null >/dev/null 2>&1 || fail 1 "the environment $VENV does not run; delete it and run this again"
  suitable "$PYTHON" venv || fail 1 "the environment $VENV must hold Python 3.11, 3.12 or 3.13," \
    "got $("$PYTHON" -V 2>&1); delete it or let PLAN_VENV name another"
}

# What $1 asks for: the text of a requirements file, or the one package of an extra in pyproject.toml.
demand_of() {
  case "$1" in
    *.txt) cat "$ROOT/$1" ;;
    *) sed -n "s/^$1 = \\[\"\([^\"]*\)\"\].*/\1/p" "$ROOT/pyproject.toml" ;;
  esac
}

# The copy of what was asked for that is kept in the environment once all of it is installed.
stamp_of() { say "$VENV/.installed-$(printf '%s' "$1" | tr / -)"; }

installed() {
  local name
  for name in "$@"; do
    [[ -f "$(stamp_of "$name")" && "$(<"$(stamp_of "$name")")" == "$(demand_of "$name")" ]] || return 1
  done
}

# Runs an installer with a dot per line of its output, which is shown only if it fails.
with_dots() {
  local log code=0
  log="$(mktemp)"
  "$@" </dev/null 2>&1 | tee "$log" | while read -r _; do printf .; done || code=$?
  say ""
  [[ "$code" == 0 ]] || tail -n 15 "$log" >&2
  rm -f "$log"
  return "$code"
}

pip_install() {
  # An environment made by uv, or one whose making was cut short, has no pip.
  "$PYTHON" -m pip --version >/dev/null 2>&1 || "$PYTHON" -m ensurepip >/dev/null || return
  with_dots "$PYTHON" -m pip install "$@"
}

install_requirements() {
  local name wanted=() size="about 1 GB, a minute or two"
  for name in "$@"; do
    case "$name" in
      *.txt) wanted+=(-r "$ROOT/$name") ;;
      *) wanted+=("$(demand_of "$name")") size="some GB, some minutes" ;;
    esac
  done
  say "== Installing $* ($size)"
  if [[ "$DRY_RUN" == yes ]]; then
    run "$PYTHON" -m pip install "${wanted[@]}"
    return
  fi
  if has_uv && with_dots uv pip install --python "$PYTHON" "${wanted[@]}"; then
    : # done, faster than pip
  else
    # Where uv is there and fails, pip may still work: it has its own settings for indexes, proxies and certificates.
    if has_uv; then say "== uv failed (above); trying pip"; fi
    pip_install "${wanted[@]}" || fail 1 "installing $* failed (the last lines are above);" \
      "check the network and the free space and run this again"
  fi
  # An environment that cannot be written held everything already, or the install would have failed.
  for name in "$@"; do { demand_of "$name" >"$(stamp_of "$name")"; } 2>/dev/null || true; done
}

set_up() {
  isolate
  place_caches
  [[ -e "$PYTHON" || -L "$PYTHON" ]] || make_venv
  [[ "$DRY_RUN" == yes ]] || check_venv
  installed "$@" || install_requirements "$@"
  cd -- "$ROOT"
}
