"""A tile in feature form: regions and updated words are vectors of D numbers.

A form says what a soft region is, how a round uses it and how it is scored, each with its derivative. The other one is
`plan_jax.alignment.gram`; `plan_jax.alignment.cost` says which of them needs fewer operations.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plan_jax.alignment.attention import Pulled, dot
from plan_jax.alignment.reference import normalize
from plan_jax.config import AlignmentConfig


class FeatureGradient(NamedTuple):
    """Sums of the cotangents of the words and of the image over the uses of a form."""

    word: Float[Array, "L D"]
    patch: Float[Array, "N D"]
    gram: None = None


class Feature(NamedTuple):
    """The words and the image of a tile."""

    word: Float[Array, "L D"]
    patch: Float[Array, "N D"]

    @property
    def initial(self) -> Float[Array, "L N"]:
        """S_0."""
        return dot(self.word, self.patch, "11")

    def region(self, attention: Float[Array, "L N"]) -> Float[Array, "L D"]:
        """r_l, of each word."""
        return dot(attention, self.patch, "10")

    def refined(
        self, similarity: Float[Array, "L N"], region: Float[Array, "L D"], config: AlignmentConfig
    ) -> Float[Array, "L N"]:
        """S_{k+1}."""
        evidence = _evidence(self.word, region, config)  # q_l [L D]
        return config.history * similarity + (1 - config.history) * dot(evidence, self.patch, "11")  # [L N]

    def score(self, region: Float[Array, "L D"], config: AlignmentConfig) -> Float[Array, " L"]:
        """<r_l / |r_l|, w_l>, or <r_l, w_l>."""
        return _score(self.word, region, config)

    def pull_score(
        self, of_score: Float[Array, " L"], attention: Float[Array, "L N"], region: Array, config: AlignmentConfig
    ) -> Pulled:
        """Through the scores and the region."""
        _, pull = jax.vjp(lambda word, region: _score(word, region, config), *_float(self.word, region))
        of_word, of_region = pull(of_score)
        of_patch = dot(attention, self._cast(of_region), "00")  # [N D]
        return self._through_region(of_region, region, FeatureGradient(of_word, of_patch))

    def pull_refined(
        self, of_refined: Float[Array, "L N"], attention: Float[Array, "L N"], region: Array, config: AlignmentConfig
    ) -> Pulled:
        """Through a round and its region, but not through the history."""
        evidence, pull = jax.vjp(lambda word, region: _evidence(word, region, config), *_float(self.word, region))
        of_updated = (1 - config.history) * of_refined  # [L N]
        of_word, of_region = pull(dot(of_updated, self.patch, "10"))  # [L D]
        of_patch = dot(of_updated, self._cast(evidence), "00") + dot(attention, self._cast(of_region), "00")  # [N D]
        return self._through_region(of_region, region, FeatureGradient(of_word, of_patch))

    def pull_initial(self, of_initial: Float[Array, "L N"], gradient: FeatureGradient) -> FeatureGradient:
        """Through S_0, added to what has been found before."""
        of_word = gradient.word + dot(of_initial, self.patch, "10")  # [L D]
        return FeatureGradient(of_word, gradient.patch + dot(of_initial, self.word, "00"))  # [N D]

    def _through_region(self, of_region: Array, region: Array, gradient: FeatureGradient) -> Pulled:
        of_attention = dot(of_region, self.patch, "11")  # [L N]
        return Pulled(of_attention, jnp.sum(of_region * region, axis=1), gradient)

    def _cast(self, x: Array) -> Array:
        return x.astype(self.patch.dtype)


def _evidence(word: Array, region: Array, config: AlignmentConfig) -> Float[Array, "L D"]:
    return normalize(word.astype(jnp.float32) + config.evidence * region)


def _score(word: Array, region: Array, config: AlignmentConfig) -> Float[Array, " L"]:
    chosen = normalize(region) if config.region_norm else region
    return jnp.einsum("ld,ld->l", chosen, word.astype(jnp.float32))


def _float(*arrays: Array) -> tuple[Array, ...]:
    return tuple(x.astype(jnp.float32) for x in arrays)
