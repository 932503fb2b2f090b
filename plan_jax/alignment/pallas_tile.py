"""The mathematics of one tile: one image, the words of some whole reports, nothing but what fits on a chip.

All is written in S-space. With the Gram matrix G = U U' of the patches, and P = A G, the region r_l = sum_n A[l,n] u_n
is never formed: <r, w> = sum_n A S_0, |r|^2 = sum_n A P, and a round of refinement is

    len^2 = |w|^2 + 2 gamma sum_n A S_0 + gamma^2 sum_n A P,    S' = rho S + (1 - rho) (S_0 + gamma P) / len

which takes one product of 2 L N^2 operations where r = A U and q U' take 4 L N D. The reverse pass takes one more for
dA, and one for dG = sum of X' Y, which becomes dU once per image. In units of 2 L N D, forward and backward pass with
what is computed anew take 4 + (4K + 3) N / D, the form with regions 8 + 8K: less work while N < 1.8 D.

A matrix [W N] is a `Slab`, a tuple of column tiles: the TPU's kernel holds it as one, the GPU's as several. Columns
beyond the last patch hold zeros. How a product with G is made is the kernel's, which hands over a function.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from plan_jax.alignment.pallas_head import softmax_over_words, softmax_over_words_gradient
from plan_jax.alignment.pallas_slab import Slab, add, along_patches, each, row_max, row_sum, scale, to_reports, to_words
from plan_jax.alignment.reference import TINY
from plan_jax.config import AlignmentConfig

FAR = -1e30  # a logit that has no share in a softmax, finite so that no difference of two is NaN


class Tile(NamedTuple):
    """What a kernel has loaded and can do.

    Attributes:
        initial: S_0.
        square: |w_l|^2, 0 in rows without a word.
        logit: the learned importance of a word.
        member: 1 where the word belongs to the report, 0 elsewhere.
        real: True in the columns of patches, a tile each.
        patches: N.
        times_gram: A -> A G.
    """

    initial: Slab
    square: Float[Array, "W 1"]
    logit: Float[Array, "W 1"]
    member: Float[Array, "W M"]
    real: tuple[Bool[Array, "1 T"], ...]
    patches: int
    times_gram: Callable[[Slab], Slab]


class Round(NamedTuple):
    """S_k and what it leads to; kept while a tile is on the chip.

    Attributes:
        similarity: S_k.
        attention: A.
        product: P = A G; not formed where the score has no use for it.
        inverse: 1 / len of the updated word, or 1 / |r| in the last.
    """

    similarity: Slab
    attention: Slab
    product: Slab
    inverse: Float[Array, "W 1"]


def forward(tile: Tile, config: AlignmentConfig) -> tuple[list[Round], Float[Array, "W 1"]]:
    """All rounds, the last of which is the read-out of S_K, and each word's score <r / |r|, w>."""
    similarity, rounds = tile.initial, []
    for _ in range(config.rounds):
        rounds.append(_refined(tile, similarity, config))
        similarity = _next_similarity(tile, rounds[-1], config)
    rounds.append(_read_out(tile, similarity, config))
    return rounds, row_sum(rounds[-1].attention, tile.initial) * rounds[-1].inverse


class Gradient(NamedTuple):
    """With respect to the tile's inputs.

    Attributes:
        initial: of S_0.
        square: of |w_l|^2.
        logit: of the learned importance of a word.
        gram: pairs (X, Y); dG is the sum of X' Y, and G stands for U U' on both sides: dU = (dG + dG') U.
    """

    initial: Slab
    square: Float[Array, "W 1"]
    logit: Float[Array, "W 1"]
    gram: tuple[tuple[Slab, Slab], ...]


