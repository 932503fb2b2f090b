"""Reports of MIMIC-CXR where they lie: a folder of text files, the zip as published, or a table made from either."""

import contextlib
import lzma
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from plan_jax.data.csv_table import BROKEN, is_blank, read_table
from plan_jax.data.reports import SECTIONS, decode_report, extract_sections
from plan_jax.errors import InputError

TABLE, ARCHIVE, FOLDER = "mimic_cxr_sectioned.csv", "mimic-cxr-reports.zip", "mimic-cxr-reports"
MAX_BYTES = 1 << 20  # of a report; the published ones have a few thousand
# What zipfile raises on an archive or member that is cut, flipped, encrypted or packed in a way unknown here.
DAMAGED = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, OSError, EOFError, ValueError, RuntimeError)

_MEMBER = re.compile(r"(?:^|/)p[0-9]{2}/p([0-9]{8})/s([0-9]{8})\.txt$")

Reader = Callable[[str, str], Mapping[str, str]]


class NoReport(Exception):
    """A study has no report that can be read; its text is the reason, for counting."""


def find_reports(raw: Path) -> Path:
    """The table, else the zip, else the folder: what was prepared goes first. InputError: there is none."""
    found = [path for path in (raw / TABLE, raw / ARCHIVE) if path.is_file()]
    found += [raw / FOLDER] if (raw / FOLDER / "files").is_dir() else []
    if not found:
        raise InputError(f"--raw must hold {ARCHIVE}, {FOLDER}/files/ or {TABLE}, got none in {raw}; add the reports")
    return found[0]


@contextlib.contextmanager
def open_reports(source: Path) -> Iterator[Reader]:
    """A function (subject, study) -> the report's sections, which raises NoReport; nothing is unpacked.

    InputError: the archive or table is damaged.
    """
    if source.name == TABLE:
        yield _from_table(source)
    elif source.name == ARCHIVE:
        try:
            archive = zipfile.ZipFile(source)
        except DAMAGED as error:
            raise InputError(f"{source} must be the zip as published, got {error}; get it again") from error
        with archive:
            yield _from_archive(archive)
    else:
        yield lambda subject, study: _read_file(source / f"files/p{subject[:2]}/p{subject}/s{study}.txt")


def _from_table(source: Path) -> Reader:
    rows = read_table(source, ("study", *SECTIONS))
    studies = {row.cells[0].removeprefix("s"): row.cells[1:] for row in rows if row.fault in ("", BROKEN)}

    def read(subject: str, study: str) -> Mapping[str, str]:
        del subject  # a study has one
        if study not in studies:
            raise NoReport("no report of the study")
        return {name: cell for name, cell in zip(SECTIONS, studies[study], strict=True) if not is_blank(cell)}

    return read


def _from_archive(archive: zipfile.ZipFile) -> Reader:
    members: dict[tuple[str, str], zipfile.ZipInfo] = {}
    for member in archive.infolist():
        if match := _MEMBER.search(member.filename):
            members.setdefault((match[1], match[2]), member)

    def read(subject: str, study: str) -> Mapping[str, str]:
        member = members.get((subject, study))
        if member is None:
            raise NoReport("no report of the study")
        try:
            with archive.open(member) as file:
                return _sections(file.read(MAX_BYTES + 1))
        except DAMAGED as error:
            raise NoReport("report cannot be read") from error

    return read


def _read_file(path: Path) -> Mapping[str, str]:
    try:
        with open(path, "rb") as file:
            return _sections(file.read(MAX_BYTES + 1))
    except FileNotFoundError as error:
        raise NoReport("no report of the study") from error
    except OSError as error:
        raise NoReport("report cannot be read") from error


def _sections(data: bytes) -> Mapping[str, str]:
    if len(data) > MAX_BYTES:
        raise NoReport("report cannot be read")
    return extract_sections(decode_report(data))
