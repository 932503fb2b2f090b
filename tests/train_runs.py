"""Runs of the `train` command in processes of their own, which tests kill, and whether they end as a run in one go."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

import jax
import numpy as np

from plan_jax.data.pipeline import TrainBatches
from plan_jax.data.records import open_split
from plan_jax.data.text import Tokenizer
from plan_jax.train.loop import fit

ROOT = Path(__file__).parents[1]
STEPS = 300
WAIT = 240  # seconds, on a busy machine
# The command line, with a file into which it writes what it does and when: one JSON list a line, [name, time, ...].
DRIVER = """
import hashlib, json, sys, time
import jax, numpy
import plan_jax.train.loop as loop
from plan_jax.__main__ import main
file = open(sys.argv[1], "a")
def tell(name, *about):
    file.write(json.dumps([name, time.monotonic(), *about]) + "\\n")
    file.flush()
def digest(parts):
    return hashlib.sha256(b"".join(numpy.asarray(leaf).tobytes() for leaf in jax.tree.leaves(parts))).hexdigest()
class Steps(loop.Steps):
    def program(self, *about):
        if not self._compiled:
            tell("compile")
        return super().program(*about)
    def __call__(self, state, batch, step):
        tell("step", step, numpy.asarray(batch.record).tolist())
        return super().__call__(state, batch, step)
class Checkpoints(loop.Checkpoints):
    def restore_newest(self, shapes):
        tell("restore")
        found = super().restore_newest(shapes)
        tell("restored", *((found[0], digest(found[1])) if found else ()))
        return found
    def save(self, step, parts, **how):
        tell("save", step, digest(parts))
        return super().save(step, parts, **how)
    def _finish(self, *about):
        super()._finish(*about)
        tell("saved")
loop.Steps, loop.Checkpoints = Steps, Checkpoints
sys.exit(main(sys.argv[2:]))
"""


def metrics(workdir: Path) -> list[dict]:
    """The lines of metrics.jsonl; the last one may be half written while the run goes on."""
    path = workdir / "metrics.jsonl"
    lines = path.read_text().splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def without_speed(lines: list[dict]) -> list[dict]:
    apart = ("images_per_second", "step_seconds", "input_seconds", "compute_seconds", "host_memory_gib")
    return [{name: value for name, value in line.items() if name not in apart} for line in lines]


def assert_equal_bits(one, other) -> None:
    one, other = jax.tree.leaves(one), jax.tree.leaves(other)
    assert len(one) == len(other) > 10
    assert all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(one, other, strict=True))


def events(workdir: Path, offset: int = 0) -> list[list[Any]]:
    """What a run told of itself, from so many bytes on; a line that a kill cut is none."""
    path = workdir.with_suffix(".events")
    lines = path.read_bytes()[offset:].splitlines(keepends=True) if path.is_file() else []
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


class Run:
    """A `train` command in a process group of its own, which does not outlive the context."""

    def __init__(self, arguments: tuple[str, ...], workdir: Path, *, environment: dict[str, str] | None = None):
        self.workdir, told = workdir, workdir.with_suffix(".events")
        self._offset = told.stat().st_size if told.is_file() else 0
        command = [sys.executable, "-c", DRIVER, str(told), *arguments, "--workdir", str(workdir)]
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def events(self) -> list[list[Any]]:
        return events(self.workdir, self._offset)

    def wait_for(self, happened: Callable[[], bool]) -> None:
        end = time.monotonic() + WAIT
        while not happened():
            assert self.process.poll() is None, f"ended early: {self.process.communicate()[1][-2000:]}"
            assert time.monotonic() < end
            time.sleep(0.002)

    def wait_for_step(self, step: int) -> None:
        self.wait_for(lambda: len(metrics(self.workdir)) >= step)

    def stop(self, number: signal.Signals) -> tuple[int, str, str]:
        """Sends a signal to every process of the run, as a terminal does; exit code, stdout, stderr."""
        os.killpg(self.process.pid, number)
        return self.end()

    def end(self) -> tuple[int, str, str]:
        out, err = self.process.communicate(timeout=WAIT)
        return self.process.returncode, out, err

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None):
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.communicate()


def assert_same_records(workdir: Path, trained) -> None:
    """Every step saw the records of a run in one go, also a step that was taken again after a kill."""
    split, tokenizer = open_split(trained.config.data.dir, "train"), Tokenizer.load(workdir / "tokenizer.json")
    batches = TrainBatches(split, tokenizer, trained.config.data, seed=trained.config.seed)
    expected = [np.asarray(next(batches).record).tolist() for _ in range(STEPS)]
    batches.close()
    found = [about for name, _, *about in events(workdir) if name == "step"]
    assert all(records == expected[step] for step, records in found)
    assert {step for step, _ in found} == set(range(STEPS))
    assert len(found) >= STEPS


def assert_same_run(workdir: Path, trained) -> None:
    assert_same_records(workdir, trained)
    assert without_speed(metrics(workdir)) == without_speed(metrics(trained.workdir))
    state = fit(trained.config, workdir)  # finished: reads the last checkpoint
    assert int(state.step) == STEPS
    assert_equal_bits(state, trained.state)