def backward(
    tile: Tile,
    rounds: list[Round],
    of_score: Float[Array, "W 1"],
    of_word: Float[Array, "W 1"],
    config: AlignmentConfig,
) -> Gradient:
    """The rounds in reverse, from the gradients of the scores and of `word_logits` of S_K."""
    of_similarity, found = _read_out_gradient(tile, rounds[-1], of_score, config)
    through, of_logit = _word_logits_gradient(tile, rounds[-1].similarity, of_word, config)
    of_similarity, found = add(of_similarity, through), found._replace(logit=found.logit + of_logit)
    for round_ in reversed(rounds[:-1]):
        of_similarity, more = _refined_gradient(tile, round_, of_similarity, config)
        initial, square = add(found.initial, more.initial), found.square + more.square
        found = Gradient(initial, square, found.logit + more.logit, found.gram + more.gram)
    return found._replace(initial=add(found.initial, of_similarity))


def _refined(tile: Tile, similarity: Slab, config: AlignmentConfig) -> Round:
    attention = _attention(tile, similarity, config)
    product = tile.times_gram(attention)
    fit, length = row_sum(attention, tile.initial), row_sum(attention, product)  # <r, w>, |r|^2 [W 1]
    square = tile.square + 2 * config.evidence * fit + config.evidence**2 * length
    return Round(similarity, attention, product, _inverse_root(square))


def _next_similarity(tile: Tile, round_: Round, config: AlignmentConfig) -> Slab:
    share = (1 - config.history) * round_.inverse
    return each(
        lambda old, initial, product: config.history * old + share * (initial + config.evidence * product),
        round_.similarity,
        tile.initial,
        round_.product,
    )


def _refined_gradient(tile: Tile, round_: Round, of_next: Slab, config: AlignmentConfig) -> tuple[Slab, Gradient]:
    """From dS_{k+1} to dS_k."""
    gamma, inverse = config.evidence, round_.inverse
    evidence = each(lambda initial, product: initial + gamma * product, tile.initial, round_.product)
    of_evidence = scale((1 - config.history) * inverse, of_next)
    of_square = -0.5 * inverse**2 * row_sum(of_evidence, evidence)  # of len^2
    of_product = scale(gamma, of_evidence)
    of_length = gamma**2 * of_square
    gram = (round_.attention, add(of_product, scale(of_length, round_.attention)))
    of_attention = each(
        lambda initial, product, through: 2 * gamma * of_square * initial + 2 * of_length * product + through,
        tile.initial,
        round_.product,
        tile.times_gram(of_product),
    )
    of_initial = add(of_evidence, scale(2 * gamma * of_square, round_.attention))
    through, of_logit = _attention_gradient(tile, round_, of_attention, config)
    of_similarity = add(scale(config.history, of_next), through)
    return of_similarity, Gradient(of_initial, of_square, of_logit, (gram,))


def _read_out(tile: Tile, similarity: Slab, config: AlignmentConfig) -> Round:
    attention = _attention(tile, similarity, config)
    if not config.region_norm:
        return Round(similarity, attention, (), jnp.ones_like(tile.square))
    product = tile.times_gram(attention)
    return Round(similarity, attention, product, _inverse_root(row_sum(attention, product)))


def _read_out_gradient(
    tile: Tile, last: Round, of_score: Float[Array, "W 1"], config: AlignmentConfig
) -> tuple[Slab, Gradient]:
    """From the gradient of the score to dS_K."""
    of_fit = of_score * last.inverse
    of_attention, gram = scale(of_fit, tile.initial), ()
    if config.region_norm:
        of_length = -0.5 * of_fit * last.inverse**2 * row_sum(last.attention, tile.initial)  # of |r|^2
        gram = ((last.attention, scale(of_length, last.attention)),)
        of_attention = add(of_attention, scale(2 * of_length, last.product))
    of_similarity, of_logit = _attention_gradient(tile, last, of_attention, config)
    return of_similarity, Gradient(scale(of_fit, last.attention), jnp.zeros_like(tile.square), of_logit, gram)


def _attention(tile: Tile, similarity: Slab, config: AlignmentConfig) -> Slab:
    logits = scale(1 / config.region_temperature, similarity)
    if config.importance:
        log_beta = _patch_importance(tile, similarity, _alpha(tile, similarity, config), config)
        logits = each(lambda x, b: x + config.importance * to_words(tile.member, b), logits, log_beta)
    logits = tuple(jnp.where(real, x, FAR) for x, real in zip(logits, tile.real, strict=True))
    top = row_max(logits)
    weight = each(lambda x: jnp.exp(x - top), logits)
    return scale(1 / row_sum(weight), weight)


