import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.metrics import (
    accuracy_score,
    average_precision_score,
    f1_score,
    precision_recall_fscore_support,
    roc_auc_score,
)

from plan_jax.metrics import classification as metrics

# Few levels, so that ties are frequent; quarters are exact in binary.
LEVELS = st.integers(-4, 4).map(lambda quarter: quarter / 4)


def pairwise_auroc(scores, labels):
    """The share of pairs of a positive and a negative in which the positive is ahead, ties one half."""
    pairs = [(p > n) + 0.5 * (p == n) for p in scores[labels] for n in scores[~labels]]
    return np.mean(pairs)


@given(arrays(np.float64, 8, elements=LEVELS), arrays(np.bool_, 8).filter(lambda x: x.any() and not x.all()))
def test_auroc_equals_a_loop_over_all_pairs(scores, labels):
    assert metrics.auroc(scores, labels) == pytest.approx(pairwise_auroc(scores, labels))
    assert metrics.auroc(scores, labels) == pytest.approx(roc_auc_score(labels, scores))


def test_auroc_of_one_label_is_refused():
    for labels in (np.zeros(3, bool), np.ones(3, bool)):
        with pytest.raises(ValueError, match="positive and negative"):
            metrics.auroc(np.arange(3.0), labels)


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


def test_independent_classes_of_hand_worked_scores():
    scores = np.array([[0.9, 0.1, 0.5], [0.2, 0.8, 0.5], [0.6, 0.7, 0.5], [0.1, 0.3, 0.5]])
    labels = np.array([[1, 0, 0], [0, 1, 0], [0, 0, 0], [1, 1, 0]], bool)
    predicted = scores >= np.array([0.5, 0.75, 0.5])
    found = metrics.classification_metrics(scores, labels, predicted, ("nodule", "bulla", "mass"), single=False)
    assert metrics.scorable_classes(labels, single=False).tolist() == [True, True, False]
    # nodule: .9, .1 positive among .9 .6 .2 .1: precision 1 at the first and 2/4 at the last
    nodule = {"auroc": 0.5, "auprc": 0.75, "accuracy": 0.5, "precision": 0.5, "recall": 0.5, "f1": 0.5}
    bulla = {"auroc": 0.75, "auprc": 5 / 6, "accuracy": 0.75, "precision": 1, "recall": 0.5, "f1": 2 / 3}
    expected = {f"per_class/nodule/{name}": value for name, value in nodule.items()}
    expected |= {f"per_class/bulla/{name}": value for name, value in bulla.items()}
    for name, value in nodule.items():
        expected[metrics.MACRO[name]] = (value + bulla[name]) / 2
    assert found == pytest.approx(expected)


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, (6, 3), elements=LEVELS), arrays(np.bool_, (6, 3)))
def test_independent_classes_equal_scikit_learn(scores, labels):
    found = metrics.classification_metrics(scores, labels, scores >= 0, ("a", "b", "c"), single=False)
    rows = []
    for column, name in enumerate("abc"):
        truth, called = labels[:, column], scores[:, column] >= 0
        if truth.all() or not truth.any():
            assert not [metric for metric in found if f"/{name}/" in metric]
            continue
        precision, recall, f1, _ = precision_recall_fscore_support(truth, called, average="binary", zero_division=0)
        row = {
            "auroc": roc_auc_score(truth, scores[:, column]),
            "auprc": average_precision_score(truth, scores[:, column]),
            "accuracy": accuracy_score(truth, called),
            "precision": precision,
            "recall": recall,
            "f1": f1,
        }
        assert {metric: found[f"per_class/{name}/{metric}"] for metric in row} == pytest.approx(row)
        rows.append(row)
    totals = {metrics.MACRO[metric]: np.mean([row[metric] for row in rows]) for metric in (rows or [{}])[0]}
    assert {name: value for name, value in found.items() if "/" not in name} == pytest.approx(totals)


@settings(max_examples=40, deadline=None)
@given(
    arrays(np.float64, (6, 3), elements=st.floats(-1, 1)).filter(lambda s: all(len(set(r)) == 3 for r in s.tolist()))
)
def test_exclusive_classes_equal_scikit_learn(scores):
    truth = np.array([0, 1, 2, 0, 1, 1])
    labels = np.eye(3, dtype=bool)[truth]
    found = metrics.classification_metrics(scores, labels, metrics.chosen(scores), ("a", "b", "c"), single=True)
    best = scores.argmax(axis=1)
    precision, recall, f1, _ = precision_recall_fscore_support(truth, best, average="macro", zero_division=0)
    expected = {
        "accuracy": accuracy_score(truth, best),
        "precision_macro": precision,
        "recall_macro": recall,
        "f1_macro": f1,
        "auroc": roc_auc_score(labels, scores, average="macro"),
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected)


def test_of_exclusive_classes_that_score_the_same_each_is_chosen_as_likely():
    same = np.zeros((4, 4))
    labels = np.eye(4, dtype=bool)
    np.testing.assert_array_equal(metrics.chosen(same), np.full((4, 4), 0.25))
    np.testing.assert_array_equal(metrics.chosen(np.array([[1.0, 2.0, 2.0]])), [[0, 0.5, 0.5]])
    found = metrics.classification_metrics(same, labels, metrics.chosen(same), "abcd", single=True)
    assert found["accuracy"] == found["f1_macro"] == 0.25
    assert found["auroc"] == 0.5


def test_an_exclusive_class_that_no_image_has_enters_no_average():
    scores = np.array([[0.9, 0.1, 0.2], [0.3, 0.8, 0.4]])
    labels = np.array([[1, 0, 0], [0, 1, 0]], bool)
    found = metrics.classification_metrics(scores, labels, metrics.chosen(scores), "abc", single=True)
    assert found["recall_macro"] == found["accuracy"] == 1
    assert not [name for name in found if "/c/" in name]
    alone = metrics.classification_metrics(scores[:1], labels[:1], metrics.chosen(scores[:1]), "abc", single=True)
    assert alone["accuracy"] == alone["f1_macro"] == 1
    assert "auroc" not in alone


def test_without_a_usable_class_or_a_prediction_there_are_no_such_metrics():
    one = np.array([[0.3]])
    assert metrics.classification_metrics(one, np.array([[True]]), one > 0, ("nodule",), single=False) == {}
    two = np.array([[0.3], [0.6]])
    found = metrics.classification_metrics(two, np.array([[False], [True]]), None, ("nodule",), single=False)
    assert found == {"per_class/nodule/auroc": 1, "per_class/nodule/auprc": 1, "auroc": 1, "auprc": 1}


def test_scores_are_standardised_class_by_class():
    scores = np.array([[1.0, 5.0], [3.0, 5.0]])
    np.testing.assert_array_equal(metrics.standardised(scores), [[-1, 0], [1, 0]])
