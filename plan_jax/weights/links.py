"""One tensor of theirs, one place of ours: what an architecture's table is made of, and how it is gone through.

A table (`resnet_names`, `bert_names`, `vit_names`) is read in both directions, so what comes in goes out bit for bit.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from plan_jax.errors import InputError

SHOWN = 5  # names in a message
# What `np.transpose` takes to go from their order of axes to ours.
CONV, DENSE, SAME = (2, 3, 1, 0), (1, 0), None
Axes = tuple[int, ...] | None


@dataclasses.dataclass(frozen=True)
class Link:
    """A tensor of theirs and the numbers of ours that are the same.

    Attributes:
        name: theirs.
        paths: ours, from the encoder's variables on; several where they keep in one tensor, along its first axis, what
            are several parameters here.
        axes: CONV, DENSE or SAME.
        layer: index on the first axis of our parameter, where layers are stacked.
    """

    name: str
    paths: tuple[tuple[str, ...], ...]
    axes: Axes = SAME
    layer: int | None = None


@dataclasses.dataclass(frozen=True)
class Taken:
    """What became of their tensors.

    Attributes:
        values: our leaves, by path.
        summed: first kernels whose channels were summed, because ours has one.
    """

    values: dict[tuple[str, ...], np.ndarray]
    summed: tuple[str, ...]


def take(tensors: Mapping[str, np.ndarray], links: Sequence[Link], template: Any, *, where: str) -> Taken:
    """Our leaves, filled from their tensors.

    Args:
        template: the encoder's variables, of which the shapes are read.
        where: names the tensors' origin in errors.

    Raises:
        InputError: a tensor is missing, has another shape or a number that is not finite.
    """
    missing = [link.name for link in links if link.name not in tensors]
    if missing:
        raise InputError(
            f"{where} must hold every tensor of the configured encoder, got none named {some(missing)}; they are of "
            f"another architecture or size and hold {some(sorted(tensors))}: change the config or the weights"
        )
    shapes = {_path(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(template)}
    values = {path: np.empty(shapes[path], np.float32) for link in links for path in link.paths}
    summed = []
    for link in links:
        tensor = np.asarray(tensors[link.name], np.float32)
        if _sums_channels(link, tensor, shapes):
            tensor = tensor.sum(axis=1, keepdims=True)
            summed.append(link.name)
        _fill(values, link, tensor, where)
    return Taken(values, tuple(summed))


def give(links: Iterable[Link], variables: Any) -> dict[str, np.ndarray]:
    """Their tensors, from our variables: the inverse of `take`."""
    ours = {_path(keys): np.asarray(leaf) for keys, leaf in jax.tree_util.tree_leaves_with_path(variables)}
    tensors = {}
    for link in links:
        parts = [ours[path] if link.layer is None else ours[path][link.layer] for path in link.paths]
        parts = [part if link.axes is None else part.transpose(np.argsort(link.axes)) for part in parts]
        tensors[link.name] = np.concatenate(parts) if len(parts) > 1 else parts[0]
    return tensors


def replaced(variables: Any, values: Mapping[tuple[str, ...], np.ndarray]) -> Any:
    """The variables with the leaves of `values`, placed as those they replace."""

    def leaf(keys: Any, old: Any) -> Any:
        new = values.get(_path(keys))
        return old if new is None else jax.device_put(new.astype(old.dtype), old.sharding)

    return jax.tree_util.tree_map_with_path(leaf, variables)


def _fill(values: dict[tuple[str, ...], np.ndarray], link: Link, tensor: np.ndarray, where: str) -> None:
    """Writes one tensor into the leaves it belongs to."""
    places = [values[path] if link.layer is None else values[path][link.layer] for path in link.paths]
    order = None if link.axes is None else np.argsort(link.axes)
    wanted = [place.shape if order is None else tuple(place.shape[i] for i in order) for place in places]
    whole = (sum(shape[0] for shape in wanted), *wanted[0][1:]) if len(wanted) > 1 else wanted[0]
    if tensor.shape != whole:
        raise InputError(
            f"{where}: {link.name} must have the shape {whole} of {'/'.join(link.paths[0])} in the configured encoder, "
            f"got {tensor.shape}; change the encoder's sizes in the config or take other weights"
        )
    if not np.isfinite(tensor).all():
        raise InputError(f"{where}: {link.name} must be finite, got NaN or infinity in it; download it again")
    ends = np.cumsum([shape[0] for shape in wanted[:-1]]) if len(wanted) > 1 else ()
    for place, part in zip(places, np.split(tensor, ends) if len(wanted) > 1 else [tensor], strict=True):
        place[...] = part if link.axes is None else part.transpose(link.axes)


def _sums_channels(link: Link, tensor: np.ndarray, shapes: Mapping[tuple[str, ...], tuple[int, ...]]) -> bool:
    """Whether the tensor is a first kernel for three channels that is to meet gray images only."""
    shape = shapes[link.paths[0]]
    return link.axes == CONV and tensor.ndim == 4 and tensor.shape[1] == 3 and shape[2] == 1


def _path(keys: Any) -> tuple[str, ...]:
    return tuple(key.key for key in keys)


def some(names: Sequence[str]) -> str:
    """The first names of a list, and how many more there are."""
    shown = ", ".join(names[:SHOWN])
    return shown if len(names) <= SHOWN else f"{shown} and {len(names) - SHOWN} more"
