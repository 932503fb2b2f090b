"""BERT against a second implementation in numpy float64, and the promises about padding, dropout and the scan."""

import dataclasses
from functools import partial
from math import erf

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from plan_jax.config import TextEncoderConfig
from plan_jax.encoders.bert import Bert
from plan_jax.errors import InputError

BERT_BASE = TextEncoderConfig()
TINY = TextEncoderConfig(vocab_size=50, hidden=24, layers=2, heads=3, intermediate=40, max_positions=16)


def random_params(config, seed=0):
    """Parameters in which no scale is 1 and no bias 0, and attention is far from uniform."""
    rng = np.random.default_rng(seed)
    ids = jax.ShapeDtypeStruct((1, 4), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 4), jnp.bool_)
    shapes = jax.eval_shape(partial(Bert(config).init, train=False), jax.random.key(0), ids, mask)

    def fill(path, leaf):
        if path[-1].key == "scale":
            return rng.uniform(0.5, 1.5, leaf.shape).astype("f4")
        return rng.normal(size=leaf.shape).astype("f4") * np.float32(0.3)

    return jax.tree_util.tree_map_with_path(fill, shapes)


def reports(config, batch=3, tokens=9, seed=1):
    """Token ids and masks of reports of different length; the padding holds arbitrary ids."""
    ids = np.random.default_rng(seed).integers(0, config.vocab_size, (batch, tokens)).astype("i4")
    lengths = tokens - 2 * np.arange(batch)
    return ids, np.arange(tokens)[None] < lengths[:, None]


@partial(jax.jit, static_argnums=(0, 4))
def apply(config, params, ids, mask, train=False, key=None):
    return Bert(config).apply(params, ids, mask, train=train, rngs=None if key is None else {"dropout": key})


# An oracle in numpy: one report at a time, real tokens only, one head at a time.


def np_norm(x, p):
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def np_dense(x, p):
    return x @ p["kernel"] + p["bias"]


def np_layer(x, p, heads):
    q, k, v = (np_dense(x, p["attention"][name]) for name in ("query", "key", "value"))
    size, mixed = x.shape[1] // heads, np.zeros_like(x)
    for start in range(0, x.shape[1], size):
        head = slice(start, start + size)
        scores = np.exp(q[:, head] @ k[:, head].T / np.sqrt(size))
        mixed[:, head] = scores / scores.sum(1, keepdims=True) @ v[:, head]
    x = np_norm(x + np_dense(mixed, p["attention"]["output"]), p["attention_norm"])
    y = np_dense(x, p["intermediate"])
    y = y * 0.5 * (1 + np.vectorize(erf)(y / np.sqrt(2)))
    return np_norm(x + np_dense(y, p["output"]), p["output_norm"])


def np_bert(config, params, ids):
    """The sum of the last hidden states [T E] of one report without padding."""
    p = jax.tree.map(np.float64, params["params"])
    tables = (p[name]["embedding"] for name in ("word", "position", "token_type"))
    x = sum(table[rows] for table, rows in zip(tables, (ids, np.arange(len(ids)), 0 * ids), strict=True))
    x, states = np_norm(x, p["embedding_norm"]), []
    for i in range(config.layers):
        x = np_layer(x, jax.tree.map(lambda leaf, i=i: leaf[i], p["layers"]), config.heads)
        states.append(x)
    return sum(states[-config.last_layers :])


@pytest.mark.parametrize(("layers", "last_layers"), [(2, 1), (2, 2), (5, 4)])
def test_features_equal_numpy(layers, last_layers):
    config = dataclasses.replace(TINY, layers=layers, last_layers=last_layers)
    params = random_params(config)
    ids, mask = reports(config)
    got = apply(config, params, ids, mask)
    assert got.shape == (3, 9, 24)
    for row in range(len(ids)):
        want = np_bert(config, params, ids[row, mask[row]])
        np.testing.assert_allclose(got[row, mask[row]], want, rtol=0, atol=1e-5 * np.abs(want).max())


def test_bert_base_has_the_parameters_of_the_reference():
    ids = jax.ShapeDtypeStruct((1, 128), jnp.int32)
    mask = jax.ShapeDtypeStruct((1, 128), jnp.bool_)
    out, params = jax.eval_shape(partial(Bert(BERT_BASE).init_with_output, train=False), jax.random.key(0), ids, mask)
    # bert-base-cased is published with 108,310,272, of which the pooler, not here, is 768 * 768 + 768.
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) == 108_310_272 - 590_592
    assert {leaf.dtype for leaf in jax.tree.leaves(params)} == {jnp.dtype("float32")}
    assert out.shape == (1, 128, 768)


def test_kernels_and_tables_start_with_a_spread_of_0_02_and_layers_differ():
    config = dataclasses.replace(TINY, hidden=96, intermediate=200)
    init = jax.jit(partial(Bert(config).init, train=False))
    params = init(jax.random.key(0), *reports(config))["params"]
    kernels = params["layers"]["intermediate"]["kernel"]
    for leaf in (kernels, params["layers"]["attention"]["query"]["kernel"], params["word"]["embedding"]):
        assert float(leaf.std()) == pytest.approx(0.02, rel=0.05)
    assert not np.array_equal(kernels[0], kernels[1])


@pytest.mark.parametrize("train", [False, True])
def test_padding_never_changes_a_real_token(train):
    config = dataclasses.replace(TINY, dropout=0.0)
    params = random_params(config)
    ids, mask = reports(config)
    short = apply(config, params, ids, mask, train)
    longer = np.pad(ids, ((0, 0), (0, 5)), constant_values=7), np.pad(mask, ((0, 0), (0, 5)))
    np.testing.assert_allclose(apply(config, params, *longer, train)[:, :9][mask], short[mask], rtol=1e-5, atol=1e-5)
    other = apply(config, params, np.where(mask, ids, 3), mask, train)
    np.testing.assert_array_equal(other[mask], short[mask])


