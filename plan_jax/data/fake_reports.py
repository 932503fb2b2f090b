"""Small made-up raw folders in the published layouts of MIMIC-CXR-JPG and MS-CXR, with their quirks.

For tests, and to try a build without the data. The films are noise with two dark lungs and a bright patch where the
report says so; nobody's report, film or identifier is in them.
"""

import csv
import gzip
import io
import json
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import UInt8

from plan_jax.data import mimic_cxr, ms_cxr
from plan_jax.data.mimic_reports import ARCHIVE, FOLDER, TABLE
from plan_jax.data.reports import SECTIONS, decode_report, extract_sections

HEIGHT, WIDTH = 70, 60  # of a made-up film, pixels
TRAIN, HELD_OUT = 24, 3  # patients in order, and in each of validate and test
QUIRKS = (
    "neither",
    "short",
    "no report",
    "no image",
    "bytes",
    "line ends",
    "typing errors",
    "ms-cxr",
    "no split",
    "view",
)

Box = tuple[int, int, int, int]  # x, y, width, height

# class -> (what the findings say, what the impression says, what MS-CXR asks for)
_SAID = {
    "Pneumonia": (
        "There is a patchy opacity in the {place}.",
        "Pneumonia on the {side}.",
        "patchy opacity in the {place}",
    ),
    "Pneumothorax": (
        "A small {side} apical pneumothorax is seen.",
        "Small {side} pneumothorax.",
        "{side} pneumothorax",
    ),
    "Pleural Effusion": (
        "A {side} pleural effusion is moderate.",
        "{side} effusion.",
        "moderate {side} pleural effusion",
    ),
    "No Finding": ("The lungs are clear. No pleural effusion.", "1. No acute process. 2. No change.", ""),
}
_PLAIN = "Heart size is normal, and the mediastinal contours are unremarkable."
_HEADERS = {"FINDINGS": "FINDINGS", "IMPRESSION": "IMPRESSION"}
_TYPED = {"FINDINGS": "FINDINS", "IMPRESSION": "IMPRESSON"}


@dataclass(frozen=True)
class Study:
    """A made-up study: its names, what is seen in it and where, and what is odd about it."""

    subject: str
    number: str
    dicom: str
    split: str
    finding: str
    side: str
    zone: str
    quirk: str = ""

    @property
    def folder(self) -> str:
        return f"files/p{self.subject[:2]}/p{self.subject}/s{self.number}"

    @property
    def box(self) -> Box:
        """Of the finding. The patient's right is on the left of the film."""
        return (8 if self.side == "right" else 36), {"upper": 12, "mid": 28, "lower": 44}[self.zone], 14, 12

    def say(self, sentence: str) -> str:
        return sentence.format(place=f"{self.side} {self.zone} lung", side=self.side)


