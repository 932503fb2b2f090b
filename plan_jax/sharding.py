"""Devices: the one place where meshes are built, and how the arrays of a run lie on them.

Every mesh has the axes of `AXES`, and Auto axes: jax.make_mesh would give Explicit ones, under which Linen's gradients
and scans over a sharded axis fail. The mesh in force is that of `jax.set_mesh`; code below the training step asks
`jax.sharding.get_abstract_mesh()` for it.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from plan_jax.alignment.sharded import BATCH_AXES
from plan_jax.errors import InputError

AXES = BATCH_AXES  # pairs of image and report lie over both: each device holds B / devices of them
DATA, FSDP = AXES  # FSDP: parameters and moments lie over it too, DATA has copies of them


def make_mesh(devices: Sequence[Any] | None = None, *, fsdp: int = 1) -> Mesh:
    """A mesh of all devices, or of the given ones, as jax.devices() names them: [devices / fsdp, fsdp].

    Raises:
        InputError: `fsdp` does not divide the number of devices.
    """
    chosen = list(jax.devices() if devices is None else devices)
    if len(chosen) % fsdp:
        raise InputError(f"config.mesh.fsdp must divide the {len(chosen)} devices, got {fsdp}; change it")
    shape = (len(chosen) // fsdp, fsdp)
    return jax.make_mesh(shape, AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=chosen)


def over_data(mesh: Mesh) -> NamedSharding:
    """Arrays with a leading batch axis, such as every leaf of a Batch and of the features: [B/devices ...]."""
    return NamedSharding(mesh, PartitionSpec(AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """Arrays of which every device holds all, such as the step and the metrics: [...]."""
    return NamedSharding(mesh, PartitionSpec())


def spread(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays with a leading batch axis over the devices; as they are without a mesh or where they cannot be cut evenly.

    The first are [B/devices ...], the others on every device.
    """
    if mesh is None or any(len(leaf) % mesh.size for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.device_put(tree, over_data(mesh))


def placed(tree: Any, sharding: Any) -> Any:
    """The shapes of a tree of arrays or shapes, lying as told: what a program is compiled from.

    `sharding` is one for all leaves, or a tree like `tree` with one for each.
    """
    if isinstance(sharding, NamedSharding):
        sharding = jax.tree.map(lambda _: sharding, tree)
    return jax.tree.map(lambda leaf, of: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=of), tree, sharding)


def rows_by_process(mesh: Mesh, count: int) -> list[list[int]]:
    """Which of `count` rows lie on the devices of each process, in rising order; processes by their index.

    Raises:
        InputError: a process of JAX has no device in the mesh.
    """
    rows: list[list[int]] = [[] for _ in range(jax.process_count())]
    for device, (part,) in over_data(mesh).devices_indices_map((count,)).items():
        rows[device.process_index] += range(*part.indices(count))
    if not all(rows):
        raise InputError(
            f"config.mesh.devices must be 0, all devices, where several processes train, got a mesh of {mesh.size}; "
            "leave it out"
        )
    return [sorted(of) for of in rows]


def check_batch(size: int, mesh: Mesh, *, parts: int = 1) -> None:
    """InputError where a global batch cannot be cut into so many micro-batches of equal parts for every device."""
    if size % (mesh.size * parts):
        times = f" times {parts} micro-batches" if parts > 1 else ""
        raise InputError(
            f"config.data.batch_size must be a multiple of the {mesh.size} devices{times}, got {size}; change it"
        )
