"""From a row of a data set's tables to the record that is stored: the image shrunk, boxes and masks with it."""

from dataclasses import asdict, dataclass, replace

import cv2
import numpy as np
from jaxtyping import Shaped

from plan_jax.data.image import encode_jpeg, encode_png, read_image, shrink_image
from plan_jax.data.records import Phrase, Record
from plan_jax.data.row import Row
from plan_jax.data.run_lengths import decode_runs
from plan_jax.errors import InputError

FITS, FORMATS = ("long", "short"), ("png", "png16", "jpeg")
MISSING, DAMAGED, BAD_MASK = "image file missing", "image cannot be decoded", "mask cannot be decoded"


@dataclass(frozen=True)
class Store:
    """How images are stored. `side`: of the long or short side at most, in pixels; smaller images stay as they are.

    `png16` keeps 16 bits of what has more than 8, for other windows later; the files are larger, training sees 8 bits.
    """

    side: int = 512
    fit: str = "long"
    format: str = "png"

    def __post_init__(self):
        if self.side < 1 or self.fit not in FITS or self.format not in FORMATS:
            raise InputError(
                f"images must be stored at a side of at least 1, as {' or '.join(FORMATS)}, by their "
                f"{' or '.join(FITS)} side, got {self.side}, {self.format!r}, {self.fit!r}; change the options"
            )

    def identity(self) -> dict[str, int | str]:
        """As part of what names a build."""
        return asdict(self)


def record_of(row: Row, store: Store) -> Record | str:
    """The record of a row, or why there is none: its image is missing or damaged, or its mask is."""
    if not row.image.is_file():
        return MISSING
    try:
        image = read_image(row.image, deep=store.format == "png16")
    except InputError:
        return DAMAGED
    small = _shrunk(image, store)
    try:
        masks = [_mask(runs, row.frame or image.shape, small.shape) for runs in row.runs]
    except InputError:
        return BAD_MASK
    scale = tuple(new / old for new, old in zip(small.shape, row.frame or image.shape, strict=True))
    phrases = [_scaled(phrase, scale, small.shape) for phrase in row.phrases]
    if masks:
        phrases = [replace(phrase, mask=mask) for phrase, mask in zip(phrases, masks, strict=True)]
    return Record(
        key=row.key,
        patient=row.patient,
        study=row.study,
        image=encode_jpeg(small) if store.format == "jpeg" else encode_png(small),
        sections=row.sections,
        labels=row.labels,
        phrases=tuple(phrases),
    )


def _shrunk(image: Shaped[np.ndarray, "H W"], store: Store) -> Shaped[np.ndarray, "h w"]:
    """With the chosen side at most `store.side`; never enlarged."""
    long_side = store.side if store.fit == "long" else round(store.side * max(image.shape) / min(image.shape))
    return shrink_image(image, long_side=long_side)


def _scaled(phrase: Phrase, scale: tuple[float, ...], shape: tuple[int, ...]) -> Phrase:
    """The phrase with its boxes in stored pixels, cut at the image's border; what lies outside is no box."""
    (by_row, by_column), (height, width) = scale, shape
    boxes = []
    for x0, y0, x1, y1 in phrase.boxes:
        left, right = (min(max(x * by_column, 0.0), float(width)) for x in (x0, x1))
        top, bottom = (min(max(y * by_row, 0.0), float(height)) for y in (y0, y1))
        if right > left and bottom > top:
            boxes.append((left, top, right, bottom))
    return replace(phrase, boxes=tuple(boxes))


def _mask(runs: str, frame: tuple[int, ...], shape: tuple[int, ...]) -> bytes | None:
    """A mask in run lengths as PNG of the stored size, 255 inside; None without any."""
    if not runs:
        return None
    inside = decode_runs(runs, height=frame[0], width=frame[1]).astype(np.uint8) * 255
    return encode_png(cv2.resize(inside, (shape[1], shape[0]), interpolation=cv2.INTER_NEAREST_EXACT))
