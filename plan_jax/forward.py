"""What a model in use computes, compiled: encode, score, ground. `plan_jax.inference.Plan` calls it in batches."""

import functools
from typing import Any

import jax
from jaxtyping import Array, Float

from plan_jax.alignment.reference import clean_map, grounding_map, soft_regions
from plan_jax.config import Config
from plan_jax.losses import image_text_score
from plan_jax.model import PlanModel
from plan_jax.types import ImageFeatures, TextFeatures


@functools.partial(jax.jit, static_argnames="config")
def encode_image(variables: Any, images: Array, *, config: Config) -> Any:
    """`ImageFeatures` of model inputs [I H W 1]."""
    return PlanModel(config).apply(variables, images, method="encode_image")


@functools.partial(jax.jit, static_argnames="config")
def encoder_features(variables: Any, images: Array, *, config: Config) -> Any:
    """The encoder's last map of model inputs [I H W 1], averaged: [I C]."""
    return PlanModel(config).apply(variables, images, method="encoder_features")


@functools.partial(jax.jit, static_argnames="config")
def encode_text(variables: Any, *columns: Array, config: Config) -> Any:
    """`TextFeatures` of tokens, the columns of `PlanModel.encode_text`."""
    return PlanModel(config).apply(variables, *columns, method="encode_text")


@functools.partial(jax.jit, static_argnames="config")
def score(images: ImageFeatures, texts: TextFeatures, *, config: Config) -> Float[Array, "I R"]:
    """Image-text scores of all pairs."""
    return image_text_score(images, texts, config=config)


def grounding_maps(
    images: ImageFeatures, texts: TextFeatures, *, config: Config
) -> tuple[Float[Array, "B N"], Float[Array, "B L"]]:
    """The map of text b in image b, and the importance of its words."""

    def one(patch, word, word_logit, mask):
        regions = soft_regions(word, patch, word_logit, mask[:, None], config=config.alignment)
        found = grounding_map(regions, mask[:, None], config=config.alignment)
        return found[0], regions.word_importance[:, 0]

    return jax.vmap(one)(images.patch, texts.word, texts.word_logit, texts.mask)


ground = jax.jit(grounding_maps, static_argnames="config")


@functools.partial(jax.jit, static_argnames="config")
def ground_words(
    images: ImageFeatures, texts: TextFeatures, *, config: Config
) -> tuple[Float[Array, "B L N"], Float[Array, "B L"]]:
    """The map of every word of text b in image b, and the importance of the words."""

    def one(patch, word, word_logit, mask):
        regions = soft_regions(word, patch, word_logit, mask[:, None], config=config.alignment)
        return clean_map(regions.similarity, config=config.alignment), regions.word_importance[:, 0]

    return jax.vmap(one)(images.patch, texts.word, texts.word_logit, texts.mask)


@functools.partial(jax.jit, static_argnames="config")
def ground_all(images: ImageFeatures, texts: TextFeatures, *, config: Config) -> Float[Array, "I R N"]:
    """The map of every text in every image."""

    def one(patch, word, word_logit, mask):
        regions = soft_regions(word, patch, word_logit, mask[:, None], config=config.alignment)
        return grounding_map(regions, mask[:, None], config=config.alignment)[0]

    every = jax.vmap(jax.vmap(one, in_axes=(None, 0, 0, 0)), in_axes=(0, None, None, None))
    return every(images.patch, texts.word, texts.word_logit, texts.mask)


@functools.partial(jax.jit, static_argnames="config")
def global_cells(variables: Any, images: Array, *, config: Config) -> Any:
    """The projected cells [I h w D] of `PlanModel.global_cells`."""
    return PlanModel(config).apply(variables, images, method="global_cells")
