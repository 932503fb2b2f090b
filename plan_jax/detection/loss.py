"""Which anchor of which cell answers for a box, and how wrong its answer is."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from plan_jax.config import DetectionConfig
from plan_jax.detection.boxes import iou


@struct.dataclass
class Boxes:
    """The true boxes of images, padded to one number.

    Attributes:
        box: in pixels of the model's input.
        label: index of the class.
        mask: False on padding.
    """

    box: Float[Array, "I M 4"]
    label: Int[Array, "I M"]
    mask: Bool[Array, "I M"]


@struct.dataclass
class Targets:
    """What every anchor of every cell of one scale should say.

    Attributes:
        holds: it answers for a box.
        background: it must say that there is no box; where neither is true, what it says is ignored.
        place: x and y of the centre within the cell, 0 to 1; 0 where it answers for none.
        size: logarithm of width and height by the anchor's; 0 where it answers for none.
        label: index of the class.
    """

    holds: Bool[Array, "I h w A"]
    background: Bool[Array, "I h w A"]
    place: Float[Array, "I h w A 2"]
    size: Float[Array, "I h w A 2"]
    label: Int[Array, "I h w A"]


def assign(
    boxes: Boxes, *, anchors: Float[np.ndarray, "A 2"], grid: tuple[int, int], size: int, ignore_iou: float
) -> Targets:
    """At each scale every box is answered for: in the cell of its centre, by the anchor of the most similar shape.

    Similar is the overlap of box and anchor with one corner in common. Where two boxes meet the same anchor of the same
    cell, the later one holds it. Anchors of the cell that overlap by more than `ignore_iou` are no background.
    [MGCA; YOLOv3 itself has one anchor of all scales answer, and ignores by the overlap of the box that is said.]
    """
    one = functools.partial(_assigned, anchors=anchors, grid=grid, size=size, ignore_iou=ignore_iou)
    return jax.vmap(one)(boxes)


def _assigned(boxes: Boxes, *, anchors: np.ndarray, grid: tuple[int, int], size: int, ignore_iou: float) -> Targets:
    """Of one image: the leading axis of Boxes and Targets is missing."""
    (height, width), count = grid, len(anchors)
    stride = np.array([size / width, size / height], np.float32)[None]  # x, y
    extent = boxes.box[:, 2:] - boxes.box[:, :2]  # [M 2]
    centre = (boxes.box[:, :2] + boxes.box[:, 2:]) / 2 / stride  # in cells
    column, row = jnp.clip(jnp.floor(centre).astype(jnp.int32), 0, np.array([[width - 1, height - 1]])).T
    row = jnp.where(boxes.mask, row, height)  # padding falls off the grid

    at_origin = functools.partial(jnp.pad, pad_width=((0, 0), (2, 0)))
    overlap = iou(at_origin(extent)[:, None], at_origin(jnp.asarray(anchors))[None])  # [M A]
    best = overlap.argmax(axis=1)
    shape = (height, width, count)
    number = jnp.arange(1, len(best) + 1)
    owner = jnp.zeros(shape, jnp.int32).at[row, column, best].max(number, mode="drop") - 1  # -1: of no box
    holds = owner >= 0
    similar = jnp.zeros(shape, bool).at[row, column].max(overlap > ignore_iou, mode="drop")

    place = centre - jnp.stack([column, jnp.clip(row, 0, height - 1)], axis=1)
    ratio = jnp.log(jnp.maximum(extent, 1e-6)[owner] / anchors[None, None])  # [h w A 2]
    kept = holds[..., None]
    return Targets(
        holds=holds,
        background=~holds & ~similar,
        place=jnp.where(kept, place[owner], 0.0),
        size=jnp.where(kept, ratio, 0.0),
        label=jnp.where(holds, boxes.label[owner], 0),
    )


def yolo_loss(
    outputs: tuple[Float[Array, "I h w A 5+C"], ...],
    boxes: Boxes,
    *,
    anchors: Float[np.ndarray, "scales A 2"],
    config: DetectionConfig,
) -> tuple[Float[Array, ""], dict[str, Float[Array, ""]]]:
    """The weighted sum of the parts, and the parts: each the sum over scales of its mean over all anchors and cells."""
    parts = [_parts(output, boxes, own, config) for output, own in zip(outputs, anchors, strict=True)]
    summed = {name: sum(part[name] for part in parts) for name in parts[0]}
    weights = {"xy": config.xy_weight, "wh": config.wh_weight, "object": config.object_weight}
    weights |= {"background": config.background_weight, "class": config.class_weight}
    loss = sum(weights[name] * value for name, value in summed.items())
    return jnp.asarray(loss), {f"{name}_loss": jnp.asarray(value) for name, value in summed.items()}


def _parts(
    output: Float[Array, "I h w A 5+C"], boxes: Boxes, anchors: np.ndarray, config: DetectionConfig
) -> dict[str, Array]:
    _, height, width = output.shape[:3]
    targets = assign(boxes, anchors=anchors, grid=(height, width), size=config.image_size, ignore_iou=config.ignore_iou)
    holds, background = targets.holds.astype(output.dtype), targets.background.astype(output.dtype)
    cross_entropy = optax.sigmoid_binary_cross_entropy
    place = cross_entropy(output[..., :2], targets.place).sum(axis=-1)
    size = jnp.square(output[..., 2:4] - targets.size).sum(axis=-1)
    classes = jax.nn.one_hot(targets.label, output.shape[-1] - 5)
    return {
        "xy": (holds * place).mean(),
        "wh": (holds * size).mean(),
        "object": (holds * cross_entropy(output[..., 4], jnp.ones_like(holds))).mean(),
        "background": (background * cross_entropy(output[..., 4], jnp.zeros_like(holds))).mean(),
        "class": (holds * cross_entropy(output[..., 5:], classes).mean(axis=-1)).mean(),
    }
