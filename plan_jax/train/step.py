"""One step of pretraining, a pure function."""

import dataclasses
import functools

import jax
import optax
from jaxtyping import Array

from plan_jax.augment import augment
from plan_jax.config import Config
from plan_jax.losses import plan_loss
from plan_jax.model import PlanModel
from plan_jax.train.rules import parameter_factors, where_learned
from plan_jax.train.state import TrainState
from plan_jax.types import Batch


@functools.partial(jax.jit, static_argnames=("model", "optimizer", "config"), donate_argnames="state")
def train_step(
    state: TrainState, batch: Batch, *, model: PlanModel, optimizer: optax.GradientTransformation, config: Config
) -> tuple[TrainState, dict[str, Array]]:
    """The next state, and the step's loss, its parts, and the norms of the gradient (before clipping) and parameters.

    The model sees a random view of the images (`augment`). The state's buffers are donated. The views and dropout are
    drawn from the seed and the step alone. Parameters that
    `config.optim.rules` freezes have no gradient, also none in its norm, and keep every bit.
    """
    rates = parameter_factors(state.params, rules=config.optim.rules).learning_rate
    seen = dataclasses.replace(batch, image=augment(batch.image, state.step, config=config))

    def loss_of(params):
        features, updated = model.apply(
            {"params": where_learned(rates, params, jax.lax.stop_gradient(params)), "batch_stats": state.batch_stats},
            seen,
            train=True,
            rngs={"dropout": jax.random.fold_in(jax.random.key(config.seed), state.step)},
            mutable=["batch_stats"],
        )
        loss, metrics = plan_loss(*features, config=config)
        return loss, (metrics, updated.get("batch_stats", {}))

    gradients, (metrics, batch_stats) = jax.grad(loss_of, has_aux=True)(state.params)
    updates, opt_state = optimizer.update(gradients, state.opt_state, state.params)
    params = where_learned(rates, optax.apply_updates(state.params, updates), state.params)
    norms = {"gradient_norm": optax.tree.norm(gradients), "parameter_norm": optax.tree.norm(params)}
    return TrainState(state.step + 1, params, batch_stats, opt_state), {**metrics, **norms}
