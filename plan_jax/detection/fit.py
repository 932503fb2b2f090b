"""The training of a head: epochs, validation, the best epoch; stops and continues at any epoch."""

import dataclasses
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int
from tqdm import tqdm

from plan_jax.checkpoint import Checkpoints
from plan_jax.config import Config, EvaluationConfig, config_hash
from plan_jax.data.object_cxr import ObjectCxr
from plan_jax.data.records import manifest_hash, read_manifest
from plan_jax.data.splits import fraction_of
from plan_jax.detection.average_precision import AveragePrecision, mean_precision
from plan_jax.detection.detect import detect
from plan_jax.detection.examples import FilmBatches, SplitBoxes
from plan_jax.detection.step import first_state, head_step
from plan_jax.errors import InputError
from plan_jax.inference import Plan
from plan_jax.sharding import replicated, spread
from plan_jax.train.guard import NonFiniteLoss
from plan_jax.train.log import MetricsLog
from plan_jax.train.speed import SpeedMeter
from plan_jax.train.state import TrainState

KEY = 12  # hex digits that tell the heads of a data set and fraction apart


@dataclasses.dataclass(frozen=True)
class Head:
    """A trained head, as it was after its best epoch.

    Attributes:
        variables: parameters and batch statistics.
        epochs: how many it was trained for.
        best_epoch: after which of them its mAP on the validation split was highest, the first of equals.
        validation_map: that mAP.
        images: it was trained on.
    """

    variables: Any
    epochs: int
    best_epoch: int
    validation_map: float
    images: int


def head_folder(plan: Plan, train: SplitBoxes, *, name: str, fraction: float, workdir: Path) -> Path:
    """RUN/detection/NAME/FRACTION/KEY: the key is of the encoder's step, the configuration and the data's manifest.

    A head of another checkpoint, configuration or build lies beside it and is never taken for this one.
    """
    detection = dataclasses.replace(plan.config.detection, fractions=(fraction,))
    config = dataclasses.replace(plan.config, detection=detection, evaluation=EvaluationConfig())
    key = "-".join((config_hash(config)[:KEY], manifest_hash(train.split.directory)[:KEY], str(plan.step)))
    return workdir / "detection" / name / f"{fraction:g}" / key


def fit_head(
    plan: Plan, train: SplitBoxes, validation: SplitBoxes, *, classes: tuple[str, ...], fraction: float, folder: Path
) -> Head:
    """Trains a head on a share of the training patients, from its newest checkpoint in `folder` if there is one.

    There is a checkpoint after every epoch, and the order of an epoch depends on its number and the seed alone: a
    training in pieces gives the head of a training in one go, and a finished one is read and not repeated. The folder
    also holds metrics.jsonl, a line per epoch, and tensorboard/.

    Raises:
        InputError: the share or the validation split shows no box of these classes.
        NonFiniteLoss: the loss became NaN or infinite.
    """
    rows = fraction_of(train.patient, fraction, seed=plan.config.detection.seed)
    _refuse_no_boxes(train, rows, classes, f"the share {fraction:g} of detection.fractions")
    _refuse_no_boxes(validation, np.arange(len(validation.key)), classes, "all of it")
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = Checkpoints(folder, keep=1)
    try:
        course = _begin(plan, checkpoints, classes)
        if not course.finished(plan.config):
            course = _run(plan, course, checkpoints, folder, _Films(train, rows, validation, classes, fraction))
    finally:
        checkpoints.close()
    return Head(course.best, course.epoch, course.best_epoch, course.best_map, len(rows))


@dataclasses.dataclass(frozen=True)
class _Films:
    """What a head learns from and is chosen on."""

    train: SplitBoxes
    rows: Int[np.ndarray, " m"]
    validation: SplitBoxes
    classes: tuple[str, ...]
    fraction: float


@dataclasses.dataclass(frozen=True)
class _Course:
    """How far training is, and the variables of its best epoch; epoch 0 is before the first."""

    state: TrainState
    best: Any
    epoch: int = 0
    best_epoch: int = 0
    best_map: float = -1.0

    def finished(self, config: Config) -> bool:
        return self.epoch >= config.detection.epochs or self.epoch - self.best_epoch >= config.detection.patience

    def after(self, state: TrainState, score: float) -> "_Course":
        """One epoch further."""
        epoch = self.epoch + 1
        if score <= self.best_map:
            return dataclasses.replace(self, state=state, epoch=epoch)
        return _Course(state, _copied(state), epoch, epoch, score)

    def parts(self) -> dict[str, Any]:
        """For a checkpoint."""
        return {"state": vars(self.state), "best": self.best}

    def counts(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "best_epoch": self.best_epoch, "best_map": self.best_map}


