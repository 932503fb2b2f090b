"""All pairs of a batch, padding left out, with the memory of one image against the words of a few reports.

The real words of all reports stand in one list, which is cut into chunks of whole reports. Chunks are the outer loop,
images the inner one: each step is a few 2-D matrix products, [words D] x [D N]. The number of chunks is that which the
reports' lengths need, not that of the longest report, so that padding costs nothing. The backward pass loops in the
same way and computes each step anew: all that is kept for it is the inputs, and nothing of size I*R*L*N is ever held.
Values and gradients are those of `plan_jax.alignment.reference`, whose equations it calls.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from plan_jax.alignment.reference import local_similarity
from plan_jax.config import AlignmentConfig
from plan_jax.types import ImageFeatures, TextFeatures

# What a chunk holds at most (or one report, if that can have more words). Chosen by time on one CPU core, with D = 64
# and N = 256: larger chunks leave the cache, smaller ones are badly filled where reports are long.
CHUNK_WORDS = 128
CHUNK_REPORTS = 16


@functools.partial(jax.jit, static_argnames="config")
def word_patch_similarity(
    image_features: ImageFeatures, text_features: TextFeatures, *, config: AlignmentConfig
) -> Float[Array, "I R"]:
    """Local similarity z of every image with every report."""
    texts = text_features
    return _all_pairs(config, image_features.patch, texts.word, texts.word_logit, texts.mask)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _all_pairs(config: AlignmentConfig, patch: Array, word: Array, word_logit: Array, mask: Array) -> Array:
    packing, pair = pack(mask), functools.partial(local_similarity, config=config)

    def of_chunk(state: tuple[Array, Array]) -> tuple[Array, Array]:
        begin, z = state
        chunk = chunk_of(packing, begin)
        words, logits = _take(word, chunk), _take(word_logit, chunk)
        part = jax.lax.map(lambda one: pair(words, one, logits, chunk.member), patch)  # [I reports]
        return packing.following[begin], _add(z, part, (0, chunk.column))

    z = jnp.zeros((len(patch), len(mask)), jnp.float32)
    return jax.lax.while_loop(lambda state: state[0] < len(mask), of_chunk, (jnp.int32(0), z))[1]


def _forward(config: AlignmentConfig, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return _all_pairs(config, *inputs), inputs


def _backward(config: AlignmentConfig, inputs: tuple[Array, ...], cotangent: Array) -> tuple[Array | None, ...]:
    patch, word, word_logit, mask = inputs
    packing, pair = pack(mask), functools.partial(local_similarity, config=config)

    def of_chunk(state: tuple[Array, Gradient]) -> tuple[Array, Gradient]:
        begin, total = state
        chunk = chunk_of(packing, begin)
        words, logits = _take(word, chunk), _take(word_logit, chunk)
        columns = jax.lax.dynamic_slice_in_dim(cotangent, chunk.column, chunk.member.shape[1], axis=1)  # [I reports]

        def of_image(i: Array, gradient: Gradient) -> Gradient:
            one = patch[i].astype(jnp.float32)
            _, pull = jax.vjp(lambda words, one, logits: pair(words, one, logits, chunk.member), words, one, logits)
            of_words, of_patch, of_logits = pull(columns[i])
            of_patch = _add(gradient.patch, of_patch[None], (i, 0, 0))
            return Gradient(of_patch, gradient.word + of_words, gradient.word_logit + of_logits)

        start = Gradient(total.patch, jnp.zeros_like(words), jnp.zeros_like(logits))
        found = jax.lax.fori_loop(0, len(patch), of_image, start)
        word_sum = total.word.at[chunk.place].add(found.word, mode="drop")
        logit_sum = total.word_logit.at[chunk.place].add(found.word_logit, mode="drop")
        return packing.following[begin], Gradient(found.patch, word_sum, logit_sum)

    zero = Gradient(*(jnp.zeros(x.shape, jnp.float32) for x in (patch, _flat(word), _flat(word_logit))))
    _, total = jax.lax.while_loop(lambda state: state[0] < len(mask), of_chunk, (jnp.int32(0), zero))
    of_word, of_logit = total.word.reshape(word.shape), total.word_logit.reshape(word_logit.shape)
    return total.patch.astype(patch.dtype), of_word.astype(word.dtype), of_logit.astype(word_logit.dtype), None


_all_pairs.defvjp(_forward, _backward)


class Gradient(NamedTuple):
    """Sums over the steps so far, in float32, with respect to the words of one chunk or to all R*L words."""

    patch: Float[Array, "I N D"]
    word: Float[Array, "words D"]
    word_logit: Float[Array, " words"]


class Packing(NamedTuple):
    """Where the real words of a batch of reports are, and how they are cut into chunks.

    Attributes:
        place: of each real word in the list of all R*L words, in order; R*L where there are no more.
        report: which report each of these words belongs to; R where there are no more.
        first: index in `place` of the first word of each report.
        following: the first report after a chunk that begins with this report.
    """

    place: Int[Array, " RL"]
    report: Int[Array, " RL"]
    first: Int[Array, " R"]
    following: Int[Array, " R"]


class Chunk(NamedTuple):
    """Consecutive whole reports.

    Attributes:
        place: of its words in the list of all R*L words; R*L in rows that are left over.
        member: which word belongs to which of its reports.
        column: index of the report that `member` begins with.
    """

    place: Int[Array, " words"]
    member: Bool[Array, "words reports"]
    column: Int[Array, ""]


def pack(mask: Bool[Array, "R L"]) -> Packing:
    """The real words, and chunks of as many consecutive whole reports as fit."""
    reports, words = mask.shape
    place = jnp.flatnonzero(mask, size=mask.size, fill_value=mask.size)
    length = mask.sum(axis=1)  # [R]
    end = jnp.cumsum(length)
    first = end - length
    fit = jnp.searchsorted(end, first + max(CHUNK_WORDS, words), side="right")
    following = jnp.minimum(fit, jnp.arange(reports) + CHUNK_REPORTS)
    return Packing(place, place // words, first, following)


def chunk_of(packing: Packing, begin: Int[Array, ""]) -> Chunk:
    """The chunk that begins with a report."""
    (reports,) = packing.first.shape
    words = min(max(CHUNK_WORDS, packing.place.size // reports), packing.place.size)
    slots = min(CHUNK_REPORTS, reports)
    # A slice that would reach beyond the end is moved to the left: what it holds of earlier reports is left out here.
    place = jax.lax.dynamic_slice_in_dim(packing.place, packing.first[begin], words)
    report = jax.lax.dynamic_slice_in_dim(packing.report, packing.first[begin], words)
    own = (report >= begin) & (report < packing.following[begin])
    column = jnp.minimum(begin, reports - slots)
    member = own[:, None] & (report[:, None] == column + jnp.arange(slots)[None, :])
    return Chunk(jnp.where(own, place, packing.place.size), member, column)


def _take(x: Float[Array, "R L *D"], chunk: Chunk) -> Float[Array, "words *D"]:
    return _flat(x).at[chunk.place].get(mode="fill", fill_value=0).astype(jnp.float32)


def _flat(x: Float[Array, "R L *D"]) -> Float[Array, "RL *D"]:
    return x.reshape(-1, *x.shape[2:])


def _add(total: Array, part: Array, start: tuple[Array | int, ...]) -> Array:
    """`part` added to the piece of `total` that starts there."""
    old = jax.lax.dynamic_slice(total, start, part.shape)
    return jax.lax.dynamic_update_slice(total, old + part, start)
