import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import f1_score, roc_auc_score

from plan_jax import metrics

# Few levels, so that ties are frequent; quarters are exact in binary.
LEVELS = st.integers(-4, 4).map(lambda quarter: quarter / 4)
MAPS = arrays(np.float64, (3, 4), elements=LEVELS)
TRUTHS = arrays(np.bool_, (3, 4)).filter(metrics.scorable)


def test_cnr_of_a_hand_worked_map():
    values = np.array([[4.0, 6.0, 1.0], [0.0, 2.0, 1.0]])
    truth = np.array([[True, True, False], [False, False, False]])
    # inside 4, 6: mean 5, variance 2. outside 1, 0, 2, 1: mean 1, variance 2/3. (5 - 1) / sqrt(8/3)
    assert metrics.cnr(values, truth) == pytest.approx(4 / np.sqrt(8 / 3))
    assert metrics.cnr(-values, truth) == pytest.approx(-4 / np.sqrt(8 / 3))


def test_own_above_others_counts_the_findings_that_the_map_prefers_less():
    values = np.array([[5.0, 1.0, 5.0], [9.0, 0.0, 0.0]])
    own, lower, equal, higher = (np.zeros((2, 3), bool) for _ in range(4))
    own[0, 0] = lower[0, 1] = equal[0, 2] = higher[1, 0] = True
    assert metrics.own_above_others(values, own, (lower,)) == 1
    assert metrics.own_above_others(values, own, (equal,)) == 0.5
    assert metrics.own_above_others(values, own, (higher, lower)) == 0.5
    assert np.isnan(metrics.own_above_others(values, own, ()))


def test_cnr_is_finite_where_the_formula_is_not():
    truth = np.zeros((4, 5), bool)
    truth[1, 2] = True
    assert metrics.cnr(np.full((4, 5), 0.1, np.float32), truth) == 0
    assert metrics.cnr(np.full((4, 5), 0.1), np.indices((4, 5)).sum(0) % 3 == 0) == 0
    assert metrics.cnr(truth.astype(float), truth) == metrics.CNR_LIMIT
    assert metrics.cnr(-truth.astype(float), truth) == -metrics.CNR_LIMIT
    one_inside = np.arange(20.0).reshape(4, 5)  # one pixel has variance 0
    outside = np.delete(one_inside.ravel(), 7)
    assert metrics.cnr(one_inside, truth) == pytest.approx((7 - outside.mean()) / outside.std(ddof=1))


@given(MAPS, TRUTHS, st.floats(0.01, 100), st.floats(-10, 10))
def test_cnr_ignores_scale_and_offset_and_changes_sign_with_the_map(values, truth, scale, offset):
    expected = metrics.cnr(values, truth)
    assert metrics.cnr(scale * values + offset, truth) == pytest.approx(expected, abs=1e-6)
    assert metrics.cnr(-values, truth) == pytest.approx(-expected)


@given(MAPS, TRUTHS)
def test_iou_counts_pixels_above_the_threshold(values, truth):
    for threshold, found in zip(metrics.IOU_THRESHOLDS, metrics.iou_at_thresholds(values, truth), strict=True):
        predicted = {index for index in np.ndindex(values.shape) if values[index] > threshold}
        true = {index for index in np.ndindex(values.shape) if truth[index]}
        assert found == pytest.approx(len(predicted & true) / len(predicted | true))


def test_miou_of_a_hand_worked_map():
    values = np.array([[0.45, 0.25, -0.9, 0.05]])
    truth = np.array([[True, False, False, False]])
    # raw: above .1 and .2 two pixels (1/2), above .3 and .4 one (1), above .5 none (0)
    assert metrics.miou_raw(values, truth) == pytest.approx((0.5 + 0.5 + 1 + 1 + 0) / 5)
    # scaled by (x + .9) / 1.35: 1, .85, 0, .70: always three pixels
    assert metrics.miou_minmax(values, truth) == pytest.approx(1 / 3)


def test_an_empty_prediction_counts_zero():
    truth = np.array([[True, False]])
    assert metrics.miou_raw(np.array([[-0.2, -0.9]]), truth) == 0
    assert metrics.miou_minmax(np.full((1, 2), 0.7), truth) == 0
    assert metrics.miou_raw(np.full((1, 2), 0.7), truth) == pytest.approx(0.5)


def test_pointing_gives_tied_peaks_their_share():
    truth = np.array([[True, True, False, False, False]])
    assert metrics.pointing(np.array([[0.1, 0.9, 0.2, 0.3, 0.4]]), truth) == 1
    assert metrics.pointing(np.array([[0.1, 0.2, 0.9, 0.3, 0.4]]), truth) == 0
    assert metrics.pointing(np.array([[0.1, 0.9, 0.9, 0.9, 0.4]]), truth) == pytest.approx(1 / 3)
    assert metrics.pointing(np.zeros((1, 5)), truth) == pytest.approx(0.4)


