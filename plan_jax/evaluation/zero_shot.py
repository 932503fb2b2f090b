"""Zero-shot finding presence: does the prompt of a class score higher on the images that show it?"""

from pathlib import Path

import numpy as np

from plan_jax.bootstrap import intervals_of
from plan_jax.data.records import Split, open_split, read_manifest
from plan_jax.errors import InputError
from plan_jax.evaluation.features import SplitImages, encode_split
from plan_jax.evaluation.prompts import prompts_of
from plan_jax.inference import Plan
from plan_jax.metrics import pick_threshold, zero_shot_metrics

SEED = 0  # of the bootstrap


def evaluate_zero_shot(plan: Plan, split: Split) -> dict:
    """AUROC, accuracy and F1 of every class and on average; see `plan_jax.tables`.

    A class's score is the mean over its prompts, whatever the other images are; its threshold is the best F1 of the
    validation split. `chance` gives every image the same score.
    """
    classes = tuple(read_manifest(split.directory)["classes"])
    if not classes:
        raise InputError(f"{split.directory} must have classes, got none; zero_shot needs a data set with labels")
    validation = encode_split(plan, open_split(Path(split.directory), "validation"), "thresholds")
    tuned = class_scores(plan, validation, classes)
    thresholds = np.array(
        [pick_threshold(*column) for column in zip(tuned.T, _labels(validation, classes).T, strict=True)]
    )

    images = encode_split(plan, split, "zero_shot")
    scores, labels = class_scores(plan, images, classes), _labels(images, classes)
    results = _described(scores, labels, thresholds, classes, images.patients, plan.config.evaluation.bootstrap)
    constant = zero_shot_metrics(np.zeros_like(scores), labels, np.zeros(len(classes)), classes)
    results["chance"] = {name: value for name, value in constant.items() if name not in ("per_class", "excluded")}
    return results | {"n": len(scores)}


def class_scores(plan: Plan, images: SplitImages, classes: tuple[str, ...]) -> np.ndarray:
    """[I C]: the mean score over each class's prompts."""
    prompts = [prompts_of(name) for name in classes]
    scores = plan.score(images.features, plan.encode_texts([text for group in prompts for text in group]))
    ends = np.cumsum([len(group) for group in prompts])[:-1]
    return np.stack([part.mean(axis=1) for part in np.split(scores, ends, axis=1)], axis=1)


def _labels(images: SplitImages, classes: tuple[str, ...]) -> np.ndarray:
    """[I C]: which classes are present."""
    return np.array([[name in present for name in classes] for present in images.labels])


def _described(scores, labels, thresholds, classes, patients, resamples) -> dict:
    """Macro averages and classes, each with an interval over patients, and the classes without both labels."""

    def flat(rows: np.ndarray) -> dict[str, float]:
        metrics = zero_shot_metrics(scores[rows], labels[rows], thresholds, classes)
        excluded, per_class = metrics.pop("excluded"), metrics.pop("per_class")
        del excluded
        return metrics | {f"{name}\n{metric}": v for name, row in per_class.items() for metric, v in row.items()}

    described: dict = {"per_class": {}}
    for name, value in intervals_of(flat, patients, resamples=resamples, seed=SEED).items():
        group, _, metric = name.rpartition("\n")
        (described["per_class"].setdefault(group, {}) if group else described)[metric] = value
    described["excluded"] = zero_shot_metrics(scores, labels, thresholds, classes)["excluded"]
    return described
