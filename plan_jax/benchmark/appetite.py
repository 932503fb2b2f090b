"""How many images a training step takes on this machine: `python -m plan_jax.benchmark.appetite`, a config on stdin.

The batch lies in memory, so nothing waits for a loader. Where the configuration's batch does not fit, half of it is
tried, and so on.
"""

import functools
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from typing import Any, TypeVar

import jax
import numpy as np
from ml_collections import ConfigDict

from plan_jax.compilation.report import with_batch
from plan_jax.config import Config, freeze
from plan_jax.geometry import loaded_side
from plan_jax.model import PlanModel
from plan_jax.train.state import create_state, make_optimizer
from plan_jax.train.step import train_step
from plan_jax.types import Batch

Found = TypeVar("Found")
SECONDS = 10.0  # after which no further step is taken
NO_MEMORY = "RESOURCE_EXHAUSTED"  # how XLA says it


def appetite(config: Config, *, steps: int) -> dict[str, Any]:
    """Images per second of `steps` steps after the first, with the batch that fits.

    The wall clock counts; on a CPU the CPU time, because other work there is none of its own.
    Returns "images_per_second", "batch_size", "size" and "device".
    """
    seconds, config = with_what_fits(functools.partial(_seconds_per_step, steps=steps), config)
    return {
        "images_per_second": config.data.batch_size / seconds,
        "batch_size": config.data.batch_size,
        "size": config.data.image_size,
        "device": jax.devices()[0].device_kind,
    }


def with_what_fits(measure: Callable[[Config], Found], config: Config, *, unit: int = 1) -> tuple[Found, Config]:
    """What `measure` finds for a configuration, or for one with half of its batch and so on where memory does not
    suffice, and the configuration that fitted. Halves are multiples of `unit`.
    """
    while True:
        try:
            return measure(config), config
        except jax.errors.JaxRuntimeError as error:
            size = config.data.batch_size // 2 // unit * unit
            if NO_MEMORY not in str(error) or not size:
                raise
        config = with_batch(config, size)


def random_batch(config: Config) -> Batch:
    """A batch of the shapes that training sees: noise, and reports of every length in which each piece is a word."""
    random, data = np.random.default_rng(0), config.data
    shape = (data.batch_size, data.max_tokens)
    words = random.integers(1, min(data.max_words, data.max_tokens - 2), data.batch_size, endpoint=True)
    position = np.arange(data.max_tokens)[None, :]
    side = loaded_side(data.image_size, data.crop)
    is_word = (position >= 1) & (position <= words[:, None])
    mask = position < words[:, None] + 2
    arrays: dict[str, Any] = {
        "image": random.integers(0, 256, (data.batch_size, side, side, 1), np.uint8),
        "token_ids": random.integers(0, config.text_encoder.vocab_size, shape, np.int32) * mask,
        "word_ids": np.where(is_word, position - 1, -1).astype(np.int32),
        "token_mask": mask,
        "sentence_ids": np.where(mask, 0, -1).astype(np.int32),
        "record": np.arange(data.batch_size, dtype=np.int32),
        "words_cut": np.zeros(data.batch_size, np.int32),
    }
    return Batch(**arrays)


def _seconds_per_step(config: Config, steps: int) -> float:
    """The median, after the first step, which compiles."""
    clock = time.process_time if jax.default_backend() == "cpu" else time.perf_counter
    state, batch = create_state(config), jax.device_put(random_batch(config))
    model, optimizer = PlanModel(config), make_optimizer(config)
    taken: list[float] = []
    begin = time.perf_counter()
    while len(taken) <= steps and (len(taken) < 2 or time.perf_counter() - begin < SECONDS):
        before = clock()
        state, metrics = train_step(state, batch, model=model, optimizer=optimizer, config=config)
        jax.block_until_ready((state, metrics))
        taken.append(clock() - before)
        begin = time.perf_counter() if len(taken) == 1 else begin
    return statistics.median(taken[1:])


def main() -> None:
    """Reads {"config", "steps", "core"}, pins itself to the core if there is one, and writes what was found."""
    asked = json.loads(sys.stdin.readline())
    if asked["core"] is not None:
        os.sched_setaffinity(0, {asked["core"]})
    found = appetite(freeze(ConfigDict(asked["config"])), steps=asked["steps"])
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
