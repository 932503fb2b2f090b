"""The boxes that a head finds in a split, in pixels of the stored images."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Float, Int

from plan_jax.detection.average_precision import ImageBoxes
from plan_jax.detection.examples import FilmBatch, FilmBatches, SplitBoxes
from plan_jax.detection.step import detect_batch
from plan_jax.geometry import Letterbox
from plan_jax.inference import Plan
from plan_jax.sharding import spread


def detect(
    plan: Plan,
    head: Any,
    films: SplitBoxes,
    *,
    classes: Sequence[str],
    shown: Callable[[FilmBatches], Iterable[FilmBatch]] = iter,
) -> ImageBoxes:
    """All boxes of all images, float32, by the variables of a head; `shown` may put a progress bar around the batches.

    Computed in batches of one compiled shape, over the devices of the plan's mesh.
    """
    count, config = len(films.key), plan.config
    devices = 1 if plan.mesh is None else plan.mesh.size
    size = -(-min(config.evaluation.batch_size, 1 << (count - 1).bit_length()) // devices) * devices
    square = config.detection.image_size
    batches = FilmBatches(films, np.arange(count), classes=classes, size=square, batch_size=size)
    parts = []
    for batch in shown(batches):
        missing = size - len(batch.image)
        image = spread(np.concatenate([batch.image, np.repeat(batch.image[-1:], missing, axis=0)]), plan.mesh)
        found = jax.device_get(detect_batch(head, plan.variables, image, config=config, classes=len(classes)))
        for number, (row, side) in enumerate(zip(batch.row, batch.side, strict=True)):
            kept = found.mask[number]
            box = original_boxes(found.box[number][kept], side, size=square)
            parts.append((np.full(len(box), row), box, found.label[number][kept], found.score[number][kept]))
    row, box, label, score = (np.concatenate(part) for part in zip(*parts, strict=True))
    return ImageBoxes(row.astype(np.int32), box.astype(np.float32), label, score)


def original_boxes(
    boxes: Float[np.ndarray, "K 4"], side: Int[np.ndarray, " 2"], *, size: int
) -> Float[np.ndarray, "K 4"]:
    """Boxes of the model's input in pixels of the stored image of `side` (height, width), cut at its edges."""
    height, width = (int(length) for length in side)
    moved = Letterbox.fit(height, width, size).boxes_to_original(boxes)
    return np.clip(moved, 0, np.array([width, height, width, height]))
