"""The first kernel of an image encoder."""

from flax import linen as nn
from jax import lax
from jaxtyping import Array, Float

from plan_jax.config import ImageEncoderConfig
from plan_jax.errors import InputError


class StemConv(nn.Module):
    """A convolution whose stored kernel has `config.channels` channels, as published weights have three.

    A gray image is met by the kernel summed over its channels, which is the gray image in every channel: the weights
    stay what they were, at the cost of one channel.
    """

    config: ImageEncoderConfig
    features: int
    kernel: int
    stride: int
    padding: int
    kernel_init: nn.initializers.Initializer
    use_bias: bool = False

    @nn.compact
    def __call__(self, image: Float[Array, "B H W C"]) -> Float[Array, "B h w c"]:
        """`image` has one channel or config.channels."""
        c = self.config
        if c.channels not in (1, 3) or image.shape[-1] not in (1, c.channels):
            raise InputError(
                f"image_encoder.channels must be 1 or 3 and an image have one channel or as many, got {c.channels} "
                f"and {image.shape[-1]}; set image_encoder.channels to 3 for published weights"
            )
        kernel = self.param("kernel", self.kernel_init, (self.kernel, self.kernel, c.channels, self.features))
        if image.shape[-1] != c.channels:
            kernel = kernel.sum(axis=2, keepdims=True)
        around = ((self.padding, self.padding), (self.padding, self.padding))  # as torch; SAME pads unevenly
        x = lax.conv_general_dilated(
            image.astype(c.dtype),
            kernel.astype(c.dtype),
            (self.stride, self.stride),
            around,
            dimension_numbers=("NHWC", "HWIO", "NHWC"),
        )
        if self.use_bias:
            x = x + self.param("bias", nn.initializers.zeros, (self.features,)).astype(c.dtype)[None, None, None]
        return x
