"""The length of every block of a network's parameters, or of their gradient."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plan_jax.train.rules import STACKED, parameter_paths


def block_norms(tree: Any, name: str) -> dict[str, Float[Array, ""]]:
    """L2 norm of every block of a tree like that of the parameters: "NAME/image_encoder/stage3_block0".

    A block is all that lies below two names, "NAME/text_encoder/word", below three in a stack of layers, of which each
    is a block, "NAME/text_encoder/layers/11", or below one where a module has parameters only, "NAME/word_score". The
    squares of all blocks sum to that of the whole. Every leaf is read once.
    """
    paths = [[path.split("/") for path in row] for row in parameter_paths(tree)]
    nested = {row[0][0] for row in paths if len(row[0]) > 2}
    squares: dict[tuple[str, ...], Array] = {}  # of the blocks of a stack, or of one
    for row, leaf in zip(paths, jax.tree.leaves(tree), strict=True):
        blocks = tuple(_block(names, nested) for names in row)
        # Summed axis by axis, not flattened: a parameter that lies in parts on several devices would be gathered.
        axes = range(1 if len(blocks) > 1 else 0, leaf.ndim)
        square = jnp.square(leaf.astype(jnp.float32)).sum(axis=tuple(axes)).reshape(len(blocks))
        squares[blocks] = squares.get(blocks, 0.0) + square  # [layers] or [1]
    norms = {blocks: jnp.sqrt(square) for blocks, square in squares.items()}
    return {f"{name}/{block}": norm[i] for blocks, norm in norms.items() for i, block in enumerate(blocks)}


def _block(names: list[str], nested: set[str]) -> str:
    """The block of a parameter's path; `nested` are the first names below which modules lie, not parameters alone."""
    if STACKED in names[:-1]:
        return "/".join(names[: names.index(STACKED) + 2])
    return "/".join(names[: 2 if names[0] in nested else 1])
