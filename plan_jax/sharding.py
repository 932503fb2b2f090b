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

DATA = BATCH_AXES[0]  # pairs of image and report: each device holds B / devices of them
AXES = (DATA,)


def make_mesh(devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of all devices, or of the given ones, as jax.devices() names them."""
    chosen = list(jax.devices() if devices is None else devices)
    return jax.make_mesh((len(chosen),), AXES, axis_types=(AxisType.Auto,) * len(AXES), devices=chosen)


def over_data(mesh: Mesh) -> NamedSharding:
    """Arrays with a leading batch axis, such as every leaf of a Batch and of the features: [B/devices ...]."""
    return NamedSharding(mesh, PartitionSpec(DATA))


def replicated(mesh: Mesh) -> NamedSharding:
    """Arrays of which every device holds all, such as every leaf of a TrainState: [...]."""
    return NamedSharding(mesh, PartitionSpec())


def spread(tree: Any, mesh: Mesh | None) -> Any:
    """Arrays with a leading batch axis over the devices; as they are without a mesh or where they cannot be cut evenly.

    The first are [B/devices ...], the others on every device.
    """
    if mesh is None or any(len(leaf) % mesh.shape[DATA] for leaf in jax.tree.leaves(tree)):
        return tree
    return jax.device_put(tree, over_data(mesh))


def placed(tree: Any, sharding: NamedSharding) -> Any:
    """The shapes of a tree of arrays or shapes, lying as told: what a program is compiled from."""
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), tree)


def check_batch(size: int, mesh: Mesh) -> None:
    """InputError where a global batch cannot be cut into equal parts."""
    if size % mesh.shape[DATA]:
        raise InputError(
            f"config.data.batch_size must be a multiple of the {mesh.shape[DATA]} devices, got {size}; change it"
        )
