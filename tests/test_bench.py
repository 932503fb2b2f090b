"""The supervised probe of a phantom level."""

import dataclasses
import json
import math

import jax
import numpy as np
import pytest
from conftest import CONFIG
from hypothesis import given
from hypothesis import strategies as st

from plan_jax.benchmark import bench as module
from plan_jax.benchmark.bench import (
    Phantoms,
    Probe,
    bench,
    bench_tables,
    bench_verdicts,
    cell_loss,
    cell_weights,
    encoder_of,
    fit_probe,
    probe,
    probe_logits,
    read_phantoms,
    score_probe,
    split_indices,
)
from plan_jax.config import DataConfig
from plan_jax.config_file import read_config
from plan_jax.data.phantom import LEVELS, make_phantom, patient_of
from plan_jax.encoders.resnet import receptive_field
from plan_jax.errors import InputError
from plan_jax.geometry import Letterbox
from plan_jax.model import initial_variables
from plan_jax.tables.render import render

WHOLE = DataConfig(image_size=64, crop=1.0)
SMALL = ("--config.image_encoder.width=8", "--config.alignment.dim=16")
KEYS = {"level", "class", "presence_auroc", "confused_with", "confused_auroc", "findings", "pointing", "cnr_signed"}
KEYS |= {"ceiling_pointing", "ceiling_cnr_signed", "images", "held_out", "steps", "receptive_field", "grid"}


@pytest.fixture(scope="module")
def config():
    """The phantom's configuration with a narrower network; phantoms of every size are shown at 64 px."""
    return read_config(CONFIG, SMALL)


@pytest.fixture(scope="module")
def rows(config):
    return probe("easy", config, images=60, steps=2, seed=0)


def test_a_level_has_a_row_per_class_with_everything_that_was_measured(rows, config):
    assert [row["class"] for row in rows] == list(LEVELS["easy"][1])
    for row in rows:
        assert set(row) == KEYS
        assert (row["level"], row["images"], row["held_out"], row["steps"]) == ("easy", 60, 9, 2)
        assert row["grid"] == [16, 16]
        assert row["receptive_field"] == receptive_field(config.image_encoder)[0] == 12
        assert row["findings"] == 0 or 0 <= row["pointing"] <= 1
        assert row["presence_auroc"] is None or 0 <= row["presence_auroc"] <= 1
    shown = [finding for index in range(60, 69) for finding in make_phantom(0, index, level="easy").scene.findings]
    assert sum(row["findings"] for row in rows) == len(shown)
    assert json.loads(json.dumps(rows, allow_nan=False)) == rows


def test_the_seed_decides_every_figure(rows, config):
    assert probe("easy", config, images=60, steps=2, seed=0) == rows
    assert probe("easy", config, images=60, steps=2, seed=1) != rows


def test_every_level_has_its_own_configuration_and_quick_means_less(monkeypatch, config):
    asked = []
    monkeypatch.setattr(module, "probe", lambda *call, **options: asked.append((call, options)) or [{"n": len(asked)}])
    other = dataclasses.replace(config, seed=1)
    assert bench({"realistic": config, "cooc": other}) == [{"n": 1}, {"n": 2}]
    bench({"easy": other}, quick=True, seed=4)
    assert [call for call, _ in asked] == [("realistic", config), ("cooc", other), ("easy", other)]
    full, _, quick = (options for _, options in asked)
    assert (full["seed"], quick["seed"]) == (0, 4)
    assert quick["images"] < full["images"]
    assert quick["steps"] < full["steps"]


def test_larger_originals_are_seen_at_the_size_of_the_model_and_scored_at_their_own():
    phantoms = read_phantoms("realistic", range(4), seed=0, data=WHOLE, grid=(16, 16))
    assert phantoms.image.shape == (4, 64, 64, 1)
    assert (phantoms.letterbox.height, phantoms.letterbox.width, phantoms.letterbox.size) == (96, 96, 64)
    for image, column, box in phantoms.findings:
        (finding,) = (
            finding
            for finding in make_phantom(0, image, level="realistic").scene.findings
            if finding.category == LEVELS["realistic"][1][column]
        )
        assert box == finding.boxes
        assert phantoms.share[image, ..., column].sum() * 36 == pytest.approx(finding.mask.sum(), rel=0.02)


@pytest.mark.parametrize("images", [1, 2, 3, 59, 60, 4000])
def test_no_patient_is_on_both_sides(images):
    train, held_out = split_indices(images)
    assert len(train) == images
    assert len(held_out) == max(1, round(0.15 * images))
    assert max(map(patient_of, train)) < min(map(patient_of, held_out))


