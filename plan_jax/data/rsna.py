"""Data set `rsna`: the RSNA Pneumonia Detection Challenge, boxes around opacities of pneumonia.

Shih et al., Augmenting the National Institutes of Health Chest Radiograph Dataset with Expert Annotations of Possible
Pneumonia, Radiology: Artificial Intelligence, 2019. The raw folder holds stage_2_train_labels.csv and
stage_2_train_images/; the images of the challenge's own test have no labels and are not used.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from plan_jax.data.entries import (
    CELLS,
    CONTRADICTION,
    Entry,
    Line,
    file_names,
    gather,
    numbers,
    published,
    read_lines,
    split_rows,
)
from plan_jax.data.records import Phrase
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.data.splits import train_validation_test
from plan_jax.data.store import MISSING

TABLE, IMAGES = "stage_2_train_labels.csv", "stage_2_train_images"
COLUMNS = ("patientId", "x", "y", "width", "height", "Target")
SIDE = 1024  # of every image, pixels
PNEUMONIA = "pneumonia"
HELD_OUT = 0.3  # share of validation and test together: 18,678 / 4,003 / 4,003 patients (GLoRIA, MGCA)
HELD_OUT_DETECTION = 0.4  # 16,010 / 5,337 / 5,337 (MGCA)

Box = tuple[float, float, float, float]


def detection_split(patients: Iterable[str], *, seed: int) -> dict[str, str]:
    """Split of each patient for detection; of the published 26,684: 16,010 train, 5,337 validation, 5,337 test.

    It is drawn anew: a patient that trains the classifier may test the detector, as in MGCA.
    """
    return train_validation_test(patients, share=HELD_OUT_DETECTION, seed=seed)


def read_entry(line: Line) -> Entry[Box]:
    """The box of a line, or None for a patient without pneumonia."""
    patient, *cells, target = line.cells
    box, fault = None, ""
    if not line.whole:
        fault = CELLS
    elif target not in ("0", "1"):
        fault = "Target is not 0 or 1"
    elif target == "0":
        fault = "box with Target 0" if any(cells) else ""
    else:
        box = _box(cells)
        fault = "" if box else "no box inside the image"
    return Entry(line.number, patient, box, fault)


def _box(cells: Sequence[str]) -> Box | None:
    values = numbers(cells)
    if values is None:
        return None
    x, y, width, height = values
    inside = min(x, y) >= 0 and min(width, height) > 0 and max(x + width, y + height) <= SIDE
    return (x, y, x + width, y + height) if inside else None


class Rsna(RowSet):
    """26,684 patients with one image each, 6,012 of them with 1 to 4 boxes, all of one phrase.

    Train, validation and test are those of the peers' classification. There is no tune split: it would have to come out
    of their train or validation and make numbers incomparable; validation is what the peers choose on.
    """

    name, version = "rsna", "1.0.0"
    summary = "Chest radiographs with boxes around pneumonia, RSNA Pneumonia Detection Challenge (Shih et al., 2019)."
    classes = (PNEUMONIA,)

    def inputs(self) -> Sequence[Path]:
        return (published(self.raw, TABLE, IMAGES),)

    def rows(self) -> Mapping[str, Sequence[Row]]:
        self.dropped.clear()
        (table,) = self.inputs()
        entries = [read_entry(line) for line in read_lines(table, COLUMNS)]
        split = train_validation_test(file_names(entries), share=HELD_OUT, seed=self.seed)
        groups = gather(entries, self.dropped).items()
        rows = [row for patient, group in groups if (row := self._row(patient, group))]
        return split_rows(rows, split, table=table, dropped=self.dropped)

    def _row(self, patient: str, group: Sequence[Entry[Box]]) -> Row | None:
        boxes = tuple(dict.fromkeys(entry.value for entry in group if entry.value))
        image = self.raw / IMAGES / f"{patient}.dcm"
        if boxes and any(entry.value is None for entry in group):
            self.dropped[CONTRADICTION] += len(group)
            return None
        if not image.is_file():
            self.dropped[MISSING] += len(group)
            return None
        return Row(
            key=patient,  # the name of the file, made up for the challenge
            patient=patient,
            study=patient,
            image=image,
            where=f"{TABLE} line {group[0].number}",
            labels=(PNEUMONIA,) if boxes else (),
            phrases=(Phrase(PNEUMONIA, PNEUMONIA, boxes=boxes),) if boxes else (),
            frame=(SIDE, SIDE),
        )
