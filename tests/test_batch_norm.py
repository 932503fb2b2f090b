"""Whose statistics a ResNet is normalised by on several devices: those of the whole batch, or of each device's part."""

import dataclasses
from functools import partial

import jax
import numpy as np
import oracle
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from plan_jax.config import ImageEncoderConfig
from plan_jax.counting.counts import count
from plan_jax.encoders.resnet import ResNet
from plan_jax.errors import InputError
from plan_jax.sharding import make_mesh

WHOLE = ImageEncoderConfig(stem="patchify", block="basic", stages=(1, 1), width=3, dtype="float64")
LOCAL = dataclasses.replace(WHOLE, batch_norm="local")
IMAGES = np.random.default_rng(0).normal(size=(16, 8, 8, 1)) * np.arange(1, 17)[:, None, None, None]


@pytest.fixture(autouse=True)
def float64():
    """So that the sums of several orders may be compared closely."""
    with jax.enable_x64(True):
        yield


def variables():
    """Parameters and statistics in which no scale is 1 and no bias 0, so that an omission shows."""
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(partial(ResNet(WHOLE).init, train=False), jax.random.key(0), IMAGES)
    return jax.tree.map(lambda leaf: rng.uniform(0.5, 1.5, leaf.shape), shapes)


@partial(jax.jit, static_argnums=0, compiler_options=oracle.QUICK)
def outcome(config, variables, image):
    """(maps, running statistics after, gradient of a scalar of the maps)."""

    def scalar(params):
        both = {**variables, "params": params}
        maps, changed = ResNet(config).apply(both, image, train=True, mutable=["batch_stats"])
        return sum((m**3).sum() for m in maps), (maps, changed["batch_stats"])

    gradient, (maps, stats) = jax.grad(scalar, has_aux=True)(variables["params"])
    return maps, stats, gradient


@partial(jax.jit, static_argnums=0)
def maps_of(config, variables, image):
    return ResNet(config).apply(variables, image, train=True, mutable=["batch_stats"])[0]


def on_devices(devices, function, config, images=IMAGES):
    mesh = make_mesh(jax.devices()[:devices])
    with jax.set_mesh(mesh):
        return function(config, variables(), jax.device_put(images, NamedSharding(mesh, PartitionSpec("data"))))


def assert_same(found, expected):
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-9, atol=1e-9), found, expected)


@pytest.mark.parametrize("devices", [2, 8])
def test_local_statistics_are_those_of_each_device_s_part_alone(devices):
    parts = [outcome(WHOLE, variables(), part) for part in np.split(IMAGES, devices)]
    maps, stats, gradients = zip(*parts, strict=True)
    found = on_devices(devices, outcome, LOCAL)
    assert_same(found[0], jax.tree.map(lambda *x: np.concatenate(x), *maps))
    assert_same(found[1], jax.tree.map(lambda *x: np.mean(x, axis=0), *stats))
    assert_same(found[2], jax.tree.map(lambda *x: np.sum(x, axis=0), *gradients))
    assert np.abs(found[0][-1] - outcome(WHOLE, variables(), IMAGES)[0][-1]).max() > 0.1  # parts differ


@pytest.mark.parametrize("devices", [2, 8])
def test_otherwise_statistics_are_those_of_the_whole_batch_on_any_number_of_devices(devices):
    assert_same(on_devices(devices, outcome, WHOLE), outcome(WHOLE, variables(), IMAGES))


def test_on_one_device_local_statistics_are_those_of_the_batch_bit_for_bit():
    expected = outcome(WHOLE, variables(), IMAGES)
    for found in (outcome(LOCAL, variables(), IMAGES), on_devices(1, outcome, LOCAL)):
        jax.tree.map(np.testing.assert_array_equal, found, expected)


def test_running_statistics_are_used_and_kept_outside_training():
    @partial(jax.jit, static_argnums=0)
    def evaluated(config, variables, image):
        return ResNet(config).apply(variables, image, train=False)

    assert_same(on_devices(8, evaluated, LOCAL), evaluated(WHOLE, variables(), IMAGES))


def collectives(config, function):
    """Bytes of each kind that a device sends."""
    mesh = make_mesh()
    image = jax.ShapeDtypeStruct(IMAGES.shape, "f8", sharding=NamedSharding(mesh, PartitionSpec("data")))
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, "f8"), variables())
    with jax.set_mesh(mesh):
        moved = count(function.lower(config, shapes, image).compile().as_text()).collective_bytes
    return {kind: size for kind, size in moved.items() if size}


def test_local_statistics_need_no_collective():
    assert collectives(LOCAL, maps_of) == {}
    assert collectives(WHOLE, maps_of).keys() == {"all-reduce"}


def test_only_running_statistics_are_averaged_over_the_devices():
    @partial(jax.jit, static_argnums=0)
    def statistics(config, variables, image):
        return ResNet(config).apply(variables, image, train=True, mutable=["batch_stats"])

    running = sum(x.size for x in jax.tree.leaves(variables()["batch_stats"]))
    assert collectives(LOCAL, statistics) == {"all-reduce": 8 * running}


def test_a_batch_that_does_not_divide_among_the_devices_is_refused():
    with jax.set_mesh(make_mesh()), pytest.raises(InputError, match="multiple of the 8 devices of the mesh, got 12"):
        maps_of(LOCAL, variables(), IMAGES[:12])
