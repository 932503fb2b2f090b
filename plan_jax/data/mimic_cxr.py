"""Data set `mimic_cxr`: the frontal radiographs of MIMIC-CXR with findings and impression of their reports.

Johnson et al., MIMIC-CXR-JPG, arXiv:1901.07042, 2019. The raw folder is that of MIMIC-CXR-JPG with the reports of
MIMIC-CXR beside (`plan_jax.data.mimic_reports`). Where a table of MS-CXR is found in it or beside it, its subjects
train nothing, and the table is one of the inputs that name the build.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plan_jax.data.csv_table import number, read_table
from plan_jax.data.dealing import ELSEWHERE, by_split, shuffled, strictest_split, with_images
from plan_jax.data.mimic_reports import NoReport, Reader, find_reports, open_reports
from plan_jax.data.ms_cxr import find_table, subjects
from plan_jax.data.reports import MIN_WORDS, SECTIONS, clean_report, word_count
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.errors import InputError

TABLES = tuple(f"mimic-cxr-2.0.0-{name}.csv" for name in ("metadata", "split", "chexpert"))
IMAGES = "files"
FRONTAL = ("PA", "AP")
SPLIT_OF = {"train": "train", "validate": "validation", "test": "test"}
TUNE = 0.01  # share of the train patients: 646 of 64,586, about as many as the official validate has (500)
CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Enlarged Cardiomediastinum",
    "Fracture",
    "Lung Lesion",
    "Lung Opacity",
    "No Finding",
    "Pleural Effusion",
    "Pleural Other",
    "Pneumonia",
    "Pneumothorax",
    "Support Devices",
)

_NUMBER, _DICOM = re.compile("[0-9]{8}"), re.compile("[0-9a-f-]{1,64}")


@dataclass(frozen=True)
class Image:
    """A line of the metadata."""

    where: str
    dicom: str
    subject: str
    study: str
    view: str

    @property
    def sound(self) -> bool:
        """Whether its identifiers are as published; then they make up a path inside the folder."""
        numbers = all(_NUMBER.fullmatch(number) for number in (self.subject, self.study))
        return numbers and _DICOM.fullmatch(self.dicom) is not None

    def path(self, raw: Path) -> Path:
        return raw / IMAGES / f"p{self.subject[:2]}/p{self.subject}/s{self.study}/{self.dicom}.jpg"


@dataclass(frozen=True)
class Published:
    """What the tables say. A patient that they have in several splits belongs to the one furthest from train.

    Attributes:
        images: the lines of the metadata that can be read.
        split_of_image, split_of_patient: of this project's names.
        labels: (subject, study) -> the classes that are present.
        evaluated: subjects of MS-CXR.
    """

    images: list[Image]
    split_of_image: dict[str, str]
    split_of_patient: dict[str, str]
    labels: dict[tuple[str, str], tuple[str, ...]]
    evaluated: set[str]

    def why_dropped(self, image: Image) -> str:
        """Why an image gives no row, as far as the tables tell; "" where it may give one."""
        split = self.split_of_image.get(image.dicom, "")
        if image.view.upper() not in FRONTAL:
            return "not a frontal view"
        if not split or image.subject not in self.split_of_patient:
            return "no official split"
        if split != self.split_of_patient[image.subject]:
            return ELSEWHERE
        if split == "train" and image.subject in self.evaluated:
            return "train image of a subject of MS-CXR"
        return ""


class MimicCxr(RowSet):
    """377,110 images of 65,379 patients, of which the frontal ones with a report are kept.

    The official split is followed; validate becomes validation. Tune is drawn by patient from train and not from
    validate, which is small and whole in the papers to compare with. MS-CXR's subjects leave train before that.
    """

    name, version = "mimic_cxr", "1.0.0"
    summary = "Frontal radiographs with reports of MIMIC-CXR (Johnson et al., 2019)."
    classes = CLASSES

    def inputs(self) -> Sequence[Path]:
        """The reports count where they are one file; a folder of text files is, like the images, taken as published."""
        found = {name: _find(self.raw, name) for name in TABLES}
        missing = [f"{name}[.gz]" for name, path in found.items() if path is None]
        if missing or not (self.raw / IMAGES).is_dir():
            raise InputError(
                f"--raw must hold the tables and {IMAGES}/ of MIMIC-CXR-JPG, "
                f"got no {[*missing, IMAGES + '/'][0]} in {self.raw}; give another folder"
            )
        others = (find_reports(self.raw), find_table(self.raw))
        return [path for path in (*found.values(), *others) if path is not None and path.is_file()]

    def rows(self) -> Mapping[str, Sequence[Row]]:
        self.dropped.clear()
        tables = self._read_tables()
        with open_reports(find_reports(self.raw)) as report_of:
            rows = list(self._rows(tables, report_of))
        split = {row.patient: tables.split_of_patient[row.patient] for row in rows}
        train = shuffled((patient for patient, name in split.items() if name == "train"), self.seed)
        tune = max(1, round(TUNE * len(train))) if len(train) > 1 else 0
        split |= dict.fromkeys(train[:tune], "tune")
        return with_images(by_split(rows, split), dropped=self.dropped, table=self.inputs()[0])

    def _read_tables(self) -> Published:
        metadata, splits, chexpert = self.inputs()[:3]
        images = list(self._images(metadata))
        table = find_table(self.raw)
        patients, dicoms = (set(), set()) if table is None else subjects(table)
        patients |= {image.subject for image in images if image.dicom in dicoms}
        return Published(images, *_read_splits(splits), _read_labels(chexpert), patients)

    def _images(self, metadata: Path) -> Iterator[Image]:
        """The lines that can be read; counts the others."""
        used: set[str] = set()
        for row in read_table(metadata, ("dicom_id", "subject_id", "study_id", "ViewPosition")):
            image = Image(f"{metadata.name} line {row.line}", *row.cells)
            if row.fault:
                self.dropped[row.fault] += 1
            elif not image.sound:
                self.dropped["identifiers are not as published"] += 1
            elif image.dicom in used:
                self.dropped["image of an earlier row"] += 1
            else:
                used.add(image.dicom)
                yield image

    def _rows(self, tables: Published, report_of: Reader) -> Iterator[Row]:
        """The rows in the order of the metadata; counts what gives none."""
        for image in tables.images:
            reason = tables.why_dropped(image)
            sections: tuple[tuple[str, str], ...] = ()
            if not reason:
                sections, reason = _text(image, report_of)
            if reason:
                self.dropped[reason] += 1
                continue
            yield Row(
                key=image.dicom,
                patient=image.subject,
                study=image.study,
                image=image.path(self.raw),
                where=image.where,
                sections=sections,
                labels=tables.labels.get((image.subject, image.study), ()),
            )


def _text(image: Image, report_of: Reader) -> tuple[tuple[tuple[str, str], ...], str]:
    """Impression and findings, cleaned, and why they cannot be used, or ""."""
    try:
        found = report_of(image.subject, image.study)
    except NoReport as error:
        return (), str(error)
    if not any(found.get(name, "").strip() for name in SECTIONS[:2]):
        return (), "neither findings nor impression"
    sections = clean_report(found)
    few = word_count(text for _, text in sections) < MIN_WORDS
    return sections, "report of too few words" if few else ""


def _find(raw: Path, name: str) -> Path | None:
    """The table of that name, plain or else gzip."""
    return next((path for path in (raw / name, raw / f"{name}.gz") if path.is_file()), None)


def _read_splits(path: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Split of each image and of each patient; of several the one that is furthest from train counts."""
    rows = [row.cells for row in read_table(path, ("dicom_id", "subject_id", "split")) if not row.fault]
    known = [(dicom, subject, SPLIT_OF[split.lower()]) for dicom, subject, split in rows if split.lower() in SPLIT_OF]
    images = strictest_split((dicom, split) for dicom, _, split in known)
    return images, strictest_split((subject, split) for _, subject, split in known)


def _read_labels(path: Path) -> dict[tuple[str, str], tuple[str, ...]]:
    """(subject, study) -> its classes marked 1.0; uncertain (-1.0), negated (0.0) and unmentioned ones are absent."""
    labels = {}
    for row in read_table(path, ("subject_id", "study_id", *CLASSES)):
        subject, study, *cells = row.cells
        if not row.fault:
            present = (name for name, cell in zip(CLASSES, cells, strict=True) if number(cell) == 1)
            labels[subject, study] = tuple(present)
    return labels
