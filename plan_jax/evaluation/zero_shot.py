"""Zero-shot finding presence: does the prompt of a class score higher on the images that show it?"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Float

from plan_jax.data.records import Split, open_split, read_manifest
from plan_jax.evaluation.described import described
from plan_jax.evaluation.features import SplitImages, check_labels, classes_of, encode_split, is_single_label
from plan_jax.evaluation.prompts import prompts_of
from plan_jax.inference import Plan
from plan_jax.metrics.classification import (
    chosen,
    classification_metrics,
    pick_threshold,
    scorable_classes,
    standardised,
)

TUNED_ON = "validation"


def evaluate_zero_shot(plan: Plan, split: Split, *, scratch: Path | None = None) -> tuple[dict, dict[str, np.ndarray]]:
    """Metrics of every class and on average; see `plan_jax.tables.files`.

    Where the classes exclude each other, the class of the highest score is chosen. Else a class is called present from
    the threshold on that has the best F1 on the validation split; a data set without that split has no accuracy and no
    F1 ("thresholds": "none"). `chance` gives every image the same score.

    Returns:
        The results; and per image the scores and labels that `statistics_of` reads.
    """
    classes, single = classes_of(split, "zero_shot"), is_single_label(split)
    data_set = read_manifest(split.directory)["name"]
    images = encode_split(plan, split, "zero_shot", scratch=scratch)
    scores, labels = class_scores(plan, images, classes, data_set), images.label_matrix(classes)
    thresholds = None
    if single:
        check_labels(labels, split)
    else:
        thresholds = _thresholds(plan, split, classes, scratch)
    samples = {
        "key": images.keys,
        "patient": images.patients,
        "scores": scores,
        "labels": labels,
        "classes/names": np.array(classes),
        "classes/exclusive": np.array(single),
        "classes/thresholds": np.full(len(classes), np.nan) if thresholds is None else thresholds,
    }
    resamples = plan.config.evaluation.bootstrap
    results = {"per_class": {}} | described(statistics_of(samples), images.patients, resamples=resamples)
    kept = scorable_classes(labels, single=single)
    results["excluded"] = [name for name, keep in zip(classes, kept, strict=True) if not keep]
    results["chance"] = _chance(labels, classes, single=single, thresholds=thresholds)
    results["classes"] = "exclusive" if single else "independent"
    results["thresholds"] = "none" if thresholds is None else TUNED_ON
    return results | {"n": len(scores)}, samples


def statistics_of(samples: dict[str, np.ndarray]) -> Callable[[np.ndarray], dict[str, float]]:
    """The metrics of the given rows of `samples`."""
    scores, labels, thresholds = samples["scores"], samples["labels"], samples["classes/thresholds"]
    single, classes = bool(samples["classes/exclusive"]), [str(name) for name in samples["classes/names"]]
    predicted = chosen(scores) if single else None if np.isnan(thresholds).any() else scores >= thresholds

    def statistics(rows: np.ndarray) -> dict[str, float]:
        called = None if predicted is None else predicted[rows]
        return classification_metrics(scores[rows], labels[rows], called, classes, single=single)

    return statistics


def class_scores(
    plan: Plan, images: SplitImages, classes: tuple[str, ...], data_set: str = ""
) -> Float[np.ndarray, "I C"]:
    """The mean score over each class's prompts, or the highest; of an image alone, unless they are normalised."""
    config = plan.config.evaluation
    prompts = [prompts_of(name, data_set) for name in classes]
    scores = plan.score(images.features, plan.encode_texts([text for group in prompts for text in group]))
    ends = np.cumsum([len(group) for group in prompts])[:-1]
    merge = {"mean": np.mean, "max": np.max}[config.prompt_aggregation]
    merged = np.stack([merge(part, axis=1) for part in np.split(scores, ends, axis=1)], axis=1)
    return merged if config.normalise == "none" else standardised(merged)


def _thresholds(
    plan: Plan, split: Split, classes: tuple[str, ...], scratch: Path | None
) -> Float[np.ndarray, " C"] | None:
    """The threshold of each class, picked on the validation split; None where the data set has none."""
    manifest = read_manifest(split.directory)
    if not manifest["splits"].get(TUNED_ON, {}).get("records"):
        return None
    images = encode_split(plan, open_split(split.directory, TUNED_ON), "thresholds", scratch=scratch)
    scores, labels = class_scores(plan, images, classes, manifest["name"]), images.label_matrix(classes)
    return np.array([pick_threshold(*column) for column in zip(scores.T, labels.T, strict=True)])


def _chance(labels: np.ndarray, classes: tuple[str, ...], *, single: bool, thresholds: np.ndarray | None) -> dict:
    """Averages of constant scores; of independent classes, all are then called present."""
    same = np.zeros(labels.shape)
    predicted = chosen(same) if single else None if thresholds is None else same + 1
    found = classification_metrics(same, labels, predicted, classes, single=single)
    return {name: value for name, value in found.items() if "/" not in name}
