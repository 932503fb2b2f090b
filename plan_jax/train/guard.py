"""What watches a run: steps that were left out, and requests to stop."""

import math
import signal
import sys
import threading
from typing import Any, NoReturn

import jax
from tqdm import tqdm

from plan_jax.checkpoint import Checkpoints
from plan_jax.data.mixture import Mixture
from plan_jax.data.records import Split
from plan_jax.hosts import rows_here
from plan_jax.types import Batch


class NonFiniteLoss(RuntimeError):
    """Too many steps in a row were left out (`plan_jax.train.skip`), or the parameters are too large to go on.

    The message names the step, the records and the last good checkpoint.
    """


class SkipGuard:
    """Tells of every step that was left out, and stops a run in which too many were, one after the other, or whose
    parameters outgrew float32.

    Looks one step late, so that the device is never idle for it. Of several processes each tells of its own records.
    """

    def __init__(self, split: Split | Mixture, checkpoints: Checkpoints, *, limit: int):
        self._split, self._checkpoints, self._limit = split, checkpoints, limit
        self._pending: tuple[int, dict[str, jax.Array], Batch] | None = None

    def watch(self, step: int, metrics: dict[str, jax.Array], batch: Batch) -> None:
        """Remembers this step's metrics and checks those of the one before."""
        self.check()
        self._pending = (step, metrics, batch)

    def check(self) -> None:
        """Waits for the remembered metrics.

        Raises:
            NonFiniteLoss: more than `limit` steps were left out, or the norm of the parameters is not finite.
        """
        if self._pending is None:
            return
        (step, metrics, batch), self._pending = self._pending, None
        in_a_row, outgrown = int(metrics["skipped_in_a_row"]), not math.isfinite(float(metrics["parameter_norm"]))
        if not in_a_row and not outgrown:
            return
        keys = ", ".join(self._split[int(index)].key for index in rows_here(batch.record))
        told = f"loss {float(metrics['loss']):g}, gradient norm {float(metrics['gradient_norm']):g}"
        if outgrown:
            self._end("the norm of the parameters must be finite in float32, got a larger one", told, step, keys)
        if in_a_row > self._limit:
            self._end(f"at most {self._limit} steps in a row must be left out, got one more", told, step, keys)
        tqdm.write(f"step {step} is left out: {told}, on records {keys}", file=sys.stderr)

    def _end(self, rule: str, told: str, step: int, keys: str) -> NoReturn:
        self._checkpoints.wait()
        latest = self._checkpoints.latest
        left = "there is no checkpoint" if latest is None else f"the last good checkpoint is step {latest}"
        raise NonFiniteLoss(
            f"{rule}: {told} at step {step} on records {keys}; {left}; lower optim.learning_rate, inspect these "
            "records, or raise train.skip_limit"
        )


class StopSignals:
    """Turns SIGINT and SIGTERM into a request to save and stop, which others may make too (`request`).

    A second SIGINT interrupts at once. Why the run was asked to stop is said on stderr when the context ends.
    """

    def __init__(self):
        self.requested = False
        self._signalled = False
        self._reasons: list[str] = []
        self._before: dict[int, Any] = {}

    def request(self, reason: str) -> None:
        """Asks the run to save and stop; also from another thread."""
        self._reasons.append(reason)
        self.requested = True

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._take) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        if self._reasons:  # not from the handler, which may come in the middle of another write
            tqdm.write(f"plan_jax: asked to stop by {self._reasons[0]}", file=sys.stderr)

    def _take(self, number: int, _: object) -> None:
        if self._signalled and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._signalled = True
        self.request(signal.Signals(number).name)
