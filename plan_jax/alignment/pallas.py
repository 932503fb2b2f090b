"""All pairs of a batch in fused kernels, for TPU and for GPU: of all that a pair needs, z alone is written.

Values and gradients are those of `plan_jax.alignment.reference`. The backward pass keeps the inputs only and computes
every tile anew, with the reverse of the equations by hand (`pallas_tile`, `pallas_head`). How reports share a tile is
`pallas_pack`'s, how tiles are gone through and sums are made `pallas_tpu`'s and `pallas_gpu`'s. On other platforms the
kernels for TPU are interpreted, which is slow: `plan_jax.alignment.scan` is the form for those.

Inside `jax.shard_map` the kernels need `check_vma=False`; outside of it they do not run on several devices.
"""

import functools
from collections.abc import Callable
from types import ModuleType
from typing import Any

import jax
from jaxtyping import Array, Float

from plan_jax.alignment import pallas_gpu, pallas_tpu, scan
from plan_jax.alignment.pallas_pack import Packed, pack, put, take
from plan_jax.config import AlignmentConfig
from plan_jax.types import ImageFeatures, TextFeatures

Run = Callable[..., Any]  # runs a function of (kernels, interpret, *arrays) on these arrays


@functools.partial(jax.jit, static_argnames="config")
def word_patch_similarity(
    image_features: ImageFeatures, text_features: TextFeatures, *, config: AlignmentConfig
) -> Float[Array, "I R"]:
    """Local similarity z of every image with every report."""

    def fused(images: ImageFeatures, texts: TextFeatures) -> Array:
        return all_pairs(config, on_this_platform, images.patch, texts.word, texts.word_logit, texts.mask)

    if not config.importance:
        return fused(image_features, text_features)
    # Patches that weigh differently for each report tie its words together: a GPU cannot hold so many at once.
    plain = functools.partial(scan.word_patch_similarity, config=config)
    return jax.lax.platform_dependent(image_features, text_features, cuda=plain, default=fused)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def all_pairs(config: AlignmentConfig, run: Run, patch: Array, word: Array, word_logit: Array, mask: Array) -> Array:
    """z [I R] of patch [I N D], word [R L D], word_logit [R L] and mask [R L], by the kernels that `run` chooses."""

    def similarity(kernels: ModuleType, interpret: bool, patch: Array, *texts: Array) -> Array:
        packed = _packed(kernels, *texts, config=config)
        return kernels.similarity(patch.astype(config.dtype), packed, config=config, interpret=interpret)

    return run(similarity, patch, word, word_logit, mask)


def on_this_platform(function: Callable, *arrays: Array) -> Any:
    """Runs the kernels of the platform that the program is compiled for."""
    return jax.lax.platform_dependent(
        *arrays,
        tpu=functools.partial(function, pallas_tpu, False),
        cuda=functools.partial(function, pallas_gpu, False),
        default=functools.partial(function, pallas_tpu, True),
    )


def interpreted(kernels: ModuleType) -> Run:
    """Runs these kernels on any platform, for tests."""
    return lambda function, *arrays: function(kernels, True, *arrays)


def _forward(config: AlignmentConfig, run: Run, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return all_pairs(config, run, *inputs), inputs


def _backward(
    config: AlignmentConfig, run: Run, inputs: tuple[Array, ...], of_z: Array
) -> tuple[Array, Array, Array, None]:
    def gradients(kernels: ModuleType, interpret: bool, of_z: Array, patch: Array, *texts: Array):
        packed, (word, word_logit, _) = _packed(kernels, *texts, config=config), texts
        of_patch, of_word, of_logit = kernels.gradients(
            patch.astype(config.dtype), packed, of_z, config=config, interpret=interpret
        )
        of_word, of_logit = put(of_word, packed.sheets, word), put(of_logit, packed.sheets, word_logit)
        return of_patch.astype(patch.dtype), of_word, of_logit

    return *run(gradients, of_z, *inputs), None


all_pairs.defvjp(_forward, _backward)


def _packed(kernels: ModuleType, word: Array, word_logit: Array, mask: Array, *, config: AlignmentConfig) -> Packed:
    sheets = pack(mask, rows=kernels.sheet_rows(*mask.shape), lanes=kernels.LANES)
    return Packed(take(word, sheets).astype(config.dtype), take(word_logit, sheets), sheets)
