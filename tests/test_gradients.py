"""Micro-batches against one large batch, and against plain differentiation through all parts at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from conftest import CONFIG, TINY

from plan_jax.config_file import read_config
from plan_jax.losses import plan_loss
from plan_jax.model import PlanModel
from plan_jax.sharding import make_mesh, over_data
from plan_jax.train.gradients import gradients_of
from plan_jax.train.placement import placement
from plan_jax.train.state import create_state
from plan_jax.types import Batch, ImageFeatures, TextFeatures

ROWS = 16
run = jax.jit(gradients_of, static_argnames=("model", "config"), compiler_options=oracle.QUICK)
KEY = jax.random.key(7)


def config_of(*more: str):
    small = ("--config.text_encoder.dropout=0.0", f"--config.data.batch_size={ROWS}", "--config.data.crop=1.0")
    return read_config(CONFIG, (*TINY, *small, *(f"--config.{each}" for each in more)))


def with_parts(config, count: int):
    return dataclasses.replace(config, train=dataclasses.replace(config.train, micro_batches=count))


def batch_of(config) -> Batch:
    random, data = np.random.default_rng(3), config.data
    text = (ROWS, data.max_tokens)
    words = np.minimum(np.arange(data.max_tokens) // 2, 9)[None].repeat(ROWS, 0)
    words[3] = -1  # a report without a word
    return Batch(
        image=random.integers(0, 256, (ROWS, data.image_size, data.image_size, 1), np.uint8),
        token_ids=random.integers(0, 50, text).astype(np.int32),
        word_ids=words.astype(np.int32),
        token_mask=np.arange(data.max_tokens)[None] < random.integers(5, data.max_tokens, (ROWS, 1)),
        sentence_ids=np.zeros(text, np.int32),
        record=np.arange(ROWS, dtype=np.int32),
        words_cut=np.zeros(ROWS, np.int32),
    )


def found(config, batch, devices: int = 1, fsdp: int = 1):
    mesh = make_mesh(jax.devices()[:devices], fsdp=fsdp)
    state = create_state(config)
    state, batch = jax.device_put(state, placement(state, mesh)), jax.device_put(batch, over_data(mesh))
    with jax.set_mesh(mesh):
        return jax.tree.map(
            np.asarray, run(state.params, state.batch_stats, batch, KEY, model=PlanModel(config), config=config)
        )


def assert_close(one, other, tolerance: float) -> None:
    """Within so much of the largest number of each leaf, or of a leaf of 1e-3."""
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        scale = max(float(np.abs(b).max(initial=0)), 1e-3)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * scale)


FROZEN_NORM = ("image_encoder.batch_norm=frozen",)
VIT = ("image_encoder.kind=vit", "image_encoder.patch=8", "image_encoder.hidden=16", "image_encoder.layers=2")
VIT += ("image_encoder.heads=2", "image_encoder.intermediate=16", "image_encoder.grid=4", "image_encoder.local_stage=1")


@pytest.mark.parametrize("kind", [FROZEN_NORM, VIT], ids=["ResNet, norms frozen", "ViT"])
def test_four_micro_batches_have_the_loss_and_the_gradients_of_one_large_batch(kind):
    config = config_of(*kind)
    batch = batch_of(config)
    one, four = found(config, batch), found(with_parts(config, 4), batch)
    np.testing.assert_allclose(four.metrics["loss"], one.metrics["loss"], rtol=1e-5)
    assert_close(four.gradients, one.gradients, 1e-4)
    assert max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(one.gradients)) > 1e-2


def test_with_norms_over_the_batch_the_gradients_are_those_of_norms_over_each_micro_batch():
    """Plain differentiation through the four parts and the loss of all their features."""
    config = config_of()
    batch, state, model = batch_of(config), create_state(config), PlanModel(config)

    def loss_of(params):
        parts = []
        for m in range(4):
            part = jax.tree.map(lambda rows, m=m: rows[m::4], batch)
            variables = {"params": params, "batch_stats": state.batch_stats}
            parts.append(model.apply(variables, part, train=True, mutable=["batch_stats"]))

        def merged(*rows):
            return jnp.stack(rows, axis=1).reshape(ROWS, *rows[0].shape[1:])

        images, texts = jax.tree.map(merged, *(features for features, _ in parts))
        stats = jax.tree.map(lambda *each: sum(each) / 4, *(updated["batch_stats"] for _, updated in parts))
        return plan_loss(images, texts, config=config)[0], stats

    (loss, stats), gradients = jax.jit(jax.value_and_grad(loss_of, has_aux=True), compiler_options=oracle.QUICK)(
        state.params
    )
    four = found(with_parts(config, 4), batch)
    np.testing.assert_allclose(four.metrics["loss"], loss, rtol=1e-5)
    assert_close(four.gradients, gradients, 1e-4)
    assert_close(four.batch_stats, stats, 1e-5)


@pytest.mark.parametrize(("devices", "fsdp", "parts"), [(4, 1, 1), (4, 4, 1), (8, 2, 1), (2, 2, 4), (4, 2, 2)])
def test_any_mesh_has_the_loss_and_the_gradients_of_one_device(devices, fsdp, parts):
    config = with_parts(config_of(), parts)
    batch = batch_of(config)
    one, many = found(config, batch), found(config, batch, devices, fsdp)
    np.testing.assert_allclose(many.metrics["loss"], one.metrics["loss"], rtol=1e-5)
    assert_close(many.gradients, one.gradients, 1e-4)
    assert_close(many.batch_stats, one.batch_stats, 1e-5)


def test_the_features_are_those_of_the_rows_of_the_batch_in_their_order():
    config = config_of(*FROZEN_NORM)
    batch = batch_of(config)
    one, four = found(config, batch).features, found(with_parts(config, 4), batch).features
    assert isinstance(one[0], ImageFeatures)
    assert isinstance(one[1], TextFeatures)
    assert_close(four, one, 1e-5)


def test_dropout_is_the_same_in_both_passes_over_a_micro_batch():
    """Else the gradient would not be that of the loss: it is compared with a difference of losses."""
    config = with_parts(config_of("text_encoder.dropout=0.5", *FROZEN_NORM), 4)
    batch, state, model = batch_of(config), create_state(config), PlanModel(config)

    def at(params):
        return run(params, state.batch_stats, batch, KEY, model=model, config=config)

    gradients = at(state.params).gradients
    direction = jax.tree.map(
        lambda leaf: leaf / jnp.sqrt(sum(jnp.vdot(x, x) for x in jax.tree.leaves(gradients))), gradients
    )
    ahead, behind = (
        at(jax.tree.map(lambda leaf, off, size=size: leaf + size * off, state.params, direction)).metrics["loss"]
        for size in (1e-3, -1e-3)
    )
    slope = sum(jnp.vdot(a, b) for a, b in zip(jax.tree.leaves(gradients), jax.tree.leaves(direction), strict=True))
    np.testing.assert_allclose((ahead - behind) / 2e-3, slope, rtol=0.02)
