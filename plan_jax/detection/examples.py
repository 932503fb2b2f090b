"""Films with their boxes: what is true of a split, which part of it trains, and its images in batches."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import grain
import numpy as np
from jaxtyping import Int, Shaped, UInt8

from plan_jax.data.image import decode_image, letterbox_image
from plan_jax.data.records import Record, read_manifest
from plan_jax.detection.average_precision import ImageBoxes
from plan_jax.detection.loss import Boxes
from plan_jax.errors import InputError

NAMELESS = "finding"  # the class of boxes whose phrase names none
READING = grain.ReadOptions(num_threads=4, prefetch_buffer_size=4)  # batches that wait in memory

Labelled = tuple[str, tuple[float, float, float, float]]  # class, box


class Films(Protocol):
    """What is read of a split."""

    directory: Path

    def __getitem__(self, index: int) -> Record: ...


@dataclasses.dataclass(frozen=True)
class SplitBoxes:
    """What is known of every image of a split, without the images.

    Attributes:
        split: where they lie.
        key, patient: of every record, [n].
        boxes: of every record, each once, in pixels of the stored image.
    """

    split: Films
    key: Shaped[np.ndarray, " n"]
    patient: Shaped[np.ndarray, " n"]
    boxes: tuple[tuple[Labelled, ...], ...]

    def truth(self, classes: Sequence[str]) -> ImageBoxes:
        """The true boxes of these classes."""
        flat = [
            (row, classes.index(name), box)
            for row, boxes in enumerate(self.boxes)
            for name, box in boxes
            if name in classes
        ]
        return ImageBoxes(
            row=np.array([row for row, _, _ in flat], np.int32),
            box=np.array([box for _, _, box in flat], np.float64).reshape(-1, 4),
            label=np.array([label for _, label, _ in flat], np.int32),
            score=np.ones(len(flat)),
        )


def read_boxes(split: Films, indices: Iterable[int]) -> SplitBoxes:
    """The boxes of the records with these indices, which are all of the split (they may carry a progress bar)."""
    keys, patients, boxes = [], [], []
    for index in indices:
        record = split[index]
        keys.append(record.key)
        patients.append(record.patient)
        boxes.append(labelled_boxes(record))
    return SplitBoxes(split, np.array(keys), np.array(patients), tuple(boxes))


def labelled_boxes(record: Record) -> tuple[Labelled, ...]:
    """Every box of a record with its class, which is the category of its phrase; the same box of a class is one."""
    every = [
        (phrase.category or NAMELESS, (float(x0), float(y0), float(x1), float(y1)))
        for phrase in record.phrases
        for x0, y0, x1, y1 in phrase.boxes
        if x0 < x1 and y0 < y1
    ]
    return tuple(dict.fromkeys(every))


def classes_of(train: SplitBoxes) -> tuple[str, ...]:
    """The classes that have boxes in the training split, in the order of the manifest, then of the alphabet.

    InputError: there are no boxes.
    """
    found = {name for boxes in train.boxes for name, _ in boxes}
    if not found:
        raise InputError(f"{train.split} must hold boxes, got none; detection needs a data set with boxes in `train`")
    named = [name for name in read_manifest(train.split.directory)["classes"] if name in found]
    return (*named, *sorted(found - set(named)))


@dataclasses.dataclass(frozen=True)
class FilmBatch:
    """Films in the square of the model's input, with their boxes there.

    Attributes:
        image: the whole film, letterboxed whatever `data.crop` and `data.fit_side` are.
        boxes: padded to the same number in every batch.
        side: height and width of each stored image, in pixels.
        row: index of each record in its split.
    """

    image: UInt8[np.ndarray, "I S S 1"]
    boxes: Boxes
    side: Int[np.ndarray, "I 2"]
    row: Int[np.ndarray, " I"]


class FilmBatches:
    """The records `rows` of a split in this order, read ahead; of the last batch only as many as there are."""

    def __init__(
        self, films: SplitBoxes, rows: Int[np.ndarray, " m"], *, classes: Sequence[str], size: int, batch_size: int
    ):
        self._source = grain.MapDataset.source(_Films(films, rows, classes, size)).batch(batch_size)

    def __len__(self) -> int:
        return len(self._source)

    def __iter__(self) -> Iterator[FilmBatch]:
        for batch in self._source.to_iter_dataset(READING):
            boxes = Boxes(batch["box"], batch["label"], batch["mask"])
            yield FilmBatch(batch["image"], boxes, batch["side"], batch["row"])


class _Films:
    """Random access to the arrays of one batch row."""

    def __init__(self, films: SplitBoxes, rows: np.ndarray, classes: Sequence[str], size: int):
        self._films, self._rows, self._classes, self._size = films, rows, classes, size
        self._most = max([1, *(len(boxes) for boxes in films.boxes)])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, np.ndarray]:
        row = int(self._rows[index])
        record = self._films.split[row]
        gray = decode_image(record.image, name=record.key)
        square, letterbox = letterbox_image(gray, self._size)
        known = [(self._classes.index(name), box) for name, box in self._films.boxes[row] if name in self._classes]
        box = np.zeros((self._most, 4), np.float32)
        label, mask = np.zeros(self._most, np.int32), np.arange(self._most) < len(known)
        if known:
            label[mask] = [number for number, _ in known]
            box[mask] = letterbox.boxes_to_model(np.array([corners for _, corners in known]))
        side = np.array(gray.shape, np.int32)
        return {
            "image": square[..., None],
            "box": box,
            "label": label,
            "mask": mask,
            "side": side,
            "row": np.array(row, np.int32),
        }
