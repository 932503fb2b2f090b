"""The training loop: data in, steps, metrics and checkpoints out; stops and continues anywhere."""

import dataclasses
import shutil
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np
from tqdm import tqdm

from plan_jax.checkpoint import Checkpoints, saved_steps
from plan_jax.config import Config, load_config, save_config
from plan_jax.data.pipeline import TrainBatches
from plan_jax.data.records import MANIFEST, Split, open_split
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError
from plan_jax.model import PlanModel
from plan_jax.train.log import MetricsLog
from plan_jax.train.state import TrainState, create_state, learning_rate, make_optimizer
from plan_jax.train.step import train_step
from plan_jax.types import Batch

# Fields that may differ when a run continues: they change what is shown and kept, not what is learned.
FREE_FIELDS = ("data.dir", "data.workers", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints")


class NonFiniteLoss(RuntimeError):
    """The loss, or what a step made of it, is NaN or infinite.

    The message names the step, the records and the last good checkpoint.
    """


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
    split = open_split(data_dir, "train")
    tokenizer = Tokenizer.load(data_dir / "tokenizer.json")
    text_encoder = dataclasses.replace(config.text_encoder, vocab_size=tokenizer.vocab_size)
    data = dataclasses.replace(config.data, dir=str(data_dir))
    config = dataclasses.replace(config, data=data, text_encoder=text_encoder)
    batches = TrainBatches(split, tokenizer, config.data, seed=config.seed)
    prepare_workdir(workdir, config, data_dir)

    checkpoints = Checkpoints(workdir, keep=config.train.keep_checkpoints)
    try:
        state = create_state(config)
        if checkpoints.latest is not None:
            state, position = _restore(checkpoints, checkpoints.latest, state)
            batches.seek(position)
        if int(state.step) < config.train.steps:
            state = _run(state, batches, split, checkpoints, config=config, workdir=workdir)
    finally:
        batches.close()
        checkpoints.close()
    return state


def prepare_workdir(workdir: Path, config: Config, data_dir: Path) -> None:
    """Writes config.json and tokenizer.json, after checking that a run already there is the same run on the same data.

    A run without a checkpoint has nothing to continue and is begun anew.
    """
    files = {"tokenizer.json": "tokenizer.json", MANIFEST: "data_manifest.json"}
    if saved_steps(workdir):
        for source, copy in files.items():
            if (workdir / copy).is_file() and (workdir / copy).read_bytes() != (data_dir / source).read_bytes():
                raise InputError(
                    f"config.data.dir must hold the data with which the run in {workdir} began, got another {source} "
                    f"in {data_dir}; use another --workdir for another run"
                )
        _refuse_other_run(workdir, config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for source, copy in files.items():
            shutil.copyfile(data_dir / source, workdir / copy)
        save_config(workdir / "config.json", config)
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be written, got {workdir}: {error.strerror}") from error


def _refuse_other_run(workdir: Path, config: Config) -> None:
    for name, before, now in differing_fields(load_config(workdir / "config.json"), config):
        if name not in FREE_FIELDS and not name.startswith("evaluation."):
            raise InputError(
                f"config.{name} must stay as the run in {workdir} began, which is {before!r}, got {now!r}; "
                "use another --workdir for another run"
            )


def differing_fields(before: Any, now: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, before, now) of every field that differs."""
    rows = []
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if dataclasses.is_dataclass(old):
            rows += differing_fields(old, new, f"{prefix}{field.name}.")
        elif old != new:
            rows.append((prefix + field.name, old, new))
    return rows


def _run(
    state: TrainState, batches: TrainBatches, split: Split, checkpoints: Checkpoints, *, config: Config, workdir: Path
) -> TrainState:
    """Steps until the end or a stop signal, and saves where it stands."""
    step, saved = int(state.step), checkpoints.latest
    model, optimizer = PlanModel(config), make_optimizer(config)
    guard, meter = FiniteGuard(split, checkpoints), SpeedMeter(step, config.data.batch_size)
    with MetricsLog(workdir, step=step) as log, StopSignals() as stop, _progress(step, config) as progress:
        while step < config.train.steps and not stop.requested:
            batch = next(batches)
            state, metrics = train_step(state, batch, model=model, optimizer=optimizer, config=config)
            step += 1
            guard.watch(step, metrics, batch)
            progress.update()
            if step % config.train.log_every == 0 or step == config.train.steps:
                guard.check()
                values = {name: float(value) for name, value in metrics.items()}
                values |= {
                    "learning_rate": float(jax.numpy.asarray(learning_rate(config)(step - 1))),
                    **meter.read(step),
                }
                log.write(step, values)
                shown = f"loss {values['loss']:.3f}, {values['images_per_second']:.0f} images/s"
                progress.set_postfix_str(shown, refresh=False)
            if step % config.train.checkpoint_every == 0:
                guard.check()
                _save(checkpoints, step, state, batches)
                saved = step
        guard.check()
        if saved != step:
            _save(checkpoints, step, state, batches)
    return state


def _save(checkpoints: Checkpoints, step: int, state: TrainState, batches: TrainBatches) -> None:
    checkpoints.save(step, {**_parts(state), "data": batches.state})


def _restore(checkpoints: Checkpoints, step: int, state: TrainState) -> tuple[TrainState, int]:
    """The saved state, placed like a fresh one, and the position in the data."""
    loaded = checkpoints.restore(step, {**jax.tree.map(_abstract, _parts(state)), "data": None})
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


class SpeedMeter:
    """Images per second since the last reading."""

    def __init__(self, step: int, batch_size: int):
        self._step, self._batch_size, self._time = step, batch_size, time.monotonic()

    def read(self, step: int) -> dict[str, float]:
        """The speed up to `step`, as a metric."""
        now = time.monotonic()
        speed = (step - self._step) * self._batch_size / max(now - self._time, 1e-9)
        self._step, self._time = step, now
        return {"images_per_second": speed}


class FiniteGuard:
    """Stops a run whose loss, gradient or parameters are not finite, before they are saved.

    Looks one step late, so that the device is never idle for it.
    """

    def __init__(self, split: Split, checkpoints: Checkpoints):
        self._split, self._checkpoints = split, checkpoints
        self._pending: tuple[int, dict[str, jax.Array], Batch] | None = None

    def watch(self, step: int, metrics: dict[str, jax.Array], batch: Batch) -> None:
        """Remembers this step's metrics and checks those of the one before."""
        self.check()
        self._pending = (step, metrics, batch)

    def check(self) -> None:
        """Waits for the remembered metrics and raises NonFiniteLoss if one is NaN or infinite."""
        if self._pending is None:
            return
        (step, metrics, batch), self._pending = self._pending, None
        wrong = [name for name, value in jax.device_get(metrics).items() if not np.isfinite(value)]
        if not wrong:
            return
        name = "loss" if "loss" in wrong else wrong[0]
        self._checkpoints.wait()
        keys = ", ".join(self._split[int(index)].key for index in np.asarray(batch.record))
        latest = self._checkpoints.latest
        left = "there is no checkpoint" if latest is None else f"the last good checkpoint is step {latest}"
        raise NonFiniteLoss(
            f"{name} must be finite, got {float(metrics[name])} at step {step} on records {keys}; {left}; "
            "lower optim.learning_rate or inspect these records"
        )


class StopSignals:
    """Turns SIGINT and SIGTERM into a request to save and stop; a second SIGINT interrupts at once."""

    def __init__(self):
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._request) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _request(self, number: int, _: object) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.requested = True
