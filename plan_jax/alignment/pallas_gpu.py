"""The kernels for GPU, in Triton: a program keeps its tile in registers; sums over tiles meet in the L2 cache.

A GPU runs programs in any order and at once. To be the same every time, each sum belongs to one program: the gradient
of a patch to that of its image, which goes through all sheets, the gradient of a word to that of its sheet, which goes
through all images. The two kernels share all code but the sums that they make (`pallas_gpu_kernel`).

There is no patch importance here: `config.importance` must be 0.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from plan_jax.alignment.pallas_gpu_kernel import LANES, TILE, Form, Inputs, forward_kernel, patch_kernel, word_kernel
from plan_jax.alignment.pallas_pack import Packed, padded
from plan_jax.config import AlignmentConfig

ROWS = 128  # words of a sheet, or what the longest report needs
PART = 32  # rows taken at a time
PROGRAMS = 264  # sums are split until so many programs run: two for each of an H100's 132 multiprocessors
PARAMETERS = plgpu.CompilerParams(num_warps=8, num_stages=1)


def sheet_rows(reports: int, words: int) -> int:
    """W: room for the longest report, and no more than all reports can fill; a power of two, as Triton needs it."""
    return max(LANES, 1 << (max(words, min(ROWS, reports * words)) - 1).bit_length())


def similarity(
    patch: Float[Array, "I N D"], packed: Packed, *, config: AlignmentConfig, interpret: bool
) -> Float[Array, "I R"]:
    """z of every image with every report.

    Args:
        patch: u_n, in the type of the operands of matrix products.
        packed: the words in sheets of `sheet_rows` rows and `LANES` lanes.
        config: the forms of the equations.
        interpret: run as a program of the platform at hand, for tests.
    """
    inputs, form = _inputs(patch, packed), _form(patch, packed, config, interpret)
    images, reports = len(patch), packed.sheets.reports
    nothing = jnp.zeros((images, -(-reports // LANES) * LANES), jnp.float32)  # z of reports without words
    (z,) = pl.pallas_call(
        functools.partial(forward_kernel, form=form),
        out_shape=[jax.ShapeDtypeStruct(nothing.shape, jnp.float32)],
        grid=(images, len(packed.word)),
        input_output_aliases={len(inputs): 0},
        compiler_params=PARAMETERS,
        interpret=interpret,
    )(*inputs, nothing)
    return z[:, :reports]


def gradients(
    patch: Float[Array, "I N D"],
    packed: Packed,
    of_z: Float[Array, "I R"],
    *,
    config: AlignmentConfig,
    interpret: bool,
) -> tuple[Float[Array, "I N D"], Float[Array, "C W D"], Float[Array, "C W"]]:
    """Those of sum(of_z * z), in float32, with respect to patch, word and logit, given as to `similarity`."""
    inputs, form = _inputs(patch, packed), _form(patch, packed, config, interpret)
    of_z = padded(of_z, 1, multiple=LANES)
    images, sheets = len(patch), len(packed.word)

    def run(kernel: Callable, own: int, others: int, shapes: list[tuple[int, ...]]) -> list[Array]:
        splits = min(others, -(-PROGRAMS // own))
        sums = pl.pallas_call(
            functools.partial(kernel, form=form),
            out_shape=[jax.ShapeDtypeStruct((splits, *shape), jnp.float32) for shape in shapes],
            grid=(own, splits),
            compiler_params=PARAMETERS,
            interpret=interpret,
        )(*inputs, of_z)
        return [x.sum(axis=0) for x in sums]

    of_patch, of_gram = run(patch_kernel, images, sheets, [inputs.patch.shape, inputs.gram.shape])
    of_word, of_logit = run(word_kernel, sheets, images, [inputs.word.shape, inputs.logit.shape])
    both, wide = of_gram + of_gram.mT, inputs.patch.astype(jnp.float32)
    of_patch = of_patch + jnp.einsum("inm,imd->ind", both, wide, precision=lax.Precision.HIGHEST)  # [I N D]
    return of_patch[:, : patch.shape[1], : patch.shape[2]], of_word[:, :, : patch.shape[2]], of_logit


def _inputs(patch: Float[Array, "I N D"], packed: Packed) -> Inputs:
    sheets = packed.sheets
    patch = padded(patch, 1, 2, multiple=TILE)
    exact = lax.Precision.HIGHEST if patch.dtype == jnp.float32 else None
    gram = jnp.einsum("ind,imd->inm", patch, patch, precision=exact, preferred_element_type=jnp.float32)  # [I N N]
    whole = (x.astype(jnp.int32) for x in (sheets.lane, sheets.rows, sheets.base, sheets.count.reshape(1)))
    logit = packed.logit.astype(jnp.float32)
    return Inputs(patch, gram.astype(patch.dtype), padded(packed.word, 2, multiple=TILE), logit, *whole)


def _form(patch: Array, packed: Packed, config: AlignmentConfig, interpret: bool) -> Form:
    rows = packed.word.shape[1]
    return Form(config, patch.shape[1], min(rows, PART), interpret)