@given(MAPS, TRUTHS)
def test_rank_metrics_ignore_monotone_changes(values, truth):
    bent = np.exp(3 * values)
    assert metrics.pointing(bent, truth) == metrics.pointing(values, truth)
    assert metrics.pixel_auroc(bent, truth) == metrics.pixel_auroc(values, truth)


@given(MAPS, TRUTHS)
def test_auroc_equals_scikit_learn_also_with_ties(values, truth):
    assert metrics.pixel_auroc(values, truth) == pytest.approx(roc_auc_score(truth.ravel(), values.ravel()))


def test_auroc_of_a_constant_map_is_one_half_and_of_one_label_an_error():
    truth = np.array([[True, False, False]])
    assert metrics.pixel_auroc(np.ones((1, 3)), truth) == 0.5
    with pytest.raises(ValueError, match="positive and negative"):
        metrics.auroc(np.arange(3.0), np.zeros(3, bool))


def test_grounding_metrics_are_the_single_ones_under_their_public_names():
    rng = np.random.default_rng(0)
    values, truth = rng.normal(size=(64, 64)), rng.random((64, 64)) < 0.1
    found = metrics.grounding_metrics(values, truth)
    assert tuple(found) == metrics.GROUNDING_METRICS
    assert found["cnr_abs"] == abs(found["cnr_signed"])
    assert found["cnr_signed"] == metrics.cnr(values, truth)
    assert found["auroc"] == metrics.pixel_auroc(values, truth)
    assert all(type(value) is float for value in found.values())


def test_unscorable_truths_and_broken_maps_are_refused():
    values = np.ones((2, 2))
    for truth in (np.zeros((2, 2), bool), np.ones((2, 2), bool)):
        assert not metrics.scorable(truth)
        with pytest.raises(ValueError, match="inside and outside"):
            metrics.grounding_metrics(values, truth)
    some = np.array([[True, False], [False, False]])
    with pytest.raises(ValueError, match="finite"):
        metrics.grounding_metrics(np.array([[np.nan, 0], [0, 0]]), some)
    with pytest.raises(ValueError, match="one shape"):
        metrics.grounding_metrics(np.ones((2, 3)), some)


def expected_hits_by_orders(scores, owned, k):
    """Share of all orders that respect the scores in which an own candidate is among the first k."""
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    firsts = [next(place for place, index in enumerate(order) if owned[index]) + 1 for order in orders]
    return np.mean([first <= k for first in firsts]), np.mean(firsts)


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float64, (5, 4), elements=st.sampled_from([0.0, 1.0, 2.0])),
    arrays(np.int64, 5, elements=st.integers(0, 3)),
)
def test_ranks_equal_the_mean_over_all_orders_of_ties(scores, image_group):
    image_group = np.unique(image_group, return_inverse=True)[1]
    text_group = np.unique(image_group)
    scores = scores[:, : len(text_group)]
    ranks = metrics.retrieval_ranks(scores, image_group, text_group)
    for direction, matrix, owned in (
        ("image_to_text", scores, image_group[:, None] == text_group),
        ("text_to_image", scores.T, text_group[:, None] == image_group),
    ):
        for k in (1, 2, 3):
            oracle = [expected_hits_by_orders(row, own, k) for row, own in zip(matrix, owned, strict=True)]
            np.testing.assert_allclose(metrics.hits(ranks[direction], k), [hit for hit, _ in oracle])
            np.testing.assert_allclose(metrics.expected_rank(ranks[direction]), [rank for _, rank in oracle])


def test_retrieval_of_a_hand_worked_matrix():
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.1, 0.2, 0.3]])
    found = metrics.retrieval_metrics(metrics.retrieval_ranks(scores, np.arange(3), np.arange(3)))
    # image to text: ranks 1, 3, 1. text to image: ranks 1, 1, 2.
    assert found["r@1_image_to_text"] == pytest.approx(2 / 3)
    assert found["r@5_image_to_text"] == 1
    assert found["median_rank_image_to_text"] == 1
    assert found["r@1_text_to_image"] == pytest.approx(2 / 3)
    assert set(found) == {
        f"{name}_{way}" for name in ("r@1", "r@5", "r@10", "median_rank") for way in ("image_to_text", "text_to_image")
    }


