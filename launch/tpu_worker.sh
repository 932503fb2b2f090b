#!/usr/bin/env bash
# What launch/tpu_vm.sh does on each worker of a TPU: the environment, and training that outlives the connection.
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

JOB="$ROOT/runs/tpu" # this worker's log, and pid, code and stopped, which say how its training stands
PATIENCE=300         # seconds that `stop` leaves training for saving

usage() {
  cat <<TEXT
usage: bash launch/tpu_worker.sh setup | start ARG... | state | follow | stop | --dry-run ARG... | --help

Run by launch/tpu_vm.sh on the workers of a TPU.

  setup       make the virtual environment with JAX for TPU
  start       \`python -m plan_jax train ARG... --coordinator auto\`, detached, with its log in runs/tpu/log
  state       how training stands: none, running, finished, saved (by SIGTERM), stopped (by stop), failed CODE, lost
  follow      the end of the log, then what is added to it until training ends
  stop        SIGTERM, upon which training saves; returns when it has ended
  --dry-run   print the commands of setup and start, run none
  --help      this text

PLAN_VENV names the virtual environment to use or make (default: .venv in the project folder).
TEXT
}

# The images of today's TPUs have Python 3.10.
get_python() {
  say "== Python 3.12, by uv"
  { PIP_BREAK_SYSTEM_PACKAGES=1 python3 -m pip install --quiet --user uv && uv venv --quiet --python 3.12 "$VENV"; } ||
    fail 1 "needs Python 3.11 or later and could not fetch it (above)"
}

setup() {
  export PATH="${HOME:-}/.local/bin:$PATH"
  [[ -e "$PYTHON" ]] || find_python >/dev/null || get_python
  set_up requirements.txt tpu
}

# 0 if the process that `start` left behind is there; after a reboot its number may be another's.
running() {
  local arguments
  [[ -f "$JOB/pid" ]] && arguments="$(ps -ww -o args= -p "$(<"$JOB/pid")" 2>/dev/null)" && [[ "$arguments" == *tpu_worker.sh* ]]
}

# 0 if training, when it last ran, ended before its last step.
saved() {
  awk '/^== training/ {said = 0} /, saved; the same command continues$/ {said = 1} END {exit !said}' "$JOB/log"
}

state() {
  if running; then
    say running
  elif [[ ! -f "$JOB/pid" ]]; then
    say none
  elif [[ ! -f "$JOB/code" ]]; then
    say lost
  elif [[ "$(<"$JOB/code")" != 0 ]]; then
    say "failed $(<"$JOB/code")"
  elif ! saved; then
    say finished
  elif [[ -f "$JOB/stopped" ]]; then
    say stopped
  else
    say saved
  fi
}

start() {
  if running; then fail 1 "training runs already on $(hostname); stop it first"; fi
  mkdir -p "$JOB"
  rm -f "$JOB/pid" "$JOB/code" "$JOB/stopped"
  nohup bash "$ROOT/launch/tpu_worker.sh" train "$@" >>"$JOB/log" 2>&1 </dev/null &
  say "$!" >"$JOB/pid"
  # A process that is about to become another has no arguments for a moment, and would look lost.
  for _ in 1 2 3 4 5 6 7 8 9 10; do
    if running || [[ -f "$JOB/code" ]]; then return; fi
    sleep 0.1
  done
}

# What `start` leaves behind: training, then its exit code. SIGTERM, also that of a shutdown, goes on to training.
train() {
  local child="" code asked=no
  trap 'asked=yes; [[ -z "$child" ]] || kill -TERM "$child" 2>/dev/null || true' TERM
  say "== training"
  cd -- "$ROOT"
  "$PYTHON" -m plan_jax train "$@" --coordinator auto &
  child=$!
  [[ "$asked" == no ]] || kill -TERM "$child"
  while true; do # a signal ends `wait` before training has ended
    asked=no code=0
    wait "$child" || code=$?
    [[ "$asked" == yes ]] || break
  done
  say "$code" >"$JOB/code"
}

stop() {
  running || return 0
  touch "$JOB/stopped"
  kill -TERM "$(<"$JOB/pid")" 2>/dev/null || true
  local began="$SECONDS"
  while running; do
    if ((SECONDS - began > PATIENCE)); then
      say "== did not end in $PATIENCE s on $(hostname); killed, the newest checkpoint is what is left"
      pkill -KILL -P "$(<"$JOB/pid")" || true
      sleep 1
    fi
    sleep 0.2
  done
}

follow() {
  if ! running; then tail -n 20 "$JOB/log" && return; fi
  tail -n 20 -s 0.2 -f --pid="$(<"$JOB/pid")" "$JOB/log"
}

command="${1:---help}"
if [[ $# -gt 0 ]]; then shift; fi
case "$command" in
  setup | start | train | stop | follow) "$command" "$@" ;;
  state) say "state: $(state)" ;;
  --dry-run)
    DRY_RUN=yes
    setup
    run "$PYTHON" -m plan_jax train "$@" --coordinator auto
    ;;
  -h | --help) usage ;;
  *) fail 2 "unknown command '$command'; bash launch/tpu_worker.sh --help lists them" ;;
esac
