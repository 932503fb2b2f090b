#!/usr/bin/env bash
# Everything that the tables say: pretraining, all tasks, the ablation, significance, tables and figure pages.
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

PHANTOM_CONFIG=configs/phantom.py
FULL_SIZE=                              # phantoms; empty: what `build phantom` makes by itself
FULL_STEPS=                             # of pretraining; empty: what the config says
FULL_ARMS=default,plan,static,global_only
FULL_ARM_STEPS=800 FULL_SEEDS=2
QUICK_SIZE=400 QUICK_STEPS=40           # --quick
QUICK_ARMS=default,plan
QUICK_ARM_STEPS=20 QUICK_SEEDS=1
QUICK_SCORING=(--config.evaluation.bootstrap=100 --config.detection.epochs=1)

usage() {
  cat <<TEXT
usage: bash launch/reproduce.sh [--quick] [--out DIR] [--train-data NAME=DIR --config FILE] [--data NAME=DIR]...
                                [--no-ablation] [--dry-run] [--help]

Makes a virtual environment, pretrains, scores all tasks, runs the ablation, and writes tables and a figure page.
Without real data everything is done on synthetic radiographs (phantoms). Run again, it goes on where it stopped, and
what is finished is not done again.

  --quick             few records and few steps: shows that everything works, not what the method can do
  --out DIR           where everything is written (default: runs/reproduce, with --quick runs/reproduce_quick)
  --train-data NAME=DIR
                      pretrain on this folder, which \`build NAME\` wrote, instead of on phantoms
  --config FILE       its configuration, for example configs/plan_r50.py (default: $PHANTOM_CONFIG)
  --data NAME=DIR     also score the tasks of data set NAME, which \`build NAME\` wrote; may be repeated
  --no-ablation       leave out the ablation, which is always on phantoms
  --dry-run           print the commands, run none
  --help              this text

The tasks of a NAME: ms_cxr grounding; nih_cxr14 grounding, zero-shot, probe; chexpert_5x200 retrieval, zero-shot;
rsna zero-shot, detection, probe; siim, covidx, chexpert zero-shot, probe; object_cxr detection; mimic_cxr, openi,
covid_cxr retrieval; phantom all five.

PLAN_VENV names the virtual environment to use or make (default: .venv in the project folder).
TEXT
}

# The tasks that data set $1 has what it takes for.
tasks_of() {
  case "$1" in
    phantom) say "grounding retrieval zero_shot detection linear_probe" ;;
    ms_cxr) say "grounding" ;;
    nih_cxr14) say "grounding zero_shot linear_probe" ;;
    chexpert_5x200) say "retrieval zero_shot" ;;
    rsna) say "zero_shot detection linear_probe" ;;
    siim | covidx | chexpert) say "zero_shot linear_probe" ;;
    object_cxr) say "detection" ;;
    mimic_cxr | openi | covid_cxr) say "retrieval" ;;
    *) fail 2 "NAME of a data set must be one that build knows, got '$1'; --help lists them" ;;
  esac
}

# Refuses $2, the value of option $1, unless it reads NAME=DIR.
check_named() {
  case "$2" in
    ?*=?*) tasks_of "${2%%=*}" >/dev/null ;;
    *) fail 2 "$1 must be followed by NAME=DIR, got '$2'" ;;
  esac
}

out="" name=reproduce size="$FULL_SIZE" steps="$FULL_STEPS" config="$PHANTOM_CONFIG" train_data="" ablation=yes
arms="$FULL_ARMS" arm_steps="$FULL_ARM_STEPS" seeds="$FULL_SEEDS"
scoring=(--reuse --quiet) sets=() pages=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --quick)
      name=reproduce_quick size="$QUICK_SIZE" steps="$QUICK_STEPS"
      arms="$QUICK_ARMS" arm_steps="$QUICK_ARM_STEPS" seeds="$QUICK_SEEDS"
      scoring=(--reuse --quiet "${QUICK_SCORING[@]}")
      ;;
    --out) valued "$1" "${2:-}" "a folder" && out="$2" && shift ;;
    --config) valued "$1" "${2:-}" "a file" && config="$2" && shift ;;
    --train-data) check_named "$1" "${2:-}" && train_data="$2" && shift ;;
    --data) check_named "$1" "${2:-}" && sets+=("$2") && shift ;;
    --no-ablation) ablation=no ;;
    --dry-run) DRY_RUN=yes ;;
    -h | --help) usage && exit 0 ;;
    *) fail 2 "unknown option '$1'; bash launch/reproduce.sh --help lists the options" ;;
  esac
  shift
done
out="$(absolute "${out:-$ROOT/runs/$name}")"
phantoms="$out/phantoms" run="$out/run" arms_out="$out/ablation"
train_name=phantom train_dir="$phantoms"
config="$(config_path "$config")"
if [[ -n "$train_data" ]]; then train_name="${train_data%%=*}" train_dir="$(absolute "${train_data#*=}")"; fi

build=(build phantom --out "$phantoms")
train=(train --config "$config" --workdir "$run" --config.data.dir="$train_dir")
ablate=(ablate --config "$PHANTOM_CONFIG" --arms "$arms" --seeds "$seeds" --out "$arms_out"
  --config.data.dir="$phantoms" --config.train.steps="$arm_steps")
if [[ -n "$size" ]]; then build+=(--size "$size"); fi
if [[ -n "$steps" ]]; then train+=(--config.train.steps="$steps"); fi

# Scores data set $1, built in $2, on its tasks, and draws what grounding found.
score() {
  local tasks
  read -ra tasks <<<"$(tasks_of "$1")"
  stage "scoring on $1: ${tasks[*]}" \
    "$PYTHON" -m plan_jax evaluate "${tasks[@]}" --workdir "$run" --data "$2" "${scoring[@]}"
  [[ "${tasks[0]}" == grounding ]] || return 0
  stage "figures of $1" "$PYTHON" -m plan_jax figures --workdir "$run" --data "$2" --out "$run/figures_$1.html"
  pages+=("$run/figures_$1.html")
}

# The folders are the caller's: they are made absolute before set_up changes to the project's.
for number in ${sets[@]+"${!sets[@]}"}; do
  sets[number]="${sets[number]%%=*}=$(absolute "${sets[number]#*=}")"
done
set_up requirements.txt
if [[ -z "$train_data" || "$ablation" == yes ]]; then stage "phantoms" "$PYTHON" -m plan_jax "${build[@]}"; fi
stage "pretraining on $train_name" "$PYTHON" -m plan_jax "${train[@]}"
score "$train_name" "$train_dir"
for set in ${sets[@]+"${sets[@]}"}; do score "${set%%=*}" "${set#*=}"; done

if [[ "$ablation" == yes ]]; then
  first="$arms_out/runs/${arms%%,*}/seed_0" last="$arms_out/runs/${arms##*,}/seed_0"
  stage "ablation: $arms" "$PYTHON" -m plan_jax "${ablate[@]}"
  stage "difference between two arms" "$PYTHON" -m plan_jax tables "$first" "$last" --compare
  stage "figures of an arm with refinement rounds" "$PYTHON" -m plan_jax figures --workdir "$arms_out/runs/plan/seed_0"
  pages+=("$arms_out/runs/plan/seed_0/figures.html")
fi
stage "tables" "$PYTHON" -m plan_jax tables "$run"
say "== Done in $((SECONDS / 60)) min $((SECONDS % 60)) s. Results: $run/results  Figures: ${pages[*]-}"
