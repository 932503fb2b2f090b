"""From the rows of a table to splits: by patient, around a published test split, and only what has an image.

The tables and the seed alone decide the split of a patient: an image that is missing here moves nobody.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from plan_jax.data.covid_cxr import split_of_groups
from plan_jax.data.records import SPLITS
from plan_jax.data.rows import Row
from plan_jax.data.store import MISSING
from plan_jax.errors import InputError

TESTED = "patient of the test split"


def deal(rows: Sequence[Row], *, seed: int) -> dict[str, list[Row]]:
    """Split -> its rows, in their order; the patients are dealt as `split_of_groups` deals groups."""
    split = split_of_groups([row.patient for row in rows], seed)
    return {name: [row for row in rows if split[row.patient] == name] for name in SPLITS}


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
