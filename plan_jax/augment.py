"""Random views of the training images, drawn and made on the device: arrays in, arrays out.

A view is a crop of the loaded square, perhaps enlarged, turned and with other gray levels (`config.augment`). It is
never a mirror image: left and right are words of the reports.

Outside of the loaded square everything is black, as the padding in it is. Gray levels change by functions that keep 0
at 0: padding that turned gray would be something to learn that films do not have.
"""

import dataclasses
import math

import jax
import jax.numpy as jnp
from flax import struct
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Int, Num, UInt8

from plan_jax.config import Config
from plan_jax.errors import InputError
from plan_jax.geometry import loaded_side

STREAM = 0x76696577  # folded into the key of the step, which is that of dropout too


@struct.dataclass
class Views:
    """What is drawn for every image.

    Attributes:
        corner: row and column of the crop's first pixel in the loaded square.
        scale: how many times larger things look.
        angle: by how much they are turned about the crop's centre, in radians, clockwise.
        gain, gamma: gray levels g, as shares of 255, become gain * g ** gamma.
    """

    corner: Int[Array, "B 2"]
    scale: Float[Array, " B"]
    angle: Float[Array, " B"]
    gain: Float[Array, " B"]
    gamma: Float[Array, " B"]


def augment(
    images: UInt8[Array, "B S S 1"], step: Int[Array, ""] | int, *, config: Config
) -> Num[Array, "B size size 1"]:
    """What the model sees of a batch at a step of training, size = `data.image_size`.

    Gray levels 0-255: the loaded bytes where they are only cropped, or left whole; float32 where they are computed. The
    draws of a row depend on `config.seed`, the step and the row's place in the global batch, on nothing else, so that a
    run continues with the same views on any number of devices.

    Args:
        images: as the pipeline loads them, S = `loaded_side`.
        step: number of the step.
        config: `seed`, `data` and `augment` are used.

    Raises:
        InputError: the images have another side.
    """
    size, settings = config.data.image_size, config.augment
    side = loaded_side(size, config.data.crop)
    if images.shape[1:] != (side, side, 1):
        raise InputError(
            f"training images must be {side} x {side} x 1 for data.image_size {size} and data.crop {config.data.crop}, "
            f"got {' x '.join(map(str, images.shape[1:]))}; load them with these settings"
        )
    if side == size and not any(dataclasses.astuple(settings)):
        return images
    views = draw_views(len(images), step, config=config)
    if settings.rotation:
        seen = turned(images, affine(views, size), size)
    elif settings.scale:
        seen = scaled(images, affine(views, size), size)
    else:
        seen = cropped(images, views.corner, size)
    return relit(seen, views.gain, views.gamma) if settings.gain or settings.gamma else seen


def draw_views(count: int, step: Int[Array, ""] | int, *, config: Config) -> Views:
    """The views of a batch of `count` images. A setting of 0 gives 1 or angle 0, and changes no other draw."""
    settings, size = config.augment, config.data.image_size
    places = loaded_side(size, config.data.crop) - size + 1
    of_step = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), step), STREAM)

    def factor(key: Array, extent: float) -> Array:
        return jnp.exp(math.log1p(extent) * jax.random.uniform(key, minval=-1.0))

    def one(row: Array) -> Views:
        keys = jax.random.split(jax.random.fold_in(of_step, row), 5)
        return Views(
            corner=jax.random.randint(keys[0], (2,), 0, places),
            scale=factor(keys[1], settings.scale),
            angle=math.radians(settings.rotation) * jax.random.uniform(keys[2], minval=-1.0),
            gain=factor(keys[3], settings.gain),
            gamma=factor(keys[4], settings.gamma),
        )

    return jax.vmap(one)(jnp.arange(count))


def affine(views: Views, size: int) -> Float[Array, "B 2 3"]:
    """Where a view's points lie in the loaded square: (x, y) = M (x_view, y_view, 1), pixel i covering i to i + 1."""
    half = size / 2
    cosine, sine = jnp.cos(views.angle) / views.scale, jnp.sin(views.angle) / views.scale
    x = views.corner[:, 1] + half - (cosine + sine) * half
    y = views.corner[:, 0] + half - (cosine - sine) * half
    return jnp.stack([jnp.stack([cosine, sine, x], axis=-1), jnp.stack([-sine, cosine, y], axis=-1)], axis=1)


def cropped(images: UInt8[Array, "B S S 1"], corner: Int[Array, "B 2"], size: int) -> UInt8[Array, "B size size 1"]:
    """The same bytes from `corner` on."""

    def one(image: Array, first: Array) -> Array:
        return jax.lax.dynamic_slice(image, (first[0], first[1], 0), (size, size, 1))

    return jax.vmap(one)(images, corner)


def scaled(images: Num[Array, "B S S 1"], matrix: Float[Array, "B 2 3"], size: int) -> Float[Array, "B size size 1"]:
    """Bilinear samples of views that are not turned, as two matrix products per image.

    A sample reads the two pixels next to it on each axis and averages no area: sound where things look at least half as
    large as they are, beyond that whole pixels would be passed over.
    """
    rows = _weights(matrix[:, 1, 1], matrix[:, 1, 2], size, images.shape[1])
    columns = _weights(matrix[:, 0, 0], matrix[:, 0, 2], size, images.shape[2])
    # Gray levels of 8 bits need more than the bfloat16 that a TPU multiplies in by itself.
    gray, exact = images.astype(jnp.float32), jax.lax.Precision.HIGHEST
    return jnp.einsum("bhs,bstc,bwt->bhwc", rows, gray, columns, precision=exact)  # [B size size 1]


def _weights(slope: Float[Array, " B"], start: Float[Array, " B"], size: int, side: int) -> Float[Array, "B size side"]:
    """What every loaded pixel of an axis counts at every pixel of the view; beyond the loaded ones there is nothing."""
    place = slope[:, None] * (jnp.arange(size) + 0.5)[None, :] + start[:, None] - 0.5  # [B size]
    distance = jnp.abs(place[:, :, None] - jnp.arange(side, dtype=place.dtype)[None, None, :])  # [B size side]
    return jnp.maximum(1 - distance, 0)


def turned(images: Num[Array, "B S S 1"], matrix: Float[Array, "B 2 3"], size: int) -> Float[Array, "B size size 1"]:
    """Bilinear samples of any views, the same as `scaled` where they are not turned, by a gather."""
    centres = jnp.arange(size) + 0.5
    y, x = jnp.meshgrid(centres, centres, indexing="ij")

    def one(image: Array, m: Array) -> Array:
        rows, columns = m[1, 0] * x + m[1, 1] * y + m[1, 2] - 0.5, m[0, 0] * x + m[0, 1] * y + m[0, 2] - 0.5
        return map_coordinates(image[..., 0], [rows, columns], order=1)[..., None]  # 0 outside

    return jax.vmap(one)(images.astype(jnp.float32), matrix)


def relit(
    images: Num[Array, "B H W 1"], gain: Float[Array, " B"], gamma: Float[Array, " B"]
) -> Float[Array, "B H W 1"]:
    """Gray levels g, as shares of 255, to gain * g ** gamma, cut at 1: black stays black."""
    share = images.astype(jnp.float32) / 255
    return 255 * jnp.clip(gain[:, None, None, None] * share ** gamma[:, None, None, None], 0, 1)
