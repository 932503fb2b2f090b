"""The kernels for TPU: a grid step is one image and one sheet of words; neither S nor A leaves the chip.

A TPU runs its grid in order, so results are summed in memory that stays on the chip while an index does not change. The
forward pass goes through the sheets of one image after the other; the gradient of the words needs the other order. Its
grid therefore takes a group of images whose features and gradients fit on the chip together: for each sheet it runs
over the images of the group, adds up the words' gradient on the chip, and adds that to what earlier groups left in
main memory. So both gradients come from one pass, summed in a fixed order; on chips with two cores, v4 and v5p, that
order leaves the backward pass to one of them. The number of sheets is a bound of the grid that is known only at run
time: a sheet that is not in use costs no step.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu
from jaxtyping import Array, Float, Int

from plan_jax.alignment.pallas_head import head, head_gradient
from plan_jax.alignment.pallas_pack import Packed, Sheets, padded
from plan_jax.alignment.pallas_slab import dot
from plan_jax.alignment.pallas_tile import Tile, backward, forward, word_logits
from plan_jax.config import AlignmentConfig

LANES = 128  # the width of a vector register: the reports of a sheet, and what N, D and W are padded to multiples of
SUBLANES = 8
ROWS = 256  # words of a sheet: twice the side of a matrix unit, so that sheets of long reports are well filled too
GROUP_BYTES = 24 * 2**20  # what a group of images may hold on the chip; more than a v4 has in all
CHIP_BYTES = 96 * 2**20  # what a kernel may use of the chip's memory

Ref = Any  # a reference to an array in the chip's memory: indexed like an array, and written to


def sheet_rows(reports: int, words: int) -> int:
    """W: room for the longest report, and no more than all reports can fill."""
    return _rounded_up(max(words, min(ROWS, reports * words)))


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
    (images, patches), sheets = patch.shape[:2], packed.sheets
    patch, word = padded(patch, 1, 2, multiple=LANES), padded(packed.word, 2, multiple=LANES)
    _, columns, dim = patch.shape
    rows = word.shape[1]
    windows = -(-sheets.reports // LANES)
    z = pl.pallas_call(
        functools.partial(_forward_kernel, patches=patches, config=config),
        out_shape=jax.ShapeDtypeStruct((images, windows, 1, LANES), jnp.float32),
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(images, sheets.count),
            in_specs=[
                pl.BlockSpec((1, columns, dim), lambda i, c, window: (i, 0, 0)),
                pl.BlockSpec((1, rows, dim), lambda i, c, window: (c, 0, 0)),
                pl.BlockSpec((1, SUBLANES, rows), lambda i, c, window: (c, 0, 0)),
            ],
            out_specs=pl.BlockSpec((1, 1, 1, LANES), lambda i, c, window: (i, window[c], 0, 0)),
            scratch_shapes=[pltpu.VMEM((columns, columns), patch.dtype)],
        ),
        compiler_params=_parameters("parallel", "arbitrary"),
        interpret=interpret,
    )(_windows(sheets), patch, word, _about_rows(packed))
    return z.reshape(images, windows * LANES)[:, : sheets.reports]


def gradients(
    patch: Float[Array, "I N D"],
    packed: Packed,
    of_z: Float[Array, "I R"],
    *,
    config: AlignmentConfig,
    interpret: bool,
) -> tuple[Float[Array, "I N D"], Float[Array, "C W D"], Float[Array, "C W"]]:
    """Those of sum(of_z * z), in float32, with respect to patch, word and logit, given as to `similarity`."""
    (images, patches, depth), sheets = patch.shape, packed.sheets
    patch, word = padded(patch, 1, 2, multiple=LANES), padded(packed.word, 2, multiple=LANES)
    of_z = padded(of_z, 1, multiple=LANES).reshape(images, -1, 1, LANES)
    _, columns, dim = patch.shape
    count, rows, _ = word.shape
    group = _group(images, columns, dim, patch.dtype.itemsize)
    whole = pl.BlockSpec((group, columns, dim), lambda g, c, b, window: (g, 0, 0))
    in_main_memory = pl.BlockSpec(memory_space=pl.ANY)
    of_patch, of_word, of_about = pl.pallas_call(
        functools.partial(_backward_kernel, patches=patches, config=config),
        out_shape=[
            jax.ShapeDtypeStruct(patch.shape, jnp.float32),
            jax.ShapeDtypeStruct(word.shape, jnp.float32),
            jax.ShapeDtypeStruct((count, SUBLANES, rows), jnp.float32),
        ],
        grid_spec=pltpu.PrefetchScalarGridSpec(
            num_scalar_prefetch=1,
            grid=(images // group, sheets.count, group),
            in_specs=[
                whole,
                pl.BlockSpec((1, rows, dim), lambda g, c, b, window: (c, 0, 0)),
                pl.BlockSpec((1, SUBLANES, rows), lambda g, c, b, window: (c, 0, 0)),
                pl.BlockSpec((1, 1, 1, LANES), lambda g, c, b, window: (g * group + b, window[c], 0, 0)),
            ],
            out_specs=[whole, in_main_memory, in_main_memory],
            scratch_shapes=[
                pltpu.VMEM((group, columns, columns), patch.dtype),
                pltpu.VMEM((group, columns, columns), jnp.float32),
                pltpu.VMEM((rows, dim), jnp.float32),
                pltpu.VMEM((SUBLANES, rows), jnp.float32),
            ],
        ),
        compiler_params=_parameters("arbitrary", "arbitrary", "arbitrary"),
        interpret=interpret,
    )(_windows(sheets), patch, word, _about_rows(packed), of_z)
    return of_patch[:, :patches, :depth], of_word[:, :, :depth], of_about[:, 0]


def _forward_kernel(
    window_ref: Ref, patch_ref: Ref, word_ref: Ref, about_ref: Ref, z_ref: Ref, gram_ref: Ref, *, patches, config
) -> None:
    sheet = pl.program_id(1)
    patch = patch_ref[0]

    @pl.when(sheet == 0)
    def _of_a_new_image():
        gram_ref[...] = dot(patch, patch, (1, 1)).astype(gram_ref.dtype)  # G [N N]

    @pl.when((sheet == 0) | (window_ref[sheet] != window_ref[jnp.maximum(sheet - 1, 0)]))
    def _of_new_reports():
        z_ref[...] = jnp.zeros_like(z_ref)

    tile = _tile(patch, word_ref[0], about_ref[0], gram_ref, patches)
    rounds, score = forward(tile, config)
    logits = word_logits(tile, rounds[-1].similarity, config)
    z_ref[0, 0] += head(score, logits, tile.member, config).z


def _backward_kernel(
    window_ref: Ref, patch_ref: Ref, word_ref: Ref, about_ref: Ref, of_z_ref: Ref, *results: Ref, patches, config
) -> None:
    del window_ref  # read by the index maps
    of_patch_ref, words_ref, logits_ref, gram_ref, of_gram_ref, of_word_ref, of_about_ref = results
    group, sheet, image = (pl.program_id(axis) for axis in range(3))
    patch, word = patch_ref[image], word_ref[0]

    @pl.when(sheet == 0)
    def _of_a_new_image():
        gram_ref[image] = dot(patch, patch, (1, 1)).astype(gram_ref.dtype)  # G [N N]
        of_gram_ref[image] = jnp.zeros(of_gram_ref.shape[1:], jnp.float32)
        of_patch_ref[image] = jnp.zeros(of_patch_ref.shape[1:], jnp.float32)

    @pl.when((image == 0) & (group == 0))
    def _of_a_new_sheet():
        of_word_ref[...] = jnp.zeros_like(of_word_ref)
        of_about_ref[...] = jnp.zeros_like(of_about_ref)

    @pl.when((image == 0) & (group > 0))
    def _of_a_sheet_that_earlier_images_have_met():
        pltpu.sync_copy(words_ref.at[sheet], of_word_ref)
        pltpu.sync_copy(logits_ref.at[sheet], of_about_ref)

    tile = _tile(patch, word, about_ref[0], gram_ref.at[image], patches)
    rounds, score = forward(tile, config)
    found = head(score, word_logits(tile, rounds[-1].similarity, config), tile.member, config)
    of_score, of_logits = head_gradient(found, of_z_ref[0, 0], config)
    gradient = backward(tile, rounds, of_score, of_logits, config)
    for (x,), (y,) in gradient.gram:
        of_gram_ref[image] += dot(x.astype(patch.dtype), y.astype(patch.dtype), (0, 0))  # [N N]
    of_initial = gradient.initial[0].astype(patch.dtype)
    of_patch_ref[image] += dot(of_initial, word, (0, 0))  # [N D]
    of_word_ref[...] += dot(of_initial, patch, (1, 0)) + 2 * gradient.square * word.astype(jnp.float32)  # [W D]
    of_about_ref[...] += jnp.broadcast_to(gradient.logit, (word.shape[0], LANES)).T[:SUBLANES]  # [8 W]

    @pl.when(sheet == pl.num_programs(1) - 1)
    def _of_an_image_that_met_all_sheets():
        both = of_gram_ref[image] + of_gram_ref[image].T
        of_patch_ref[image] += dot(both, patch.astype(jnp.float32), (1, 0))  # [N D]

    @pl.when(image == pl.num_programs(2) - 1)
    def _of_a_sheet_that_met_the_group():
        pltpu.sync_copy(of_word_ref, words_ref.at[sheet])
        pltpu.sync_copy(of_about_ref, logits_ref.at[sheet])


def _tile(patch: Float[Array, "N D"], word: Float[Array, "W D"], about: Float[Array, "8 W"], gram_ref: Ref, patches):
    """The tile of one image and one sheet."""
    about = about.T  # [W 8]
    logit, lane = about[:, 0:1], about[:, 1:2]
    reports = lax.broadcasted_iota(jnp.int32, (word.shape[0], LANES), 1).astype(jnp.float32)
    wide = word.astype(jnp.float32)
    return Tile(
        initial=(dot(word, patch, (1, 1)),),  # S_0 [W N]
        square=(wide * wide).sum(axis=1, keepdims=True),
        logit=logit,
        member=jnp.where(reports == lane, 1.0, 0.0),
        real=(lax.broadcasted_iota(jnp.int32, (1, patch.shape[0]), 1) < patches,),
        patches=patches,
        times_gram=lambda a: (dot(a[0].astype(patch.dtype), gram_ref[...], (1, 0)),),  # [W N]
    )


def _about_rows(packed: Packed) -> Float[Array, "C 8 W"]:
    """What a kernel knows of each row, side by side along the lanes: its logit and its report."""
    about = jnp.stack([packed.logit.astype(jnp.float32), packed.sheets.lane.astype(jnp.float32)], axis=1)
    return jnp.pad(about, [(0, 0), (0, SUBLANES - 2), (0, 0)])


def _windows(sheets: Sheets) -> Int[Array, " C"]:
    return (sheets.base // LANES).astype(jnp.int32)


def _group(images: int, columns: int, dim: int, size: int) -> int:
    """How many images are gone through for each sheet: a divisor of their number."""
    of_image = columns * dim * 2 * (size + 4) + columns * columns * (size + 4)  # blocks are held twice
    most = max(1, min(images, GROUP_BYTES // of_image))
    return next(group for group in range(most, 0, -1) if images % group == 0)


def _rounded_up(size: int) -> int:
    return -(-size // LANES) * LANES


def _parameters(*semantics: Any) -> pltpu.CompilerParams:
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=CHIP_BYTES)
