"""Encoders filled by the names of torchvision, transformers and timm compute what those libraries computed.

The expected values were written by tests/golden/make.py, which runs the libraries in float64.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from golden import cases

from plan_jax.config import ImageEncoderConfig, TextEncoderConfig
from plan_jax.encoders.bert import Bert
from plan_jax.encoders.resnet import ResNet
from plan_jax.encoders.vit import ViT
from plan_jax.weights.bert_names import bert_links
from plan_jax.weights.links import give, replaced, take
from plan_jax.weights.resnet_names import resnet_links
from plan_jax.weights.vit_names import vit_links

RESNETS = {
    "resnet18": ImageEncoderConfig(block="basic", stages=(2, 2, 2, 2), channels=3),
    "resnet50": ImageEncoderConfig(channels=3),
    "resnet101": ImageEncoderConfig(stages=(3, 4, 23, 3), channels=3),
}
# As users compile: convolutions in float64 are slow to run otherwise.
FAST = {"xla_backend_optimization_level": 3, "xla_cpu_use_fusion_emitters": True}


def filled(links, shapes):
    """Variables in which every tensor of theirs is drawn from its name."""
    theirs = {name: cases.drawn(name, np.shape(value)) for name, value in give(links, zeros(shapes)).items()}
    taken = take(theirs, links, shapes, where="golden")
    assert taken.values.keys() == {
        tuple(k.key for k in keys) for keys, _ in jax.tree_util.tree_leaves_with_path(shapes)
    }
    return jax.tree.map(np.asarray, replaced(zeros(shapes), taken.values))


def zeros(shapes):
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


def assert_gradients(links, gradient, golden, tolerance):
    """Every tensor of theirs that has a stored gradient."""
    ours = {name: value for name, value in give(links, gradient).items() if f"gradient/{name}" in golden}
    assert len(ours) == sum(name.startswith("gradient/") for name in golden)
    errors = {name: cases.error(value, golden[f"gradient/{name}"]) for name, value in ours.items()}
    assert max(errors.values()) < tolerance, max(errors, key=errors.get)


@pytest.mark.parametrize("name", cases.RESNETS)
def test_resnet_equals_torchvision_at_every_stage(name):
    size, count, _ = cases.RESNETS[name]
    config, image, golden = RESNETS[name.split("-")[0]], cases.image(size, count), cases.load(name)
    train, links = name.endswith("train"), resnet_links(config)
    shapes = jax.eval_shape(partial(ResNet(config).init, train=False), jax.random.key(0), image)
    variables = filled(links, shapes)

    @jax.jit
    def apply(variables, image):
        return ResNet(config).apply(variables, image, train=train, mutable=["batch_stats"])

    maps, changed = apply(variables, image)
    tolerance = 3e-4 if train else 1e-5  # statistics of a batch of two amplify rounding, in torch's float32 as well
    assert max(cases.error(m, golden[f"stage{i}"]) for i, m in enumerate(maps, start=1)) < tolerance
    if train:
        after = give(links, {**variables, **changed})
        assert max(cases.error(after[key[6:]], golden[key]) for key in golden if key.startswith("after/")) < 1e-5


@pytest.mark.parametrize("name", [name for name, (*_, gradient) in cases.RESNETS.items() if gradient])
def test_gradients_of_resnet_equal_those_of_torchvision(name):
    """In float64: in float32 rounding opens and shuts a few relus, which alone moves gradients by about 1e-2."""
    size, count, _ = cases.RESNETS[name]
    single, golden = RESNETS[name.split("-")[0]], cases.load(name)
    config, links, train = dataclasses.replace(single, dtype="float64"), resnet_links(single), name.endswith("train")
    shapes = jax.eval_shape(partial(ResNet(single).init, train=False), jax.random.key(0), cases.image(32, 1))
    variables = filled(links, shapes)

    def scalar(params, variables, image):
        maps, _ = ResNet(config).apply({**variables, "params": params}, image, train=train, mutable=["batch_stats"])
        return sum((m * cases.direction(m.shape)).sum() for m in maps)

    with jax.enable_x64(True):
        variables = jax.tree.map(np.float64, variables)
        run = jax.jit(jax.grad(scalar), compiler_options=FAST)
        gradient = run(variables["params"], variables, np.float64(cases.image(size, count)))
        assert_gradients(links, {**variables, "params": gradient}, golden, 1e-9)


@pytest.mark.parametrize("name", cases.BERTS)
def test_bert_equals_transformers_at_every_hidden_state(name):
    config, golden = TextEncoderConfig(**cases.BERTS[name], dropout=0.0), cases.load(name)
    ids, mask = cases.reports(config.vocab_size)
    shapes = jax.eval_shape(partial(Bert(config).init, train=False), jax.random.key(0), ids, mask)
    variables = filled(bert_links(config), shapes)
    for cut in range(1, config.layers + 1) if name == "bert-small" else (12,):
        got = jax.jit(partial(Bert(dataclasses.replace(config, layers=cut)).apply, train=False))(
            {"params": first_layers(variables["params"], cut)}, ids, mask
        )
        assert cases.error(got[mask], golden[f"state{cut}"]) < 1e-5


def first_layers(params, count):
    """A network cut after a layer gives that layer's hidden state."""
    return {**params, "layers": jax.tree.map(lambda stacked: stacked[:count], params["layers"])}


