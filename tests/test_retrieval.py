"""Report and class retrieval, from a model's answers to the results."""

import numpy as np
import pytest
from fakes import ByNumber, Records, data_set, record, values

from plan_jax.bootstrap import intervals_of
from plan_jax.data.chexpert_5x200 import FINDINGS
from plan_jax.data.records import open_split
from plan_jax.errors import InputError
from plan_jax.evaluation import features
from plan_jax.evaluation.prompts import prompts_of
from plan_jax.evaluation.retrieval import evaluate_retrieval, statistics_of
from plan_jax.metrics.retrieval import retrieval_ranks

RECALL = {
    f"{name}_{way}" for name in ("r@1", "r@5", "r@10", "median_rank") for way in ("image_to_text", "text_to_image")
}
PER_CLASS = 4


@pytest.fixture
def pairs(tmp_path):
    """Data sets of (number of the image, report)."""

    def made(*reports) -> Records:
        numbered = reports if isinstance(reports[0], tuple) else [(int(r.split()[-1]), r) for r in reports]
        return data_set(tmp_path, "openi", test=[record(number, report) for number, report in numbered])["test"]

    return made


@pytest.fixture
def twelve(pairs):
    return pairs(*(f"report {number}" for number in range(1, 13)))


def knows(image, text):
    return -np.abs(image - text)


def constant(image, text):
    return 0 * (image + text)


def test_a_model_that_knows_the_pairs_is_always_right(twelve):
    results, samples = evaluate_retrieval(ByNumber(knows), twelve)
    assert values(results, RECALL) == dict.fromkeys(RECALL, 1.0)
    assert (results["n"], results["pool"]) == (12, 12)
    assert samples["key"].tolist() == [f"r{number}" for number in range(1, 13)]


def test_a_model_that_ranks_its_own_last_is_always_wrong(twelve):
    results, _ = evaluate_retrieval(ByNumber(lambda image, text: -(image == text).astype(float)), twelve)
    assert values(results, RECALL) == {name: 12.0 if name.startswith("median") else 0.0 for name in RECALL}


def test_identical_reports_count_as_one(pairs):
    """Reports 1, 1, 2, 3 of four images are three candidates. Of constant scores, worked by hand: an image finds its
    text first in 1 of 3; the text that two of four images share finds one of them in 1 of 2, the others in 1 of 4."""
    records = pairs((1, "report 1"), (2, "report 1"), (3, "report 2"), (4, "report 3"))
    results, samples = evaluate_retrieval(ByNumber(constant), records)
    assert results["r@1_image_to_text"]["value"] == pytest.approx(1 / 3)
    assert results["r@1_text_to_image"]["value"] == pytest.approx((1 / 2 + 1 / 4 + 1 / 4) / 3)
    assert results["r@5_image_to_text"]["value"] == 1
    assert results["chance"] == pytest.approx(values(results, RECALL))
    np.testing.assert_array_equal(np.isnan(samples["rank_text_to_image"]), [False, True, False, False])
    # a model that confuses the two images of one report makes no mistake
    shared, _ = evaluate_retrieval(ByNumber(lambda image, text: -np.abs(np.maximum(image - 1, 1) - text)), records)
    assert values(shared, RECALL) == dict.fromkeys(RECALL, 1.0)


def test_records_without_a_report_are_left_out_and_counted(pairs):
    records = pairs((1, "report 1"), (2, ""), (3, "report 3"), (4, " ... "))
    results, samples = evaluate_retrieval(ByNumber(knows), records)
    assert (results["n"], results["without_text"]) == (2, 2)
    assert samples["key"].tolist() == ["r1", "r3"]
    assert results["r@1_image_to_text"]["value"] == 1
    with pytest.raises(InputError, match="reports"):
        evaluate_retrieval(ByNumber(constant), pairs((1, "")))


def test_smaller_pools_are_scored_beside_the_full_one(twelve):
    results, samples = evaluate_retrieval(ByNumber(constant, pool=5), twelve)
    assert results["pools"].keys() == {"5"}
    assert results["pools"]["5"]["r@1_image_to_text"]["value"] == pytest.approx(1 / 5)
    assert results["pools"]["5"]["chance"] == pytest.approx(values(results["pools"]["5"], RECALL))
    assert results["r@1_image_to_text"]["value"] == pytest.approx(1 / 12)
    assert np.isnan(samples["rank_image_to_text_in_5"]).sum() == 2  # twelve are two pools and two left over
    assert "pools" not in evaluate_retrieval(ByNumber(constant, pool=0), twelve)[0]
    assert "pools" not in evaluate_retrieval(ByNumber(constant, pool=12), twelve)[0]


def test_the_intervals_are_those_of_the_statistics_of_the_samples(twelve):
    results, samples = evaluate_retrieval(ByNumber(lambda image, text: np.sin(image * text), pool=5), twelve)
    found = intervals_of(statistics_of(samples), samples["patient"], resamples=20, seed=0)
    assert {name: found[name] for name in RECALL} == {name: results[name] for name in RECALL}
    assert found["pools/5/r@1_image_to_text"] == results["pools"]["5"]["r@1_image_to_text"]
    assert {values.shape for values in samples.values()} == {(12,)}


