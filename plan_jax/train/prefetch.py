"""Batches on their way to the device while the step before them runs."""

from collections import deque
from typing import Any

import jax

from plan_jax.data.pipeline import TrainBatches
from plan_jax.types import Batch


class Prefetch:
    """Endless batches on the device, of which the next `ahead` are already on their way.

    There is no thread here: reading ahead is what TrainBatches does, and `jax.device_put` returns before the copy is
    done. What the reader raises is raised when its batch is asked for, not when it is read. Nothing is to be closed.

    With a sharding, which is that of the leading axis of every leaf, a process gives its own rows of the batch and
    gets an array of all rows.
    """

    def __init__(self, batches: TrainBatches, *, ahead: int, sharding: jax.sharding.Sharding | None = None):
        self._batches, self._ahead, self._sharding = batches, ahead, sharding
        self._state = batches.state
        self._queue: deque[tuple[Batch, dict[str, int]] | Exception] = deque()

    def __next__(self) -> Batch:
        while len(self._queue) <= self._ahead and not (self._queue and isinstance(self._queue[-1], Exception)):
            self._queue.append(self._read())
        item = self._queue.popleft()
        if isinstance(item, Exception):
            raise item
        batch, self._state = item
        return batch

    @property
    def state(self) -> dict[str, int]:
        """For a checkpoint: what TrainBatches.state was after the batch that was handed out last."""
        return self._state

    def _read(self) -> tuple[Batch, dict[str, int]] | Exception:
        try:
            batch = next(self._batches)
        except Exception as error:  # may be about a batch that no step will ask for; Ctrl-C is none and goes through
            return error
        return jax.tree.map(self._put, batch), self._batches.state

    def _put(self, rows: Any) -> jax.Array:
        if self._sharding is None:
            return jax.device_put(rows)
        return jax.make_array_from_process_local_data(self._sharding, rows)
