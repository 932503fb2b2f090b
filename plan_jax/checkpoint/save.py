"""Writes a run's checkpoints in the background, and finds the newest whole one."""

import contextlib
import dataclasses
import math
import os
import re
import shutil
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from orbax.checkpoint import v1 as ocp
from tqdm import tqdm

from plan_jax.checkpoint import digest
from plan_jax.checkpoint.read import FOLDER, SCORE, best_of, read_parts, saved_steps, scores_of
from plan_jax.errors import InputError


class CheckpointNotSaved(OSError):
    """A checkpoint could not be written, as on a full disk; those before it are untouched."""


class Checkpoints:
    """Writes and reads the checkpoints of one run directory; keeps the newest `keep`, and the best of those scored."""

    def __init__(self, workdir: Path, *, keep: int):
        self._workdir, self._folder = workdir, (workdir / FOLDER).absolute()
        self._scores = scores_of(workdir)
        self._checkpointer = ocp.training.Checkpointer(
            str(self._folder),
            preservation_policy=_NewestAndBest(keep, self._scores),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )
        self._step = 0  # of the last save
        self._finishing: threading.Thread | None = None  # ends when the last save and its digest are on disk
        self._failure: Exception | None = None  # of the digest

    @property
    def latest(self) -> int | None:
        """Finished steps of the newest complete checkpoint, None when there is none."""
        return max(saved_steps(self._workdir), default=None)

    def save(self, step: int, parts: dict[str, Any], *, score: float | None = None, last: bool = False) -> bool:
        """Writes in the background; returns once everything is copied from the devices.

        Where the one before is still being written, this one is left out: training does not wait for the disk.

        Args:
            step: finished steps.
            parts: trees of arrays and numbers by name.
            score: a validation loss, lower is better; not a number counts as none.
            last: wait for the one before instead, and save in any case.

        Returns:
            Whether it is saved.

        Raises:
            CheckpointNotSaved: this one, or the one before it, could not be written.
        """
        if not last and not _everywhere(self._finishing is None or not self._finishing.is_alive()):
            _say(f"the checkpoint of step {step} is left out: that of step {self._step} is still being written")
            return False
        self.wait()
        self._make_way(step)
        self._step = step
        self._scores.pop(step, None)
        if score is not None and math.isfinite(score):
            self._scores[step] = float(score)
        about: dict[str, Any] | None = {SCORE: self._scores[step]} if step in self._scores else None
        try:
            response = self._checkpointer.save_checkpointables_async(step, parts, force=True, custom_metadata=about)
        except (ValueError, OSError, RuntimeError) as error:
            raise self._not_saved(error) from error
        self._finishing = threading.Thread(target=self._finish, args=(step, response), name="checkpoint digest")
        self._finishing.start()
        return True

    def restore_newest(self, abstract_parts: dict[str, Any]) -> tuple[int, dict[str, Any]] | None:
        """Finished steps and parts of the newest whole checkpoint, placed as the abstract trees say, or None.

        Damaged ones that are newer are named on stderr and renamed to N.damaged. One without a digest gets it once it
        has been read. An abstract part of None is read as it was saved.

        Raises:
            InputError: there are checkpoints and none is whole, or the newest whole one has other shapes.
        """
        damaged: dict[int, str] = {}
        for step in reversed(saved_steps(self._workdir)):
            path, parts = self._folder / str(step), None
            fault = digest.damage(path) if jax.process_index() == 0 else None
            if _everywhere(fault is None):
                parts, fault = read_parts(path, abstract_parts)
            if _everywhere(parts is not None):
                self._set_aside(damaged, used=step)
                if jax.process_index() == 0 and not (path / digest.FILE).is_file():
                    with contextlib.suppress(OSError):  # such as a full disk, of which the next save tells
                        digest.write_digest(path)
                return step, parts  # pyright: ignore[reportReturnType]
            damaged[step] = fault or "another process found it so"
        if damaged:
            newest = max(damaged)
            raise InputError(
                f"{self._folder} must hold a whole checkpoint, got {len(damaged)} damaged: in {newest} "
                f"{damaged[newest]}; restore the folder from a copy, or remove it to begin anew"
            )
        return None

    def wait(self) -> None:
        """Until everything is on disk. CheckpointNotSaved: it could not be written."""
        if self._finishing is not None:
            self._finishing.join()
            self._finishing = None
        failure, self._failure = self._failure, None
        try:
            self._checkpointer.wait()
        except (ValueError, OSError, RuntimeError) as error:
            failure = error
        if failure is not None:
            self._scores.pop(self._step, None)
            self._checkpointer.reload()  # what is on disk, not what would have been
            raise self._not_saved(failure) from failure

    def close(self) -> None:
        """Waits as `wait` does, then lets go."""
        try:
            self.wait()
        finally:
            self._checkpointer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _finish(self, step: int, response: Any) -> None:
        """In the background: waits for the save, and writes its digest."""
        try:
            response.result()
        except Exception:  # `wait` raises it to the caller
            return
        try:
            if jax.process_index() == 0:
                digest.write_digest(self._folder / str(step))
        except OSError as error:
            self._failure = error

    def _make_way(self, step: int) -> None:
        """Renames a folder that stands where a checkpoint shall be written."""
        listed = any(found.step == step for found in self._checkpointer.checkpoints)  # the same on all processes
        if jax.process_index() == 0 and (self._folder / str(step)).exists():
            name = self._rename(step)
            _say(f"{self._folder / str(step)} is in the way of another checkpoint; it becomes {name}")
        if listed:
            _everywhere(True)  # none looks before it is renamed
            self._checkpointer.reload()

    def _set_aside(self, damaged: Mapping[int, str], *, used: int) -> None:
        for step, fault in damaged.items():
            self._scores.pop(step, None)
            if jax.process_index() == 0:
                where, name = self._folder / str(step), self._rename(step)
                _say(f"{where} is damaged, {fault}: step {used} is used instead and it becomes {name}")
        if damaged:
            _everywhere(True)
            self._checkpointer.reload()

    def _rename(self, step: int) -> str:
        """Gives a checkpoint's folder a free name that no reader looks at."""
        name, number = f"{step}.damaged", 1
        while (self._folder / name).exists():
            number += 1
            name = f"{step}.damaged-{number}"
        (self._folder / str(step)).rename(self._folder / name)
        return name

    def _not_saved(self, error: Exception) -> CheckpointNotSaved:
        """What went wrong in one line; tensorstore says the number of the system's error in its text alone."""
        code = error.errno if isinstance(error, OSError) else None
        if code is None and (found := re.search(r"os_error_code='(\d+)'", str(error))):
            code = int(found[1])
        reason = f"{type(error).__name__} {str(error).splitlines()[:1]}" if code is None else os.strerror(code)
        left = "there is none before it" if self.latest is None else f"the last good one is step {self.latest}"
        return CheckpointNotSaved(
            f"{self._folder} must have room for the checkpoint of step {self._step}, got {reason!r} with "
            f"{shutil.disk_usage(self._folder).free / 2**20:.0f} MiB free; {left}; make room, then start the same "
            "command again"
        )


@dataclasses.dataclass(frozen=True)
class _NewestAndBest:
    """Which checkpoints stay. Orbax's own BestN cannot open a run where a file of metrics is damaged."""

    keep: int
    scores: Mapping[int, float]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        del context
        steps = [checkpoint.step for checkpoint in checkpoints]
        stay = {*sorted(steps)[-self.keep :], best_of(self.scores, steps)}
        return [step in stay for step in steps]


def _everywhere(holds: bool) -> bool:
    """Whether it holds on all processes, each of which must ask; none goes on before all have."""
    if jax.process_count() == 1:
        return holds
    return bool(np.all(multihost_utils.process_allgather(np.array(holds))))


def _say(line: str) -> None:
    if jax.process_index() == 0:
        tqdm.write(f"plan_jax: {line}", file=sys.stderr)
