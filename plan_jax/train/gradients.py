"""The gradient of the loss of a global batch, in one piece or in micro-batches; either way every report of the batch is
a negative of every image.

In micro-batches (`train.micro_batches`): features of all parts, one part after the other, of which nothing else is
kept; then the loss and its gradient with respect to all features at once; then every part again, now with its backward
pass (Gao et al., GradCache, arXiv 2101.06983). Gradients are exact and the encoders are computed twice forward. Where
norms work over the batch (`batch_norm="train"`) they work over a micro-batch.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from plan_jax.alignment.sharded import rows_over_devices
from plan_jax.config import Config
from plan_jax.losses import plan_loss
from plan_jax.model import PlanModel
from plan_jax.train.placement import gathered
from plan_jax.train.rules import parameter_factors, where_learned
from plan_jax.types import Batch, ImageFeatures, TextFeatures

Features = tuple[ImageFeatures, TextFeatures]
LossOf = Callable[[ImageFeatures, TextFeatures], tuple[Array, dict[str, Array]]]  # a loss and its parts by name


class Found(NamedTuple):
    """What a step needs of its batch."""

    gradients: Any  # as the parameters
    batch_stats: Any  # updated
    metrics: dict[str, Array]  # "loss" and its parts
    features: Features  # of the whole batch


def gradients_of(params: Any, batch_stats: Any, batch: Batch, key: Array, *, model: PlanModel, config: Config) -> Found:
    """The gradient of `plan_loss` with respect to the parameters, and what is found on the way.

    Args:
        batch: as the model sees it, after `augment`.
        key: of dropout.
    """
    loss_of = functools.partial(plan_loss, config=config)
    return gradients_through(loss_of, params, (batch_stats, batch, key), model=model, config=config)


def gradients_through(
    loss_of: LossOf, params: Any, given: tuple[Any, Batch, Array], *, model: PlanModel, config: Config
) -> Found:
    """The same for any function of the features; `given` are the batch statistics, the batch and the key."""
    encode = functools.partial(_encode, model, parameter_factors(params, rules=config.optim.rules).learning_rate)
    if config.train.micro_batches > 1:
        return _in_parts(encode, loss_of, params, given, config=config)

    def through(params: Any) -> tuple[Array, tuple]:
        features, updated = encode(params, *given)
        loss, metrics = loss_of(*features)
        return loss, (updated, metrics, features)

    gradients, found = jax.grad(through, has_aux=True)(params)
    return Found(gradients, *found)


def _encode(
    model: PlanModel, rates: Any, params: Any, batch_stats: Any, batch: Batch, key: Array
) -> tuple[Features, Any]:
    """Features, and the batch statistics as this batch updates them; frozen parameters get no gradient."""
    learning = where_learned(rates, params, jax.lax.stop_gradient(params))
    variables = {"params": gathered(learning), "batch_stats": batch_stats}
    features, updated = model.apply(variables, batch, train=True, rngs={"dropout": key}, mutable=["batch_stats"])
    return features, updated.get("batch_stats", {})


def _in_parts(
    encode: Callable, loss_of: LossOf, params: Any, given: tuple[Any, Batch, Array], *, config: Config
) -> Found:
    (batch_stats, batch, key), count = given, config.train.micro_batches
    parts = jax.tree.map(functools.partial(_cut, count), batch)
    keys = jax.vmap(functools.partial(jax.random.fold_in, key))(jnp.arange(count))

    features, updated = jax.lax.map(lambda part: encode(params, batch_stats, *part), (parts, keys))
    features = jax.tree.map(_joined, features)
    learned, rest = _learned(features)
    of_features, metrics = jax.grad(lambda learned: loss_of(*_whole(learned, rest)), has_aux=True)(learned)

    def add(total: Any, given: tuple) -> tuple[Any, None]:
        part, part_key, of_part = given
        _, pull = jax.vjp(lambda params: _learned(encode(params, batch_stats, part, part_key)[0])[0], params)
        return jax.tree.map(jnp.add, total, pull(of_part)[0]), None

    cotangents = jax.tree.map(functools.partial(_cut, count), of_features)
    zero = jax.tree.map(jnp.zeros_like, params)
    gradients, _ = jax.lax.scan(add, zero, (parts, keys, cotangents))
    return Found(gradients, jax.tree.map(lambda each: each.mean(axis=0), updated), metrics, features)


def _cut(count: int, rows: Array) -> Array:
    """[B ...] -> [count B/count ...], part m of the rows m, m + count, ...: every device cuts its own rows."""
    return jnp.swapaxes(rows_over_devices(rows).reshape(-1, count, *rows.shape[1:]), 0, 1)


def _joined(parts: Array) -> Array:
    """The rows that `_cut` cut."""
    return rows_over_devices(jnp.swapaxes(parts, 0, 1).reshape(-1, *parts.shape[2:]))


def _learned(features: Features) -> tuple[tuple[ImageFeatures, Any], Array]:
    """The features that have a gradient, and the mask, which has none."""
    images, texts = features
    return (images, texts.replace(mask=None)), texts.mask  # pyright: ignore[reportAttributeAccessIssue]


def _whole(learned: tuple[ImageFeatures, Any], mask: Array) -> Features:
    images, texts = learned
    return images, texts.replace(mask=mask)
