"""Data set `chexpert`: the frontal films of CheXpert with its 14 labels, for classification; it has no reports.

Irvin et al., CheXpert: A Large Chest Radiograph Dataset with Uncertainty Labels and Expert Comparison, AAAI 2019. The
raw folder is CheXpert-v1.0/ or CheXpert-v1.0-small/, or the one that holds it.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from plan_jax.data.chexpert_5x200 import CheXpert5x200, choose, find_list
from plan_jax.data.chexpert_table import (
    LABELS,
    TRAIN,
    VALID,
    Film,
    chexpert_home,
    patient_of,
    read_films,
    study_of,
)
from plan_jax.data.dealing import deal_around_test, with_images
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.errors import InputError


class CheXpert(RowSet):
    """valid.csv, which radiologists labelled, is the test split; the patients of train.csv are dealt to the others.

    A patient with an image in the 5x200 list is in none of them.
    """

    name, version = "chexpert", "1.0.0"
    summary = "Frontal films of CheXpert with 14 labels drawn from their reports (Irvin et al., 2019)."
    classes = LABELS

    def inputs(self) -> Sequence[Path]:
        home, listed = chexpert_home(self.raw), find_list(self.raw)
        if not (home / VALID).is_file():
            raise InputError(f"{home} must hold {TRAIN} and {VALID}, got no {VALID}; give CheXpert as published")
        return [home / TRAIN, home / VALID, *([] if listed is None else [listed])]

    def rows(self) -> Mapping[str, Sequence[Row]]:
        self.dropped.clear()
        table, valid = self.inputs()[:2]
        films = read_films(table, self.dropped)
        free = self._outside_5x200(films)
        test = read_films(valid, self.dropped)
        splits = deal_around_test(
            [_row(film, table.parent) for film in free],
            [_row(film, valid.parent) for film in test],
            seed=self.seed,
            dropped=self.dropped,
        )
        return with_images(splits, dropped=self.dropped, table=table)

    def _outside_5x200(self, films: Sequence[Film]) -> list[Film]:
        """The films of patients who have none in the 5x200 list; counts the others."""
        listed = {film.key for film in choose(self.raw, films, per_class=CheXpert5x200.per_class)}
        patients = {patient_of(key) for key in listed}
        free = [film for film in films if patient_of(film.key) not in patients]
        images = sum(film.key in listed for film in films)
        for reason, count in (
            ("image of the 5x200 list", images),
            ("patient of the 5x200 list", len(films) - len(free) - images),
        ):
            if count:
                self.dropped[reason] += count
        return free


def _row(film: Film, home: Path) -> Row:
    return Row(
        key=film.key,
        patient=patient_of(film.key),
        study=study_of(film.key),
        image=home / film.key,
        where=film.where,
        labels=film.labels,
    )
