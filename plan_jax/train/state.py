"""What training changes from step to step, and the optimizer that changes it."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct
from jaxtyping import Array, Int

from plan_jax.config import Config
from plan_jax.model import initial_variables


@struct.dataclass
class TrainState:
    """Everything a checkpoint must hold to continue bit for bit, besides the position in the data."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW with warmup, cosine decay, clipping by global norm, and no decay on biases, norms and embeddings."""
    optim = config.optim
    return optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        optax.adamw(
            learning_rate(config), b1=optim.beta1, b2=optim.beta2, weight_decay=optim.weight_decay, mask=decay_mask
        ),
    )


def learning_rate(config: Config) -> optax.Schedule:
    """Linear from 0 to the peak over the warmup, then a cosine to 0 at the last step."""
    warmup = min(config.optim.warmup_steps, config.train.steps // 2)
    return optax.warmup_cosine_decay_schedule(
        0.0, config.optim.learning_rate, warmup_steps=warmup, decay_steps=max(config.train.steps, 1)
    )


def decay_mask(params: Any) -> Any:
    """True on the matrices and convolution kernels, which alone are decayed."""
    return jax.tree_util.tree_map_with_path(lambda path, _: getattr(path[-1], "key", None) == "kernel", params)


def create_state(config: Config) -> TrainState:
    """The state before the first step, drawn from the run's seed."""
    variables = initial_variables(config, config.seed)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(make_optimizer(config).init)(params),
    )
