import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax.batches import in_batches, over_pairs
from plan_jax.sharding import make_mesh
from plan_jax.types import ImageFeatures


@pytest.mark.parametrize("mesh", [None, 8], ids=["one device", "eight"])
@pytest.mark.parametrize("count", [1, 3, 16, 17, 40])
def test_rows_come_out_as_they_went_in(count, mesh):
    mesh = mesh and make_mesh(jax.devices()[:mesh])
    rows = {"x": np.arange(count, dtype=np.float32), "y": np.arange(2 * count, dtype=np.float32).reshape(count, 2)}
    twice = jax.jit(lambda tree: {"sum": tree["x"] + tree["y"].sum(1), "y": 2 * tree["y"]})
    found = in_batches(twice, (rows,), size=16, mesh=mesh)
    assert isinstance(found["y"], np.ndarray)
    np.testing.assert_array_equal(found["y"], 2 * rows["y"])
    np.testing.assert_array_equal(found["sum"], rows["x"] + rows["y"].sum(1))


@pytest.mark.parametrize("mesh", [None, 8], ids=["one device", "eight"])
@pytest.mark.parametrize("counts", [(1, 2), (17, 2), (1, 33), (17, 33)])
def test_all_pairs_of_two_lists_are_computed(counts, mesh):
    mesh = mesh and make_mesh(jax.devices()[:mesh])
    images, texts = (np.random.default_rng(n).normal(size=(n, 3)).astype(np.float32) for n in counts)
    product = jax.jit(lambda image, text: image @ text.T)
    np.testing.assert_allclose(over_pairs(product, images, texts, size=16, mesh=mesh), images @ texts.T, atol=1e-5)


def test_every_device_has_its_share_of_a_piece():
    seen = []

    def function(rows):
        seen.append(rows.sharding)
        return rows

    in_batches(function, (np.zeros((20, 2)),), size=16, mesh=make_mesh())
    assert len(seen) == 2
    assert all(len(sharding.device_set) == len(jax.devices()) for sharding in seen)
    assert all(sharding.shard_shape((16, 2)) == (16 // len(jax.devices()), 2) for sharding in seen)


def test_what_is_no_array_of_a_tree_stays():
    features = ImageFeatures(pooled=np.ones((5, 2)), patch=np.ones((5, 6, 2)), grid=(2, 3))
    found = in_batches(lambda part: dataclasses.replace(part, pooled=part.pooled + 1), (features,), size=4)
    assert found.grid == (2, 3)
    np.testing.assert_array_equal(found.pooled, features.pooled + 1)


def test_other_numbers_of_rows_are_compiled_anew_a_few_times_only(compilations):
    product = jax.jit(lambda image, text: jnp.einsum("id,rd->ir", image, text))

    def score(images, texts):
        over_pairs(product, np.zeros((images, 7)), np.zeros((texts, 7)), size=16)

    score(40, 50)
    assert len(compilations) == 1
    for images, texts in ((41, 50), (1000, 17), (16, 16), (33, 900)):
        score(images, texts)
    assert len(compilations) == 1  # whole pieces, the last one filled up
    for images, texts in itertools.product(range(1, 17), repeat=2):
        score(images, texts)
    assert len(compilations) <= 3 * 3  # 1, 4 or 16 of either
