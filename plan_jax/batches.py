"""A function over many rows, in padded pieces of few shapes, so that it is compiled a few times only.

Under a mesh every piece is spread over its devices. What goes in and comes out lies on the host; where the devices
belong to several processes, all of them call with the same rows, and each gets all results.
"""

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh

from plan_jax.sharding import over_data

GROWTH = 4  # of the shapes of fewer rows than a whole piece: 1, 4, 16, ...; at most so many times the work is padding


def in_batches(function: Callable, arguments: tuple, *, size: int, mesh: Mesh | None = None) -> Any:
    """`function` of trees of arrays over their first axis, `size` rows at a time; its results joined."""
    with _in_force(mesh):
        parts = [(function(*piece), count) for piece, count in _pieces(arguments, size, mesh)]
        return jax.tree.map(
            lambda *leaves: _joined(leaves, [count for _, count in parts]), *(part for part, _ in parts)
        )


def over_pairs(function: Callable, images: Any, texts: Any, *, size: int, mesh: Mesh | None = None) -> np.ndarray:
    """`function(images, texts)` [I R ...] over the first axes of both, at most `size` x `size` at a time."""
    with _in_force(mesh):
        columns = list(_pieces(texts, size, mesh))
        widths = [count for _, count in columns]
        rows = [
            ([function(piece, column) for column, _ in columns], count) for piece, count in _pieces(images, size, mesh)
        ]
        whole = [np.concatenate([_on_host(x)[:n, :w] for x, w in zip(row, widths, strict=True)], 1) for row, n in rows]
    return np.concatenate(whole)


def _pieces(tree: Any, size: int, mesh: Mesh | None) -> Iterator[tuple[Any, int]]:
    """Padded pieces of equal shape on the devices, and how many rows of each are real."""
    count = len(jax.tree.leaves(tree)[0])
    shape = _shape(count, size, 1 if mesh is None else mesh.size)
    for start in range(0, count, shape):
        piece = tree  # where it needs no cutting it may lie on a device, and stays there
        if count != shape:
            piece = jax.tree.map(lambda leaf, start=start: _padded(leaf[start : start + shape], shape), tree)
        yield piece if mesh is None else on_mesh(piece, mesh), min(shape, count - start)


def on_mesh(tree: Any, mesh: Mesh) -> Any:
    """Arrays with a leading batch axis over the devices, of which some may be those of other processes with the same.

    jax.device_put would send all rows around to compare them, and show them where they differ.
    """
    rows = over_data(mesh)
    if rows.is_fully_addressable:
        return jax.device_put(tree, rows)

    def spread(leaf: Any) -> jax.Array:
        return jax.make_array_from_callback(np.shape(leaf), rows, lambda part: np.asarray(leaf)[part])

    return jax.tree.map(spread, tree)


def _shape(count: int, size: int, devices: int) -> int:
    """Rows of a piece: `size`, or less of few shapes where there are fewer rows; a multiple of the devices."""
    shape = 1
    while shape < min(count, size):
        shape *= GROWTH
    return -(-min(shape, size) // devices) * devices


def _padded(leaf: Any, shape: int) -> np.ndarray:
    """The first axis filled up with copies of the last row."""
    leaf = np.asarray(leaf)
    missing = shape - len(leaf)
    return np.concatenate([leaf, np.repeat(leaf[-1:], missing, axis=0)]) if missing else leaf


def _joined(leaves: tuple, counts: list[int]) -> np.ndarray:
    return np.concatenate([_on_host(leaf)[:count] for leaf, count in zip(leaves, counts, strict=True)])


def _on_host(leaf: Any) -> np.ndarray:
    """All of an array, also of one whose devices belong to several processes: then each gets what the others have."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


def _in_force(mesh: Mesh | None) -> contextlib.AbstractContextManager:
    return contextlib.nullcontext() if mesh is None else jax.set_mesh(mesh)
