import dataclasses
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest
from fakes import Records, record, values

from plan_jax import __version__
from plan_jax.__main__ import main
from plan_jax.checkpoint import latest_step, saved_steps
from plan_jax.config import Config, EvaluationConfig
from plan_jax.data.records import Phrase, manifest_hash, open_split
from plan_jax.errors import InputError
from plan_jax.evaluation import grounding, retrieval
from plan_jax.evaluation.grounding import Sample, box_mask, evaluate_grounding
from plan_jax.evaluation.priors import PRIORS
from plan_jax.evaluation.run import Subject, evaluate
from plan_jax.metrics.grounding import CNR_LIMIT, grounding_metrics

# What ../shared/spec names in every results file, and in that of each task.
EVERY = {"n", "data", "config", "version"}
GROUNDING = {"cnr_abs", "cnr_signed", "miou_raw", "miou_minmax", "pointing", "auroc"}
RETRIEVAL = {f"r@{k}_{way}" for k in (1, 5, 10) for way in ("image_to_text", "text_to_image")}
RETRIEVAL |= {"median_rank_image_to_text", "median_rank_text_to_image"}
ZERO_SHOT = {"auroc", "accuracy", "f1_macro"}
METHODS = {"chance", "centre_prior", "phrase_blind_prior", "image_blind_prior", "untrained"}


def same(expected: dict[str, float]):
    return pytest.approx(expected, abs=1e-9)


# Grounding


@pytest.fixture(scope="module")
def train(phantom_data):
    return open_split(phantom_data, "train")


@pytest.fixture(scope="module")
def scorer():
    """A stand-in for the model where its maps are made up."""
    return SimpleNamespace(config=dataclasses.replace(Config(), evaluation=EvaluationConfig(bootstrap=20)))


def scored_with(monkeypatch, scorer, train, maps) -> dict:
    answer_with(monkeypatch, maps)
    return evaluate_grounding(scorer, train, train)[0]


def answer_with(monkeypatch, maps) -> None:
    """Puts `maps` (query -> map) in the place of a model's answers."""

    class Answers:
        def __init__(self, plan, classes):
            del plan, classes

        def maps(self, batch):
            return {"trained": [maps(query) for query in batch]}

    monkeypatch.setattr(grounding, "Readouts", Answers)


PERFECT = {"cnr_signed": CNR_LIMIT, "cnr_abs": CNR_LIMIT, "miou_raw": 1, "miou_minmax": 1, "pointing": 1, "auroc": 1}
INVERSE = {"cnr_signed": -CNR_LIMIT, "cnr_abs": CNR_LIMIT, "miou_raw": 0, "miou_minmax": 0, "pointing": 0, "auroc": 0}


@pytest.mark.parametrize(
    ("maps", "expected"),
    [
        (lambda query: query.truth.astype(float), PERFECT),
        (lambda query: -query.truth.astype(float), INVERSE | {"miou_minmax": 0}),
        (lambda query: 1 - query.truth.astype(float), INVERSE),
        (lambda query: 0.25 * query.truth, PERFECT | {"miou_raw": 0.4}),  # above .1 and .2 of the five thresholds
    ],
    ids=["truth", "negative", "inverse", "quarter"],
)
def test_maps_that_are_known_have_the_known_scores(maps, expected, monkeypatch, scorer, train):
    results = scored_with(monkeypatch, scorer, train, maps)
    for part in (results, *results["per_class"].values(), results["with_location"], results["without_location"]):
        assert values(part, GROUNDING) == same(expected)
        for bound in ("low", "high"):
            assert {name: part[name][bound] for name in GROUNDING} == same(expected)


def test_a_constant_map_is_worth_chance(monkeypatch, scorer, train):
    results = scored_with(monkeypatch, scorer, train, lambda query: np.full(query.truth.shape, 0.3))
    found = values(results, GROUNDING)
    assert found["auroc"] == 0.5
    assert found["cnr_signed"] == found["cnr_abs"] == 0
    assert 0 < found["pointing"] < 0.2  # the share of the image that is inside


