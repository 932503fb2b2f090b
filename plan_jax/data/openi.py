"""Data set `openi`: the chest radiographs of Indiana University with their reports, from Open-i.

Demner-Fushman et al., Preparing a collection of radiology examinations for distribution and retrieval, JAMIA 23(2),
2016. The raw folder holds the reports (NLMCXR_reports.tgz or indiana_reports.csv), the images (NLMCXR_png.tgz unpacked
into NLMCXR_png/, or images/) and, where there is one, indiana_projections.csv, which tells frontal views from others.
"""

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plan_jax.data.csv_table import read_table
from plan_jax.data.dealing import deal, with_images
from plan_jax.data.openi_reports import ARCHIVE, TABLE, Report, read_reports
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.errors import InputError

VIEWS = "indiana_projections.csv"
FOLDERS = ("NLMCXR_png", "images/images_normalized", "images")  # where images may lie, the first that has one counts

# CXR1_1_IM-0001-3001 and CXR2_IM-0652-1001 of Open-i, 1_IM-0001-3001.dcm.png and 2_IM-0652-1001.dcm.png of the table
_IMAGE = re.compile(r"(?:CXR)?0*([1-9][0-9]{0,6})(?:_[0-9]+)?_(IM-[0-9]+(?:-[0-9]+)+)(?:\.dcm)?(?:\.png)?")


@dataclass(frozen=True)
class Picture:
    """An image that a table or a report names. `view`: of the table, or "" where none says it."""

    where: str
    report: str
    name: str
    view: str = ""


def image_key(name: str) -> tuple[str, str] | None:
    """(number of the report, number of the image) in the name of an image or its file, or None."""
    match = _IMAGE.fullmatch(name)
    return (match[1], match[2]) if match else None


class OpenI(RowSet):
    """3,955 reports with 7,470 images. A patient is a report: Open-i says no more.

    Frontal views alone where the table of views is there; without it nothing tells them apart, and all are kept.
    """

    name, version = "openi", "1.0.0"
    summary = "Chest radiographs with reports of Indiana University, Open-i (Demner-Fushman et al., 2016)."

    def inputs(self) -> Sequence[Path]:
        reports = next((self.raw / name for name in (ARCHIVE, TABLE) if (self.raw / name).is_file()), None)
        views = self.raw / VIEWS
        missing = ""
        if reports is None:
            missing = ARCHIVE
        elif reports.name == TABLE and not views.is_file():
            missing = VIEWS
        elif not any((self.raw / folder).is_dir() for folder in FOLDERS):
            missing = FOLDERS[0] + "/"
        if missing or reports is None:
            raise InputError(
                f"--raw must hold {ARCHIVE}, or {TABLE} and {VIEWS}, and {FOLDERS[0]}/ or images/, "
                f"got no {missing} in {self.raw}; give another folder"
            )
        return [reports, views] if views.is_file() else [reports]

    def rows(self) -> Mapping[str, Sequence[Row]]:
        self.dropped.clear()
        source, *views = self.inputs()
        reports = {report.number: report for report in read_reports(source, self.dropped)}
        pictures = _read_views(views[0], self.dropped) if views else self._named(reports.values())
        rows = list(self._rows(pictures, reports))
        return with_images(deal(rows, seed=self.seed), dropped=self.dropped, table=source)

    def _named(self, reports: Iterable[Report]) -> Iterator[Picture]:
        """The images that the reports name."""
        for report in reports:
            if not report.images:
                self.dropped["report without an image"] += 1
            for name in report.images:
                yield Picture(report.where, report.number, name)

    def _rows(self, pictures: Iterator[Picture], reports: Mapping[str, Report]) -> Iterator[Row]:
        """The rows in the order of the pictures; counts every picture that gives none."""
        files = _image_files(self.raw)
        used: set[tuple[str, str]] = set()
        for picture in pictures:
            key, report = image_key(picture.name), reports.get(picture.report)
            reason = _why_dropped(picture, report)
            if not reason and key in used:
                reason = "image of an earlier row"
            if reason or key is None or report is None:
                self.dropped[reason] += 1
                continue
            used.add(key)
            sections = (("findings", report.findings), ("impression", report.impression))
            yield Row(
                key="_".join(key),
                patient=report.number,
                study=report.number,
                image=files.get(key, self.raw / FOLDERS[0] / f"CXR{key[0]}_{key[1]}.png"),
                where=picture.where,
                sections=tuple((name, text) for name, text in sections if text),
            )


def _why_dropped(picture: Picture, report: Report | None) -> str:
    if picture.view and picture.view.lower() != "frontal":
        return "not a frontal view"
    key = image_key(picture.name)
    if key is None or key[0] != picture.report:
        return "image name is not as published"
    if report is None:
        return "no report of that number"
    return "" if report.findings or report.impression else "neither findings nor impression"


def _read_views(path: Path, dropped: Counter[str]) -> Iterator[Picture]:
    for row in read_table(path, ("uid", "filename", "projection")):
        if row.fault:
            dropped[row.fault] += 1
        else:
            uid, name, view = row.cells
            yield Picture(f"{path.name} line {row.line}", uid.lstrip("0"), name, view or "unknown")


def _image_files(raw: Path) -> dict[tuple[str, str], Path]:
    """Key -> file, of all PNG files in the folders; names in tables are looked up here and never made into paths."""
    files: dict[tuple[str, str], Path] = {}
    for folder in FOLDERS:
        for path in sorted((raw / folder).glob("*.png")):
            key = image_key(path.name)
            if key and path.is_file():
                files.setdefault(key, path)
    return files
