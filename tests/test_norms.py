"""The norms of the blocks of a network, against the norms of its parts one by one."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from plan_jax.config import Config, ImageEncoderConfig, TextEncoderConfig
from plan_jax.counting.counts import count
from plan_jax.model import initial_variables
from plan_jax.sharding import DATA, make_mesh
from plan_jax.train.norms import block_norms

LAYERS = 3


def parameters(kind: str):
    """Shapes of the parameters of a small network."""
    image = ImageEncoderConfig(
        kind=kind, width=8, stages=(1, 2), local_stage=1, hidden=16, layers=2, heads=2, intermediate=32, grid=2
    )
    text = TextEncoderConfig(vocab_size=50, hidden=16, layers=LAYERS, heads=2, intermediate=32)
    config = dataclasses.replace(Config(), image_encoder=image, text_encoder=text)
    return jax.eval_shape(lambda: initial_variables(config, 0)["params"])


def drawn(shapes, seed: int = 0):
    """Random values, of another size in every leaf."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: (rng.uniform(0.1, 3) * rng.normal(size=leaf.shape)).astype(np.float32), shapes)


def length(*parts) -> float:
    return math.sqrt(sum(float(np.square(np.asarray(part, np.float64)).sum()) for part in parts))


def test_every_block_has_the_norm_of_what_lies_below_it():
    tree = {
        "image": {"stage_1": {"conv": np.array([3.0, 0.0]), "norm": {"scale": np.array([4.0])}}, "token": np.ones(9)},
        "text": {
            "layers": {"query": {"kernel": np.array([[1.0, 2.0], [5.0, 0.0]])}, "bias": np.array([[2.0], [12.0]])}
        },
        "head": {"kernel": np.array([[6.0]]), "bias": np.array([8.0])},
    }
    assert block_norms(tree, "g") == {
        "g/image/stage_1": 5.0,
        "g/image/token": 3.0,
        "g/text/layers/0": 3.0,
        "g/text/layers/1": 13.0,
        "g/head": 10.0,
    }


def test_the_layers_of_a_stack_are_blocks_each():
    params = drawn(parameters("resnet"))
    found = block_norms(params, "parameter_norm")
    for layer in range(LAYERS):
        own = [leaf[layer] for leaf in jax.tree.leaves(params["text_encoder"]["layers"])]
        assert found[f"parameter_norm/text_encoder/layers/{layer}"] == pytest.approx(length(*own), rel=1e-6)
    assert f"parameter_norm/text_encoder/layers/{LAYERS}" not in found


@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_the_blocks_of_a_network_are_its_parts_and_make_up_the_whole(kind):
    params = drawn(parameters(kind), seed=1)
    found = jax.jit(lambda tree: block_norms(tree, "gradient_norm"))(params)
    assert length(*found.values()) == pytest.approx(float(optax.tree.norm(params)), rel=1e-6)
    one = {"resnet": "stage2_block1", "vit": "patch_conv"}[kind]
    expected = length(*jax.tree.leaves(params["image_encoder"][one]))
    assert found[f"gradient_norm/image_encoder/{one}"] == pytest.approx(expected, rel=1e-6)
    expected = length(params["word_projection"]["kernel"])
    assert found["gradient_norm/word_projection"] == pytest.approx(expected, rel=1e-6)
    assert all(value.shape == () for value in found.values())


def test_the_blocks_of_the_papers_network_are_a_few_dozen_and_every_parameter_is_read_once():
    params = jax.eval_shape(lambda: initial_variables(Config(), 0)["params"])
    lowered = jax.jit(lambda tree: block_norms(tree, "g")).lower(params)
    assert 30 < len(lowered.out_info) < 60
    assert {"g/image_encoder/stage3_block5", "g/text_encoder/layers/11", "g/word_score"} < set(lowered.out_info)
    size = sum(4 * math.prod(leaf.shape) for leaf in jax.tree.leaves(params))
    assert size < lowered.compile().cost_analysis()["bytes accessed"] < 1.01 * size


def test_the_norm_of_half_precision_is_summed_in_full():
    tree = {"a": {"kernel": jnp.full((3000,), 2.0, jnp.bfloat16)}}
    assert float(block_norms(tree, "g")["g/a"]) == pytest.approx(math.sqrt(12000), rel=1e-6)


def test_parameters_in_parts_have_the_norms_of_the_whole_and_are_not_gathered():
    mesh, params = make_mesh(jax.devices()[:4]), drawn(parameters("resnet"), seed=2)

    def part(leaf):  # along the last axis that four devices can share
        axes = [DATA if size % 4 == 0 else None for size in leaf.shape]
        last = max((i for i, axis in enumerate(axes) if axis), default=None)
        spec = PartitionSpec(*(axis if i == last else None for i, axis in enumerate(axes)))
        return jax.device_put(leaf, NamedSharding(mesh, spec))

    spread = jax.tree.map(part, params)
    assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(spread))
    norms = jax.jit(lambda tree: block_norms(tree, "g"))
    with jax.set_mesh(mesh):
        found, moved = norms(spread), count(norms.lower(spread).compile().as_text()).collective_bytes
    expected = block_norms(params, "g")
    assert found == {name: pytest.approx(float(value), rel=1e-6) for name, value in expected.items()}
    assert {kind for kind, size in moved.items() if size} == {"all-reduce"}
    assert moved["all-reduce"] < 4 * 200  # one number for each leaf, or layer of it
