"""Data set `chexpert_5x200`: 200 frontal films for each of five findings, each film with that finding alone.

GLoRIA's test set for zero-shot classification and retrieval (Huang et al., ICCV 2021), drawn from CheXpert's train.csv,
so `chexpert` trains on none of its patients. Either the draw below, which anyone can repeat, or a list that the user
gives (GLoRIA's own, say) makes the set; results on two lists do not compare.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from plan_jax.data.chexpert_table import (
    LABELS,
    TRAIN,
    Film,
    chexpert_home,
    key_of,
    patient_of,
    read_films,
    study_of,
)
from plan_jax.data.csv_table import read_text
from plan_jax.data.dealing import with_images
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.errors import InputError

LIST = "chexpert_5x200.json"
FINDINGS = ("Atelectasis", "Cardiomegaly", "Consolidation", "Edema", "Pleural Effusion")
# What must be absent beside the other four. No Finding is not asked for.
ABSENT = (
    "Enlarged Cardiomediastinum",
    "Lung Lesion",
    "Lung Opacity",
    "Pneumonia",
    "Pneumothorax",
    "Pleural Other",
    "Fracture",
    "Support Devices",
)
SEED = 0  # of the draw; the user's --seed has no part in it


@dataclass(frozen=True)
class Chosen:
    """A film of the list. `key`: its path below CheXpert's folder; `finding`: the one of FINDINGS that it shows."""

    key: str
    finding: str
    where: str


def find_list(raw: Path) -> Path | None:
    """The user's list in the raw folder or in CheXpert's in it, if there is one."""
    return next((folder / LIST for folder in (raw, chexpert_home(raw)) if (folder / LIST).is_file()), None)


def choose(raw: Path, films: Sequence[Film], *, per_class: int) -> list[Chosen]:
    """The films of the 5x200 list: the user's list if there is one, else drawn from the `films` of train.csv."""
    listed = find_list(raw)
    return draw(films, per_class=per_class) if listed is None else read_list(listed)


def draw(films: Sequence[Film], *, per_class: int) -> list[Chosen]:
    """`per_class` films for each finding, in the order of FINDINGS and then of the table.

    The candidates of a finding are the films where it is 1 and the other four and ABSENT are 0, in the order of the
    table; uncertain is not 0. Their places that are kept: `numpy.random.RandomState(0).choice(count, per_class,
    replace=False)`, from a new generator for each finding, which is what pandas' `sample(n=200, random_state=0)` draws
    and NumPy will not change. Whether images are there plays no part.
    InputError: too few candidates.
    """
    chosen = []
    for finding in FINDINGS:
        candidates = [film for film in films if _shows_alone(film, finding)]
        if len(candidates) < per_class:
            raise InputError(
                f"{TRAIN} must have {per_class} frontal films with {finding} alone for the 5x200 list, got "
                f"{len(candidates)}; give the whole {TRAIN}, or the list as {LIST} in --raw"
            )
        places = np.random.RandomState(SEED).choice(len(candidates), per_class, replace=False)
        chosen += [Chosen(candidates[i].key, finding, candidates[i].where) for i in sorted(places)]
    return chosen


def _shows_alone(film: Film, finding: str) -> bool:
    value = dict(zip(LABELS, film.values, strict=True))
    return all(value[name] == (name == finding) for name in (*FINDINGS, *ABSENT))


def read_list(path: Path) -> list[Chosen]:
    """The user's list: a JSON object, image path -> one-hot of FINDINGS; of a path, the end from train/ or valid/ on.

    InputError: not JSON, or an entry that is no such path, no one-hot or an image for the second time; names file and
    entry.
    """
    try:
        entries = json.loads(read_text(path))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} must be JSON, got {error}; repair it") from error
    if not isinstance(entries, Mapping) or not entries:
        raise InputError(f"{path} must map image paths to five numbers, got {type(entries).__name__}; repair it")
    chosen: dict[str, Chosen] = {}
    for number, (image, values) in enumerate(entries.items(), 1):
        key, fault = key_of(image), _entry_fault(values)
        if not key or key in chosen:
            fault = "an image again" if key else "another path"
        if fault:
            raise InputError(
                f"{path} entry {number} must be an image path such as train/patient00001/study1/view1_frontal.jpg, "
                f"named once, with one 1 and four 0, got {fault}; repair it"
            )
        chosen[key] = Chosen(key, FINDINGS[values.index(1)], f"{path.name} entry {number}")
    return list(chosen.values())


def _entry_fault(values: Any) -> str:
    if not isinstance(values, list) or len(values) != len(FINDINGS):
        return "no list of five"
    return "" if values.count(1) == 1 and values.count(0) == len(FINDINGS) - 1 else "other numbers"


class CheXpert5x200(RowSet):
    """All in the test split. `per_class`: films for each finding; tests with small tables ask for fewer."""

    name, version = "chexpert_5x200", "1.0.0"
    summary = (
        "Frontal films of CheXpert with one of five findings alone, 200 each (Irvin et al., 2019; Huang et al., 2021)."
    )
    classes = FINDINGS
    per_class = 200

    def inputs(self) -> Sequence[Path]:
        listed = find_list(self.raw)
        return [chexpert_home(self.raw) / TRAIN if listed is None else listed]

    def rows(self) -> Mapping[str, Sequence[Row]]:
        self.dropped.clear()
        (table,), home = self.inputs(), chexpert_home(self.raw)
        films = read_films(table, self.dropped) if table.name == TRAIN else []
        chosen = choose(self.raw, films, per_class=self.per_class)
        if films:
            self.dropped["not in the 5x200 list"] += len(films) - len(chosen)
        rows = [
            Row(
                key=film.key,
                patient=patient_of(film.key),
                study=study_of(film.key),
                image=home / film.key,
                where=film.where,
                labels=(film.finding,),
            )
            for film in chosen
        ]
        return with_images({"test": rows}, dropped=self.dropped, table=table)
