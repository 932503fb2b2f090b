"""The GPU's kernels: what one program computes, and the sums it makes.

A sheet [W N] is more than registers hold. As long as patches do not weigh differently for each report, a word's region
does not depend on other words: a program takes a few rows of the sheet at a time, as many as are in use, and only their
scores meet, in the head. Column tiles are separate values, because a part of a register array cannot be addressed.
"""

import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu
from jaxtyping import Array, Float

from plan_jax.alignment.pallas_head import head, head_gradient
from plan_jax.alignment.pallas_slab import Slab, dot, each
from plan_jax.alignment.pallas_tile import Gradient, Tile, backward, forward, word_logits
from plan_jax.config import AlignmentConfig

LANES = 16  # reports of a sheet: the least that a matrix product takes
TILE = 128  # columns of a tile, and what N and D are padded to multiples of

Ref = Any  # a reference to an array in memory: indexed like an array, and written to


class Inputs(NamedTuple):
    """What every kernel reads, in full.

    Attributes:
        patch: [I N D], padded.
        gram: G of each image [I N N].
        word: [C W D], padded.
        logit: [C W].
        lane: report of each row within its sheet [C W].
        rows: in use in each sheet [C].
        base: first report of each sheet's lanes [C].
        count: sheets in use [1].
    """

    patch: Ref
    gram: Ref
    word: Ref
    logit: Ref
    lane: Ref
    rows: Ref
    base: Ref
    count: Ref


class Place(NamedTuple):
    """Where a program is: an image, a sheet, and what its kernel is specialised to."""

    inputs: Inputs
    image: Array
    sheet: Array
    form: "Form"


class Form(NamedTuple):
    """What a kernel is specialised to: the equations, N, the rows taken at a time, and whether this is a test."""

    config: AlignmentConfig
    patches: int
    part: int
    interpret: bool


def forward_kernel(*refs: Ref, form: Form) -> None:
    inputs, (_, z_ref) = Inputs(*refs[:8]), refs[8:]
    place = Place(inputs, pl.program_id(0), pl.program_id(1), form)
    member = _member(place)
    score, logits = _scores(place)
    z = head(score, logits, member, form.config).z.reshape(LANES)
    # Sheets of other programs share these lanes.
    own = z_ref.at[place.image, pl.ds(inputs.base[place.sheet], LANES)]
    plgpu.store(own, z, mask=member.sum(axis=0) > 0)