def _copied(state: TrainState) -> Any:
    """The variables in buffers of their own: those of a state are donated to the next step."""
    return jax.tree.map(jnp.copy, {"params": state.params, "batch_stats": state.batch_stats})


def _begin(plan: Plan, checkpoints: Checkpoints, classes: tuple[str, ...]) -> _Course:
    """The newest checkpoint, or a fresh head; where the encoder lies."""
    state = first_state(plan.variables, config=plan.config, classes=len(classes))
    state = state if plan.mesh is None else jax.device_put(state, replicated(plan.mesh))
    course = _Course(state, _copied(state))
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), course.parts()
    )
    found = checkpoints.restore_newest({**abstract, "data": None})
    if found is None:
        return course
    _, loaded = found
    return _Course(TrainState(**loaded["state"]), loaded["best"], **loaded["data"])


def _run(plan: Plan, course: _Course, checkpoints: Checkpoints, folder: Path, films: _Films) -> _Course:
    """Epochs until there are enough or none was better for long."""
    settings, count = plan.config.detection, len(films.rows)
    small = films.fraction <= settings.small_fraction
    batch_size = min(settings.small_batch_size if small else settings.batch_size, count)
    steps = count // batch_size
    every = 0.5 if sys.stderr.isatty() else 10.0
    bar = tqdm(
        total=steps * settings.epochs,
        initial=steps * course.epoch,
        desc=f"detection head, {films.fraction:g} of the patients",
        unit="step",
        mininterval=every,
        dynamic_ncols=True,
    )
    meter = SpeedMeter(steps * course.epoch, batch_size)
    with bar, MetricsLog(folder, step=course.epoch) as log:
        while not course.finished(plan.config):
            # What is left over of an epoch is not seen in it (MGCA).
            order = np.random.default_rng([settings.seed, course.epoch]).permutation(films.rows)[: steps * batch_size]
            state, losses = _epoch(plan, course.state, films, order, batch_size=batch_size, bar=bar)
            if not all(np.isfinite(value) for value in losses.values()):
                raise NonFiniteLoss(
                    f"loss must be finite, got {losses['loss']} in epoch {course.epoch + 1} of the detection head; "
                    "lower detection.learning_rate"
                )
            speed = meter.read(steps * (course.epoch + 1))["images_per_second"]
            with meter.apart():
                score = _validation_map(plan, state, films)
            course = course.after(state, score)
            log.write(course.epoch, {**losses, "validation_map": score, "images_per_second": speed})
            bar.set_postfix_str(f"loss {losses['loss']:.4f}, best validation mAP {course.best_map:.3f}")
            checkpoints.save(course.epoch, {**course.parts(), "data": course.counts()}, last=True)
    return course


def _epoch(
    plan: Plan, state: TrainState, films: _Films, order: Int[np.ndarray, " m"], *, batch_size: int, bar: tqdm
) -> tuple[TrainState, dict[str, float]]:
    """The state after the films of `order`, and the mean losses."""
    steps = []
    size, rate = plan.config.detection.image_size, _learning_rate(plan.config, films)
    batches = FilmBatches(films.train, order, classes=films.classes, size=size, batch_size=batch_size)
    for batch in batches:
        state, metrics = head_step(
            state,
            plan.variables,
            *spread((batch.image, batch.boxes), plan.mesh),
            config=plan.config,
            classes=len(films.classes),
            learning_rate=rate,
        )
        steps.append(metrics)
        bar.update()
    found = jax.device_get(steps)
    return state, {name: float(np.mean([each[name] for each in found])) for name in found[0]}


def _learning_rate(config: Config, films: _Films) -> float:
    settings = config.detection
    if films.fraction > settings.small_fraction:
        return settings.learning_rate
    objects = read_manifest(films.train.split.directory)["name"] == ObjectCxr.name
    return settings.small_learning_rate_objects if objects else settings.small_learning_rate


def _validation_map(plan: Plan, state: TrainState, films: _Films) -> float:
    head = {"params": state.params, "batch_stats": state.batch_stats}
    found = detect(plan, head, films.validation, classes=films.classes)
    truth = films.validation.truth(films.classes)
    images = len(films.validation.key)
    scorer = AveragePrecision(found, truth, images=images, classes=len(films.classes))
    return mean_precision(scorer.of(np.ones(images))) or 0.0


def _refuse_no_boxes(films: SplitBoxes, rows: Int[np.ndarray, " m"], classes: tuple[str, ...], part: str) -> None:
    if not any(name in classes for row in rows for name, _ in films.boxes[row]):
        raise InputError(
            f"{films.split} must hold boxes of {', '.join(classes)}, got none in {part}; "
            "detection needs a data set with boxes in train and validation, or a larger share of it"
        )
