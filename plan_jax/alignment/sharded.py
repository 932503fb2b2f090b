"""All pairs over the devices of a mesh: each device its images against all reports.

Two ways for the reports to meet all images. `gather`: all devices gather a tile of reports from each, compute, and go
on to the next tile. `ring`: each holds the reports of one device at a time, computes, and has meanwhile sent them on to
its neighbour. The backward pass exchanges anew, so that nothing but a device's own features is kept for it.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float

from plan_jax.config import AlignmentConfig
from plan_jax.errors import InputError

BATCH_AXES = ("data", "fsdp")  # of a mesh; the batch is spread over those that it has

# Of the gathered words of a tile, in float32 as their cotangents are; a kernel needs a few times as much beside them.
TILE_BYTES = 2**28

# z [I R] of images and reports of one device, from patch [I N D], word [R L D], word_logit [R L] and mask [R L].
AllPairs = Callable[[Array, Array, Array, Array], Array]
Reports = tuple[Array, Array, Array]  # word, word_logit and mask of a shard


def batch_axes() -> tuple[str, ...]:
    """The axes of the mesh in force (`jax.set_mesh`) that the batch is spread over; none on a single device."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.axis_names)
    return axes if _devices(axes) > 1 else ()


def rows_over_devices(x: Float[Array, "I ..."]) -> Float[Array, "I ..."]:
    """The same, its rows spread over the devices like the batch: [I/devices ...] on each."""
    axes = batch_axes()
    return jax.lax.with_sharding_constraint(x, PartitionSpec(axes)) if axes else x


