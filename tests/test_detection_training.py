"""Heads trained on phantoms, and the evaluation around them."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import CONFIG, TINY

from plan_jax.bootstrap import differences_of
from plan_jax.checkpoint import saved_steps
from plan_jax.config_file import read_config
from plan_jax.data.build import build
from plan_jax.data.fake_boxes import fake_rsna
from plan_jax.data.image import decode_image, encode_png, letterbox_image
from plan_jax.data.records import Phrase, Record, open_split
from plan_jax.data.rsna import detection_split
from plan_jax.data.splits import fraction_of
from plan_jax.data.text import Tokenizer
from plan_jax.detection import fit
from plan_jax.detection.average_precision import AveragePrecision, ImageBoxes, mean_precision
from plan_jax.detection.detect import detect
from plan_jax.detection.examples import (
    NAMELESS,
    FilmBatches,
    SplitBoxes,
    classes_of,
    labelled_boxes,
    read_boxes,
)
from plan_jax.detection.films import detection_films
from plan_jax.detection.fit import Head, fit_head, head_folder
from plan_jax.detection.step import first_state, head_step
from plan_jax.errors import InputError
from plan_jax.evaluation import detection
from plan_jax.evaluation.detection import evaluate_detection, statistics_of
from plan_jax.inference import Plan
from plan_jax.model import initial_variables
from plan_jax.sharding import make_mesh
from plan_jax.train.guard import NonFiniteLoss
from plan_jax.train.state import TrainState

BATCH = 4
OVERRIDES = (
    *TINY,
    "--config.detection.image_size=32",
    "--config.detection.width=16",
    "--config.detection.epochs=2",
    "--config.detection.fractions=(0.1,)",
    f"--config.detection.batch_size={BATCH}",
    f"--config.evaluation.batch_size={BATCH}",
)
SHARE = 0.1  # of the patients: a few batches


@pytest.fixture(scope="module")
def random_plan(phantom_data) -> Plan:
    """A model before its first step: how good the features are says nothing here."""
    config, rng = read_config(CONFIG, OVERRIDES), np.random.default_rng(0)

    def drawn(path, leaf):
        name = path[-1].key
        if leaf.ndim < 2:
            return np.full(leaf.shape, name in ("scale", "var"), leaf.dtype)
        return rng.normal(0, np.sqrt(2 / np.prod(leaf.shape[:-1])), leaf.shape).astype(leaf.dtype)

    shapes = jax.eval_shape(functools.partial(initial_variables, config), 0)
    variables = jax.tree_util.tree_map_with_path(drawn, shapes)  # drawn faster than compiled
    return Plan(config, Tokenizer.load(phantom_data / "tokenizer.json"), variables, step=7)


def with_detection(plan: Plan, **fields) -> Plan:
    settings = dataclasses.replace(plan.config.detection, **fields)
    return dataclasses.replace(plan, config=dataclasses.replace(plan.config, detection=settings))


@pytest.fixture(scope="module")
def train(phantom_data) -> SplitBoxes:
    split = open_split(phantom_data, "train")
    return read_boxes(split, range(len(split)))


@pytest.fixture(scope="module")
def validation(phantom_data) -> SplitBoxes:
    split = open_split(phantom_data, "validation")
    return read_boxes(split, range(len(split)))


@pytest.fixture(scope="module")
def classes(train) -> tuple[str, ...]:
    return classes_of(train)


@pytest.fixture
def fitted(random_plan, train, validation, classes):
    """`fit_head` on these films."""

    def call(folder, *, plan=random_plan, fraction=SHARE) -> Head:
        return fit_head(plan, train, validation, classes=classes, fraction=fraction, folder=folder)

    return call


def same_bits(one, other) -> None:
    jax.tree.map(np.testing.assert_array_equal, one, other)


# Films


def record(number: int, *phrases: Phrase, shape: tuple[int, int] = (20, 40)) -> Record:
    image = encode_png(np.full(shape, 10 * number, np.uint8))
    return Record(f"r{number}", f"p{number}", f"s{number}", image, phrases=phrases)


class Records(list):
    """Records in memory, read like a split."""


def test_films_are_whole_in_the_order_that_was_asked_for_with_their_boxes():
    tall = Phrase("a", "nodule", boxes=((10.0, 4.0, 20.0, 12.0), (0.0, 0.0, 40.0, 20.0)))
    films = Records([record(1, tall), record(2), record(3, Phrase("b", "rare", boxes=((1.0, 1.0, 2.0, 2.0),)))])
    every = read_boxes(films, range(3))
    batches = FilmBatches(every, np.array([2, 0, 1]), classes=("other", "nodule"), size=20, batch_size=2)
    first, last = batches
    assert len(batches) == 2
    assert (first.row.tolist(), last.row.tolist()) == ([2, 0], [1])
    assert first.image.shape == (2, 20, 20, 1)
    for image, number in ((first.image[1], 1), (last.image[0], 2)):
        expected, _ = letterbox_image(np.full((20, 40), 10 * number, np.uint8), 20)
        np.testing.assert_array_equal(image[..., 0], expected)
    np.testing.assert_array_equal(first.boxes.mask, [[False, False], [True, True]])  # a class of no head is no box
    np.testing.assert_array_equal(first.boxes.box[1], [[5, 7, 10, 11], [0, 5, 20, 15]])  # halved, 5 px of margin above
    np.testing.assert_array_equal(first.boxes.label[1], [1, 1])
    np.testing.assert_array_equal(first.side, [[20, 40], [20, 40]])


def test_the_class_of_a_box_is_the_category_of_its_phrase():
    box, line = (1.0, 2.0, 3.0, 4.0), (1.0, 2.0, 1.0, 4.0)
    phrases = (Phrase("a", "nodule", boxes=(box, line)), Phrase("b", "nodule", boxes=(box,)), Phrase("c", boxes=(box,)))
    assert labelled_boxes(record(1, *phrases)) == (("nodule", box), (NAMELESS, box))
    assert labelled_boxes(record(1, Phrase("no box", "nodule"))) == ()


def test_classes_are_those_with_boxes_in_the_order_of_the_manifest(train, classes, phantom_data):
    named = json.loads((phantom_data / "manifest.json").read_text())["classes"]
    assert list(classes) == named
    without = [tuple(box for box in boxes if box[0] != named[2]) for boxes in train.boxes]
    without[0] = (("zebra", (0.0, 0.0, 1.0, 1.0)), ("another", (0.0, 0.0, 1.0, 1.0)))
    found = classes_of(dataclasses.replace(train, boxes=tuple(without)))
    assert list(found) == [*named[:2], *named[3:], "another", "zebra"]


def test_data_without_boxes_cannot_train_a_detector(train):
    with pytest.raises(InputError, match="must hold boxes, got none"):
        classes_of(dataclasses.replace(train, boxes=((),) * len(train.boxes)))


def test_a_fraction_is_of_whole_patients_and_part_of_a_larger_one():
    patients = np.array([f"p{n // 2}" for n in range(200)])
    rows = {share: set(fraction_of(patients, share, seed=42).tolist()) for share in (0.001, 0.01, 0.1, 1.0)}
    assert rows[0.001] == rows[0.01] < rows[0.1] < rows[1.0] == set(range(200))
    assert [len(found) for found in rows.values()] == [2, 2, 20, 200]
    assert all(row ^ 1 in found for found in rows.values() for row in found)
    assert fraction_of(patients, 0.1, seed=42).tolist() == sorted(rows[0.1])
    assert set(fraction_of(patients, 0.1, seed=1).tolist()) != rows[0.1]


def test_rsna_is_dealt_into_the_splits_of_the_peers_for_detection(tmp_path):
    fake_rsna(tmp_path / "raw", seed=0)
    build("rsna", raw=tmp_path / "raw", out=tmp_path / "data")
    names = ("train", "validation", "test")
    films = dict(
        zip(names, detection_films(tmp_path / "data", names, shown=lambda part: range(len(part))), strict=True)
    )
    built = {name: open_split(tmp_path / "data", name) for name in names}
    known = {split[row].key: split[row] for split in built.values() for row in range(len(split))}
    expected = detection_split([record.patient for record in known.values()], seed=0)
    assert {key: name for name, part in films.items() for key in part.key} == {
        key: expected[record.patient] for key, record in known.items()
    }
    assert len(films["train"].key) < len(built["train"])
    for part in films.values():
        assert [part.split[row].key for row in range(len(part.key))] == part.key.tolist()
        assert part.boxes == tuple(labelled_boxes(known[key]) for key in part.key)
    with pytest.raises(InputError, match="split must be one of test, train, validation"):
        detection_films(tmp_path / "data", ("tune",), shown=lambda part: range(len(part)))


# Training


def test_a_head_learns_four_films_by_heart(random_plan, train, classes):
    rows = np.array([row for row, boxes in enumerate(train.boxes) if boxes])[:BATCH]
    few = SplitBoxes(
        Records(train.split[int(row)] for row in rows),
        train.key[rows],
        train.patient[rows],
        tuple(train.boxes[row] for row in rows),
    )
    config = random_plan.config
    (batch,) = FilmBatches(train, rows, classes=classes, size=config.detection.image_size, batch_size=BATCH)
    state, losses = first_state(random_plan.variables, config=config, classes=len(classes)), []
    for _ in range(150):
        state, metrics = head_step(
            state,
            random_plan.variables,
            batch.image,
            batch.boxes,
            config=config,
            classes=len(classes),
            learning_rate=1e-2,
        )
        losses.append({name: float(value) for name, value in metrics.items()})
    # Not that of the centres: a cross-entropy with targets between 0 and 1, whose least value is their entropy.
    for name in ("wh_loss", "object_loss", "background_loss", "class_loss"):
        assert losses[-1][name] < 0.05 * losses[0][name]
    head = {"params": state.params, "batch_stats": state.batch_stats}
    found, truth = detect(random_plan, head, few, classes=classes), few.truth(classes)
    scorer = AveragePrecision(found, truth, images=BATCH, classes=len(classes))
    assert (mean_precision(scorer.of(np.ones(BATCH))) or 0) > 0.95


def test_a_training_in_pieces_gives_the_head_of_one_in_one_go(random_plan, train, fitted, monkeypatch, tmp_path):
    before = jax.tree.map(np.array, random_plan.variables)
    whole = fitted(tmp_path / "whole")
    assert (whole.epochs, whole.images) == (2, len(fraction_of(train.patient, SHARE, seed=42)))

    validated, scored = [], fit._validation_map

    def interrupted(*arguments):
        validated.append(len(validated))
        if len(validated) == 2:
            raise KeyboardInterrupt
        return scored(*arguments)

    monkeypatch.setattr(fit, "_validation_map", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fitted(tmp_path / "pieces")
    pieces = fitted(tmp_path / "pieces")
    assert len(validated) == 3  # the second epoch twice
    same_bits(pieces.variables, whole.variables)
    assert dataclasses.replace(pieces, variables=None) == dataclasses.replace(whole, variables=None)
    lines = [
        [{name: value for name, value in json.loads(line).items() if name != "images_per_second"} for line in lines]
        for lines in ((tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("whole", "pieces"))
    ]
    assert lines[0] == lines[1]
    assert [line["step"] for line in lines[0]] == [1, 2]
    same_bits(random_plan.variables, before)  # neither parameters nor batch statistics of the encoder


def test_a_head_trained_and_used_on_four_devices_is_that_of_one(random_plan, fitted, train, classes, tmp_path):
    """Also where it goes on from a checkpoint."""
    one = with_detection(random_plan, epochs=2)
    four = one.over(make_mesh(jax.devices()[:4]))
    expected = fitted(tmp_path / "one", plan=one)
    fitted(tmp_path / "four", plan=with_detection(four, epochs=1))
    found = fitted(tmp_path / "four", plan=four)
    assert {len(leaf.sharding.device_set) for leaf in jax.tree.leaves(found.variables)} == {4}
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=2e-3), found.variables, expected.variables)
    boxes, same = (detect(plan, expected.variables, train, classes=classes) for plan in (four, one))
    np.testing.assert_array_equal(boxes.row, same.row)
    np.testing.assert_allclose(boxes.box, same.box, atol=1e-2)


@pytest.fixture
def stepped(monkeypatch):
    """Steps that learn nothing, and what each was asked for: (learning rate, films). `scores`: the validation maps."""
    asked, scores = [], []
    first = TrainState(jnp.zeros((), jnp.int32), {"w": jnp.ones(2)}, {"mean": jnp.zeros(1)}, {"mu": jnp.zeros(2)})

    def step(state, encoder, image, boxes, *, learning_rate, **_):
        del encoder, boxes
        asked.append((learning_rate, len(image)))
        params = {"w": state.params["w"] + 1}
        return dataclasses.replace(state, step=state.step + 1, params=params), {"loss": np.float32(1)}

    monkeypatch.setattr(fit, "first_state", lambda *_, **__: first)
    monkeypatch.setattr(fit, "head_step", step)
    monkeypatch.setattr(fit, "_validation_map", lambda *_: scores.pop(0) if scores else 0.0)
    return asked, scores


def test_training_ends_when_no_epoch_was_better_for_long_and_the_best_is_kept(stepped, random_plan, fitted, tmp_path):
    asked, scores = stepped
    scores += [0.1, 0.3, 0.3, 0.2, 0.9]
    patient = with_detection(random_plan, epochs=50, patience=2)
    head = fitted(tmp_path, plan=patient)
    assert (head.epochs, head.best_epoch, head.validation_map) == (4, 2, 0.3)
    assert scores == [0.9]
    np.testing.assert_array_equal(head.variables["params"]["w"], 1 + len(asked) / 2)  # after two of four epochs
    again = fitted(tmp_path, plan=patient)
    assert (again.epochs, again.best_epoch, again.validation_map, scores) == (4, 2, 0.3, [0.9])
    same_bits(again.variables, head.variables)


def test_a_finished_head_is_read_and_not_trained_again(stepped, fitted, tmp_path):
    asked, _ = stepped
    fitted(tmp_path)
    steps = len(asked)
    fitted(tmp_path)
    assert len(asked) == steps > 0


@pytest.mark.parametrize(
    ("fraction", "name", "rate", "films"),
    [
        (0.01, "rsna", 2e-4, 3),
        (0.01, "object_cxr", 2.5e-4, 3),
        (0.02, "rsna", 5e-4, BATCH),
        (1.0, "object_cxr", 5e-4, BATCH),
    ],
)
def test_a_small_share_has_a_rate_and_a_batch_of_its_own(
    fraction, name, rate, films, stepped, random_plan, fitted, monkeypatch, tmp_path
):
    asked, _ = stepped
    monkeypatch.setattr(fit, "read_manifest", lambda _: {"name": name})
    monkeypatch.setattr(fit, "fraction_of", lambda *_, **__: np.arange(9))
    fitted(
        tmp_path,
        plan=with_detection(random_plan, epochs=1, learning_rate=5e-4, small_batch_size=films),
        fraction=fraction,
    )
    assert set(asked) == {(rate, films)}
    assert len(asked) == 9 // films


def test_a_loss_that_is_not_finite_stops_before_it_is_saved(stepped, fitted, monkeypatch, tmp_path):
    monkeypatch.setattr(fit, "head_step", lambda state, *_, **__: (state, {"loss": np.float32(np.nan)}))
    with pytest.raises(NonFiniteLoss, match="epoch 1"):
        fitted(tmp_path)
    assert saved_steps(tmp_path) == []


def test_a_share_or_a_validation_split_without_boxes_is_refused(random_plan, train, validation, classes, tmp_path):
    bare = dataclasses.replace(validation, boxes=((),) * len(validation.boxes))
    with pytest.raises(InputError, match=r"'validation'.*must hold boxes"):
        fit_head(random_plan, train, bare, classes=classes, fraction=1.0, folder=tmp_path)
    with pytest.raises(InputError, match=r"in the share 0\.1 of detection\.fractions"):
        fit_head(random_plan, train, validation, classes=("zebra",), fraction=0.1, folder=tmp_path)


def test_each_encoder_configuration_share_and_build_has_a_head_of_its_own(random_plan, train, other_data, tmp_path):
    def folder(plan=random_plan, films=train, fraction=0.1):
        return head_folder(plan, films, name="phantom", fraction=fraction, workdir=tmp_path)

    first = folder()
    assert first.parent == tmp_path / "detection" / "phantom" / "0.1"
    assert folder(with_detection(random_plan, fractions=(0.1, 0.5))) == first
    others = dataclasses.replace(train, split=open_split(other_data, "train"))
    changed = (
        folder(dataclasses.replace(random_plan, step=8)),
        folder(with_detection(random_plan, width=32)),
        folder(films=others),
        folder(fraction=1.0),
    )
    assert len({first, *changed}) == 5


# Evaluation


@pytest.fixture
def evaluated(random_plan, phantom_data, monkeypatch, tmp_path):
    """The results and samples of an evaluation in which `answers` (truth, fraction's turn) stands in for the head."""

    def call(answers, *, fractions=(1.0,)):
        turns = []

        def fitted(plan, train, validation, *, classes, fraction, folder):
            turns.append(fraction)
            return Head(None, 3, 2, 0.25, len(train.key))

        def found(plan, head, films, *, classes, shown):
            return answers(films.truth(classes), turns[-1])

        monkeypatch.setattr(detection, "fit_head", fitted)
        monkeypatch.setattr(detection, "detect", found)
        plan = with_detection(random_plan, fractions=fractions)
        return evaluate_detection(plan, phantom_data, tmp_path, split="train")

    return call


def moved(truth: ImageBoxes, by: float = 0.0, score: float = 0.9) -> ImageBoxes:
    return ImageBoxes(truth.row, truth.box + by, truth.label, np.full(len(truth.row), score))


def test_a_detector_that_finds_every_box_scores_one_and_one_that_misses_all_scores_nought(evaluated, train, classes):
    for by, expected in ((0.0, 1.0), (1000.0, 0.0)):
        results, _ = evaluated(lambda truth, _, by=by: moved(truth, by))
        parts = [results, *results["fractions"].values()]
        found = [part[name] for part in parts for name in ("map", "map_compat")]
        found += [part["ap"] for group in ("per_class", "per_threshold") for part in results[group].values()]
        for interval in found:
            assert interval == pytest.approx({"value": expected, "low": expected, "high": expected}, abs=1e-9)
    assert results["per_class"].keys() == set(classes) == set(results["classes"])
    assert list(results["per_threshold"]) == ["0.40", "0.45", "0.50", "0.55", "0.60", "0.65", "0.70", "0.75"]
    assert (results["n"], results["data_set"]) == (len(train.key), "phantom")
    assert (results["boxes"], results["other_boxes"]) == (sum(map(len, train.boxes)), 0)
    head = {"train_images": len(train.key), "epochs": 3, "best_epoch": 2, "validation_map": 0.25}
    assert results["fractions"]["1"].items() >= head.items()


def test_a_detector_that_finds_nothing_or_nothing_surely_scores_nought(evaluated):
    def nothing(truth, _):
        return truth.of(np.zeros(len(truth.row), bool))

    results, _ = evaluated(nothing)
    assert (results["map"]["value"], results["map_compat"]["value"]) == (0, 0)
    assert results["fractions"]["1"]["compat_images"] == 0
    results, _ = evaluated(lambda truth, _: moved(truth, score=0.49))
    assert (results["map"]["value"], results["map_compat"]["value"]) == (pytest.approx(1), 0)


def test_what_is_left_out_for_comparison_counts_in_the_standard(evaluated, train):
    """Half of the images found without a mistake, nothing in the others: perfect by the peers' count."""
    results, _ = evaluated(lambda truth, _: moved(truth.of(truth.row % 2 == 0)))
    assert results["map_compat"]["value"] == pytest.approx(1)
    assert 0.2 < results["map"]["value"] < 0.8
    shown = {row for row, boxes in enumerate(train.boxes) if boxes and row % 2 == 0}
    assert results["fractions"]["1"]["compat_images"] == len(shown)


def test_the_totals_are_those_of_the_largest_share(evaluated):
    results, _ = evaluated(lambda truth, turn: moved(truth, 0.0 if turn == 0.1 else 1000.0), fractions=(0.1, 1.0))
    assert {name: part["map"]["value"] for name, part in results["fractions"].items()} == {
        "0.1": pytest.approx(1),
        "1": 0,
    }
    assert results["map"]["value"] == 0


def test_the_samples_on_disk_give_the_results_again(evaluated, tmp_path):
    def shifted(truth, turn):
        rng = np.random.default_rng(int(10 * turn))
        box = truth.box + rng.normal(0, 2, truth.box.shape)
        return ImageBoxes(truth.row, box.astype(np.float32), truth.label, rng.uniform(0.3, 1, len(box)))

    results, samples = evaluated(shifted, fractions=(0.1, 1.0))
    np.savez_compressed(tmp_path / "samples.npz", **samples)
    with np.load(tmp_path / "samples.npz") as file:
        read = dict(file)
    assert all(len(column) == results["n"] for name, column in read.items() if "/" not in name)
    statistics = statistics_of(read)
    values = statistics(np.arange(results["n"]))
    assert values["map"] == results["map"]["value"]
    assert values["fractions/0.1/map_compat"] == results["fractions"]["0.1"]["map_compat"]["value"]
    assert values["map"] != values["fractions/0.1/map"]
    once = differences_of(statistics, statistics_of(samples), read["patient"], resamples=20, seed=0)
    assert once["map"] == {"value": 0, "low": 0, "high": 0, "p": 1}
    bare = np.flatnonzero(~np.isin(np.arange(results["n"]), read["truth/row"]))
    assert statistics(bare) == {}


def test_boxes_of_a_class_that_is_not_trained_are_counted_and_left_out(evaluated, monkeypatch, classes):
    monkeypatch.setattr(detection, "classes_of", lambda _: classes[1:])
    results, _ = evaluated(lambda truth, _: moved(truth))
    assert results["map"]["value"] == pytest.approx(1)
    assert results["other_boxes"] > 0
    assert classes[0] not in results["per_class"]


def test_the_real_path_trains_a_head_and_scores_it(random_plan, phantom_data, tmp_path):
    plan = random_plan
    results, samples = evaluate_detection(plan, phantom_data, tmp_path, split="test")
    assert results["n"] == len(open_split(phantom_data, "test")) == len(samples["key"])
    assert 0 <= results["map"]["low"] <= results["map"]["high"] <= 1
    (folder,) = (tmp_path / "detection" / "phantom" / "0.1").iterdir()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == results["fractions"]["0.1"]["epochs"]
    box, split = samples["0.1/box"], open_split(phantom_data, "test")
    assert len(box) > 0
    height, width = decode_image(split[0].image, name="film").shape
    assert (box >= 0).all()
    assert (box <= [width, height, width, height]).all()
    assert evaluate_detection(plan, phantom_data, tmp_path, split="test")[0] == results
