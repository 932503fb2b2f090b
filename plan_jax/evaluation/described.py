"""How the metrics of a task become its results: each with its interval, under the names' parts."""

from collections.abc import Callable
from typing import Any

import numpy as np

from plan_jax.bootstrap import intervals_of

SEED = 0  # of the bootstrap


def described(statistics: Callable[[np.ndarray], dict[str, float]], patients: np.ndarray, *, resamples: int) -> dict:
    """Intervals over patients; the metric "per_class/edema/auroc" is found at ["per_class"]["edema"]["auroc"]."""
    found: dict[str, Any] = {}
    for name, value in intervals_of(statistics, patients, resamples=resamples, seed=SEED).items():
        *groups, metric = name.split("/")
        part = found
        for group in groups:
            part = part.setdefault(group, {})
        part[metric] = value
    return found