def sharded(
    all_pairs: AllPairs,
    patch: Float[Array, "I N D"],
    word: Float[Array, "R L D"],
    word_logit: Float[Array, "R L"],
    mask: Bool[Array, "R L"],
    *,
    config: AlignmentConfig,
) -> Float[Array, "I R"]:
    """z of all images with all reports, its rows spread over the devices like the images.

    Raises:
        InputError: the images or the reports do not divide evenly among the devices.
    """
    devices = _devices(batch_axes())
    for name, count in (("images", len(patch)), ("reports", len(word))):
        if count % devices:
            raise InputError(
                f"the number of {name} must be a multiple of the {devices} devices of the mesh, got {count}; "
                "change data.batch_size or the number of devices"
            )
    return _sharded(all_pairs, config, patch, word, word_logit, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _sharded(
    all_pairs: AllPairs, config: AlignmentConfig, patch: Array, word: Array, word_logit: Array, mask: Array
) -> Array:
    axes = batch_axes()
    body = functools.partial({"gather": _gathered, "ring": _ring}[config.exchange], all_pairs, axes)
    rows = PartitionSpec(axes)  # [I N D] -> [I/devices N D]; [R L D] -> [R/devices L D]; [I R] -> [I/devices R]
    return _on_each_device(body, rows, inputs=4)(*_narrow(config, patch, word), word_logit, mask)


def _forward(all_pairs: AllPairs, config: AlignmentConfig, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return _sharded(all_pairs, config, *inputs), inputs


def _backward(
    all_pairs: AllPairs, config: AlignmentConfig, inputs: tuple[Array, ...], cotangent: Array
) -> tuple[Array | None, ...]:
    patch, word, word_logit, mask = inputs
    axes = batch_axes()
    body = functools.partial({"gather": _pull_gathered, "ring": _pull_ring}[config.exchange], all_pairs, axes)
    found = _on_each_device(body, PartitionSpec(axes), inputs=5)(
        *_narrow(config, patch, word), word_logit, mask, cotangent
    )
    return *(of.astype(x.dtype) for of, x in zip(found, (patch, word, word_logit), strict=True)), None


_sharded.defvjp(_forward, _backward)


def _gathered(
    all_pairs: AllPairs, axes: tuple[str, ...], patch: Array, word: Array, word_logit: Array, mask: Array
) -> Array:
    def block(_: None, tile: Reports) -> tuple[None, Array]:
        """z of this device's images and the tile's reports of every device [I/devices devices reports]."""
        z = all_pairs(patch, *_all(tile, axes))
        return None, z.reshape(len(patch), _devices(axes), -1)

    size = _tile_reports(word, axes)
    _, z = _over_tiles(block, None, (word, word_logit, mask), axis=2, size=size)
    return z.reshape(len(patch), -1)


def _pull_gathered(
    all_pairs: AllPairs, axes: tuple[str, ...], patch: Array, word: Array, word_logit: Array, mask: Array, of_z: Array
) -> tuple[Array, ...]:
    columns = jnp.moveaxis(of_z.reshape(len(patch), _devices(axes), -1), 2, 0)  # [R/devices I/devices devices]

    def block(of_patch: Array, tile: tuple[Array, Array, Array, Array]) -> tuple[Array, tuple[Array, ...]]:
        word, word_logit, mask = _all(tile[:3], axes)
        of_block = jnp.moveaxis(tile[3], 0, 2).reshape(len(patch), -1)
        more, *of_reports = _pull(all_pairs, patch, word, word_logit, mask, of_z=of_block)
        own = (jax.lax.psum_scatter(x, axes, scatter_dimension=0, tiled=True) for x in of_reports)
        return of_patch + more, tuple(own)

    zero, reports = jnp.zeros(patch.shape, jnp.float32), (word, word_logit, mask, columns)
    of_patch, own = _over_tiles(block, zero, reports, axis=0, size=_tile_reports(word, axes))
    return of_patch, *own


def _over_tiles(block: Callable, carry: Any, reports: tuple[Array, ...], *, axis: int, size: int) -> tuple[Any, Any]:
    """Scans `block` over `size` reports of each device at a time, and joins its results along an axis of them.

    The last tile is short where `size` does not divide a device's reports.
    """
    count = len(reports[0])
    whole, parts = count // size, []
    if whole:
        tiles = tuple(x[: whole * size].reshape(whole, size, *x.shape[1:]) for x in reports)
        carry, found = jax.lax.scan(block, carry, tiles)
        parts.append(jax.tree.map(functools.partial(_joined, axis=axis), found))
    if count % size:
        carry, found = block(carry, tuple(x[whole * size :] for x in reports))
        parts.append(found)
    return carry, jax.tree.map(lambda *x: jnp.concatenate(x, axis=axis), *parts)


def _joined(blocks: Float[Array, "T ..."], *, axis: int) -> Float[Array, "..."]:
    """Blocks of tiles, one after the other along an axis of the blocks."""
    moved = jnp.moveaxis(blocks, 0, axis)
    return moved.reshape(*moved.shape[:axis], -1, *moved.shape[axis + 2 :])


def _tile_reports(word: Float[Array, "R L D"], axes: tuple[str, ...]) -> int:
    """Reports of each device that are gathered at a time: as many as keep within TILE_BYTES, and at least one."""
    return min(len(word), max(1, TILE_BYTES // (_devices(axes) * 4 * math.prod(word.shape[1:]))))


def _ring(
    all_pairs: AllPairs, axes: tuple[str, ...], patch: Array, word: Array, word_logit: Array, mask: Array
) -> Array:
    devices, own = _devices(axes), jax.lax.axis_index(axes)

    def step(reports: Reports, _: None) -> tuple[Reports, Array]:
        following = _sent_on(reports, axes)  # first, so that it travels while the device computes
        return following, all_pairs(patch, *reports)

    _, blocks = jax.lax.scan(step, (word, word_logit, mask), None, length=devices)  # [devices I R/devices]
    # Block k holds the reports of the device k places before this one.
    order = (own - jnp.arange(devices)) % devices
    return jnp.moveaxis(blocks[order], 0, 1).reshape(len(patch), -1)


def _pull_ring(
    all_pairs: AllPairs, axes: tuple[str, ...], patch: Array, word: Array, word_logit: Array, mask: Array, of_z: Array
) -> tuple[Array, ...]:
    devices, own, count = _devices(axes), jax.lax.axis_index(axes), len(word)

    def step(carry: tuple[Array, Reports, tuple], number: Array) -> tuple[tuple[Array, Reports, tuple], None]:
        of_patch, reports, of_reports = carry
        following = _sent_on(reports, axes)
        column = ((own - number) % devices) * count
        block = jax.lax.dynamic_slice_in_dim(of_z, column, count, axis=1)
        more, *parts = _pull(all_pairs, patch, *reports, of_z=block)
        # The sums travel with their reports and are at home after the last step.
        total = tuple(old + new for old, new in zip(of_reports, parts, strict=True))
        return (of_patch + more, following, _sent_on(total, axes)), None

    zero = tuple(jnp.zeros(x.shape, jnp.float32) for x in (patch, word, word_logit))
    carry = zero[0], (word, word_logit, mask), zero[1:]
    (of_patch, _, of_reports), _ = jax.lax.scan(step, carry, jnp.arange(devices))
    return of_patch, *of_reports


def _pull(
    all_pairs: AllPairs, patch: Array, word: Array, word_logit: Array, mask: Array, *, of_z: Array
) -> tuple[Array, ...]:
    """Cotangents in float32 of the first three, whatever the dtype that was exchanged."""
    inputs = tuple(x.astype(jnp.float32) for x in (patch, word, word_logit))
    _, pull = jax.vjp(lambda patch, word, logit: all_pairs(patch, word, logit, mask), *inputs)
    return pull(of_z)


def _all(reports: Reports, axes: tuple[str, ...]) -> Reports:
    return jax.lax.all_gather(reports, axes, tiled=True)


def _sent_on(arrays: Any, axes: tuple[str, ...]) -> Any:
    """What the device before this one holds."""
    devices = _devices(axes)
    return jax.lax.ppermute(arrays, axes, [(device, (device + 1) % devices) for device in range(devices)])


def _narrow(config: AlignmentConfig, *arrays: Array) -> tuple[Array, ...]:
    return tuple(x.astype(config.dtype) for x in arrays)


def _on_each_device(body: Callable, rows: PartitionSpec, *, inputs: int) -> Callable:
    # Loops begin with zeros, which vary over no axis, and carry what does: the check would refuse them.
    return jax.shard_map(body, in_specs=(rows,) * inputs, out_specs=rows, check_vma=False)


def _devices(axes: tuple[str, ...]) -> int:
    return math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes)
