"""Training on a TPU of Google Cloud: launch/tpu_vm.sh runs for real, against a fake cloud with one worker."""

import shlex
import sys

import pytest
from shell import FINISHED, LAUNCH, World, dry_run, plan_commands

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="workers of a TPU run Linux")

TPU = ["--name", "t", "--zone", "z", "--type", "v5litepod-16", "--version", "v2-alpha-tpuv5-lite"]
# A cloud with one worker: $CLOUD/worker is its home, $CLOUD/state the state of its TPU.
GCLOUD = """
for word in "$@"; do
  case "$word" in --command=*) command="${word#--command=}" ;; --format=*) format="$word" ;; esac
done
case "$5/$4" in
  create/*) mkdir -p "$CLOUD/worker" && echo READY >"$CLOUD/state" ;;
  delete/*) rm -rf "$CLOUD/state" "$CLOUD/worker" ;;
  describe/*)
    [[ -f "$CLOUD/state" ]] || { echo "ERROR: NOT_FOUND: Resource 't' was not found" >&2 && exit 1; }
    if [[ "$format" == *state.state* ]]; then echo ACTIVE; else cat "$CLOUD/state"; fi ;;
  scp/*) cp "$6" "$CLOUD/worker/${7#*:}" ;;
  ssh/*) [[ "$(<"$CLOUD/state")" == READY ]] && cd "$CLOUD/worker" && bash -c "$command" ;;
  *) exit 9 ;;
esac
"""


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_a_tpu_that_is_preempted_is_made_anew_and_training_continues_there(world):
    world.add("gcloud", GCLOUD)
    # The first training loses its TPU; the next one, on another, finishes.
    world.training(
        'echo step 1; cd "$CLOUD"; if [[ ! -f once ]]; then touch once; sleep 0.3; echo PREEMPTED >state; exit 1; fi; '
        f'echo "{FINISHED}"'
    )
    options = shlex.split("--spot --project p --workdir '/shared/a b' --data /shared/d --prepare 'touch mounted'")
    done = world.run(LAUNCH / "tpu_vm.sh", "run", *TPU, *options, "--poll", "0.1", "--config.seed=1")
    assert done.returncode == 0, done.stdout + done.stderr
    changes = [words[4:6] for words in world.calls("gcloud") if words[5] in ("create", "delete")]
    assert changes == [["queued-resources", done] for done in ("create", "delete", "create")]
    (delete,) = [words for words in world.calls("gcloud") if words[5] == "delete"]
    assert "--force" in delete, "without it a request is not deleted that still has its TPU"
    assert {"--zone=z", "--project=p"} <= set(world.calls("gcloud")[0])
    called = ["--config", "configs/plan_r50.py", "--workdir", "/shared/a b", "--config.seed=1"]
    assert world.trainings() == [[*called, "--config.data.dir=/shared/d", "--coordinator", "auto"]] * 2
    assert done.stdout.splitlines()[-1] == "== training on t: finished"
    assert "step 1" in done.stdout
    worker = world.folder / "cloud" / "worker"
    assert (worker / "mounted").exists()
    assert sorted(path.name for path in (worker / "plan_jax").iterdir()) == sorted(
        [*("LICENSE", "README.md", "configs", "launch", "plan_jax", "pyproject.toml", "requirements.txt"), "runs"]
    )
    assert not list(world.folder.glob("plan_jax-*")), "the copy to send is removed"


def test_a_tpu_that_stays_gets_training_that_broke_off_again_but_not_without_end(world):
    world.add("gcloud", GCLOUD)
    world.training("echo cannot read; exit 1")
    done = world.run(LAUNCH / "tpu_vm.sh", *TPU, "--workdir", "/r", "--poll", "0.02")
    assert done.returncode == 1
    assert "failed 4 times in a row" in done.stderr
    assert "cannot read" in done.stdout, "the end of the log is shown"
    assert len(world.trainings()) == 4
    world.training("exit 2")
    done = world.run(LAUNCH / "tpu_vm.sh", "run", *TPU, "--workdir", "/r", "--poll", "0.02")
    assert done.returncode == 2
    assert len(world.trainings()) == 5


def test_training_on_a_tpu_is_stopped_with_a_checkpoint_and_deleted_tpus_stay_deleted(world):
    world.add("gcloud", GCLOUD)
    world.until_term()
    tpu_vm, where = LAUNCH / "tpu_vm.sh", TPU[:4]
    for command in (["create", *TPU], ["setup", *where], ["start", *where, "--workdir", "/r"]):
        done = world.run(tpu_vm, *command)
        assert done.returncode == 0, done.stderr
    assert world.run(tpu_vm, "status", *where).stdout.splitlines() == ["TPU t: READY", "training: running"]
    again = world.run(tpu_vm, "start", *where, "--workdir", "/r")
    assert (again.returncode, "runs already" in again.stderr) == (1, True)
    world.pid_of_training()
    assert world.run(tpu_vm, "stop", *where).returncode == 0
    assert world.run(tpu_vm, "status", *where).stdout.splitlines()[-1] == "training: stopped"
    followed = world.run(tpu_vm, "follow", *TPU, "--workdir", "/r")
    assert (followed.returncode, len(world.trainings())) == (0, 1)
    assert world.run(tpu_vm, "delete", *where).returncode == 0
    gone = world.run(tpu_vm, "follow", *TPU, "--workdir", "/r")
    assert (gone.returncode, "was deleted" in gone.stderr) == (1, True)


def test_a_dry_run_for_a_tpu_prints_the_whole_flow_of_gcloud():
    commands = dry_run(
        LAUNCH / "tpu_vm.sh", *TPU, "--spot", "--workdir", "/r", "--prepare", "sudo mount it", "--", "-x"
    )
    flow = [words for words in commands if words[0] == "gcloud"]
    assert {tuple(words[:4]) for words in flow} == {("gcloud", "--quiet", "compute", "tpus")}
    said = [words[5] for words in flow]
    once = ["create", "describe", "scp", "ssh", "ssh", "ssh", "ssh"]
    assert said == [*once, "describe", "ssh", "ssh", "delete", *once]
    remote = [shlex.split(words[8].removeprefix("--command=")) for words in flow if words[5] == "ssh"]
    assert ["sudo", "mount", "it"] in remote
    start = [
        "bash",
        "plan_jax/launch/tpu_worker.sh",
        "start",
        "--config",
        "configs/plan_r50.py",
        "--workdir",
        "/r",
        "-x",
    ]
    assert remote.count(start) == 2
    assert plan_commands(commands) == []