def fake_mimic_cxr(out: Path, *, seed: int, reports: str = "folder") -> None:
    """Writes the tables, files/, ms-cxr/ and the reports ("folder", "zip" or "table"): 30 patients in order, 10 not.

    Every third patient in order has a lateral film too, every fifth a second study. Two patients, one of train and one
    of test, are in MS-CXR.
    """
    random = np.random.default_rng([seed, 3])
    studies = [
        *(_study(random, number, "train") for number in range(TRAIN)),
        *(_study(random, TRAIN + number, "validate") for number in range(HELD_OUT)),
        *(_study(random, TRAIN + HELD_OUT + number, "test") for number in range(HELD_OUT)),
    ]
    studies += [_study(random, int(study.subject[-3:]), study.split) for study in studies[::5]]
    studies += [_study(random, 900 + number, "train", quirk) for number, quirk in enumerate(QUIRKS)]
    metadata = [
        ["dicom_id", "subject_id", "study_id", "PerformedProcedureStepDescription", "ViewPosition", "Rows", "Columns"]
    ]
    for index, study in enumerate(studies):
        films = {study.dicom: "" if study.quirk == "view" else ("PA", "AP")[index % 2]}
        if index < TRAIN and index % 3 == 0:
            films[_dicom(random)] = "LATERAL"
        for dicom, view in films.items():
            cells = [dicom, study.subject, study.number, "CHEST (PA AND LAT)", view, str(HEIGHT), str(WIDTH)]
            metadata.append(cells)
            if study.quirk != "no image":
                _write_film(
                    out / study.folder / f"{dicom}.jpg", random, [study.box] if study.finding != "No Finding" else []
                )
    metadata.append(metadata[1])  # a line twice
    split_of = {study.number: study.split for study in studies if study.quirk != "no split"}
    lines = [[cells[0], cells[2], cells[1], split_of[cells[2]]] for cells in metadata[1:-1] if cells[2] in split_of]
    _write_csv(out / mimic_cxr.TABLES[0], metadata)
    _write_csv(out / f"{mimic_cxr.TABLES[1]}.gz", [["dicom_id", "study_id", "subject_id", "split"], *lines])
    labels = [[study.subject, study.number, *_labels(study.finding)] for study in studies]
    _write_csv(out / f"{mimic_cxr.TABLES[2]}.gz", [["subject_id", "study_id", *mimic_cxr.CLASSES], *labels])
    _write_reports(out, {study: _report(study) for study in studies if study.quirk != "no report"}, reports)
    asked = [study for study in studies if study.quirk == "ms-cxr" or study.split == "test"][::HELD_OUT]
    _write_alignment(out / ms_cxr.FOLDER / ms_cxr.TABLES[2], [_boxes(study, [study.box], "") for study in asked])


def fake_ms_cxr(out: Path, *, seed: int, table: str = ms_cxr.TABLES[2]) -> None:
    """Writes the table and files/: 16 patients with a phrase each, some with two boxes or two phrases, 4 that are not.

    `table`: one of `ms_cxr.TABLES`; those of v1.1.0 have splits.
    """
    random = np.random.default_rng([seed, 4])
    lines = []
    for number in range(20):
        study = _study(random, number, "train", finding=list(_SAID)[number % 3])
        split = ("train", "train", "val", "test")[number % 4] if "v1.1.0" in table else ""
        boxes = [study.box]
        if number % 4 == 1:
            boxes.append((study.box[0], 2, 10, 8))
        group = _boxes(study, boxes, split)
        if number % 4 == 2:
            group += [
                {**group[0], "label_text": "heart is  enlarged", "category_name": "Cardiomegaly", "x": 20, "w": 25}
            ]
        if number == 16:
            group[0]["x"] = WIDTH - 3
        elif number == 17:
            group[0]["category_name"] = "Nodule"
        elif number == 18:
            group = [line | {"path": "files/../../" + line["path"]} for line in group]
        if number != 19:
            _write_film(out / study.folder / f"{study.dicom}.jpg", random, boxes)
        lines.append(group)
    (out / "files").mkdir(exist_ok=True, parents=True)
    _write_alignment(out / table, lines)


def _study(random: np.random.Generator, number: int, split: str, quirk: str = "", *, finding: str = "") -> Study:
    finding = finding or str(random.choice(list(_SAID)))
    side, zone = str(random.choice(["left", "right"])), str(random.choice(["upper", "mid", "lower"]))
    name = str(50_000_000 + random.integers(9_999_999).item())
    return Study(
        str(10_000_000 + 1000 * (number % 7) + number), name, _dicom(random), split, finding, side, zone, quirk
    )


def _dicom(random: np.random.Generator) -> str:
    return "-".join(random.bytes(4).hex() for _ in range(5))


def _labels(finding: str) -> list[str]:
    """The cells of a study: present, denied, uncertain and unmentioned classes."""
    cells = {"Pneumothorax": "0.0", "Edema": "-1.0"} if finding != "No Finding" else {}
    return [(cells | {finding: "1.0"}).get(name, "") for name in mimic_cxr.CLASSES]


