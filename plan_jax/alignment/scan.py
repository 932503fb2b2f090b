"""All pairs of a batch, padding left out, with the memory of one image against the words of a few reports.

Images are the outer loop, chunks of whole reports (`plan_jax.alignment.packing`) the inner one: each step is one tile,
a few 2-D matrix products. The backward pass loops in the same way and computes each tile anew: all that is kept for it
is the inputs, and nothing of size I*R*L*N is ever held. Values and gradients are those of
`plan_jax.alignment.reference`.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from plan_jax.alignment.attention import Words
from plan_jax.alignment.cost import gram_is_cheaper
from plan_jax.alignment.gram import gram_of, pull_gram
from plan_jax.alignment.packing import Chunk, Packing, chunk_of, chunk_words, gather, pack, scatter
from plan_jax.alignment.tile import Gradient, Image, pull_scores, scores
from plan_jax.config import AlignmentConfig

Carry = Any  # a pytree


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def all_pairs(
    config: AlignmentConfig,
    patch: Float[Array, "I N D"],
    word: Float[Array, "R L D"],
    word_logit: Float[Array, "R L"],
    mask: Bool[Array, "R L"],
) -> Float[Array, "I R"]:
    """Local similarity z of every image with every report."""
    batch = _Batch.of(config, patch, word, word_logit, mask)

    def of_image(one: Array) -> Array:
        image = batch.image(one)

        def of_chunk(z: Array, chunk: Chunk) -> Array:
            return _add(z, scores(batch.words(chunk), image, config=config), chunk.column)

        return batch.over_chunks(of_chunk, jnp.zeros(len(mask), jnp.float32))

    return jax.lax.map(of_image, patch.astype(config.dtype))


def _forward(config: AlignmentConfig, *inputs: Array) -> tuple[Array, tuple[Array, ...]]:
    return all_pairs(config, *inputs), inputs


def _backward(config: AlignmentConfig, inputs: tuple[Array, ...], cotangent: Array) -> tuple[Array | None, ...]:
    patch, word, word_logit, mask = inputs
    batch = _Batch.of(config, *inputs)

    def of_image(total: tuple[Array, Array], one: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
        image, of_scores = batch.image(one[0]), one[1]

        def of_chunk(total: Gradient, chunk: Chunk) -> Gradient:
            columns = jax.lax.dynamic_slice_in_dim(of_scores, chunk.column, chunk.member.shape[1])
            part = pull_scores(batch.words(chunk), image, columns, config=config)
            of_word = _add(total.word, part.word, chunk.start)
            of_logit = _add(total.word_logit, part.word_logit, chunk.start)
            of_patch, of_gram = jax.tree.map(jnp.add, (total.patch, total.gram), (part.patch, part.gram))
            return Gradient(of_word, of_logit, of_patch, of_gram)

        zero = jax.tree.map(lambda x: jnp.zeros(x.shape, jnp.float32), image)
        found = batch.over_chunks(of_chunk, Gradient(*total, zero.patch, zero.gram))
        of_patch = found.patch if found.gram is None else found.patch + pull_gram(found.gram, image.patch)
        return (found.word, found.word_logit), of_patch.astype(patch.dtype)

    zero = jnp.zeros(batch.word.shape, jnp.float32), jnp.zeros(batch.word_logit.shape, jnp.float32)
    (of_word, of_logit), of_patch = jax.lax.scan(of_image, zero, (patch.astype(config.dtype), cotangent))
    of_word, of_logit = scatter(of_word, batch.packing, word.shape), scatter(of_logit, batch.packing, mask.shape)
    return of_patch, of_word.astype(word.dtype), of_logit.astype(word_logit.dtype), None


all_pairs.defvjp(_forward, _backward)


class _Batch(NamedTuple):
    """The reports as a list of words and how to walk over it; `gram`: whether tiles take the Gram form."""

    packing: Packing
    word: Float[Array, "P D"]
    word_logit: Float[Array, " P"]
    rows: int
    gram: bool

    @classmethod
    def of(cls, config: AlignmentConfig, patch: Array, word: Array, word_logit: Array, mask: Array) -> "_Batch":
        packing = pack(mask)
        listed = gather(word, packing).astype(config.dtype), gather(word_logit, packing).astype(jnp.float32)
        gram = gram_is_cheaper(mask.size, *patch.shape[1:], config=config)
        return cls(packing, *listed, chunk_words(mask.shape), gram)

    def image(self, patch: Float[Array, "N D"]) -> Image:
        return Image(patch, gram_of(patch) if self.gram else None)

    def words(self, chunk: Chunk) -> Words:
        word, logit = (
            jax.lax.dynamic_slice_in_dim(listed, chunk.start, self.rows) for listed in (self.word, self.word_logit)
        )
        return Words(word, logit, chunk.member)

    def over_chunks(self, step: Callable[[Carry, Chunk], Carry], start: Carry) -> Carry:
        """`step` of each chunk in turn, as many as the lengths of the reports need."""
        packing = self.packing

        def body(state: tuple[Array, Carry]) -> tuple[Array, Carry]:
            begin, carry = state
            return packing.following[begin], step(carry, chunk_of(packing, begin, words=self.rows))

        return jax.lax.while_loop(lambda state: state[0] < len(packing.first), body, (jnp.int32(0), start))[1]


def _add(total: Float[Array, "n *D"], part: Float[Array, "m *D"], start: Int[Array, ""]) -> Float[Array, "n *D"]:
    """`part` added to the rows of `total` from `start` on."""
    old = jax.lax.dynamic_slice_in_dim(total, start, len(part))
    return jax.lax.dynamic_update_slice_in_dim(total, old + part, start, axis=0)