def test_identical_texts_count_as_one():
    scores = np.array([[0.5, 0.9, 0.9], [0.1, 0.7, 0.7], [0.2, 0.4, 0.4]])
    image_group, text_group = np.array([4, 8, 8]), np.array([4, 8, 8])
    ranks = metrics.retrieval_ranks(scores, image_group, text_group)
    assert metrics.expected_rank(ranks["image_to_text"]).tolist() == [2, 1, 1]  # the two copies are one rival
    assert ranks["text_to_image"].query.tolist() == [0, 1]
    assert metrics.expected_rank(ranks["text_to_image"]).tolist() == [1, 2]


def test_a_constant_score_gives_exactly_chance():
    n = 20
    found = metrics.retrieval_metrics(metrics.retrieval_ranks(np.zeros((n, n)), np.arange(n), np.arange(n)))
    for way in ("image_to_text", "text_to_image"):
        assert found[f"r@1_{way}"] == pytest.approx(1 / n)
        assert found[f"r@10_{way}"] == pytest.approx(10 / n)
        assert found[f"median_rank_{way}"] == (n + 1) / 2


def test_pools_score_each_image_among_its_pool_only():
    rng = np.random.default_rng(0)
    group = rng.integers(0, 40, 50)
    scores = rng.normal(size=(50, 40))[:, group]  # identical texts score the same
    ranks = metrics.pooled_ranks(scores, group, group, pool=20, seed=3)
    asked = ranks["image_to_text"].query
    assert len(asked) == 40
    assert len(set(asked.tolist())) == 40
    one_pool = np.sort(asked[:20])
    alone = metrics.retrieval_ranks(scores[np.ix_(one_pool, one_pool)], group[one_pool], group[one_pool])
    of_image = dict(zip(asked[:20], metrics.expected_rank(ranks["image_to_text"])[:20], strict=True))
    expected = dict(zip(one_pool, metrics.expected_rank(alone["image_to_text"]), strict=True))
    assert of_image == expected
    texts = ranks["text_to_image"].query
    assert set(group[texts].tolist()) == set(group[asked].tolist())


def test_retrieval_refuses_what_it_cannot_rank():
    square = np.zeros((2, 2))
    with pytest.raises(ValueError, match="own a text"):
        metrics.retrieval_ranks(square, np.array([0, 1]), np.array([0, 2]))
    with pytest.raises(ValueError, match="finite"):
        metrics.retrieval_ranks(np.array([[np.nan, 0], [0, 0]]), np.arange(2), np.arange(2))
    with pytest.raises(ValueError, match="pool must"):
        metrics.pooled_ranks(square, np.arange(2), np.arange(2), pool=3, seed=0)


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, 8, elements=LEVELS), arrays(np.bool_, 8).filter(np.any))
def test_the_picked_threshold_has_the_best_f1(scores, labels):
    best = max(f1_score(labels, scores >= threshold) for threshold in scores)
    assert f1_score(labels, scores >= metrics.pick_threshold(scores, labels)) == pytest.approx(best)


def test_of_equal_thresholds_the_highest_is_picked_and_without_positives_nothing_passes():
    assert metrics.pick_threshold(np.array([0.9, 0.8, 0.7]), np.array([True, False, True])) == 0.7
    # from .9: precision 1, recall 1/2; from .6: precision 1/2, recall 1: F1 2/3 both
    assert metrics.pick_threshold(np.array([0.9, 0.8, 0.7, 0.6]), np.array([True, False, False, True])) == 0.9
    scores = np.array([0.1, 0.9])
    assert not (scores >= metrics.pick_threshold(scores, np.zeros(2, bool))).any()


def test_zero_shot_of_hand_worked_scores():
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.5], [0.6, 0.7, 0.5], [0.1, 0.3, 0.5]])
    labels = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]], bool)
    found = metrics.zero_shot_metrics(scores, labels, np.array([0.5, 0.75, 0.5]), ("nodule", "bulla", "mass"))
    assert found["excluded"] == ["mass"]
    assert found["per_class"]["nodule"] == pytest.approx({"auroc": 0.5, "accuracy": 0.5, "f1": 0.5})
    assert found["per_class"]["bulla"] == pytest.approx({"auroc": 0.75, "accuracy": 0.75, "f1": 2 / 3})
    assert found["auroc"] == pytest.approx(0.625)
    assert found["accuracy"] == pytest.approx(0.625)
    assert found["f1_macro"] == pytest.approx((0.5 + 2 / 3) / 2)


def test_zero_shot_without_a_usable_class_has_no_averages():
    found = metrics.zero_shot_metrics(np.array([[0.3]]), np.array([[True]]), np.array([0.5]), ("nodule",))
    assert found == {"per_class": {}, "excluded": ["nodule"]}
