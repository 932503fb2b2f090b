"""Splits that are drawn as the peers draw theirs: scikit-learn's train_test_split over the sorted names.

Names are sorted because the peers group their tables by name, which sorts, before they draw. Every name of a table
takes part, also one whose image is missing or damaged, so that a missing file moves no other image.
Beside them `fraction_of`, the share of the patients that a detector or a probe is trained on [ours].
"""

from collections.abc import Iterable

import numpy as np
from jaxtyping import Int, Shaped
from sklearn.model_selection import train_test_split


def train_validation(names: Iterable[str], *, share: float, seed: int) -> dict[str, str]:
    """Split of each name: `share` of them, rounded up, in validation, the rest in train."""
    train, validation = _divide(sorted(set(names)), share, seed)
    return dict.fromkeys(train, "train") | dict.fromkeys(validation, "validation")


def train_validation_test(names: Iterable[str], *, share: float, seed: int) -> dict[str, str]:
    """Split of each name: `share` of them, rounded up, held out and halved into test and validation.

    Of fewer than four names, validation may get none, then test.
    """
    train, held_out = _divide(sorted(set(names)), share, seed)
    test, validation = _divide(held_out, 0.5, seed)  # in this order, as GLoRIA and MGCA
    return dict.fromkeys(train, "train") | dict.fromkeys(validation, "validation") | dict.fromkeys(test, "test")


def fraction_of(patients: Shaped[np.ndarray, " n"], fraction: float, *, seed: int) -> Int[np.ndarray, " m"]:
    """The records of a share of the patients, at least one, drawn at random; a smaller share is part of a larger."""
    names = np.unique(patients)
    drawn = np.random.default_rng(seed).permutation(names)[: max(1, round(fraction * len(names)))]
    return np.flatnonzero(np.isin(patients, drawn))


def _divide(names: list[str], share: float, seed: int) -> tuple[list[str], list[str]]:
    if len(names) < 2:  # scikit-learn refuses to leave a part empty
        return names, []
    kept, taken = train_test_split(names, test_size=share, random_state=seed)
    return list(kept), list(taken)
