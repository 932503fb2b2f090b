#!/usr/bin/env bash
# Pretraining on all GPUs of one machine, of several machines, or of the nodes of a SLURM job.
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

# Overlaps communication with computation; from "GPU performance tips" of JAX's documentation.
GPU_FLAGS=--xla_gpu_enable_latency_hiding_scheduler=true
# Prints the numbers of this machine's GPUs as 0,1,2; fails if there are none.
LIST_GPUS="import jax; n = sum(d.platform == 'gpu' for d in jax.devices()); print(*range(n), sep=','); exit(not n)"

usage() {
  cat <<TEXT
usage: bash launch/gpu.sh [--config FILE] [--workdir DIR] [--data DIR] [--config.FIELD=VALUE]... [OPTION]... [-- ARG...]

Makes a virtual environment with JAX for CUDA, sees that JAX finds the GPUs, and pretrains on all of them. SIGTERM and
Ctrl-C save and stop; the same command continues there. With --slurm it is a job in SLURM's queue; inside a SLURM
allocation it trains on all its nodes.

  --config FILE       the configuration (default: configs/plan_r50.py)
  --workdir DIR       the run directory, which all machines must see (default: runs/ and the configuration's name)
  --data DIR          a folder that \`build\` wrote (default: what the configuration says)
  --config.FIELD=VALUE, -- ARG...
                      go to \`python -m plan_jax train\`, for example -- --profile 100:5
  --slurm             submit launch/slurm.sbatch; the environment is made here, where there is a network
    --nodes N         nodes, each one process with all its GPUs (default: 1)
    --gpus N          GPUs of each node (default: what launch/slurm.sbatch says)
    --partition NAME  the queue (default: the cluster's)
    --time TIME       after which it saves and queues again, as D-HH:MM:SS (default: what launch/slurm.sbatch says)
  --coordinator HOST:PORT --process I/N
                      several machines without SLURM: run this on each, with I from 0 to N - 1; HOST is that of I = 0
  --coordinator auto  as a task that srun has started
  --dry-run           print the commands, run none
  --help              this text

An account or a quality of service are named by SLURM's own variables: SBATCH_ACCOUNT, SBATCH_QOS.
PLAN_VENV names the virtual environment to use or make (default: .venv in the project folder).
XLA_FLAGS is added to the flag that is set here.
TEXT
}

config=configs/plan_r50.py workdir="" data="" slurm=no coordinator="" process=""
batch=() fields=() others=()
while [[ $# -gt 0 ]]; do
  case "$1" in
    --config.*) fields+=("$1") ;;
    --config) valued "$1" "${2:-}" "a file" && config="$2" && shift ;;
    --workdir) valued "$1" "${2:-}" "a folder" && workdir="$2" && shift ;;
    --data) valued "$1" "${2:-}" "a folder" && data="$2" && shift ;;
    --slurm) slurm=yes ;;
    --nodes) valued "$1" "${2:-}" "a number" && batch+=("--nodes=$2") && shift ;;
    --gpus) valued "$1" "${2:-}" "a number" && batch+=("--gpus-per-node=$2") && shift ;;
    --partition) valued "$1" "${2:-}" "a name" && batch+=("--partition=$2") && shift ;;
    --time) valued "$1" "${2:-}" "a time" && batch+=("--time=$2") && shift ;;
    --coordinator) valued "$1" "${2:-}" "HOST:PORT or auto" && coordinator="$2" && shift ;;
    --process) valued "$1" "${2:-}" "I/N" && process="$2" && shift ;;
    --dry-run) DRY_RUN=yes ;;
    -h | --help) usage && exit 0 ;;
    --) shift && others=("$@") && break ;;
    *) fail 2 "unknown option '$1'; bash launch/gpu.sh --help lists the options" ;;
  esac
  shift
done
if [[ "$slurm" == no && ${#batch[@]} -gt 0 ]]; then fail 2 "${batch[0]%%=*} must come with --slurm"; fi
if [[ "$slurm" == yes && -n "$coordinator$process" ]]; then
  fail 2 "--slurm must stand without --coordinator and --process, which SLURM sets"
fi
case "$coordinator/$process" in
  / | auto/ | ?*:[0-9]*/[0-9]*/[0-9]*) ;;
  *) fail 2 "--coordinator must be auto, or HOST:PORT with --process I/N, got '$coordinator' and '$process'" ;;
esac

name="${config%%:*}" && name="${name##*/}"
workdir="$(absolute "${workdir:-$ROOT/runs/${name%.py}}")"
train=(--config "$(config_path "$config")" --workdir "$workdir" ${fields[@]+"${fields[@]}"})
if [[ -n "$data" ]]; then train+=(--config.data.dir="$(absolute "$data")"); fi
call=("${train[@]}") # what this script is called with on the nodes
if [[ ${#others[@]} -gt 0 ]]; then call+=(-- "${others[@]}"); fi

submit() {
  set_up requirements.txt cuda
  run mkdir -p "$workdir"
  stage "submitting to SLURM; its log: $workdir/slurm-JOB.log" sbatch --chdir="$ROOT" \
    --output="$workdir/slurm-%j.log" ${batch[@]+"${batch[@]}"} "$ROOT/launch/slurm.sbatch" "${call[@]}"
}

find_gpus() {
  if [[ "$DRY_RUN" == yes ]]; then
    run "$PYTHON" -c "$LIST_GPUS"
    return
  fi
  local numbers
  numbers="$("$PYTHON" -c "$LIST_GPUS")" || fail 1 "JAX must see a GPU, got none on $(hostname), where nvidia-smi" \
    "does; CUDA 13 needs a driver of version 580 or later, and CUDA_VISIBLE_DEVICES and JAX_PLATFORMS must not hide GPUs"
  # Under SLURM, JAX would otherwise give a process one GPU: its own number among the node's processes.
  export JAX_LOCAL_DEVICE_IDS="$numbers"
  say "== GPUs $numbers of $(hostname)"
}

train_here() {
  stage "GPUs of this machine" nvidia-smi --list-gpus
  set_up requirements.txt cuda
  find_gpus
  run export XLA_FLAGS="$GPU_FLAGS${XLA_FLAGS:+ $XLA_FLAGS}"
  if [[ -n "$coordinator" ]]; then train+=(--coordinator "$coordinator"); fi
  if [[ -n "$process" ]]; then train+=(--process "$process"); fi
  say "== training into $workdir"
  run exec "$PYTHON" -m plan_jax train "${train[@]}" ${others[@]+"${others[@]}"}
}

if [[ "$slurm" == yes ]]; then
  submit
elif [[ -n "${SLURM_JOB_ID:-}" && -z "$coordinator" ]]; then
  dry=()
  if [[ "$DRY_RUN" == yes ]]; then dry=(--dry-run); fi
  exec bash "$ROOT/launch/slurm.sbatch" ${dry[@]+"${dry[@]}"} "${call[@]}"
else
  train_here
fi
