"""Chips that are not here, as devices to compile for."""

import dataclasses
import math
import os
import re
from typing import Any

import jax
from jax.experimental import topologies

from plan_jax.errors import InputError

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """A kind of chip: its JAX platform and its memory in bytes (None: not known, everything fits)."""

    platform: str
    memory: int | None
    example: str


# Memory: Google Cloud's documentation of TPU v4, v5e, v5p and v6e ("System architecture": HBM2 capacity per chip), and
# NVIDIA's H100 SXM as its driver reports it (80 GB of HBM3). A TPU's compiler keeps a little of it to itself (15.75 of
# 16 GiB on v5e) and refuses a program that needs more.
CHIPS = {
    "v4": Chip("tpu", 32 * GIB, "v4:4x4x4"),
    "v5e": Chip("tpu", 16 * GIB, "v5e:16x16"),
    "v5p": Chip("tpu", 95 * GIB, "v5p:4x4x4"),
    "v6e": Chip("tpu", 32 * GIB, "v6e:16x16"),
    "h100": Chip("cuda", 84_942_979_072, "h100:1x1x8"),
    "cpu": Chip("cpu", None, "cpu:4"),
}

INSTALL = {
    "tpu": "pip install 'plan_jax[tpu]', or pip install 'jax[tpu]==JAX'",
    "cuda": "pip install 'plan_jax[cuda]', or pip install 'jax[cuda13]==JAX'",
}

# The facts of an H100 SXM that XLA's GPU compiler asks for, as its TargetConfig message.
H100 = """
gpu_device_info {
  cuda_compute_capability { major: 9 minor: 0 }
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_core: 233472 shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  l2_cache_size: 52428800 memory_bandwidth: 3352320000000 device_memory_size: 84942979072
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 10 patch: 0 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""


@dataclasses.dataclass(frozen=True)
class Topology:
    """What `--topology` names: a kind of chip and how many along each axis."""

    name: str
    chip: Chip
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of chips."""
        return math.prod(self.shape)


def parse_topology(name: str) -> Topology:
    """The topology of a name such as v5e:16x16.

    Raises:
        InputError: the chip is not known or the shape is not written so.
    """
    kind, _, shape = name.partition(":")
    if kind not in CHIPS:
        raise InputError(f"--topology must begin with one of {', '.join(CHIPS)}, got {name!r}; for example v5e:16x16")
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){0,2}", shape):
        raise InputError(
            f"--topology must give the number of chips along each axis, got {name!r}; write it as {CHIPS[kind].example}"
        )
    return Topology(name, CHIPS[kind], tuple(map(int, shape.split("x"))))


def devices_of(topology: Topology) -> list[Any]:
    """The devices of a topology, one per chip: they can be compiled for, not run on.

    "cpu:N" are devices of this machine. Must come before anything else asks JAX for devices.

    Raises:
        InputError: the compiler is not installed, or it knows no slice of this shape.
    """
    if topology.chip.platform == "cpu":
        return _cpu_devices(topology)
    # Nothing here may wait for, or take, an accelerator of this machine.
    jax.config.update("jax_platforms", "cpu")
    try:
        described = _tpu(topology) if topology.chip.platform == "tpu" else _gpu(topology)
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).splitlines()[0]
        raise InputError(
            f"--topology must be a shape that is built, got {topology.name}: {reason}; for example "
            f"{topology.chip.example}"
        ) from error
    except (RuntimeError, NotImplementedError, OSError) as error:
        how = INSTALL[topology.chip.platform].replace("JAX", jax.__version__)
        raise InputError(f"{topology.name} must have its compiler installed, got none; {how}") from error
    if len(described.devices) != topology.size:
        raise InputError(
            f"--topology must give one device per chip, got {len(described.devices)} for {topology.name}; "
            f"for example {topology.chip.example}"
        )
    return list(described.devices)


def _tpu(topology: Topology) -> topologies.TopologyDescription:
    # Without these, libtpu asks the network which machine it is on, and says on stderr that it is on none.
    for variable, value in {
        "TPU_SKIP_MDS_QUERY": "1",
        "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
        "TPU_WORKER_HOSTNAMES": "localhost",
        "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    }.items():
        os.environ.setdefault(variable, value)
    options = {}
    if topology.name.startswith("v4:"):
        options["chip_config_name"] = "megacore"  # the two cores of a v4 chip as one device, as JAX has them
    if topology.size == 1:
        options["chips_per_host_bounds"] = [1, 1, 1]
    return topologies.get_topology_desc(platform="tpu", topology_name=topology.name, **options)


def _gpu(topology: Topology) -> topologies.TopologyDescription:
    shape = "x".join(map(str, (1,) * (3 - len(topology.shape)) + topology.shape))  # slices x hosts x GPUs of a host
    return topologies.get_topology_desc("h100", "cuda", topology=shape, target_config=H100)


def _cpu_devices(topology: Topology) -> list[Any]:
    try:
        jax.config.update("jax_platforms", "cpu")
        jax.config.update("jax_num_cpu_devices", topology.size)
    except RuntimeError:  # JAX has its devices already
        pass
    devices = jax.devices("cpu")
    if len(devices) < topology.size:
        raise InputError(f"{topology.name} must have {topology.size} CPU devices, got {len(devices)}; lower it")
    return devices[: topology.size]
