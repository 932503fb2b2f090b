import numpy as np
import pytest
from scipy.stats import ttest_1samp

from plan_jax.bootstrap import differences_of, interval, interval_of, intervals_of


def test_values_without_spread_have_an_interval_without_width():
    assert interval(np.full(7, 0.25), np.arange(7), resamples=50, seed=0) == {"value": 0.25, "low": 0.25, "high": 0.25}


def test_the_interval_of_a_mean_agrees_with_the_normal_approximation():
    values = np.random.default_rng(0).normal(3, 2, 2000)
    found = interval(values, np.arange(2000), resamples=4000, seed=0)
    half = 1.96 * values.std() / np.sqrt(2000)
    assert found["value"] == pytest.approx(values.mean())
    assert found["low"] == pytest.approx(values.mean() - half, abs=0.1 * half)
    assert found["high"] == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_two_patients_give_the_known_distribution():
    # Patient a has 0 three times, patient b has 1: means 0 (1/4 of the resamples), 1/4 (1/2), 1 (1/4).
    found = interval(np.array([0.0, 0, 0, 1]), np.array(["a", "a", "a", "b"]), resamples=400, seed=0)
    assert found == {"value": 0.25, "low": 0.0, "high": 1.0}


def test_repeated_observations_of_a_patient_do_not_narrow_the_interval():
    values = np.random.default_rng(1).normal(size=40)
    once = interval(values, np.arange(40), resamples=500, seed=2)
    often = interval(np.repeat(values, 9), np.repeat(np.arange(40), 9), resamples=500, seed=2)
    assert often == pytest.approx(once)
    as_if_independent = interval(np.repeat(values, 9), np.arange(360), resamples=500, seed=2)
    assert as_if_independent["high"] - as_if_independent["low"] < 0.5 * (once["high"] - once["low"])


def test_the_order_of_observations_and_the_names_of_groups_do_not_matter():
    rng = np.random.default_rng(3)
    values, groups = rng.normal(size=30), rng.integers(0, 9, 30)
    order = rng.permutation(30)
    shuffled = interval(values[order], groups[order], resamples=200, seed=0)
    renamed = interval(values, np.array([f"patient {g}" for g in groups]), resamples=200, seed=0)
    expected = interval(values, groups, resamples=200, seed=0)
    assert shuffled == pytest.approx(expected)
    assert renamed == pytest.approx(expected)


def test_the_seed_decides_the_resamples():
    values, groups = np.random.default_rng(4).normal(size=50), np.arange(50)
    first = interval(values, groups, resamples=100, seed=7)
    assert interval(values, groups, resamples=100, seed=7) == first
    assert interval(values, groups, resamples=100, seed=8) != first


def test_classes_weigh_the_same_however_many_observations_they_have():
    values = np.array([1.0] * 90 + [0.0] * 10)
    classes = np.array(["a"] * 90 + ["b"] * 10)
    assert interval(values, np.arange(100), classes=classes, resamples=100, seed=0)["value"] == pytest.approx(0.5)
    assert interval(values, np.arange(100), resamples=100, seed=0)["value"] == pytest.approx(0.9)


def test_macro_interval_equals_a_plain_loop_that_leaves_absent_classes_out():
    rng = np.random.default_rng(5)
    values, groups = rng.normal(size=12), rng.integers(0, 4, 12)
    classes = rng.integers(0, 6, 12)

    def macro(rows):
        return np.mean([values[rows][classes[rows] == c].mean() for c in np.unique(classes[rows])])

    absent = [c for c in np.unique(classes) if len(np.unique(groups[classes == c])) == 1]
    assert absent  # otherwise no resample loses a class and the test shows nothing
    found = interval(values, groups, classes=classes, resamples=300, seed=1)
    assert found == pytest.approx(interval_of(macro, groups, resamples=300, seed=1))


def test_a_statistic_of_indices_sees_whole_patients():
    groups = np.array([0, 0, 0, 1, 2, 2])
    seen = []
    interval_of(lambda rows: seen.append(np.bincount(rows, minlength=6)) or 0.0, groups, resamples=50, seed=0)
    assert seen[0].tolist() == [1] * 6
    for counts in seen:
        assert len(set(counts[:3])) == 1
        assert counts[4] == counts[5]
        assert counts[0] + counts[3] + counts[4] == 3


def test_statistics_undefined_in_some_resamples_use_the_others():
    labels = np.array([True, False, False])

    def statistics(rows):
        always = {"share": labels[rows].mean()}
        return always | ({"both": 1.0} if 0 < labels[rows].sum() < len(rows) else {})

    found = intervals_of(statistics, np.arange(3), resamples=200, seed=0)
    assert found["both"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    assert found["share"]["low"] == 0


def mean_of(values):
    return lambda rows: {"mean": float(values[rows].mean())}


def test_a_difference_is_paired_and_so_narrower_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.normal(0, 3, 400)
    one, other = hard + 0.3 + rng.normal(0, 0.1, 400), hard
    found = differences_of(mean_of(one), mean_of(other), np.arange(400), resamples=500, seed=0)["mean"]
    assert found["value"] == pytest.approx((one - other).mean())
    assert found["high"] - found["low"] < 0.05
    assert found["low"] > 0
    assert found["p"] == 2 / 500  # no resample is on the other side


def test_a_model_is_no_better_than_itself():
    values = np.random.default_rng(0).normal(size=50)
    found = differences_of(mean_of(values), mean_of(values), np.arange(50), resamples=100, seed=0)
    assert found == {"mean": {"value": 0.0, "low": 0.0, "high": 0.0, "p": 1.0}}


def test_the_p_value_is_near_that_of_a_t_test():
    noise = np.random.default_rng(1).normal(size=300)
    values = (noise - noise.mean()) / noise.std() + 0.12
    found = differences_of(mean_of(values), mean_of(0 * values), np.arange(300), resamples=4000, seed=0)["mean"]
    assert found["p"] == pytest.approx(ttest_1samp(values, 0).pvalue, abs=0.01)


def test_a_statistic_that_one_side_lacks_has_no_difference():
    found = differences_of(lambda _: {"a": 1.0, "b": 2.0}, lambda _: {"a": 0.5}, np.arange(4), resamples=9, seed=0)
    assert found.keys() == {"a"}


def test_broken_values_are_refused():
    with pytest.raises(ValueError, match="finite"):
        interval(np.array([1.0, np.nan]), np.arange(2), resamples=10, seed=0)
    with pytest.raises(ValueError, match="at least one"):
        interval(np.array([]), np.array([]), resamples=10, seed=0)


def test_one_observation_has_its_value_as_interval():
    assert interval(np.array([2.0]), np.array([5]), resamples=10, seed=0) == {"value": 2.0, "low": 2.0, "high": 2.0}
