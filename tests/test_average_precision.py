"""Average precision beside pycocotools from end to end, and cases worked by hand."""

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from plan_jax.detection.average_precision import (
    THRESHOLDS,
    AveragePrecision,
    ImageBoxes,
    comparable,
    matches,
    mean_precision,
)

IMAGES, CLASSES = 12, 3
BOX = (10.0, 10.0, 30.0, 50.0)
ELSEWHERE = (60.0, 60.0, 70.0, 70.0)


def boxes(*rows: tuple[int, tuple, int, float]) -> ImageBoxes:
    """From (image, box, class, score)."""
    return ImageBoxes(
        row=np.array([row for row, _, _, _ in rows], np.int32),
        box=np.array([box for _, box, _, _ in rows], np.float64).reshape(-1, 4),
        label=np.array([label for _, _, label, _ in rows], np.int32),
        score=np.array([score for _, _, _, score in rows], np.float64),
    )


def table_of(found: ImageBoxes, truth: ImageBoxes, *, images=IMAGES, classes=CLASSES, count=None) -> np.ndarray:
    scorer = AveragePrecision(found, truth, images=images, classes=classes)
    return scorer.of(np.ones(images) if count is None else np.asarray(count, float))


def made_up(seed: int, *, ties: str = "none") -> tuple[ImageBoxes, ImageBoxes]:
    """Boxes, and detections of which some are near one, some are doubled, some are in images without any."""
    rng = np.random.default_rng(seed)
    truth, found = [], []
    for image in range(IMAGES - 2):
        for _ in range(rng.integers(0, 4)):
            corner, size = rng.uniform(0, 60, 2), rng.uniform(8, 40, 2)
            label = int(rng.integers(0, CLASSES - 1))  # the last class is never there
            truth.append((image, (*corner, *(corner + size)), label, 1.0))
            for _ in range(rng.integers(0, 3)):
                moved = np.array([*corner, *(corner + size)]) + rng.normal(0, 3, 4)
                found.append((image, tuple(moved), label if rng.uniform() < 0.8 else CLASSES - 1, rng.uniform()))
    for image in rng.integers(0, IMAGES, 15):
        corner = rng.uniform(0, 60, 2)
        found.append((image, (*corner, *(corner + 20)), int(rng.integers(0, CLASSES)), rng.uniform()))
    if ties == "everywhere":
        found = [(image, box, label, round(score * 4) / 4) for image, box, label, score in found]
    elif ties == "between images":
        found = [(image, box, label, n % 9 / 9) for n, (image, box, label, _) in enumerate(sorted(found))]
    return boxes(*[found[n] for n in rng.permutation(len(found))]), boxes(*truth)


def coco_table(found: ImageBoxes, truth: ImageBoxes, order: np.ndarray) -> np.ndarray:
    """What pycocotools says of the images of `order`, each a new image, by its own loader and its own sums."""

    def annotations(every: ImageBoxes) -> list[dict]:
        return [
            {
                "image_id": place,
                "category_id": int(every.label[n]),
                "bbox": [*every.box[n, :2].tolist(), *(every.box[n, 2:] - every.box[n, :2]).tolist()],
                "score": float(every.score[n]),
                "iscrowd": 0,
            }
            for place, image in enumerate(order)
            for n in np.flatnonzero(every.row == image)
        ]

    def numbered(rows: list[dict]) -> list[dict]:
        return [row | {"id": n + 1, "area": row["bbox"][2] * row["bbox"][3]} for n, row in enumerate(rows)]

    known = COCO()
    known.dataset = {
        "images": [{"id": place} for place in range(len(order))],
        "categories": [{"id": label} for label in range(CLASSES)],
        "annotations": numbered(annotations(truth)),
    }
    known.createIndex()
    evaluation = COCOeval(known, known.loadRes(annotations(found)), "bbox")
    evaluation.params.iouThrs, evaluation.params.maxDets = np.array(THRESHOLDS), [1000]
    evaluation.evaluate()
    evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 0]  # [T R C], the area range "all"
    return np.where(precision[:, 0] < 0, np.nan, precision.mean(axis=1))


@pytest.mark.parametrize("ties", ["none", "everywhere"])
@pytest.mark.parametrize("seed", range(3))
def test_every_class_and_threshold_is_what_pycocotools_says(seed, ties):
    found, truth = made_up(seed, ties=ties)
    expected = coco_table(found, truth, np.arange(IMAGES))
    assert np.isnan(expected[:, -1]).all()
    assert 0.05 < np.nanmean(expected) < 0.95
    np.testing.assert_allclose(table_of(found, truth), expected, atol=1e-12)


@pytest.mark.parametrize("ties", ["none", "between images"])
def test_a_resample_is_what_pycocotools_says_of_images_that_are_there_several_times(ties):
    found, truth = made_up(5, ties=ties)
    scorer = AveragePrecision(found, truth, images=IMAGES, classes=CLASSES)
    rng = np.random.default_rng(0)
    for _ in range(5):
        drawn = np.sort(rng.integers(0, IMAGES, IMAGES))
        table = scorer.of(np.bincount(drawn, minlength=IMAGES).astype(float))
        np.testing.assert_allclose(table, coco_table(found, truth, drawn), atol=1e-12)


