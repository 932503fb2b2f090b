"""One tile of the similarity: one image against the words of some whole reports, and its derivative.

Values are those of `plan_jax.alignment.reference.local_similarity`. The derivative of the refinement is written by
hand: it keeps one attention and one region for each round, of this tile alone, and is a few plain matrix products.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from plan_jax.alignment.attention import Words, attend, importance, pull_attend
from plan_jax.alignment.feature import Feature
from plan_jax.alignment.gram import Gram
from plan_jax.alignment.reference import aggregate
from plan_jax.config import AlignmentConfig


class Image(NamedTuple):
    """Features of an image; with its G = U U^T where the Gram form is wanted, else None."""

    patch: Float[Array, "N D"]
    gram: Float[Array, "N N"] | None


class Gradient(NamedTuple):
    """Cotangents of a tile's inputs."""

    word: Float[Array, "L D"]
    word_logit: Float[Array, " L"]
    patch: Float[Array, "N D"]
    gram: Float[Array, "N N"] | None


class _Round(NamedTuple):
    """What the backward pass wants of S_k."""

    similarity: Float[Array, "L N"]
    attention: Float[Array, "L N"]
    region: Any  # as the form has it


def scores(words: Words, image: Image, *, config: AlignmentConfig) -> Float[Array, " R"]:
    """z of the image and each report."""
    form = _form(words, image)
    _, last = _rounds(form, words, config)
    return _aggregate(form.score(last.region, config), last.similarity, words, config)


def pull_scores(words: Words, image: Image, of_scores: Float[Array, " R"], *, config: AlignmentConfig) -> Gradient:
    """The cotangents of the words and the image: the tile is computed anew, then gone through in reverse."""
    form = _form(words, image)
    rounds, last = _rounds(form, words, config)

    def head(score: Array, similarity: Array, word_logit: Array) -> Array:
        return _aggregate(score, similarity, words._replace(word_logit=word_logit), config)

    _, pull = jax.vjp(head, form.score(last.region, config), last.similarity, words.word_logit)
    of_score, direct, of_logit = pull(of_scores)
    pulled = form.pull_score(of_score, last.attention, last.region, config)
    of_similarity, through_alpha = pull_attend(last.similarity, last.attention, words, pulled, config=config)
    carry = of_similarity + direct, of_logit + through_alpha, pulled.gradient

    def refine(carry: tuple[Array, Array, Any], before: _Round) -> tuple[tuple[Array, Array, Any], None]:
        of_refined, of_logit, gradient = carry
        pulled = form.pull_refined(of_refined, before.attention, before.region, config)
        of_similarity, through_alpha = pull_attend(before.similarity, before.attention, words, pulled, config=config)
        of_similarity = of_similarity + config.history * of_refined
        gradient = jax.tree.map(jnp.add, gradient, pulled.gradient)
        return (of_similarity, of_logit + through_alpha, gradient), None

    (of_initial, of_logit, gradient), _ = jax.lax.scan(refine, carry, rounds, reverse=True, unroll=True)
    found = form.pull_initial(of_initial, gradient)
    return Gradient(found.word, of_logit, found.patch, found.gram)


def _form(words: Words, image: Image) -> Feature | Gram:
    feature = Feature(words.word, image.patch)
    return feature if image.gram is None else Gram(*feature, image.gram, feature.initial)


def _rounds(form: Feature | Gram, words: Words, config: AlignmentConfig) -> tuple[_Round, _Round]:
    """S_0 ... S_{K-1}, stacked, and S_K, each with its attention and regions."""

    def look(similarity: Array) -> _Round:
        attention = attend(similarity, words, config=config)
        return _Round(similarity, attention, form.region(attention))

    def refine(similarity: Array, _: None) -> tuple[Array, _Round]:
        now = look(similarity)
        return form.refined(similarity, now.region, config), now

    last, rounds = jax.lax.scan(refine, form.initial, None, length=config.rounds, unroll=True)
    return rounds, look(last)


def _aggregate(score: Array, similarity: Array, words: Words, config: AlignmentConfig) -> Float[Array, " R"]:
    return aggregate(score, importance(similarity, words, config=config), words.member, config=config)
