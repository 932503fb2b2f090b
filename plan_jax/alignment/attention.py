"""Attention of some words to the patches of one image, and its derivative written by hand.

The equations are those of `plan_jax.alignment.reference.weigh`; here they stand once more because the derivative needs
less than autodiff keeps: beta drops out, and sums over a row that are known from elsewhere are not taken again.
"""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from plan_jax.alignment.reference import masked_softmax, word_logits
from plan_jax.config import AlignmentConfig


class Words(NamedTuple):
    """The words of some whole reports.

    Attributes:
        word: w_l in the dtype of the matrix products.
        word_logit: learned importance, read with `word_importance = "text"`.
        member: True where the word belongs to the report; nowhere for padding.
    """

    word: Float[Array, "L D"]
    word_logit: Float[Array, " L"]
    member: Bool[Array, "L R"]


class Pulled(NamedTuple):
    """What a soft region hands back in the backward pass.

    Attributes:
        attention: cotangent of A.
        mean: sum_n A * cotangent, known without a pass over the matrices.
        gradient: cotangents of what the form holds (`FeatureGradient`, `GramGradient`).
    """

    attention: Float[Array, "L N"]
    mean: Float[Array, " L"]
    gradient: Any


def dot(a: Float[Array, "..."], b: Float[Array, "..."], axes: str) -> Float[Array, "..."]:
    """Product of two matrices, summed in float32, along one axis of each: "10" is a @ b, "11" a @ b.T, "00" a.T @ b.

    Both are read in the narrower of their dtypes. float32 is float32 on every device, where the default may be less.
    """
    dtype = jnp.bfloat16 if jnp.bfloat16 in (a.dtype, b.dtype) else jnp.float32
    precision = jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None
    contract = ((int(axes[0]),), (int(axes[1]),))
    return jax.lax.dot_general(
        a.astype(dtype), b.astype(dtype), (contract, ((), ())), precision=precision, preferred_element_type=jnp.float32
    )


def attend(similarity: Float[Array, "L N"], words: Words, *, config: AlignmentConfig) -> Float[Array, "L N"]:
    """A, each row summing to 1 over the patches."""
    logits = similarity / config.region_temperature
    if config.importance:
        column = dot(importance(similarity, words, config=config), similarity, "00")  # sum_l alpha_l S_l [R N]
        log_beta = jax.nn.log_softmax(column / config.patch_temperature, axis=1) + math.log(similarity.shape[1])
        logits = logits + config.importance * dot(words.member.astype(jnp.float32), log_beta, "10")  # [L N]
    weight = jnp.exp(logits - logits.max(axis=1, keepdims=True))
    return weight / weight.sum(axis=1, keepdims=True)


def pull_attend(
    similarity: Float[Array, "L N"],
    attention: Float[Array, "L N"],
    words: Words,
    pulled: Pulled,
    *,
    config: AlignmentConfig,
) -> tuple[Float[Array, "L N"], Float[Array, " L"]]:
    """Cotangents of the similarity and of the words' logits.

    Args:
        similarity: S that was attended with.
        attention: A = attend(S).
        words: the words.
        pulled: cotangent of A.
        config: the forms of the equations.
    """
    of_logits = attention * (pulled.attention - pulled.mean[:, None])
    of_similarity = of_logits / config.region_temperature
    if not config.importance:
        return of_similarity, jnp.zeros_like(words.word_logit)

    def alpha_of(similarity: Array, word_logit: Array) -> Array:
        return importance(similarity, words._replace(word_logit=word_logit), config=config)

    alpha, pull = jax.vjp(alpha_of, similarity, words.word_logit)
    # Rows of of_logits sum to 0, and with them those of log beta: its softmax needs no sum of its own.
    member = words.member.astype(jnp.float32)
    of_column = config.importance / config.patch_temperature * dot(member, of_logits, "00")  # [R N]
    of_alpha = jnp.where(words.member, dot(similarity, of_column, "11"), 0.0)  # [L R]
    through_alpha, of_logit = pull(of_alpha)
    return of_similarity + dot(alpha, of_column, "10") + through_alpha, of_logit


def importance(similarity: Float[Array, "L N"], words: Words, *, config: AlignmentConfig) -> Float[Array, "L R"]:
    """alpha, each column summing to 1 over the words of its report."""
    return masked_softmax(word_logits(similarity, words.word_logit, config=config)[:, None], words.member)
