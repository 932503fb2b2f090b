"""The local similarity of all pairs, by the implementation and over the devices at hand."""

import functools

import jax
from jaxtyping import Array, Float

from plan_jax.alignment import reference, scan
from plan_jax.alignment.sharded import batch_axes, sharded
from plan_jax.config import AlignmentConfig
from plan_jax.types import ImageFeatures, TextFeatures

KERNELS_FOR = ("tpu", "gpu", "cuda")  # platforms with a fused kernel
IMPLEMENTATIONS = {"reference": reference.all_pairs, "scan": scan.all_pairs}


@functools.partial(jax.jit, static_argnames="config")
def word_patch_similarity(
    image_features: ImageFeatures, text_features: TextFeatures, *, config: AlignmentConfig
) -> Float[Array, "I R"]:
    """z of every image with every report; under a mesh (`jax.set_mesh`) spread over its devices, row by row.

    Raises:
        InputError: under a mesh, the images or the reports do not divide evenly among its devices.
    """
    inputs = image_features.patch, text_features.word, text_features.word_logit, text_features.mask
    chosen = _best_here() if config.implementation == "auto" else config.implementation
    all_pairs = functools.partial(IMPLEMENTATIONS[chosen], config)
    if batch_axes():
        return sharded(all_pairs, *inputs, config=config)
    return all_pairs(*inputs)


def _best_here() -> str:
    """The implementation for the devices of the mesh in force, which may not be here, or for the default device."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = getattr(device, "platform", None) or jax.default_backend()
    return "pallas" if platform in KERNELS_FOR else "scan"
