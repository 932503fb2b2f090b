"""The method, a line per equation: one image, some reports.

`soft_regions` is the one definition of the soft regions: the loss, retrieval, zero-shot scores and heat maps all
call it. The words of the reports stand in one list, so that no equation is spent on padding; `member[l, r]` is True
where word l belongs to report r. A word belongs to one report, a padding word to none; `mask[:, None]` is one report.

`all_pairs` here is the plain form, with memory of I*R*L*N: the oracle of the other
implementations, which share its signature.

Equations follow PLAN (arXiv 2502.18047) as far as its abstract states them [paper]; the rest is this project's
reconstruction [ours]. Letters: N patches, L words, R reports, D joint dimension, K rounds.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from plan_jax.config import AlignmentConfig, EvaluationConfig
from plan_jax.types import SoftRegions

# Added to squared lengths and importances before a root or a logarithm, so that padding has finite gradients.
TINY = 1e-12


def soft_regions(
    word: Float[Array, "L D"],
    patch: Float[Array, "N D"],
    word_logit: Float[Array, " L"],
    member: Bool[Array, "L R"],
    *,
    config: AlignmentConfig,
) -> SoftRegions:
    """The regions of one image that the words of some reports point to, after K rounds of refinement.

    Args:
        word: w_l, length 1 (length 0 on padding).
        patch: u_n, length 1.
        word_logit: learned importance of a word, read when `config.word_importance` is "text".
        member: True where the word belongs to the report.
        config: the rounds and the forms of the equations.
    """
    word, patch = word.astype(jnp.float32), patch.astype(jnp.float32)
    similarity = jnp.einsum("ld,nd->ln", word, patch)  # S_0 [L N] [paper]

    def refine(similarity: Array, _: None) -> tuple[Array, None]:
        attention = weigh(similarity, word_logit, member, config=config).attention
        region = jnp.einsum("ln,nd->ld", attention, patch)  # r_l [L D] [paper]
        evidence = normalize(word + config.evidence * region)  # q_l [L D] [ours]
        updated = jnp.einsum("ld,nd->ln", evidence, patch)  # [L N]
        similarity = config.history * similarity + (1 - config.history) * updated  # S_{k+1} [paper; ours: form]
        return similarity, None

    similarity, _ = jax.lax.scan(refine, similarity, None, length=config.rounds)  # [paper: iterate; ours: the rule]
    return weigh(similarity, word_logit, member, config=config)


def weigh(
    similarity: Float[Array, "L N"],
    word_logit: Float[Array, " L"],
    member: Bool[Array, "L R"],
    *,
    config: AlignmentConfig,
) -> SoftRegions:
    """Word importance alpha, patch importance beta and attention A of a similarity [paper: exist; ours: form]."""
    alpha = masked_softmax(word_logits(similarity, word_logit, config=config)[:, None], member)  # [L R]
    column = jnp.einsum("lr,ln->rn", alpha, similarity)  # [R N]
    beta = jax.nn.softmax(column / config.patch_temperature, axis=1)  # [R N]
    logits = similarity / config.region_temperature  # [L N]
    if config.importance:
        log_beta = jax.nn.log_softmax(column / config.patch_temperature, axis=1)  # [R N]
        log_beta = log_beta + jnp.log(float(beta.shape[1]))  # log(N beta_n)
        logits = logits + config.importance * jnp.einsum("lr,rn->ln", member, log_beta)  # [L N]
    attention = jax.nn.softmax(logits, axis=1)  # A [L N]
    return SoftRegions(similarity=similarity, attention=attention, word_importance=alpha, patch_importance=beta)


def local_similarity(
    word: Float[Array, "L D"],
    patch: Float[Array, "N D"],
    word_logit: Float[Array, " L"],
    member: Bool[Array, "L R"],
    *,
    config: AlignmentConfig,
) -> Float[Array, " R"]:
    """z of one image and each report: how well the selected words agree with the regions they point to.

    The shapes are those of `soft_regions`. The mean over words is weighted by alpha; "logsumexp" is the same mean of
    exp(score / t), back through the logarithm, so that t -> infinity gives the mean.
    """
    word, patch = word.astype(jnp.float32), patch.astype(jnp.float32)
    regions = soft_regions(word, patch, word_logit, member, config=config)
    if config.region_norm:
        region = jnp.einsum("ln,nd->ld", regions.attention, patch)  # r_l [L D] [paper]
        score = jnp.einsum("ld,ld->l", normalize(region), word)  # <r_l / |r_l|, w_l> [L]
    else:
        initial = jnp.einsum("ld,nd->ln", word, patch)  # S_0 [L N]
        score = jnp.einsum("ln,ln->l", regions.attention, initial)  # <r_l, w_l> without forming r_l [L]
    return aggregate(score, regions.word_importance, member, config=config)


def aggregate(
    score: Float[Array, " L"], importance: Float[Array, "L R"], member: Bool[Array, "L R"], *, config: AlignmentConfig
) -> Float[Array, " R"]:
    """z from the scores of the selected words: their mean weighted by alpha', or the logarithm of that of exp."""
    weight = selected_importance(importance, member, keep=config.word_keep)  # alpha' [L R]
    if config.aggregation == "mean":
        return jnp.einsum("lr,l->r", weight, score)  # [R]
    temperature, some = config.aggregation_temperature, member.any(axis=0)
    score = jnp.where(weight > 0, score[:, None], -jnp.inf)  # [L R]
    peak = jax.lax.stop_gradient(jnp.max(score, axis=0, initial=-1.0))  # [R]
    total = jnp.sum(weight * jnp.exp((score - peak[None, :]) / temperature), axis=0)  # [R]
    return jnp.where(some, peak + temperature * jnp.log(jnp.where(some, total, 1.0)), 0.0)


