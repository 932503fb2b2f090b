"""Reports of different lengths without their padding: all real words in one list, cut into chunks of whole reports.

The number of chunks is that which the reports' lengths need, not that of the longest report, so that padding costs
nothing.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

# A chunk has at least so many rows, and whole numbers of the longest report. Chosen by time on one CPU core: larger
# chunks leave the cache, smaller ones make narrow matrices.
CHUNK_WORDS = 384
CHUNK_REPORTS = 48  # it holds at most


class Packing(NamedTuple):
    """Where the real words of a batch of reports are, and how they are cut into chunks.

    Attributes:
        place: of each real word in the list of all R*L words, in order; R*L where there are no more. As long as a
            chunk that begins with the last word needs.
        report: which report each of these words belongs to; R where there are no more.
        first: index in `place` of the first word of each report.
        following: the first report after a chunk that begins with this report.
    """

    place: Int[Array, " P"]
    report: Int[Array, " P"]
    first: Int[Array, " R"]
    following: Int[Array, " R"]


class Chunk(NamedTuple):
    """Consecutive whole reports.

    Attributes:
        start: index in the list of real words of its first word.
        member: which of the words from there on belongs to which of its reports.
        column: index of the report that `member` begins with.
    """

    start: Int[Array, ""]
    member: Bool[Array, "words reports"]
    column: Int[Array, ""]


def pack(mask: Bool[Array, "R L"]) -> Packing:
    """The real words, and chunks of as many consecutive whole reports as fit."""
    reports, words = mask.shape
    place = jnp.flatnonzero(mask, size=mask.size + chunk_words(mask.shape), fill_value=mask.size)
    length = mask.sum(axis=1)  # [R]
    end = jnp.cumsum(length)
    first = end - length
    fit = jnp.searchsorted(end, first + _capacity(words), side="right")
    following = jnp.minimum(fit, jnp.arange(reports) + CHUNK_REPORTS)
    return Packing(place, place // words, first, following)


def chunk_words(shape: tuple[int, ...]) -> int:
    """Rows of a chunk, for a mask of this shape [R L]."""
    reports, words = shape
    return min(_capacity(words), reports * words)


def _capacity(words: int) -> int:
    return words * -(-CHUNK_WORDS // words)  # reports of full length leave no row empty


def chunk_of(packing: Packing, begin: Int[Array, ""], *, words: int) -> Chunk:
    """The chunk that begins with a report."""
    (reports,) = packing.first.shape
    slots = min(CHUNK_REPORTS, reports)
    report = jax.lax.dynamic_slice_in_dim(packing.report, packing.first[begin], words)
    own = (report >= begin) & (report < packing.following[begin])
    column = jnp.minimum(begin, reports - slots)
    member = own[:, None] & (report[:, None] == column + jnp.arange(slots)[None, :])
    return Chunk(packing.first[begin], member, column)


def gather(x: Float[Array, "R L *D"], packing: Packing) -> Float[Array, "P *D"]:
    """The list of the real words; zeros at its end. What stands at padding is never read."""
    return _flat(x).at[packing.place].get(mode="fill", fill_value=0)


def scatter(listed: Float[Array, "P *D"], packing: Packing, shape: tuple[int, ...]) -> Float[Array, "R L *D"]:
    """Puts a list of the real words back in its place in [R L *D]; zeros at padding."""
    flat = jnp.zeros((shape[0] * shape[1], *shape[2:]), listed.dtype)
    return flat.at[packing.place].set(listed, mode="drop").reshape(shape)


def _flat(x: Float[Array, "R L *D"]) -> Float[Array, "RL *D"]:
    return x.reshape(-1, *x.shape[2:])
