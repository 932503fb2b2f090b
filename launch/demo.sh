#!/usr/bin/env bash
# Set-up and main job: makes phantoms, trains on them, evaluates, writes tables and a gallery of maps.
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

CONFIG=configs/phantom.py
QUICK_SIZE=400  # records, --quick
QUICK_STEPS=60  # training steps, --quick
FULL_SIZE=      # records; empty: what `build phantom` makes by itself
FULL_STEPS=     # training steps; empty: what the config says

usage() {
  cat <<TEXT
usage: bash launch/demo.sh [--quick] [--out DIR] [--dry-run] [--help]

Makes a virtual environment, then synthetic radiographs with reports (phantoms), trains on them, measures grounding,
retrieval and zero-shot classification, and writes tables and a gallery. Run again, it goes on where it stopped.

  --quick     few records and few steps: shows that everything works, not what the method can do
  --out DIR   where everything is written (default: runs/demo, with --quick runs/demo_quick)
  --dry-run   print the commands, run none
  --help      this text

PLAN_VENV names the virtual environment to use or make (default: .venv in the project folder).
TEXT
}

out="" name=demo size="$FULL_SIZE" steps="$FULL_STEPS"
while [[ $# -gt 0 ]]; do
  case "$1" in
    --quick) name=demo_quick size="$QUICK_SIZE" steps="$QUICK_STEPS" ;;
    --out) valued "$1" "${2:-}" "a folder" && out="$2" && shift ;;
    --out=?*) out="${1#--out=}" ;;
    --dry-run) DRY_RUN=yes ;;
    -h | --help) usage && exit 0 ;;
    *) fail 2 "unknown option '$1'; bash launch/demo.sh --help lists the options" ;;
  esac
  shift
done
out="$(absolute "${out:-$ROOT/runs/$name}")"

build=(build phantom --out "$out/data")
train=(train --config "$CONFIG" --workdir "$out" --config.data.dir="$out/data")
if [[ -n "$size" ]]; then build+=(--size "$size"); fi
if [[ -n "$steps" ]]; then train+=(--config.train.steps="$steps"); fi

set_up requirements.txt
stage "1/4 phantoms" "$PYTHON" -m plan_jax "${build[@]}"
stage "2/4 training" "$PYTHON" -m plan_jax "${train[@]}"
stage "3/4 evaluation on held-out phantoms" \
  "$PYTHON" -m plan_jax evaluate grounding retrieval zero_shot --workdir "$out" --reuse --quiet
stage "4/4 tables" "$PYTHON" -m plan_jax tables "$out"
say "== Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Results: $out/results  Gallery: $out/gallery.html"
