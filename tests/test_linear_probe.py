"""The linear probe, from frozen features to the results."""

import dataclasses

import numpy as np
import pytest
from fakes import ByNumber, data_set, record, values
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score

from plan_jax.bootstrap import intervals_of
from plan_jax.data.covidx import CLASSES
from plan_jax.data.records import open_split
from plan_jax.data.splits import fraction_of
from plan_jax.errors import InputError
from plan_jax.evaluation import linear_probe
from plan_jax.evaluation.linear_probe import evaluate_linear_probe, probe, statistics_of

NAMES = ("odd", "third")


class Knowing(ByNumber):
    """Features from which `features_of` a number reads."""

    def __init__(self, features_of, **fields):
        super().__init__(None, **fields)
        self.features_of = features_of

    def encoder_features(self, images):
        return np.array([self.features_of(int(number)) for number in self.encode_images(images).pooled[:, 0]], float)


def several(number: int):
    labels = (("odd",) if number % 2 else ()) + (("third",) if number % 3 == 0 else ())
    return record(number, labels=labels)


@pytest.fixture
def in_memory(monkeypatch):
    def made(splits):
        monkeypatch.setattr(linear_probe, "open_split", lambda directory, name: splits[name])
        return splits["test"]

    return made


@pytest.fixture
def independent(tmp_path, in_memory):
    train, test = ([several(number) for number in range(*span)] for span in ((1, 41), (41, 71)))
    return in_memory(data_set(tmp_path, "nih_cxr14", NAMES, train=train, test=test))


@pytest.fixture
def exclusive(tmp_path, in_memory):
    train, test = (
        [record(number, labels=(CLASSES[number % 3],)) for number in range(*span)] for span in ((1, 41), (41, 71))
    )
    return in_memory(data_set(tmp_path, "covidx", CLASSES, train=train, test=test))


def test_features_that_tell_the_classes_are_perfect_at_every_fraction(independent):
    plan = Knowing(lambda n: [n % 2, n % 3 == 0], fractions=(1.0, 0.25, 0.5))
    results, samples = evaluate_linear_probe(plan, independent)
    assert list(results["fractions"]) == ["0.25", "0.5", "1"]
    for fraction, count in (("0.25", 10), ("0.5", 20), ("1", 40)):
        part = results["fractions"][fraction]
        assert part["auroc"] == {"value": 1, "low": 1, "high": 1}
        assert (part["n_train"], part["excluded"]) == (count, [])
        assert part["per_class"].keys() == set(NAMES)
    assert results["auroc"]["value"] == 1
    assert (results["n"], results["n_train"], results["features"]) == (30, 40, 2)
    assert "accuracy" not in results
    found = intervals_of(statistics_of(samples), samples["patient"], resamples=20, seed=0)
    assert found["fractions/0.25/per_class/odd/auroc"] == results["fractions"]["0.25"]["per_class"]["odd"]["auroc"]


def test_constant_features_are_worth_chance(independent):
    results, _ = evaluate_linear_probe(Knowing(lambda _: [1.0, 2.0], fractions=(1.0,)), independent)
    assert results["auroc"] == {"value": 0.5, "low": 0.5, "high": 0.5}


@pytest.mark.parametrize(
    ("features_of", "auroc", "accuracy"),
    [(lambda n: np.eye(3)[n % 3], 1, 1), (lambda _: np.ones(3), 0.5, None)],
    ids=["perfect", "constant"],
)
def test_exclusive_classes_have_an_accuracy_too(features_of, auroc, accuracy, exclusive):
    results, _ = evaluate_linear_probe(Knowing(features_of, fractions=(0.5, 1.0)), exclusive)
    assert values(results, ("auroc",)) == {"auroc": auroc}
    assert results["fractions"]["0.5"]["auroc"]["value"] == auroc
    if accuracy is not None:
        assert results["accuracy"]["value"] == results["fractions"]["0.5"]["accuracy"]["value"] == accuracy


def test_a_class_that_a_fraction_cannot_learn_is_named_and_left_out(tmp_path, in_memory):
    train = [record(number, labels=("odd",) if number % 2 else ()) for number in range(1, 9)]
    test = in_memory(data_set(tmp_path, "siim", NAMES, train=train, test=[several(n) for n in range(9, 21)]))
    results, _ = evaluate_linear_probe(Knowing(lambda n: [n % 2], fractions=(0.01, 1.0)), test)
    assert results["fractions"]["0.01"] == {"n_train": 1, "excluded": list(NAMES)}
    assert (results["excluded"], results["auroc"]["value"]) == (["third"], 1)


def test_fractions_are_of_patients_and_nested():
    patients = np.repeat([f"p{n}" for n in range(50)], 3)
    small, middle, whole = (set(fraction_of(patients, fraction, seed=42).tolist()) for fraction in (0.01, 0.1, 1.0))
    assert (len(small), len(middle), len(whole)) == (3, 15, 150)
    assert small < middle < whole
    assert len(np.unique(patients[list(small)])) == 1
    shuffled = np.random.default_rng(0).permutation(150)
    again = patients[shuffled][fraction_of(patients[shuffled], 0.1, seed=42)]
    np.testing.assert_array_equal(
        np.unique(again), np.unique(patients[list(middle)])
    )  # whatever the order of the images


def test_the_probe_is_a_logistic_regression_on_standardised_features():
    rng = np.random.default_rng(0)
    train, other = rng.normal(3, 20, size=(60, 4)), rng.normal(3, 20, size=(40, 4))
    labels = np.stack([train[:, 0] + rng.normal(0, 9, 60) > 3, train[:, 1] > train[:, 2], np.zeros(60, bool)], axis=1)
    found = probe(train, labels, other, single=False)
    mean, spread = train.mean(axis=0), train.std(axis=0)
    for column in (0, 1):
        regression = LogisticRegression(C=1.0, max_iter=1000).fit((train - mean) / spread, labels[:, column])
        np.testing.assert_allclose(found[:, column], regression.decision_function((other - mean) / spread), rtol=1e-5)
    assert np.isnan(found[:, 2]).all()
    truth = other[:, 1] > other[:, 2]
    assert roc_auc_score(truth, found[:, 1]) > 0.95


def test_data_without_a_train_split_is_refused(tmp_path):
    test = data_set(tmp_path, "chexpert_5x200", NAMES, test=[several(1)])["test"]
    with pytest.raises(InputError, match="linear_probe needs a data set with one"):
        evaluate_linear_probe(Knowing(lambda n: [n]), test)


def test_a_real_model_is_probed(plan, phantom_data):
    evaluation = dataclasses.replace(plan.config.evaluation, fractions=(0.2, 1.0))
    plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, evaluation=evaluation))
    results, samples = evaluate_linear_probe(plan, open_split(phantom_data, "test"))
    assert set(results["fractions"]) == {"0.2", "1"}
    assert 0 <= results["auroc"]["low"] <= results["auroc"]["value"] <= results["auroc"]["high"] <= 1
    assert results["features"] == 32
    assert samples["scores_1"].shape == samples["labels"].shape == (results["n"], 8)
