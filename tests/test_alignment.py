"""The alignment, in both implementations, against the oracle, its derivatives and what must not change it."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_jax.alignment import reference, scan
from plan_jax.config import AlignmentConfig

IMPLEMENTATIONS = {"reference": reference.word_patch_similarity, "scan": scan.word_patch_similarity}

# Four reports of five words: whole, with padding inside and at the end, of one word, without words.
MASK = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
EMPTY = 3
ARRAYS = oracle.random_arrays(0, 2, MASK, patches=6, dim=4)


def config_of(row) -> AlignmentConfig:
    """No two temperatures are equal, so that a swap shows."""
    rounds, word_importance, logsumexp, region_norm, importance, half_the_words, history = row
    return AlignmentConfig(
        rounds=rounds,
        word_importance=word_importance,
        aggregation="logsumexp" if logsumexp else "mean",
        region_norm=bool(region_norm),
        importance=float(importance),
        word_keep=0.5 if half_the_words else 1.0,
        history=0.5 * history,
        evidence=0.7,
        region_temperature=0.125,
        word_temperature=0.3,
        patch_temperature=0.25,
        aggregation_temperature=0.2,
    )


# Every two settings of two columns occur together.
ROWS = [
    (0, "text", 1, 0, 0, 0, 1),
    (0, "pair", 0, 0, 1, 0, 1),
    (0, "uniform", 1, 1, 1, 1, 0),
    (1, "text", 1, 1, 1, 1, 1),
    (1, "pair", 0, 0, 0, 1, 0),
    (1, "uniform", 0, 0, 1, 0, 1),
    (2, "text", 1, 0, 1, 1, 0),
    (2, "pair", 1, 1, 0, 0, 0),
    (2, "uniform", 0, 1, 0, 1, 1),
    (3, "text", 0, 1, 0, 0, 0),
    (3, "pair", 1, 0, 0, 1, 1),
    (3, "uniform", 1, 1, 1, 0, 1),
    (4, "text", 0, 0, 1, 0, 1),
    (4, "pair", 0, 1, 1, 1, 0),
    (4, "uniform", 1, 0, 0, 0, 0),
]
CASES = [pytest.param(config_of(row), id="-".join(map(str, row))) for row in ROWS]
each_case = pytest.mark.parametrize("config", CASES)


@functools.partial(jax.jit, static_argnames="config", compiler_options=oracle.QUICK)
def _everything(images, texts, cotangent, config):
    def regions_of(patch, word, word_logit, mask):
        regions = reference.soft_regions(word, patch, word_logit, mask, config=config)
        return {"regions": regions, "map": reference.grounding_map(regions)}

    of_reports = jax.vmap(regions_of, in_axes=(None, 0, 0, 0))
    of_images = jax.vmap(of_reports, in_axes=(0, None, None, None))
    found = of_images(images.patch, texts.word, texts.word_logit, texts.mask)

    for name, word_patch_similarity in IMPLEMENTATIONS.items():

        def score(patch, word, word_logit, word_patch_similarity=word_patch_similarity):
            texts_ = texts.replace(word=word, word_logit=word_logit)
            return word_patch_similarity(images.replace(patch=patch), texts_, config=config)

        z, pull = jax.vjp(score, images.patch, texts.word, texts.word_logit)
        found[name] = {"z": z, "gradient": dict(zip(("patch", "word", "word_logit"), pull(cotangent), strict=True))}
    return found


def everything(arrays: oracle.Arrays, config: AlignmentConfig, cotangent=None):
    """Regions, maps, scores, and gradients of sum(cotangent * z), of all pairs: compiled once per config and shape."""
    cotangent = cotangent_of(arrays) if cotangent is None else cotangent
    found = _everything(*arrays.features(), jnp.asarray(cotangent, jnp.float32), config)
    return jax.tree.map(np.asarray, found)


def cotangent_of(arrays):
    return np.random.default_rng(9).normal(size=(len(arrays.patch), len(arrays.mask)))


def assert_close(tolerance):
    return functools.partial(np.testing.assert_allclose, rtol=tolerance, atol=tolerance)


def assert_all_close(found, expected, tolerance=1e-5):
    jax.tree.map(assert_close(tolerance), found, expected)


def test_the_cases_hold_every_pair_of_settings():
    for a, b in itertools.combinations(range(len(ROWS[0])), 2):
        both = {(row[a], row[b]) for row in ROWS}
        assert len(both) == len({row[a] for row in ROWS}) * len({row[b] for row in ROWS})


@each_case
def test_soft_regions_and_maps_follow_the_equations(config):
    found = everything(ARRAYS, config)
    for i, r in itertools.product(range(2), range(4)):
        mask = MASK[r]
        expected = oracle.soft_regions(ARRAYS.word[r], ARRAYS.patch[i], ARRAYS.word_logit[r], mask, config)
        regions = jax.tree.map(lambda x, i=i, r=r: x[i, r], found["regions"])
        assert_close(1e-5)(regions.similarity[mask], expected.similarity[mask])
        assert_close(1e-5)(regions.attention[mask], expected.attention[mask])
        assert_close(1e-5)(regions.word_importance, expected.word_importance)
        assert_close(1e-5)(regions.patch_importance, expected.patch_importance)
        assert_close(1e-5)(found["map"][i, r], oracle.grounding_map(expected, mask) * np.ones(6))


@each_case
def test_scores_follow_the_equations(config):
    found = everything(ARRAYS, config)
    expected = oracle.word_patch_similarity(ARRAYS, config)
    for name in IMPLEMENTATIONS:
        assert_close(1e-5)(found[name]["z"], expected)
    assert np.ptp(expected) > 0.1  # the scores differ, so equality says something


@each_case
def test_gradients_of_scan_are_those_of_reference(config):
    found = everything(ARRAYS, config)
    assert_all_close(found["scan"]["gradient"], found["reference"]["gradient"])


@each_case
@pytest.mark.parametrize("name", IMPLEMENTATIONS)
def test_gradients_are_the_finite_differences_of_the_oracle(config, name):
    gradient = everything(ARRAYS, config)[name]["gradient"]
    rng, step, cotangent = np.random.default_rng(5), 1e-5, cotangent_of(ARRAYS)
    for field in gradient:
        direction = rng.normal(size=gradient[field].shape)

        def score(distance, field=field, direction=direction):
            moved = ARRAYS._replace(**{field: getattr(ARRAYS, field) + distance * direction})
            return np.sum(cotangent * oracle.word_patch_similarity(moved, config))

        expected = (score(step) - score(-step)) / (2 * step)
        assert_close(1e-4)(np.sum(gradient[field] * direction), expected)


@each_case
def test_attention_and_importances_sum_to_one(config):
    regions = everything(ARRAYS, config)["regions"]
    assert_close(1e-6)(regions.attention.sum(axis=-1), np.ones((2, 4, 5)))
    assert_close(1e-6)(regions.patch_importance.sum(axis=-1), np.ones((2, 4)))
    assert_close(1e-6)(regions.word_importance.sum(axis=-1), np.broadcast_to(MASK.any(axis=1), (2, 4)))
    assert np.all(regions.word_importance[:, ~MASK] == 0)


@each_case
def test_padding_words_never_change_a_score_a_map_or_a_gradient(config):
    rng = np.random.default_rng(1)
    word = np.where(MASK[..., None], ARRAYS.word, rng.normal(size=ARRAYS.word.shape) * 100)
    word_logit = np.where(MASK, ARRAYS.word_logit, rng.normal(size=MASK.shape) * 1e4)
    clean, dirty = everything(ARRAYS, config), everything(ARRAYS._replace(word=word, word_logit=word_logit), config)
    for name in IMPLEMENTATIONS:
        assert_all_close(dirty[name], clean[name], 1e-6)
        assert np.all(dirty[name]["gradient"]["word"][~MASK] == 0)
        assert np.all(dirty[name]["gradient"]["word_logit"][~MASK] == 0)
    assert_all_close(dirty["map"], clean["map"], 1e-6)
    assert_all_close(dirty["regions"].patch_importance, clean["regions"].patch_importance, 1e-6)


@pytest.mark.parametrize("config", [CASES[3], CASES[13]])
def test_more_padding_never_changes_a_score_or_a_gradient(config):
    wide = [np.pad(x, [(0, 0), (0, 3)] + [(0, 0)] * (x.ndim - 2)) for x in (ARRAYS.word, ARRAYS.word_logit, MASK)]
    padded = everything(ARRAYS._replace(word=wide[0], word_logit=wide[1], mask=wide[2]), config)
    found = everything(ARRAYS, config)
    for name in IMPLEMENTATIONS:
        gradient = padded[name]["gradient"]
        cut = gradient | {field: gradient[field][:, :5] for field in ("word", "word_logit")}
        assert_all_close({"z": padded[name]["z"], "gradient": cut}, found[name], 2e-6)
    assert_all_close(padded["map"], found["map"], 1e-6)


@each_case
def test_a_report_without_words_scores_zero_and_has_no_gradient(config):
    cotangent = np.zeros((2, 4))
    cotangent[:, EMPTY] = 3.0
    found = everything(ARRAYS, config, cotangent)
    for name in IMPLEMENTATIONS:
        assert np.all(found[name]["z"][:, EMPTY] == 0)
        assert all(np.all(gradient == 0) for gradient in found[name]["gradient"].values())
    assert np.all(found["map"][:, EMPTY] == 0)


@each_case
def test_permuting_images_and_reports_permutes_the_scores(config):
    images, reports = np.array([1, 0]), np.array([2, 0, 3, 1])
    permuted = ARRAYS._replace(
        patch=ARRAYS.patch[images],
        word=ARRAYS.word[reports],
        word_logit=ARRAYS.word_logit[reports],
        mask=MASK[reports],
    )
    before, after = everything(ARRAYS, config), everything(permuted, config)
    for name in IMPLEMENTATIONS:
        assert_close(1e-6)(after[name]["z"], before[name]["z"][np.ix_(images, reports)])


@each_case
def test_permuting_patches_permutes_the_attention_and_leaves_the_scores(config):
    patches = np.array([3, 0, 5, 1, 4, 2])
    before = everything(ARRAYS, config)
    after = everything(ARRAYS._replace(patch=ARRAYS.patch[:, patches]), config)
    for name in IMPLEMENTATIONS:
        assert_close(2e-6)(after[name]["z"], before[name]["z"])
    assert_close(1e-5)(after["regions"].attention, before["regions"].attention[..., patches])
    assert_close(1e-5)(after["map"], before["map"][..., patches])


# Where half of the words are kept and all weigh the same, the first half is kept: there the order matters.
@pytest.mark.parametrize(
    "config", [case for case, row in zip(CASES, ROWS, strict=True) if row[1] != "uniform" or not row[5]]
)
def test_permuting_words_leaves_the_scores_and_the_maps(config):
    words = np.array([4, 2, 0, 1, 3])
    permuted = ARRAYS._replace(word=ARRAYS.word[:, words], word_logit=ARRAYS.word_logit[:, words], mask=MASK[:, words])
    before, after = everything(ARRAYS, config), everything(permuted, config)
    for name in IMPLEMENTATIONS:
        assert_close(2e-6)(after[name]["z"], before[name]["z"])
    assert_close(2e-6)(after["map"], before["map"])


@pytest.mark.parametrize("config", [config_of(ROWS[3]), config_of(ROWS[9])])
def test_bfloat16_features_are_computed_in_float32(config):
    images, texts = ARRAYS.features(jnp.bfloat16)
    rounded = ARRAYS._replace(
        **{name: np.asarray(x, np.float64) for name, x in (("patch", images.patch), ("word", texts.word))},
        word_logit=np.asarray(texts.word_logit, np.float64),
    )
    found = _everything(images, texts, jnp.ones((2, 4)), config)
    assert {x.dtype for x in jax.tree.leaves((found["regions"], found["map"]))} == {jnp.dtype(jnp.float32)}
    expected = oracle.word_patch_similarity(rounded, config)
    for name in IMPLEMENTATIONS:
        assert found[name]["z"].dtype == jnp.float32
        assert_close(1e-5)(found[name]["z"], expected)  # nothing but the features themselves was rounded
        np.testing.assert_allclose(found[name]["z"], oracle.word_patch_similarity(ARRAYS, config), atol=1e-2)


def test_logsumexp_of_very_unequal_words_follows_the_equations():
    """The word that fits best weighs e^-30, and the temperature is low: no constant may hide it."""
    config = AlignmentConfig(rounds=0, aggregation="logsumexp", aggregation_temperature=0.05)
    word, patch = np.array([[1.0, 0.0], [-1.0, 0.0]]), np.array([[1.0, 0.0]])
    word_logit, mask = np.array([-30.0, 0.0]), np.array([True, True])
    z = reference.local_similarity(*map(jnp.asarray, (word, patch, word_logit, mask)), config=config)
    assert_close(1e-5)(z, oracle.local_similarity(word, patch, word_logit, mask, config))


@st.composite
def problems(draw):
    reports, words = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    mask = draw(st.lists(st.lists(st.booleans(), min_size=words, max_size=words), min_size=reports, max_size=reports))
    row = [draw(st.integers(0, 4)), draw(st.sampled_from(["text", "pair", "uniform"]))]
    config = config_of(row + [draw(st.integers(0, 1)) for _ in range(5)])
    images, patches, dim = draw(st.integers(1, 3)), draw(st.integers(1, 5)), draw(st.integers(2, 4))
    return oracle.random_arrays(draw(st.integers(0, 99)), images, mask, patches=patches, dim=dim), config


@settings(max_examples=6)  # each compiles
@given(problems())
def test_scan_is_reference_for_any_shape_and_mask(problem):
    arrays, config = problem
    found = everything(arrays, config)
    assert_all_close(found["scan"], found["reference"])
    assert_close(1e-5)(found["scan"]["z"], oracle.word_patch_similarity(arrays, config))


def gradient_memory(word_patch_similarity, batch: int) -> int:
    """Bytes of intermediate values of the compiled gradient of a batch's scores."""
    arrays = oracle.random_arrays(0, batch, np.ones((batch, 12), bool), patches=25, dim=4)
    images, texts = arrays.features()

    def total(patch, word, word_logit):
        texts_ = texts.replace(word=word, word_logit=word_logit)
        return word_patch_similarity(images.replace(patch=patch), texts_, config=AlignmentConfig(rounds=2)).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    return gradient.lower(images.patch, texts.word, texts.word_logit).compile().memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize(("name", "low", "high"), [("scan", 1.5, 2.5), ("reference", 3.5, 4.5)])
