"""The alignment, in both implementations, against the oracle, its derivatives and what must not change it."""

import dataclasses
import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from plan_jax.alignment import packing, reference, scan, tile
from plan_jax.alignment.similarity import word_patch_similarity
from plan_jax.config import AlignmentConfig
from plan_jax.types import SoftRegions

IMPLEMENTATIONS = {"reference": reference.all_pairs, "scan": scan.all_pairs}

# Four reports of five words: whole, with padding inside and at the end, of one word, without words.
MASK = np.array([[1, 1, 1, 1, 1], [1, 0, 1, 1, 0], [1, 0, 0, 0, 0], [0, 0, 0, 0, 0]], bool)
EMPTY = 3
ARRAYS = oracle.random_arrays(0, 2, MASK, patches=9, dim=4)


def config_of(row) -> AlignmentConfig:
    """No two temperatures are equal, so that a swap shows."""
    rounds, word_importance, logsumexp, region_norm, importance, half_the_words, history, spread = row
    return AlignmentConfig(
        rounds=rounds,
        word_importance=word_importance,
        aggregation="logsumexp" if logsumexp else "mean",
        map_words="mean" if logsumexp else "max",
        region_norm=bool(region_norm),
        importance=float(importance),
        word_keep=0.5 if half_the_words else 1.0,
        history=0.5 * history,
        evidence=0.7,
        map_spread=0.8 * spread,
        region_temperature=0.125,
        word_temperature=0.3,
        patch_temperature=0.25,
        aggregation_temperature=0.2,
    )


# Every two settings of two columns occur together.
ROWS = [
    (0, "text", 1, 0, 0, 0, 1, 0),
    (0, "pair", 0, 0, 1, 0, 1, 0),
    (0, "uniform", 1, 1, 1, 1, 0, 1),
    (1, "text", 1, 1, 1, 1, 1, 0),
    (1, "pair", 0, 0, 0, 1, 0, 0),
    (1, "uniform", 0, 0, 1, 0, 1, 1),
    (2, "text", 1, 0, 1, 1, 0, 0),
    (2, "pair", 1, 1, 0, 0, 0, 0),
    (2, "uniform", 0, 1, 0, 1, 1, 1),
    (3, "text", 0, 1, 0, 0, 0, 0),
    (3, "pair", 1, 0, 0, 1, 1, 1),
    (3, "uniform", 1, 1, 1, 0, 1, 1),
    (4, "text", 0, 0, 1, 0, 1, 1),
    (4, "pair", 0, 1, 1, 1, 0, 1),
    (4, "uniform", 1, 0, 0, 0, 0, 0),
]
CASES = [pytest.param(config_of(row), id="-".join(map(str, row))) for row in ROWS]
each_case = pytest.mark.parametrize("config", CASES)


@functools.partial(jax.jit, static_argnames="config", compiler_options=oracle.QUICK)
def _everything(images, texts, cotangent, config):
    def regions_of(patch, word, word_logit, mask):
        regions = reference.soft_regions(word, patch, word_logit, mask[:, None], config=config)
        map_ = reference.grounding_map(regions, mask[:, None], config=config)[0]
        alpha, beta = regions.word_importance[:, 0], regions.patch_importance[0]
        return {"regions": regions.replace(word_importance=alpha, patch_importance=beta), "map": map_}

    def together(patch):
        """All reports in one list of words."""
        words = [x.reshape(-1, *x.shape[2:]) for x in (texts.word, texts.word_logit)]
        member = texts.mask.reshape(-1, 1) & jnp.repeat(jnp.eye(len(texts.mask), dtype=bool), texts.mask.shape[1], 0)
        regions = reference.soft_regions(words[0], patch, words[1], member, config=config)
        z = reference.local_similarity(words[0], patch, words[1], member, config=config)
        return {"regions": regions, "map": reference.grounding_map(regions, member, config=config), "z": z}

    of_reports = jax.vmap(regions_of, in_axes=(None, 0, 0, 0))
    of_images = jax.vmap(of_reports, in_axes=(0, None, None, None))
    found = of_images(images.patch, texts.word, texts.word_logit, texts.mask)
    found["together"] = jax.vmap(together)(images.patch)

    for name, all_pairs in IMPLEMENTATIONS.items():

        def score(patch, word, word_logit, all_pairs=all_pairs):
            return all_pairs(config, patch, word, word_logit, texts.mask)

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
        assert_close(1e-5)(found["map"][i, r], oracle.grounding_map(expected, mask, config))


