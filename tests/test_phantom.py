"""Phantoms are what they say they are: exact masks, true sides, reports that mention what is there and nothing else."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest

from plan_jax.data.phantom import (
    LEVELS,
    MIN_SIZE,
    PhantomSet,
    make_phantom,
    patient_of,
    phantom_record,
    split_of_patients,
)
from plan_jax.data.phantom_easy import PARTNERS
from plan_jax.data.phantom_scene import Ellipse, Scene, side_of, zone_of
from plan_jax.data.phantom_text import DISTRACTORS, SYNONYMS
from plan_jax.data.records import SPLITS
from plan_jax.data.store import Store
from plan_jax.data.text import split_sentences
from plan_jax.errors import InputError

COUNT = 300
SIZES = {"easy": 64, "realistic": 96, "cooc": 64}


@pytest.fixture(scope="module")
def phantoms():
    return {level: [make_phantom(5, index, level=level) for index in range(COUNT)] for level in LEVELS}


def decode(png: bytes) -> np.ndarray:
    return cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED)


@pytest.fixture(params=LEVELS)
def level(request) -> str:
    return request.param


def test_a_phantom_does_not_depend_on_which_others_were_made(phantoms, level):
    for index in (299, 7, 8):
        assert phantom_record(make_phantom(5, index, level=level)) == phantom_record(phantoms[level][index])


def test_seed_index_and_level_each_change_the_image():
    images = [
        make_phantom(seed, index, level="easy").scene.image.tobytes()
        for seed, index in ((0, 0), (0, 1), (1, 0), (1, 1))
    ]
    assert len(set(images)) == 4
    assert make_phantom(0, 0, level="realistic").scene.image.shape == (96, 96)


def test_images_are_bytes_of_the_stated_size_with_a_few_distinct_findings(phantoms, level):
    counts = Counter()
    for phantom in phantoms[level]:
        assert phantom.scene.image.shape == (SIZES[level],) * 2
        assert phantom.scene.image.dtype == np.uint8
        categories = [finding.category for finding in phantom.scene.findings]
        assert len(set(categories)) == len(categories)
        counts[len(categories)] += 1
    assert set(counts) == ({1, 2, 3, 4} if level == "cooc" else {1, 2, 3})


def test_every_class_occurs_and_the_label_list_is_exact(phantoms, level):
    seen = set()
    for phantom in phantoms[level]:
        record = phantom_record(phantom)
        assert record.labels == tuple(phrase.category for phrase in record.phrases)
        seen |= set(record.labels)
    assert seen == set(LEVELS[level][1])


def test_a_mask_holds_exactly_the_pixels_that_its_finding_changes(phantoms, level):
    for phantom in phantoms[level]:
        for finding, phrase in zip(phantom.scene.findings, phantom_record(phantom).phrases, strict=True):
            alone = Scene(phantom.scene.background, (finding,)).image
            without = Scene(phantom.scene.background, ()).image
            np.testing.assert_array_equal(decode(phrase.mask), np.where(alone != without, 255, 0))


def test_without_its_findings_an_image_is_its_background_elsewhere(phantoms, level):
    for phantom in phantoms[level]:
        outside = ~np.any([finding.mask for finding in phantom.scene.findings], axis=0)
        without = Scene(phantom.scene.background, ()).image
        np.testing.assert_array_equal(phantom.scene.image[outside], without[outside])


def test_boxes_are_tight_around_the_mask_and_inside_the_image(phantoms, level):
    for phantom in phantoms[level]:
        for phrase in phantom_record(phantom).phrases:
            mask, inside = decode(phrase.mask) > 0, 0
            assert len(phrase.boxes) == (2 if phrase.side == "both" else 1)
            for x0, y0, x1, y1 in (tuple(map(int, box)) for box in phrase.boxes):
                assert 0 <= x0 < x1 <= SIZES[level]
                assert 0 <= y0 < y1 <= SIZES[level]
                part = mask[y0:y1, x0:x1]
                inside += part.sum()
                assert all(edge.any() for edge in (part[0], part[-1], part[:, 0], part[:, -1]))
            assert inside == mask.sum()


def test_the_patients_left_is_on_the_images_right(phantoms, level):
    for phantom in phantoms[level]:
        for finding in phantom.scene.findings:
            centre = np.nonzero(finding.mask)[1].mean()
            if finding.side in ("left", "right") and abs(centre - SIZES[level] / 2) > 4:
                assert finding.side == ("left" if centre > SIZES[level] / 2 else "right")


def test_easy_findings_always_have_a_side_and_a_zone_that_go_with_their_place(phantoms):
    rows = defaultdict(list)
    for phantom in phantoms["easy"]:
        for finding in phantom.scene.findings:
            assert finding.side in ("left", "right")
            ((_, y0, _, y1),) = finding.boxes
            rows[finding.zone].append((y0 + y1) / 2)
    # The lungs' centres are at rows 30 to 34, a third of their height is 17 to 19 rows; boxes are whole pixels.
    assert max(rows["upper"]) <= 34 - 8.5 + 1
    assert min(rows["lower"]) >= 30 + 8.5 - 1
    assert min(rows["mid"]) >= 30 - 9.5 - 1
    assert max(rows["mid"]) <= 34 + 9.5 + 1


def test_the_boxes_of_a_finding_on_both_sides_are_apart_the_images_left_one_first(phantoms):
    both = [f for phantom in phantoms["realistic"] for f in phantom.scene.findings if f.side == "both"]
    assert both
    for first, second in (finding.boxes for finding in both):
        assert first[2] <= second[0]


def test_partners_come_together_in_nine_of_ten_images(phantoms):
    present = [{f.category for f in phantom.scene.findings} for phantom in phantoms["cooc"]]
    both = sum({a, b} <= found for found in present for a, b in PARTNERS)
    either = sum(bool({a, b} & found) for found in present for a, b in PARTNERS)
    assert 0.7 < both / either < 0.95  # drawn at 0.85; now and then there is no room for the second


def test_zones_are_thirds_of_the_lung_and_sides_its_halves():
    lung = Ellipse(46, 32, 13.5, 27)
    assert [zone_of(y, lung) for y in (5, 22, 24, 40, 42, 59)] == ["upper", "upper", "mid", "mid", "lower", "lower"]
    assert [side_of(x, 64) for x in (0, 31, 32, 63)] == ["right", "right", "left", "left"]


def test_easy_findings_keep_their_distance_and_lie_in_the_lungs(phantoms):
    for phantom in phantoms["easy"]:
        boxes = [box for finding in phantom.scene.findings for box in finding.boxes]
        centres = [((x0 + x1) / 2, (y0 + y1) / 2) for x0, y0, x1, y1 in boxes]
        for number, a in enumerate(centres):
            assert 2 < a[0] < 62  # lungs' centres 18 and 46, jitter 2, half width 14.2
            for b in centres[:number]:
                assert np.hypot(a[0] - b[0], a[1] - b[1]) > 15 - 2  # boxes are whole pixels


def test_a_report_mentions_each_finding_once_and_negates_only_absent_ones(phantoms, level):
    for phantom in phantoms[level]:
        present = {finding.category for finding in phantom.scene.findings}
        sentences = list(phantom.report.sentences)
        for mention in phantom.report.mentions:
            (said,) = [s for s in sentences if re.search(rf"\b{mention.phrase}\b", s)]
            assert not re.search(r"\b(no|not|without)\b", said)
            sentences.remove(said)
        negations = [s for s in sentences if s not in DISTRACTORS]
        assert len(negations) == len(phantom.report.negated) <= 2
        assert len(sentences) - len(negations) <= 1
        for sentence in negations:
            assert re.search(r"\b(no|not|without)\b", sentence)
            absent = {
                name
                for name in LEVELS[level][1]
                for words in SYNONYMS[name]
                if re.search(rf"\b{re.sub('^an? ', '', words)}(\.| is)", sentence)
            }
            assert absent
            assert not absent & present


def test_phrases_carry_their_findings_class_side_and_zone(phantoms, level):
    for phantom in phantoms[level]:
        for phrase in phantom_record(phantom).phrases:
            names = [re.sub("^an? ", "", name) for name in SYNONYMS[phrase.category]]
            assert any(phrase.text == name or phrase.text.startswith((f"{name} in ", f"{name} on ")) for name in names)
            place = set(phrase.text.split()) & {"left", "right", "both", "upper", "mid", "lower"}
            assert place <= {phrase.side, phrase.zone}
            assert phrase.located == bool(place)


def test_about_half_of_the_phrases_say_where(phantoms):
    located = [mention.located for phantom in phantoms["easy"] for mention in phantom.report.mentions]
    assert 0.42 < np.mean(located) < 0.58


def test_reports_are_lower_case_sentences_of_few_words(phantoms, level):
    words = set()
    for phantom in phantoms[level]:
        (_, text), *others = phantom_record(phantom).sections
        assert not others
        assert text == text.lower()
        assert tuple(split_sentences(text)) == phantom.report.sentences
        words |= set(re.findall(r"\w+", text))
    assert 55 <= len(words) <= 80


def test_images_of_a_patient_share_anatomy_and_not_noise():
    assert [patient_of(index) for index in range(7)] == [0, 0, 1, 2, 2, 3, 4]
    scenes = [make_phantom(0, index, level="easy").scene for index in range(3)]
    difference = [scenes[0].background - scenes[i].background for i in (1, 2)]
    assert 7 < difference[0].std() < 10  # two noises of standard deviation 6
    assert difference[1].std() > 12  # another anatomy on top


@pytest.mark.parametrize("size", [MIN_SIZE, 101, 3000])
def test_splits_are_disjoint_by_patient_and_of_the_stated_size(size):
    splits = split_of_patients(size, 3)
    counts = Counter(splits)
    assert set(counts) == set(SPLITS)
    assert all(counts[name] == max(1, round(0.04 * len(splits))) for name in SPLITS[1:])
    if size < 1000:
        rows = PhantomSet(size=size, seed=3, level="easy").rows()
        records = {name: [PhantomSet.record(row, Store()) for row in part] for name, part in rows.items()}
        assert sorted(record.key for part in records.values() for record in part) == [
            f"phantom-{i:06d}" for i in range(size)
        ]
        patients = [{record.patient for record in part} for part in records.values()]
        assert sum(map(len, patients)) == len(set.union(*patients))
    assert split_of_patients(size, 3) == splits != split_of_patients(size, 4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"level": "hard"}, "--level must be one of easy, realistic, cooc"),
        ({"size": MIN_SIZE - 1}, f"--size must be at least {MIN_SIZE}"),
        ({"seed": -1}, "--seed must be 0 or more"),
        ({"raw": Path("x")}, "--raw must be left out"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        PhantomSet.open(**{"raw": None, "seed": 0, "size": None, "level": ""} | options)