def test_twice_the_batch_takes_twice_the_memory_in_scan_and_four_times_in_reference(name, low, high):
    small, middle, large = (gradient_memory(IMPLEMENTATIONS[name], batch) for batch in (8, 16, 32))
    assert low < middle / small < high
    assert low < large / middle < high


@pytest.mark.parametrize("extreme", [0.0, 1e4, -1e4])
def test_softmax_is_finite_at_extremes_and_blind_to_what_is_masked(extreme):
    logits = jnp.array([extreme, 0.0, jnp.nan, 0.0, jnp.inf])
    mask = jnp.array([True, True, False, True, False])
    expected = {0.0: [1 / 3, 1 / 3, 0, 1 / 3, 0], 1e4: [1, 0, 0, 0, 0], -1e4: [0, 0.5, 0, 0.5, 0]}[extreme]
    assert_close(1e-6)(reference.masked_softmax(logits, mask), expected)
    gradient = jax.jacobian(reference.masked_softmax)(logits, mask)
    p = np.array(expected)
    assert_close(1e-6)(gradient, np.diag(p) - np.outer(p, p))


def test_softmax_of_nothing_is_zero_with_a_zero_gradient():
    logits, nothing = jnp.array([1e4, -1e4, 0.0]), jnp.zeros(3, bool)
    assert np.all(np.asarray(reference.masked_softmax(logits, nothing)) == 0)
    assert np.all(np.asarray(jax.jacobian(reference.masked_softmax)(logits, nothing)) == 0)


