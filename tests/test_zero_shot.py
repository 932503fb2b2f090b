"""Zero-shot classification, from a model's answers to the results."""

import dataclasses

import numpy as np
import pytest
from fakes import ByNumber, Records, data_set, record, values
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from plan_jax.bootstrap import intervals_of
from plan_jax.data.build import build
from plan_jax.data.covidx import CLASSES as COVIDX
from plan_jax.data.fake import fake
from plan_jax.data.records import open_split
from plan_jax.errors import InputError
from plan_jax.evaluation import zero_shot
from plan_jax.evaluation.features import SplitImages, encode_split
from plan_jax.evaluation.linear_probe import evaluate_linear_probe
from plan_jax.evaluation.prompts import prompts_of
from plan_jax.evaluation.retrieval import evaluate_retrieval
from plan_jax.evaluation.zero_shot import class_scores, evaluate_zero_shot, statistics_of

AVERAGES = {"auroc", "auprc", "accuracy", "precision_macro", "recall_macro", "f1_macro"}


@pytest.fixture(scope="module")
def train(phantom_data):
    return open_split(phantom_data, "train")


@pytest.fixture(scope="module")
def images(plan, phantom_data) -> SplitImages:
    return encode_split(plan, open_split(phantom_data, "test"), "a test")


@pytest.fixture
def in_memory(monkeypatch):
    """Makes the splits of `data_set` those that the evaluation opens."""

    def made(splits):
        monkeypatch.setattr(zero_shot, "open_split", lambda directory, name: splits[name])
        return splits["test"]

    return made


def pneumonia(number: int):
    return record(number, labels=("pneumonia",) if number % 2 else ())


def test_scores_that_are_the_labels_are_perfect_and_their_inverse_is_not(monkeypatch, plan, train):
    def truth(_, images, classes, data_set):
        assert data_set == "phantom"
        return images.label_matrix(classes).astype(float)

    monkeypatch.setattr(zero_shot, "class_scores", truth)
    results, samples = evaluate_zero_shot(plan, train)
    assert values(results, AVERAGES) == dict.fromkeys(AVERAGES, 1.0)
    assert len(results["per_class"]) == 8
    assert all(part[name]["value"] == 1 for part in results["per_class"].values() for name in ("auroc", "f1"))
    assert results["chance"]["auroc"] == 0.5
    assert (results["n"], results["classes"], results["thresholds"]) == (len(train), "independent", "validation")
    assert {len(column) for name, column in samples.items() if "/" not in name} == {len(train)}
    found = intervals_of(statistics_of(samples), samples["patient"], resamples=20, seed=0)
    assert {name: found[name] for name in AVERAGES} == {name: results[name] for name in AVERAGES}
    assert found["per_class/nodule/f1"] == results["per_class"]["nodule"]["f1"]

    monkeypatch.setattr(zero_shot, "class_scores", lambda *arguments: -truth(*arguments))
    assert evaluate_zero_shot(plan, train)[0]["auroc"]["value"] == 0


def test_one_class_has_the_threshold_of_the_validation_split(tmp_path, in_memory):
    test = in_memory(
        data_set(
            tmp_path,
            "rsna",
            ["pneumonia"],
            test=[pneumonia(number) for number in (1, 2, 3, 4, 6, 9)],
            validation=[pneumonia(number) for number in (5, 7, 8)],
        )
    )
    plan = ByNumber(lambda image, text: image * np.ones_like(text), number_of=lambda _: 1.0, truncate=False)
    results, samples = evaluate_zero_shot(plan, test)
    # of the validation scores 5, 7 (positive) and 8, F1 is best from 5 on
    assert samples["classes/thresholds"] == [5]
    labels, scores = np.array([1, 0, 1, 0, 0, 1], bool), np.array([1, 2, 3, 4, 6, 9])
    expected = {
        "auroc": roc_auc_score(labels, scores),
        "auprc": average_precision_score(labels, scores),
        "accuracy": (labels == (scores >= 5)).mean(),
        "f1_macro": f1_score(labels, scores >= 5),
    }
    assert values(results, expected) == pytest.approx(expected)
    assert results["per_class"].keys() == {"pneumonia"}


def test_without_a_validation_split_there_is_no_threshold_and_nothing_that_needs_one(tmp_path):
    made = [pneumonia(number) for number in range(1, 7)]
    test = data_set(tmp_path, "siim", ["pneumonia"], test=made, validation=[])["test"]
    plan = ByNumber(lambda image, text: image % 2 + 0 * text, number_of=lambda _: 1.0, truncate=False)
    results, _ = evaluate_zero_shot(plan, test)
    assert results["auroc"]["value"] == results["auprc"]["value"] == 1
    assert results["thresholds"] == "none"
    assert not {"accuracy", "f1_macro"} & (results.keys() | results["chance"].keys())
    assert results["per_class"]["pneumonia"].keys() == {"auroc", "auprc"}


def test_classes_without_both_labels_are_named_and_left_out(tmp_path):
    made = [record(number, labels=("all", "some") if number == 1 else ("all",)) for number in (1, 2)]
    test = data_set(tmp_path, "siim", ["all", "none", "some"], test=made)["test"]
    plan = ByNumber(lambda image, text: -image + 0 * text, number_of=lambda _: 1.0, truncate=False)
    results, _ = evaluate_zero_shot(plan, test)
    assert results["excluded"] == ["all", "none"]
    assert results["per_class"].keys() == {"some"}
    one = data_set(tmp_path, "siim", ["all", "none", "some"], test=made[:1])["test"]
    results, _ = evaluate_zero_shot(plan, one)
    assert (results["excluded"], results["per_class"], results["chance"]) == (["all", "none", "some"], {}, {})


