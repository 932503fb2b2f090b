import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import roc_auc_score

from plan_jax.metrics import grounding as metrics

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
