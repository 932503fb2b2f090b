"""Training on GPUs, also under SLURM: the scripts run for real, against fakes of the programs that they call."""

import datetime
import os
import shutil
import signal
import subprocess
import sys

import pytest
from shell import FINISHED, LAUNCH, ROOT, World, dry_run

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nodes with GPUs run Linux")

# Runs the rest of its arguments, as srun does on one node.
SRUN = 'while [[ "$1" != bash ]]; do shift; done; exec "$@"'


@pytest.fixture
def world(tmp_path):
    return World(tmp_path)


def test_gpus_are_found_and_trained_on_by_one_process_that_gets_signals_itself(world):
    world.add("nvidia-smi", "")
    world.training(f'echo "$JAX_LOCAL_DEVICE_IDS $XLA_FLAGS"; echo "{FINISHED}"; exit 3')
    options = ["--workdir", "r", "--data", "d", "--config.seed=1", "--config.text=a b", "--", "--profile", "5:2"]
    done = world.run(LAUNCH / "gpu.sh", *options, cwd=world.folder, XLA_FLAGS="--xla_mine=1")
    assert done.returncode == 3
    assert done.stdout.splitlines()[-2:] == [
        "0,1,2,3 --xla_gpu_enable_latency_hiding_scheduler=true --xla_mine=1",
        FINISHED,
    ]
    here = world.folder
    called = ["--config", "configs/plan_r50.py", "--workdir", f"{here}/r", "--config.seed=1", "--config.text=a b"]
    assert world.trainings() == [[*called, f"--config.data.dir={here}/d", "--profile", "5:2"]]


def test_a_machine_without_a_driver_or_without_gpus_for_jax_is_told_so(world):
    world.add("nvidia-smi", "exit 9")
    done = world.run(LAUNCH / "gpu.sh")
    assert (done.returncode, world.trainings()) == (9, [])
    assert "GPUs of this machine" in done.stderr
    world.add("nvidia-smi", "")
    world.add(world.folder / "env" / "bin" / "python", 'case "$2" in *gpu*) exit 1 ;; esac')
    done = world.run(LAUNCH / "gpu.sh")
    assert (done.returncode, world.trainings()) == (1, [])
    assert "JAX must see a GPU" in done.stderr


def test_machines_without_slurm_are_told_of_each_other():
    (command,) = [
        words[4:]
        for words in dry_run(LAUNCH / "gpu.sh", "--coordinator", "first:1234", "--process", "1/2")
        if words[0] == "exec"
    ]
    assert command[-4:] == ["--coordinator", "first:1234", "--process", "1/2"]


def test_slurm_is_asked_for_whole_nodes_with_the_callers_paths(world):
    world.add("sbatch", "")
    options = ["--slurm", "--nodes", "2", "--gpus", "4", "--time", "12:00:00", "--partition", "p", "--workdir", "r"]
    done = world.run(LAUNCH / "gpu.sh", *options, "--config.seed=1", "--", "--profile", "5:2", cwd=world.folder)
    assert done.returncode == 0, done.stderr
    ((_, *asked),) = world.calls("sbatch")
    script = asked.index(f"{ROOT}/launch/slurm.sbatch")
    assert set(asked[:script]) == {
        *(f"--chdir={ROOT}", f"--output={world.folder}/r/slurm-%j.log"),
        *("--nodes=2", "--gpus-per-node=4", "--time=12:00:00", "--partition=p"),
    }
    called = ["--config", "configs/plan_r50.py", "--workdir", f"{world.folder}/r", "--config.seed=1"]
    assert asked[script + 1 :] == [*called, "--", "--profile", "5:2"]
    assert (world.folder / "r").is_dir()


def test_a_slurm_job_saves_before_its_end_and_is_queued_again_after_a_failed_node():
    lines = (LAUNCH / "slurm.sbatch").read_text().splitlines()
    asked = [line.removeprefix("#SBATCH ") for line in lines[2:] if line.startswith("#SBATCH")]
    assert lines[2 : 2 + len(asked)] == [f"#SBATCH {option}" for option in asked], "sbatch reads none after a command"
    assert {"--requeue", "--open-mode=append", "--ntasks-per-node=1"} <= set(asked)
    (seconds,) = [option.partition("@")[2] for option in asked if option.startswith("--signal=TERM@")]
    assert any(line.startswith(f"NOTICE={seconds} ") for line in lines)