PROMPT = {prompt: float(n) for n, name in enumerate(COVIDX) for prompt in prompts_of(name, "covidx")}


def covidx(tmp_path) -> Records:
    made = [record(number, labels=(COVIDX[number % 3],)) for number in range(3, 15)]
    return data_set(tmp_path, "covidx", COVIDX, test=made)["test"]


@pytest.mark.parametrize(
    ("score_of", "accuracy", "auroc"),
    [
        (lambda image, text: image % 3 == text, 1, 1),
        (lambda image, text: image % 3 != text, 0, 0),
        (lambda image, text: 0 * (image + text), 1 / 3, 0.5),
        (lambda image, text: text == 1 + 0 * image, 1 / 3, 0.5),  # always the same class
    ],
    ids=["perfect", "worst", "constant", "one answer"],
)
def test_of_exclusive_classes_the_highest_is_chosen(score_of, accuracy, auroc, tmp_path):
    plan = ByNumber(lambda *pair: score_of(*pair).astype(float), number_of=PROMPT.get, truncate=False)
    results, _ = evaluate_zero_shot(plan, covidx(tmp_path))
    found = values(results, ("accuracy", "recall_macro", "auroc"))
    assert found == pytest.approx({"accuracy": accuracy, "recall_macro": accuracy, "auroc": auroc})
    assert results["classes"] == "exclusive"
    assert results["chance"]["accuracy"] == pytest.approx(1 / 3)
    assert results["per_class"].keys() == set(COVIDX)


def test_exclusive_classes_need_one_label_each(tmp_path):
    test = data_set(tmp_path, "covidx", COVIDX, test=[record(1, labels=COVIDX[:2])])["test"]
    plan = ByNumber(lambda image, text: image + text, number_of=PROMPT.get, truncate=False)
    with pytest.raises(InputError, match="exactly one label"):
        evaluate_zero_shot(plan, test)


def test_data_without_classes_or_records_is_refused(tmp_path):
    plan = ByNumber(lambda image, text: image + text)
    with pytest.raises(InputError, match="must have classes"):
        evaluate_zero_shot(plan, data_set(tmp_path, "openi", test=[record(1)])["test"])
    with pytest.raises(InputError, match="must hold records"):
        evaluate_zero_shot(plan, data_set(tmp_path, "siim", ["pneumothorax"], test=[])["test"])


def test_a_built_data_set_of_exclusive_classes_is_scored_by_every_task(plan, tmp_path):
    fake("covidx", out=tmp_path / "raw")
    build("covidx", raw=tmp_path / "raw", out=tmp_path / "data", jobs=1)
    split = open_split(tmp_path / "data", "test")
    longer = dataclasses.replace(plan.config.data, max_tokens=128)  # the phantom's word pieces are letters here
    plan = dataclasses.replace(plan, config=dataclasses.replace(plan.config, data=longer))
    results, samples = evaluate_zero_shot(plan, split)
    assert (results["classes"], results["n"]) == ("exclusive", len(split))
    assert set(samples["labels"].sum(axis=1)) == {1}
    assert evaluate_retrieval(plan, split)[0]["texts"] == "prompts"
    assert "accuracy" in evaluate_linear_probe(plan, split)[0]


def configured(plan, **fields):
    evaluation = dataclasses.replace(plan.config.evaluation, **fields)
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, evaluation=evaluation))


@pytest.mark.parametrize("merge", ["mean", "max"])
def test_a_class_score_is_the_mean_or_the_highest_of_its_prompts(merge, plan, images):
    asked = plan if merge == "mean" else configured(plan, prompt_aggregation=merge)
    scores = class_scores(asked, images, ("cavity", "nodule", "Elsewhere Seen"))
    assert scores.shape == (len(images.reports), 3)
    for column, prompts in enumerate((prompts_of("cavity"), prompts_of("nodule"), ("there is elsewhere seen",))):
        alone = [plan.score(images.features, plan.encode_texts([prompt]))[:, 0] for prompt in prompts]
        np.testing.assert_allclose(scores[:, column], getattr(np, merge)(alone, axis=0), atol=2e-6)


def test_a_class_score_depends_on_no_other_image(plan, images, phantom_data):
    classes = ("nodule", "effusion")
    together, split = class_scores(plan, images, classes), open_split(phantom_data, "test")
    for index in (0, len(split) - 1):
        alone = class_scores(plan, encode_split(plan, Records([split[index]]), "a test"), classes)
        np.testing.assert_allclose(alone[0], together[index], atol=2e-6)


def test_as_an_option_scores_are_standardised_over_the_split(plan, images):
    scores = class_scores(configured(plan, normalise="zscore_over_test_set"), images, ("nodule", "effusion"))
    np.testing.assert_allclose(scores.mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scores.std(axis=0), 1, atol=1e-5)


def test_a_prompt_that_is_too_long_is_refused(plan, images):
    with pytest.raises(InputError, match="must have at most 24 words"):
        class_scores(plan, images, ("word " * 30,))


def test_a_split_is_encoded_image_by_image_as_it_stands(plan, images, phantom_data):
    split = open_split(phantom_data, "test")
    assert images.reports == [split[index].report for index in range(len(split))]
    assert list(images.patients) == [split[index].patient for index in range(len(split))]
    assert list(images.keys) == [split[index].key for index in range(len(split))]
    assert len(images.features.pooled) == len(images.features.patch) == len(split)
