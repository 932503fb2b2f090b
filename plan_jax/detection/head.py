"""YOLOv3's neck and heads on the last stages of an encoder."""

from collections.abc import Sequence

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from plan_jax.config import Config
from plan_jax.detection.anchors import PER_SCALE, SCALES
from plan_jax.encoders.resnet import BatchNorm
from plan_jax.errors import InputError


class YoloHead(nn.Module):
    """From maps, fine to coarse, to what each of a cell's anchors says, coarsest scale first.

    At each scale five blocks of 1x1 and 3x3 in turn, then one 3x3 block and a 1x1 convolution to the answers. What
    leaves the fifth block is halved in channels, doubled in size and laid beside the next finer map.
    """

    classes: int
    width: int

    @nn.compact
    def __call__(
        self, maps: Sequence[Float[Array, "I _ _ _"]], *, train: bool
    ) -> tuple[Float[Array, "I _ _ {PER_SCALE} 5+C"], ...]:
        """Per anchor: logits of x and y in the cell, log of width and height by the anchor's, logit of there being a
        box, logits of the classes. The side of each map must be twice that of the next coarser one."""
        outputs, carried = [], None
        for scale, x in enumerate(reversed(maps)):
            width = max(1, self.width // 2**scale)
            x = x.astype(jnp.float32)
            if carried is not None:
                carried = ConvBlock(width, 1, train)(carried)
                x = jnp.concatenate([carried.repeat(2, axis=1).repeat(2, axis=2), x], axis=-1)
            for _ in range(2):
                x = ConvBlock(width, 1, train)(x)
                x = ConvBlock(2 * width, 3, train)(x)
            x = carried = ConvBlock(width, 1, train)(x)
            x = ConvBlock(2 * width, 3, train)(x)
            x = nn.Conv(PER_SCALE * (5 + self.classes), (1, 1))(x)
            outputs.append(x.reshape(*x.shape[:3], PER_SCALE, 5 + self.classes))
        return tuple(outputs)


class ConvBlock(nn.Module):
    """Convolution, the head's own BatchNorm, leaky relu."""

    features: int
    kernel: int
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "I h w c"]) -> Float[Array, "I h w d"]:
        x = nn.Conv(self.features, (self.kernel, self.kernel), use_bias=False)(x)
        x = BatchNorm(not self.train, momentum=0.9, epsilon=1e-5, use_fast_variance=False)(x)
        return nn.leaky_relu(x, 0.1)


def scales_of(config: Config) -> int:
    """How many of the encoder's last stages the head reads.

    InputError: a ViT, which has no stages, or a size that they do not halve evenly.
    """
    encoder, size = config.image_encoder, config.detection.image_size
    if encoder.kind != "resnet":
        raise InputError(f"image_encoder.kind must be resnet for detection, got {encoder.kind!r}; train one of those")
    first = 4 if encoder.stem == "imagenet" else encoder.patch
    stride = first * 2 ** (len(encoder.stages) - 1)
    if size % stride:
        raise InputError(
            f"detection.image_size must be a multiple of {stride}, the pixels in a cell of the last stage, got {size}; "
            "change it"
        )
    return min(SCALES, len(encoder.stages))
