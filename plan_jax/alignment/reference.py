"""The method, a line per equation: one image, one report.

`soft_regions` is the one definition of the soft regions: the loss, retrieval, zero-shot scores and heat maps all
call it. `word_patch_similarity` here is the plain all-pairs form, with memory of I*R*L*N: the oracle of the other
implementations, which share its signature.

Equations follow PLAN (arXiv 2502.18047) as far as its abstract states them [paper]; the rest is this project's
reconstruction [ours]. Letters: N patches, L words, D joint dimension, K rounds.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from plan_jax.config import AlignmentConfig
from plan_jax.types import ImageFeatures, SoftRegions, TextFeatures

# Added to squared lengths and importances before a root or a logarithm, so that padding has finite gradients.
TINY = 1e-12


def soft_regions(
    word: Float[Array, "L D"],
    patch: Float[Array, "N D"],
    word_logit: Float[Array, " L"],
    mask: Bool[Array, " L"],
    *,
    config: AlignmentConfig,
) -> SoftRegions:
    """The regions of one image that the words of one report point to, after K rounds of refinement.

    Args:
        word: w_l, length 1 (length 0 on padding).
        patch: u_n, length 1.
        word_logit: learned importance of a word, read when `config.word_importance` is "text".
        mask: True where a word is real.
        config: the rounds and the forms of the equations.
    """
    word, patch = word.astype(jnp.float32), patch.astype(jnp.float32)
    similarity = jnp.einsum("ld,nd->ln", word, patch)  # S_0 [L N] [paper]

    def refine(similarity: Array, _: None) -> tuple[Array, None]:
        attention = weigh(similarity, word_logit, mask, config=config).attention
        region = jnp.einsum("ln,nd->ld", attention, patch)  # r_l [L D] [paper]
        evidence = normalize(word + config.evidence * region)  # q_l [L D] [ours]
        updated = jnp.einsum("ld,nd->ln", evidence, patch)  # [L N]
        return config.history * similarity + (
            1 - config.history
        ) * updated, None  # S_{k+1} [paper: history; ours: form]

    similarity, _ = jax.lax.scan(refine, similarity, None, length=config.rounds)  # [paper: iterate; ours: the rule]
    return weigh(similarity, word_logit, mask, config=config)


def weigh(
    similarity: Float[Array, "L N"], word_logit: Float[Array, " L"], mask: Bool[Array, " L"], *, config: AlignmentConfig
) -> SoftRegions:
    """Word importance alpha, patch importance beta and attention A of a similarity [paper: exist; ours: form]."""
    alpha = masked_softmax(_word_logits(similarity, word_logit, config), mask)  # [L]
    column = jnp.einsum("l,ln->n", alpha, similarity)  # [N]
    beta = jax.nn.softmax(column / config.patch_temperature)  # [N]
    logits = similarity / config.region_temperature  # [L N]
    if config.importance:
        log_beta = jax.nn.log_softmax(column / config.patch_temperature)
        logits = logits + config.importance * (jnp.log(float(beta.size)) + log_beta)[None, :]  # log(N beta_n)
    attention = jax.nn.softmax(logits, axis=1)  # A [L N]
    return SoftRegions(similarity=similarity, attention=attention, word_importance=alpha, patch_importance=beta)


def local_similarity(
    word: Float[Array, "L D"],
    patch: Float[Array, "N D"],
    word_logit: Float[Array, " L"],
    mask: Bool[Array, " L"],
    *,
    config: AlignmentConfig,
) -> Float[Array, ""]:
    """z of one image and one report: how well the selected words agree with the regions they point to.

    The shapes are those of `soft_regions`. The mean over words is weighted by alpha; "logsumexp" is the same mean of
    exp(score / t), back through the logarithm, so that t -> infinity gives the mean.
    """
    word, patch = word.astype(jnp.float32), patch.astype(jnp.float32)
    regions = soft_regions(word, patch, word_logit, mask, config=config)
    if config.region_norm:
        region = jnp.einsum("ln,nd->ld", regions.attention, patch)  # r_l [L D] [paper]
        score = jnp.einsum("ld,ld->l", normalize(region), word)  # <r_l / |r_l|, w_l> [L]
    else:
        initial = jnp.einsum("ld,nd->ln", word, patch)  # S_0 [L N]
        score = jnp.einsum("ln,ln->l", regions.attention, initial)  # <r_l, w_l> without forming r_l [L]
    weight = select_words(regions.word_importance, mask, keep=config.word_keep)  # alpha' [L] [paper: selected words]
    if config.aggregation == "mean":
        return jnp.sum(weight * score)
    temperature = config.aggregation_temperature
    peak = jax.lax.stop_gradient(jnp.max(jnp.where(weight > 0, score, -jnp.inf), initial=-1.0))
    total = jnp.sum(weight * jnp.exp((jnp.where(weight > 0, score, peak) - peak) / temperature))
    return jnp.where(mask.any(), peak + temperature * jnp.log(jnp.where(mask.any(), total, 1.0)), 0.0)


def grounding_map(regions: SoftRegions) -> Float[Array, " N"]:
    """Where a phrase points: the alpha-weighted mean over its words of S_K."""
    return jnp.einsum("l,ln->n", regions.word_importance, regions.similarity)  # [N]


def word_patch_similarity(
    image_features: ImageFeatures, text_features: TextFeatures, *, config: AlignmentConfig
) -> Float[Array, "I R"]:
    """Local similarity z of every image with every report, the plain way: memory grows with I*R*L*N."""

    def pair(patch, word, word_logit, mask):
        return local_similarity(word, patch, word_logit, mask, config=config)

    reports = jax.vmap(pair, in_axes=(None, 0, 0, 0))
    images = jax.vmap(reports, in_axes=(0, None, None, None))
    return images(image_features.patch, text_features.word, text_features.word_logit, text_features.mask)


def select_words(importance: Float[Array, " L"], mask: Bool[Array, " L"], *, keep: float) -> Float[Array, " L"]:
    """alpha': the `keep` share of the real words with the largest importance (at least one), made to sum to 1."""
    if keep < 1:
        rank = jnp.argsort(jnp.argsort(jnp.where(mask, -importance, jnp.inf)))  # 0 = most important
        kept = jnp.maximum(jnp.ceil(keep * mask.sum() - 1e-4), 1)  # float32: 0.6 * 25 is a little more than 15
        importance = jnp.where(rank < kept, importance, 0.0)
    return importance / (importance.sum() + TINY)


def normalize(vector: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Length 1 along the last axis; a zero vector stays zero, with a zero (not NaN) gradient."""
    squared = jnp.sum(vector * vector, axis=-1, keepdims=True)
    return vector * jnp.where(squared > TINY, jax.lax.rsqrt(jnp.maximum(squared, TINY)), 0.0)


def masked_softmax(logits: Float[Array, " L"], mask: Bool[Array, " L"]) -> Float[Array, " L"]:
    """Softmax over the True entries, exactly 0 elsewhere; all zeros when nothing is True."""
    logits = logits.astype(jnp.float32)
    shifted = jnp.where(mask, logits, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(shifted, initial=-1e30))
    weight = jnp.where(mask, jnp.exp(jnp.where(mask, logits, top) - top), 0.0)
    return weight / jnp.maximum(weight.sum(), TINY)


def _word_logits(similarity: Array, word_logit: Array, config: AlignmentConfig) -> Array:
    """What alpha is a softmax of: [L]."""
    if config.word_importance == "pair":
        return similarity.max(axis=1) / config.word_temperature
    return word_logit if config.word_importance == "text" else jnp.zeros_like(word_logit)