@pytest.mark.parametrize("length", [1e-4, 1.0, 1e4])
def test_normalize_gives_length_one_and_only_turns(length):
    vector = jnp.array([0.6, 0.0, -0.8]) * length
    assert_close(1e-6)(reference.normalize(vector), [0.6, 0.0, -0.8])
    direction = np.array([0.6, 0.0, -0.8])
    expected = (np.eye(3) - np.outer(direction, direction)) / length
    assert_close(1e-5)(jax.jacobian(reference.normalize)(vector) * length, expected * length)


def test_normalize_leaves_zero_at_zero_with_a_zero_gradient():
    assert np.all(np.asarray(reference.normalize(jnp.zeros(3))) == 0)
    assert np.all(np.asarray(jax.jacobian(reference.normalize)(jnp.zeros(3))) == 0)


@pytest.mark.parametrize(
    ("keep", "words", "kept"),
    [
        (1.0, 5, 5),
        (0.5, 5, 3),
        (0.5, 4, 2),
        (0.01, 7, 1),
        (0.34, 3, 2),
        (0.3, 1, 1),
        (0.7, 10, 7),
        (0.6, 25, 15),
        (0.0, 4, 1),
    ],
)
def test_the_words_of_largest_importance_are_kept_and_weigh_one_together(keep, words, kept):
    rng = np.random.default_rng(0)
    mask = np.zeros(words + 3, bool)
    mask[rng.choice(words + 3, words, replace=False)] = True
    importance = np.where(mask, rng.permutation(words + 3) + 1.0, 0.0)
    importance /= importance.sum()
    weight = np.asarray(reference.select_words(jnp.asarray(importance, jnp.float32), jnp.asarray(mask), keep=keep))
    chosen = oracle.selected_words(importance, mask, keep)
    assert len(chosen) == kept
    assert np.flatnonzero(weight).tolist() == sorted(chosen)
    assert_close(1e-6)(weight[chosen], importance[chosen] / importance[chosen].sum())


def test_of_equally_important_words_the_first_are_kept():
    mask = jnp.array([False, True, True, False, True, True])
    weight = reference.select_words(jnp.where(mask, 0.25, 0.0), mask, keep=0.5)
    assert_close(1e-6)(weight, [0, 0.5, 0.5, 0, 0, 0])


def test_of_no_words_none_is_kept():
    weight = reference.select_words(jnp.zeros(3), jnp.zeros(3, bool), keep=0.5)
    assert np.all(np.asarray(weight) == 0)