def grounding_map(regions: SoftRegions, member: Bool[Array, "L R"], *, config: AlignmentConfig) -> Float[Array, "R N"]:
    """Where each phrase points: in every patch the S_K of the selected word that fits best, 0 where none fits [ours].

    `config.map_words` "mean" weights the words by alpha instead, as the plan of the method has it: words that point
    nowhere ("seen", "left") then blur the map. `config.map_spread` then takes out what single patches make up.
    """
    if config.map_words == "mean":
        mean = jnp.einsum("lr,ln->rn", regions.word_importance, regions.similarity)  # [R N]
        return spread(mean, sigma=config.map_spread)
    chosen = select_words(regions.word_importance, member, keep=config.word_keep)  # others learnt nothing
    own = jnp.where(chosen[:, :, None], regions.similarity[:, None, :], 0.0)  # [L R N]
    return clean_map(own.max(axis=0), config=config)


def clean_map(maps: Float[Array, "M N"], *, config: AlignmentConfig) -> Float[Array, "M N"]:
    """A map without its values below 0, which only say that a patch does not fit, and spread [ours]."""
    return spread(jnp.maximum(maps, 0.0), sigma=config.map_spread)


def spread(maps: Float[Array, "M N"], *, sigma: float) -> Float[Array, "M N"]:
    """Every patch of a square grid hears its neighbours: the mean around it, weighted by a Gaussian [ours].

    `sigma` is in patches; 0 leaves the maps as they are. At the border the weights inside the grid sum to 1.

    Raises:
        ValueError: the grid is not square.
    """
    if not sigma:
        return maps
    side = math.isqrt(maps.shape[1])
    if side * side != maps.shape[1]:
        raise ValueError(f"the patches must form a square, got {maps.shape[1]}; feed square images or set sigma to 0")
    place = np.arange(side)
    weight = np.exp(-((place[:, None] - place[None, :]) ** 2) / (2 * sigma**2))
    weight = jnp.asarray(weight / weight.sum(axis=1, keepdims=True), jnp.float32)  # [h h], as [w w]
    grid = maps.reshape(-1, side, side)  # [M h w]
    return jnp.einsum("ij,mjk,lk->mil", weight, grid, weight).reshape(maps.shape)


