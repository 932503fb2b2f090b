"""Phrase grounding: how one map fits one true region.

Peers disagree on some definitions (absolute or signed CNR, IoU of the raw or the scaled map): both are here, by name.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

GROUNDING_METRICS = ("cnr_signed", "cnr_abs", "miou_raw", "miou_minmax", "pointing", "auroc")
OWN_ABOVE_OTHERS = "own_above_others"
IOU_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
CNR_LIMIT = 100.0  # |CNR| of a map without any noise would be infinite; real maps stay far below this


def scorable(truth: Bool[np.ndarray, "H W"]) -> bool:
    """Whether a true region can be scored: some pixels are inside and some outside."""
    return bool(truth.any() and not truth.all())


def grounding_metrics(grounding_map: Float[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"]) -> dict[str, float]:
    """All grounding metrics of one map. ValueError for a map that is not finite or a truth that is not `scorable`."""
    signed = cnr(grounding_map, truth)
    return {
        "cnr_signed": signed,
        "cnr_abs": abs(signed),
        "miou_raw": miou_raw(grounding_map, truth),
        "miou_minmax": miou_minmax(grounding_map, truth),
        "pointing": pointing(grounding_map, truth),
        "auroc": pixel_auroc(grounding_map, truth),
    }


def cnr(grounding_map: Float[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"]) -> float:
    """Signed contrast-to-noise ratio (mean_in - mean_out) / sqrt(var_in + var_out), variances unbiased.

    A region of one pixel has variance 0; a constant map scores 0; the result lies within +-CNR_LIMIT.
    """
    values = _checked(grounding_map, truth)
    values = values - values.flat[0]  # a constant map becomes exactly 0, so that rounding cannot look like contrast
    inside, outside = values[truth], values[~truth]
    contrast = inside.mean() - outside.mean()
    noise = np.sqrt(_variance(inside) + _variance(outside))
    if abs(contrast) >= CNR_LIMIT * noise:
        return float(np.sign(contrast) * CNR_LIMIT)
    return float(contrast / noise)


def iou_at_thresholds(
    grounding_map: Float[np.ndarray, "H W"],
    truth: Bool[np.ndarray, "H W"],
    thresholds: tuple[float, ...] = IOU_THRESHOLDS,
) -> Float[np.ndarray, " K"]:
    """Intersection over union of the pixels above each threshold with the truth; an empty prediction counts 0."""
    values = _checked(grounding_map, truth)
    above = values > np.asarray(thresholds)[:, None, None]
    return (above & truth).sum((1, 2)) / (above | truth).sum((1, 2))


def miou_raw(grounding_map: Float[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"]) -> float:
    """Mean IoU over IOU_THRESHOLDS of the map as it is (cosine).

    Setting negative values to 0 first, as some peers do, changes nothing: all thresholds are positive.
    """
    return float(iou_at_thresholds(grounding_map, truth).mean())


def miou_minmax(grounding_map: Float[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"]) -> float:
    """Mean IoU over IOU_THRESHOLDS of the map scaled to [0, 1]; a constant map becomes 0 everywhere."""
    values = _checked(grounding_map, truth)
    span = np.ptp(values)
    scaled = (values - values.min()) / span if span else np.zeros_like(values)
    return float(iou_at_thresholds(scaled, truth).mean())


def pointing(grounding_map: Float[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"]) -> float:
    """1 if the map's peak lies inside the truth, else 0; of several equal peaks, the share that lies inside."""
    values = _checked(grounding_map, truth)
    return float(truth[values == values.max()].mean())


def own_above_others(
    grounding_map: Float[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"], others: Sequence[Bool[np.ndarray, "H W"]]
) -> float:
    """Share of the other findings' regions whose mean is below that of the true one, ties one half; NaN without any."""
    if not others:
        return float("nan")
    values = _checked(grounding_map, truth)
    own, means = values[truth].mean(), np.array([values[other].mean() for other in others])
    return float((0.5 * ((own > means).astype(float) + (own >= means))).mean())


def pixel_auroc(grounding_map: Float[np.ndarray, "H W"], truth: Bool[np.ndarray, "H W"]) -> float:
    """Probability that a pixel inside scores above one outside, ties counting one half."""
    return auroc(_checked(grounding_map, truth).ravel(), truth.ravel())


def auroc(scores: Float[np.ndarray, " n"], labels: Bool[np.ndarray, " n"]) -> float:
    """Area under the ROC curve by ranks, ties counting one half. ValueError unless both labels occur."""
    positive, negative = scores[labels], np.sort(scores[~labels])
    if not positive.size or not negative.size:
        raise ValueError("auroc needs positive and negative labels")
    twice_below = np.searchsorted(negative, positive, "left") + np.searchsorted(negative, positive, "right")
    return float(twice_below.mean() / (2 * negative.size))


def _checked(grounding_map: np.ndarray, truth: np.ndarray) -> np.ndarray:
    if grounding_map.shape != truth.shape or truth.dtype != bool:
        raise ValueError(f"map {grounding_map.shape} and truth {truth.shape} {truth.dtype} must be one shape and bool")
    if not scorable(truth):
        raise ValueError("truth must have pixels inside and outside; drop and count phrases that are not `scorable`")
    values = np.asarray(grounding_map, np.float64)
    if not np.isfinite(values).all():
        raise ValueError("a grounding map must be finite")
    return values


def _variance(values: np.ndarray) -> float:
    return values.var(ddof=1) if values.size > 1 else 0.0
