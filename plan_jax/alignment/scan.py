"""All pairs of a batch with the memory of one image against all reports.

Images are the outer loop: each step is a few 2-D matrix products of all words of all reports, [R*L D] x [D N], and the
backward pass recomputes it, so that nothing of size I*R*L*N is ever held. Values and gradients are those of
`plan_jax.alignment.reference`, whose equations it calls.
"""

import functools

import jax
from jaxtyping import Array, Float

from plan_jax.alignment.reference import local_similarity
from plan_jax.config import AlignmentConfig
from plan_jax.types import ImageFeatures, TextFeatures


@functools.partial(jax.jit, static_argnames="config")
def word_patch_similarity(
    image_features: ImageFeatures, text_features: TextFeatures, *, config: AlignmentConfig
) -> Float[Array, "I R"]:
    """Local similarity z of every image with every report."""

    @jax.checkpoint
    def one_image(patch: Float[Array, "N D"]) -> Float[Array, " R"]:
        def one_report(word, word_logit, mask):
            return local_similarity(word, patch, word_logit, mask, config=config)

        return jax.vmap(one_report)(text_features.word, text_features.word_logit, text_features.mask)

    return jax.lax.map(one_image, image_features.patch)
