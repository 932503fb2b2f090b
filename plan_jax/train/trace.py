"""A profile of chosen training steps, for TensorBoard or xprof (`jax.profiler`)."""

import re
from pathlib import Path
from typing import Any

import jax

from plan_jax.errors import InputError

FOLDER = "profile"
NAME = "train"  # of a step in the profile


class Trace:
    """Records the chosen steps, counted from 1 as in metrics.jsonl, into RUN/profile; does nothing without any.

    Each of several processes writes into RUN/profile/process_I: the profiler names its file by machine and second only,
    and machines may run several processes. As a context it also ends a recording that the run's end cuts short.
    """

    def __init__(self, workdir: Path, chosen: range | None):
        several = jax.process_count() > 1
        self._folder = workdir / FOLDER / (f"process_{jax.process_index()}" if several else "")
        self._chosen = chosen or range(0)
        self._recording = False
        self._annotation: jax.profiler.StepTraceAnnotation | None = None

    def before(self, step: int) -> None:
        """Call before a step is asked for: the first chosen one starts the recording."""
        if step not in self._chosen:
            return
        if not self._recording:
            jax.profiler.start_trace(self._folder)
            self._recording = True
        self._annotation = jax.profiler.StepTraceAnnotation(NAME, step_num=step)
        self._annotation.__enter__()

    def after(self, step: int, results: Any) -> None:
        """Call when a step is on its way, with what it gives: the last chosen one waits for that and ends it all."""
        self._end_annotation()
        if self._recording and step >= self._chosen[-1]:
            jax.block_until_ready(results)
            self._stop()

    def __enter__(self) -> "Trace":
        return self

    def __exit__(self, *_: object) -> None:
        self._end_annotation()
        if self._recording:
            self._stop()

    def _end_annotation(self) -> None:
        if self._annotation is not None:
            self._annotation.__exit__(None, None, None)
            self._annotation = None

    def _stop(self) -> None:
        self._recording = False
        jax.profiler.stop_trace()


def parse_steps(text: str) -> range:
    """The steps of FIRST:COUNT, counted from 1. InputError: anything else."""
    found = re.fullmatch(r"([0-9]{1,12}):([0-9]{1,12})", text)
    first, count = (int(part) for part in found.groups()) if found else (0, 0)
    if not first or not count:
        raise InputError(
            f"--profile must be FIRST:COUNT, both whole numbers from 1 on, got {text!r}; 10:5 records steps 10 to 14"
        )
    return range(first, first + count)
