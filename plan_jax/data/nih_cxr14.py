"""Data set `nih_cxr14`: ChestX-ray14 of the NIH, 14 text-mined labels, and boxes drawn by hand on 880 of its films.

Wang et al., ChestX-ray8: Hospital-scale Chest X-ray Database and Benchmarks, CVPR 2017. Provided by the NIH Clinical
Center, https://nihcc.app.box.com/v/ChestXray-NIHCC. The raw folder has Data_Entry_2017_v2020.csv or
Data_Entry_2017.csv, BBox_List_2017.csv, images in images/ or images_001/images/ and so on, and where the published
split is to be followed train_val_list.txt and test_list.txt.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from plan_jax.data.csv_table import TableRow, number, read_table, read_text
from plan_jax.data.dealing import deal, deal_around_test, with_images
from plan_jax.data.records import Phrase
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.errors import InputError

TABLES, BOXES = ("Data_Entry_2017_v2020.csv", "Data_Entry_2017.csv"), "BBox_List_2017.csv"
TRAIN_LIST, TEST_LIST = "train_val_list.txt", "test_list.txt"
BOX_COLUMNS = ("Image Index", "Finding Label", "Bbox [x", "y", "w", "h]")
SIDE = 1024  # of the published images, pixels; boxes count these, whatever copy is at hand
NO_FINDING = "No Finding"
CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Consolidation",
    "Edema",
    "Effusion",
    "Emphysema",
    "Fibrosis",
    "Hernia",
    "Infiltration",
    "Mass",
    "Nodule",
    "Pleural Thickening",
    "Pneumonia",
    "Pneumothorax",
)
# The tables' other spellings, lower case -> ours: classes here are words, since they become prompts and phrases.
_CLASS = {name.lower(): name for name in CLASSES} | {
    "infiltrate": "Infiltration",
    "pleural_thickening": "Pleural Thickening",
}
_IMAGE = re.compile(r"([0-9]{8})_[0-9]{3}\.png")


@dataclass(frozen=True)
class Box:
    """A box of the list: (x0, y0, x1, y1) in pixels of the 1024 x 1024 image, half open."""

    image: str
    finding: str
    box: tuple[float, float, float, float]


def read_boxes(path: Path, dropped: Counter[str]) -> list[Box]:
    """The boxes of BBox_List_2017.csv in their order; counts in `dropped` the rows that give none.

    InputError as `read_table`.
    """
    boxes = []
    for row in read_table(path, BOX_COLUMNS):
        image, finding, *cells = row.cells
        box = _corners(cells)
        reason = row.fault
        if not reason and (finding.lower() not in _CLASS or not _IMAGE.fullmatch(image)):
            reason = "unknown finding or image"
        if not reason and box is None:
            reason = "not inside the image"
        if reason or box is None:
            dropped[f"box: {reason}"] += 1
        else:
            boxes.append(Box(image, _CLASS[finding.lower()], box))
    return boxes


def _corners(cells: Sequence[str]) -> tuple[float, float, float, float] | None:
    """x, y, width, height -> corners; None where they are no numbers or no box inside the image."""
    values = [value for value in map(number, cells) if value is not None]
    if len(values) < 4:
        return None
    x, y, width, height = values
    inside = 0 <= x < x + width <= SIDE and 0 <= y < y + height <= SIDE
    return (x, y, x + width, y + height) if inside else None


class NihCxr14(RowSet):
    """The published split where its two lists are there (test as listed, the others dealt), else all patients dealt."""

    name, version = "nih_cxr14", "1.0.0"
    summary = (
        "ChestX-ray14 of the NIH Clinical Center: films with 14 text-mined labels, some with boxes (Wang et al., 2017)."
    )
    classes = CLASSES

    def inputs(self) -> Sequence[Path]:
        table = next((self.raw / name for name in TABLES if (self.raw / name).is_file()), None)
        if table is None or not (self.raw / BOXES).is_file():
            missing = BOXES if table else TABLES[0]
            raise InputError(f"--raw must hold {TABLES[0]} and {BOXES}, got no {missing} in {self.raw}; give another")
        lists = [self.raw / name for name in (TRAIN_LIST, TEST_LIST) if (self.raw / name).is_file()]
        if len(lists) == 1:
            raise InputError(
                f"--raw must hold {TRAIN_LIST} and {TEST_LIST} or none, got {lists[0].name}; add the other"
            )
        return [table, self.raw / BOXES, *lists]

    def rows(self) -> Mapping[str, Sequence[Row]]:
        self.dropped.clear()
        table, boxes, *lists = self.inputs()
        marked = read_boxes(boxes, self.dropped)
        rows = self._rows_of(table, marked)
        splits = self._split(rows, *lists) if lists else deal(rows, seed=self.seed)
        kept = with_images(splits, dropped=self.dropped, table=table)
        used = {row.key for part in kept.values() for row in part}
        lost = sum(box.image not in used for box in marked)
        if lost:
            self.dropped["box: its image is not used"] += lost
        return kept

    def _rows_of(self, table: Path, boxes: Sequence[Box]) -> list[Row]:
        of_image: dict[str, list[Box]] = {}
        for box in boxes:
            of_image.setdefault(box.image, []).append(box)
        places, rows = image_places(self.raw), {}
        for line in read_table(table, ("Image Index", "Finding Labels", "Patient ID")):
            image = line.cells[0]
            reason = line.fault or _why_dropped(line) or ("image of an earlier row" if image in rows else "")
            if reason:
                self.dropped[reason] += 1
                continue
            rows[image] = Row(
                key=image,
                patient=image.split("_")[0],
                study=image.removesuffix(".png"),
                image=places.get(image, self.raw / "images") / image,
                where=f"{table.name} line {line.line}",
                labels=labels_of(line.cells[1]) or (),
                phrases=phrases_of(of_image.get(image, ())),
                frame=(SIDE, SIDE),
            )
        return list(rows.values())

    def _split(self, rows: Sequence[Row], train_list: Path, test_list: Path) -> dict[str, list[Row]]:
        """Deals the rows as the lists say; counts what is in neither."""
        listed = [set(map(str.strip, read_text(path).split("\n"))) for path in (train_list, test_list)]
        test = [row for row in rows if row.key in listed[1]]
        train = [row for row in rows if row.key in listed[0] - listed[1]]
        if len(test) + len(train) < len(rows):
            self.dropped["in no list"] += len(rows) - len(test) - len(train)
        return deal_around_test(train, test, seed=self.seed, dropped=self.dropped)


def image_places(raw: Path) -> dict[str, Path]:
    """Name of an image -> the folder that it is in: images/, images_001/images/ and so on, the first that has it."""
    places: dict[str, Path] = {}
    for folder in (raw / "images", *sorted(raw.glob("images_[0-9][0-9][0-9]/images"))):
        for path in folder.iterdir() if folder.is_dir() else ():
            places.setdefault(path.name, folder)
    return places


def labels_of(cell: str) -> tuple[str, ...] | None:
    """The classes in a cell such as "Cardiomegaly|Emphysema", in the order of CLASSES; None where one is unknown."""
    parts = [part.strip().lower() for part in cell.split("|")]
    if parts == [NO_FINDING.lower()]:
        return ()
    if not set(parts) <= set(_CLASS):
        return None
    return tuple(name for name in CLASSES if name in {_CLASS[part] for part in parts})


def phrases_of(boxes: Sequence[Box]) -> tuple[Phrase, ...]:
    """A phrase for each class that has boxes on an image, the class in lower case, in the order of CLASSES."""
    of = {name: tuple(box.box for box in boxes if box.finding == name) for name in CLASSES}
    return tuple(Phrase(text=name.lower(), category=name, boxes=found) for name, found in of.items() if found)


def _why_dropped(row: TableRow) -> str:
    image, findings, patient = row.cells
    named = _IMAGE.fullmatch(image)
    if not named:
        return "file name not as published"
    if not (patient.isascii() and patient.isdigit() and patient.zfill(8) == named[1]):
        return "patient unlike the file name"  # cells have moved: the labels may be those of another film
    return "unknown finding" if labels_of(findings) is None else ""