def test_the_total_is_the_mean_over_the_classes(monkeypatch, scorer, train):
    """A model that knows one class only scores one in as many as there are classes, however frequent that class is."""

    def maps(query):
        sign = 1 if query.phrase.category == "nodule" else -1
        return sign * query.truth.astype(float)

    results = scored_with(monkeypatch, scorer, train, maps)
    pointing = {name: part["pointing"]["value"] for name, part in results["per_class"].items()}
    assert pointing == {name: float(name == "nodule") for name in pointing}
    assert len(pointing) == 8
    assert results["pointing"]["value"] == pytest.approx(1 / 8)


def test_phrases_with_and_without_a_location_are_told_apart(monkeypatch, scorer, train):
    results = scored_with(monkeypatch, scorer, train, lambda q: q.truth * (1.0 if q.phrase.located else -1.0))
    assert results["with_location"]["pointing"]["value"] == 1
    assert results["without_location"]["pointing"]["value"] == 0
    phrases = [phrase for index in range(len(train)) for phrase in train[index].phrases]
    assert results["n"] == len(phrases)
    assert results["with_location"]["n"] == sum(phrase.located for phrase in phrases) > 0
    assert results["without_location"]["n"] == sum(not phrase.located for phrase in phrases) > 0


def test_every_prior_is_scored_beside_the_model(monkeypatch, scorer, train):
    results = scored_with(monkeypatch, scorer, train, lambda query: query.truth.astype(float))
    assert set(PRIORS) <= results.keys()
    found = {name: values(results[name], GROUNDING)["pointing"] for name in PRIORS}
    assert all(0 <= value < 0.9 for value in found.values())
    assert found["image_blind_prior"] > found["chance"]  # told side and zone, estimated on the very same images


