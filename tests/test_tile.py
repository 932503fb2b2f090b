"""The hand-written derivative in both of its forms and precisions, and the count that chooses between the forms."""

import dataclasses
import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_alignment import CASES, MASK, cotangent_of

from plan_jax.alignment import cost, reference, scan
from plan_jax.config import AlignmentConfig

# Few operations in Gram form and in feature form, whatever the rounds: many patches for the size of a feature, and few.
SHAPES = {"gram": {"patches": 4, "dim": 9}, "feature": {"patches": 16, "dim": 3}}
each_form = pytest.mark.parametrize("form", SHAPES)


@functools.partial(jax.jit, static_argnames="config", compiler_options=oracle.QUICK)
def scores_and_gradients(images, texts, cotangent, *, config):
    """Of the implementation, and of the reference."""

    def of(all_pairs):
        def score(patch, word, word_logit):
            return all_pairs(config, patch, word, word_logit, texts.mask)

        z, pull = jax.vjp(score, images.patch, texts.word, texts.word_logit)
        return z, pull(cotangent)

    return of(scan.all_pairs), of(reference.all_pairs)


def found_and_expected(arrays, config):
    cotangent = jnp.asarray(cotangent_of(arrays), jnp.float32)
    return scores_and_gradients(*arrays.features(), cotangent, config=config)


def assert_near(found, expected, tolerance):
    """Each array differs from the expected one by less than `tolerance` of the latter's largest value."""
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=tolerance * max(np.abs(other).max(), 1e-3))


@each_form
@pytest.mark.parametrize("config", CASES[::2])
def test_both_forms_have_the_values_and_gradients_of_the_reference(config, form):
    arrays = oracle.random_arrays(0, 2, MASK, **SHAPES[form])
    needs_regions = config.rounds or config.region_norm  # without, there is nothing to choose
    assert cost.gram_is_cheaper(MASK.size, *SHAPES[form].values(), config=config) is (
        form == "gram" or not needs_regions
    )
    found, expected = found_and_expected(arrays, config)
    assert_near(found, expected, 1e-5)


@pytest.mark.parametrize(("rounds", "importance"), [(0, 0.0), (1, 1.0), (3, 0.0), (3, 1.0)])
@each_form
def test_products_in_bfloat16_change_values_and_gradients_by_a_hundredth(form, importance, rounds):
    exact = AlignmentConfig(rounds=rounds, importance=importance)
    narrow = dataclasses.replace(exact, dtype="bfloat16")
    patches, dim = {"gram": (64, 256), "feature": (272, 128)}[form]  # errors of few dimensions do not average out
    assert cost.gram_is_cheaper(96, patches, dim, config=narrow) is (form == "gram")
    arrays = oracle.random_arrays(1, 6, np.ones((6, 16), bool), patches=patches, dim=dim)
    cotangent = jnp.asarray(cotangent_of(arrays), jnp.float32)
    (z, found), (z_exact, expected) = (
        scores_and_gradients(*arrays.features(), cotangent, config=config)[0] for config in (narrow, exact)
    )
    assert z.dtype == jnp.float32
    np.testing.assert_allclose(z, z_exact, atol=1e-2)
    # What is not the rounding of the inputs themselves, which alone can take more than a hundredth:
    rounded = (np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64) for x in (arrays.patch, arrays.word))
    of_rounded = arrays._replace(**dict(zip(("patch", "word"), rounded, strict=True))).features()
    _, expected_of_rounded = scores_and_gradients(*of_rounded, cotangent, config=exact)[0]
    for one, other in zip(found, expected_of_rounded, strict=True):
        assert np.linalg.norm(one - other) < 1e-2 * np.linalg.norm(other)
    tolerance = 2e-2 if importance and rounds == 3 else 1e-2  # each round's patch importance is rounded anew
    for one, other in zip(found, expected, strict=True):
        difference, length = np.linalg.norm(one - other), np.linalg.norm(other)
        assert difference < tolerance * length
        assert difference > 1e-5 * length  # it was another precision


@st.composite
def problems(draw):
    mask = draw(st.lists(st.lists(st.booleans(), min_size=4, max_size=4), min_size=1, max_size=4))
    shape = {"patches": draw(st.integers(1, 9)), "dim": draw(st.integers(1, 9))}
    config = AlignmentConfig(
        rounds=draw(st.integers(0, 4)),
        history=draw(st.sampled_from([0.0, 0.3, 1.0])),
        evidence=draw(st.sampled_from([0.0, 0.7])),
        word_importance=draw(st.sampled_from(["text", "pair", "uniform"])),
        importance=draw(st.sampled_from([0.0, 0.5])),
        word_keep=draw(st.sampled_from([0.5, 1.0])),
        aggregation=draw(st.sampled_from(["mean", "logsumexp"])),
        region_norm=draw(st.booleans()),
    )
    return oracle.random_arrays(draw(st.integers(0, 99)), draw(st.integers(1, 3)), mask, **shape), config


@settings(max_examples=8)  # each compiles
@given(problems())
def test_any_shape_and_setting_has_the_gradients_of_the_reference(problem):
    found, expected = found_and_expected(*problem)
    assert_near(found, expected, 1e-4)


def products_in(text: str) -> int:
    """Operations of the products of two matrices in a compiled program without loops that run twice."""
    shapes = {
        name: [int(d) for d in shape.split(",") if d] for name, shape in re.findall(r"%([\w.-]+) = \w+\[(.*?)\]", text)
    }
    found = re.findall(r"= \w+\[(\d+),(\d+)\]\S* dot\(%([\w.-]+), .*?lhs_contracting_dims=\{(\d)\}", text)
    return sum(2 * int(rows) * int(columns) * shapes[lhs][int(axis)] for rows, columns, lhs, axis in found)


@pytest.mark.parametrize(("rounds", "region_norm"), [(0, True), (0, False), (1, False), (3, True)])
@each_form
def test_the_products_counted_are_those_that_are_computed(form, region_norm, rounds):
    """In the compiled gradient of two images and one chunk of words: the loop over images holds the work of one."""
    config = AlignmentConfig(rounds=rounds, region_norm=region_norm)
    words, patches, dim = 128, *{"gram": (64, 128), "feature": (128, 32)}[form]
    arrays = oracle.random_arrays(0, 2, np.ones((1, words), bool), patches=patches, dim=dim)
    images, texts = arrays.features()

    def products(*features):
        z, pull = jax.vjp(score, *features)
        return z, pull(jnp.ones_like(z))

    def score(patch, word):
        return scan.all_pairs(config, patch, word, texts.word_logit, texts.mask)

    counted = cost.operations(1, words, patches, dim, config=config)
    assert counted == products_in(jax.jit(products).lower(images.patch, texts.word).compile().as_text())
