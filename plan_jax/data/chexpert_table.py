"""The tables of CheXpert: train.csv and valid.csv, a frontal film a row.

Irvin et al., CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert Comparison, AAAI 2019.
"""

import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from plan_jax.data.csv_table import is_blank, number, read_table
from plan_jax.errors import InputError

HOMES = ("CheXpert-v1.0", "CheXpert-v1.0-small")
TRAIN, VALID = "train.csv", "valid.csv"
LABELS = (
    "No Finding",
    "Enlarged Cardiomediastinum",
    "Cardiomegaly",
    "Lung Opacity",
    "Lung Lesion",
    "Edema",
    "Consolidation",
    "Pneumonia",
    "Atelectasis",
    "Pneumothorax",
    "Pleural Effusion",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
# The labels whose -1 (uncertain) counts as present; that of Cardiomegaly and Consolidation counts as absent, and so
# does that of the other nine, for which nothing is published: only what a report asserts is present [ours].
UNCERTAIN_IS_PRESENT = ("Atelectasis", "Edema", "Pleural Effusion")

# The part of a path that every copy shares; what stands before it, the folder of the data set, differs.
_KEY = re.compile(
    r"(?:.*/)?((?:train|valid)/patient[0-9]{1,9}/study[0-9]{1,9}/view[0-9]{1,9}_(?:frontal|lateral)\.jpg)"
)


@dataclass(frozen=True)
class Film:
    """A frontal film of a table. `key`: its path below the data set's folder; `values`: 1, 0 or -1 of each label."""

    key: str
    where: str
    values: tuple[int, ...]

    @property
    def labels(self) -> tuple[str, ...]:
        """The names of what is present."""
        pairs = zip(LABELS, self.values, strict=True)
        return tuple(name for name, value in pairs if value == 1 or (value == -1 and name in UNCERTAIN_IS_PRESENT))


def chexpert_home(raw: Path) -> Path:
    """The folder that holds train.csv: `raw` or one in it, the full-size images before the small ones.

    InputError: there is none.
    """
    for home in (raw, *(raw / name for name in HOMES)):
        if (home / TRAIN).is_file():
            return home
    raise InputError(
        f"--raw must hold {TRAIN} or a folder {' or '.join(HOMES)} with it, got none in {raw}; give another"
    )


def key_of(path: str) -> str:
    """The path of an image below the data set's folder, from its path anywhere; "" where it is not as published."""
    found = _KEY.fullmatch(path)
    return found[1] if found else ""


def patient_of(key: str) -> str:
    """The folder of the patient."""
    return key.split("/")[1]


def study_of(key: str) -> str:
    """The folders of patient and study."""
    return "/".join(key.split("/")[1:3])


def read_films(table: Path, dropped: Counter[str]) -> list[Film]:
    """The frontal films of train.csv or valid.csv in their order; counts in `dropped` the rows that give none.

    An empty label (NaN, not mentioned) is 0. InputError as `read_table`.
    """
    films: dict[str, Film] = {}
    for row in read_table(table, ("Path", "Frontal/Lateral", *LABELS)):
        path, view, *cells = row.cells
        key, values = key_of(path), tuple(value for value in map(_value, cells) if value is not None)
        reason = row.fault
        if not reason and view.lower() != "frontal":
            reason = "not a frontal film"
        if not reason and not key.startswith(f"{table.stem}/"):
            reason = "path not as published"
        if not reason and len(values) < len(LABELS):
            reason = "label not 1, 0, -1 or empty"
        if not reason and key in films:
            reason = "image of an earlier row"
        if reason:
            dropped[reason] += 1
        else:
            films[key] = Film(key, f"{table.name} line {row.line}", values)
    return list(films.values())


def _value(cell: str) -> int | None:
    value = 0.0 if is_blank(cell) else number(cell)
    return int(value) if value is not None and value in (1, 0, -1) else None