def test_the_target_of_a_cell_is_the_share_that_the_mask_covers():
    phantoms = read_phantoms("easy", range(6), seed=3, data=WHOLE, grid=(16, 16))
    assert phantoms.image.shape == (6, 64, 64, 1)
    for index in range(6):
        scene = make_phantom(3, index, level="easy").scene
        np.testing.assert_array_equal(phantoms.image[index, ..., 0], scene.image)
        by_class = {finding.category: finding.mask for finding in scene.findings}
        for column, name in enumerate(LEVELS["easy"][1]):
            mask = by_class.get(name, np.zeros((64, 64), bool))
            pixels = [[mask[4 * i : 4 * i + 4, 4 * j : 4 * j + 4].sum() for j in range(16)] for i in range(16)]
            np.testing.assert_allclose(phantoms.share[index, ..., column], np.array(pixels) / 16, atol=1e-6)
    expected = [
        (index, LEVELS["easy"][1].index(finding.category), finding.boxes)
        for index in range(6)
        for finding in make_phantom(3, index, level="easy").scene.findings
    ]
    assert list(phantoms.findings) == expected


def test_the_probe_is_the_image_path_of_the_model_up_to_the_patch_features(config):
    shapes = jax.eval_shape(lambda: initial_variables(config, 0))
    model = Probe(encoder_of(config), dim=16, classes=8)
    image = jax.ShapeDtypeStruct((1, 64, 64, 1), np.uint8)
    own = jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)
    whole, part = shapes["params"], dict(own["params"])
    assert part.pop("classifier")["kernel"].shape == (16, 8)
    assert part.pop("patch_projection") == whole["patch_projection"]
    used = {name: leaf for name, leaf in whole["image_encoder"].items() if not name.startswith("stage2")}
    assert part == {"image_encoder": used}
    assert len(used) < len(whole["image_encoder"])


def test_the_loss_weighs_the_covered_part_of_a_cell():
    share = np.full((1, 1, 1, 2), [0.5, 0.25], np.float32)
    logits = np.zeros((1, 1, 1, 2), np.float32)
    loss = float(cell_loss(logits, share, np.array([3, 1], np.float32)))
    assert loss == pytest.approx(math.log(2) * ((3 * 0.5 + 0.5) + 1) / 2)
    logits[..., 0] = 2.0
    right, wrong = math.log1p(math.exp(-2)), math.log1p(math.exp(2))
    loss = float(cell_loss(logits, share, np.array([3, 1], np.float32)))
    assert loss == pytest.approx(((3 * 0.5 * right + 0.5 * wrong) + math.log(2)) / 2)


def test_rare_classes_weigh_more_and_absent_ones_weigh_what_one_cell_would():
    share = np.zeros((2, 2, 5, 3), np.float32)
    share[..., 0] = 0.25
    share[0, 0, :, 1] = 0.25  # a sixteenth of 20 cells
    np.testing.assert_allclose(cell_weights(share), [2, 4, math.sqrt(20)], rtol=1e-6)


def one_finding(box, *, size: int, cells: int) -> Phantoms:
    """Two images of which the first shows the only class."""
    share = np.zeros((2, cells, cells, 1), np.float32)
    share[0, 0, 0] = 1
    image = np.zeros((2, size, size, 1), np.uint8)
    return Phantoms(image, share, ((0, 0, (box,)),), Letterbox.fit(size, size, size))


def test_the_ceiling_of_the_grid_is_that_of_a_box_worked_by_hand():
    """A box of 4 x 4 pixels across two of four cells: 1/2 in the upper two cells, 0 in the lower two.

    On 8 rows that is .5 .5 .4375 .3125 .1875 .0625 0 0. The peak fills two rows, half of it in the box; the box holds
    four columns of the upper four rows (mean .4375) and the rest the other four columns and all of the lower rows.
    """
    (row,) = score_probe(
        np.zeros((2, 2, 2, 1), np.float32), one_finding((2.0, 0.0, 6.0, 4.0), size=8, cells=2), classes=("spot",)
    )
    assert row["ceiling_pointing"] == pytest.approx(0.5)
    assert row["ceiling_cnr_signed"] == pytest.approx(0.25 / math.sqrt(0.09375 / 15 + 1.78125 / 47))
    assert row["cnr_signed"] == 0  # of a map that is flat
    assert row["pointing"] == pytest.approx(16 / 64)


@given(st.integers(0, 14), st.integers(0, 14), st.integers(1, 8), st.integers(1, 8))
def test_a_grid_of_pixels_limits_nothing(x, y, width, height):
    box = (float(x), float(y), float(min(x + width, 16)), float(min(y + height, 16)))
    (row,) = score_probe(np.zeros((2, 16, 16, 1)), one_finding(box, size=16, cells=16), classes=("spot",))
    assert (row["ceiling_pointing"], row["ceiling_cnr_signed"]) == (1, 100)


