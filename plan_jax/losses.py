"""The contrastive losses, and the score of an image with a text that evaluation shares with them."""

import dataclasses

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from plan_jax.alignment.sharded import rows_over_devices
from plan_jax.alignment.similarity import word_patch_similarity
from plan_jax.config import AlignmentConfig, Config
from plan_jax.types import ImageFeatures, TextFeatures


def plan_loss(
    image_features: ImageFeatures, text_features: TextFeatures, *, config: Config
) -> tuple[Float[Array, ""], dict[str, Array]]:
    """L = global_weight * L_global + local_weight * L_local, and its parts by name.

    Image i belongs to report i. Reports without a single word take no part in either loss.
    """
    loss, valid = config.loss, text_features.mask.any(axis=1)
    global_loss = info_nce(global_similarity(image_features, text_features) / loss.global_temperature, valid)
    metrics = {"global_loss": global_loss}
    total = loss.global_weight * global_loss
    if loss.local_weight:
        similarity = word_patch_similarity(image_features, text_features, config=config.alignment)
        local_loss = info_nce(similarity / loss.local_temperature, valid)
        metrics["local_loss"] = local_loss
        total = total + loss.local_weight * local_loss
    if loss.local_weight and loss.deep_supervision:
        rounds_loss = _earlier_rounds_loss(image_features, text_features, valid, config)
        metrics["rounds_loss"] = rounds_loss
        total = total + loss.local_weight * loss.deep_supervision * rounds_loss
    return total, {"loss": total, **metrics}


def info_nce(logits: Float[Array, "B B"], valid: Bool[Array, " B"]) -> Float[Array, ""]:
    """Symmetric cross-entropy of the diagonal against its row and its column, over the valid pairs only.

    Rows and columns that are not valid are neither anchors nor negatives; with no valid pair the loss is 0.
    """
    pair = valid[:, None] & valid[None, :]
    logits = jnp.where(pair, logits.astype(jnp.float32), -1e30)
    # A sum and no slice: where the rows lie on many devices, a slice of the diagonal would gather them all.
    own = jnp.arange(len(logits))[:, None] == jnp.arange(len(logits))[None, :]
    diagonal = jnp.sum(jnp.where(own & pair, logits, 0.0), axis=1)  # [B]
    image_to_text = jax.nn.logsumexp(logits, axis=1) - diagonal  # [B]
    text_to_image = jax.nn.logsumexp(logits, axis=0) - diagonal  # [B]
    total = jnp.where(valid, image_to_text + text_to_image, 0.0).sum()
    return total / (2 * jnp.maximum(valid.sum(), 1))


def global_similarity(image_features: ImageFeatures, text_features: TextFeatures) -> Float[Array, "I R"]:
    """Cosine of the global features; under a mesh its rows lie with their images."""
    image, text = image_features.pooled.astype(jnp.float32), text_features.pooled.astype(jnp.float32)
    return rows_over_devices(jnp.einsum("id,rd->ir", image, text))  # [I R]


def image_text_score(
    image_features: ImageFeatures, text_features: TextFeatures, *, config: Config
) -> Float[Array, "I R"]:
    """The score of retrieval and zero-shot classification: a weighted sum of global and local similarity."""
    weights = config.evaluation
    score = weights.global_weight * global_similarity(image_features, text_features)
    if weights.local_weight:
        local = word_patch_similarity(image_features, text_features, config=config.alignment)
        score = score + weights.local_weight * local
    return score


def _earlier_rounds_loss(
    image_features: ImageFeatures, text_features: TextFeatures, valid: Array, config: Config
) -> Float[Array, ""]:
    """Mean local loss of S_0 .. S_{K-1}. Running k rounds gives S_k exactly, so each round is its own call."""

    def at_round(rounds: int) -> Array:
        alignment: AlignmentConfig = dataclasses.replace(config.alignment, rounds=rounds)
        similarity = word_patch_similarity(image_features, text_features, config=alignment)
        return info_nce(similarity / config.loss.local_temperature, valid)

    rounds = config.alignment.rounds
    return sum((at_round(k) for k in range(rounds)), start=jnp.zeros(())) / max(rounds, 1)
