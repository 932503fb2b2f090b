"""Shards written by Apache Beam, so that a cluster can share the work: `build NAME --runner beam`.

Beam is optional: pip install 'plan_jax[beam]'. Its workers must see --raw and --out under the same paths.
"""

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from typing import Any

from plan_jax.data.shards import Shard, finished, write_shard
from plan_jax.data.source import Source
from plan_jax.errors import InputError


def write_with_beam(source: Source, *, options: Sequence[str], progress: Callable[[int], object]) -> None:
    """Writes the shards that are not whole yet in a Beam pipeline.

    Every worker reads the tables itself, so that the pipeline holds nothing but the numbers of shards.

    Args:
        source: what is written.
        options: of Beam, as on its command lines: ["--runner=FlinkRunner", ...].
        progress: is told the rows that were there, and at the end the others.

    Raises:
        InputError: Beam is not installed.
    """
    beam = _find_beam()
    shards = _shards(source)
    todo = [number for number, shard in enumerate(shards) if finished(shard) is None]
    rows, left = sum(len(shard.rows) for shard in shards), sum(len(shards[number].rows) for number in todo)
    progress(rows - left)
    pipeline_options = importlib.import_module("apache_beam.options.pipeline_options").PipelineOptions(list(options))
    with beam.Pipeline(options=pipeline_options) as pipeline:
        _ = pipeline | beam.Create(todo) | beam.Reshuffle() | beam.ParDo(_writer(beam, source))
    progress(left)


def _writer(beam: Any, source: Source) -> Any:
    """What a worker does."""

    class WriteShard(beam.DoFn):
        def setup(self) -> None:
            self._shards = _shards(source)

        def process(self, number: int) -> None:
            write_shard(self._shards[number], lambda: None)

    return WriteShard()


def _shards(source: Source) -> list[Shard]:
    return [shard for of_split in source.shards.values() for shard in of_split]


def _find_beam() -> Any:
    if importlib.util.find_spec("apache_beam") is None:
        raise InputError("--runner beam must have Apache Beam, got none installed; pip install 'plan_jax[beam]'")
    return importlib.import_module("apache_beam")
