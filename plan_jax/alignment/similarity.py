"""The local similarity of all pairs, by the implementation and over the devices at hand."""

import functools

import jax
from jaxtyping import Array, Float

from plan_jax.alignment import pallas, reference, scan
from plan_jax.alignment.platform import GPU, TPU, device_kind, platform_here
from plan_jax.alignment.sharded import batch_axes, sharded
from plan_jax.config import AlignmentConfig
from plan_jax.types import ImageFeatures, TextFeatures

IMPLEMENTATIONS = {"reference": reference.all_pairs, "scan": scan.all_pairs, "pallas": pallas.all_pairs}
SMALL_MEMORY = "TPU v4"  # its fast memory does not hold the backward pass of the fused kernel


@functools.partial(jax.jit, static_argnames="config")
def word_patch_similarity(
    image_features: ImageFeatures, text_features: TextFeatures, *, config: AlignmentConfig
) -> Float[Array, "I R"]:
    """z of every image with every report; under a mesh (`jax.set_mesh`) spread over its devices, row by row.

    Raises:
        InputError: under a mesh, the images or the reports do not divide evenly among its devices.
    """
    inputs = image_features.patch, text_features.word, text_features.word_logit, text_features.mask
    chosen = best_here(config) if config.implementation == "auto" else config.implementation
    all_pairs = functools.partial(IMPLEMENTATIONS[chosen], config)
    if batch_axes():
        return sharded(all_pairs, *inputs, config=config)
    return all_pairs(*inputs)


def best_here(config: AlignmentConfig) -> str:
    """The implementation for the platform that the program is traced for."""
    platform = platform_here()
    if platform in GPU:
        return "scan" if config.importance else "pallas"
    return "pallas" if platform in TPU and not device_kind().startswith(SMALL_MEMORY) else "scan"
