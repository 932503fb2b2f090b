"""Data set `ms_cxr`: sentences of MIMIC-CXR reports with the boxes that radiologists drew for them.

Boecking et al., Making the Most of Text Semantics to Improve Biomedical Vision-Language Processing, ECCV 2022. The raw
folder holds the table, as CSV or JSON, and the images that it names, in the layout of MIMIC-CXR-JPG (files/p10/...).
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plan_jax.data.csv_table import BROKEN, number, read_table, read_text
from plan_jax.data.dealing import ELSEWHERE, by_split, strictest_split, with_images
from plan_jax.data.entries import CONTRADICTION
from plan_jax.data.records import Phrase
from plan_jax.data.reports import place_words
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.errors import InputError

TABLES = tuple(
    f"MS_CXR_Local_Alignment_v{version}.{form}" for version in ("1.1.0", "1.0.0") for form in ("csv", "json")
)
FOLDER = "ms-cxr"  # where the table may also lie
COLUMNS = ("dicom_id", "category_name", "label_text", "path", "x", "y", "w", "h", "image_width", "image_height")
CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Lung Opacity",
    "Pleural Effusion",
    "Pneumonia",
    "Pneumothorax",
)
SPLIT_OF = {"": "test", "train": "train", "val": "validation", "test": "test"}
MAX_SIDE = 2**16  # of an image, pixels

_PATH = re.compile(r"files/p([0-9]{2})/p(\1[0-9]{6})/s([0-9]{8})/([0-9a-f-]{1,64})\.jpg")

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Annotation:
    """A box, from a line of the table. `fault` says why it cannot be used; then only image and text are known."""

    where: str
    fault: str
    dicom: str
    text: str
    patient: str = ""
    study: str = ""
    category: str = ""
    box: Box = (0.0, 0.0, 0.0, 0.0)
    frame: tuple[int, int] = (0, 0)
    split: str = ""


def find_table(raw: Path) -> Path | None:
    """The newest table in `raw`, in ms-cxr/ under it or in ms-cxr/ beside it, CSV rather than JSON."""
    folders = (raw, raw / FOLDER, raw.resolve().parent / FOLDER)
    return next((folder / name for folder in folders for name in TABLES if (folder / name).is_file()), None)


def read_annotations(table: Path) -> Iterator[Annotation]:
    """The boxes of the table, one by one. InputError: it is damaged beyond a line."""
    return (_annotation(*line) for line in _lines(table))


def subjects(table: Path) -> tuple[set[str], set[str]]:
    """Patients and images that the table names, those of lines with a damaged box included."""
    cells = [values for _, _, values in _lines(table)]
    matches = (_PATH.fullmatch(values["path"]) for values in cells)
    return {match[2] for match in matches if match}, {values["dicom_id"] for values in cells}


def _lines(table: Path) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """(where, fault, cells) of every line."""
    return _json_lines(table) if table.suffix == ".json" else _csv_lines(table)


def _csv_lines(table: Path) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    columns = (*COLUMNS, "split") if "split" in read_text(table).partition("\n")[0].lower() else COLUMNS
    for row in read_table(table, columns):
        fault = "" if row.fault == BROKEN else row.fault  # a phrase may have a line break
        yield f"{table.name} line {row.line}", fault, {"split": ""} | dict(zip(columns, row.cells, strict=True))


def _json_lines(table: Path) -> Iterator[tuple[str, str, Mapping[str, str]]]:
    """The cells that the CSV would have, from COCO's lists of images, categories and annotations."""
    try:
        content = json.loads(table.read_bytes().decode("utf-8-sig", errors="replace"))
        images = {_text(image.get("id")): image for image in content["images"]}
        categories = {_text(category.get("id")): category.get("name") for category in content["categories"]}
        annotations = [(annotation, annotation.get("bbox")) for annotation in content["annotations"]]
    except json.JSONDecodeError as error:
        raise InputError(f"{table} line {error.lineno} must be JSON, got {error.msg}; get it again") from error
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OSError) as error:
        kind = type(error).__name__
        raise InputError(
            f"{table} must hold COCO's images, categories, annotations, got {kind}; get it again"
        ) from error
    for place, (annotation, box) in enumerate(annotations, start=1):
        image = images.get(_text(annotation.get("image_id")), {})
        box = box if isinstance(box, list) and len(box) == 4 else [""] * 4
        values = (
            _text(image.get("file_name")).removesuffix(".jpg"),
            categories.get(_text(annotation.get("category_id"))),
            annotation.get("label_text"),
            image.get("path"),
            *box,
            image.get("width"),
            image.get("height"),
        )
        cells = dict(zip(COLUMNS, map(_text, values), strict=True))
        yield f"{table.name} annotation {place}", "", cells | {"split": _text(annotation.get("split"))}


def _text(value: object) -> str:
    """A value of JSON as a cell; a lone surrogate, which JSON can hold and a file cannot, becomes "?"."""
    return "" if value is None else str(value).encode("utf-8", "replace").decode().strip()