def test_presence_is_scored_by_the_highest_patch_and_says_what_a_class_is_taken_for():
    """Class 0 is in images 0 and 1; it answers to image 2, which shows class 1, and not to image 3, of class 2."""
    share = np.zeros((4, 2, 2, 3), np.float32)
    share[[0, 1, 2, 3], 0, 0, [0, 0, 1, 2]] = 1
    findings = (
        (0, 0, ((0.0, 0.0, 1.0, 1.0),)),
        (1, 0, ((0.0, 0.0, 1.0, 1.0),)),
        (2, 1, ((0.0, 0.0, 2.0, 2.0),)),
    )
    logits = np.zeros((4, 2, 2, 3), np.float32)
    logits[0, 0, 0, 0], logits[1, 0, 0, 0], logits[2, 1, 1, 0], logits[3, :, :, 0] = 3, 1, 2, -1
    phantoms = Phantoms(np.zeros((4, 2, 2, 1), np.uint8), share, findings, Letterbox.fit(2, 2, 2))
    first, second, third = score_probe(logits, phantoms, classes=("a", "b", "c"))
    assert first["presence_auroc"] == 0.75  # of four pairs, image 1 against 2 is wrong
    assert (first["confused_with"], first["confused_auroc"]) == ("b", 0.5)
    assert (first["findings"], first["pointing"]) == (2, 1)
    # The box of the second fills its image, so that nothing is outside; the third has none.
    for row in (second, third):
        assert (row["findings"], row["pointing"], row["ceiling_cnr_signed"]) == (0, None, None)
        assert row["presence_auroc"] == 0.5


def test_a_class_that_is_in_no_image_is_not_scored():
    phantoms = dataclasses.replace(
        one_finding((0.0, 0.0, 1.0, 1.0), size=4, cells=2), share=np.zeros((2, 2, 2, 1), np.float32), findings=()
    )
    (row,) = score_probe(np.zeros((2, 2, 2, 1)), phantoms, classes=("spot",))
    assert (row["presence_auroc"], row["confused_with"], row["pointing"]) == (None, None, None)


def test_what_the_masks_show_is_learnt(config):
    """Dark discs are found after a few dozen steps and not before."""
    encoder = encoder_of(config)
    model = Probe(encoder, dim=16, classes=8)
    column = LEVELS["easy"][1].index("bulla")
    train, held_out = (
        read_phantoms("easy", indices, seed=0, data=WHOLE, grid=(16, 16)) for indices in split_indices(600)
    )
    found = {}
    for steps in (0, 60):
        state = fit_probe(model, train, steps=steps, seed=0, name="easy")
        logits = np.asarray(probe_logits(model, state, held_out.image))
        found[steps] = score_probe(logits, held_out, classes=LEVELS["easy"][1])[column]
    assert found[60]["presence_auroc"] > 0.9
    assert found[60]["presence_auroc"] > found[0]["presence_auroc"] + 0.2
    assert found[60]["pointing"] > found[0]["pointing"] + 0.2


def a_row(name, presence, *, level="easy", confused=None, **values):
    row = dict.fromkeys(KEYS) | {"level": level, "class": name, "presence_auroc": presence, "findings": 10}
    if confused:
        row |= {"confused_with": confused[0], "confused_auroc": confused[1]}
    return row | {"images": 40, "held_out": 6, "steps": 3, "receptive_field": 12, "grid": [16, 8]} | values


def test_tables_name_the_setting_and_end_with_macro_averages():
    rows = [
        a_row("bulla", 1.0, pointing=0.5, ceiling_cnr_signed=4.0),
        a_row("nodule", 0.5, pointing=1.0),
        a_row("edema", None, level="realistic", findings=0),
    ]
    easy, realistic = bench_tables(rows)
    for words in ("Level easy", "3 steps", "40 images", "6 held out", "16 x 8", "12 px"):
        assert words in easy.title
    assert easy.rows[-1] == ("macro average", 10, 0.75, 0.75, None, None, 4.0)
    assert realistic.rows[-1][1:] == (0, None, None, None, None, None)
    assert [len(table.rows) for table in (easy, realistic)] == [3, 2]
    text = render([easy, realistic])
    assert "nodule" in text
    assert "0.750" in text


def test_the_verdict_names_what_was_not_detected_and_does_not_raise():
    rows = [
        a_row("bulla", 0.9),
        a_row("nodule", 0.95, level="cooc"),
        a_row("opacity", 0.691, level="realistic", confused=("edema", 0.4)),
        a_row("effusion", 0.97, level="realistic"),
        a_row("edema", None, level="realistic"),
    ]
    assert bench_verdicts(rows) == [
        "easy: presence AUROC below 0.9 for no finding.",
        "cooc: presence AUROC below 0.9 for no finding.",
        "realistic: presence AUROC below 0.9 for opacity (0.691; 0.400 among images of edema), edema (not scored). "
        "Not to be believed.",
    ]


def test_what_cannot_be_probed_is_refused(config):
    with pytest.raises(InputError, match="level must be one of easy, realistic"):
        probe("hard", config, images=12, steps=1, seed=0)
    wrong = dataclasses.replace(config, image_encoder=dataclasses.replace(config.image_encoder, local_stage=3))
    with pytest.raises(InputError, match="local_stage must be from 1 to 2"):
        probe("easy", wrong, images=12, steps=1, seed=0)
    wrong = dataclasses.replace(config, image_encoder=dataclasses.replace(config.image_encoder, kind="vit"))
    with pytest.raises(InputError, match="kind must be resnet for the probe, got 'vit'"):
        probe("easy", wrong, images=12, steps=1, seed=0)
