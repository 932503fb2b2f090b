#!/usr/bin/env bash
# Pretraining on a TPU of Google Cloud: makes it, starts training on its workers, and comes back after a preemption.
source "$(dirname -- "${BASH_SOURCE[0]}")/setup.sh"

POLL=30           # seconds between two looks at a TPU that is not training
RETRIES=3         # starts in a row after training has failed
LONG=3600         # seconds of training after which failures are counted anew
CONTENTS=(LICENSE README.md configs launch plan_jax pyproject.toml requirements.txt)

usage() {
  cat <<TEXT
usage: bash launch/tpu_vm.sh [COMMAND] --name NAME --zone ZONE [OPTION]... [--config.FIELD=VALUE]... [-- ARG...]

  run         all of it, and what is done without a COMMAND: create (unless it is there), setup, start, follow; run
              again, it goes on where it stands
  create      make the TPU
  setup       copy the project to ~/plan_jax of all workers and make its environment there
  start       start training on all workers; it outlives the connection
  follow      show the log of worker 0; when the TPU is preempted, delete it, then create, setup, start, follow anew,
              until training has finished
  status      what state the TPU and its training are in
  stop        SIGTERM to training, which saves
  delete      delete the TPU

  --name NAME         of the TPU (with --spot also of the request for it)
  --zone ZONE
  --project PROJECT   (default: that of gcloud's configuration)
  --type TYPE         its accelerator type and size, for example v5litepod-16: for run, create, follow
  --version VERSION   its software, for example v2-alpha-tpuv5-lite: for run, create, follow
  --spot              a cheaper one that can be preempted, by a queued request
  --create-flag FLAG  goes to gcloud's create, for example --create-flag --network=NETWORK; may be repeated
  --prepare COMMAND   shell command for each worker, part of setup, which mounts what --workdir and --data are on;
                      it must do no harm when it is run again
  --config FILE       a file of configs/ (default: configs/plan_r50.py)
  --workdir DIR       the run directory, an absolute path that all workers see and that outlives them: Filestore, or a
                      mounted bucket; for run, start, follow
  --data DIR          a folder that \`build\` wrote, absolute as well
  --config.FIELD=VALUE, -- ARG...
                      go to \`python -m plan_jax train\`
  --poll SECONDS      between two looks at a TPU that is not training (default: $POLL)
  --dry-run           print the commands, run none; what is not given stands in them in capitals
  --help              this text

Example: Filestore, a TPU of 16 chips that may be preempted, until training has finished. It comes back only as long as
this command runs, so run it in tmux on a machine that stays; Ctrl-C ends the following, not the training.

  bash launch/tpu_vm.sh run --name plan --zone ZONE --type v5litepod-16 --version v2-alpha-tpuv5-lite --spot \\
    --prepare 'mountpoint -q /mnt/plan || { sudo apt-get install -y nfs-common && sudo mkdir -p /mnt/plan &&
      sudo mount ADDRESS:/SHARE /mnt/plan; }' \\
    --workdir /mnt/plan/runs/first --data /mnt/plan/mimic_cxr --config.train.steps=100000
TEXT
}

name="" zone="" project="" type="" version="" spot=no prepare="" config=configs/plan_r50.py workdir="" data=""
flags=() fields=() others=() command="${1:---help}"
case "$command" in
  -h | --help) ;;
  --*) set -- run "$@" && command=run ;;
esac
case "$command" in
  run | create | setup | start | follow | status | stop | delete) shift ;;
  -h | --help) usage && exit 0 ;;
  *) fail 2 "unknown command '$command'; bash launch/tpu_vm.sh --help lists them" ;;
esac
while [[ $# -gt 0 ]]; do
  case "$1" in
    --config.*) fields+=("$1") ;;
    --name) valued "$1" "${2:-}" "a name" && name="$2" && shift ;;
    --zone) valued "$1" "${2:-}" "a zone" && zone="$2" && shift ;;
    --project) valued "$1" "${2:-}" "a project" && project="$2" && shift ;;
    --type) valued "$1" "${2:-}" "an accelerator type" && type="$2" && shift ;;
    --version) valued "$1" "${2:-}" "a software version" && version="$2" && shift ;;
    --spot) spot=yes ;;
    --create-flag) valued "$1" "${2:-}" "a flag of gcloud" && flags+=("$2") && shift ;;
    --prepare) valued "$1" "${2:-}" "a shell command" && prepare="$2" && shift ;;
    --config) valued "$1" "${2:-}" "a file" && config="$2" && shift ;;
    --workdir) valued "$1" "${2:-}" "a folder" && workdir="$2" && shift ;;
    --data) valued "$1" "${2:-}" "a folder" && data="$2" && shift ;;
    --poll) valued "$1" "${2:-}" "seconds" && POLL="$2" && shift ;;
    --dry-run) DRY_RUN=yes ;;
    -h | --help) usage && exit 0 ;;
    --) shift && others=("$@") && break ;;
    *) fail 2 "unknown option '$1'; bash launch/tpu_vm.sh --help lists the options" ;;
  esac
  shift
done
if [[ "$DRY_RUN" == yes ]]; then
  name="${name:-NAME}" zone="${zone:-ZONE}" type="${type:-TYPE}" version="${version:-VERSION}"
  workdir="${workdir:-/WORKDIR}"
fi
[[ -n "$name" && -n "$zone" ]] || fail 2 "$command needs --name and --zone"
case "$command" in run | create | follow)
  [[ -n "$type" && -n "$version" ]] || fail 2 "$command needs --type and --version, for example v5litepod-16 and" \
    "v2-alpha-tpuv5-lite; gcloud compute tpus accelerator-types list --zone=$zone names them"
esac
case "$command" in run | start | follow)
  [[ "$workdir" == /* && "${data:-/}" == /* ]] || fail 2 "--workdir and --data must be absolute paths on the workers," \
    "got '$workdir' and '$data'"
  [[ -f "$ROOT/${config%%:*}" ]] || fail 2 "--config must be a file of the project, as configs/plan_r50.py," \
    "got '$config'"
esac
[[ "$DRY_RUN" == yes ]] || command -v gcloud >/dev/null || fail 1 "needs gcloud, found none on PATH;" \
  "install it (https://cloud.google.com/sdk/docs/install) and run gcloud auth login"

where=("--zone=$zone") kept_alive=(--ssh-flag=-oServerAliveInterval=30 --ssh-flag=-oServerAliveCountMax=4)
if [[ -n "$project" ]]; then where+=("--project=$project"); fi
train=(--config "$config" --workdir "$workdir" ${fields[@]+"${fields[@]}"})
if [[ -n "$data" ]]; then train+=(--config.data.dir="$data"); fi

pause() { sleep "$POLL"; }
tpu() { run gcloud --quiet compute tpus "$@" "${where[@]}" </dev/null; }

# Runs shell command $2 on worker $1, a number or `all`; on_worker the same for a command of launch/tpu_worker.sh.
shell_on() { tpu tpu-vm ssh "$name" --worker="$1" --command="$2" "${kept_alive[@]}"; }
on_worker() {
  local worker="$1" words
  shift
  printf -v words ' %q' "$@"
  shell_on "$worker" "bash plan_jax/launch/tpu_worker.sh$words"
}

# The state of TPU $name, or of the request for it where there is no TPU; MISSING; UNKNOWN if gcloud cannot say.
state_of() {
  local kind="$1" said
  if said="$(tpu "$kind" describe "$name" --format="value($2)" 2>&1)"; then
    say "${said##*$'\n'}" # warnings stand before it
  elif [[ "$said" == *NOT_FOUND* ]]; then
    say MISSING
  else
    say "$said" >&2
    say UNKNOWN
  fi
}
tpu_state() {
  local state
  state="$(state_of tpu-vm state)"
  if [[ "$state" == MISSING && "$spot" == yes ]]; then state="$(state_of queued-resources state.state)"; fi
  say "$state"
}

# How training stands on worker 0, a word of launch/tpu_worker.sh; `unreachable` if it does not answer.
training_state() {
  local said
  said="$(shell_on 0 "test ! -f plan_jax/launch/tpu_worker.sh || bash plan_jax/launch/tpu_worker.sh state")" ||
    { say unreachable && return; }
  said="$(sed -n 's/^state: //p' <<<"$said")"
  say "${said:-none}"
}

create() {
  say "== making TPU $name, $type"
  if [[ "$spot" == no ]]; then
    tpu tpu-vm create "$name" --accelerator-type="$type" --version="$version" ${flags[@]+"${flags[@]}"}
    return
  fi
  tpu queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$version" --spot \
    ${flags[@]+"${flags[@]}"} || return
  [[ "$DRY_RUN" == no ]] || { tpu queued-resources describe "$name" --format="value(state.state)" && return; }
  local state
  while true; do
    state="$(state_of queued-resources state.state)"
    say "== the request for $name: $state, after $((SECONDS / 60)) min"
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPENDED | MISSING) return 1 ;;
    esac
    pause
  done
}

delete() {
  say "== deleting TPU $name"
  if [[ "$spot" == yes ]]; then tpu queued-resources delete "$name" --force; else tpu tpu-vm delete "$name"; fi
}

setup() {
  local folder attempt
  say "== copying the project to all workers"
  folder="${TMPDIR:-/tmp}/plan_jax-$name-$$" # a name that a dry run can print
  run mkdir -m 700 "$folder" || return
  COPYFILE_DISABLE=1 run tar -czf "$folder/plan_jax.tgz" --exclude=__pycache__ -C "$ROOT" "${CONTENTS[@]}" || return
  # A worker that was made just before may not answer yet.
  for attempt in 1 2 3 4 5; do
    if tpu tpu-vm scp "$folder/plan_jax.tgz" "$name:plan_jax.tgz" --worker=all; then break; fi
    [[ "$attempt" -lt 5 ]] || return
    pause
  done
  run rm -rf "$folder"
  shell_on all "mkdir -p plan_jax && tar -xzf plan_jax.tgz -C plan_jax" || return
  if [[ -n "$prepare" ]]; then shell_on all "$prepare" || return; fi
  say "== environment on all workers"
  on_worker all setup
}

start() {
  say "== starting training on all workers"
  on_worker all start "${train[@]}" ${others[@]+"${others[@]}"}
}
stop() { on_worker all stop; }
again() { setup && stop && start; } # stop: what is left of a run that broke off would hold the chips

# The TPU is gone: another one like it, however long that takes. What it wrote into --workdir is still there.
come_back() {
  until { delete || true && create; }; do pause; done
  setup && start
}

# Starts training again that has ended in state $1; ends all where that has not helped RETRIES times (see follow).
restart() {
  say "== training on $name: $1"
  if [[ "$1" == failed* ]]; then
    on_worker 0 follow || true
    ((++failures <= RETRIES)) || fail 1 "training failed $failures times in a row; its log is above"
  fi
  again || say "== could not start training; looking again in $POLL s"
}

follow() {
  local failures=0 looks=0 vm training began
  while true; do
    vm="$(tpu_state)" training=""
    if [[ "$vm" == READY ]]; then training="$(training_state)"; fi
    case "$vm/$training" in
      READY/running)
        began="$SECONDS" looks=0
        on_worker 0 follow || pause
        ((SECONDS - began < LONG)) || failures=0
        ;;
      READY/finished | READY/stopped | "READY/failed 2")
        on_worker 0 follow || true
        [[ "$training" != failed* ]] || fail 2 "training refused its call or its input; its log is above"
        say "== training on $name: $training" && return
        ;;
      READY/none | READY/lost | READY/saved | READY/failed*)
        # Training may have ended because a preemption is on its way, which the TPU's state shows a little later.
        if ((++looks < 3)); then pause; else looks=0 && restart "$training"; fi
        ;;
      PREEMPTED/ | TERMINATED/ | SUSPENDED/ | FAILED/)
        say "== TPU $name: $vm"
        come_back || pause
        looks=0 failures=0
        ;;
      MISSING/) fail 1 "TPU $name was deleted; bash launch/tpu_vm.sh run makes it anew and continues" ;;
      *) say "== TPU $name: $vm $training; looking again in $POLL s" && pause ;;
    esac
  done
}

run_all() {
  case "$(tpu_state)" in
    MISSING) { create && setup && start; } || fail 1 "starting on a new TPU $name failed (above)" ;;
    READY) [[ "$(training_state)" == running ]] || again || fail 1 "starting training on $name failed (above)" ;;
  esac
  follow
}

status() { say "TPU $name: $(tpu_state)" && say "training: $(training_state)"; }

print_following() {
  say "== then, again and again, until training has finished"
  tpu tpu-vm describe "$name" --format="value(state)"
  on_worker 0 state
  on_worker 0 follow
  say "== and whenever the TPU is preempted"
  come_back
}

if [[ "$DRY_RUN" == yes ]]; then
  case "$command" in
    run) create && setup && start && print_following ;;
    follow) print_following ;;
    status) tpu tpu-vm describe "$name" --format="value(state)" && on_worker 0 state ;;
    *) "$command" ;;
  esac
elif [[ "$command" == run ]]; then
  run_all
else
  "$command" || fail 1 "$command failed (above)"
fi