def test_an_allocation_of_slurm_trains_on_all_its_nodes(world):
    allocation = {"SLURM_JOB_ID": "5", "SLURM_JOB_NUM_NODES": "4"}
    (srun,) = dry_run(LAUNCH / "gpu.sh", "--workdir", "/r", "--", "--profile", "5:2", **world.environment | allocation)
    assert {"--nodes=4", "--ntasks=4", "--ntasks-per-node=1", "--kill-on-bad-exit=1"} <= set(srun)
    task = ["bash", f"{ROOT}/launch/gpu.sh", "--coordinator", "auto", "--config", "configs/plan_r50.py"]
    assert srun[srun.index("bash") :] == [*task, "--workdir", "/r", "--", "--profile", "5:2"]


@pytest.fixture
def job(world):
    """Runs launch/slurm.sbatch from where SLURM would copy it to, in a job that ends in so many seconds."""
    spool = world.folder / "spool" / "slurm_script"
    spool.parent.mkdir()
    shutil.copy(LAUNCH / "slurm.sbatch", spool)
    world.add("nvidia-smi", "")
    world.add("srun", SRUN)

    def start(seconds_left: int, state: str = "RUNNING", preempted: str = "None") -> subprocess.Popen[str]:
        end = datetime.datetime.now() + datetime.timedelta(seconds=seconds_left)
        said = (
            f"JobId=5 JobState={state} Reason=None PreemptTime={preempted} EndTime={end:%Y-%m-%dT%H:%M:%S} Deadline=N/A"
        )
        world.add("scontrol", f'if [[ "$2" == show ]]; then echo "{said}"; fi')
        call = ["bash", str(spool), "--config", "configs/plan_r50.py", "--workdir", str(world.folder)]
        environment = os.environ | world.environment | {"SLURM_JOB_ID": "5"}
        return subprocess.Popen(call, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True)

    return start


def end_by_signal(world: World, job: subprocess.Popen[str]) -> str:
    """SIGTERM to the training alone, as SLURM's --signal gives it; then what the job wrote on stderr."""
    os.kill(world.pid_of_training(), signal.SIGTERM)
    return job.communicate(timeout=20)[1]


def requeued(world: World) -> int:
    return world.calls("scontrol").count(["scontrol", "requeue", "5"])


def test_a_job_whose_time_is_over_is_queued_again_unless_it_did_no_step(world, job):
    world.until_term()
    first = job(100)
    assert end_by_signal(world, first) == ""
    assert (first.returncode, requeued(world)) == (0, 1)
    assert world.trainings()[0][:2] == ["--config", "configs/plan_r50.py"]
    assert world.trainings()[0][-2:] == ["--coordinator", "auto"]
    second = job(100)
    assert "give the job more --time" in end_by_signal(world, second)
    assert (second.returncode, requeued(world)) == (1, 1)


def test_a_preempted_job_is_queued_again_however_long_it_is_given_for_saving(world, job):
    world.until_term()
    end_by_signal(world, job(9000, preempted="2030-01-01T00:00:00"))
    assert requeued(world) == 1


@pytest.mark.parametrize(("seconds_left", "state"), [(9000, "RUNNING"), (0, "CANCELLED")])
def test_a_job_that_a_person_has_stopped_is_not_queued_again(world, job, seconds_left, state):
    world.until_term()
    stopped = job(seconds_left, state)
    assert end_by_signal(world, stopped) == ""
    assert (stopped.returncode, requeued(world)) == (0, 0)


@pytest.mark.parametrize(("training", "code"), [(f"echo '/run: {FINISHED}'", 0), ("exit 7", 7)])
def test_a_job_that_has_finished_or_failed_is_not_queued_again(world, job, training, code):
    world.training(training)
    started = job(100)
    started.communicate(timeout=20)
    assert (started.returncode, requeued(world)) == (code, 0)