def plain_hits(found: ImageBoxes, truth: ImageBoxes, threshold: float) -> list[bool]:
    hit, taken = [False] * len(found.row), set()
    for n in sorted(range(len(hit)), key=lambda n: (found.row[n], -found.score[n], n)):
        best, most = None, threshold
        for t in range(len(truth.row)):
            if t in taken or (truth.row[t], truth.label[t]) != (found.row[n], found.label[n]):
                continue
            a, b = found.box[n], truth.box[t]
            shared = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
            if shared / union >= most:
                best, most = t, shared / union
        if best is not None:
            taken.add(best)
            hit[n] = True
    return hit


def test_who_hits_a_box_is_what_a_plain_loop_says():
    found, truth = made_up(7)
    hit = matches(found, truth, images=IMAGES, classes=CLASSES)
    for column, threshold in enumerate(THRESHOLDS):
        assert hit[:, column].tolist() == plain_hits(found, truth, threshold)
    assert hit[:, 0].sum() > hit[:, -1].sum() > 0


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (boxes((0, BOX, 0, 0.9)), 1.0),
        (boxes(), 0.0),
        (boxes((0, ELSEWHERE, 0, 0.9)), 0.0),
        (boxes((0, BOX, 1, 0.9)), 0.0),  # of another class
        (boxes((1, BOX, 0, 0.9)), 0.0),  # in another image
        (boxes((0, ELSEWHERE, 0, 0.9), (0, BOX, 0, 0.5)), 0.5),  # found second of two
        (boxes((1, ELSEWHERE, 0, 0.9), (0, BOX, 0, 0.5)), 0.5),  # the same with the mistake in an image without boxes
        (boxes((0, ELSEWHERE, 0, 0.1), (0, BOX, 0, 0.5)), 1.0),  # what comes after all are found costs nothing
        (boxes((0, BOX, 0, 0.9), (0, BOX, 0, 0.8)), 1.0),  # nor does finding it twice
        (boxes((0, BOX, 0, 0.5), (0, ELSEWHERE, 0, 0.5)), 1.0),  # of equal scores the first counts as the better
    ],
)
def test_one_box_in_one_of_two_images(found, expected):
    table = table_of(found, boxes((0, BOX, 0, 1.0)), images=2, classes=2)
    np.testing.assert_allclose(table[:, 0], expected, atol=1e-12)
    assert np.isnan(table[:, 1]).all()
    assert mean_precision(table) == pytest.approx(expected)


def test_a_box_that_is_off_counts_at_the_thresholds_that_it_reaches():
    """20 x 40 px, 24 of the height found: overlap .6."""
    table = table_of(boxes((0, (10, 10, 30, 34), 0, 0.9)), boxes((0, BOX, 0, 1.0)), images=1, classes=1)
    np.testing.assert_allclose(table[:, 0], [threshold <= 0.6 for threshold in THRESHOLDS], atol=1e-12)
    assert THRESHOLDS == (0.4, 0.45, 0.5, 0.55, 0.6, 0.65, 0.7, 0.75)


def test_half_of_the_boxes_found_without_a_mistake_is_the_recalls_up_to_a_half():
    truth = boxes((0, BOX, 0, 1.0), (1, BOX, 0, 1.0))
    table = table_of(boxes((0, BOX, 0, 0.9)), truth, images=2, classes=1)
    np.testing.assert_allclose(table, 51 / 101)
    np.testing.assert_allclose(
        table_of(boxes((0, BOX, 0, 0.9)), truth, images=2, classes=1, count=[3, 1]), 76 / 101
    )  # three of four


def test_without_a_box_nothing_is_defined():
    table = table_of(boxes((0, BOX, 0, 0.9)), boxes(), images=1, classes=2)
    assert np.isnan(table).all()
    assert mean_precision(table) is None
    assert mean_precision(table_of(boxes(), boxes((0, BOX, 0, 1.0)), images=2, classes=1, count=[0, 2])) is None


def test_nothing_is_left_out_for_its_size_or_its_number():
    tiny, huge = (0.0, 0.0, 0.01, 0.01), (0.0, 0.0, 1e6, 1e6)
    truth = boxes((0, tiny, 0, 1.0), (0, huge, 0, 1.0), (0, BOX, 0, 1.0))
    many = [(0, ELSEWHERE, 0, 0.5)] * 150
    found = boxes(*many, (0, tiny, 0, 0.4), (0, huge, 0, 0.4), (0, BOX, 0, 0.4))
    np.testing.assert_allclose(table_of(found, truth, images=1, classes=1), 3 / 153)


def test_matching_prints_nothing(capsys):
    table_of(*made_up(0))
    assert capsys.readouterr() == ("", "")


def test_comparable_images_have_a_box_and_a_sure_detection():
    truth = boxes((0, BOX, 0, 1.0), (1, BOX, 0, 1.0), (3, BOX, 0, 1.0))
    found = boxes((0, BOX, 0, 0.5), (0, ELSEWHERE, 0, 0.49), (1, BOX, 0, 0.4), (2, BOX, 0, 0.9), (2, BOX, 0, 0.8))
    own, left = comparable(found, truth, lowest_score=0.5)
    assert (own.row.tolist(), own.score.tolist(), left.row.tolist()) == ([0], [0.5], [0])
    assert mean_precision(table_of(own, left, images=4, classes=1)) == pytest.approx(1)
    assert (mean_precision(table_of(found, truth, images=4, classes=1)) or 1) < 0.5
