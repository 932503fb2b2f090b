"""Entropy of the words' importance and sharpness of the maps, against plain loops and scipy."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from scipy.stats import entropy
from test_alignment import ragged

from plan_jax.alignment.sharpness import sharpness
from plan_jax.config import AlignmentConfig
from plan_jax.counting.counts import count
from plan_jax.sharding import DATA, make_mesh

LENGTHS = [5, 1, 0, 7]
PATCHES, DIM = 6, 4


@functools.partial(jax.jit, static_argnames="config", compiler_options=oracle.QUICK)
def sharp(patch, word, word_logit, mask, config):
    return sharpness(patch, word, word_logit, mask, config=config)


def pairs(lengths=LENGTHS, seed: int = 0) -> oracle.Arrays:
    mask = ragged(lengths, len(lengths), 7)
    return oracle.random_arrays(seed, len(lengths), mask, patches=PATCHES, dim=DIM)


def of(arrays: oracle.Arrays, config: AlignmentConfig) -> dict[str, float]:
    inputs = (jnp.asarray(x, jnp.float32) for x in (arrays.patch, arrays.word, arrays.word_logit))
    return {name: float(x) for name, x in sharp(*inputs, jnp.asarray(arrays.mask), config).items()}


def expected_of(arrays: oracle.Arrays, config: AlignmentConfig) -> dict[str, float]:
    """The definition, pair by pair and word by word."""
    found = {}
    for k in range(config.rounds + 1):
        words, maps = [], []
        for patch, word, logit, mask in zip(arrays.patch, arrays.word, arrays.word_logit, arrays.mask, strict=True):
            real = np.flatnonzero(mask)
            regions = oracle.soft_regions(word, patch, logit, mask, AlignmentConfig(**vars(config) | {"rounds": k}))
            maps += [1 - entropy(regions.attention[row], base=len(patch)) for row in real]
            if len(real) > 1:
                words.append(entropy(regions.word_importance[real], base=len(real)))
        found |= {f"word_entropy/round_{k}": np.mean(words), f"map_sharpness/round_{k}": np.mean(maps)}
    return found


@pytest.mark.parametrize(
    "fields",
    [
        {"rounds": 3},
        {"rounds": 2, "word_importance": "pair", "importance": 0.7, "region_temperature": 0.5},
        {"rounds": 0, "word_importance": "pair"},
    ],
)
def test_every_round_has_the_mean_entropies_of_its_words_and_maps(fields):
    arrays, config = pairs(), AlignmentConfig(**fields)
    found, expected = of(arrays, config), expected_of(arrays, config)
    assert set(found) == set(expected)
    assert len(found) == 2 * (config.rounds + 1)
    assert found == {name: pytest.approx(value, abs=1e-5) for name, value in expected.items()}


def test_words_of_equal_importance_have_an_entropy_of_one_and_one_word_that_decides_of_zero():
    arrays = pairs()
    equal = of(arrays, AlignmentConfig(rounds=0, word_importance="uniform"))
    assert equal["word_entropy/round_0"] == pytest.approx(1.0, abs=1e-6)
    first = np.arange(7)[None, :] == arrays.mask.argmax(axis=1)[:, None]
    logit = np.where(first, 1e4, arrays.word_logit)
    assert of(arrays._replace(word_logit=logit), AlignmentConfig(rounds=0))["word_entropy/round_0"] == 0.0


def test_patches_all_alike_have_a_sharpness_of_zero_and_one_that_fits_far_better_of_one():
    word, alike = np.eye(DIM)[None, :3], np.broadcast_to(np.eye(DIM)[0], (1, PATCHES, DIM))
    arrays = oracle.Arrays(alike, word, np.zeros((1, 3)), np.ones((1, 3), bool), np.eye(1), np.eye(1))
    assert of(arrays, AlignmentConfig(rounds=1))["map_sharpness/round_1"] == pytest.approx(0.0, abs=1e-6)
    apart = arrays._replace(patch=np.eye(DIM)[None])
    found = of(apart, AlignmentConfig(rounds=0, region_temperature=1e-3))
    assert found["map_sharpness/round_0"] == pytest.approx(1.0, abs=1e-6)


def test_two_words_and_two_patches_worked_by_hand():
    """Importance 3/4 and 1/4; each word's attention is 4/5 and 1/5."""
    logit, temperature = np.log([[3.0, 1.0]]), 1 / math.log(4)
    arrays = oracle.Arrays(np.eye(2)[None], np.eye(2)[None], logit, np.ones((1, 2), bool), np.eye(1), np.eye(1))
    found = of(arrays, AlignmentConfig(rounds=0, region_temperature=temperature))
    assert found["word_entropy/round_0"] == pytest.approx(2 - 0.75 * math.log2(3), abs=1e-6)
    assert found["map_sharpness/round_0"] == pytest.approx(1 - (math.log2(5) - 1.6), abs=1e-6)


def test_reports_without_words_and_of_one_word_give_numbers():
    nothing, single = (of(pairs(lengths), AlignmentConfig(rounds=1)) for lengths in ([0, 0], [1, 0]))
    assert nothing == dict.fromkeys(nothing, 0.0)
    assert single["word_entropy/round_1"] == 0.0
    assert 0.0 < single["map_sharpness/round_1"] < 1.0


def test_an_image_of_one_patch_is_sharp():
    arrays = pairs()
    found = of(arrays._replace(patch=arrays.patch[:, :1]), AlignmentConfig(rounds=1))
    assert found["map_sharpness/round_1"] == pytest.approx(1.0)


def test_no_gradient_flows():
    arrays = pairs()

    def total(patch, word, word_logit):
        return sum(sharpness(patch, word, word_logit, arrays.mask, config=AlignmentConfig(rounds=1)).values())

    inputs = (jnp.asarray(x, jnp.float32) for x in (arrays.patch, arrays.word, arrays.word_logit))
    assert not any(np.any(x) for x in jax.jit(jax.grad(total, argnums=(0, 1, 2)))(*inputs))


@pytest.mark.parametrize("devices", [2, 8])
def test_of_a_batch_over_devices_a_few_pairs_are_moved_and_no_more(devices):
    arrays, config, mesh = pairs([*LENGTHS] * 16, seed=3), AlignmentConfig(rounds=1), make_mesh(jax.devices()[:devices])
    whole = [np.float32(x) for x in (arrays.patch, arrays.word, arrays.word_logit)] + [np.asarray(arrays.mask)]

    @jax.jit
    def first_four(*inputs):
        return sharpness(*(x[:4] for x in inputs), config=config)

    with jax.set_mesh(mesh):
        spread = jax.device_put(whole, NamedSharding(mesh, PartitionSpec(DATA)))
        found, moved = first_four(*spread), count(first_four.lower(*spread).compile().as_text()).collective_bytes
    expected = expected_of(oracle.Arrays(*(x[:4] for x in arrays)), config)
    assert {name: float(x) for name, x in found.items()} == {
        name: pytest.approx(value, abs=1e-5) for name, value in expected.items()
    }
    assert sum(moved.values()) < 4 * sum(x[0].nbytes for x in whole) + 100
