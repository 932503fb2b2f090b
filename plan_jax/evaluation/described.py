"""How the metrics of a task become its results: each with its interval, under the names' parts."""

from collections.abc import Callable
from typing import Any

import numpy as np

from plan_jax.bootstrap import intervals_of
from plan_jax.evaluation.progress import with_bar

SEED = 0  # of the bootstrap


def described(statistics: Callable[[np.ndarray], dict[str, float]], patients: np.ndarray, *, resamples: int) -> dict:
    """Intervals over patients, with a progress bar.

    The metric "per_class/edema/auroc" is found at ["per_class"]["edema"]["auroc"]; no class has a slash in its name.
    """
    shown = with_bar(statistics, resamples + 1, "bootstrap", "resample")
    found: dict[str, Any] = {}
    for name, value in intervals_of(shown, patients, resamples=resamples, seed=SEED).items():
        *groups, metric = name.split("/")
        part = found
        for group in groups:
            part = part.setdefault(group, {})
        part[metric] = value
    return found