def _report(study: Study) -> bytes:
    """The file of a report."""
    seen, meant, _ = map(study.say, _SAID[study.finding])
    headers = _TYPED if study.quirk == "typing errors" else _HEADERS
    body = f" {headers['FINDINGS']}: \n \n {seen}\n {_PLAIN}\n \n {headers['IMPRESSION']}: \n \n {meant}\n"
    if study.quirk == "neither":
        body = " WET READ: ___ 8:00 AM\n \n Nothing was dictated.\n"
    elif study.quirk == "short":
        body = " IMPRESSION: Normal chest.\n"
    title = 33 * " " + "FINAL REPORT\n EXAMINATION:  CHEST (PA AND LAT)\n \n INDICATION:  ___ year old with cough\n \n"
    text = f"{title} COMPARISON:  None.\n \n{body}"
    if study.quirk == "line ends":
        text = text.replace("\n", "\r\n")
    return text.replace("normal", "normal \xb5", 1).encode("latin-1") if study.quirk == "bytes" else text.encode()


def _write_reports(out: Path, reports: dict[Study, bytes], form: str) -> None:
    if form == "folder":
        for study, data in reports.items():
            path = out / FOLDER / f"{study.folder}.txt"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
    elif form == "zip":
        with zipfile.ZipFile(out / ARCHIVE, "w") as archive:
            for study, data in reports.items():  # without the date and time of now
                archive.writestr(zipfile.ZipInfo(f"{study.folder}.txt"), data, zipfile.ZIP_DEFLATED)
    else:
        found = {study: extract_sections(decode_report(data)) for study, data in reports.items()}
        lines = [[f"s{study.number}", *(parts.get(name, "") for name in SECTIONS)] for study, parts in found.items()]
        _write_csv(out / TABLE, [["study", *SECTIONS], *lines])


def _boxes(study: Study, boxes: Sequence[Box], split: str) -> list[dict]:
    """The lines of MS-CXR for one phrase of a study."""
    finding = study.finding if study.finding != "No Finding" else "Pneumonia"
    values = (study.dicom, finding, study.say(_SAID[finding][2]), f"{study.folder}/{study.dicom}.jpg")
    lines = [dict(zip(ms_cxr.COLUMNS, (*values, *box, WIDTH, HEIGHT), strict=True)) for box in boxes]
    return [line | {"split": split} for line in lines] if split else lines


def _write_alignment(path: Path, groups: Sequence[Sequence[dict]]) -> None:
    """The table of MS-CXR, as its name says: CSV, or COCO's JSON. A group is an image."""
    lines = [line for group in groups for line in group]
    if path.suffix == ".csv":
        _write_csv(path, [list(lines[0]), *(list(line.values()) for line in lines)])
        return
    names = sorted({line["category_name"] for line in lines})
    content = {
        "info": {"description": "made up"},
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, 1)],
        "images": [
            {
                "id": number,
                "file_name": f"{group[0]['dicom_id']}.jpg",
                "path": group[0]["path"],
                "width": WIDTH,
                "height": HEIGHT,
            }
            for number, group in enumerate(groups, 1)
        ],
        "annotations": [
            {
                "id": 1000 * number + place,
                "image_id": number,
                "category_id": 1 + names.index(line["category_name"]),
                "bbox": [line[name] for name in "xywh"],
                "label_text": line["label_text"],
            }
            | {name: line[name] for name in ("split",) if name in line}
            for number, group in enumerate(groups, 1)
            for place, line in enumerate(group)
        ],
    }
    path.write_text(json.dumps(content))


def draw_film(random: np.random.Generator, boxes: Sequence[Box]) -> UInt8[np.ndarray, "HEIGHT WIDTH"]:
    """Noise around two dark lungs, bright in the boxes (x, y, width, height)."""
    image = random.integers(120, 160, (HEIGHT, WIDTH), np.uint8)
    for centre in (WIDTH // 4, WIDTH - WIDTH // 4):
        cv2.ellipse(image, (centre, HEIGHT // 2), (WIDTH // 6, HEIGHT // 3), 0, 0, 360, 50, -1)
    for x, y, width, height in boxes:
        image[y : y + height, x : x + width] += 60
    return image


def _write_film(path: Path, random: np.random.Generator, boxes: Sequence[Box]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".jpg", draw_film(random, boxes))[1].tobytes())


def _write_csv(path: Path, lines: Sequence[Sequence]) -> None:
    """A table; .gz without the time of now."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows(lines)
    data = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
