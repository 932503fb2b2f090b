"""Data set `siim`: the SIIM-ACR Pneumothorax Segmentation challenge, masks of pneumothoraces.

SIIM-ACR Pneumothorax Segmentation, Kaggle, 2019; the images are of NIH ChestX-ray14. The raw folder holds train-rle.csv
and dicom-images-train/ with two levels of folders, as published.
"""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from plan_jax.data.entries import (
    CELLS,
    CONTRADICTION,
    Entry,
    Line,
    file_names,
    gather,
    published,
    read_lines,
    split_rows,
)
from plan_jax.data.records import Phrase
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.data.run_lengths import decode_runs, encode_runs, mask_box, read_runs
from plan_jax.data.splits import train_validation_test
from plan_jax.data.store import MISSING
from plan_jax.errors import InputError

TABLE, IMAGES = "train-rle.csv", "dicom-images-train"
COLUMNS = ("ImageId", "EncodedPixels")  # the second has a space before it in the published header
SIDE = 1024  # of every image, pixels
NONE = "-1"  # in place of run lengths
PNEUMOTHORAX = "pneumothorax"
HELD_OUT = 0.3  # share of validation and test together, as GLoRIA and MGCA, which draw lines: one image on both sides


def read_entry(line: Line) -> Entry[str]:
    """The run lengths of a line, or None for an image without pneumothorax."""
    image, runs = line.cells
    if not line.whole:
        return Entry(line.number, image, None, CELLS)
    if runs == NONE:
        return Entry(line.number, image, None)
    try:
        read_runs(runs, pixels=SIDE * SIDE)
    except InputError:
        return Entry(line.number, image, None, "run lengths cannot be read")
    return Entry(line.number, image, runs)


def find_images(folder: Path) -> dict[str, Path]:
    """Image id -> its file, anywhere below the folder; of two with one name the first in alphabetical order."""
    found: dict[str, Path] = {}
    for path in sorted(Path(parent) / file for parent, _, files in os.walk(folder) for file in files):
        if path.suffix == ".dcm":
            found.setdefault(path.stem, path)
    return found


class Siim(RowSet):
    """12,047 images, 2,669 of them with a pneumothorax; several lines of an image are one mask.

    The table names no patients, so images count as patients, and train, validation and test are drawn by image. There
    is no tune split: validation is what the peers choose on.
    """

    name, version = "siim", "1.0.0"
    summary = "Chest radiographs with masks of pneumothoraces, SIIM-ACR Pneumothorax Segmentation (Kaggle, 2019)."
    classes = (PNEUMOTHORAX,)

    def inputs(self) -> Sequence[Path]:
        return (published(self.raw, TABLE, IMAGES),)

    def rows(self) -> Mapping[str, Sequence[Row]]:
        self.dropped.clear()
        (table,) = self.inputs()
        entries = [read_entry(line) for line in read_lines(table, COLUMNS)]
        split = train_validation_test(file_names(entries), share=HELD_OUT, seed=self.seed)
        files, groups = find_images(self.raw / IMAGES), gather(entries, self.dropped).items()
        rows = [row for name, group in groups if (row := self._row(name, group, files.get(name)))]
        return split_rows(rows, split, table=table, dropped=self.dropped)

    def _row(self, name: str, group: Sequence[Entry[str]], image: Path | None) -> Row | None:
        runs = [entry.value for entry in group if entry.value]
        if runs and len(runs) < len(group):
            self.dropped[CONTRADICTION] += len(group)
            return None
        if image is None:
            self.dropped[MISSING] += len(group)
            return None
        phrases, masks = (), ()
        if runs:
            mask = np.logical_or.reduce([decode_runs(text, height=SIDE, width=SIDE) for text in runs])
            phrases = (Phrase(PNEUMOTHORAX, PNEUMOTHORAX, boxes=(mask_box(mask),)),)
            masks = (encode_runs(mask),)
        return Row(
            key=name,
            patient=name,
            study=name,
            image=image,
            where=f"{TABLE} line {group[0].number}",
            labels=(PNEUMOTHORAX,) if runs else (),
            phrases=phrases,
            frame=(SIDE, SIDE),
            runs=masks,
        )
