"""Where runs compute side by side: shares of the cores, or GPUs one by one, or a TPU for one run at a time."""

import dataclasses
import math
import os
import subprocess
import sys

from plan_jax.errors import InputError

SEE_DEVICES = "import jax; devices = jax.local_devices(); print(devices[0].platform, len(devices))"
GPU_MEMORY = 0.9  # share of a device's memory that the runs on it divide among them


@dataclasses.dataclass(frozen=True)
class Place:
    """Where one run computes.

    Attributes:
        cores: that its process may use; empty for all.
        environment: variables that it gets besides the parent's.
    """

    cores: frozenset[int] = frozenset()
    environment: tuple[tuple[str, str], ...] = ()


def find_places(jobs: int | None = None) -> list[Place]:
    """The places of `jobs` runs on this machine; by default one per core or per GPU.

    InputError for no job, or where JAX finds no device.
    """
    if jobs is not None and jobs < 1:
        raise InputError(f"--jobs must be at least 1, got {jobs}; raise it")
    platform, count = devices_here()
    if platform == "cpu":
        return cpu_places(jobs)
    return gpu_places(jobs, count) if platform == "gpu" else [Place()]  # a TPU serves one process at a time


def cpu_places(jobs: int | None) -> list[Place]:
    """Each with its share of this process's cores: a pinned process per core trains more per second than one on all.

    More jobs than cores share them.
    """
    if not hasattr(os, "sched_getaffinity"):  # not Linux: nothing can be pinned
        return [Place()] * (jobs or os.cpu_count() or 1)
    cores = sorted(os.sched_getaffinity(0))
    jobs = jobs or len(cores)
    return [Place(frozenset(cores[job::jobs] or [cores[job % len(cores)]])) for job in range(jobs)]


def gpu_places(jobs: int | None, count: int) -> list[Place]:
    """Each with one of `count` devices; jobs that share a device divide its memory."""
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    devices = named.split(",") if named else [str(number) for number in range(count)]
    jobs = jobs or count
    sharing = math.ceil(jobs / count)
    memory = (("XLA_PYTHON_CLIENT_MEM_FRACTION", f"{GPU_MEMORY / sharing:.3f}"),) if sharing > 1 else ()
    return [Place(environment=(("CUDA_VISIBLE_DEVICES", devices[job % count]), *memory)) for job in range(jobs)]


def devices_here() -> tuple[str, int]:
    """Platform and number of JAX's devices, asked in a process that then lets go of them."""
    done = subprocess.run([sys.executable, "-c", SEE_DEVICES], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip() or "nothing").splitlines()[-1]
        raise InputError(f"JAX must find a device, got {said}; check JAX_PLATFORMS and the installation of jax")
    platform, count = done.stdout.split()[-2:]
    return platform, int(count)