def _attention_gradient(
    tile: Tile, round_: Round, of_attention: Slab, config: AlignmentConfig
) -> tuple[Slab, Float[Array, "W 1"]]:
    """From dA to dS, and to the gradient of the words' logits, which the patch importance depends on."""
    mean = row_sum(round_.attention, of_attention)
    of_logits = each(lambda a, x: a * (x - mean), round_.attention, of_attention)
    of_similarity = scale(1 / config.region_temperature, of_logits)
    if not config.importance:
        return of_similarity, jnp.zeros_like(tile.square)
    # The rows of dlogits sum to 0 and so do those of dlog_beta: its softmax needs no sum over the patches.
    alpha = _alpha(tile, round_.similarity, config)
    sums = each(lambda x: to_reports(tile.member, x), of_logits)
    of_column = scale(config.importance / config.patch_temperature, sums)  # [M N]
    of_similarity = add(of_similarity, each(lambda x: to_words(alpha, x), of_column))
    parts = each(along_patches, round_.similarity, of_column)
    of_alpha = tile.member * functools.reduce(jnp.add, parts)  # [W M]
    of_word = softmax_over_words_gradient(alpha, of_alpha)  # [W 1]
    through, of_logit = _word_logits_gradient(tile, round_.similarity, of_word, config)
    return add(of_similarity, through), of_logit


def _alpha(tile: Tile, similarity: Slab, config: AlignmentConfig) -> Float[Array, "W M"]:
    return softmax_over_words(word_logits(tile, similarity, config), tile.member)


def word_logits(tile: Tile, similarity: Slab, config: AlignmentConfig) -> Float[Array, "W 1"]:
    """What alpha is a softmax of."""
    if config.word_importance == "pair":
        return _maximum(tile, similarity) / config.word_temperature
    return tile.logit if config.word_importance == "text" else jnp.zeros_like(tile.logit)


def _word_logits_gradient(
    tile: Tile, similarity: Slab, of_word: Float[Array, "W 1"], config: AlignmentConfig
) -> tuple[Slab, Float[Array, "W 1"]]:
    """With respect to S and to the learned logits. Patches that are equally the largest share what is theirs."""
    if config.word_importance != "pair":
        nothing = each(jnp.zeros_like, similarity)
        return nothing, of_word if config.word_importance == "text" else jnp.zeros_like(of_word)
    top = _maximum(tile, similarity)
    largest = tuple(jnp.where(real & (s == top), 1.0, 0.0) for s, real in zip(similarity, tile.real, strict=True))
    return scale(of_word / config.word_temperature / row_sum(largest), largest), jnp.zeros_like(of_word)


def _patch_importance(tile: Tile, similarity: Slab, alpha: Float[Array, "W M"], config: AlignmentConfig) -> Slab:
    """log(N beta) [M N]."""
    column = each(lambda s: to_reports(alpha, s) / config.patch_temperature, similarity)
    column = tuple(jnp.where(real, x, FAR) for x, real in zip(column, tile.real, strict=True))
    top = row_max(column)
    total = row_sum(each(lambda x: jnp.exp(x - top), column))
    constant = math.log(tile.patches) - top - jnp.log(total)
    return tuple(jnp.where(real, x + constant, 0.0) for x, real in zip(column, tile.real, strict=True))


def _maximum(tile: Tile, similarity: Slab) -> Float[Array, "W 1"]:
    return row_max(tuple(jnp.where(real, s, FAR) for s, real in zip(similarity, tile.real, strict=True)))


def _inverse_root(square: Float[Array, "W 1"]) -> Float[Array, "W 1"]:
    """1 / length, and 0 for no length, as `reference.normalize` has it."""
    return jnp.where(square > TINY, lax.rsqrt(jnp.maximum(square, TINY)), 0.0)
