"""The words of a batch of reports in sheets of equal size, a sheet holding whole reports one after the other.

A kernel's tile is one image and one sheet. Reports differ tenfold in length: a tile per report would leave most of its
rows to padding, while a sheet is as full as whole reports make it. How many sheets there are depends on the lengths,
which are known only when the program runs; arrays have room for the most there can be, and kernels visit those in use.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int


class Sheets(NamedTuple):
    """Where words went. Reports stand in sheets in their order; those of one sheet share one multiple of `lanes`.

    Attributes:
        place: of each row's word in the list of all R*L words; R*L in rows without a word.
        lane: report of each row, as an offset from `base`; -1 in rows without a word.
        base: the multiple of `lanes` that the sheet's reports begin at.
        rows: in use in each sheet, from the first on.
        count: sheets in use, from the first on; at least 1.
        reports: R.
    """

    place: Int[Array, "C W"]
    lane: Int[Array, "C W"]
    base: Int[Array, " C"]
    rows: Int[Array, " C"]
    count: Int[Array, ""]
    reports: int


class Packed(NamedTuple):
    """The words of all reports as the kernels take them.

    Attributes:
        word: w_l, in the type of the operands of matrix products; 0 in rows without a word.
        logit: learned importance of a word.
        sheets: which word is where.
    """

    word: Float[Array, "C W D"]
    logit: Float[Array, "C W"]
    sheets: Sheets


def pack(mask: Bool[Array, "R L"], *, rows: int, lanes: int) -> Sheets:
    """Sheets of `rows` rows, which must hold the longest report, filled greedily.

    Args:
        mask: True where a word is real.
        rows: W.
        lanes: a sheet's reports lie between two multiples of this number.
    """
    reports, words = mask.shape
    end = jnp.cumsum(mask.sum(axis=1))
    first = jnp.concatenate([jnp.zeros(1, end.dtype), end])  # words before each report, and in all [R+1]
    report = jnp.arange(reports)
    fit = jnp.searchsorted(end, first[:-1] + rows, side="right")
    following = jnp.minimum(jnp.minimum(fit, (report // lanes + 1) * lanes), reports)
    begin = _chain(following, most_sheets(reports, words, rows=rows, lanes=lanes))  # [C+1]
    position = first[begin[:-1], None] + jnp.arange(rows)[None, :]  # in the list of real words [C W]
    place = jnp.flatnonzero(mask, size=mask.size, fill_value=mask.size)
    place = jnp.where(position < first[begin[1:], None], place.at[position].get(mode="clip"), mask.size)
    base = jnp.minimum(begin[:-1], reports - 1) // lanes * lanes
    lane = jnp.where(place < mask.size, place // words - base[:, None], -1)
    return Sheets(place, lane, base, first[begin[1:]] - first[begin[:-1]], (begin[:-1] < reports).sum(), reports)


def most_sheets(reports: int, words: int, *, rows: int, lanes: int) -> int:
    """The most that any mask needs: a sheet and the one after it hold more words than fit into one."""

    def of_group(size: int) -> int:
        return min(size, max(2 * -(-size * words // rows) - 1, 1))

    whole, rest = divmod(reports, lanes)
    return whole * of_group(lanes) + (of_group(rest) if rest else 0)


def take(x: Float[Array, "R L *D"], sheets: Sheets) -> Float[Array, "C W *D"]:
    """What belongs to each row's word; 0 in rows without one."""
    return x.reshape(-1, *x.shape[2:]).at[sheets.place].get(mode="fill", fill_value=0)


def put(x: Float[Array, "C W *D"], sheets: Sheets, like: Float[Array, "R L *D"]) -> Float[Array, "R L *D"]:
    """The inverse of `take`; 0 for padding words."""
    flat = jnp.zeros((like.shape[0] * like.shape[1], *like.shape[2:]), x.dtype)
    return flat.at[sheets.place].set(x, mode="drop").reshape(like.shape).astype(like.dtype)


def padded(x: Array, *axes: int, multiple: int) -> Array:
    """Zeros added at the end of these axes, up to a multiple."""
    return jnp.pad(x, [(0, -n % multiple if axis in axes else 0) for axis, n in enumerate(x.shape)])


def _chain(following: Int[Array, " R"], length: int) -> Int[Array, " length+1"]:
    """0, following[0], following[following[0]] and so on; R once it is reached.

    By squaring: the number of steps is written in binary, and a table tells where 2^k steps lead.
    """
    table = jnp.concatenate([following, jnp.full(1, len(following), following.dtype)])
    steps, place = jnp.arange(length + 1), jnp.zeros(length + 1, following.dtype)
    for bit in range(length.bit_length()):
        place = jnp.where(steps >> bit & 1, table[place], place)
        table = table[table]
    return place
