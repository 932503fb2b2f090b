"""From the rows of a table to splits: by patient, around a published test split, and only what has an image.

The tables and the seed alone decide the split of a patient: an image that is missing here moves nobody.
"""

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from plan_jax.data.records import SPLITS
from plan_jax.data.row import Row
from plan_jax.data.store import MISSING
from plan_jax.errors import InputError

HELD_OUT = 0.1  # share of the patients in each of tune, validation and test
TESTED, ELSEWHERE = "patient of the test split", "patient of another split"


def shuffled(groups: Iterable[str], seed: int) -> list[str]:
    """The different groups in the order of SHA-256 of seed and name: the order of the table has no say."""
    return sorted(set(groups), key=lambda group: hashlib.sha256(f"{seed}:{group}".encode()).digest())


def split_of_groups(groups: Sequence[str], seed: int) -> dict[str, str]:
    """Split of each group: a tenth each, at least one, in tune, validation and test, in the order of SHA-256.

    Fewer than four groups go to train, test and validation, in this order.
    """
    order = shuffled(groups, seed)
    if len(order) < len(SPLITS):
        return dict(zip(order, ("train", "test", "validation"), strict=False))
    held = max(1, round(HELD_OUT * len(order)))
    return {group: SPLITS[1 + i // held] if i < 3 * held else "train" for i, group in enumerate(order)}


def strictest_split(published: Iterable[tuple[str, str]]) -> dict[str, str]:
    """(patient, split) of every image -> the split of each patient: of several the one that is furthest from train."""
    chosen: dict[str, str] = {}
    for patient, split in published:
        chosen[patient] = max(chosen.get(patient, split), split, key=SPLITS.index)
    return chosen


def by_split(rows: Sequence[Row], split: Mapping[str, str]) -> dict[str, list[Row]]:
    """Split -> its rows, in their order; `split` names that of each patient."""
    return {name: [row for row in rows if split[row.patient] == name] for name in SPLITS}


def deal(rows: Sequence[Row], *, seed: int) -> dict[str, list[Row]]:
    """Split -> its rows, in their order; the patients are dealt as `split_of_groups` deals groups."""
    return by_split(rows, split_of_groups([row.patient for row in rows], seed))


def deal_around_test(
    rest: Sequence[Row], test: Sequence[Row], *, seed: int, dropped: Counter[str]
) -> dict[str, list[Row]]:
    """As `deal`, but the test split is given: the tenth that `deal` would test on is trained on instead.

    The rows in `rest` of a patient in `test` are left out and counted.
    """
    tested = {row.patient for row in test}
    free = [row for row in rest if row.patient not in tested]
    if len(free) < len(rest):
        dropped[TESTED] += len(rest) - len(free)
    parts = deal(free, seed=seed)
    trained = {row.patient for name in ("train", "test") for row in parts[name]}
    return parts | {"train": [row for row in free if row.patient in trained], "test": list(test)}


def with_images(splits: Mapping[str, Sequence[Row]], *, dropped: Counter[str], table: Path) -> dict[str, list[Row]]:
    """The rows whose image file is there, by split; counts the others, and leaves out splits that become empty.

    InputError: none is left; names `table` and says what was left out.
    """
    kept = {name: [row for row in rows if os.path.isfile(row.image)] for name, rows in splits.items()}
    lost = sum(map(len, splits.values())) - sum(map(len, kept.values()))
    if lost:
        dropped[MISSING] += lost
    if not any(kept.values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        raise InputError(
            f"{table} must have a row with an image to use, got {reasons or 'no rows'}; give the data as published"
        )
    return {name: rows for name, rows in kept.items() if rows}