def test_the_sum_of_the_last_four_hidden_states_is_theirs_summed():
    config = TextEncoderConfig(**cases.BERTS["bert-small"], dropout=0.0, last_layers=4)
    ids, mask = cases.reports(config.vocab_size)
    shapes = jax.eval_shape(partial(Bert(config).init, train=False), jax.random.key(0), ids, mask)
    got = jax.jit(partial(Bert(config).apply, train=False))(filled(bert_links(config), shapes), ids, mask)
    golden = cases.load("bert-small")
    want = sum(golden[f"state{i}"][1:] for i in range(2, 6))
    np.testing.assert_allclose(cases.summary(got[mask])[1:], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_gradients_of_bert_equal_those_of_transformers():
    config = TextEncoderConfig(**cases.BERTS["bert-small"], dropout=0.0)
    ids, mask = cases.reports(config.vocab_size)
    shapes = jax.eval_shape(partial(Bert(config).init, train=False), jax.random.key(0), ids, mask)

    @jax.grad
    def gradient(variables):
        states = Bert(config).apply(variables, ids, mask, train=False)
        return (states * mask[..., None] * cases.direction(states.shape).astype("f4")).sum()

    found = jax.jit(gradient)(filled(bert_links(config), shapes))
    golden = {
        k: v for k, v in cases.load("bert-small").items() if not k.endswith("self.key.bias")
    }  # 0 but for rounding
    links = [link for link in bert_links(config) if not link.name.endswith("self.key.bias")]
    assert_gradients(links, found, golden, 1e-4)


def vit(name, **changes):
    """(config, image, variables, golden)."""
    side, sizes = cases.VITS[name]
    config = ImageEncoderConfig(kind="vit", channels=3, **({"patch": 16} | sizes | changes))
    image = cases.image(side, 1)
    shapes = jax.eval_shape(partial(ViT(config).init, train=False), jax.random.key(0), image)
    return config, image, filled(vit_links(config), shapes), cases.load(name)


@pytest.mark.parametrize("name", cases.VITS)
def test_vit_equals_timm_after_a_middle_and_the_last_block(name):
    depth = cases.VITS[name][1].get("layers", 12)
    middle = depth // 2
    config, image, variables, golden = vit(name, local_stage=middle)
    local, last = jax.jit(partial(ViT(config).apply, train=False))(variables, image)
    assert cases.error(local.reshape(1, -1, config.hidden), golden[f"block{middle}"]) < 1e-5
    assert cases.error(last.reshape(1, -1, config.hidden), golden[f"block{depth}"]) < 1e-5


def test_gradients_of_vit_equal_those_of_timm():
    config, image, variables, golden = vit("vit-small-32", local_stage=3)

    @jax.grad
    def gradient(variables):
        tokens = ViT(config).apply(variables, image, train=False)[-1].reshape(1, -1, config.hidden)
        return (tokens * cases.direction(tokens.shape).astype("f4")).sum()

    assert_gradients(vit_links(config), jax.jit(gradient)(variables), golden, 1e-4)
