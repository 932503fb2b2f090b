"""The image encoder: torchvision's ResNet v1.5, or the same stages behind a patchify stem.

Source: He et al., *Deep Residual Learning* (arXiv 1512.03385) as written in torchvision.models.resnet. Parameter
names map one to one: conv1, bn1 -> stem_conv, stem_norm; layer2.0.conv1, layer2.0.bn1 -> stage2_block0/conv1,
stage2_block0/norm1; layer2.0.downsample.0 and .1 -> stage2_block0/downsample_conv and downsample_norm.
"""

import math
from collections.abc import Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jaxtyping import Array, Float

from plan_jax.alignment.sharded import batch_axes, rows_over_devices
from plan_jax.config import ImageEncoderConfig
from plan_jax.encoders.remat import rematerialised
from plan_jax.encoders.stem import StemConv
from plan_jax.errors import InputError


class BatchNorm(nn.BatchNorm):
    """Flax's BatchNorm whose running variance is, as torch's, the average of the unbiased batch variances.

    Attributes:
        local: under a mesh, normalise each device's part of the batch by its own statistics.
    """

    local: bool = False

    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B h w c"]:
        """Normalise over the batch and the map; use_running_average is set in the constructor.

        Raises:
            InputError: the batch does not divide evenly among the devices whose statistics are to be their own.
        """
        updates = not self.use_running_average and not self.is_initializing()
        axes = batch_axes() if updates and self.local else ()
        if axes:
            return self._by_part(x, math.prod(jax.sharding.get_abstract_mesh().shape[axis] for axis in axes))
        before = self.get_variable("batch_stats", "var")
        x = super().__call__(x)
        if updates:
            count = x.size // x.shape[-1]
            after = self.get_variable("batch_stats", "var")
            batch = after - self.momentum * before  # (1 - momentum) * biased variance
            # As a float: the cells of a large global batch are more than an int32 can count.
            self.put_variable("batch_stats", "var", after + batch / float(max(count - 1, 1)))
        return x

    def _by_part(self, x: Float[Array, "B h w c"], parts: int) -> Float[Array, "B h w c"]:
        """The same for each of so many equal parts of the batch, one a device; running statistics are the mean."""
        if len(x) % parts:
            raise InputError(
                f"the number of images must be a multiple of the {parts} devices of the mesh, got {len(x)}; "
                "change data.batch_size or the number of devices"
            )
        split = rows_over_devices(x.reshape(parts, -1, *x.shape[1:]))  # [P B/P h w c], a part on each device
        wide = split.astype(jnp.promote_types(x.dtype, jnp.float32))
        mean = wide.mean((1, 2, 3), keepdims=True)  # [P 1 1 1 c]
        var = jnp.square(wide - mean).mean((1, 2, 3), keepdims=True)
        count = x.size // (parts * x.shape[-1])
        for name, batch in (("mean", mean), ("var", var * (count / max(count - 1, 1)))):
            before = self.get_variable("batch_stats", name)
            after = self.momentum * before + (1 - self.momentum) * batch.mean((0, 1, 2, 3))
            self.put_variable("batch_stats", name, after)
        scale, bias = (self.get_variable("params", name)[(None,) * 4] for name in ("scale", "bias"))
        y = (wide - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias
        return y.astype(self.dtype).reshape(x.shape)


def _conv(config: ImageEncoderConfig, features: int, kernel: int, stride: int, *, padding: int, name: str) -> nn.Conv:
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=((padding, padding), (padding, padding)),  # as torch; SAME pads strided maps unevenly
        use_bias=False,
        dtype=config.dtype,
        kernel_init=_centred_init(config.side_taps),
        name=name,
    )


def _centred_init(side_taps: float) -> nn.initializers.Initializer:
    """He et al.'s initial weights, those of a 3 x 3 kernel beside its centre scaled down and the centre up for it.

    The contrastive losses cannot tell a patch that shows a finding from its neighbour that sees it through a 3 x 3
    kernel: with equal taps, chance decides where the answer lies, and it stays there. A start at the centre breaks the
    tie [ours].
    """
    he = nn.initializers.variance_scaling(2.0, "fan_out", "normal")

    def init(key: Array, shape: Sequence[int], dtype: Any = jnp.float32, **kwargs: Any) -> Array:
        weights = he(key, shape, dtype, **kwargs)
        if tuple(shape[:2]) != (3, 3):
            return weights
        taps = np.full((3, 3, 1, 1), side_taps)
        taps[1, 1] = math.sqrt(9 - 8 * side_taps**2)  # the sum of squares stays 9
        return weights * taps.astype(dtype)

    return init