@pytest.mark.parametrize("block", [1, 5, 64])
def test_results_do_not_depend_on_the_block_size_or_on_where_features_lie(block, twelve, tmp_path):
    def rounded(image, text):
        return np.round(np.sin(image * text), 1)  # many ties

    expected = evaluate_retrieval(ByNumber(rounded, pool=5), twelve)
    found = evaluate_retrieval(ByNumber(rounded, pool=5, block=block, memory=0.0), twelve, scratch=tmp_path)
    assert found[0] == expected[0]
    for name, column in expected[1].items():
        np.testing.assert_array_equal(found[1][name], column)
    assert [path.name for path in tmp_path.iterdir()] == ["manifest.json"]  # temporary files have no name


def test_a_real_model_ranks_the_same_in_any_block(plan, phantom_data):
    images = features.encode_split(plan, open_split(phantom_data, "validation"), "a test")
    texts = plan.encode_texts(images.reports, truncate=True)
    everything = np.arange(len(images.reports))

    def score_of(rows, columns):
        return plan.score(features.take(images.features, rows), features.take(texts, columns))

    whole, cut = (retrieval_ranks(score_of, everything, everything, block=block) for block in (64, 3))
    for way, ranks in whole.items():
        np.testing.assert_array_equal(ranks.ahead, cut[way].ahead)


def test_features_beyond_the_memory_lie_in_files():
    parts = [{"x": np.arange(4.0).reshape(2, 2) + part, "none": np.zeros((2, 0))} for part in range(3)]
    for memory, kind in ((1.0, np.ndarray), (0.0, np.memmap)):
        found = features.stored(iter(parts), 6, memory=memory)
        assert type(found["x"]) is kind
        np.testing.assert_array_equal(found["x"], np.concatenate([part["x"] for part in parts]))
        assert found["none"].shape == (6, 0)
    assert type(features.take(found, np.array([1, 0]))["x"]) is np.ndarray


# Classes that exclude each other


CLASS_OF = {prompt: float(n) for n, name in enumerate(FINDINGS) for prompt in prompts_of(name, "chexpert_5x200")}
PROMPTS = np.array([len(prompts_of(name, "chexpert_5x200")) for name in FINDINGS])


def same_class(image, text):
    return (image % 5 == text).astype(float)


def films(tmp_path, *, reports: bool = False, labels=lambda number: (FINDINGS[number % 5],)) -> Records:
    numbers = range(5, 5 + 5 * PER_CLASS)
    made = [record(n, f"report {n % 5}" if reports else "", labels=labels(n)) for n in numbers]
    return data_set(tmp_path, "chexpert_5x200", FINDINGS, test=made)["test"]


def test_by_prompts_a_model_that_knows_the_classes_has_the_known_precision(tmp_path):
    plan = ByNumber(same_class, number_of=CLASS_OF.get, truncate=False)
    results, samples = evaluate_retrieval(plan, films(tmp_path))
    assert (results["texts"], results["n"], results["n_texts"]) == ("prompts", 20, PROMPTS.sum())
    for k in (1, 2, 5, 10, 50, 100):
        # a class with fewer prompts than k has no more to be found: the other places are chance's
        rest = np.minimum(PROMPTS, k) / k
        assert results[f"p@{k}_image_to_text"]["value"] == pytest.approx(rest.mean())
        assert results["chance"][f"p@{k}_image_to_text"] == pytest.approx((PROMPTS / PROMPTS.sum()).mean())
    expected = {
        "p@1_text_to_image": 1,
        "p@2_text_to_image": 1,
        "p@5_text_to_image": 4 / 5,
        "p@10_text_to_image": 4 / 10,
    }
    assert values(results, expected) == pytest.approx(expected)
    assert "p@50_text_to_image" not in results  # of twenty images
    assert results["chance"]["p@10_text_to_image"] == pytest.approx(1 / 5)
    again = intervals_of(statistics_of(samples), samples["patient"], resamples=20, seed=0)
    assert again == {name: results[name] for name in again}


def test_by_prompts_a_model_that_knows_nothing_is_worth_chance(tmp_path):
    results, _ = evaluate_retrieval(ByNumber(constant, number_of=CLASS_OF.get, truncate=False), films(tmp_path))
    assert values(results, results["chance"]) == pytest.approx(results["chance"])
    worst = ByNumber(lambda *pair: -same_class(*pair), number_of=CLASS_OF.get, truncate=False)
    results, _ = evaluate_retrieval(worst, films(tmp_path))
    assert values(results, ("p@10_image_to_text", "p@10_text_to_image")) == pytest.approx(
        {"p@10_image_to_text": 0, "p@10_text_to_image": 0}
    )


@pytest.mark.parametrize("block", [256, 3])
def test_by_reports_every_record_is_a_query_both_ways(block, tmp_path):
    results, samples = evaluate_retrieval(ByNumber(same_class, block=block), films(tmp_path, reports=True))
    assert (results["texts"], results["n_texts"], results["without_text"]) == ("reports", 20, 0)
    expected = {1: 1, 2: 1, 5: 4 / 5, 10: 4 / 10}
    for way in ("image_to_text", "text_to_image"):
        assert {k: results[f"p@{k}_{way}"]["value"] for k in expected} == pytest.approx(expected)
        assert samples[f"p@1_{way}"].shape == (20,)
        assert results["chance"][f"p@2_{way}"] == pytest.approx(1 / 5)
        assert f"p@50_{way}" not in results


def test_a_record_with_two_classes_or_none_is_refused(tmp_path):
    plan = ByNumber(same_class, number_of=CLASS_OF.get, truncate=False)
    for labels in (lambda n: FINDINGS[:2] if n == 7 else FINDINGS[:1], lambda _: ()):
        with pytest.raises(InputError, match="exactly one label"):
            evaluate_retrieval(plan, films(tmp_path, labels=labels))
