"""Numbers from arrays: phrase grounding, retrieval and zero-shot classification. No files, no networks.

All functions take numpy arrays, work in float64 and return Python numbers. Ties never help: where several answers score
the same, a metric is its expected value over a random order of them, so a constant score is worth exactly chance.
Peers disagree on some definitions (absolute or signed CNR, IoU of the raw or the scaled map): both are here, by name.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped
from sklearn.metrics import precision_recall_curve

GROUNDING_METRICS = ("cnr_signed", "cnr_abs", "miou_raw", "miou_minmax", "pointing", "auroc")
OWN_ABOVE_OTHERS = "own_above_others"
IOU_THRESHOLDS = (0.1, 0.2, 0.3, 0.4, 0.5)
CNR_LIMIT = 100.0  # |CNR| of a map without any noise would be infinite; real maps stay far below this
RECALL_AT = (1, 5, 10)


# Phrase grounding: one map, one true region


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


# Retrieval: scores of images against texts


@dataclasses.dataclass(frozen=True)
class QueryRanks:
    """Where the best own candidate of every query stands among the foreign ones.

    Attributes:
        query: index of the image, or of the first of identical texts, that asks.
        ahead: foreign candidates that score higher than the best own one.
        tied: foreign candidates that score the same as it.
        own: own candidates that share the best own score.
    """

    query: Int[np.ndarray, " Q"]
    ahead: Int[np.ndarray, " Q"]
    tied: Int[np.ndarray, " Q"]
    own: Int[np.ndarray, " Q"]


def hits(ranks: QueryRanks, k: int) -> Float[np.ndarray, " Q"]:
    """Probability that an own candidate is among the first k, ties in random order: 0 or 1 where nothing is tied."""
    places = k - ranks.ahead  # among the first k, left to the tied candidates
    missed = np.ones(len(places))
    for place in range(k):
        foreign = np.maximum(ranks.tied - place, 0)
        missed = np.where(place < places, missed * foreign / (foreign + ranks.own), missed)
    return 1.0 - missed


def expected_rank(ranks: QueryRanks) -> Float[np.ndarray, " Q"]:
    """1-based rank of the first own candidate, expected over a random order of the tied ones."""
    return ranks.ahead + (ranks.tied + ranks.own + 1) / (ranks.own + 1)


def retrieval_ranks(
    scores: Float[np.ndarray, "I R"], image_group: Shaped[np.ndarray, " I"], text_group: Shaped[np.ndarray, " R"]
) -> dict[str, QueryRanks]:
    """Ranks of all queries, `image_to_text` and `text_to_image`.

    An image owns the texts of its group. Texts of one group are identical and count as one, as a candidate and as a
    query (where their scores differ, the highest counts). Only foreign candidates ahead of the best own one matter.
    ValueError unless scores are finite and every image owns a text and every text an image.
    """
    if not np.isfinite(scores).all():
        raise ValueError("retrieval scores must be finite")
    groups, first = np.unique(text_group, return_index=True)
    order = np.argsort(text_group, kind="stable")
    starts = np.searchsorted(text_group[order], groups)
    merged = np.maximum.reduceat(scores[:, order], starts, axis=1)
    owned = image_group[:, None] == groups[None, :]
    if not (owned.any(0).all() and owned.any(1).all()):
        raise ValueError("every image must own a text and every text an image of the pool")
    return {
        "image_to_text": _ranks(merged, owned, query=np.arange(len(image_group))),
        "text_to_image": _ranks(merged.T, owned.T, query=first),
    }


def pooled_ranks(
    scores: Float[np.ndarray, "I R"],
    image_group: Shaped[np.ndarray, " I"],
    text_group: Shaped[np.ndarray, " R"],
    *,
    pool: int,
    seed: int,
) -> dict[str, QueryRanks]:
    """Ranks within random pools of `pool` images and the texts they own, the queries of all pools together.

    The images are shuffled by `seed` and cut into whole pools; the rest is left out. A text that several pools own asks
    in each. ValueError if there are fewer than `pool` images.
    """
    if not 0 < pool <= len(image_group):
        raise ValueError(f"pool must be between 1 and the number of images {len(image_group)}, got {pool}")
    shuffled = np.random.default_rng(seed).permutation(len(image_group))
    parts: dict[str, list[QueryRanks]] = {"image_to_text": [], "text_to_image": []}
    for start in range(0, len(shuffled) - pool + 1, pool):
        images = shuffled[start : start + pool]
        texts = np.flatnonzero(np.isin(text_group, image_group[images]))
        ranks = retrieval_ranks(scores[np.ix_(images, texts)], image_group[images], text_group[texts])
        for direction, asked in (("image_to_text", images), ("text_to_image", texts)):
            part = ranks[direction]
            parts[direction].append(dataclasses.replace(part, query=asked[part.query]))
    return {direction: _joined(ranks) for direction, ranks in parts.items()}


def retrieval_metrics(ranks: dict[str, QueryRanks]) -> dict[str, float]:
    """`r@1_image_to_text` ... `median_rank_text_to_image` from `retrieval_ranks` or `pooled_ranks`.

    Chance, exactly: the metrics of constant scores.
    """
    metrics = {}
    for direction, asked in ranks.items():
        metrics |= {f"r@{k}_{direction}": float(hits(asked, k).mean()) for k in RECALL_AT}
        metrics[f"median_rank_{direction}"] = float(np.median(expected_rank(asked)))
    return metrics


def _ranks(scores: np.ndarray, owned: np.ndarray, *, query: np.ndarray) -> QueryRanks:
    best = np.where(owned, scores, -np.inf).max(1, keepdims=True)
    level = scores == best
    return QueryRanks(
        query=query,
        ahead=(~owned & (scores > best)).sum(1),
        tied=(~owned & level).sum(1),
        own=(owned & level).sum(1),
    )


def _joined(parts: list[QueryRanks]) -> QueryRanks:
    fields = [field.name for field in dataclasses.fields(QueryRanks)]
    return QueryRanks(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in fields})


# Zero-shot classification: scores of images against classes


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


def zero_shot_metrics(
    scores: Float[np.ndarray, "I C"],
    labels: Bool[np.ndarray, "I C"],
    thresholds: Float[np.ndarray, " C"],
    classes: tuple[str, ...],
) -> dict:
    """`auroc`, `accuracy`, `f1_macro` (macro averages), the same `per_class`, and the classes that were `excluded`.

    A class whose labels are all equal has no AUROC: it is named in `excluded` and enters no average. If that leaves no
    class, the averages are missing.
    """
    per_class = {}
    for column, name in enumerate(classes):
        truth, positive = labels[:, column], scores[:, column] >= thresholds[column]
        if truth.all() or not truth.any():
            continue
        per_class[name] = {
            "auroc": auroc(scores[:, column], truth),
            "accuracy": float((positive == truth).mean()),
            "f1": float(2 * (positive & truth).sum() / (positive.sum() + truth.sum())),
        }
    macro = {}
    if per_class:
        macro = {
            total: float(np.mean([values[name] for values in per_class.values()]))
            for total, name in (("auroc", "auroc"), ("accuracy", "accuracy"), ("f1_macro", "f1"))
        }
    return macro | {"per_class": per_class, "excluded": [name for name in classes if name not in per_class]}