def test_a_report_of_padding_only_is_finite_and_moves_no_other():
    params = random_params(TINY)
    ids, mask = reports(TINY)
    empty = mask.copy()
    empty[1] = False

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def total(params, mask):
        out = Bert(TINY).apply(params, ids, mask, train=False)
        return (out**2).sum(), out

    (_, out), gradient = total(params, empty)
    assert all(np.isfinite(leaf).all() for leaf in (out, *jax.tree.leaves(gradient)))
    (_, full), _ = total(params, mask)
    np.testing.assert_array_equal(out[::2], full[::2])


def test_bfloat16_is_computed_but_not_stored():
    params = random_params(TINY)
    ids, mask = reports(TINY)
    got = apply(dataclasses.replace(TINY, dtype="bfloat16"), params, ids, mask)
    want = apply(TINY, params, ids, mask)
    assert got.dtype == jnp.bfloat16
    assert np.linalg.norm(got.astype("f4") - want) < 0.03 * np.linalg.norm(want)


def equations(jaxpr):
    """Every equation of a jaxpr, those inside scans and calls included."""
    for equation in jaxpr.eqns:
        yield equation
        for leaf in jax.tree.leaves(tuple(equation.params.values())):
            inner = getattr(leaf, "jaxpr", leaf)
            if hasattr(inner, "eqns"):
                yield from equations(inner)


def program(config, train, transform=lambda f: f):
    ids, mask = reports(config)

    def features(params):
        return Bert(config).apply(params, ids, mask, train=train, rngs={"dropout": jax.random.key(0)}).sum(dtype="f4")

    return list(equations(jax.make_jaxpr(transform(features))(random_params(config)).jaxpr))


@pytest.mark.parametrize("train", [False, True])
def test_depth_is_one_scan_and_does_not_grow_the_program(train):
    deep = dataclasses.replace(TINY, layers=7)
    found = program(deep, train)
    assert [e.params["length"] for e in found if e.primitive.name == "scan"].count(7) == 1
    assert len(found) == len(program(TINY, train))
    assert len(program(deep, train, jax.grad)) == len(program(TINY, train, jax.grad))


@pytest.mark.parametrize("policy", ["products", "block"])
def test_layers_computed_again_change_neither_names_nor_values_nor_gradients(policy):
    config = dataclasses.replace(TINY, dropout=0.2)  # the second time the same values are dropped
    again = dataclasses.replace(config, remat=policy)
    params = random_params(config)
    assert jax.tree.structure(random_params(again)) == jax.tree.structure(params)
    ids, mask = reports(config)

    @partial(jax.jit, static_argnums=0, compiler_options=oracle.QUICK)
    @partial(jax.value_and_grad, argnums=1)
    def scalar(config, params):
        return (apply(config, params, ids, mask, True, jax.random.key(0)) ** 2).sum()

    want, got = (scalar(each, params) for each in (config, again))
    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4), got, want)
    names = [[e.primitive.name for e in program(c, True, jax.grad)] for c in (config, again)]
    assert ["remat2" in n or "checkpoint" in n for n in names] == [False, True]


def test_the_softmax_is_float32_in_bfloat16_too():
    found = program(dataclasses.replace(TINY, dtype="bfloat16"), False)
    exponentials = [e.outvars[0].aval for e in found if e.primitive.name == "exp"]
    assert [(e.dtype, e.shape) for e in exponentials] == [(jnp.dtype("float32"), (3, 3, 9, 9))]  # B heads T T


def test_dropout_acts_in_every_place_of_the_reference():
    places = [e.outvars[0].aval.shape for e in program(TINY, True) if e.primitive.name == "random_bits"]
    hidden, attention = (3, 9, 24), (3, 3, 9, 9)
    assert places == [hidden, attention, hidden, hidden]  # embeddings; in a layer: attention, its output, feed-forward
    assert not [e for e in program(TINY, False) if e.primitive.name == "random_bits"]


@pytest.mark.parametrize(("layers", "values"), [(1, 2), (2, 4)])
def test_dropout_differs_between_layers(layers, values):
    # Every layer adds dropout(1) to zeros: one mask makes two values in a token, two equal masks would make no more.
    config = dataclasses.replace(TINY, layers=layers, hidden=96, dropout=0.5)
    params = jax.tree.map(np.zeros_like, random_params(config))
    for norm in ("attention_norm", "output_norm"):
        params["params"]["layers"][norm]["scale"] += 1
    params["params"]["layers"]["output"]["bias"] += 1
    out = apply(config, params, *reports(config), True, jax.random.key(0))
    assert len(np.unique(np.round(out[0, 0], 3))) == values


def test_dropout_follows_its_key():
    params = random_params(TINY)
    ids, mask = reports(TINY)
    one, again, other = (apply(TINY, params, ids, mask, True, jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 0.1


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"max_positions": 8}, "max_positions = 8 tokens, got 9"),
        ({"heads": 5}, "multiple of text_encoder.heads, got 24 and 5"),
        ({"last_layers": 4}, "from 1 to text_encoder.layers = 2, got 4"),
        ({"last_layers": 0}, "from 1 to text_encoder.layers = 2, got 0"),
    ],
)
def test_a_config_that_cannot_work_says_what_to_change(change, words):
    config = dataclasses.replace(TINY, **change)
    with pytest.raises(InputError, match=words):
        Bert(config).init(jax.random.key(0), *reports(config), train=False)
