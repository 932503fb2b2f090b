"""Data set `object_cxr`: foreign objects on chest radiographs, the Object-CXR challenge.

JF Healthcare, Object-CXR: Automatic detection of foreign objects on chest X-rays, MIDL 2020. The raw folder holds
train.csv, dev.csv, train/ and dev/; the challenge's own test was never published, so dev is the test split.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from plan_jax.data.entries import (
    CELLS,
    CONTRADICTION,
    Entry,
    Line,
    file_names,
    gather,
    numbers,
    published,
    read_lines,
    split_rows,
)
from plan_jax.data.gray import MAX_SIDE
from plan_jax.data.records import Phrase
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.data.splits import train_validation
from plan_jax.data.store import MISSING

PARTS = ("train", "dev")  # NAME.csv and NAME/
COLUMNS = ("image_name", "annotation")
CORNERS = ("0", "1")  # kinds given by the corners of their box: rectangle, ellipse
POLYGON = "2"
FOREIGN_OBJECT = "foreign object"
TESTED = "train image that is in dev too"  # why lines are dropped
VALIDATION = 0.2  # share of train.csv: 6,400 / 1,600 of 8,000

Box = tuple[float, float, float, float]


def read_entry(line: Line) -> Entry[tuple[Box, ...]]:
    """The boxes of all objects of a line; none for an image without objects."""
    name, annotation = line.cells
    if not line.whole:
        return Entry(line.number, name, None, CELLS)
    boxes = [object_box(text) for text in annotation.split(";") if text.strip()]
    if not all(boxes):
        return Entry(line.number, name, None, "object cannot be read")
    return Entry(line.number, name, tuple(box for box in boxes if box))


def object_box(text: str) -> Box | None:
    """The true bounding box of "kind x y x y ...", in pixels of the image; None where the text describes no object.

    That a box ends within its image is left to whoever opens it.
    """
    kind, *cells = text.split() or [""]
    values = numbers(cells)
    if values is None or len(values) % 2 or not all(0 <= value <= MAX_SIDE for value in values):
        return None
    if not ((kind in CORNERS and len(values) == 4) or (kind == POLYGON and len(values) >= 6)):
        return None
    points = np.reshape(values, (-1, 2))
    (x0, y0), (x1, y1) = points.min(axis=0).tolist(), points.max(axis=0).tolist()
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


class ObjectCxr(RowSet):
    """9,000 images, half of them with foreign objects, all of one phrase.

    A fifth of train.csv, drawn by image, is the validation split; test is dev.csv. The tables name no patients, so
    images count as patients. There is no tune split: validation is there to choose on.
    """

    name, version = "object_cxr", "1.0.0"
    summary = "Chest radiographs with boxes around foreign objects, Object-CXR (JF Healthcare, 2020)."
    classes = (FOREIGN_OBJECT,)

    def inputs(self) -> Sequence[Path]:
        return tuple(published(self.raw, f"{part}.csv", part) for part in PARTS)

    def rows(self) -> Mapping[str, Sequence[Row]]:
        self.dropped.clear()
        train, dev = ([read_entry(line) for line in read_lines(table, COLUMNS)] for table in self.inputs())
        tested = file_names(dev)
        split = train_validation(file_names(train), share=VALIDATION, seed=self.seed) | dict.fromkeys(tested, "test")
        train = [replace(entry, fault=entry.fault or TESTED) if entry.name in tested else entry for entry in train]
        rows = [*self._rows("train", train), *self._rows("dev", dev)]
        return split_rows(rows, split, table=self.raw / "train.csv", dropped=self.dropped)

    def _rows(self, part: str, entries: Sequence[Entry[tuple[Box, ...]]]) -> list[Row]:
        rows = []
        for name, group in gather(entries, self.dropped).items():
            image, boxes = self.raw / part / name, group[0].value
            if len({entry.value for entry in group}) > 1:
                self.dropped[CONTRADICTION] += len(group)
            elif not image.is_file():
                self.dropped[MISSING] += len(group)
            else:
                rows.append(_row(image, boxes or (), where=f"{part}.csv line {group[0].number}"))
        return rows


def _row(image: Path, boxes: tuple[Box, ...], *, where: str) -> Row:
    boxes = tuple(dict.fromkeys(boxes))
    return Row(
        key=image.name,
        patient=image.name,
        study=image.name,
        image=image,
        where=where,
        labels=(FOREIGN_OBJECT,) if boxes else (),
        phrases=(Phrase(FOREIGN_OBJECT, FOREIGN_OBJECT, boxes=boxes),) if boxes else (),
    )
