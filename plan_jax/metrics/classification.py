"""Classification from scores of images with classes: by threshold where several classes may be present, else by rank.

AUROC and average precision are scikit-learn's; accuracy, precision, recall and F1 are counts, since scikit-learn's do
not know the fractions that ties give.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float
from sklearn.metrics import auc, average_precision_score, precision_recall_curve, roc_curve

# Metric of a class -> its macro average.
MACRO = {
    "auroc": "auroc",
    "auprc": "auprc",
    "accuracy": "accuracy",
    "precision": "precision_macro",
    "recall": "recall_macro",
    "f1": "f1_macro",
}


def auroc(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> float:
    """Area under the ROC curve, ties counting one half. ValueError unless both labels occur."""
    if labels.all() or not labels.any():
        raise ValueError("auroc needs positive and negative labels")
    false, true, _ = roc_curve(labels, scores, drop_intermediate=False)
    return float(auc(false, true))


def pick_threshold(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> float:
    """The score from which on an image is called positive so that F1 is highest, for use on other images.

    Of equally good thresholds the highest. Without a positive label nothing is called positive.
    """
    if not labels.any():
        return float(np.nextafter(scores.max(), np.inf))
    precision, recall, thresholds = precision_recall_curve(labels, scores)
    precision, recall = precision[:-1], recall[:-1]  # the last point belongs to no threshold
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return float(thresholds[len(f1) - 1 - np.argmax(f1[::-1])])


def chosen(scores: Float[np.ndarray, "I C"]) -> Float[np.ndarray, "I C"]:
    """How likely each class is to be the one that is chosen: 1 for the highest, shares for the tied ones."""
    best = scores == scores.max(axis=1, keepdims=True)
    return best / best.sum(axis=1, keepdims=True)


def standardised(scores: Float[np.ndarray, "I C"]) -> Float[np.ndarray, "I C"]:
    """Each class's scores less their mean, by their standard deviation; constant scores become 0.

    As peers do over the images of the test set: a score then depends on the other images.
    """
    centred = scores - scores.mean(axis=0)
    spread = scores.std(axis=0)
    return centred / np.where(spread > 0, spread, 1.0)


def scorable_classes(labels: Bool[np.ndarray, "I C"], *, single: bool) -> Bool[np.ndarray, " C"]:
    """The classes that metrics speak of: present in some image and, where several may be, absent in some."""
    there = np.any(labels, axis=0)
    return there if single else there & ~np.all(labels, axis=0)


def classification_metrics(
    scores: Float[np.ndarray, "I C"],
    labels: Bool[np.ndarray, "I C"],
    predicted: Float[np.ndarray, "I C"] | Bool[np.ndarray, "I C"] | None,
    classes: Sequence[str],
    *,
    single: bool,
) -> dict[str, float]:
    """Metrics by name: "per_class/CLASS/METRIC" and the macro averages, see MACRO.

    Args:
        scores: of every image with every class.
        labels: the classes that are present; `single`: exactly one in each image, and accuracy is the share of images
            whose one class is chosen instead of a macro average.
        predicted: the classes that are called present, or `chosen`; None: only AUROC and average precision.
        classes: their names. A class that is not scorable has no metrics and enters no average; one that is present in
            every image has no AUROC.
        single: whether classes exclude each other.
    """
    rows, kept = {}, scorable_classes(labels, single=single)
    for column, name in enumerate(classes):
        truth, row = labels[:, column], {}
        if not kept[column]:
            continue
        if not truth.all():
            row["auroc"] = auroc(scores[:, column], truth)
            row["auprc"] = float(average_precision_score(truth, scores[:, column]))
        if predicted is not None:
            row |= _counted(predicted[:, column].astype(np.float64), truth)
        rows[name] = row
    found = {f"per_class/{name}/{metric}": value for name, row in rows.items() for metric, value in row.items()}
    for metric, total in MACRO.items():
        values = [row[metric] for row in rows.values() if metric in row]
        if values:
            found[total] = float(np.mean(values))
    if single and predicted is not None:
        found["accuracy"] = float((predicted * labels).sum(axis=1).mean())
    return found


def _counted(predicted: Float[np.ndarray, " n"], truth: Bool[np.ndarray, " n"]) -> dict[str, float]:
    """Accuracy, precision, recall and F1 of one class that occurs; precision without a prediction is 0."""
    right, called, there = float(predicted @ truth), float(predicted.sum()), float(truth.sum())
    return {
        "accuracy": float(np.where(truth, predicted, 1 - predicted).mean()),
        "precision": right / called if called else 0.0,
        "recall": right / there,
        "f1": 2 * right / (called + there),
    }
