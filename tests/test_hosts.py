"""One run on any number of devices and processes: the same losses, also after a kill, and one word stops them all."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conftest import CONFIG, QUICK, TINY

from plan_jax.errors import InputError
from plan_jax.hosts import join_hosts

ROOT = Path(__file__).parents[1]
STEPS = 20
SHORT = (f"--config.train.steps={STEPS}", "--config.optim.warmup_steps=5", "--config.train.checkpoint_every=8")
WAIT = 240  # seconds, on a busy machine


def losses(workdir: Path) -> np.ndarray:
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return np.array([json.loads(line)["loss"] for line in lines if line.endswith("}")])


class Job:
    """Processes of one `train` command, each with its own CPU devices."""

    def __init__(self, workdir: Path, data: Path, *, processes: int, devices: int, fsdp: int = 2, steps: int = STEPS):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            address = f"127.0.0.1:{free.getsockname()[1]}"
        self.workdir, self.processes = workdir, []
        command = [sys.executable, "-m", "plan_jax", "train", "--config", str(CONFIG), "--workdir", str(workdir)]
        command += [*TINY, *SHORT, f"--config.data.dir={data}", "--config.mesh.devices=0"]
        command += [f"--config.train.steps={steps}", f"--config.mesh.fsdp={fsdp}"]
        flags = f"--xla_force_host_platform_device_count={devices} {QUICK}"
        for index in range(processes):
            hosts = ["--coordinator", address, "--process", f"{index}/{processes}"] if processes > 1 else []
            self.processes.append(
                subprocess.Popen(
                    [*command, *hosts],
                    cwd=ROOT,
                    env=os.environ | {"XLA_FLAGS": flags},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )

    def wait_for(self, happened: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT
        while not happened():
            assert all(process.poll() is None for process in self.processes), self.processes[0].communicate()[1][-2000:]
            assert time.monotonic() < end
            time.sleep(0.01)

    def end(self) -> list[tuple[int, str, str]]:
        """Exit code, stdout and stderr of each."""
        told = [process.communicate(timeout=WAIT) for process in self.processes]
        return [(process.returncode, *each) for process, each in zip(self.processes, told, strict=True)]

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.communicate()


@pytest.fixture(scope="module")
def alone(phantom_data, tmp_path_factory) -> np.ndarray:
    """The losses on one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    assert Job(workdir, phantom_data, processes=1, devices=1, fsdp=1).end()[0][0] == 0
    return losses(workdir)


@pytest.fixture
def job(phantom_data, tmp_path):
    """Starts jobs in one run directory; no process outlives the test."""
    started = []

    def start(**how) -> Job:
        started.append(Job(tmp_path / "run", phantom_data, **how))
        return started[-1]

    yield start
    for one in started:
        one.kill()


@pytest.mark.parametrize(("devices", "fsdp"), [(2, 1), (4, 2), (8, 1)])
def test_many_devices_have_the_losses_of_one(devices, fsdp, alone, job):
    many = job(processes=1, devices=devices, fsdp=fsdp)
    ((code, _, err),) = many.end()
    assert code == 0, err[-2000:]
    np.testing.assert_allclose(losses(many.workdir), alone, rtol=1e-5)
    assert len(alone) == STEPS
    assert alone[-1] < 0.95 * alone[0]


def test_a_job_of_two_processes_of_which_one_is_killed_goes_on_in_one_process_along_the_same_curve(job, alone):
    two = job(processes=2, devices=2)
    two.wait_for(lambda: (two.workdir / "checkpoints" / "8").is_dir())
    two.processes[1].send_signal(signal.SIGKILL)
    two.kill()  # as srun does where one of its tasks has ended so
    assert len(losses(two.workdir)) < STEPS

    ((code, out, err),) = job(processes=1, devices=4).end()
    assert code == 0, err[-2000:]
    assert out == f"{two.workdir}: step {STEPS}, finished\n"
    np.testing.assert_allclose(losses(two.workdir), alone, rtol=1e-5)


def test_sigterm_to_one_of_two_processes_saves_and_ends_both(job):
    two = job(processes=2, devices=2, steps=2000)
    two.wait_for(lambda: len(losses(two.workdir)) >= 3)
    two.processes[1].send_signal(signal.SIGTERM)
    (code, out, err), (other_code, other_out, _) = two.end()
    assert (code, other_code) == (0, 0), err[-2000:]
    reached = len(losses(two.workdir))
    told = f"{two.workdir}: step {reached}, saved; the same command continues\n"
    assert out.endswith(told)  # after what the library of the collectives says
    assert told not in other_out  # one speaks for all
    assert (two.workdir / "checkpoints" / str(reached)).is_dir()
    shutil.rmtree(two.workdir)


@pytest.mark.parametrize(
    ("coordinator", "process", "told"),
    [
        (None, "0/2", "--process must come with --coordinator"),
        ("auto", "0/2", "--process must be left out"),
        ("somewhere", "0/2", "--coordinator must be auto or HOST:PORT, got 'somewhere'"),
        ("10.0.0.2:1234", None, "--process must be I/N"),
        ("10.0.0.2:1234", "2/2", "--process must be I/N with I from 0 to N - 1"),
    ],
)
def test_a_call_that_cannot_find_the_others_is_refused(coordinator, process, told):
    with pytest.raises(InputError, match=told):
        join_hosts(coordinator, process, environment={})


def test_one_process_alone_joins_no_one(monkeypatch):
    monkeypatch.setattr("jax.distributed.initialize", lambda **_: pytest.fail("it must not"))
    join_hosts(None, None, environment={"SLURM_NTASKS": "1", "SLURM_STEP_ID": "0"})
    join_hosts(None, None, environment={"SLURM_NTASKS": "4"})  # a batch script, not one of its tasks


def test_inside_a_slurm_step_of_several_tasks_they_join_without_being_told(monkeypatch):
    called = []
    monkeypatch.setattr("jax.distributed.initialize", lambda **given: called.append(given))
    join_hosts(None, None, environment={"SLURM_NTASKS": "2", "SLURM_STEP_ID": "0"})
    assert called == [{}]
