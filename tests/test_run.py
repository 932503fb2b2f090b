"""The command `evaluate` and what reads its files, on a small trained model or one that knows the answers."""

import dataclasses
import json
import shutil

import numpy as np
import pytest

from plan_jax.__main__ import main
from plan_jax.config import load_config
from plan_jax.data.build import build
from plan_jax.data.fake import fake
from plan_jax.data.image import decode_image, model_input
from plan_jax.data.records import open_split
from plan_jax.detection.fit import Head
from plan_jax.evaluation import detection, grounding
from plan_jax.evaluation.prompts import prompts_of
from plan_jax.inference import Plan
from plan_jax.metrics.grounding import CNR_LIMIT
from plan_jax.types import ImageFeatures, TextFeatures

FAST = ("--config.evaluation.bootstrap=5", "--config.evaluation.untrained=False", "--config.evaluation.batch_size=8")


@pytest.fixture
def run(trained, tmp_path):
    """A copy of the trained run to write into."""
    return shutil.copytree(trained.workdir, tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard"))


def evaluated(run, *arguments) -> dict[str, dict]:
    """File name -> content of all results after the command."""
    assert main(["evaluate", *map(str, arguments), "--workdir", str(run), "--quiet"]) == 0
    return {path.stem: json.loads(path.read_text()) for path in (run / "results").glob("*.json")}


# A model that knows the answers, through the command


class Oracle:
    """Knows every record of a data set by its pixels; its scores are `sign` times the truth."""

    step = 300

    def __init__(self, config, directory, sign):
        evaluation = dataclasses.replace(config.evaluation, bootstrap=5, untrained=False, pool=0)
        self.config, self.sign, self.texts = dataclasses.replace(config, evaluation=evaluation), sign, []
        records = [record for name in ("test", "validation", "train") for record in open_split(directory, name)]
        self.records = {self._square(record).tobytes(): record for record in records}
        self.order = list(self.records.values())

    def _square(self, record):
        return model_input(decode_image(record.image, name=record.key), self.config.data)[0]

    def over(self, mesh):
        del mesh
        return self

    def encode_images(self, images):
        found = [self.order.index(self.records[np.ascontiguousarray(image[..., 0]).tobytes()]) for image in images]
        number = np.array(found, float)
        return ImageFeatures(pooled=number[:, None], patch=number[:, None, None], grid=(1, 1))

    def encoder_features(self, images):
        classes = sorted({label for record in self.order for label in record.labels})
        shown = [self.order[int(index)].labels for index in self.encode_images(images).pooled[:, 0]]
        return np.array([[self.sign * (name in labels) for name in classes] for labels in shown], float)

    def encode_texts(self, texts, *, truncate=False):
        del truncate
        number = np.arange(len(self.texts), len(self.texts) + len(texts), dtype=float)
        self.texts += texts
        one = np.ones((len(texts), 1), bool)
        return TextFeatures(pooled=number[:, None], word=number[:, None, None], word_logit=one * 0.0, mask=one)

    def score(self, images, texts):
        asked = [self.texts[int(number)] for number in texts.pooled[:, 0]]
        shown = [self.order[int(index)] for index in images.pooled[:, 0]]
        return np.array([[self.sign * self.fits(record, text) for text in asked] for record in shown], float)

    def fits(self, record, text):
        return text == record.report or any(text in prompts_of(label, "phantom") for label in record.labels)


@pytest.mark.parametrize("sign", [1, -1], ids=["perfect", "worst"])
def test_a_model_that_knows_the_answers_has_the_known_scores_through_the_command(sign, run, phantom_data, monkeypatch):
    oracle = Oracle(load_config(run / "config.json"), phantom_data, sign)
    monkeypatch.setattr(Plan, "load", lambda directory, checkpoint: oracle)

    class Answers:
        def __init__(self, plan, classes):
            del plan, classes

        def maps(self, batch):
            return {"trained": [sign * query.truth.astype(float) for query in batch]}

    monkeypatch.setattr(grounding, "Readouts", Answers)
    results = evaluated(run, "grounding", "retrieval", "zero_shot", "linear_probe")
    found = {
        (task, name): results[task][name]["value"]
        for task, names in {
            "grounding": ("cnr_signed", "cnr_abs", "pointing", "auroc", "miou_raw"),
            "retrieval": ("r@1_image_to_text", "r@1_text_to_image"),
            "zero_shot": ("auroc",),
            "linear_probe": ("auroc",),
        }.items()
        for name in names
    }
    best = float(sign > 0)
    expected = dict.fromkeys(found, best) | {("grounding", "cnr_abs"): CNR_LIMIT, ("linear_probe", "auroc"): 1.0}
    assert found == pytest.approx(expected | {("grounding", "cnr_signed"): sign * CNR_LIMIT})
    if sign > 0:
        assert results["zero_shot"]["accuracy"]["value"] == results["zero_shot"]["f1_macro"]["value"] == 1
        assert results["retrieval"]["median_rank_image_to_text"]["value"] == 1


@pytest.mark.parametrize(("by", "expected"), [(0.0, 1.0), (1000.0, 0.0)], ids=["perfect", "worst"])
def test_a_detector_that_knows_the_boxes_has_the_known_scores_through_the_command(by, expected, run, monkeypatch):
    def found(plan, head, films, *, classes, shown):
        del plan, head, shown
        truth = films.truth(classes)
        return dataclasses.replace(truth, box=truth.box + by)

    monkeypatch.setattr(detection, "fit_head", lambda *_, **__: Head(None, 1, 1, 0.0, 1))
    monkeypatch.setattr(detection, "detect", found)
    results = evaluated(run, "detection", "--config.evaluation.bootstrap=5")["detection"]
    assert (results["map"]["value"], results["map_compat"]["value"]) == pytest.approx((expected, expected))


# Data sets


@pytest.mark.parametrize("name", ["ms_cxr", "nih_cxr14"])
def test_a_set_without_training_boxes_is_grounded_beside_the_priors_that_need_none(name, run, tmp_path):
    fake(name, out=tmp_path / "raw")
    build(name, raw=tmp_path / "raw", out=tmp_path / "data")
    found = evaluated(run, "grounding", "--data", tmp_path / "data", *FAST)[f"grounding_{name}"]
    assert found["data_set"] == name
    assert found["n"] > 0
    assert {"chance", "centre_prior", "grid_ceiling"} <= found.keys()
    assert not {"image_blind_prior", "phrase_blind_prior", "lead"} & found.keys()
    assert (run / f"gallery_{name}.html").is_file()
    assert not (run / "gallery.html").exists()
    assert main(["tables", str(run)]) == 0
    out = tmp_path / "figures.html"
    assert main(["figures", "--workdir", str(run), "--data", str(tmp_path / "data"), "--out", str(out)]) == 0
    assert "Failures beside successes" in out.read_text()


# Settings and programs


def test_only_what_a_trained_run_leaves_free_may_be_set(run, capsys):
    first = evaluated(run, "zero_shot", "--config.evaluation.bootstrap=5")["zero_shot"]
    other = evaluated(run, "zero_shot", "--config.evaluation.bootstrap=5", "--config.evaluation.global_weight=0.25")
    assert other["zero_shot"]["config"] != first["config"]
    capsys.readouterr()
    for wrong in ("--config.alignment.rounds=2", "--config.evaluation.nothing=1", "--config.evaluation.pool=x", "--no"):
        assert main(["evaluate", "zero_shot", "--workdir", str(run), wrong]) == 2
        assert len(capsys.readouterr().err.splitlines()) == 1


def test_more_phrases_compile_no_more_programs(run):
    """Of 250 phrases after 14, and of the 14 again: the same few shapes."""
    evaluated(run, "grounding", "--split", "test", *FAST)
    many = evaluated(run, "grounding", "--split", "train", *FAST)["grounding"]
    few = evaluated(run, "grounding", "--split", "validation", *FAST)["grounding"]
    assert many["n"] > 10 * few["n"]
    assert many["compilations"] <= 12
    assert few["compilations"] <= 12
