"""Reports of Open-i's Indiana University chest X-rays: XML read straight from the archive, or the table made from it.

Demner-Fushman et al., Preparing a collection of radiology examinations for distribution and retrieval, JAMIA 23(2),
2016. A report that cannot be read is counted; an archive or table that cannot be is an error.
"""

import gzip
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from plan_jax.data.csv_table import BROKEN, is_blank, read_table
from plan_jax.errors import InputError

ARCHIVE, TABLE = "NLMCXR_reports.tgz", "indiana_reports.csv"
MAX_BYTES = 1 << 20  # of a report; the published ones have up to 8,967
BLOCK = 512  # of a tar archive, bytes
NO_XML, NO_NUMBER = "report is not XML as published", "report without a number"

_NUMBER = re.compile(r"(?:CXR)?0*([1-9][0-9]{0,6})")


@dataclass(frozen=True)
class Report:
    """A report. `images`: the names of its images, where the file says them."""

    number: str
    findings: str
    impression: str
    images: tuple[str, ...]
    where: str


class _NoDoctype(ElementTree.TreeBuilder):
    """Refuses what a report has no use for and entities could be declared in, to grow without bound."""

    def doctype(self, name, pubid, system):
        raise ValueError("a document type")


def read_reports(path: Path, dropped: Counter[str]) -> list[Report]:
    """The reports of the archive or table, in its order; counts in `dropped` those that cannot be read.

    InputError: no such file, or it is damaged.
    """
    read = _read_table(path, dropped) if path.suffix == ".csv" else _read_archive(path, dropped)
    reports: dict[str, Report] = {}
    for report in read:
        if report.number in reports:
            dropped["report of an earlier number"] += 1
        reports.setdefault(report.number, report)
    return list(reports.values())


def _read_table(path: Path, dropped: Counter[str]) -> Iterator[Report]:
    for row in read_table(path, ("uid", "findings", "impression")):
        number = _NUMBER.fullmatch(row.cells[0])
        fault = "" if row.fault == BROKEN else row.fault  # a text may have line breaks
        if fault or number is None:
            dropped[fault or NO_NUMBER] += 1
        else:
            findings, impression = map(_words, row.cells[1:])
            yield Report(number[1], findings, impression, (), f"{path.name} line {row.line}")


def _read_archive(path: Path, dropped: Counter[str]) -> Iterator[Report]:
    for data in _members(path, dropped):
        try:
            tree = ElementTree.fromstring(data, ElementTree.XMLParser(target=_NoDoctype()))
        except (ElementTree.ParseError, ValueError, LookupError):  # the last two: encodings that are unknown
            dropped[NO_XML] += 1
            continue
        mark = tree.find("uId")
        number = _NUMBER.fullmatch("" if mark is None else mark.get("id", ""))
        if number is None:
            dropped[NO_NUMBER] += 1
            continue
        findings, impression = (
            _words(
                " ".join("".join(part.itertext()) for part in tree.iter("AbstractText") if part.get("Label") == label)
            )
            for label in ("FINDINGS", "IMPRESSION")
        )
        images = tuple(image.get("id", "") for image in tree.iter("parentImage"))
        where = f"{path.name} report {number[1]}"
        yield Report(number[1], findings, impression, images, where)


def _members(path: Path, dropped: Counter[str]) -> Iterator[bytes]:
    """The content of the archive's XML files; names lead nowhere and links are not followed."""
    end = 0
    try:
        with gzip.open(path, "rb") as stream:
            with tarfile.open(fileobj=stream, mode="r:") as archive:
                for member in archive:
                    end = member.offset_data + -(-member.size // BLOCK) * BLOCK * member.isreg()
                    if not member.isreg() or not member.name.endswith(".xml"):
                        continue
                    file = archive.extractfile(member) if member.size <= MAX_BYTES else None
                    if file is None:
                        dropped[NO_XML] += 1
                        continue
                    yield file.read()
            stream.seek(end)
            if stream.read(BLOCK) != bytes(BLOCK):  # tarfile takes a damaged header for the end of the archive
                raise tarfile.ReadError(f"no end at byte {end}")
            while stream.read(MAX_BYTES):
                pass  # to the end, where gzip compares its checksum
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError, OverflowError) as error:
        raise InputError(f"{path} must be the archive as published, got {error}; get it again") from error


def _words(text: str) -> str:
    return "" if is_blank(text) else " ".join(text.split())
