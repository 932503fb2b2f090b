"""What training changes from step to step, and the optimizer that changes it."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import struct
from jaxtyping import Array, Int

from plan_jax.config import Config, OptimConfig
from plan_jax.config_checks import Rule
from plan_jax.model import initial_variables
from plan_jax.train.rules import parameter_factors
from plan_jax.train.skip import no_losses


@struct.dataclass
class TrainState:
    """Everything a checkpoint must hold to continue bit for bit, besides the position in the data."""

    step: Int[Array, ""]
    params: Any
    batch_stats: Any
    opt_state: Any
    losses: Any = None  # `LossRecord`; a detector keeps none


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """AdamW with warmup, cosine decay and clipping by global norm, and per parameter what `config.optim.rules` says.

    The update of a parameter p is -learning_rate(step) * rate * (adam + weight_decay * decay * p), with its factors
    `rate` and `decay`. A frozen parameter has an update of zeros and no moments.

    Raises:
        InputError: from `init` and `update`, as `parameter_factors`.
    """
    optim = config.optim
    return optax.chain(
        optax.clip_by_global_norm(optim.clip_norm),
        # The parts of optax.adamw with a mask, though this one masks nothing: their names stand in checkpoints.
        optax.chain(
            _without_frozen(optax.scale_by_adam(b1=optim.beta1, b2=optim.beta2), optim.rules),
            optax.masked(optax.stateless(functools.partial(_decayed_and_scaled, optim)), True),
            optax.scale_by_learning_rate(learning_rate(config)),
        ),
    )


def _without_frozen(inner: optax.GradientTransformation, rules: tuple[Rule, ...]) -> optax.GradientTransformation:
    """`inner` with None, of which it keeps no state, in the place of every parameter that is frozen as a whole."""

    def learned(tree: Any) -> Any:
        rates = parameter_factors(tree, rules=rules).learning_rate
        return jax.tree.map(lambda rate, leaf: leaf if np.any(rate) else None, rates, tree)

    return optax.GradientTransformation(
        lambda params: inner.init(learned(params)),
        lambda updates, state, params=None: inner.update(learned(updates), state),
    )


def _decayed_and_scaled(optim: OptimConfig, updates: Any, params: Any) -> Any:
    """rate * (update + weight_decay * decay * p); zeros for None. Factors that change nothing add no operation."""

    def one(rate: Any, decay: Any, update: Any, param: Any) -> Any:
        if update is None:
            return jnp.zeros_like(param)
        if np.any(optim.weight_decay * decay):
            update = update + optim.weight_decay * decay * param
        return update if np.all(rate == 1) else rate * update

    return jax.tree.map(one, *parameter_factors(params, rules=optim.rules), updates, params)


def learning_rate(config: Config) -> optax.Schedule:
    """Linear from 0 to the peak over the warmup, then a cosine to 0 at the last step."""
    warmup = min(config.optim.warmup_steps, config.train.steps // 2)
    return optax.warmup_cosine_decay_schedule(
        0.0, config.optim.learning_rate, warmup_steps=warmup, decay_steps=max(config.train.steps, 1)
    )


def create_state(config: Config) -> TrainState:
    """The state before the first step, drawn from the run's seed."""
    variables = initial_variables(config, config.seed)
    params = variables["params"]
    return TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables.get("batch_stats", {}),
        opt_state=jax.jit(make_optimizer(config).init)(params),
        losses=no_losses(),
    )
