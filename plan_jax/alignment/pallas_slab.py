"""A matrix [W N] of one tile as a tuple of column tiles [W T], and what the tile's mathematics does with it."""

from collections.abc import Callable

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

Slab = tuple[Array, ...]


def dot(x: Array, y: Array, over: tuple[int, int]) -> Array:
    """Matrix product over one axis of each, summed in float32; operands in float32 are not rounded to less."""
    precision = lax.Precision.HIGHEST if x.dtype == jnp.float32 else lax.Precision.DEFAULT
    axes = (((over[0],), (over[1],)), ((), ()))
    return lax.dot_general(x, y, axes, precision=precision, preferred_element_type=jnp.float32)


def each(function: Callable[..., Array], *slabs: Slab) -> Slab:
    return tuple(function(*tiles) for tiles in zip(*slabs, strict=True))


def add(x: Slab, y: Slab) -> Slab:
    return each(lambda a, b: a + b, x, y)


def scale(factor: float | Float[Array, "W 1"], x: Slab) -> Slab:
    return each(lambda a: factor * a, x)


def row_sum(x: Slab, y: Slab | None = None) -> Float[Array, "W 1"]:
    """Over the columns, of x or of x * y."""
    tiles = x if y is None else each(lambda a, b: a * b, x, y)
    total = tiles[0].sum(axis=1, keepdims=True)
    for tile in tiles[1:]:
        total = total + tile.sum(axis=1, keepdims=True)
    return total


def row_max(x: Slab) -> Float[Array, "W 1"]:
    top = x[0].max(axis=1, keepdims=True)
    for tile in x[1:]:
        top = jnp.maximum(top, tile.max(axis=1, keepdims=True))
    return top


def to_reports(weight: Float[Array, "W M"], x: Float[Array, "W T"]) -> Float[Array, "M T"]:
    """The weighted sum of each report's words."""
    return dot(weight, x, (0, 0))  # [M T]


def to_words(weight: Float[Array, "W M"], x: Float[Array, "M T"]) -> Float[Array, "W T"]:
    """The row of each word's report, weighted."""
    return dot(weight, x, (1, 0))  # [W T]


def along_patches(x: Float[Array, "W T"], y: Float[Array, "M T"]) -> Float[Array, "W M"]:
    return dot(x, y, (1, 1))  # [W M]
