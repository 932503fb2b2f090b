"""Boxes (x0, y0, x1, y1): how much they overlap, what the head's answers say, which of them stay."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from plan_jax.config import DetectionConfig

LARGEST = 8.0  # of the logarithm of a box's size by its anchor's, so that every box is finite [ours]


@struct.dataclass
class Detections:
    """The boxes of images, best first.

    Attributes:
        box: in pixels of the model's input.
        score: 0 to 1: of there being a box, times that of its class; with one class, which is certain, the first alone.
        label: index of the class.
        mask: False on padding.
    """

    box: Float[Array, "I K 4"]
    score: Float[Array, "I K"]
    label: Int[Array, "I K"]
    mask: Bool[Array, "I K"]


def iou(one: Float[Array, "*a 4"], other: Float[Array, "*a 4"]) -> Float[Array, "*a"]:
    """Intersection over union of boxes that broadcast against each other; 0 where both have no area."""
    sides = jnp.minimum(one[..., 2:], other[..., 2:]) - jnp.maximum(one[..., :2], other[..., :2])
    shared = jnp.prod(jnp.maximum(sides, 0), axis=-1)
    union = _area(one) + _area(other) - shared
    return jnp.where(union > 0, shared / jnp.where(union > 0, union, 1), 0.0)


def _area(box: Float[Array, "*a 4"]) -> Float[Array, "*a"]:
    return jnp.prod(jnp.maximum(box[..., 2:] - box[..., :2], 0), axis=-1)


def decode(
    outputs: tuple[Float[Array, "I h w A 5+C"], ...], *, anchors: Float[np.ndarray, "scales A 2"], size: int
) -> tuple[Float[Array, "I N 4"], Float[Array, "I N"], Int[Array, "I N"]]:
    """Box in pixels of the model's input of side `size`, score and best class of every anchor of every cell."""
    parts = [_decoded(output, own, size) for output, own in zip(outputs, anchors, strict=True)]
    box, score, label = (jnp.concatenate(part, axis=1) for part in zip(*parts, strict=True))
    return box, score, label


def _decoded(output: Float[Array, "I h w A 5+C"], anchors: np.ndarray, size: int) -> tuple[Array, Array, Array]:
    count, height, width = output.shape[:3]
    corner = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)[None, :, :, None]  # [1 h w 1 2], x y
    stride = np.array([size / width, size / height], np.float32)[None, None, None, None]
    centre = (jax.nn.sigmoid(output[..., :2]) + corner) * stride
    half = jnp.exp(jnp.minimum(output[..., 2:4], LARGEST)) * anchors[None, None, None] / 2
    box = jnp.concatenate([centre - half, centre + half], axis=-1)
    score, label = jax.nn.sigmoid(output[..., 4]), jnp.zeros(output.shape[:4], jnp.int32)
    if output.shape[-1] > 6:
        label = output[..., 5:].argmax(axis=-1).astype(jnp.int32)
        score = score * jax.nn.sigmoid(output[..., 5:].max(axis=-1))
    return box.reshape(count, -1, 4), score.reshape(count, -1), label.reshape(count, -1)


def suppress(
    box: Float[Array, "I N 4"], score: Float[Array, "I N"], label: Int[Array, "I N"], *, config: DetectionConfig
) -> Detections:
    """Greedy non-maximum suppression within each class and image, of fixed shapes.

    Of the `candidates` boxes of highest score, one is dropped if a better one of its class that stays overlaps it by
    `nms_iou` or more; of those that stay, the best `kept` are given. Equal scores keep the order of the boxes.
    """
    return jax.vmap(functools.partial(_suppressed, config=config))(box, score, label)


def _suppressed(
    box: Float[Array, "N 4"], score: Float[Array, " N"], label: Int[Array, " N"], *, config: DetectionConfig
) -> Detections:
    count = min(config.candidates, len(score))
    score, order = jax.lax.top_k(score, count)
    box, label = box[order], label[order]
    rival = (iou(box[:, None], box[None]) >= config.nms_iou) & (label[:, None] == label[None])  # [K K]
    better = np.tri(count, k=-1, dtype=bool)  # row i: the candidates before i

    def visit(i: Int[Array, ""], stays: Bool[Array, " K"]) -> Bool[Array, " K"]:
        return stays.at[i].set(stays[i] & ~jnp.any(stays & rival[i] & jnp.asarray(better)[i]))

    stays = jax.lax.fori_loop(0, count, visit, score >= config.lowest_score)
    first = jnp.argsort(~stays, stable=True)[: min(config.kept, count)]  # those that stay, in their order
    return Detections(box[first], score[first], label[first], stays[first])
