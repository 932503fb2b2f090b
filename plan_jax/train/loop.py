"""The training loop: data in, steps, metrics and checkpoints out; stops and continues anywhere."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from plan_jax.checkpoint import Checkpoints, saved_steps
from plan_jax.config import Config, at_step
from plan_jax.data.mixture import Mixture, open_training
from plan_jax.data.pipeline import TrainBatches
from plan_jax.data.records import Split
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError
from plan_jax.model import PlanModel
from plan_jax.train.guard import FiniteGuard, SpeedMeter, StopSignals
from plan_jax.train.log import MetricsLog
from plan_jax.train.prefetch import Prefetch
from plan_jax.train.state import TrainState, create_state, learning_rate, make_optimizer
from plan_jax.train.step import train_step
from plan_jax.train.workdir import TOKENIZER, prepare_workdir, record_origins
from plan_jax.weights.pretrained import starting_tokenizer, starting_variables


def fit(config: Config, workdir: Path) -> TrainState:
    """Trains until `config.train.steps`, from the newest checkpoint of `workdir` if there is one.

    Ctrl-C and SIGTERM save a checkpoint and return early. The position in the data, the state and the random numbers
    continue exactly: a run in pieces has the losses and the parameters of a run in one go.

    Args:
        config: the run's configuration; written to `workdir/config.json`.
        workdir: the run directory, made if needed.

    Raises:
        InputError: the data folder is unusable, or `workdir` belongs to a run with another configuration.
        NonFiniteLoss: the loss became NaN or infinite.
    """
    if not config.data.dir:
        raise InputError("config.data.dir must be a folder that build wrote, got none; add --config.data.dir=DIR")
    data_dir = Path(config.data.dir).resolve()  # a run is used from any current directory
    mixture = tuple((str(Path(folder).resolve()), weight) for folder, weight in config.data.mixture)
    data = dataclasses.replace(config.data, dir=str(data_dir), mixture=mixture)
    split = open_training(data)
    tokenizer = _tokenizer(config, data_dir, workdir)
    text_encoder = dataclasses.replace(config.text_encoder, vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config, data=data, text_encoder=text_encoder)
    batches = TrainBatches(split, tokenizer, config.data, seed=config.seed)
    prepare_workdir(workdir, config, data_dir, tokenizer)

    checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints)
    try:
        if checkpoints.latest is None:
            state = _begin(config, workdir)
        else:
            state, position = _restore(checkpoints, create_state(config))
            batches.seek(position)
        if int(state.step) < config.train.steps:
            ahead = Prefetch(batches, ahead=config.data.prefetch)
            state = _run(state, ahead, split, checkpoints, config=config, workdir=workdir)
    finally:
        batches.close()
        checkpoints.close()
    return state


def _tokenizer(config: Config, data_dir: Path, workdir: Path) -> Tokenizer:
    """The run's own once it has begun, that of the text encoder's published weights, or that of `data.dir`."""
    if config.text_encoder.weights and saved_steps(workdir):
        return Tokenizer.load(workdir / TOKENIZER)
    return starting_tokenizer(config) or Tokenizer.load(data_dir / TOKENIZER)


def _begin(config: Config, workdir: Path) -> TrainState:
    """The state before the first step; what of it is not random is shown and written to RUN/weights.json."""
    variables, origins = starting_variables(config)
    for origin in origins:
        tqdm.write(str(origin), file=sys.stderr)
    record_origins(workdir, origins)
    return dataclasses.replace(create_state(config), **variables)


def _run(
    state: TrainState,
    batches: Prefetch,
    split: Split | Mixture,
    checkpoints: Checkpoints,
    *,
    config: Config,
    workdir: Path,
) -> TrainState:
    """Steps until the end or a stop signal, and saves where it stands."""
    step, saved = int(state.step), checkpoints.latest
    model, optimizer = PlanModel(config), make_optimizer(config)
    guard, meter = FiniteGuard(split, checkpoints), SpeedMeter(step, config.data.batch_size)
    with MetricsLog(workdir, step=step) as log, StopSignals() as stop, _progress(step, config) as progress:
        while step < config.train.steps and not stop.requested:
            batch = next(batches)
            state, metrics = train_step(state, batch, model=model, optimizer=optimizer, config=at_step(config, step))
            step += 1
            guard.watch(step, metrics, batch)
            progress.update()
            if step % config.train.log_every == 0 or step == config.train.steps:
                guard.check()
                values = {name: float(value) for name, value in metrics.items()}
                values |= {
                    "learning_rate": float(jax.numpy.asarray(learning_rate(config)(step - 1))),
                    "words_cut": float(np.mean(np.asarray(batch.words_cut))),  # per report, of this step's batch
                    **meter.read(step),
                }
                log.write(step, values)
                shown = f"loss {values['loss']:.3f}, {values['images_per_second']:.0f} images/s"
                progress.set_postfix_str(shown, refresh=False)
            if step % config.train.checkpoint_every == 0:
                guard.check()
                saved = step if _save(checkpoints, step, state, batches) else saved
        guard.check()
        if saved != step:
            _save(checkpoints, step, state, batches, last=True)
    return state


def _save(checkpoints: Checkpoints, step: int, state: TrainState, batches: Prefetch, *, last: bool = False) -> bool:
    return checkpoints.save(step, {**_parts(state), "data": batches.state}, last=last)


def _restore(checkpoints: Checkpoints, state: TrainState) -> tuple[TrainState, int]:
    """The newest whole state, placed like a fresh one, and the position in the data."""
    found = checkpoints.restore_newest({**jax.tree.map(_abstract, _parts(state)), "data": None})
    assert found, "there is a checkpoint"
    _, loaded = found
    variables, optimizer = loaded["variables"], loaded["optimizer"]
    return TrainState(**variables, **optimizer), int(loaded["data"]["position"])


def _parts(state: TrainState) -> dict[str, Any]:
    return {
        "variables": {"params": state.params, "batch_stats": state.batch_stats},
        "optimizer": {"step": state.step, "opt_state": state.opt_state},
    }


def _abstract(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding)


def _progress(step: int, config: Config) -> tqdm:
    """A bar with steps, loss, images/s and time left; slow to redraw where it is written to a file."""
    every = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=config.train.steps, initial=step, desc="train", unit="step", mininterval=every, dynamic_ncols=True
    )
