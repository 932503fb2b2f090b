"""Several processes, on one machine or many, that train one model: how they find each other and agree.

Every process runs the same commands on its part of the rows. Nothing here does anything where there is one process.
"""

import os
import re
from collections.abc import Mapping

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from plan_jax.errors import InputError
from plan_jax.sharding import over_data, replicated

AUTO = "auto"


def join_hosts(coordinator: str | None, process: str | None, *, environment: Mapping[str, str] = os.environ) -> None:
    """Connects this process with the others, before anything asks JAX for its devices.

    Args:
        coordinator: "auto" leaves all to `jax.distributed`, which knows SLURM, TPU VMs, Kubernetes and Open MPI;
            HOST:PORT names the machine of process 0; None is auto inside a SLURM step of several tasks, else alone.
        process: I/N, this process's number and their count; with HOST:PORT only.
        environment: where SLURM tells of its steps.

    Raises:
        InputError: the two do not go together or cannot be read, or the others are not found.
    """
    if coordinator is None and process is not None:
        raise InputError(f"--process must come with --coordinator HOST:PORT, got --process {process} alone; add it")
    if coordinator is None and int(environment.get("SLURM_NTASKS", 1)) > 1 and "SLURM_STEP_ID" in environment:
        coordinator = AUTO
    if coordinator is None:
        return
    given = {} if coordinator == AUTO else _explicit(coordinator, process)
    if coordinator == AUTO and process is not None:
        raise InputError(f"--process must be left out with --coordinator auto, got {process}; leave it out")
    try:
        jax.distributed.initialize(**given)
    except (ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--coordinator must lead to the other processes, got {coordinator}: {reason}; start all of them with the "
            "same address, each with its own --process I/N"
        ) from error


def _explicit(coordinator: str, process: str | None) -> dict:
    if not re.fullmatch(r"[^\s:/]+:\d+", coordinator):
        raise InputError(f"--coordinator must be auto or HOST:PORT, got {coordinator!r}; for example 10.0.0.2:1234")
    found = re.fullmatch(r"(\d+)/(\d+)", process or "")
    if not found or not int(found[1]) < int(found[2]):
        raise InputError(
            f"--process must be I/N with I from 0 to N - 1 beside --coordinator HOST:PORT, got {process!r}; "
            "for example 0/2 on the first of two machines and 1/2 on the second"
        )
    return {"coordinator_address": coordinator, "process_id": int(found[1]), "num_processes": int(found[2])}


def is_first() -> bool:
    """Whether this process writes what is written once."""
    return jax.process_index() == 0


def wait_for_all(name: str) -> None:
    """Returns once every process is here; `name` says where, the same on all."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


class AnyProcess:
    """Whether any process says yes, told to all of them alike at the same question.

    The answer is that to the question before, so that no process waits for another while its devices work.
    """

    def __init__(self, mesh: Mesh):
        self._mesh, self._pending = mesh, None
        self._any = jax.jit(lambda flags: flags.any(), out_shardings=replicated(mesh))

    def ask(self, flag: bool) -> bool:
        """Asks with this process's flag, and gives the answer to the question before; False at the first."""
        if jax.process_count() == 1:
            return flag
        before, here = self._pending, np.full(jax.local_device_count(), flag)
        self._pending = self._any(jax.make_array_from_process_local_data(over_data(self._mesh), here))
        return before is not None and bool(before)


def rows_here(array: jax.Array) -> np.ndarray:
    """The rows of an array spread over all devices that lie on this process's."""
    if array.is_fully_addressable:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])
