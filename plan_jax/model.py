"""PlanModel: the two encoders and the projections into the joint space."""

import dataclasses
import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Num

from plan_jax.alignment.reference import normalize
from plan_jax.config import Config
from plan_jax.encoders.bert import Bert
from plan_jax.encoders.resnet import ResNet
from plan_jax.encoders.vit import ViT
from plan_jax.errors import InputError
from plan_jax.types import Batch, ImageFeatures, TextFeatures

# Mean and standard deviation of a gray level in 0..1: ImageNet's three channels averaged.
GRAY_MEAN, GRAY_STD = 0.449, 0.226


class PlanModel(nn.Module):
    """Images and texts to features of one joint space.

    Norms in the image path work over the batch or per location, never over the height and width of one image:
    spatial statistics tell every patch what is elsewhere, so that any patch can answer for any word.
    """

    config: Config

    def setup(self):
        dim = self.config.alignment.dim
        encoder = ViT if self.config.image_encoder.kind == "vit" else ResNet
        self.image_encoder = encoder(self.config.image_encoder)
        self.text_encoder = Bert(self.config.text_encoder)
        self.patch_projection = PatchProjection(dim)
        self.image_projection = nn.Dense(dim)
        self.word_projection = nn.Dense(dim, use_bias=False)
        self.text_projection = nn.Dense(dim)
        self.word_score = nn.Dense(1)

    def __call__(self, batch: Batch, *, train: bool) -> tuple[ImageFeatures, TextFeatures]:
        """Features of a batch of pairs."""
        images = self.encode_image(batch.image, train=train)
        texts = (batch.token_ids, batch.word_ids, batch.token_mask, batch.sentence_ids)
        return images, self.encode_text(*texts, train=train)

    def encode_image(self, image: Num[Array, "I H W 1"], *, train: bool = False) -> ImageFeatures:
        """Patch features u_n = normalize(g(v_n)) of the local map, and the mean of the last map, projected."""
        local, last = self._maps(image, train=train)
        count, height, width, channels = local.shape
        patch = self.patch_projection(local.reshape(count, height * width, channels))
        pooled = self.image_projection(last.mean(axis=(1, 2)))
        return ImageFeatures(pooled=normalize(pooled), patch=normalize(patch), grid=(height, width))

    def global_cells(self, image: Num[Array, "I H W 1"]) -> Float[Array, "I h w D"]:
        """The last map's cells, projected: their mean is the global feature before it is normalised."""
        return self.image_projection(self._maps(image, train=False)[1])

    def encoder_features(self, image: Num[Array, "I H W 1"]) -> Float[Array, "I C"]:
        """The mean of the last map before its projection: 2048 numbers of a ResNet-50."""
        return self._maps(image, train=False)[1].mean(axis=(1, 2))

    def stage_maps(self, image: Num[Array, "I H W 1"], *, train: bool = False) -> list[Float[Array, "I _ _ _"]]:
        """The map of every stage of a ResNet, fine to coarse; of a ViT, the local and the last."""
        pixels = (image.astype(jnp.float32) / 255 - GRAY_MEAN) / GRAY_STD
        return self.image_encoder(pixels, train=train)

    def _maps(self, image: Num[Array, "I H W 1"], *, train: bool) -> tuple[Array, Array]:
        """The local and the last map of the image encoder [I h w C], in float32.

        Raises:
            InputError: image_encoder.local_stage is no stage of the ResNet or no block of the ViT.
        """
        settings = self.config.image_encoder
        maps = self.stage_maps(image, train=train)
        chosen = 1 if settings.kind == "vit" else settings.local_stage  # a ViT returns these two only
        if chosen > len(maps):
            raise InputError(
                f"image_encoder.local_stage must be from 1 to {len(maps)}, the number of image_encoder.stages, "
                f"got {chosen}; change one of them"
            )
        return maps[chosen - 1].astype(jnp.float32), maps[-1].astype(jnp.float32)

    def encode_text(
        self,
        token_ids: Int[Array, "R T"],
        word_ids: Int[Array, "R T"],
        token_mask: Bool[Array, "R T"],
        sentence_ids: Int[Array, "R T"],
        *,
        train: bool = False,
    ) -> TextFeatures:
        """Word features w_l = normalize(f(t_l)), the mean of a word's pieces, and the mean of all pieces, projected."""
        token = self.text_encoder(token_ids, token_mask, sentence_ids, train=train).astype(jnp.float32)
        word, mask = merge_pieces(token, word_ids, words=self.config.data.max_words)
        kept = token_mask[..., None].astype(jnp.float32)
        mean = (token * kept).sum(axis=1) / jnp.maximum(kept.sum(axis=1), 1)
        return TextFeatures(
            pooled=normalize(self.text_projection(mean)),
            word=jnp.where(mask[..., None], normalize(self.word_projection(word)), 0.0),
            word_logit=self.word_score(word)[..., 0],
            mask=mask,
        )


class PatchProjection(nn.Module):
    """g, of every patch on its own: linear, layer norm, relu, linear [paper: g; ours: its form]."""

    dim: int

    @nn.compact
    def __call__(self, patch: Float[Array, "I N C"]) -> Float[Array, "I N D"]:
        hidden = nn.Dense(self.dim)(patch)
        return nn.Dense(self.dim)(nn.relu(nn.LayerNorm()(hidden)))


def merge_pieces(
    token: Float[Array, "R T E"], word_ids: Int[Array, "R T"], *, words: int
) -> tuple[Float[Array, "R L E"], Bool[Array, "R L"]]:
    """Mean feature of every word's pieces, and which words exist. Pieces with word id -1 belong to none."""
    member = jax.nn.one_hot(word_ids, words, axis=1, dtype=token.dtype)  # [R L T]; -1 gives a column of zeros
    count = member.sum(axis=2)
    summed = jnp.einsum("rlt,rte->rle", member, token)  # [R L E]
    return summed / jnp.maximum(count, 1)[..., None], count > 0


def initial_variables(config: Config, seed: Int[Array, ""] | int) -> Any:
    """Freshly drawn parameters and batch statistics, and nothing else: compiled once per network."""
    parts = {
        name: dataclasses.replace(getattr(config, name), weights="", weights_prefix="")
        for name in ("image_encoder", "text_encoder")
    }
    return _draw(dataclasses.replace(config, **parts), seed)


@functools.partial(jax.jit, static_argnames="config")
def _draw(config: Config, seed: Int[Array, ""] | int) -> Any:
    size, pieces = config.data.image_size, config.data.max_tokens
    batch = Batch(
        image=jnp.zeros((1, size, size, 1), jnp.uint8),
        token_ids=jnp.zeros((1, pieces), jnp.int32),
        word_ids=jnp.full((1, pieces), -1, jnp.int32),
        token_mask=jnp.ones((1, pieces), bool),
        sentence_ids=jnp.zeros((1, pieces), jnp.int32),
        record=jnp.zeros((1,), jnp.int32),
        words_cut=jnp.zeros((1,), jnp.int32),
    )
    variables = PlanModel(config).init({"params": jax.random.key(seed)}, batch, train=False)
    return {"batch_stats": {}, **variables}  # a ViT has none
