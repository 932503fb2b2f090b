"""Data set `covid_cxr`: the frontal radiographs of the COVID-19 Image Data Collection that have clinical notes.

Cohen et al., COVID-19 Image Data Collection: Prospective Predictions Are the Future, arXiv:2006.11988, 2020. The raw
folder is the published one: metadata.csv and images/. The notes are case texts, not radiology reports: they mix what
the film shows with history and with other examinations.
"""

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plan_jax.data.dealing import deal
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.data.store import MISSING
from plan_jax.errors import InputError

TABLE, IMAGES = "metadata.csv", "images"
COLUMNS = ("patientid", "finding", "view", "modality", "filename", "clinical_notes")
FRONTAL = ("pa", "ap", "aps")  # first word of the view: "AP Supine", "AP erect", ...
NO_LABEL = ("", "todo", "unknown")


@dataclass(frozen=True)
class Line:
    """A row of the table, stripped. `number`: its line in the file; `extra`: it has more cells than the header."""

    number: int
    patient: str
    finding: str
    view: str
    modality: str
    filename: str
    notes: str
    extra: bool


def read_table(path: Path) -> list[Line]:
    """The rows of metadata.csv, blank lines left out.

    Missing cells at the end of a row are empty. InputError: no such file, not a table, columns missing.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")  # damaged characters are part of the collection
    except OSError as error:
        raise InputError(f"{path} must be readable, got {error.strerror}; check its permissions") from error
    lines = csv.reader(io.StringIO(text, newline=""))
    try:
        names = [name.strip().lower() for name in next(lines, [])]
        missing = [name for name in COLUMNS if name not in names]
        if missing:
            raise InputError(f"{path} must have the column {missing[0]}, got none; give metadata.csv as published")
        places = [names.index(name) for name in COLUMNS]
        return [_row(lines.line_num, cells, places, len(names)) for cells in lines if any(map(str.strip, cells))]
    except csv.Error as error:
        raise InputError(f"{path} must be a CSV table, got {error} in line {lines.line_num}; repair it") from error


def _row(number: int, cells: list[str], places: list[int], width: int) -> Line:
    values = [" ".join(cells[place].split()) if place < len(cells) else "" for place in places]
    patient, finding, view, modality, filename, notes = values
    extra = any(map(str.strip, cells[width:]))
    return Line(number, patient, finding, view, modality, filename, notes, extra)


def why_dropped(row: Line, images: Path) -> str:
    """Why a row gives no record, as far as the table and the names of the files tell; "" where it may give one."""
    if row.extra:
        return "more cells than the header"  # a quote is missing somewhere: cells may be in the wrong columns
    if row.modality.lower() != "x-ray" or row.view.lower().split(" ")[0] not in FRONTAL:
        return "not a frontal X-ray"
    if not any(map(str.isalpha, row.notes)):
        return "no clinical notes"
    if Path(row.filename).name != row.filename or not os.path.isfile(images / row.filename):
        return MISSING
    return ""


def patient_groups(rows: Sequence[Line]) -> list[str]:
    """A name for each row, the same for rows that share a patient, an image file or the text of the notes.

    The collection lists some cases twice, under two patients.
    """
    parent = list(range(len(rows)))

    def root(index: int) -> int:
        while parent[index] != index:
            index = parent[index]
        return index

    first: dict[tuple[str, str], int] = {}
    for index, row in enumerate(rows):
        for kind, value in (("patient", row.patient), ("file", row.filename), ("notes", row.notes.lower())):
            if value:
                low, high = sorted((root(first.setdefault((kind, value), index)), root(index)))
                parent[high] = low
    roots = [rows[root(index)] for index in range(len(rows))]
    return [row.patient or f"row {row.number}" for row in roots]


def labels(finding: str) -> tuple[str, ...]:
    """The parts of a finding such as "Pneumonia/Viral/COVID-19" or "COVID-19, ARDS"."""
    parts = (part.strip() for part in finding.replace("/", ",").split(","))
    return tuple(dict.fromkeys(part for part in parts if part.lower() not in NO_LABEL))


class CovidCxr(RowSet):
    """Split by what rows share: a tenth of the groups each in tune, validation and test. Labels are as published."""

    name, version = "covid_cxr", "1.1.0"
    summary = "Frontal radiographs with clinical notes of the COVID-19 Image Data Collection (Cohen et al., 2020)."

    def inputs(self) -> Sequence[Path]:
        if not (self.raw / TABLE).is_file() or not (self.raw / IMAGES).is_dir():
            missing = IMAGES + "/" if (self.raw / TABLE).is_file() else TABLE
            raise InputError(
                f"--raw must hold {TABLE} and {IMAGES}/, got no {missing} in {self.raw}; give another folder"
            )
        return (self.raw / TABLE,)

    def rows(self) -> Mapping[str, Sequence[Row]]:
        self.dropped.clear()
        (table,) = self.inputs()
        found = list(self._found(read_table(table)))
        if not found:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            raise InputError(
                f"{table} must have a frontal X-ray with notes and image, got {reasons or 'no rows'}; "
                "give the collection as published"
            )
        self.classes = tuple(sorted({label for row in found for label in row.labels}))
        return {name: rows for name, rows in deal(found, seed=self.seed).items() if rows}

    def _found(self, lines: Sequence[Line]) -> Iterator[Row]:
        """The rows in the order of the table; counts every line that gives none."""
        used: set[str] = set()
        studies: dict[tuple[str, str], str] = {}
        for line, group in zip(lines, patient_groups(lines), strict=True):
            reason = why_dropped(line, self.raw / IMAGES)
            if not reason and line.filename in used:
                reason = "image of an earlier row"
            if reason:
                self.dropped[reason] += 1
                continue
            used.add(line.filename)
            yield Row(
                key=line.filename,
                patient=group,
                study=studies.setdefault((group, line.notes), f"{group}-{len(studies)}"),
                image=self.raw / IMAGES / line.filename,
                where=f"{TABLE} line {line.number}",
                sections=(("clinical_notes", line.notes),),
                labels=labels(line.finding),
            )
