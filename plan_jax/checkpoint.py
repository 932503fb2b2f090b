"""A run's checkpoints on disk (orbax v1): written in the background while training, the newest one read back.

A checkpoint is named by the number of finished steps and has three parts: `variables` (parameters and batch
statistics, all that inference needs), `optimizer`, and `data` (the position in the data, and the workers and processes
that read it). A save that a kill cut off leaves a temporary folder that is never read.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from orbax.checkpoint import v1 as ocp

from plan_jax.errors import InputError

FOLDER = "checkpoints"


class Checkpoints:
    """Writes and reads the checkpoints of one run directory; keeps the newest `keep`."""

    def __init__(self, workdir: Path, *, keep: int):
        self._checkpointer = ocp.training.Checkpointer(
            str((workdir / FOLDER).absolute()),
            preservation_policy=ocp.training.preservation_policies.LatestN(keep),  # pyright: ignore[reportArgumentType]
            cleanup_tmp_directories=True,
        )

    @property
    def latest(self) -> int | None:
        """Finished steps of the newest complete checkpoint, None when there is none."""
        newest = self._checkpointer.latest
        return None if newest is None else newest.step

    def save(self, step: int, parts: dict[str, Any]) -> None:
        """Writes in the background; returns once everything is copied from the devices."""
        self._checkpointer.wait()
        self._checkpointer.save_checkpointables_async(step, parts, force=True)

    def restore(self, step: int, abstract_parts: dict[str, Any]) -> dict[str, Any]:
        """The named parts, shaped and placed as their abstract trees say. InputError: damaged, or of other shapes."""
        with _whole(Path(self._checkpointer.directory) / str(step)):
            return self._checkpointer.load_checkpointables(step, abstract_parts)

    def wait(self) -> None:
        """Until everything is on disk."""
        self._checkpointer.wait()

    def close(self) -> None:
        """Waits for what is being written, then lets go."""
        self._checkpointer.close()

    def __enter__(self) -> "Checkpoints":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def saved_steps(workdir: Path) -> list[int]:
    """Finished steps of each of a run's checkpoints."""
    folder = workdir / FOLDER
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def latest_step(workdir: Path) -> int:
    """Finished steps of a run's newest checkpoint.

    Raises:
        InputError: the run has none.
    """
    steps = saved_steps(workdir)
    if not steps:
        raise InputError(
            f"{workdir} must hold a checkpoint, got none in {workdir / FOLDER}; train first or check --workdir"
        )
    return steps[-1]


def load_variables(workdir: Path, step: int, abstract_variables: Any) -> Any:
    """Parameters and batch statistics of one checkpoint, without its optimizer. InputError as in `restore`."""
    path = (workdir / FOLDER / str(step)).absolute()
    with _whole(path):
        return ocp.load_checkpointables(str(path), {"variables": abstract_variables})["variables"]


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Says in one line what orbax says in pages."""
    try:
        yield
    except (KeyError, ValueError, OSError) as error:
        raise InputError(
            f"{path} must be a whole checkpoint of the run's configuration, got {type(error).__name__} on reading it; "
            "remove that folder to use the checkpoint before it"
        ) from error
