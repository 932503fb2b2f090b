"""The training loop: data in, steps, metrics and checkpoints out; stops and continues anywhere."""

import contextlib
import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh
from tqdm import tqdm

from plan_jax.checkpoint import Checkpoints, saved_steps
from plan_jax.config import Config, at_step
from plan_jax.data.mixture import Mixture, open_training
from plan_jax.data.pipeline import TrainBatches
from plan_jax.data.records import Split
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError
from plan_jax.hosts import AnyProcess, is_first, rows_here, wait_for_all
from plan_jax.sharding import check_batch, make_mesh, over_data, placed, rows_by_process
from plan_jax.train.guard import SkipGuard, StopSignals
from plan_jax.train.log import MetricsLog
from plan_jax.train.notice import PreemptionNotice
from plan_jax.train.placement import placement
from plan_jax.train.prefetch import Prefetch
from plan_jax.train.speed import SpeedMeter, flops_of, peak_of
from plan_jax.train.state import TrainState, create_state, learning_rate
from plan_jax.train.step import Steps
from plan_jax.train.trace import Trace
from plan_jax.train.validation import open_validation
from plan_jax.train.watchdog import Watchdog
from plan_jax.train.workdir import TOKENIZER, check_workdir, prepare_workdir, record_origins
from plan_jax.weights.pretrained import starting_tokenizer, starting_variables


def fit(config: Config, workdir: Path, *, profile: range | None = None) -> TrainState:
    """Trains until `config.train.steps`, from the newest checkpoint of `workdir` if there is one.

    Ctrl-C, SIGTERM and the notice that a TPU is preempted save a checkpoint and return early. The position in the data,
    the state and the random numbers continue exactly: a run in pieces has the losses and the parameters of a run in one
    go. Where several processes train (`plan_jax.hosts`), all call this, and all must see `workdir`.

    Args:
        config: the run's configuration; written to `workdir/config.json`.
        workdir: the run directory, made if needed.
        profile: steps, counted from 1, that are recorded into `workdir/profile`.

    Raises:
        InputError: the data folder is unusable, `workdir` belongs to a run with another configuration, or the batch
            cannot be cut among the devices.
        NonFiniteLoss: too many steps in a row were left out, or the parameters outgrew float32.
    """
    if not config.data.dir:
        raise InputError("config.data.dir must be a folder that build wrote, got none; add --config.data.dir=DIR")
    mesh = training_mesh(config)
    data_dir = Path(config.data.dir).resolve()  # a run is used from any current directory
    mixture = tuple((str(Path(folder).resolve()), weight) for folder, weight in config.data.mixture)
    data = dataclasses.replace(config.data, dir=str(data_dir), mixture=mixture)
    split = open_training(data)
    tokenizer = _tokenizer(config, data_dir, workdir)
    text_encoder = dataclasses.replace(config.text_encoder, vocab_size=tokenizer.vocab_size)
    config = dataclasses.replace(config, data=data, text_encoder=text_encoder)
    rows = rows_by_process(mesh, data.batch_size)
    batches = TrainBatches(split, tokenizer, config.data, seed=config.seed, rows=rows)
    check_workdir(workdir, config, data_dir, tokenizer)
    wait_for_all("checked")
    if is_first():
        prepare_workdir(workdir, config, data_dir, tokenizer)
    wait_for_all("prepared")

    with jax.set_mesh(mesh), Checkpoints(workdir, keep=config.train.keep_checkpoints) as checkpoints:
        try:
            state, position = _begin_or_restore(checkpoints, config, mesh, workdir)
            batches.seek(position)
            if int(state.step) < config.train.steps:
                ahead = Prefetch(batches, ahead=config.data.prefetch, sharding=over_data(mesh))
                tools = _Tools(config, workdir, int(state.step), profile, tokenizer)
                state = _run(state, ahead, split, checkpoints, config=config, tools=tools)
        finally:
            batches.close()
    return state


def training_mesh(config: Config) -> Mesh:
    """The mesh of `config.mesh`, after checking that the batch can be cut among its devices.

    Raises:
        InputError: it cannot, or there are not so many devices.
    """
    devices, wanted = jax.devices(), config.mesh.devices
    if wanted > len(devices):
        raise InputError(f"config.mesh.devices must be at most {len(devices)}, those that are here, got {wanted}")
    mesh = make_mesh(devices[: wanted or None], fsdp=config.mesh.fsdp)
    check_batch(config.data.batch_size, mesh, parts=config.train.micro_batches)
    return mesh


def _tokenizer(config: Config, data_dir: Path, workdir: Path) -> Tokenizer:
    """The run's own once it has begun, that of the text encoder's published weights, or that of `data.dir`."""
    if config.text_encoder.weights and saved_steps(workdir):
        return Tokenizer.load(workdir / TOKENIZER)
    return starting_tokenizer(config) or Tokenizer.load(data_dir / TOKENIZER)


def _begin_or_restore(checkpoints: Checkpoints, config: Config, mesh: Mesh, workdir: Path) -> tuple[TrainState, int]:
    """The state on the mesh, and the position in the data: of the newest checkpoint, or before the first step."""
    shapes = jax.eval_shape(lambda: create_state(config))
    places = placement(shapes, mesh)
    found = checkpoints.restore_newest({**_parts(placed(shapes, places)), "data": None})
    if found is not None:
        _, loaded = found
        return TrainState(**loaded["variables"], **loaded["optimizer"]), int(loaded["data"]["position"])
    variables, origins = starting_variables(config)
    if is_first():
        for origin in origins:
            tqdm.write(str(origin), file=sys.stderr)
        record_origins(workdir, origins)
    return jax.device_put(dataclasses.replace(create_state(config), **variables), places), 0


