"""The parts of a training step, timed in turn: `python -m plan_jax.benchmark.step_parts`, a config on stdin.

Each part is a program of its own, made of the functions that the step is made of. All are run in one process, one after
the other and again, so that what slows the machine down for a while slows all of them. The batch lies in memory. On a
CPU the CPU time counts, on an accelerator the wall clock until all devices are done.
"""

import dataclasses
import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array
from ml_collections import ConfigDict

from plan_jax.alignment.sharded import rows_over_devices
from plan_jax.augment import augment
from plan_jax.benchmark.appetite import random_batch, with_what_fits
from plan_jax.compilation.programs import feature_shapes, lower_alignment
from plan_jax.compilation.report import needs_of
from plan_jax.config import Config, freeze
from plan_jax.model import PlanModel
from plan_jax.sharding import over_data, replicated
from plan_jax.train.gradients import Features, Found, gradients_through
from plan_jax.train.loop import training_mesh
from plan_jax.train.placement import kept_in_place, placement
from plan_jax.train.speed import GIB, memory_in_use, peak_of
from plan_jax.train.state import TrainState, create_state, make_optimizer
from plan_jax.train.step import apply_gradients, train_step
from plan_jax.types import Batch, ImageFeatures, TextFeatures

STEP, PARTS = "step", ("encoders", "alignment", "optimizer")
SECONDS = 60.0  # after which the parts are not run again any more


def measure_parts(config: Config, *, repeats: int) -> list[dict[str, Any]]:
    """The rows of the whole step and of its parts, with the batch that fits, on all devices here.

    A row has "part", "ms" (median), what `needs_of` tells of the program, "in_use_bytes" (after the first step: the
    most that a device held, or what this process holds where devices do not tell; of the step only), "batch_size",
    "devices", "device", "device_flops_per_second" (a device's peak, None where it is not known) and "failed", why a
    part could not be run.

    Raises:
        InputError: the batch cannot be cut among the devices.
    """
    mesh = training_mesh(config)
    with jax.set_mesh(mesh):
        unit = mesh.size * config.train.micro_batches
        work, config = with_what_fits(functools.partial(_Work, mesh=mesh), config, unit=unit)
        times = _times({name: getattr(work, name) for name in (STEP, *PARTS)}, repeats, work.failed)
    device = mesh.devices.flat[0]
    about = {"batch_size": config.data.batch_size, "devices": mesh.size, "device": device.device_kind}
    about |= {"device_flops_per_second": peak_of(config, device)}
    return [
        {"part": name, "failed": work.failed.get(name), **about, **work.needs.get(name, {})}
        | {"ms": 1e3 * statistics.median(times[name]) if times[name] else None}
        | {"in_use_bytes": work.in_use_bytes if name == STEP else None}
        for name in (STEP, *PARTS)
    ]


class _Work:
    """A training state, a batch, made-up features and gradients, and the programs that they go through.

    Attributes:
        needs: what `needs_of` tells of each program.
        failed: why a part could not be compiled; the step's own errors are raised.
    """

    def __init__(self, config: Config, mesh: Mesh):
        self.needs: dict[str, dict] = {}
        self.failed: dict[str, str] = {}
        state = create_state(config)
        self._state = jax.device_put(state, placement(state, mesh))
        batch = random_batch(config)
        self._batch = jax.device_put(batch, over_data(mesh))
        self._features: Features = jax.device_put(_made_up(config, batch), over_data(mesh))
        gradients = jax.tree.map(lambda leaf: jnp.full_like(leaf, 1e-3), self._state.params)
        statistics = jax.tree.map(jnp.copy, self._state.batch_stats)  # the state's own are given away
        loss = jax.device_put(jnp.ones(()), replicated(mesh))
        self._found = Found(gradients, statistics, {"loss": loss}, self._features)
        self._programs = self._compiled(config, mesh)
        self.step()
        self.in_use_bytes = int(GIB * next(iter(memory_in_use(mesh.local_devices).values())))

    def _compiled(self, config: Config, mesh: Mesh) -> dict[str, jax.stages.Compiled]:
        model, optimizer = PlanModel(config), make_optimizer(config)
        optimize = jax.jit(
            functools.partial(apply_gradients, optimizer=optimizer, config=config), donate_argnames="state"
        )
        lowered: dict[str, Callable[[], jax.stages.Lowered]] = {
            STEP: lambda: train_step.lower(self._state, self._batch, model=model, optimizer=optimizer, config=config),
            "encoders": lambda: encoder_passes.lower(
                self._state, self._batch, self._features, model=model, config=config
            ),
            "alignment": lambda: lower_alignment(config, mesh),
            "optimizer": lambda: optimize.lower(self._state, self._found),
        }
        programs = {}
        for name, lower in lowered.items():
            try:
                programs[name] = lower().compile()
                self.needs[name] = needs_of(programs[name])
            except (jax.errors.JaxRuntimeError, NotImplementedError, RuntimeError) as error:
                if name == STEP and name not in programs:
                    raise
                if name not in programs:
                    self.failed[name] = _line(error)
        return programs

    def step(self) -> None:
        self._state, metrics = self._programs[STEP](self._state, self._batch)
        jax.block_until_ready((self._state, metrics))

    def encoders(self) -> None:
        jax.block_until_ready(self._programs["encoders"](self._state, self._batch, self._features))

    def alignment(self) -> None:
        images, texts = self._features
        jax.block_until_ready(self._programs["alignment"](images, _without_mask(texts), texts.mask))

    def optimizer(self) -> None:
        self._state, norms = self._programs["optimizer"](self._state, self._found)
        jax.block_until_ready((self._state, norms))