def compete(
    grounding_map: Float[Array, "*grid"], rivals: Float[Array, "C *grid"], *, config: EvaluationConfig
) -> Float[Array, "*grid"]:
    """A map less what the maps of C other findings claim: M - eta t log mean_c exp(M_c / t) [ours].

    A read-out only: it needs to be told what else there could be, and is reported beside the plain map, never for it.
    """
    t = config.competition_temperature
    claimed = jax.nn.logsumexp(jnp.asarray(rivals) / t, axis=0) - jnp.log(float(len(rivals)))
    return grounding_map - config.competition * t * claimed


def all_pairs(
    config: AlignmentConfig,
    patch: Float[Array, "I N D"],
    word: Float[Array, "R L D"],
    word_logit: Float[Array, "R L"],
    mask: Bool[Array, "R L"],
) -> Float[Array, "I R"]:
    """Local similarity z of every image with every report, the plain way: memory grows with I*R*L*N."""

    def pair(patch: Array, word: Array, word_logit: Array, mask: Array) -> Array:
        return local_similarity(word, patch, word_logit, mask[:, None], config=config)[0]

    reports = jax.vmap(pair, in_axes=(None, 0, 0, 0))
    return jax.vmap(reports, in_axes=(0, None, None, None))(patch, word, word_logit, mask)


def selected_importance(
    importance: Float[Array, "L R"], member: Bool[Array, "L R"], *, keep: float
) -> Float[Array, "L R"]:
    """alpha': the importance of the selected words of each report, summed to 1; 0 for all other words."""
    importance = jnp.where(select_words(importance, member, keep=keep), importance, 0.0)
    return importance / (importance.sum(axis=0, keepdims=True) + TINY)


def select_words(importance: Float[Array, "L R"], member: Bool[Array, "L R"], *, keep: float) -> Bool[Array, "L R"]:
    """Of each report, the `keep` share of its words with the largest importance, at least one [paper: selected]."""
    if keep == 1:
        return member
    own, row = importance.sum(axis=1), jnp.arange(len(importance))  # [L]
    tie = (own[None, :] == own[:, None]) & (row[None, :] < row[:, None])
    before = (own[None, :] > own[:, None]) | tie  # [l, m]: word m comes before word l [L L]
    rank = jnp.einsum("lm,mr->lr", before, member.astype(jnp.float32))  # 0 = most important [L R]
    count = member.sum(axis=0, keepdims=True)  # [1 R]
    kept = jnp.maximum(jnp.ceil(keep * count - 1e-4), 1)  # float32: 0.6 * 25 is a little more than 15
    return member & (rank < kept)


def normalize(vector: Float[Array, "... D"]) -> Float[Array, "... D"]:
    """Length 1 along the last axis; a zero vector stays zero, with a zero (not NaN) gradient."""
    return vector * inverse_root(jnp.sum(vector * vector, axis=-1, keepdims=True))


def inverse_root(squared: Float[Array, "..."]) -> Float[Array, "..."]:
    """1 / length of squared lengths; 0 for a length of zero, with a zero (not NaN) gradient."""
    return jnp.where(squared > TINY, jax.lax.rsqrt(jnp.maximum(squared, TINY)), 0.0)


def masked_softmax(logits: Float[Array, "L #R"], mask: Bool[Array, "L R"]) -> Float[Array, "L R"]:
    """Softmax over the True entries of each column, exactly 0 elsewhere; all zeros where nothing is True."""
    logits = logits.astype(jnp.float32)
    shifted = jnp.where(mask, logits, -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(shifted, axis=0, keepdims=True, initial=-1e30))  # [1 R]
    weight = jnp.where(mask, jnp.exp(jnp.where(mask, logits, top) - top), 0.0)
    return weight / jnp.maximum(weight.sum(axis=0, keepdims=True), TINY)


def word_logits(
    similarity: Float[Array, "L N"], word_logit: Float[Array, " L"], *, config: AlignmentConfig
) -> Float[Array, " L"]:
    """What alpha is a softmax of."""
    if config.word_importance == "pair":
        return similarity.max(axis=1) / config.word_temperature
    return word_logit if config.word_importance == "text" else jnp.zeros_like(word_logit)