def _annotation(where: str, fault: str, cells: Mapping[str, str]) -> Annotation:
    match = _PATH.fullmatch(cells["path"])
    text = " ".join(cells["label_text"].split())
    frame = _numbers(cells["image_height"], cells["image_width"])
    box = _box(_numbers(cells["x"], cells["y"], cells["w"], cells["h"]), frame)
    if fault:
        pass
    elif match is None or match[4] != cells["dicom_id"]:
        fault = "path is not as published"
    elif cells["category_name"] not in CLASSES:
        fault = "unknown class"
    elif not any(map(str.isalnum, text)):
        fault = "no phrase"
    elif box is None or frame is None:
        fault = "no box inside the image"
    elif cells["split"].lower() not in SPLIT_OF:
        fault = "unknown split"
    if fault or not (match and box and frame):
        return Annotation(where, fault, cells["dicom_id"], text)
    return Annotation(
        where,
        fault="",
        dicom=match[4],
        text=text,
        patient=match[2],
        study=match[3],
        category=cells["category_name"],
        box=box,
        frame=(int(frame[0]), int(frame[1])),
        split=SPLIT_OF[cells["split"].lower()],
    )


def _numbers(*cells: str) -> tuple[float, ...] | None:
    values = tuple(value for cell in cells if (value := number(cell)) is not None)
    return values if len(values) == len(cells) else None


def _box(values: tuple[float, ...] | None, frame: tuple[float, ...] | None) -> Box | None:
    """x, y, width, height -> (x0, y0, x1, y1), if that is a pixel or more and inside an image of (height, width)."""
    if values is None or frame is None or not all(1 <= side <= MAX_SIDE and side == int(side) for side in frame):
        return None
    x, y, width, height = values
    inside = min(x, y) >= 0 and min(width, height) >= 1 and x + width <= frame[1] and y + height <= frame[0]
    return (x, y, x + width, y + height) if inside else None


class MsCxr(RowSet):
    """1,162 phrases of 8 classes. An image is one row; the boxes of one phrase on it are one phrase.

    All rows are in split test, as the benchmark is used. Tables from v1.1.0 on have a column `split`, which is followed
    (train, val, test become train, validation, test): numbers over all phrases need the table of v1.0.0, alone.
    """

    name, version = "ms_cxr", "1.0.0"
    summary = "Phrases of MIMIC-CXR reports with radiologists' boxes, MS-CXR (Boecking et al., ECCV 2022)."
    classes = CLASSES

    def inputs(self) -> Sequence[Path]:
        table = find_table(self.raw)
        if table is None or not (self.raw / "files").is_dir():
            missing = "files/" if table else TABLES[0]
            raise InputError(
                f"--raw must hold {TABLES[0]} (or .json, or v1.0.0) and the images of MIMIC-CXR-JPG under files/, "
                f"got no {missing} in {self.raw}; give another folder"
            )
        return (table,)

    def rows(self) -> Mapping[str, Sequence[Row]]:
        self.dropped.clear()
        (table,) = self.inputs()
        sound = self._sound(read_annotations(table))
        split = strictest_split((annotation.patient, annotation.split) for annotation in sound)
        images: dict[str, list[Annotation]] = {}
        for annotation in sound:
            group = images.setdefault(annotation.dicom, [])
            if annotation.split != split[annotation.patient]:
                self.dropped[ELSEWHERE] += 1
            elif group and (group[0].patient, group[0].frame) != (annotation.patient, annotation.frame):
                self.dropped[CONTRADICTION] += 1
            else:
                group.append(annotation)
        rows = [self._row(group) for group in images.values() if group]
        return with_images(by_split(rows, split), dropped=self.dropped, table=table)

    def _sound(self, annotations: Iterable[Annotation]) -> list[Annotation]:
        """Those of phrases whose boxes are all whole: a map that finds a lost box would be called wrong."""
        read = list(annotations)
        damaged = {(annotation.dicom, annotation.text) for annotation in read if annotation.fault}
        for annotation in read:
            if annotation.fault:
                self.dropped[annotation.fault] += 1
            elif (annotation.dicom, annotation.text) in damaged:
                self.dropped["another box of the phrase is damaged"] += 1
        return [annotation for annotation in read if (annotation.dicom, annotation.text) not in damaged]

    def _row(self, group: Sequence[Annotation]) -> Row:
        """The row of an image from its boxes."""
        first = group[0]
        image = self.raw / f"files/p{first.patient[:2]}/p{first.patient}/s{first.study}/{first.dicom}.jpg"
        phrases: dict[str, list[Annotation]] = {}
        for annotation in group:
            phrases.setdefault(annotation.text, []).append(annotation)
        return Row(
            key=first.dicom,
            patient=first.patient,
            study=first.study,
            image=image,
            where=first.where,
            labels=tuple(dict.fromkeys(annotation.category for annotation in group)),
            phrases=tuple(_phrase(boxes) for boxes in phrases.values()),
            frame=first.frame,
        )


def _phrase(boxes: Sequence[Annotation]) -> Phrase:
    """Several boxes of one text are one phrase; a text in two classes belongs to the first."""
    side, zone, located = place_words(boxes[0].text)
    found = tuple(dict.fromkeys(annotation.box for annotation in boxes))
    return Phrase(boxes[0].text, boxes[0].category, side, zone, located, found)