@each_case
def test_scores_follow_the_equations(config):
    found = everything(ARRAYS, config)
    expected = oracle.word_patch_similarity(ARRAYS, config)
    for name in IMPLEMENTATIONS:
        assert_close(1e-5)(found[name]["z"], expected)
    assert np.ptp(expected) > 0.1  # the scores differ, so equality says something


@each_case
def test_reports_in_one_list_of_words_are_what_each_is_alone(config):
    found = everything(ARRAYS, config)
    together, alone = found["together"], found["regions"]
    real = MASK.reshape(-1)
    for field in ("similarity", "attention"):  # [I R L N] alone, [I R*L N] together
        assert_close(1e-6)(
            getattr(together["regions"], field)[:, real], getattr(alone, field).reshape(2, len(real), 9)[:, real]
        )
    own = np.repeat(np.eye(4), 5, axis=0)  # [R*L R]
    assert_close(1e-6)(together["regions"].word_importance, alone.word_importance.reshape(2, len(real), 1) * own)
    assert_close(1e-6)(together["regions"].patch_importance, alone.patch_importance)
    assert_close(1e-6)(together["map"], found["map"])
    assert_close(1e-6)(together["z"], found["reference"]["z"])


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


@pytest.mark.parametrize("config", CASES[::3])  # another program than the cases', without the spread
def test_permuting_patches_permutes_the_attention_and_leaves_the_scores(config):
    config = dataclasses.replace(config, map_spread=0.0)  # which knows where a patch is
    patches = np.array([3, 0, 8, 5, 1, 7, 4, 2, 6])
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
    z = reference.local_similarity(*map(jnp.asarray, (word, patch, word_logit, mask[:, None])), config=config)
    assert_close(1e-5)(z[0], oracle.local_similarity(word, patch, word_logit, mask, config))


@st.composite
def problems(draw):
    reports, words = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    mask = draw(st.lists(st.lists(st.booleans(), min_size=words, max_size=words), min_size=reports, max_size=reports))
    row = [draw(st.integers(0, 4)), draw(st.sampled_from(["text", "pair", "uniform"]))]
    config = config_of(row + [draw(st.integers(0, 1)) for _ in range(6)])
    images, side, dim = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(2, 4))
    patches = side**2 if config.map_spread else draw(st.integers(1, 5))
    return oracle.random_arrays(draw(st.integers(0, 99)), images, mask, patches=patches, dim=dim), config


@settings(max_examples=4)  # each compiles
@given(problems())
def test_scan_is_reference_for_any_shape_and_mask(problem):
    arrays, config = problem
    found = everything(arrays, config)
    assert_all_close(found["scan"], found["reference"])
    assert_close(1e-5)(found["scan"]["z"], oracle.word_patch_similarity(arrays, config))


