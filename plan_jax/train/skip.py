"""Steps that would do harm are left out: loss, gradient or batch statistics are not finite, or the loss is a spike."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct
from jaxtyping import Array, Bool, Float, Int

from plan_jax.config import TrainConfig

RECENT = 100  # steps over which mean and variance look back
FIRST = 50  # steps before spikes are looked for


@struct.dataclass
class LossRecord:
    """What is remembered of the losses, part of a checkpoint.

    Attributes:
        mean, variance: of recent finite losses, spikes included, so that a lasting change is no spike for long.
        seen: finite losses so far.
        skipped: steps left out so far.
        in_a_row: of these, those since the last step that was taken.
    """

    mean: Float[Array, ""]
    variance: Float[Array, ""]
    seen: Int[Array, ""]
    skipped: Int[Array, ""]
    in_a_row: Int[Array, ""]


def no_losses() -> LossRecord:
    """Before the first step."""
    numbers, counts = [jnp.zeros(()) for _ in range(2)], [jnp.zeros((), jnp.int32) for _ in range(3)]
    return LossRecord(*numbers, *counts)  # five arrays and not two: a step is given the memory of each


def judge(
    record: LossRecord, loss: Float[Array, ""], finite: Bool[Array, ""], *, config: TrainConfig
) -> tuple[Bool[Array, ""], LossRecord]:
    """Whether a step is taken, and the record after it.

    Args:
        record: before the step.
        loss: of the step.
        finite: whether the step's other numbers are.
        config: `spike` is used.
    """
    limit = record.mean + config.spike * jnp.sqrt(record.variance)
    spike = (record.seen >= FIRST) & (loss > limit) if config.spike else jnp.zeros((), bool)
    known = jnp.isfinite(loss)
    taken = known & finite & ~spike
    rate = jnp.maximum(1 / (record.seen + 1), 1 / RECENT)
    off = jnp.where(known, loss - record.mean, 0.0)
    left_out = (~taken).astype(jnp.int32)
    return taken, LossRecord(
        mean=record.mean + rate * off,
        variance=jnp.where(known, (1 - rate) * (record.variance + rate * off**2), record.variance),
        seen=record.seen + known.astype(jnp.int32),
        skipped=record.skipped + left_out,
        in_a_row=(record.in_a_row + 1) * left_out,
    )


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Whether every number of a tree is finite."""
    return jnp.stack([jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)]).all()


def where_taken(taken: Bool[Array, ""], new, old):
    """The tree `new` of a step that is taken, else `old`, bit for bit."""
    return jax.tree.map(lambda one, other: jnp.where(taken, one, other), new, old)
