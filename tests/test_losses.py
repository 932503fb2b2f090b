"""The losses against scikit-learn's cross-entropy, hand-worked numbers and the oracle."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from sklearn.metrics import log_loss

from plan_jax.config import AlignmentConfig, Config, EvaluationConfig, LossConfig
from plan_jax.losses import global_similarity, image_text_score, info_nce, plan_loss

MASK = np.array([[1, 1, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 1, 1]], bool)
WITHOUT_WORDS, WITH_WORDS = 1, np.array([0, 2, 3])
ARRAYS = oracle.random_arrays(3, 4, MASK, patches=5, dim=4)
FIELDS = {"patch": (0, "patch"), "image_pooled": (0, "pooled"), "text_pooled": (1, "pooled")} | {
    field: (1, field) for field in ("word", "word_logit")
}

# No two weights or temperatures are equal, so that a swap shows.
ALIGNMENT = AlignmentConfig(rounds=2, importance=1.0, region_temperature=0.25, patch_temperature=0.3)
LOSS = LossConfig(global_weight=0.7, local_weight=1.3, global_temperature=0.4, local_temperature=0.2)
CONFIG = Config(alignment=ALIGNMENT, loss=LOSS)


def config_with(rounds=2, word_keep=1.0, word_importance="text", **loss) -> Config:
    alignment = {"rounds": rounds, "word_keep": word_keep, "word_importance": word_importance}
    return Config(alignment=AlignmentConfig(**(vars(ALIGNMENT) | alignment)), loss=LossConfig(**(vars(LOSS) | loss)))


@functools.partial(jax.jit, static_argnames="config", compiler_options=oracle.QUICK)
def _loss_and_gradient(features, config):
    def loss(features):
        return plan_loss(*features, config=config)

    return jax.value_and_grad(loss, has_aux=True, allow_int=True)(features)


def loss_and_gradient(arrays: oracle.Arrays, config: Config, dtype=jnp.float32):
    """(loss, its parts, gradient by the names of the arrays)."""
    (loss, metrics), gradients = _loss_and_gradient(arrays.features(dtype), config)
    gradient = {name: np.asarray(getattr(gradients[side], field)) for name, (side, field) in FIELDS.items()}
    return loss, metrics, gradient


def permuted(arrays: oracle.Arrays, order) -> oracle.Arrays:
    """The pairs in another order, or some of them."""
    return oracle.Arrays(*(x[order] for x in arrays))


def assert_close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def test_info_nce_is_the_hand_worked_cross_entropy():
    logits = jnp.log(jnp.array([[1.0, 3.0], [1.0, 1.0]]))
    # Rows: ln 4 and ln 2; columns: ln 2 and ln 4.
    assert_close(info_nce(logits, jnp.array([True, True])), 1.5 * math.log(2), 1e-6)


def test_info_nce_is_the_mean_of_scikit_learns_log_loss_of_rows_and_columns():
    logits = np.random.default_rng(0).normal(size=(5, 5)) * 3
    probabilities = [np.array([oracle.softmax(row) for row in x]) for x in (logits, logits.T)]
    expected = sum(log_loss(np.arange(5), p) for p in probabilities) / 2
    assert_close(info_nce(jnp.asarray(logits, jnp.float32), jnp.ones(5, bool)), expected, 1e-6)


@pytest.mark.parametrize("pairs", [[0, 1, 3], [2, 4], [1], [0, 1, 2, 3, 4]])
def test_pairs_that_are_not_valid_are_as_if_they_were_not_there(pairs):
    logits = np.random.default_rng(1).normal(size=(5, 5)).astype(np.float32)
    valid = np.isin(np.arange(5), pairs)
    dirty = np.where(
        valid[:, None] & valid, logits, np.random.default_rng(2).choice([1e4, -1e4, np.inf, np.nan], (5, 5))
    )
    inside = np.ix_(pairs, pairs)
    small, small_gradient = jax.value_and_grad(info_nce)(jnp.asarray(logits[inside]), jnp.ones(len(pairs), bool))
    loss, gradient = jax.value_and_grad(info_nce)(jnp.asarray(dirty), jnp.asarray(valid))
    assert_close(loss, small, 1e-6)
    expected = np.zeros((5, 5))
    expected[inside] = small_gradient
    assert_close(gradient, expected, 1e-6)


def test_info_nce_without_a_valid_pair_is_zero_with_a_zero_gradient():
    logits = jnp.array([[3.0, jnp.nan], [1.0, 2.0]])
    loss, gradient = jax.value_and_grad(info_nce)(logits, jnp.zeros(2, bool))
    assert loss == 0
    assert np.all(np.asarray(gradient) == 0)


def test_info_nce_is_finite_at_extremes():
    logits = jnp.array([[-1e4, 1e4], [1e4, -1e4]])
    loss, gradient = jax.value_and_grad(info_nce)(logits, jnp.ones(2, bool))
    assert_close(loss, 2e4)
    assert_close(gradient, [[-0.5, 0.5], [0.5, -0.5]])


def test_info_nce_of_bfloat16_is_computed_in_float32():
    logits = (np.random.default_rng(4).normal(size=(6, 6)) * 5).astype(jnp.bfloat16)
    loss = info_nce(jnp.asarray(logits), jnp.ones(6, bool))
    assert loss.dtype == jnp.float32
    assert_close(loss, oracle.info_nce(logits.astype(np.float64), np.ones(6, bool)), 1e-6)


@pytest.mark.parametrize(
    "config",
    [
        pytest.param(CONFIG, id="both"),
        pytest.param(config_with(global_weight=0.0), id="local only"),
        pytest.param(config_with(local_weight=0.0), id="global only"),
        pytest.param(config_with(local_weight=0.0, deep_supervision=0.6), id="global only, rounds of nothing"),
        pytest.param(config_with(rounds=0, deep_supervision=0.6), id="no earlier rounds"),
        pytest.param(config_with(rounds=1, deep_supervision=0.6), id="one earlier round"),
        pytest.param(
            config_with(rounds=3, deep_supervision=0.6, word_keep=0.5, word_importance="pair"),
            id="three earlier rounds",
        ),
    ],
)
def test_the_loss_is_the_weighted_sum_of_the_equations_and_has_their_gradient(config):
    loss, metrics, gradient = loss_and_gradient(ARRAYS, config)
    assert_close(loss, oracle.plan_loss(ARRAYS, config))
    assert metrics["loss"] == loss
    weight = config.loss
    parts = weight.global_weight * metrics["global_loss"] + weight.local_weight * (
        metrics.get("local_loss", 0) + weight.deep_supervision * metrics.get("rounds_loss", 0)
    )
    assert_close(parts, loss, 1e-6)
    rng, step = np.random.default_rng(5), 1e-5
    for name, found in gradient.items():
        direction = rng.normal(size=found.shape)
        ends = [ARRAYS._replace(**{name: getattr(ARRAYS, name) + way * step * direction}) for way in (1, -1)]
        slope = (oracle.plan_loss(ends[0], config) - oracle.plan_loss(ends[1], config)) / (2 * step)
        assert_close(np.sum(found * direction), slope, 1e-4)


@pytest.mark.parametrize(
    ("config", "part", "untouched"),
    [
        (config_with(global_weight=0.0), "local_loss", {"image_pooled", "text_pooled"}),
        (config_with(local_weight=0.0), "global_loss", {"patch", "word", "word_logit"}),
    ],
)
def test_a_loss_of_weight_zero_reaches_no_feature(config, part, untouched):
    _, metrics, gradient = loss_and_gradient(ARRAYS, config)
    assert part in metrics
    assert {name for name, found in gradient.items() if np.all(found == 0)} == untouched


def test_a_local_loss_of_weight_zero_is_not_computed():
    assert set(loss_and_gradient(ARRAYS, config_with(local_weight=0.0))[1]) == {"loss", "global_loss"}


def test_without_rounds_and_importance_the_local_loss_is_the_plain_attention_loss():
    alignment = AlignmentConfig(rounds=0, region_temperature=0.25)
    config = Config(alignment=alignment, loss=LossConfig(global_weight=0.0, local_temperature=0.2))
    loss, _, _ = loss_and_gradient(ARRAYS, config)
    assert_close(loss, oracle.plain_attention_loss(ARRAYS, alignment, 0.2))


def test_a_report_without_words_takes_no_part_in_the_loss():
    loss, metrics, gradient = loss_and_gradient(ARRAYS, CONFIG)
    small_loss, small_metrics, small_gradient = loss_and_gradient(permuted(ARRAYS, WITH_WORDS), CONFIG)
    assert_close(loss, small_loss, 1e-6)
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-6), metrics, small_metrics)
    for name, found in gradient.items():
        assert_close(found[WITH_WORDS], small_gradient[name])
        assert np.all(found[WITHOUT_WORDS] == 0)


@pytest.mark.parametrize("config", [CONFIG, config_with(word_importance="pair", word_keep=0.5, deep_supervision=0.6)])
def test_a_batch_of_reports_without_words_has_loss_zero_and_no_gradient(config):
    nothing = ARRAYS._replace(word=0 * ARRAYS.word, mask=np.zeros_like(MASK))
    loss, _, gradient = loss_and_gradient(nothing, config)
    assert loss == 0
    assert all(np.all(found == 0) for found in gradient.values())


def test_padding_words_never_change_the_loss_or_its_gradient():
    rng = np.random.default_rng(6)

    def padded(x, filling):
        wide = np.pad(x, [(0, 0), (0, 2)] + [(0, 0)] * (x.ndim - 2))
        real = np.pad(MASK, [(0, 0), (0, 2)]).reshape(4, 6, *[1] * (x.ndim - 2))
        return np.where(real, wide, filling * rng.normal(size=wide.shape))

    dirty = ARRAYS._replace(
        word=padded(ARRAYS.word, 100), word_logit=padded(ARRAYS.word_logit, 1e4), mask=np.pad(MASK, [(0, 0), (0, 2)])
    )
    loss, _, gradient = loss_and_gradient(ARRAYS, CONFIG)
    dirty_loss, _, dirty_gradient = loss_and_gradient(dirty, CONFIG)
    assert_close(dirty_loss, loss, 1e-6)
    for name in ("word", "word_logit"):
        assert np.all(dirty_gradient[name][~dirty.mask] == 0)
        dirty_gradient[name] = dirty_gradient[name][:, :4]
    jax.tree.map(lambda x, y: assert_close(x, y, 2e-6), dirty_gradient, gradient)


def test_permuting_the_batch_leaves_the_loss_and_permutes_its_gradient():
    order = np.array([2, 3, 1, 0])
    loss, _, gradient = loss_and_gradient(ARRAYS, CONFIG)
    after, _, gradient_after = loss_and_gradient(permuted(ARRAYS, order), CONFIG)
    assert_close(after, loss, 1e-6)
    for name, found in gradient_after.items():
        assert_close(found, gradient[name][order], 2e-6)


def test_the_loss_of_bfloat16_features_is_computed_in_float32():
    rounded = oracle.Arrays(*(x if x.dtype == bool else np.asarray(x.astype(jnp.bfloat16), np.float64) for x in ARRAYS))
    loss, metrics, _ = loss_and_gradient(ARRAYS, CONFIG, jnp.bfloat16)
    assert {x.dtype for x in metrics.values()} == {jnp.dtype(jnp.float32)}
    assert_close(loss, oracle.plan_loss(rounded, CONFIG))  # nothing but the features themselves was rounded
    np.testing.assert_allclose(loss, oracle.plan_loss(ARRAYS, CONFIG), atol=1e-2)


@pytest.mark.parametrize(("global_weight", "local_weight"), [(0.3, 0.9), (1.0, 0.0), (0.0, 1.0)])
def test_the_score_of_an_image_and_a_text_is_the_weighted_sum_of_both_similarities(global_weight, local_weight):
    evaluation = EvaluationConfig(global_weight=global_weight, local_weight=local_weight)
    some = oracle.random_arrays(7, 2, MASK, patches=5, dim=4)  # two images, four texts
    images, texts = some.features()
    score = image_text_score(images, texts, config=Config(alignment=ALIGNMENT, evaluation=evaluation))
    cosine = np.array([[image @ text for text in some.text_pooled] for image in some.image_pooled])
    assert_close(global_similarity(images, texts), cosine, 1e-6)
    assert_close(score, global_weight * cosine + local_weight * oracle.word_patch_similarity(some, ALIGNMENT))