W, S = packing.CHUNK_WORDS, packing.CHUNK_REPORTS
LENGTHS = {  # of consecutive reports of at most W words; those not named are empty
    "chunks filled to the last word": [W // 2, W // 2, W // 4, W - W // 4, W],
    "a report as long as a chunk": [1, W, 1, W, 2],
    "one word too many for a chunk": [W // 2, W // 2, 1, W - 1, 2],
    "empty reports between": [0, W // 2, 0, 0, W // 2, 0, 1, 0],
    "more empty reports than a chunk holds": [3] + [0] * (S + 1) + [2],
    "more short reports than a chunk holds": [1] * (2 * S + 1),
    "a last report alone": [0] * (2 * S + 2) + [5],
    "lengths of all kinds": [3, 40, 1, 0, 17, W, 2, 2, W - 1, 60, 60, 9, 0, 7],
    "no words at all": [],
}


def ragged(lengths, reports: int, words: int) -> np.ndarray:
    """A mask of reports of these lengths, padding at random places."""
    rng, mask = np.random.default_rng(0), np.zeros((reports, words), bool)
    for row, length in enumerate(lengths):
        mask[row, rng.choice(words, length, replace=False)] = True
    return mask


def chunks_by_hand(lengths, longest: int) -> list[list[int]]:
    """The reports of each chunk: a report opens a new one when the last has no room for it."""
    chunks, room = [[]], longest * math.ceil(W / longest)
    for report, length in enumerate(lengths):
        full = sum(lengths[r] for r in chunks[-1]) + length > room or len(chunks[-1]) == S
        if full:
            chunks.append([])
        chunks[-1].append(report)
    return chunks


@functools.partial(jax.jit, static_argnames=("config", "name"), compiler_options=oracle.QUICK)
def _scores_and_gradients(images, texts, cotangent, *, config, name):
    def score(patch, word, word_logit):
        return IMPLEMENTATIONS[name](config, patch, word, word_logit, texts.mask)

    z, pull = jax.vjp(score, images.patch, texts.word, texts.word_logit)
    return z, pull(cotangent)


@pytest.mark.parametrize("lengths", LENGTHS.values(), ids=LENGTHS)
@pytest.mark.parametrize("config", [config_of(ROWS[5]), config_of(ROWS[7]), config_of(ROWS[12])])
def test_how_words_fill_the_chunks_never_changes_a_score_or_a_gradient(config, lengths):
    arrays = oracle.random_arrays(0, 2, ragged(lengths, 2 * S + 3, W), patches=3, dim=3)
    cotangent = jnp.asarray(cotangent_of(arrays), jnp.float32)
    found, expected = (
        _scores_and_gradients(*arrays.features(), cotangent, config=config, name=name) for name in IMPLEMENTATIONS
    )
    assert_all_close(found, expected, 2e-5)


@pytest.mark.parametrize(
    "lengths",
    [[W + 5, 3, W + 4, W + 1], [W // 2 - 3] * (S + 3), [1] * (W + S + 1)],
    ids=["longer than a chunk", "no padding, last chunk half empty", "no padding, one word each"],
)
def test_reports_may_be_longer_than_a_chunk_or_have_no_padding(lengths):
    config = config_of(ROWS[7])
    arrays = oracle.random_arrays(0, 2, ragged(lengths, len(lengths), max(lengths)), patches=3, dim=3)
    cotangent = jnp.asarray(cotangent_of(arrays), jnp.float32)
    found, expected = (
        _scores_and_gradients(*arrays.features(), cotangent, config=config, name=name) for name in IMPLEMENTATIONS
    )
    assert_all_close(found, expected, 2e-5)


@jax.jit
def _chunks(mask):
    packed = packing.pack(mask)
    chunk_of = functools.partial(packing.chunk_of, words=packing.chunk_words(mask.shape))
    return packed, jax.vmap(lambda begin: chunk_of(packed, begin))(jnp.arange(len(mask)))


@example([60] * (2 * S + 3))
@given(st.integers(1, 60).flatmap(lambda longest: st.lists(st.integers(0, longest), max_size=2 * S + 3)))
def test_chunks_hold_each_word_once_and_as_many_reports_as_fit(lengths):
    mask = ragged(lengths, 2 * S + 3, 60)
    packed, chunks = jax.tree.map(np.asarray, _chunks(jnp.asarray(mask)))
    begin, found = 0, []
    while begin < len(mask):
        start, member, column = (x[begin] for x in chunks)
        rows, reports = np.nonzero(member)
        found += zip(packed.place[start + rows], column + reports, strict=True)
        begin = packed.following[begin]
    assert found == [(place, place // 60) for place in np.flatnonzero(mask)]
    expected = chunks_by_hand(mask.sum(axis=1), 60)
    begins = [chunk[0] for chunk in expected]
    assert packed.following[begins].tolist() == [*begins[1:], len(mask)]


@pytest.mark.parametrize("lengths", [[5, 3, 0, 4], [W, W, 3], [60] * 10, []])
def test_each_image_meets_each_chunk_once_whatever_the_padding(lengths, monkeypatch):
    """Counts the steps of the loops, run without compilation: a step is one call."""
    calls = []

    def counted(words, image, *, config):
        calls.append("forward")
        return jnp.zeros(words.member.shape[1])

    def counted_backward(words, image, of_scores, *, config):
        calls.append("backward")
        word, logit, patch = (jnp.zeros(x.shape) for x in (words.word, words.word_logit, image.patch))
        return tile.Gradient(word, logit, patch, None if image.gram is None else jnp.zeros(image.gram.shape))

    monkeypatch.setattr(scan, "scores", counted)
    monkeypatch.setattr(scan, "pull_scores", counted_backward)
    mask = ragged(lengths, 10, W)
    images, texts = oracle.random_arrays(0, 2, mask, patches=2, dim=2).features()

    def total(patch):
        return scan.all_pairs(AlignmentConfig(rounds=0), patch, texts.word, texts.word_logit, texts.mask).sum()

    steps = 2 * len(chunks_by_hand(mask.sum(axis=1), W))
    with jax.disable_jit():
        jax.grad(total)(images.patch)
    assert (calls.count("forward"), calls.count("backward")) == (steps, steps)


@pytest.mark.parametrize("config", [config_of(ROWS[3]), config_of(ROWS[9])])
def test_scan_never_reads_padding(config):
    word, word_logit = np.where(MASK[..., None], ARRAYS.word, np.nan), np.where(MASK, ARRAYS.word_logit, np.nan)
    dirty = everything(ARRAYS._replace(word=word, word_logit=word_logit), config)
    assert_all_close(dirty["scan"], everything(ARRAYS, config)["scan"], 1e-6)
    assert np.isnan(dirty["reference"]["z"]).any()


def test_the_mask_takes_part_in_a_gradient_as_what_it_is_boolean():
    images, texts = ARRAYS.features()

    def total(texts):
        return word_patch_similarity(images, texts, config=AlignmentConfig(rounds=0)).sum()

    gradient = jax.grad(total, allow_int=True)(texts)
    assert gradient.mask.dtype == jax.dtypes.float0
    assert np.any(gradient.word != 0)


@functools.cache
def gradient_memory(name: str, *, images: int, reports: int, words: int) -> int:
    """Bytes of intermediate values of the compiled gradient of all scores; half of the words are padding."""
    mask = np.arange(words) < np.full((reports, 1), words // 2)
    image_features, texts = oracle.random_arrays(0, images, mask, patches=100, dim=16).features()

    def total(patch, word, word_logit, mask):
        return IMPLEMENTATIONS[name](AlignmentConfig(rounds=1), patch, word, word_logit, mask).sum()

    gradient = jax.jit(jax.grad(total, argnums=(0, 1, 2)))
    compiled = gradient.lower(image_features.patch, texts.word, texts.word_logit, texts.mask).compile()
    return compiled.memory_analysis().temp_size_in_bytes


@pytest.mark.parametrize("more", ["images", "reports", "words"])
def test_memory_grows_in_reference_but_not_in_scan(more):
    size = {"images": 4, "reports": 24, "words": 16}
    growth = {
        name: gradient_memory(name, **size | {more: 4 * size[more]}) / gradient_memory(name, **size)
        for name in IMPLEMENTATIONS
    }
    assert growth["scan"] < 1.6  # beside the tile there is a copy of the real words
    assert growth["reference"] > 3.5


def softmax(logits, mask):
    return reference.masked_softmax(logits[:, None], mask[:, None])[:, 0]


@pytest.mark.parametrize("extreme", [0.0, 1e4, -1e4])
def test_softmax_is_finite_at_extremes_and_blind_to_what_is_masked(extreme):
    logits = jnp.array([extreme, 0.0, jnp.nan, 0.0, jnp.inf])
    mask = jnp.array([True, True, False, True, False])
    expected = {0.0: [1 / 3, 1 / 3, 0, 1 / 3, 0], 1e4: [1, 0, 0, 0, 0], -1e4: [0, 0.5, 0, 0.5, 0]}[extreme]
    assert_close(1e-6)(softmax(logits, mask), expected)
    gradient = jax.jacobian(softmax)(logits, mask)
    p = np.array(expected)
    assert_close(1e-6)(gradient, np.diag(p) - np.outer(p, p))


def test_softmax_of_nothing_is_zero_with_a_zero_gradient():
    logits, nothing = jnp.array([1e4, -1e4, 0.0]), jnp.zeros(3, bool)
    assert np.all(np.asarray(softmax(logits, nothing)) == 0)
    assert np.all(np.asarray(jax.jacobian(softmax)(logits, nothing)) == 0)


def test_softmax_goes_over_each_column_alone():
    logits, mask = jnp.array([0.0, 1.0, 5.0, 1e4]), jnp.array([[1, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 0]], bool)
    p = 1 / (1 + np.e)
    assert_close(1e-6)(reference.masked_softmax(logits[:, None], mask), [[p, 0, 0], [1 - p, 0, 0], [0, 1, 0], [0] * 3])


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
    weight = np.asarray(selected(jnp.asarray(importance, jnp.float32), jnp.asarray(mask), keep))
    chosen = oracle.selected_words(importance, mask, keep)
    assert len(chosen) == kept
    assert np.flatnonzero(weight).tolist() == sorted(chosen)
    assert_close(1e-6)(weight[chosen], importance[chosen] / importance[chosen].sum())


def selected(importance, mask, keep):
    return reference.selected_importance(importance[:, None], mask[:, None], keep=keep)[:, 0]


def test_of_equally_important_words_the_first_are_kept():
    mask = jnp.array([False, True, True, False, True, True])
    weight = selected(jnp.where(mask, 0.25, 0.0), mask, 0.5)
    assert_close(1e-6)(weight, [0, 0.5, 0.5, 0, 0, 0])


def test_of_no_words_none_is_kept():
    weight = selected(jnp.zeros(3), jnp.zeros(3, bool), 0.5)
    assert np.all(np.asarray(weight) == 0)


def test_words_are_selected_in_each_report_by_its_own_number_of_words():
    member = jnp.array([[1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 1, 1, 0]], bool).T
    importance = jnp.array([[0.1, 0.4, 0.3, 0.2, 0, 0, 0], [0, 0, 0, 0, 0.2, 0.8, 0]]).T
    weight = reference.selected_importance(importance, member, keep=0.5)
    assert_close(1e-6)(weight.T, [[0, 4 / 7, 3 / 7, 0, 0, 0, 0], [0, 0, 0, 0, 0, 1, 0]])


def test_spreading_keeps_a_flat_map_flat_and_refuses_a_grid_that_is_not_square():
    flat = np.full((2, 9), 0.3)
    assert_close(1e-6)(reference.spread(jnp.asarray(flat), sigma=1.5), flat)
    assert_close(0)(reference.spread(jnp.asarray(ARRAYS.patch[0].T), sigma=0.0), ARRAYS.patch[0].T)
    with pytest.raises(ValueError, match="must form a square, got 6"):
        reference.spread(jnp.zeros((1, 6)), sigma=1.0)


def test_a_map_is_that_of_the_selected_words_and_zero_where_none_fits():
    similarity = jnp.asarray([[-0.5, -0.1, 0.2, -0.9], [-0.4, -0.2, -0.3, 0.1], [0.9, 0.9, 0.9, 0.9]])
    importance = jnp.asarray([[0.4, 0.0], [0.6, 0.0], [0.0, 0.0]])
    regions = SoftRegions(similarity, jnp.zeros((3, 4)), importance, jnp.zeros((2, 4)))
    member = jnp.asarray([[True, False], [True, False], [False, False]])  # the third is padding
    found = reference.grounding_map(regions, member, config=AlignmentConfig(map_words="max"))
    assert_close(1e-7)(found, [[0, 0, 0.2, 0.1], [0, 0, 0, 0]])
    half = reference.grounding_map(regions, member, config=AlignmentConfig(map_words="max", word_keep=0.5))
    assert_close(1e-7)(half, [[0, 0, 0, 0.1], [0, 0, 0, 0]])  # of the second word alone
