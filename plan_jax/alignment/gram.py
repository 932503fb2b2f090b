"""A tile in Gram form: a soft region is never formed, only its inner products, by way of G = U U^T.

With P = A G: <r_l, u_n> = P[l,n], |r_l|^2 = sum_n A P, <r_l, w_l> = sum_n A S_0, so a round is one product of L N N
instead of two of L N D. G is computed once for each image. The other form is `plan_jax.alignment.feature`.
"""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plan_jax.alignment.attention import Pulled, dot
from plan_jax.alignment.reference import inverse_root
from plan_jax.config import AlignmentConfig


class Region(NamedTuple):
    """What is known of the soft regions: <r_l, u_n>, <r_l, w_l> and |r_l|^2."""

    product: Float[Array, "L N"]
    fit: Float[Array, " L"]
    square: Float[Array, " L"]


class GramGradient(NamedTuple):
    """Sums of the cotangents of S_0, of the words' squared lengths and of G over the uses of a form."""

    initial: Float[Array, "L N"]
    length: Float[Array, " L"]
    gram: Float[Array, "N N"]


class GramResult(NamedTuple):
    """Cotangents of the words, of the image, and of its G."""

    word: Float[Array, "L D"]
    patch: Float[Array, "N D"]
    gram: Float[Array, "N N"]


class Gram(NamedTuple):
    """The words and the image of a tile, their S_0, and the image's G."""

    word: Float[Array, "L D"]
    patch: Float[Array, "N D"]
    gram: Float[Array, "N N"]
    initial: Float[Array, "L N"]

    def region(self, attention: Float[Array, "L N"]) -> Region:
        """Of each word."""
        product = dot(attention, self.gram, "10")  # P [L N]
        fit = jnp.sum(attention * self.initial, axis=1)
        return Region(product, fit, jnp.sum(attention * product, axis=1))

    def refined(self, similarity: Float[Array, "L N"], region: Region, config: AlignmentConfig) -> Float[Array, "L N"]:
        """S_{k+1}."""
        rate = _rate(region.fit, region.square, self._length(), config=config)  # [L]
        updated = self.initial + config.evidence * region.product  # |w + gamma r| <q, u_n> [L N]
        return config.history * similarity + rate[:, None] * updated

    def score(self, region: Region, config: AlignmentConfig) -> Float[Array, " L"]:
        """<r_l / |r_l|, w_l>, or <r_l, w_l>."""
        return _score(region.fit, region.square, config)

    def pull_score(
        self, of_score: Float[Array, " L"], attention: Float[Array, "L N"], region: Region, config: AlignmentConfig
    ) -> Pulled:
        """Through the scores and the region."""
        _, pull = jax.vjp(lambda fit, square: _score(fit, square, config), region.fit, region.square)
        of_fit, of_square = pull(of_score)
        of_initial = of_fit[:, None] * attention
        if not config.region_norm:  # the regions' lengths, and with them G, take no part
            unused = GramGradient(of_initial, jnp.zeros_like(of_fit), jnp.zeros(self.gram.shape, jnp.float32))
            return Pulled(of_fit[:, None] * self.initial, of_fit * region.fit, unused)
        of_gram = dot(attention, self._cast(of_square[:, None] * attention), "00")  # [N N]
        of_attention = of_fit[:, None] * self.initial + 2 * of_square[:, None] * region.product
        mean = of_fit * region.fit + 2 * of_square * region.square
        return Pulled(of_attention, mean, GramGradient(of_initial, jnp.zeros_like(of_fit), of_gram))

    def pull_refined(
        self, of_refined: Float[Array, "L N"], attention: Float[Array, "L N"], region: Region, config: AlignmentConfig
    ) -> Pulled:
        """Through a round and its region, but not through the history."""
        rate_of = functools.partial(_rate, config=config)
        rate, pull = jax.vjp(rate_of, region.fit, region.square, self._length())
        along = jnp.sum(of_refined * region.product, axis=1)  # also sum_n A (dS' G) [L]
        of_rate = jnp.sum(of_refined * self.initial, axis=1) + config.evidence * along
        of_fit, of_square, of_length = pull(of_rate)
        scale = rate * config.evidence  # P's cotangent is scale * dS'
        of_gram = dot(attention, scale[:, None] * of_refined + of_square[:, None] * attention, "00")  # [N N]
        of_attention = (
            of_fit[:, None] * self.initial
            + 2 * of_square[:, None] * region.product
            + scale[:, None] * dot(of_refined, self.gram, "10")  # [L N]
        )
        mean = of_fit * region.fit + 2 * of_square * region.square + scale * along
        of_initial = rate[:, None] * of_refined + of_fit[:, None] * attention
        return Pulled(of_attention, mean, GramGradient(of_initial, of_length, of_gram))

    def pull_initial(self, of_initial: Float[Array, "L N"], gradient: GramGradient) -> GramResult:
        """Through S_0 and the words' lengths, added to what has been found before."""
        total = gradient.initial + of_initial
        of_word = dot(total, self.patch, "10") + 2 * gradient.length[:, None] * self.word.astype(jnp.float32)  # [L D]
        return GramResult(of_word, dot(total, self.word, "00"), gradient.gram)  # [N D]

    def _length(self) -> Float[Array, " L"]:
        word = self.word.astype(jnp.float32)
        return jnp.sum(word * word, axis=1)

    def _cast(self, x: Array) -> Array:
        return x.astype(self.gram.dtype)


def gram_of(patch: Float[Array, "N D"]) -> Float[Array, "N N"]:
    """G of an image, in the dtype of its features."""
    return dot(patch, patch, "11").astype(patch.dtype)


def pull_gram(of_gram: Float[Array, "N N"], patch: Float[Array, "N D"]) -> Float[Array, "N D"]:
    """Cotangent of the image's features through its G."""
    return dot((of_gram + of_gram.T).astype(patch.dtype), patch, "10")


def _rate(fit: Array, square: Array, length: Array, *, config: AlignmentConfig) -> Float[Array, " L"]:
    """(1 - rho) / |w + gamma r|."""
    gamma = config.evidence
    return (1 - config.history) * inverse_root(length + 2 * gamma * fit + gamma**2 * square)


def _score(fit: Array, square: Array, config: AlignmentConfig) -> Float[Array, " L"]:
    return fit * inverse_root(square) if config.region_norm else fit
