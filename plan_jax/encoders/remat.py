"""What a block of an encoder keeps of its forward pass for its backward pass, which computes the rest again."""

from typing import Any

import jax
from flax import linen as nn


def rematerialised(block: type[nn.Module], policy: str, *, prevent_cse: bool = True) -> Any:
    """The module class `block`, whose instances keep what `policy` says.

    Args:
        policy: "none": all that the derivative reads. "products": what enters the block and what convolutions and
            products with a kernel give; norms, activations and the products of attention, whose results grow with the
            square of the tokens, are computed again. "block": what enters the block.
        prevent_cse: False where something else, such as a scan, keeps the compiler from sharing both computations.
    """
    if policy == "none":
        return block
    return nn.remat(block, prevent_cse=prevent_cse, policy=_is_product if policy == "products" else None)


def _is_product(primitive: Any, *inputs: Any, **params: Any) -> bool:
    """A JAX checkpoint policy: whether the result of an operation is kept."""
    convolution = primitive is jax.lax.conv_general_dilated_p
    return convolution or jax.checkpoint_policies.dots_with_no_batch_dims_saveable(primitive, *inputs, **params)
