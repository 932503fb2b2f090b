"""Data set `covid_cxr`: the frontal radiographs of the COVID-19 Image Data Collection that have clinical notes.

Cohen et al., COVID-19 Image Data Collection: Prospective Predictions Are the Future, arXiv:2006.11988, 2020. The raw
folder is the published one: metadata.csv and images/. The notes are case texts, not radiology reports: they mix what
the film shows with history and with other examinations.
"""

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import tensorflow_datasets as tfds

from plan_jax.data.builder import RecordBuilder
from plan_jax.data.dealing import split_of_groups
from plan_jax.data.image import encode_png, read_image, shrink_image
from plan_jax.data.records import SPLITS, Record, file_hash
from plan_jax.errors import InputError

TABLE, IMAGES = "metadata.csv", "images"
COLUMNS = ("patientid", "finding", "view", "modality", "filename", "clinical_notes")
FRONTAL = ("pa", "ap", "aps")  # first word of the view: "AP Supine", "AP erect", ...
NO_LABEL = ("", "todo", "unknown")
LONG_SIDE = 512  # of a stored image, pixels


@dataclass(frozen=True)
class Row:
    """A row of the table, stripped. `number`: its line in the file; `extra`: it has more cells than the header."""

    number: int
    patient: str
    finding: str
    view: str
    modality: str
    filename: str
    notes: str
    extra: bool


def read_table(path: Path) -> list[Row]:
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


def _row(number: int, cells: list[str], places: list[int], width: int) -> Row:
    values = [" ".join(cells[place].split()) if place < len(cells) else "" for place in places]
    patient, finding, view, modality, filename, notes = values
    extra = any(map(str.strip, cells[width:]))
    return Row(number, patient, finding, view, modality, filename, notes, extra)


def why_dropped(row: Row, images: Path) -> str:
    """Why a row gives no record, as far as the table and the names of the files tell; "" where it may give one."""
    if row.extra:
        return "more cells than the header"  # a quote is missing somewhere: cells may be in the wrong columns
    if row.modality.lower() != "x-ray" or row.view.lower().split(" ")[0] not in FRONTAL:
        return "not a frontal X-ray"
    if not any(map(str.isalpha, row.notes)):
        return "no clinical notes"
    if Path(row.filename).name != row.filename or not (images / row.filename).is_file():
        return "image file missing"
    return ""


def patient_groups(rows: Sequence[Row]) -> list[str]:
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


class CovidCxr(RecordBuilder, skip_registration=True):
    """`python -m plan_jax build covid_cxr --raw DIR --out DIR [--size N] [--seed S]`; `--size` keeps the first N."""

    VERSION = tfds.core.Version("1.0.0")
    summary = "Frontal radiographs with clinical notes of the COVID-19 Image Data Collection (Cohen et al., 2020)."

    def check(self) -> None:
        raw, size = self.options.raw, self.options.size
        if raw is None:
            raise InputError(f"--raw must name the folder with {TABLE} and {IMAGES}/ for covid_cxr, got none; add it")
        if not (raw / TABLE).is_file() or not (raw / IMAGES).is_dir():
            missing = IMAGES + "/" if (raw / TABLE).is_file() else TABLE
            raise InputError(f"--raw must hold {TABLE} and {IMAGES}/, got no {missing} in {raw}; give another folder")
        if size is not None and size < 1:
            raise InputError(f"--size must be at least 1 for covid_cxr, got {size}; leave it out for all images")
        if self.options.level:
            raise InputError(f"--level must be left out for covid_cxr, got {self.options.level!r}; remove it")
        self.raw, self.rows = raw, read_table(raw / TABLE)

    def manifest_options(self) -> dict[str, int | str]:
        size = {} if self.options.size is None else {"size": self.options.size}
        return {"table": file_hash(self.raw / TABLE), "seed": self.options.seed} | size

    def read(self) -> Mapping[str, list[Record]]:
        records = list(self._records())
        if not records:
            reasons = ", ".join(f"{count} {reason}" for reason, count in self.dropped.items())
            raise InputError(
                f"{self.raw / TABLE} must have a frontal X-ray with notes and image, got {reasons or 'no rows'}; "
                "give the collection as published"
            )
        self.classes = tuple(sorted({label for record in records for label in record.labels}))
        split = split_of_groups([record.patient for record in records], self.options.seed)
        parts = {name: [record for record in records if split[record.patient] == name] for name in SPLITS}
        return {name: part for name, part in parts.items() if part}

    def _records(self) -> Iterator[Record]:
        """The records in the order of the table; counts every row that gives none."""
        used: set[str] = set()
        studies: dict[tuple[str, str], str] = {}
        for row, group in zip(self.rows, patient_groups(self.rows), strict=True):
            reason = why_dropped(row, self.raw / IMAGES)
            if not reason and row.filename in used:
                reason = "image of an earlier row"
            if not reason and len(used) == self.options.size:
                reason = "beyond --size"
            try:
                image = None if reason else read_image(self.raw / IMAGES / row.filename)
            except InputError:
                image, reason = None, "image cannot be decoded"
            if image is None:
                self.dropped[reason] += 1
                continue
            used.add(row.filename)
            yield Record(
                key=row.filename,
                patient=group,
                study=studies.setdefault((group, row.notes), f"{group}-{len(studies)}"),
                image=encode_png(shrink_image(image, long_side=LONG_SIDE)),
                sections=(("clinical_notes", row.notes),),
                labels=labels(row.finding),
            )