def test_a_pixel_is_inside_a_box_if_its_centre_is():
    found = box_mask(((1.0, 0.0, 3.0, 1.0), (0.6, 1.5, 1.5, 2.4)), 3, 4)
    expected = [[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    np.testing.assert_array_equal(found, np.array(expected, bool))
    np.testing.assert_array_equal(box_mask(((0.5, 1.5, 1.5, 2.5),), 3, 2), [[0, 0], [1, 0], [0, 0]])


def test_the_boxes_of_a_phrase_are_one_region(monkeypatch, scorer):
    phrase = Phrase("two nodules", "nodule", boxes=((0.0, 0.0, 2.0, 2.0), (5.0, 5.0, 8.0, 8.0)))
    two = Records([record(5, "two nodules", phrases=(phrase,))])
    answer_with(monkeypatch, lambda _: np.arange(64.0).reshape(8, 8))
    seen = []
    monkeypatch.setattr(
        grounding, "grounding_metrics", lambda found, truth: seen.append(truth) or grounding_metrics(found, truth)
    )
    results, _, _ = evaluate_grounding(scorer, two, two)
    assert all(truth.sum() == 4 + 9 for truth in seen)
    assert (results["n"], results["pointing"]["value"]) == (1, 1.0)


def test_a_region_that_fills_the_image_or_none_of_it_is_left_out(monkeypatch, scorer):
    boxes = {"all": (0.0, 0.0, 8.0, 8.0), "none": (2.1, 2.1, 2.4, 2.4), "some": (0.0, 0.0, 4.0, 4.0)}
    phrases = tuple(Phrase(name, "nodule", boxes=(box,)) for name, box in boxes.items())
    records = Records([record(5, "three nodules", phrases=(*phrases, Phrase("no box", "nodule")))])
    answer_with(monkeypatch, lambda _: np.eye(8))
    results, examples, _ = evaluate_grounding(scorer, records, records)
    assert results["n"] == 1
    assert [example.phrase for example in examples] == ["some"]


def test_data_without_boxes_cannot_be_grounded(monkeypatch, scorer, train):
    answer_with(monkeypatch, lambda query: query.truth)
    silent = Records([record(1, "a nodule")])
    with pytest.raises(InputError, match="boxes"):
        evaluate_grounding(scorer, silent, silent)
    with pytest.raises(InputError, match="boxes"):
        evaluate_grounding(scorer, silent, train)


def test_the_gallery_sample_is_repeatable_and_draws_from_all_over_the_split():
    def drawn(count, offered):
        sample = Sample(count)
        for number in range(offered):
            sample.offer(number)
        return sample.kept

    assert drawn(24, 10) == list(range(10))
    assert drawn(5, 1000) == drawn(5, 1000)
    kept = drawn(200, 1000)
    assert len(set(kept)) == 200
    assert 400 < sum(kept) / 200 < 600


# The command


@pytest.fixture(scope="module")
def evaluated(trained, tmp_path_factory):
    """A copy of the trained run with all three results."""
    workdir = tmp_path_factory.mktemp("evaluated") / "run"
    shutil.copytree(trained.workdir, workdir, ignore=shutil.ignore_patterns("tensorboard"))
    for task in ("grounding", "retrieval", "zero_shot"):
        assert evaluate(task, workdir) == workdir / "results" / f"{task}.json"
    return workdir


def read(workdir, task: str) -> dict:
    return json.loads((workdir / "results" / f"{task}.json").read_text())


def assert_intervals(metrics: dict, names) -> None:
    assert metrics.keys() >= set(names)
    for name in names:
        assert metrics[name].keys() == {"value", "low", "high"}
        assert all(isinstance(number, float) and np.isfinite(number) for number in metrics[name].values())
        assert metrics[name]["low"] <= metrics[name]["high"]


def test_the_grounding_file_holds_what_is_promised(evaluated):
    results = read(evaluated, "grounding")
    for part in (results, *(results[name] for name in METHODS), *results["per_class"].values()):
        assert_intervals(part, GROUNDING)
    for part in ("with_location", "without_location"):
        assert_intervals(results[part], GROUNDING)
    assert results["with_location"]["n"] + results["without_location"]["n"] == results["n"]
    assert values(results["untrained"], GROUNDING) != values(results, GROUNDING)


def test_the_margin_over_a_prior_is_paired_by_phrase(evaluated):
    results = read(evaluated, "grounding")
    for prior, lead in results["lead"].items():
        for metric in ("cnr_signed", "pointing"):
            expected = results[metric]["value"] - results[prior][metric]["value"]
            assert lead[metric]["value"] == pytest.approx(expected)
            halves = [lead[half][metric] for half in ("with_location", "without_location")]
            assert all(half["low"] <= half["value"] <= half["high"] for half in halves)
            of_prior = lead["per_class"]
            assert of_prior.keys() == results["per_class"].keys()
            assert np.mean([row[metric]["value"] for row in of_prior.values()]) == pytest.approx(expected)


def test_the_metrics_of_every_phrase_are_kept_beside_their_averages(evaluated):
    results = read(evaluated, "grounding")
    with np.load(evaluated / "results" / "grounding_phrases.npz", allow_pickle=False) as rows:
        category = rows["category"]
        assert rows["patient"].shape == rows["located"].shape == category.shape == (results["n"],)
        for method in ("trained", "competition", "mirrored", "global_map", "round_0", "untrained", *PRIORS):
            of = results if method == "trained" else results[method]
            for metric in ("cnr_signed", "pointing"):
                column = rows[f"{method}/{metric}"]
                means = [column[category == name].mean() for name in np.unique(category)]
                assert np.mean(means) == pytest.approx(of[metric]["value"], rel=1e-5, abs=1e-6)
        assert np.isnan(rows["trained/own_above_others"]).any()  # images with one finding


def test_the_retrieval_file_holds_what_is_promised(evaluated):
    results = read(evaluated, "retrieval")
    assert_intervals(results, RETRIEVAL)
    assert results["chance"].keys() >= RETRIEVAL


def test_the_zero_shot_file_holds_what_is_promised(evaluated):
    results = read(evaluated, "zero_shot")
    assert_intervals(results, ZERO_SHOT)
    for part in results["per_class"].values():
        assert_intervals(part, ("auroc", "accuracy", "f1"))
    assert results["per_class"].keys().isdisjoint(results["excluded"])


@pytest.mark.parametrize("task", ["grounding", "retrieval", "zero_shot"])
def test_every_file_says_of_what_it_is(task, evaluated, phantom_data):
    results = read(evaluated, task)
    assert results.keys() >= EVERY
    assert results["data"] == manifest_hash(phantom_data)
    assert len(results["config"]) == 64
    assert results["version"] == __version__
    assert (results["task"], results["step"], results["split"]) == (task, 300, "test")
    assert results["n"] > 0


def test_the_gallery_is_written_and_needs_no_other_file(evaluated):
    page = (evaluated / "gallery.html").read_text()
    assert page.count("data:image/png;base64,") >= 3
    assert 'src="http' not in page
    assert "file://" not in page


@pytest.fixture
def counted(monkeypatch, evaluated, tmp_path):
    """A copy of the evaluated run, and how often retrieval is computed."""
    calls = []

    def computed(plan, split, *, scratch):
        del scratch
        calls.append((plan.step, split.name))
        return {"n": len(split)}, {"patient": np.zeros(len(split))}

    monkeypatch.setattr(retrieval, "evaluate_retrieval", computed)
    return shutil.copytree(evaluated, tmp_path / "run"), calls


def test_results_of_the_same_checkpoint_are_reused(counted):
    workdir, calls = counted
    before = (workdir / "results" / "retrieval.json").read_bytes()
    evaluate("retrieval", workdir, reuse=True)
    assert (calls, (workdir / "results" / "retrieval.json").read_bytes()) == ([], before)
    evaluate("retrieval", workdir)
    assert calls == [(300, "test")]


def test_results_are_computed_anew_after_more_training(counted, tmp_path):
    workdir, calls = counted
    newest = workdir / "checkpoints" / "300"
    newest.rename(tmp_path / "later")
    before = latest_step(workdir)
    evaluate("retrieval", workdir, reuse=True)
    (tmp_path / "later").rename(newest)
    evaluate("retrieval", workdir, reuse=True)
    evaluate("retrieval", workdir, reuse=True)
    assert calls == [(before, "test"), (300, "test")]


def test_the_command_scores_the_checkpoint_that_it_is_told_to(counted, capsys):
    workdir, calls = counted
    earlier, newest = saved_steps(workdir)[-2:]
    for chosen in (str(earlier), "latest"):
        assert main(["evaluate", "retrieval", "--workdir", str(workdir), "--checkpoint", chosen, "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["step"] == calls[-1][0]
    assert calls == [(earlier, "test"), (newest, "test")]
    assert main(["evaluate", "retrieval", "--workdir", str(workdir), "--checkpoint", "7"]) == 2
    assert "7" in capsys.readouterr().err
    assert len(calls) == 2


def test_results_are_computed_anew_for_another_split_and_other_data(counted, phantom_data, tmp_path):
    workdir, calls = counted
    evaluate("retrieval", workdir, Subject(split="validation"), reuse=True)
    other = shutil.copytree(phantom_data, tmp_path / "other")
    manifest = json.loads((other / "manifest.json").read_text())
    (other / "manifest.json").write_text(json.dumps(manifest | {"dropped": {"too dark": 1}}))
    evaluate("retrieval", workdir, Subject(split="validation", data=other), reuse=True)
    evaluate("retrieval", workdir, Subject(split="validation", data=other), reuse=True)
    assert calls == [(300, "validation")] * 2


@pytest.mark.parametrize("damage", [b"", b'{"step": 300', b"[]", b"\xff"])
def test_a_damaged_results_file_is_computed_anew(damage, counted):
    workdir, calls = counted
    (workdir / "results" / "retrieval.json").write_bytes(damage)
    evaluate("retrieval", workdir, reuse=True)
    assert len(calls) == 1
    assert read(workdir, "retrieval")["n"] == 7