def _run(
    state: TrainState,
    batches: Prefetch,
    split: Split | Mixture,
    checkpoints: Checkpoints,
    *,
    config: Config,
    tools: "_Tools",
) -> TrainState:
    """Steps until the end or a stop signal, and saves where it stands."""
    step, saved = int(state.step), checkpoints.latest
    steps, stopped = Steps(config), AnyProcess(jax.sharding.get_mesh())
    guard, meter = SkipGuard(split, checkpoints, limit=config.train.skip_limit), _meter(config, step)
    with (
        tools as (log, watchdog, trace),
        StopSignals() as stop,
        PreemptionNotice(stop.request, enabled=jax.default_backend() == "tpu"),
        _progress(step, config) as progress,
    ):
        while step < config.train.steps and not stopped.ask(stop.requested):
            watchdog.at("input")
            with meter.input():
                batch = next(batches)
            step += 1
            watchdog.at(f"step {step}")
            trace.before(step)
            if meter.flops is None:  # once: the text of a program is long
                meter.flops = flops_of(steps.program(state, batch, step - 1)) or 0.0
            state, metrics = steps(state, batch, step - 1)
            trace.after(step, metrics)
            guard.watch(step, metrics, batch)
            progress.update()
            validates = _is_due(config.train.validate_every, step, config) and tools.validation is not None
            score = None
            if validates or _is_due(config.train.log_every, step, config):
                guard.check()
                values = {name: float(value) for name, value in jax.device_get(metrics).items()}
                values |= {**_settings(config, step - 1), "words_cut": float(rows_here(batch.words_cut).mean())}
                values |= meter.read(step)
                if validates:
                    watchdog.at(f"validation {step}")
                    with meter.apart():
                        score = _validate(tools, state, step, values, config)
                log.write(step, values)
                shown = f"loss {values['loss']:.3f}, {values['images_per_second']:.0f} images/s"
                progress.set_postfix_str(shown, refresh=False)
            if step % config.train.checkpoint_every == 0:
                guard.check()
                watchdog.at(f"checkpoint {step}")
                saved = step if _save(checkpoints, step, state, batches, score=score) else saved
        guard.check()
        if saved != step:
            watchdog.at(f"checkpoint {step}")
            _save(checkpoints, step, state, batches, last=True)
        checkpoints.wait()
    return state


class _Tools:
    """What writes and watches while a run goes on, as one context."""

    def __init__(self, config: Config, workdir: Path, step: int, profile: range | None, tokenizer: Tokenizer):
        self.validation = open_validation(config, tokenizer, mesh=jax.sharding.get_mesh())
        self.log = MetricsLog(workdir, step=step, enabled=is_first())
        self._watchdog, self._trace = Watchdog(config.train.stall_seconds), Trace(workdir, profile)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> tuple[MetricsLog, Watchdog, Trace]:
        enter = self._stack.enter_context
        return enter(self.log), enter(self._watchdog), enter(self._trace)

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)


def _meter(config: Config, step: int) -> SpeedMeter:
    return SpeedMeter(step, config.data.batch_size, peak=peak_of(config, jax.local_devices()[0]))


def _is_due(every: int, step: int, config: Config) -> bool:
    return every > 0 and (step % every == 0 or step == config.train.steps)


def _validate(tools: _Tools, state: TrainState, step: int, values: dict[str, float], config: Config) -> float:
    """Adds the losses of the validation pairs to the values, shows their pictures, and gives the loss."""
    assert tools.validation is not None
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    values |= tools.validation.measure(variables, config)
    tools.log.write_images(step, tools.validation.pictures(variables, config))
    return values["validation_loss"]


def _settings(config: Config, step: int) -> dict[str, float]:
    """What a step is done with and that changes from step to step, or may be learned from a plot beside it."""
    return {
        "learning_rate": float(jax.numpy.asarray(learning_rate(config)(step))),
        "region_temperature": at_step(config, step).alignment.region_temperature,
        "rounds": at_step(config, step).alignment.rounds,
        "global_temperature": config.loss.global_temperature,
        "local_temperature": config.loss.local_temperature,
    }


def _save(
    checkpoints: Checkpoints,
    step: int,
    state: TrainState,
    batches: Prefetch,
    *,
    score: float | None = None,
    last: bool = False,
) -> bool:
    return checkpoints.save(step, {**_parts(state), "data": batches.state}, score=score, last=last)


def _parts(state: TrainState) -> dict[str, Any]:
    return {
        "variables": {"params": state.params, "batch_stats": state.batch_stats},
        "optimizer": {"step": state.step, "opt_state": state.opt_state, "losses": state.losses},
    }


def _progress(step: int, config: Config) -> tqdm:
    """A bar with steps, loss, images/s and time left; slow to redraw where it is written to a file."""
    every = 0.5 if sys.stderr.isatty() else 10.0
    return tqdm(
        total=config.train.steps,
        initial=step,
        desc="train",
        unit="step",
        mininterval=every,
        dynamic_ncols=True,
        disable=not is_first(),
    )