def patch_kernel(*refs: Ref, form: Form) -> None:
    """Sums over the sheets: dU but for its part through G, and dG."""
    inputs, (of_z_ref, of_patch_ref, of_gram_ref) = Inputs(*refs[:8]), refs[8:]
    image, split = pl.program_id(0), pl.program_id(1)
    splits, _, patches, depth = of_patch_ref.shape
    _clear(of_patch_ref, (split, image), TILE, form)
    _clear(of_gram_ref, (split, image), TILE, form)
    columns, operand = range(0, patches, TILE), inputs.patch.dtype

    def visit(step: Array, _: None) -> None:
        place = Place(inputs, image, split + step * splits, form)

        def collect(rows: Any, gradient: Gradient) -> None:
            for n, m in itertools.product(range(len(columns)), repeat=2):
                terms = [_dot(x[n].astype(operand), y[m].astype(operand), (0, 0), form) for x, y in gradient.gram]
                where = split, image, pl.ds(n * TILE, TILE), pl.ds(m * TILE, TILE)
                of_gram_ref[where] += sum(terms, start=jnp.zeros((TILE, TILE), jnp.float32))  # [T T]

            def along(d: Array, _: None) -> None:
                part = pl.ds(d * TILE, TILE)
                word = inputs.word[place.sheet, rows, part]
                for n, x in zip(columns, gradient.initial, strict=True):
                    where = split, image, pl.ds(n, TILE), part
                    of_patch_ref[where] += _dot(x.astype(word.dtype), word, (0, 0), form)  # [T T]

            lax.fori_loop(0, depth // TILE, along, None)

        _go_back(place, of_z_ref, collect)

    lax.fori_loop(0, (inputs.count[0] - split + splits - 1) // splits, visit, None)


def word_kernel(*refs: Ref, form: Form) -> None:
    """Sums over the images: dW, and the gradient of the words' logits."""
    inputs, (of_z_ref, of_word_ref, of_logit_ref) = Inputs(*refs[:8]), refs[8:]
    sheet, split = pl.program_id(0), pl.program_id(1)
    splits, _, rows, depth = of_word_ref.shape
    _clear(of_word_ref, (split, sheet), form.part, form)

    def visit(step: Array, of_logit: Array) -> Array:
        place = Place(inputs, split + step * splits, sheet, form)

        def collect(rows: Any, gradient: Gradient) -> None:
            def along(d: Array, _: None) -> None:
                part = pl.ds(d * TILE, TILE)
                total = 2 * gradient.square * inputs.word[sheet, rows, part].astype(jnp.float32)  # [part T]
                for n, x in enumerate(gradient.initial):
                    patch = inputs.patch[place.image, pl.ds(n * TILE, TILE), part]
                    total += _dot(x.astype(patch.dtype), patch, (1, 0), form)  # [part T]
                of_word_ref[split, sheet, rows, part] += total

            lax.fori_loop(0, depth // TILE, along, None)

        return of_logit + _go_back(place, of_z_ref, collect)

    images = jnp.where(inputs.rows[sheet] > 0, (len(inputs.patch) - split + splits - 1) // splits, 0)
    of_logit = lax.fori_loop(0, images, visit, jnp.zeros((rows, 1), jnp.float32))
    of_logit_ref[split, sheet, :] = of_logit.reshape(rows)


def _go_back(place: Place, of_z_ref: Ref, collect: Callable[[Any, Gradient], None]) -> Float[Array, "W 1"]:
    """Both passes over one tile; `collect` is given each part's gradient. Returns that of the logits."""
    config, part = place.form.config, place.form.part
    member, logits = _member(place), _logits(place)
    of_z = of_z_ref[place.image, pl.ds(place.inputs.base[place.sheet], LANES)].reshape(1, LANES)
    score, simple = jnp.zeros_like(logits), config.aggregation == "mean" and config.word_importance != "pair"
    if not simple:  # how z depends on a word's score depends on all scores: a pass more
        score, logits = _scores(place)
    of_score, of_word = head_gradient(head(score, logits, member, config), of_z, config)

    def step(number: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        tile = _tile(place, number * part)
        rounds, score = forward(tile, config)
        gradient = backward(tile, rounds, _get(of_score, number, part), _get(of_word, number, part), config)
        collect(pl.ds(number * part, part), gradient)
        _wait(place.form)
        return _set(found[0], score, number), _set(found[1], gradient.logit, number)

    nothing = jnp.zeros_like(logits)
    score, of_logit = lax.fori_loop(0, _parts_in_use(place), step, (nothing, nothing))
    if simple and config.word_importance == "text":
        of_logit += head_gradient(head(score, logits, member, config), of_z, config)[1]
    return of_logit


def _scores(place: Place) -> tuple[Float[Array, "W 1"], Float[Array, "W 1"]]:
    """Of all words of a sheet: score, and what alpha is a softmax of."""
    config, part = place.form.config, place.form.part

    def step(number: Array, found: tuple[Array, Array]) -> tuple[Array, Array]:
        tile = _tile(place, number * part)
        rounds, score = forward(tile, config)
        logits = word_logits(tile, rounds[-1].similarity, config)
        _wait(place.form)  # without it the compiler keeps all of G in shared memory, from before the loop on
        return _set(found[0], score, number), _set(found[1], logits, number)

    nothing = jnp.zeros((place.inputs.word.shape[1], 1), jnp.float32)
    return lax.fori_loop(0, _parts_in_use(place), step, (nothing, nothing))


def _tile(place: Place, begin: Array) -> Tile:
    """The tile of one image and some rows of a sheet."""
    inputs, image, sheet, form = place
    rows, columns = pl.ds(begin, form.part), range(0, inputs.patch.shape[1], TILE)

    def along(d: Array, found: tuple[Slab, Array]) -> tuple[Slab, Array]:
        part = pl.ds(d * TILE, TILE)
        word = inputs.word[sheet, rows, part]
        wide = word.astype(jnp.float32)
        patches = (inputs.patch[image, pl.ds(n, TILE), part] for n in columns)
        initial = tuple(s + _dot(word, patch, (1, 1), form) for s, patch in zip(found[0], patches, strict=True))
        return initial, found[1] + (wide * wide).sum(axis=1, keepdims=True)

    def times_gram(a: Slab) -> Slab:
        a = each(lambda x: x.astype(inputs.gram.dtype), a)

        def column(n: int) -> Array:
            grams = (inputs.gram[image, pl.ds(m, TILE), pl.ds(n, TILE)] for m in columns)
            return functools.reduce(jnp.add, (_dot(x, g, (1, 0), form) for x, g in zip(a, grams, strict=True)))

        return tuple(column(n) for n in columns)  # [part N]

    nothing = tuple(jnp.zeros((form.part, TILE), jnp.float32) for _ in columns)
    start = nothing, jnp.zeros((form.part, 1), jnp.float32)
    initial, square = lax.fori_loop(0, inputs.patch.shape[2] // TILE, along, start)  # S_0 [part N]
    real = tuple(lax.broadcasted_iota(jnp.int32, (1, TILE), 1) + n < form.patches for n in columns)
    logit = inputs.logit[sheet, rows].reshape(form.part, 1)
    member = _one_hot(inputs.lane[sheet, rows])
    return Tile(initial, square, logit, member, real, form.patches, times_gram)


def _parts_in_use(place: Place) -> Array:
    part = place.form.part
    return (place.inputs.rows[place.sheet] + part - 1) // part


def _member(place: Place) -> Float[Array, "W M"]:
    return _one_hot(place.inputs.lane[place.sheet, :])


def _logits(place: Place) -> Float[Array, "W 1"]:
    logit = place.inputs.logit[place.sheet, :].reshape(-1, 1)
    return logit if place.form.config.word_importance == "text" else jnp.zeros_like(logit)


def _one_hot(lane: Array) -> Float[Array, "W M"]:
    reports = lax.broadcasted_iota(jnp.int32, (len(lane), LANES), 1)
    return jnp.where(reports == lane.reshape(-1, 1), 1.0, 0.0)


def _get(x: Float[Array, "W 1"], number: Array, part: int) -> Float[Array, "part 1"]:
    """The rows of one part. Registers cannot be sliced: all others are left out of a sum."""
    parts = x.reshape(-1, part)
    chosen = lax.broadcasted_iota(jnp.int32, parts.shape, 0) == number
    return jnp.where(chosen, parts, 0.0).sum(axis=0).reshape(part, 1)


def _set(x: Float[Array, "W 1"], of_part: Float[Array, "part 1"], number: Array) -> Float[Array, "W 1"]:
    """x with the rows of one part."""
    parts = x.reshape(-1, len(of_part))
    chosen = lax.broadcasted_iota(jnp.int32, parts.shape, 0) == number
    return jnp.where(chosen, of_part.reshape(1, -1), parts).reshape(-1, 1)


def _clear(ref: Ref, at: tuple[Array, Array], rows: int, form: Form) -> None:
    """Zeros in one matrix of an array, tile by tile."""
    across = ref.shape[3] // TILE

    def one(number: Array, _: None) -> None:
        down, right = lax.div(number, across) * rows, lax.rem(number, across) * TILE
        ref[(*at, pl.ds(down, rows), pl.ds(right, TILE))] = jnp.zeros((rows, TILE), jnp.float32)

    lax.fori_loop(0, ref.shape[2] // rows * across, one, None)
    _wait(form)


def _wait(form: Form) -> None:
    """Until all threads of this program have written: others read it next."""
    if not form.interpret:
        plgpu.debug_barrier()


def _dot(x: Array, y: Array, over: tuple[int, int], form: Form) -> Array:
    """Matrix product over one axis of each, summed in float32."""
    return dot(x, y, over) if x.dtype == jnp.bfloat16 or form.interpret else dot_of_halves(x, y, over)


def dot_of_halves(x: Array, y: Array, over: tuple[int, int]) -> Array:
    """Product of float32 operands as sums of two in bfloat16, with an error of 2^-16 of the terms' size.

    Three terms of tf32 have less, but take twice the registers, which are what a tile is short of.
    """

    def halves(x: Array) -> tuple[Array, Array]:
        large = x.astype(jnp.bfloat16)
        return large, (x - large.astype(jnp.float32)).astype(jnp.bfloat16)

    (x, small_x), (y, small_y) = halves(x), halves(y)
    return dot(x, y, over) + dot(x, small_y, over) + dot(small_x, y, over)
