"""A small made-up raw folder in the published layouts of Open-i's chest X-rays, with their quirks."""

import csv
import gzip
import io
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

import cv2
import numpy as np

from plan_jax.data.fake_reports import draw_film
from plan_jax.data.openi import FOLDERS, VIEWS
from plan_jax.data.openi_reports import ARCHIVE, TABLE

REPORTS = 24  # that are in order, with two films each
NO_FINDINGS, NO_IMPRESSION, NEITHER, NO_FILM, LOST_FILM = range(
    REPORTS + 1, REPORTS + 6
)  # numbers of those that are not

_SAID = (
    ("The lungs are clear. Heart size is normal.", "No acute cardiopulmonary abnormality."),
    ("There is a XXXX opacity in the right lower lobe.", "Right lower lobe pneumonia & effusion."),
    ("Cardiomegaly < borderline. No pneumothorax.", "1. Borderline heart size. 2. Clear lungs."),
)


def fake_openi(out: Path, *, seed: int, tables: bool = False) -> None:
    """Writes NLMCXR_reports.tgz and NLMCXR_png/, or with `tables` the pair of CSV and images/images_normalized/.

    24 reports are in order, 5 lack a part or a film. The archive has 3 members more that cannot be read: bytes that are
    no UTF-8, a document type, and a link that leads out. The images of the table tell frontal from lateral.
    """
    random = np.random.default_rng([seed, 5])
    reports: dict[int, tuple[str, str]] = {}
    names: dict[int, list[str]] = {}
    for number in range(1, LOST_FILM + 1):
        findings, impression = _SAID[random.integers(len(_SAID))]
        findings = "" if number in (NO_FINDINGS, NEITHER) else f"{findings} Film {number} of the made-up series."
        reports[number] = (findings, "" if number in (NO_IMPRESSION, NEITHER) else impression)
        middle = f"{number}_1" if number == 1 else str(number)  # the first report's films have a number more
        views = () if number == NO_FILM else (1001, 2001)
        names[number] = [f"CXR{middle}_IM-{random.integers(10_000):04d}-{view}" for view in views]
    folder = out / FOLDERS[1 if tables else 0]
    folder.mkdir(parents=True)
    for number, films in names.items():
        for name in films if number != LOST_FILM else ():
            file = f"{_of_table(number, name)}" if tables else f"{name}.png"
            (folder / file).write_bytes(cv2.imencode(".png", draw_film(random, []))[1].tobytes())
    if tables:
        _write_tables(out, reports, names)
    else:
        _write_archive(out / ARCHIVE, [_report(number, *reports[number], names[number]) for number in reports])


def _of_table(number: int, name: str) -> str:
    return f"{number}_IM{name.split('_IM')[1]}.dcm.png"


def _write_tables(out: Path, reports: Mapping[int, tuple[str, str]], names: Mapping[int, Sequence[str]]) -> None:
    columns = ["uid", "MeSH", "Problems", "image", "indication", "comparison", "findings", "impression"]
    lines = [[number, "normal", "normal", "Chest, 2 views", "cough", "", *texts] for number, texts in reports.items()]
    _write_csv(out / TABLE, [columns, *lines])
    views = [
        [number, _of_table(number, name), view]
        for number, films in names.items()
        for name, view in zip(films, ("Frontal", "Lateral"), strict=False)
    ]
    strangers = [[999, "999_IM-0001-1001.dcm.png", "Frontal"], [1, "../1_IM-0001-1001.dcm.png", "Frontal"], views[0]]
    _write_csv(out / VIEWS, [["uid", "filename", "projection"], *views, *strangers])


def _report(number: int, findings: str, impression: str, names: Sequence[str]) -> bytes:
    parts = {"COMPARISON": "None.", "INDICATION": "cough", "FINDINGS": findings, "IMPRESSION": impression}
    texts = "\n".join(f'<AbstractText Label="{label}">{escape(text)}</AbstractText>' for label, text in parts.items())
    images = "\n".join(f'<parentImage id="{name}"><caption>Chest, 2 views</caption></parentImage>' for name in names)
    return (
        f'<?xml version="1.0" encoding="utf-8"?>\n<eCitation>\n<uId id="CXR{number}"/>\n<MedlineCitation><Article>'
        f"<Abstract>\n{texts}\n</Abstract></Article></MedlineCitation>\n{images}\n</eCitation>\n"
    ).encode()


def _write_archive(path: Path, reports: Sequence[bytes]) -> None:
    """The archive, without the time of now."""
    hostile = (
        b'<?xml version="1.0"?>\n<!DOCTYPE e [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]>\n<e><uId id="CXR99"/>&b;</e>'
    )
    broken = reports[0].replace(b"cough", b"caf\xe9")
    with (
        open(path, "wb") as file,
        gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w") as archive,
    ):
        folder = tarfile.TarInfo("ecgen-radiology")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        for number, data in enumerate([*reports, broken, hostile], start=1):
            member = tarfile.TarInfo(f"ecgen-radiology/{number}.xml")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        link = tarfile.TarInfo("../../outside.xml")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/hostname"
        archive.addfile(link)


def _write_csv(path: Path, lines: Sequence[Sequence]) -> None:
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
