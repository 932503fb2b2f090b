"""What watches a run: speed, values that are not finite, signals to stop."""

import signal
import threading
import time
from typing import Any

import jax
import numpy as np

from plan_jax.checkpoint import Checkpoints
from plan_jax.data.mixture import Mixture
from plan_jax.data.records import Split
from plan_jax.types import Batch


class NonFiniteLoss(RuntimeError):
    """The loss, or what a step made of it, is NaN or infinite.

    The message names the step, the records and the last good checkpoint.
    """


class SpeedMeter:
    """Images per second since the last reading."""

    def __init__(self, step: int, batch_size: int):
        self._step, self._batch_size, self._time = step, batch_size, time.monotonic()

    def read(self, step: int) -> dict[str, float]:
        """The speed up to `step`, as a metric."""
        now = time.monotonic()
        speed = (step - self._step) * self._batch_size / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        return {"images_per_second": speed}


class FiniteGuard:
    """Stops a run whose loss, gradient or parameters are not finite, before they are saved.

    Looks one step late, so that the device is never idle for it.
    """

    def __init__(self, split: Split | Mixture, checkpoints: Checkpoints):
        self._split, self._checkpoints = split, checkpoints
        self._pending: tuple[int, dict[str, jax.Array], Batch] | None = None

    def watch(self, step: int, metrics: dict[str, jax.Array], batch: Batch) -> None:
        """Remembers this step's metrics and checks those of the one before."""
        self.check()
        self._pending = (step, metrics, batch)

    def check(self) -> None:
        """Waits for the remembered metrics and raises NonFiniteLoss if one is NaN or infinite."""
        if self._pending is None:
            return
        (step, metrics, batch), self._pending = self._pending, None
        wrong = [name for name, value in jax.device_get(metrics).items() if not np.isfinite(value)]
        if not wrong:
            return
        name = "loss" if "loss" in wrong else wrong[0]
        self._checkpoints.wait()
        keys = ", ".join(self._split[int(index)].key for index in np.asarray(batch.record))
        latest = self._checkpoints.latest
        left = "there is no checkpoint" if latest is None else f"the last good checkpoint is step {latest}"
        raise NonFiniteLoss(
            f"{name} must be finite, got {float(metrics[name])} at step {step} on records {keys}; {left}; "
            "lower optim.learning_rate or inspect these records"
        )


class StopSignals:
    """Turns SIGINT and SIGTERM into a request to save and stop; a second SIGINT interrupts at once."""

    def __init__(self):
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
