"""What is compiled: the losses alone, and a whole training step, from shapes."""

import dataclasses
import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jaxtyping import Array

from plan_jax.augment import augment
from plan_jax.config import Config
from plan_jax.geometry import loaded_side
from plan_jax.losses import plan_loss
from plan_jax.model import PlanModel
from plan_jax.sharding import check_batch, over_data, placed
from plan_jax.train.placement import placement
from plan_jax.train.state import create_state, make_optimizer
from plan_jax.train.step import train_step
from plan_jax.types import Batch, ImageFeatures, TextFeatures


def lower_alignment(config: Config, mesh: Mesh) -> jax.stages.Lowered:
    """Both losses and their gradient with respect to the features of a global batch, without encoders."""
    check_batch(config.data.batch_size, mesh)
    images, texts = placed(feature_shapes(config), over_data(mesh))
    gradient = jax.jit(jax.grad(_loss, argnums=(0, 1), has_aux=True), static_argnames="config")
    with jax.set_mesh(mesh):
        return gradient.lower(images, texts.replace(mask=None), texts.mask, config=config)


def lower_step(config: Config, mesh: Mesh) -> jax.stages.Lowered:
    """A step of pretraining on a global batch: encoders, losses, backward pass and optimizer."""
    check_batch(config.data.batch_size, mesh, parts=config.train.micro_batches)
    state = jax.eval_shape(lambda: create_state(config))
    state = placed(state, placement(state, mesh))
    batch = placed(batch_shapes(config), over_data(mesh))
    with jax.set_mesh(mesh):
        return train_step.lower(state, batch, model=PlanModel(config), optimizer=make_optimizer(config), config=config)


def state_bytes(config: Config, mesh: Mesh) -> int:
    """Of parameters, moments and batch statistics, what each device holds between two steps."""
    state = jax.eval_shape(lambda: create_state(config))
    parts = jax.tree.map(
        lambda leaf, place: math.prod(place.shard_shape(leaf.shape)) * leaf.dtype.itemsize,
        state,
        placement(state, mesh),
    )
    return sum(jax.tree.leaves(parts))


PROGRAMS = {"alignment": lower_alignment, "step": lower_step}


def batch_shapes(config: Config) -> Batch:
    """The shapes of a global batch, as the data pipeline makes them."""
    data = config.data
    size, text = data.batch_size, (data.batch_size, data.max_tokens)
    side = loaded_side(data.image_size, data.crop)
    return Batch(
        image=_shape((size, side, side, 1), jnp.uint8),
        token_ids=_shape(text, jnp.int32),
        word_ids=_shape(text, jnp.int32),
        token_mask=_shape(text, jnp.bool_),
        sentence_ids=_shape(text, jnp.int32),
        record=_shape((size,), jnp.int32),
        words_cut=_shape((size,), jnp.int32),
    )


def feature_shapes(config: Config) -> tuple[ImageFeatures, TextFeatures]:
    """The shapes of a global batch's features."""
    return jax.eval_shape(functools.partial(_features, config), _variables(config), batch_shapes(config))


def _shape(shape: tuple[int, ...], dtype: Any) -> Any:
    return jax.ShapeDtypeStruct(shape, dtype)


def _variables(config: Config) -> Any:
    state = jax.eval_shape(lambda: create_state(config))
    return {"params": state.params, "batch_stats": state.batch_stats}


def _features(config: Config, variables: Any, batch: Batch) -> Any:
    seen = dataclasses.replace(batch, image=augment(batch.image, 0, config=config))
    return PlanModel(config).apply(variables, seen, train=False)


def _loss(images: ImageFeatures, texts: TextFeatures, mask: Array, config: Config) -> tuple[Array, dict[str, Array]]:
    """plan_loss with the mask, which has no gradient, apart."""
    return plan_loss(images, texts.replace(mask=mask), config=config)  # pyright: ignore[reportAttributeAccessIssue]
