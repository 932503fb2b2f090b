"""95 % percentile bootstrap intervals that resample patients, since the images of one patient are not independent.

A resample draws as many groups (patients) as there are, with replacement, and takes every observation of a group as
often as the group was drawn. Equal seeds and equal numbers of groups draw the same resamples, so that the intervals of
several metrics or methods on the same data are paired.
"""

import functools
from collections.abc import Callable

import numpy as np
from jaxtyping import Float, Int, Shaped

LEVELS = (2.5, 97.5)  # percentiles


def interval(
    values: Float[np.ndarray, " n"],
    groups: Shaped[np.ndarray, " n"],
    *,
    classes: Shaped[np.ndarray, " n"] | None = None,
    resamples: int,
    seed: int,
) -> dict[str, float]:
    """The mean of `values` with its interval, as {"value", "low", "high"}.

    With `classes` the statistic is the macro average: the mean over classes of the class mean, where a class that a
    resample does not contain is left out of that resample. ValueError for no values or values that are not finite.
    """
    values = np.asarray(values, np.float64)
    if not values.size or not np.isfinite(values).all():
        raise ValueError("bootstrap values must be finite and at least one")
    n_groups, group = _compact(groups)
    n_classes, cls = _compact(np.zeros(len(values), int) if classes is None else classes)
    cell = group * n_classes + cls
    size = n_groups * n_classes
    totals = np.bincount(cell, weights=values, minlength=size).reshape(n_groups, n_classes)
    counts = np.bincount(cell, minlength=size).reshape(n_groups, n_classes).astype(np.float64)
    drawn = _draws(n_groups, resamples, seed)
    statistics = _macro(drawn @ totals, drawn @ counts)  # [S G] [G C] -> [S C] -> [S]
    low, high = np.percentile(statistics, LEVELS)
    value = _macro(totals.sum(0, keepdims=True), counts.sum(0, keepdims=True))[0]
    return {"value": float(value), "low": float(low), "high": float(high)}


def intervals_of(
    statistics: Callable[[Int[np.ndarray, " m"]], dict[str, float]],
    groups: Shaped[np.ndarray, " n"],
    *,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """Intervals of several statistics at once, each from the indices of the observations in a resample.

    `statistics` is called with all indices for the values, then once per resample. It may leave a name out where the
    statistic is undefined (an AUROC of one label); the interval is that of the resamples in which it is defined. A
    name that no resample defines has its value as interval.
    """
    values, seen = _resampled(statistics, groups, resamples, seed)
    return {name: _described(value, seen[name]) for name, value in values.items()}


def differences_of(
    one: Callable[[Int[np.ndarray, " m"]], dict[str, float]],
    other: Callable[[Int[np.ndarray, " m"]], dict[str, float]],
    groups: Shaped[np.ndarray, " n"],
    *,
    resamples: int,
    seed: int,
) -> dict[str, dict[str, float]]:
    """`intervals_of` the statistics of one model less those of another on the same observations, with "p".

    p is two-sided: twice the share of resamples on the rarer side of 0, those at 0 counted on both; at least
    2 / resamples, at most 1. Statistics that only one of them defines are left out.
    """

    def difference(rows: Int[np.ndarray, " m"]) -> dict[str, float]:
        first, second = one(rows), other(rows)
        return {name: first[name] - second[name] for name in first if name in second}

    values, seen = _resampled(difference, groups, resamples, seed)
    return {name: _described(value, seen[name]) | {"p": _p_value(seen[name])} for name, value in values.items()}


def _resampled(
    statistics: Callable[[Int[np.ndarray, " m"]], dict[str, float]], groups: np.ndarray, resamples: int, seed: int
) -> tuple[dict[str, float], dict[str, list[float]]]:
    """The statistics of all observations, and those of every resample in which they are defined."""
    n_groups, group = _compact(groups)
    order = np.argsort(group, kind="stable")
    members = np.split(order, np.cumsum(np.bincount(group, minlength=n_groups))[:-1])
    values = statistics(np.arange(len(group)))
    seen: dict[str, list[float]] = {name: [] for name in values}
    for drawn in _draws(n_groups, resamples, seed):
        picked = np.repeat(np.arange(n_groups), drawn.astype(int))
        resample = statistics(np.concatenate([members[g] for g in picked]))
        for name in seen:
            if name in resample:
                seen[name].append(resample[name])
    return values, seen


def _described(value: float, seen: list[float]) -> dict[str, float]:
    low, high = np.percentile(seen or [value], LEVELS)
    return {"value": float(value), "low": float(low), "high": float(high)}


def _p_value(seen: list[float]) -> float:
    differences = np.array(seen or [0.0])
    rarer = min((differences <= 0).mean(), (differences >= 0).mean())
    return float(min(1.0, 2 * max(rarer, 1 / len(differences))))


def interval_of(
    statistic: Callable[[Int[np.ndarray, " m"]], float],
    groups: Shaped[np.ndarray, " n"],
    *,
    resamples: int,
    seed: int,
) -> dict[str, float]:
    """`intervals_of` for one statistic that is always defined, such as a median."""
    named = intervals_of(lambda rows: {"value": statistic(rows)}, groups, resamples=resamples, seed=seed)
    return named["value"]


@functools.lru_cache(maxsize=16)  # every metric of every method on the same data asks for the same draws
def _draws(n_groups: int, resamples: int, seed: int) -> Float[np.ndarray, "S G"]:
    """How often each group is drawn in each resample: rows sum to the number of groups."""
    picked = np.random.default_rng(seed).integers(n_groups, size=(resamples, n_groups))
    cell = picked + n_groups * np.arange(resamples)[:, None]
    counts = np.bincount(cell.ravel(), minlength=resamples * n_groups).reshape(resamples, n_groups).astype(np.float64)
    counts.flags.writeable = False
    return counts


def _macro(totals: Float[np.ndarray, "S C"], counts: Float[np.ndarray, "S C"]) -> Float[np.ndarray, " S"]:
    present = counts > 0
    means = totals / np.where(present, counts, 1)
    return (means * present).sum(1) / present.sum(1)


def _compact(labels: Shaped[np.ndarray, " n"]) -> tuple[int, Int[np.ndarray, " n"]]:
    names, index = np.unique(labels, return_inverse=True)
    return len(names), index