def _norm(config: ImageEncoderConfig, *, train: bool, name: str) -> BatchNorm:
    running = not train or config.batch_norm == "frozen"
    # Two passes for the variance: E[x^2] - E[x]^2 cancels where a channel's mean is large against its spread.
    return BatchNorm(
        running,
        momentum=0.9,
        epsilon=1e-5,
        dtype=config.dtype,
        use_fast_variance=False,
        local=config.batch_norm == "local",
        name=name,
    )


def _block_convs(config: ImageEncoderConfig, channels: int, stride: int) -> tuple[tuple[int, int, int], ...]:
    """(features, kernel, stride) of the convolutions of one block; v1.5: the stride is on a 3x3."""
    if config.block == "basic":
        return (channels, 3, stride), (channels, 3, 1)
    return (channels, 1, 1), (channels, 3, stride), (4 * channels, 1, 1)


def _stage_stride(config: ImageEncoderConfig, stage: int, block: int) -> int:
    return 2 if stage > 1 and block == 0 else 1


class Block(nn.Module):
    """One residual block, basic or bottleneck."""

    config: ImageEncoderConfig
    channels: int
    stride: int
    train: bool

    @nn.compact
    def __call__(self, x: Float[Array, "B h w c"]) -> Float[Array, "B i j k"]:
        norm = partial(_norm, self.config, train=self.train)
        shortcut = x
        convs = _block_convs(self.config, self.channels, self.stride)
        for i, (features, kernel, stride) in enumerate(convs, start=1):
            x = _conv(self.config, features, kernel, stride, padding=kernel // 2, name=f"conv{i}")(x)
            x = norm(name=f"norm{i}")(x)
            x = nn.relu(x) if i < len(convs) else x
        if shortcut.shape[-1] != x.shape[-1] or self.stride != 1:
            shortcut = _conv(self.config, x.shape[-1], 1, self.stride, padding=0, name="downsample_conv")(shortcut)
            shortcut = norm(name="downsample_norm")(shortcut)
        return nn.relu(x + shortcut)


class ResNet(nn.Module):
    """A ResNet that returns the map of every stage.

    Parameters and running statistics are float32; the computation and the maps have `config.dtype`. Batch
    statistics are over the batch, or a device's part of it, and the map; a part should be several images, for one
    alone is normalised over its own map (with train=True, apply with mutable=["batch_stats"] unless config.batch_norm
    is "frozen").
    """

    config: ImageEncoderConfig

    @nn.compact
    def __call__(self, image: Float[Array, "B H W C"], *, train: bool) -> list[Float[Array, "B _ _ _"]]:
        """The feature maps [B h w c] of stages 1, 2, ...; with a patchify stem, H and W are cut to whole patches."""
        c = self.config
        kernel, stride, padding = (7, 2, 3) if c.stem == "imagenet" else (c.patch, c.patch, 0)
        x = StemConv(c, c.width, kernel, stride, padding, _centred_init(c.side_taps), name="stem_conv")(image)
        x = nn.relu(_norm(c, train=train, name="stem_norm")(x))
        if c.stem == "imagenet":
            around = ((1, 1), (1, 1))  # with -inf
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=around)  # pyright: ignore[reportArgumentType]
        block = rematerialised(Block, c.remat)
        maps = []
        for stage, blocks in enumerate(c.stages, start=1):
            for i in range(blocks):
                stride = _stage_stride(c, stage, i)
                x = block(c, c.width * 2 ** (stage - 1), stride, train, name=f"stage{stage}_block{i}")(x)
            maps.append(x)
        return maps


def receptive_field(config: ImageEncoderConfig) -> list[int]:
    """Side in pixels of the square of input that one cell of each stage's map depends on.

    Each k x k convolution or pool widens the field by (k - 1) times the stride accumulated before it. Batch
    statistics are not counted, and at the border the field reaches into the padding.
    """
    stem = ((7, 2), (3, 2)) if config.stem == "imagenet" else ((config.patch, config.patch),)
    field, jump = 1, 1
    for kernel, stride in stem:
        field, jump = field + (kernel - 1) * jump, jump * stride
    fields = []
    for stage, blocks in enumerate(config.stages, start=1):
        for i in range(blocks):
            for _, kernel, stride in _block_convs(config, config.width, _stage_stride(config, stage, i)):
                field, jump = field + (kernel - 1) * jump, jump * stride
        fields.append(field)
    return fields
