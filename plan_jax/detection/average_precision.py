"""Mean average precision of boxes, as COCO defines it, of any resample of the images without matching them anew.

pycocotools matches detections with true boxes, image by image; average precision is then the mean precision at 101
recalls. `AveragePrecision` computes what `COCOeval.accumulate` would of a resample, in which an image may be drawn
several times: every copy counts. Equal scores keep the order of the images, the copies of a detection side by side.
"""

import contextlib
import io
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

THRESHOLDS = tuple(round(0.4 + 0.05 * step, 2) for step in range(8))  # of the overlap: .4 to .75 (MGCA)
RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class ImageBoxes:
    """The boxes of many images, without order.

    Attributes:
        row: index of the image.
        box: (x0, y0, x1, y1).
        label: index of the class.
        score: of detections; ones for true boxes.
    """

    row: Int[np.ndarray, " d"]
    box: Float[np.ndarray, "d 4"]
    label: Int[np.ndarray, " d"]
    score: Float[np.ndarray, " d"]

    def of(self, kept: Bool[np.ndarray, " d"]) -> "ImageBoxes":
        """Those of the boxes that are kept."""
        return ImageBoxes(self.row[kept], self.box[kept], self.label[kept], self.score[kept])


class AveragePrecision:
    """Average precision by threshold and class, of all of `images` images or of a resample."""

    def __init__(self, found: ImageBoxes, truth: ImageBoxes, *, images: int, classes: int):
        hit = matches(found, truth, images=images, classes=classes)
        self._truth = np.zeros((images, classes))
        np.add.at(self._truth, (truth.row, truth.label), 1)
        self._hits: list[
            tuple[np.ndarray, list[np.ndarray]]
        ] = []  # of each class: rows by falling score, places of hits
        for label in range(classes):
            own = np.flatnonzero(found.label == label)
            own = own[np.argsort(found.row[own], kind="stable")]
            own = own[np.argsort(-found.score[own], kind="stable")]
            self._hits.append((found.row[own], [np.flatnonzero(hit[own, t]) for t in range(len(THRESHOLDS))]))

    def of(self, count: Float[np.ndarray, " images"]) -> Float[np.ndarray, "T C"]:
        """With `count` copies of each image; NaN for a class that none of them shows."""
        table = np.full((len(THRESHOLDS), len(self._hits)), np.nan)
        truth = count @ self._truth  # [n] [n C] -> [C]
        for label in np.flatnonzero(truth):
            row, hits = self._hits[label]
            weight = count[row]
            every = np.cumsum(weight)  # detections down to each
            for threshold, place in enumerate(hits):
                table[threshold, label] = _interpolated(weight[place], every[place], truth[label])
        return table


def _interpolated(hit: Float[np.ndarray, " p"], every: Float[np.ndarray, " p"], truth: float) -> float:
    """The mean over RECALLS of the best precision at that recall or a higher one, from the hits by falling score.

    Only at a hit can precision rise, so the misses between are known by their number.
    """
    right = np.cumsum(hit)
    precision = right / (every + np.spacing(1))  # pycocotools' guard against 0 / 0
    best = np.maximum.accumulate(precision[::-1])[::-1]
    first = np.searchsorted(right / truth, RECALLS)
    return float(np.append(best, 0.0)[first].mean())


def matches(found: ImageBoxes, truth: ImageBoxes, *, images: int, classes: int) -> Bool[np.ndarray, "d T"]:
    """Which detections hit a true box of their class, at each of THRESHOLDS (pycocotools).

    In falling score, a detection takes the free box that it overlaps most, if by as much as the threshold. Nothing is
    left out for its area or its number.
    """
    evaluation = COCOeval(iouType="bbox")
    with contextlib.redirect_stdout(io.StringIO()):  # it prints how it fares
        evaluation.cocoGt, evaluation.cocoDt = (_coco(boxes, images, classes) for boxes in (truth, found))
        evaluation.params.imgIds, evaluation.params.catIds = list(range(images)), list(range(classes))
        evaluation.params.iouThrs = np.array(THRESHOLDS)
        evaluation.params.maxDets = [max(1, len(found.row))]
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[-np.inf, np.inf]], ["all"]
        evaluation.evaluate()
    hit = np.zeros((len(found.row), len(THRESHOLDS)), bool)
    for each in evaluation.evalImgs:
        if each is not None and each["dtIds"]:
            hit[np.array(each["dtIds"]) - 1] = (each["dtMatches"] > 0).T
    return hit


def _coco(boxes: ImageBoxes, images: int, classes: int) -> COCO:
    extent = boxes.box[:, 2:] - boxes.box[:, :2]
    annotations = [
        {
            "id": number + 1,  # 0 would read as no match
            "image_id": int(row),
            "category_id": int(label),
            "bbox": [*corner, *size],
            "area": size[0] * size[1],
            "iscrowd": 0,
            "score": score,
        }
        for number, (row, label, corner, size, score) in enumerate(
            zip(
                boxes.row,
                boxes.label,
                boxes.box[:, :2].tolist(),
                extent.tolist(),
                boxes.score.tolist(),
                strict=True,
            )
        )
    ]
    coco = COCO()
    dataset: Any = {
        "images": [{"id": number} for number in range(images)],
        "categories": [{"id": number} for number in range(classes)],
        "annotations": annotations,
    }
    coco.dataset = dataset
    coco.createIndex()
    return coco


def comparable(found: ImageBoxes, truth: ImageBoxes, *, lowest_score: float) -> tuple[ImageBoxes, ImageBoxes]:
    """What MGCA scores: detections of `lowest_score` or more, and only images that have one of these and a true box."""
    found = found.of(found.score >= lowest_score)
    both = np.intersect1d(found.row, truth.row)
    return found.of(np.isin(found.row, both)), truth.of(np.isin(truth.row, both))


def mean_precision(table: Float[np.ndarray, "T C"]) -> float | None:
    """The mean over thresholds and over the classes that are shown; None where none is."""
    shown = ~np.isnan(table[0])
    return float(table[:, shown].mean()) if shown.any() else None
