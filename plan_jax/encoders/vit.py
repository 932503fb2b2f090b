"""The image encoder's modern choice: a vision transformer, with its blocks as one scan over stacked parameters.

Source: Dosovitskiy et al., *An Image is Worth 16x16 Words* (arXiv 2010.11929) as written in timm's VisionTransformer.
Every parameter under `layers` has a leading axis of length `config.layers`. Names map one to one: patch_embed.proj ->
patch_conv, cls_token -> class_token, pos_embed -> position, blocks.norm1 -> layers/attention_norm, blocks.attn.qkv ->
layers/attention/{query,key,value}, blocks.attn.proj -> layers/attention/output, blocks.norm2 -> layers/mlp_norm,
blocks.mlp.fc1 -> layers/intermediate, blocks.mlp.fc2 -> layers/output, norm -> final_norm.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from plan_jax.config import ImageEncoderConfig
from plan_jax.encoders.remat import rematerialised
from plan_jax.encoders.stem import StemConv
from plan_jax.errors import InputError

_INIT = nn.initializers.normal(0.02)  # timm cuts it off at 100 standard deviations
_CONV_INIT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # torch's own, which timm leaves as it is


def _dense(config: ImageEncoderConfig, features: int, *, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=config.dtype, kernel_init=_INIT, name=name)


def _norm(config: ImageEncoderConfig, *, name: str) -> nn.LayerNorm:
    # Two passes for the variance: E[x^2] - E[x]^2 cancels where a token's mean is large against its spread.
    return nn.LayerNorm(epsilon=1e-6, dtype=config.dtype, use_fast_variance=False, name=name)


class SelfAttention(nn.Module):
    """Multi-head attention of all tokens to all tokens."""

    config: ImageEncoderConfig

    @nn.compact
    def __call__(self, x: Float[Array, "B M E"]) -> Float[Array, "B M E"]:
        c = self.config
        # Letters of the contractions: a heads, c channels of a head, m the token attending, s the one attended to.
        heads = (*x.shape[:2], c.heads, c.hidden // c.heads)
        query, key, value = (_dense(c, c.hidden, name=name)(x).reshape(heads) for name in ("query", "key", "value"))
        logits = jnp.einsum("bmac,bsac->bams", query, key, preferred_element_type=jnp.float32)  # [B a M M]
        attention = jax.nn.softmax(logits / heads[-1] ** 0.5, axis=-1).astype(c.dtype)
        mixed = jnp.einsum("bams,bsac->bmac", attention, value)  # [B M a c]
        return _dense(c, c.hidden, name="output")(mixed.reshape(x.shape))


class Block(nn.Module):
    """One pre-norm transformer block, in the form nn.scan wants: it carries (tokens, tokens after the local block)."""

    config: ImageEncoderConfig

    @nn.compact
    def __call__(self, carry, keep: Bool[Array, ""]):
        c = self.config
        x, kept = carry
        x = x + SelfAttention(c, name="attention")(_norm(c, name="attention_norm")(x))
        y = nn.gelu(_dense(c, c.intermediate, name="intermediate")(_norm(c, name="mlp_norm")(x)), approximate=False)
        x = x + _dense(c, c.hidden, name="output")(y)
        return (x, jnp.where(keep, x, kept)), None


class ViT(nn.Module):
    """A vision transformer that returns maps of patch tokens.

    Parameters, softmax and the statistics of norms are float32, the rest has `config.dtype`.
    """

    config: ImageEncoderConfig

    @nn.compact
    def __call__(self, image: Float[Array, "B H W C"], *, train: bool) -> list[Float[Array, "B h w E"]]:
        """The maps of the block `config.local_stage` and of the last one, both after the final norm [ours].

        The class token takes part in the attention and is not returned: the model's global feature is the mean of the
        last map, as it is for a ResNet [ours]. `train` changes nothing: there is no dropout.

        Raises:
            InputError: the image's sides are no multiples of the patch, or the config's sizes do not fit together.
        """
        c = self.config
        _check(c, image.shape)
        grid = image.shape[1] // c.patch, image.shape[2] // c.patch
        x = StemConv(c, c.hidden, c.patch, c.patch, 0, _CONV_INIT, use_bias=True, name="patch_conv")(image)
        x = x.reshape(x.shape[0], grid[0] * grid[1], c.hidden)
        first = self.param("class_token", nn.initializers.normal(1e-6), (1, 1, c.hidden)).astype(c.dtype)
        position = self.param("position", _INIT, (1, 1 + c.grid**2, c.hidden))
        x = jnp.concatenate([jnp.broadcast_to(first, (x.shape[0], 1, c.hidden)), x], axis=1)
        x = x + position_on(position[0], grid).astype(c.dtype)[None]
        blocks = nn.scan(
            # A scan keeps its steps apart anyway: without prevent_cse the compiler may fuse freely inside one.
            rematerialised(Block, c.remat, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True},
            in_axes=0,
            length=c.layers,
        )
        keep = jnp.arange(1, c.layers + 1) == c.local_stage
        (x, kept), _ = blocks(c, name="layers")((x, x), keep)
        norm = _norm(c, name="final_norm")
        return [norm(tokens)[:, 1:].reshape(-1, *grid, c.hidden) for tokens in (kept, x)]


def position_on(position: Float[Array, "P E"], grid: tuple[int, int]) -> Float[Array, "M E"]:
    """Position embeddings of a class token and a square grid, on another grid: bicubic, antialiased, as in timm."""
    side = round((len(position) - 1) ** 0.5)
    if grid == (side, side):
        return position
    stored = position[1:].reshape(side, side, -1)
    resized = jax.image.resize(stored, (*grid, stored.shape[-1]), "bicubic", antialias=True)
    return jnp.concatenate([position[:1], resized.reshape(grid[0] * grid[1], -1)])


def _check(config: ImageEncoderConfig, shape: tuple[int, ...]) -> None:
    if shape[1] % config.patch or shape[2] % config.patch:
        raise InputError(
            f"data.image_size must be a multiple of image_encoder.patch = {config.patch}, got {shape[1]} x {shape[2]}; "
            "change one of them"
        )
    if config.hidden % config.heads:
        raise InputError(
            f"image_encoder.hidden must be a multiple of image_encoder.heads, got {config.hidden} and {config.heads}; "
            "change one of them"
        )
    if not 1 <= config.local_stage <= config.layers:
        raise InputError(
            f"image_encoder.local_stage must be from 1 to image_encoder.layers = {config.layers}, "
            f"got {config.local_stage}; change one of them"
        )