@functools.partial(jax.jit, static_argnames=("model", "config"))
def encoder_passes(state: TrainState, batch: Batch, pull: Features, *, model: PlanModel, config: Config) -> Found:
    """What a step finds up to the features and, from their cotangents `pull`, back to the parameters.

    The views of the images are made here too. The cotangents have the features' shapes; the mask's place is not read.
    """

    def loss_of(images: ImageFeatures, texts: TextFeatures) -> tuple[Array, dict[str, Array]]:
        learned, given = ((of[0], _without_mask(of[1])) for of in ((images, texts), pull))
        products = jax.tree.map(lambda x, y: jnp.sum(x * y), learned, given)
        return sum(jax.tree.leaves(products), start=jnp.zeros(())), {}

    seen = dataclasses.replace(batch, image=augment(batch.image, state.step, config=config))
    key = jax.random.fold_in(jax.random.key(config.seed), state.step)
    found = gradients_through(loss_of, state.params, (state.batch_stats, seen, key), model=model, config=config)
    features = jax.tree.map(rows_over_devices, found.features)
    return found._replace(gradients=kept_in_place(found.gradients), features=features)


def _made_up(config: Config, batch: Batch) -> Features:
    """Features of random directions, and of the batch's reports the words that are there."""
    random, (images, texts) = np.random.default_rng(2), feature_shapes(config)

    def directions(shape: jax.ShapeDtypeStruct) -> np.ndarray:
        drawn = random.standard_normal(shape.shape, np.float32)
        return drawn / np.linalg.norm(drawn, axis=-1, keepdims=True)

    words = np.asarray(batch.word_ids).max(axis=1) + 1
    mask = np.arange(texts.mask.shape[1])[None] < words[:, None]
    made = jax.tree.map(directions, (images, _without_mask(texts)))
    return made[0], made[1].replace(mask=mask)


def _without_mask(texts: TextFeatures) -> Any:
    return texts.replace(mask=None)  # pyright: ignore[reportAttributeAccessIssue]


def _times(runs: dict[str, Callable[[], None]], repeats: int, failed: dict[str, str]) -> dict[str, list[float]]:
    """Seconds of every run that does not fail, after a first one each; adds the reasons of those that do."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    taken: dict[str, list[float]] = {name: [] for name in runs}
    begin = time.perf_counter()
    for number in range(repeats + 1):
        if number > 1 and time.perf_counter() - begin > SECONDS:
            break
        for name, run in runs.items():
            if name not in failed:
                before = clock()
                try:
                    run()
                except (jax.errors.JaxRuntimeError, RuntimeError, ValueError) as error:
                    failed[name] = _line(error)
                    continue
                taken[name] += [clock() - before] if number else []
    return taken


def _line(error: Exception) -> str:
    return " ".join(str(error).splitlines()[:1]) or type(error).__name__


def main() -> None:
    """Reads {"config", "repeats", "core"}, pins itself to the core if there is one, and writes the rows."""
    asked = json.loads(sys.stdin.readline())
    if asked["core"] is not None:
        os.sched_setaffinity(0, {asked["core"]})
    found = measure_parts(freeze(ConfigDict(asked["config"])), repeats=asked["repeats"])
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
