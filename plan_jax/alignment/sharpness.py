"""How decided the alignment is, round by round: do few words matter, do they point to few patches."""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax.scipy.special import entr
from jaxtyping import Array, Bool, Float

from plan_jax.alignment.reference import TINY, soft_regions
from plan_jax.config import AlignmentConfig


def sharpness(
    patch: Float[Array, "P N D"],
    word: Float[Array, "P L D"],
    word_logit: Float[Array, "P L"],
    mask: Bool[Array, "P L"],
    *,
    config: AlignmentConfig,
) -> dict[str, Float[Array, ""]]:
    """Of pairs of an image with its own report, for every round k from 0 to K, without a gradient.

    "word_entropy/round_k": the entropy of the word importance over that of equally important words, the mean over the
    pairs of two words or more; 1 where all words matter alike, 0 where one does. "map_sharpness/round_k": 1 less the
    entropy of a word's attention over that of a uniform one, the mean over all real words; 0 where words look
    everywhere, 1 where each looks at one patch. Both are 0 where there is nothing to take the mean of.
    """
    patch, word, word_logit = jax.lax.stop_gradient((patch, word, word_logit))
    found = {}
    for k in range(config.rounds + 1):  # k rounds give S_k exactly
        entropies = functools.partial(_entropies, dataclasses.replace(config, rounds=k))
        of_words, of_maps = jax.vmap(entropies)(patch, word, word_logit, mask)  # [P], [P L]
        count = mask.sum(axis=1)
        relative = of_words / jnp.log(jnp.maximum(count, 2))
        found[f"word_entropy/round_{k}"] = _mean(relative, count > 1)
        found[f"map_sharpness/round_{k}"] = _mean(1 - of_maps / max(math.log(patch.shape[1]), TINY), mask)
    return found


def _entropies(
    config: AlignmentConfig, patch: Array, word: Array, word_logit: Array, mask: Array
) -> tuple[Float[Array, ""], Float[Array, " L"]]:
    """Of one pair: the entropy of its words' importance, and of each word's attention."""
    regions = soft_regions(word, patch, word_logit, mask[:, None], config=config)
    return entr(regions.word_importance).sum(), entr(regions.attention).sum(axis=1)


def _mean(values: Float[Array, "..."], taken: Bool[Array, "..."]) -> Float[Array, ""]:
    """The mean of the values that are taken; 0 where none is."""
    return jnp.where(taken, values, 0.0).sum() / jnp.maximum(taken.sum(), 1)
