"""One step of pretraining, a pure function."""

import dataclasses
import functools

import jax
import optax
from jaxtyping import Array

from plan_jax.alignment.sharpness import sharpness
from plan_jax.augment import augment
from plan_jax.config import Config, at_step
from plan_jax.model import PlanModel
from plan_jax.train.gradients import Found, gradients_of
from plan_jax.train.norms import block_norms
from plan_jax.train.placement import kept_in_place
from plan_jax.train.rules import parameter_factors, where_learned
from plan_jax.train.skip import all_finite, judge, where_taken
from plan_jax.train.state import TrainState, make_optimizer
from plan_jax.types import Batch

WATCHED = 4  # pairs of the batch whose alignment is looked at


@functools.partial(jax.jit, static_argnames=("model", "optimizer", "config"), donate_argnames="state")
def train_step(
    state: TrainState, batch: Batch, *, model: PlanModel, optimizer: optax.GradientTransformation, config: Config
) -> tuple[TrainState, dict[str, Array]]:
    """The next state, and of the step the loss and its parts, the norms of the gradient (before clipping) and of the
    parameters, also block by block, and how decided the first pairs' alignment is (`alignment.sharpness`).

    The model sees a random view of the images (`augment`). The state's buffers are donated. The views and dropout are
    drawn from the seed and the step alone. Parameters that `config.optim.rules` freezes have no gradient, also none in
    its norm, and keep every bit. A step that `plan_jax.train.skip` leaves out changes nothing but the step's number and
    the record of the losses: "skipped" counts those of the run, "skipped_in_a_row" those up to this step.
    """
    seen = dataclasses.replace(batch, image=augment(batch.image, state.step, config=config))
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    found = gradients_of(state.params, state.batch_stats, seen, key, model=model, config=config)
    after, norms = apply_gradients(state, found, optimizer=optimizer, config=config)
    metrics = found.metrics | norms
    images, texts = jax.tree.map(lambda rows: rows[:WATCHED], found.features)
    metrics |= sharpness(images.patch, texts.word, texts.word_logit, texts.mask, config=config.alignment)
    return after, metrics


def apply_gradients(
    state: TrainState, found: Found, *, optimizer: optax.GradientTransformation, config: Config
) -> tuple[TrainState, dict[str, Array]]:
    """The state after a step whose gradient is found, and the metrics of `train_step` that come of it."""
    rates = parameter_factors(state.params, rules=config.optim.rules).learning_rate
    updates, opt_state = optimizer.update(found.gradients, state.opt_state, state.params)
    params = where_learned(rates, optax.apply_updates(state.params, updates), state.params)
    norm = optax.tree.norm(found.gradients)
    # Not by the new parameters: until all of them were known, the old ones would have to be kept beside them.
    finite = all_finite((norm, found.batch_stats))
    taken, losses = judge(state.losses, found.metrics["loss"], finite, config=config.train)
    before = state.params, state.batch_stats, state.opt_state
    after = where_taken(taken, (params, found.batch_stats, opt_state), before)
    params, _, _ = after
    norms = {"gradient_norm": norm, "parameter_norm": optax.tree.norm(params)}
    metrics = norms | {"skipped": losses.skipped, "skipped_in_a_row": losses.in_a_row}
    metrics |= block_norms(found.gradients, "gradient_norm") | block_norms(params, "parameter_norm")
    return kept_in_place(TrainState(state.step + 1, *after, losses=losses)), metrics


class Steps:
    """The steps of a run on the mesh in force, compiled for each of the few configurations that `at_step` gives."""

    def __init__(self, config: Config):
        self._config, self._model, self._optimizer = config, PlanModel(config), make_optimizer(config)
        self._compiled: dict[Config, jax.stages.Compiled] = {}

    def __call__(self, state: TrainState, batch: Batch, step: int) -> tuple[TrainState, dict[str, Array]]:
        """`train_step` of the step that follows `step` finished ones."""
        return self.program(state, batch, step)(state, batch)

    def program(self, state: TrainState, batch: Batch, step: int) -> jax.stages.Compiled:
        """The program of that step."""
        config = at_step(self._config, step)
        if config not in self._compiled:
            lowered = train_step.lower(state, batch, model=self._model, optimizer=self._optimizer, config=config)
            self._compiled[config] = lowered.compile()
        return self._compiled[config]
