"""Where parameters and moments lie: by the table, and half as many bytes on twice as many devices."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIG, TINY
from jax.sharding import PartitionSpec as P

from plan_jax.config_file import read_config
from plan_jax.errors import InputError
from plan_jax.sharding import make_mesh, rows_by_process
from plan_jax.train.placement import gathered, kept_in_place, placement
from plan_jax.train.state import create_state

SHAPES = {
    "params/text_encoder/layers/attention/query/kernel": ((3, 8, 8), P(None, None, "fsdp")),
    "params/text_encoder/layers/attention/query/bias": ((3, 8), P()),
    "params/text_encoder/word/embedding": ((29, 8), P(None, "fsdp")),
    "params/image_encoder/stem_conv/kernel": ((7, 7, 3, 8), P(None, None, None, "fsdp")),
    "params/image_encoder/stage1_block0/downsample_conv/kernel": ((1, 1, 8, 8), P(None, None, None, "fsdp")),
    "params/image_encoder/stage1_block0/norm1/scale": ((8,), P()),
    "params/word_projection/kernel": ((6, 8), P(None, "fsdp")),
    "params/word_score/kernel": ((8, 1), P()),  # which nothing divides
    "opt_state/1/0/mu/text_encoder/layers/attention/query/kernel": ((3, 8, 8), P(None, None, "fsdp")),
    "step": ((), P()),
}


def tree_of(paths):
    tree: dict = {}
    for path, (shape, _) in paths.items():
        *names, last = path.split("/")
        inner = tree
        for name in names:
            inner = inner.setdefault(name, {})
        inner[last] = jax.ShapeDtypeStruct(shape, jnp.float32)
    return tree


def test_every_kind_of_leaf_lies_as_the_table_says():
    places = placement(tree_of(SHAPES), make_mesh(jax.devices()[:4], fsdp=2))
    found = {
        jax.tree_util.keystr(keys, simple=True, separator="/"): of.spec
        for keys, of in jax.tree_util.tree_leaves_with_path(places)
    }
    assert found == {path: spec for path, (_, spec) in SHAPES.items()}


def test_without_fsdp_everything_is_on_every_device():
    places = placement(tree_of(SHAPES), make_mesh(jax.devices()[:4]))
    assert {of.spec for of in jax.tree.leaves(places)} == {P()}


def bytes_on_a_device(fsdp: int) -> int:
    config = read_config(CONFIG, TINY)
    shapes = jax.eval_shape(lambda: create_state(config))
    places = placement(shapes, make_mesh(jax.devices()[:fsdp], fsdp=fsdp))
    each = jax.tree.map(lambda leaf, of: math.prod(of.shard_shape(leaf.shape)) * leaf.dtype.itemsize, shapes, places)
    return sum(jax.tree.leaves(each))


def test_twice_as_many_devices_hold_about_half_as_much_each():
    one, two, four = map(bytes_on_a_device, (1, 2, 4))
    assert two < 0.55 * one
    assert four < 0.55 * two


def test_gathered_and_kept_in_place_change_no_number_and_pass_the_gradient_on():
    mesh, x = make_mesh(jax.devices()[:4], fsdp=4), jnp.arange(32.0).reshape(4, 8)
    tree = jax.device_put({"kernel": x}, placement({"kernel": x}, mesh))

    @jax.jit
    def loss(tree):
        return (gathered(tree)["kernel"] ** 2).sum()

    with jax.set_mesh(mesh):
        gradient = jax.jit(lambda tree: kept_in_place(jax.grad(loss)(tree)))(tree)
    np.testing.assert_array_equal(gradient["kernel"], 2 * x)
    assert gradient["kernel"].sharding.spec == P(None, "fsdp")


def test_a_mesh_whose_devices_cannot_share_the_parameters_evenly_is_refused():
    with pytest.raises(InputError, match=r"config\.mesh\.fsdp must divide the 4 devices, got 3"):
        make_mesh(jax.devices()[:4], fsdp=3)


def test_one_process_has_all_rows_in_order():
    assert rows_by_process(make_mesh(jax.devices()[:4], fsdp=2), 8) == [list(range(8))]
