"""The text encoder: BERT, with its layers as one scan over stacked parameters.

Source: Devlin et al., *BERT* (arXiv 1810.04805) as written in the reference implementation. Every parameter under
`layers` has a leading axis of length `config.layers`; names map one to one: attention.self.query ->
layers/attention/query, attention.output.dense -> layers/attention/output, attention.output.LayerNorm ->
layers/attention_norm, intermediate.dense -> layers/intermediate, output.dense -> layers/output, output.LayerNorm ->
layers/output_norm.
"""

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from plan_jax.config import TextEncoderConfig
from plan_jax.encoders.remat import rematerialised
from plan_jax.errors import InputError

TOKEN_TYPES = 2  # rows of the reference's table; only row 0 is used, a report is one segment
_INIT = nn.initializers.normal(0.02)


def _dense(config: TextEncoderConfig, features: int, *, name: str) -> nn.Dense:
    return nn.Dense(features, dtype=config.dtype, kernel_init=_INIT, name=name)


def _norm(config: TextEncoderConfig, *, name: str) -> nn.LayerNorm:
    # Two passes for the variance: with epsilon 1e-12, E[x^2] - E[x]^2 would amplify its rounding error.
    return nn.LayerNorm(epsilon=1e-12, dtype=config.dtype, use_fast_variance=False, name=name)


class SelfAttention(nn.Module):
    """Multi-head attention of each token (middle axis of `visible`) to those it may see (last axis)."""

    config: TextEncoderConfig

    @nn.compact
    def __call__(
        self, x: Float[Array, "B T E"], visible: Bool[Array, "B #T T"], *, train: bool
    ) -> Float[Array, "B T E"]:
        c = self.config
        # Letters of the contractions: a heads, c channels of a head, s the token attended to.
        heads = (*x.shape[:2], c.heads, c.hidden // c.heads)
        query, key, value = (_dense(c, c.hidden, name=name)(x).reshape(heads) for name in ("query", "key", "value"))
        logits = jnp.einsum("btac,bsac->bats", query, key, preferred_element_type=jnp.float32)  # [B a T T]
        logits = logits / heads[-1] ** 0.5
        # Replaced and not added to, so that a report of padding only stays finite: its softmax is uniform.
        logits = jnp.where(visible[:, None], logits, jnp.finfo(jnp.float32).min)
        attention = jax.nn.softmax(logits, axis=-1).astype(c.dtype)
        attention = nn.Dropout(c.dropout)(attention, deterministic=not train)
        mixed = jnp.einsum("bats,bsac->btac", attention, value)  # [B T a c]
        return _dense(c, c.hidden, name="output")(mixed.reshape(x.shape))


class Layer(nn.Module):
    """One post-norm transformer layer, in the form nn.scan wants: it carries (hidden state, sum of kept states)."""

    config: TextEncoderConfig
    train: bool

    @nn.compact
    def __call__(self, carry, visible: Bool[Array, "B #T T"], keep: Bool[Array, ""]):
        c = self.config
        x, total = carry
        y = SelfAttention(c, name="attention")(x, visible, train=self.train)
        y = nn.Dropout(c.dropout)(y, deterministic=not self.train)
        x = _norm(c, name="attention_norm")(x + y)
        y = nn.gelu(_dense(c, c.intermediate, name="intermediate")(x), approximate=False)
        y = nn.Dropout(c.dropout)(_dense(c, c.hidden, name="output")(y), deterministic=not self.train)
        x = _norm(c, name="output_norm")(x + y)
        return (x, total + jnp.where(keep, x, 0)), None


class Bert(nn.Module):
    """BERT without its pooler. Parameters and softmax are float32, the rest has `config.dtype`."""

    config: TextEncoderConfig

    @nn.compact
    def __call__(
        self,
        token_ids: Int[Array, "B T"],
        token_mask: Bool[Array, "B T"],
        sentence_ids: Int[Array, "B T"] | None = None,
        *,
        train: bool,
    ) -> Float[Array, "B T E"]:
        """The sum of the last `config.last_layers` hidden states.

        With config.context "sentence" a token attends to its own sentence only, so that a word means the same in a
        report, beside other findings, and alone in a phrase; sentence_ids are read then.

        What padding holds changes no real token; what comes out at padding is finite and has no meaning. With
        train=True and dropout, apply needs an rng named "dropout". A token id outside the vocabulary gives NaN.

        Raises:
            InputError: the report is longer than the positions, or the config's sizes do not fit together.
        """
        c = self.config
        _check(c, token_ids.shape[1])
        x = nn.Embed(c.vocab_size, c.hidden, embedding_init=_INIT, name="word")(token_ids)
        positions = jnp.arange(token_ids.shape[1])[None]
        x = x + nn.Embed(c.max_positions, c.hidden, embedding_init=_INIT, name="position")(positions)
        token_type = jnp.zeros((1, 1), token_ids.dtype)
        x = x + nn.Embed(TOKEN_TYPES, c.hidden, embedding_init=_INIT, name="token_type")(token_type)
        x = nn.Dropout(c.dropout)(_norm(c, name="embedding_norm")(x), deterministic=not train)
        layers = nn.scan(
            # A scan keeps its steps apart anyway: without prevent_cse the compiler may fuse freely inside one.
            rematerialised(Layer, c.remat, prevent_cse=False),
            variable_axes={"params": 0},
            split_rngs={"params": True, "dropout": True},
            in_axes=(nn.broadcast, 0),  # pyright: ignore[reportArgumentType]
            length=c.layers,
        )
        keep = jnp.arange(c.layers) >= c.layers - c.last_layers
        visible = token_mask[:, None, :]
        if c.context == "sentence":
            if sentence_ids is None:
                raise InputError('text_encoder.context "sentence" must come with sentence_ids, got none; pass them')
            visible = visible & (sentence_ids[:, :, None] == sentence_ids[:, None, :])
        (_, total), _ = layers(c, train, name="layers")((x, jnp.zeros_like(x)), visible, keep)
        return total


def _check(config: TextEncoderConfig, tokens: int) -> None:
    if tokens > config.max_positions:
        raise InputError(
            f"token_ids must have at most text_encoder.max_positions = {config.max_positions} tokens, "
            f"got {tokens}; lower data.max_tokens"
        )
    if config.hidden % config.heads:
        raise InputError(
            f"text_encoder.hidden must be a multiple of text_encoder.heads, "
            f"got {config.hidden} and {config.heads}; change one of them"
        )
    if not 1 <= config.last_layers <= config.layers:
        raise InputError(
            f"text_encoder.last_layers must be from 1 to text_encoder.layers = {config.layers}, "
            f"got {config.last_layers}; lower last_layers"
        )
