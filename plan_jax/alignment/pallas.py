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
from jaxtyping import Array, Bool, Float

from plan_jax.alignment import pallas_gpu, pallas_tpu
from plan_jax.alignment.pallas_pack import Packed, pack, put, take
from plan_jax.alignment.platform import GPU, TPU, platform_here
from plan_jax.config import AlignmentConfig
from plan_jax.errors import InputError

Run = Callable[..., Any]  # runs a function of (kernels, interpret, *arrays) on these arrays


def all_pairs(
    config: AlignmentConfig,
    patch: Float[Array, "I N D"],
    word: Float[Array, "R L D"],
    word_logit: Float[Array, "R L"],
    mask: Bool[Array, "R L"],
) -> Float[Array, "I R"]:
    """Local similarity z of every image with every report.

    Raises:
        InputError: the platform is a GPU and the configuration has patch importance.
    """
    platform = platform_here()
    if platform in GPU and config.importance:
        # Patches that weigh differently for each report tie its words together: a GPU cannot hold so many at once.
        raise InputError(
            f"alignment.importance must be 0 for the fused kernel on a GPU, got {config.importance}; "
            "set alignment.implementation to auto or scan"
        )
    run = compiled(pallas_tpu) if platform in TPU else compiled(pallas_gpu) if platform in GPU else INTERPRETED
    return fused(config, run, patch, word, word_logit, mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def fused(config: AlignmentConfig, run: Run, patch: Array, word: Array, word_logit: Array, mask: Array) -> Array:
    """z by the kernels that `run` chooses."""

    def similarity(kernels: ModuleType, interpret: bool, patch: Array, *texts: Array) -> Array:
        packed = _packed(kernels, *texts, config=config)
        return kernels.similarity(patch.astype(config.dtype), packed, config=config, interpret=interpret)

    return run(similarity, patch, word, word_logit, mask)


def compiled(kernels: ModuleType) -> Run:
    """Runs these kernels on their platform."""
    return lambda function, *arrays: function(kernels, False, *arrays)


def interpreted(kernels: ModuleType) -> Run:
    """Runs these kernels on any platform."""
    return lambda function, *arrays: function(kernels, True, *arrays)


INTERPRETED = interpreted(pallas_tpu)


def _forward(config: AlignmentConfig, run: Run, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return fused(config, run, *inputs), inputs


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


fused.defvjp(_forward, _backward)


def _packed(kernels: ModuleType, word: Array, word_logit: Array, mask: Array, *, config: AlignmentConfig) -> Packed:
    sheets = pack(mask, rows=kernels.sheet_rows(*mask.shape), lanes=kernels.LANES)
    return Packed(take(word, sheets).astype(config.dtype), take(word_logit, sheets), sheets)
