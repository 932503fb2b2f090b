"""The first kernel of both image encoders: colour weights meet gray images, and other channels are refused."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from plan_jax.config import ImageEncoderConfig
from plan_jax.encoders.resnet import ResNet
from plan_jax.encoders.stem import StemConv
from plan_jax.encoders.vit import ViT
from plan_jax.errors import InputError

RESNET = ImageEncoderConfig(stem="patchify", stages=(1,), width=4, block="basic", channels=3)
IMAGENET = ImageEncoderConfig(stages=(1,), width=4, block="basic", channels=3)
VIT = ImageEncoderConfig(kind="vit", hidden=8, layers=1, heads=2, intermediate=8, grid=4, local_stage=1, channels=3)
ENCODERS = pytest.mark.parametrize(
    ("encoder", "kernel"),
    [(ResNet(RESNET), "stem_conv"), (ResNet(IMAGENET), "stem_conv"), (ViT(VIT), "patch_conv")],
    ids=["patchify", "imagenet", "vit"],
)
GRAY = np.random.default_rng(0).normal(size=(2, 16, 16, 1)).astype("f4")


@partial(jax.jit, static_argnums=0, compiler_options=oracle.QUICK)
def initial(encoder):
    return encoder.init(jax.random.key(0), GRAY, train=False)


@partial(jax.jit, static_argnums=0, compiler_options=oracle.QUICK)
def maps(encoder, variables, image):
    return encoder.apply(variables, image, train=False)


@ENCODERS
def test_a_gray_image_is_the_same_image_in_three_channels(encoder, kernel):
    variables = initial(encoder)
    assert variables["params"][kernel]["kernel"].shape[2] == 3
    gray, colour = (maps(encoder, variables, x) for x in (GRAY, GRAY.repeat(3, axis=-1)))
    jax.tree.map(lambda one, three: np.testing.assert_allclose(one, three, rtol=1e-4, atol=1e-5), gray, colour)


@ENCODERS
def test_the_order_of_the_channels_of_a_colour_image_matters(encoder, kernel):
    variables = initial(encoder)
    colour = np.random.default_rng(1).normal(size=(2, 16, 16, 3)).astype("f4")
    one, other = (maps(encoder, variables, x)[-1] for x in (colour, colour[..., ::-1]))
    assert np.abs(one - other).max() > 1e-3


def test_a_kernel_is_summed_over_its_channels_before_it_is_rounded():
    """256 + 1 - 256 is 0 in bfloat16."""
    config = ImageEncoderConfig(channels=3, dtype="bfloat16")
    kernel = jnp.array([256.0, 1.0, -256.0]).reshape(1, 1, 3, 1)
    stem = StemConv(config, 1, 1, 1, 0, jax.nn.initializers.zeros)
    out = stem.apply({"params": {"kernel": kernel}}, GRAY)
    np.testing.assert_array_equal(out, GRAY.astype(jnp.bfloat16))


@pytest.mark.parametrize(("stored", "given"), [(1, 3), (3, 2), (2, 2), (2, 1), (4, 4)])
@pytest.mark.parametrize("kind", ["resnet", "vit"])
def test_other_channels_are_refused(kind, stored, given):
    base, encoder = (RESNET, ResNet) if kind == "resnet" else (VIT, ViT)
    config = ImageEncoderConfig(**{**vars(base), "channels": stored})
    with pytest.raises(InputError, match=f"image_encoder.channels must be 1 or 3 .* got {stored} and {given}; set"):
        encoder(config).init(jax.random.key(0), GRAY.repeat(given, axis=-1), train=False)
