"""From the words of one tile to the local similarity of its reports: importance, selection, aggregation, and back.

Columns are reports, [W M], of which few are in use; `member` is 1 where the word belongs to the report. The equations
are those of `plan_jax.alignment.reference`, with their gradients.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float

from plan_jax.alignment.reference import TINY
from plan_jax.config import AlignmentConfig

LOWEST = -1e30  # finite, so that no difference of two is NaN


class Head(NamedTuple):
    """What z is made of.

    Attributes:
        alpha: word importance.
        chosen: 1 where the word is selected.
        weight: alpha' of the selected words.
        total: the sum of alpha over the selected words of each report.
        fit: exp((score - peak) / t) of the selected words; the score itself where the aggregation is a mean.
        sum: of weight * fit over the words.
        z: local similarity, 0 where a report has no words in this tile.
    """

    alpha: Float[Array, "W M"]
    chosen: Float[Array, "W M"]
    weight: Float[Array, "W M"]
    total: Float[Array, "1 M"]
    fit: Float[Array, "W M"]
    sum: Float[Array, "1 M"]
    z: Float[Array, "1 M"]


def head(
    score: Float[Array, "W 1"], logits: Float[Array, "W 1"], member: Float[Array, "W M"], config: AlignmentConfig
) -> Head:
    """Every step from the words' scores to z."""
    alpha = softmax_over_words(logits, member)
    chosen = member if config.word_keep == 1 else _select(alpha, member, config.word_keep)
    total = (alpha * chosen).sum(axis=0, keepdims=True)
    weight = alpha * chosen / (total + TINY)
    if config.aggregation == "mean":
        fit = score * chosen
        mean = (weight * fit).sum(axis=0, keepdims=True)
        return Head(alpha, chosen, weight, total, fit, mean, mean)
    temperature, used = config.aggregation_temperature, weight > 0
    peak = jnp.where(used, score, LOWEST).max(axis=0, keepdims=True)
    fit = jnp.where(used, jnp.exp(jnp.where(used, score - peak, 0.0) / temperature), 0.0)
    sum_ = (weight * fit).sum(axis=0, keepdims=True)
    some = sum_ > 0
    z = jnp.where(some, peak + temperature * jnp.log(jnp.where(some, sum_, 1.0)), 0.0)
    return Head(alpha, chosen, weight, total, fit, sum_, z)


def head_gradient(
    found: Head, of_z: Float[Array, "1 M"], config: AlignmentConfig
) -> tuple[Float[Array, "W 1"], Float[Array, "W 1"]]:
    """With respect to the scores and the logits. A mean's gradient with respect to the scores needs no scores."""
    if config.aggregation == "mean":
        of_score, of_weight = found.weight * of_z, found.fit * of_z
    else:
        share = of_z / jnp.where(found.sum > 0, found.sum, 1.0)
        of_score, of_weight = found.weight * found.fit * share, config.aggregation_temperature * found.fit * share
    mean = (of_weight * found.weight).sum(axis=0, keepdims=True)
    of_alpha = found.chosen * (of_weight - mean) / (found.total + TINY)
    return of_score.sum(axis=1, keepdims=True), softmax_over_words_gradient(found.alpha, of_alpha)


def softmax_over_words(logits: Float[Array, "W 1"], member: Float[Array, "W M"]) -> Float[Array, "W M"]:
    """alpha: `reference.masked_softmax` over the words of each report."""
    mine = member > 0
    top = jnp.where(mine, logits, LOWEST).max(axis=0, keepdims=True)
    weight = jnp.where(mine, jnp.exp(jnp.where(mine, logits - top, 0.0)), 0.0)
    return weight / jnp.maximum(weight.sum(axis=0, keepdims=True), TINY)


def softmax_over_words_gradient(alpha: Float[Array, "W M"], of_alpha: Float[Array, "W M"]) -> Float[Array, "W 1"]:
    """With respect to the logits."""
    mean = (alpha * of_alpha).sum(axis=0, keepdims=True)
    return (alpha * (of_alpha - mean)).sum(axis=1, keepdims=True)


def _select(alpha: Float[Array, "W M"], member: Float[Array, "W M"], keep: float) -> Float[Array, "W M"]:
    """1 where the word is among the `keep` share of its report's words, as `reference.select_words` has it."""
    number = lax.broadcasted_iota(jnp.int32, member.shape, 1).astype(jnp.float32)
    number = (member * number).sum(axis=1, keepdims=True)
    report = jnp.where(member.sum(axis=1, keepdims=True) > 0, number, -1.0)  # [W 1]
    own = alpha.sum(axis=1, keepdims=True)  # [W 1]
    ahead = _before(own) & (report == _as_row(report))
    rank = jnp.where(ahead, 1.0, 0.0).sum(axis=1, keepdims=True)  # [W 1], 0 = most important
    count = member.sum(axis=0, keepdims=True)  # [1 M]
    kept = jnp.maximum(jnp.ceil(keep * count - 1e-4), 1)  # float32: 0.6 * 25 is a little more than 15
    return member * jnp.where(rank < kept, 1.0, 0.0)


def _before(own: Float[Array, "W 1"]) -> Bool[Array, "W W"]:
    """[l, m]: word m is more important than word l, or as important and stands before it."""
    square = (len(own), len(own))
    row, column = (lax.broadcasted_iota(jnp.int32, square, axis) for axis in (0, 1))
    other = _as_row(own)
    return (other > own) | ((other == own) & (column < row))


def _as_row(column: Float[Array, "W 1"]) -> Float[Array, "1 W"]:
    """The transpose, exactly, by operations that every kernel language has."""
    square = (len(column), len(column))
    diagonal = lax.broadcasted_iota(jnp.int32, square, 0) == lax.broadcasted_iota(jnp.int32, square, 1)
    return jnp.where(diagonal, column, 0.0).sum(axis=0, keepdims=True)
