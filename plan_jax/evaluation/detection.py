"""Detection: a YOLOv3 head on the frozen image encoder, trained with boxes, and its mean average precision.

`map` is the standard: every image counts, with all its detections down to `detection.lowest_score`. `map_compat` is
what MGCA's code computes, for comparison with such numbers alone: it knows detections of `detection.compat_score` and
more only, and images that have one of these and a true box only. What is detected in a healthy image then costs
nothing, nor does a finding in an image in which nothing is detected; the cut in score costs recall. Both are means over
the overlaps .4, .45, ... .75 and over the classes of COCO's average precision.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Int

from plan_jax.data.records import read_manifest
from plan_jax.detection.average_precision import (
    THRESHOLDS,
    AveragePrecision,
    ImageBoxes,
    comparable,
    mean_precision,
)
from plan_jax.detection.detect import detect
from plan_jax.detection.examples import classes_of
from plan_jax.detection.films import detection_films
from plan_jax.detection.fit import Head, fit_head, head_folder
from plan_jax.errors import InputError
from plan_jax.evaluation.described import described
from plan_jax.evaluation.progress import progress
from plan_jax.inference import Plan

COLUMNS = ("row", "box", "label", "score")


def evaluate_detection(plan: Plan, directory: Path, workdir: Path, *, split: str) -> tuple[dict, dict[str, np.ndarray]]:
    """Trains a head for each of `detection.fractions`, or reads it where it is trained, and scores it on a split.

    The classes are those with boxes in the training split. Boxes of others are left out and counted, as `other_boxes`.

    Args:
        plan: the model whose encoder is used; its parameters stay as they are.
        directory: a built data set with boxes in train, validation and `split` (RSNA: `detection_films`).
        workdir: the run, where heads are kept (`plan_jax.detection.fit`).
        split: what is scored.

    Returns:
        The results, whose totals, classes and thresholds are those of the largest fraction, and all boxes: `truth/box`
        and so on, FRACTION/box of what is found.
    """
    train, validation, tested = detection_films(
        directory,
        ("train", "validation", split),
        shown=lambda part: progress(range(len(part)), f"boxes ({part.name})", "image"),
    )
    classes, name = classes_of(train), read_manifest(directory)["name"]
    truth = tested.truth(classes)
    if not len(truth.row):
        raise InputError(f"{tested.split} must hold boxes of {', '.join(classes)}, got none; choose another split")
    samples = {"key": tested.key, "patient": tested.patient, "classes/name": np.array(classes)}
    samples |= {"compat/score": np.array(plan.config.detection.compat_score), **_columns("truth", truth)}
    heads = {}
    for fraction in plan.config.detection.fractions:
        folder = head_folder(plan, train, name=name, fraction=fraction, workdir=workdir)
        head = fit_head(plan, train, validation, classes=classes, fraction=fraction, folder=folder)
        found = detect(
            plan,
            head.variables,
            tested,
            classes=classes,
            shown=lambda batches: progress(batches, f"detection ({split})", "batch"),
        )
        heads[f"{fraction:g}"] = head
        samples |= _columns(f"{fraction:g}", found)
    results = _results(samples, heads, plan.config.evaluation.bootstrap)
    every = sum(len(boxes) for boxes in tested.boxes)
    counts = {"n": len(tested.key), "boxes": len(truth.row), "other_boxes": every - len(truth.row)}
    return results | counts | {"data_set": name, "classes": list(classes)}, samples


def statistics_of(samples: dict[str, np.ndarray]) -> Callable[[Int[np.ndarray, " m"]], dict[str, float]]:
    """The metrics of given images, an image given twice counting twice.

    `map` and `map_compat` of the largest fraction, per_class/NAME/ap and per_threshold/OVERLAP/ap of its `map`, and
    fractions/FRACTION/map and .../map_compat. Where no image shows a box nothing is defined; `map_compat` is 0 where
    boxes are but no image is left.
    """
    images, classes = len(samples["key"]), [str(name) for name in samples["classes/name"]]
    truth, score = _boxes_in(samples, "truth"), float(samples["compat/score"])
    size = {"images": images, "classes": len(classes)}
    scorers = {}
    for name in _fractions_in(samples):
        found = _boxes_in(samples, name)
        standard = AveragePrecision(found, truth, **size)
        scorers[name] = standard, AveragePrecision(*comparable(found, truth, lowest_score=score), **size)

    def statistics(rows: Int[np.ndarray, " m"]) -> dict[str, float]:
        count = np.bincount(rows, minlength=images).astype(np.float64)
        found = {}
        for name, (standard, compat) in scorers.items():
            table = standard.of(count)
            value = mean_precision(table)
            if value is None:
                return {}
            own = {"map": value, "map_compat": mean_precision(compat.of(count)) or 0.0}
            found |= {f"fractions/{name}/{metric}": each for metric, each in own.items()}
            if name == list(scorers)[-1]:
                found |= own | _details(table, classes)
        return found

    return statistics


def _details(table: np.ndarray, classes: list[str]) -> dict[str, float]:
    shown = ~np.isnan(table[0])
    found = {f"per_class/{name}/ap": float(table[:, n].mean()) for n, name in enumerate(classes) if shown[n]}
    overlaps = zip(THRESHOLDS, table[:, shown].mean(axis=1), strict=True)
    return found | {f"per_threshold/{overlap:.2f}/ap": float(value) for overlap, value in overlaps}


def _results(samples: dict[str, np.ndarray], heads: dict[str, Head], resamples: int) -> dict:
    """Every metric with its interval over patients, and of what each head is."""
    results = described(statistics_of(samples), samples["patient"], resamples=resamples)
    for fraction, head in heads.items():
        found, truth = _boxes_in(samples, fraction), _boxes_in(samples, "truth")
        left = comparable(found, truth, lowest_score=float(samples["compat/score"]))[1]
        results["fractions"][fraction] |= {
            "train_images": head.images,
            "epochs": head.epochs,
            "best_epoch": head.best_epoch,
            "validation_map": head.validation_map,
            "compat_images": len(np.unique(left.row)),
        }
    return results


def _columns(name: str, boxes: ImageBoxes) -> dict[str, np.ndarray]:
    return {f"{name}/{column}": getattr(boxes, column) for column in COLUMNS}


def _boxes_in(samples: dict[str, np.ndarray], name: str) -> ImageBoxes:
    return ImageBoxes(**{column: samples[f"{name}/{column}"] for column in COLUMNS})


def _fractions_in(samples: dict[str, np.ndarray]) -> list[str]:
    """Rising."""
    named = {name.partition("/")[0] for name in samples if name.endswith("/box")}
    return sorted(named - {"truth"}, key=float)
