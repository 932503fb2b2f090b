"""Shards of a data set, written side by side, each whole or not there, so that a killed build goes on where it was."""

import json
import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from plan_jax.data.processes import follow_main_process
from plan_jax.data.records import Record, features, to_example

ROWS_PER_PROCESS = 256  # fewer are done before another process has started
POLL = 0.3  # seconds between looks at how far the processes are
_written: Any = None  # in a process of the pool: the counter that all share


@dataclass(frozen=True)
class Shard:
    """Some rows of a split that become one file.

    Attributes:
        path: of the file; beside it, once it is whole, lies what is known of it (`Finished`) as JSON.
        rows: in their order.
        make: a row -> its record, or why there is none. Must be picklable.
    """

    path: Path
    rows: Sequence[Any]
    make: Callable[[Any], Record | str]


@dataclass(frozen=True)
class Finished:
    """What a shard holds. `dropped`: (index of the row in the shard, reason)."""

    records: int
    bytes: int
    dropped: tuple[tuple[int, str], ...]


def finished(shard: Shard) -> Finished | None:
    """What is known of a shard that is whole, else None."""
    try:
        found = json.loads(_beside(shard.path).read_text())
        size, dropped = int(found["bytes"]), tuple((int(index), str(reason)) for index, reason in found["dropped"])
        return Finished(int(found["records"]), size, dropped) if shard.path.is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_shards(shards: Sequence[Shard], *, processes: int | None, progress: Callable[[int], object]) -> None:
    """Writes those that are not whole yet; `progress` is told how many rows are done since the last call.

    `processes` None: one per core, or fewer where there is little to do.
    """
    todo = [shard for shard in shards if finished(shard) is None]
    rows = sum(len(shard.rows) for shard in todo)
    progress(sum(len(shard.rows) for shard in shards) - rows)
    processes = processes or max(1, min(len(os.sched_getaffinity(0)), rows // ROWS_PER_PROCESS))
    if processes == 1 or len(todo) < 2:
        for shard in todo:
            write_shard(shard, lambda: progress(1))
        return
    context = multiprocessing.get_context("spawn")
    counter = context.Value("q", 0)
    with ProcessPoolExecutor(min(processes, len(todo)), context, _begin, (counter,)) as pool:
        futures = {pool.submit(_write_in_process, shard) for shard in todo}
        try:
            _follow(futures, counter, progress)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def write_shard(shard: Shard, progress: Callable[[], object]) -> None:
    """Writes one shard, and last what is known of it."""
    specs = features().get_serialized_info()
    serializer = ExampleSerializer(specs)  # pyright: ignore[reportArgumentType]
    partial = shard.path.with_name(f"{shard.path.name}.tmp")
    writer = ArrayRecordWriter(str(partial), "group_size:1")
    size, dropped = 0, []
    try:
        for index, row in enumerate(shard.rows):
            record = shard.make(row)
            if isinstance(record, str):
                dropped.append((index, record))
            else:
                example = serializer.get_tf_example(features().encode_example(to_example(record)))
                data = example.SerializeToString(deterministic=True)  # else the fields come in a hash table's order
                writer.write(data)
                size += len(data)
            progress()
    finally:
        writer.close()
    os.replace(partial, shard.path)
    known = {"records": len(shard.rows) - len(dropped), "bytes": size, "dropped": dropped}
    beside = _beside(shard.path)
    beside.with_suffix(".tmp").write_text(json.dumps(known))
    os.replace(beside.with_suffix(".tmp"), beside)


def _begin(counter: Any) -> None:
    global _written
    _written = counter
    follow_main_process()


def _write_in_process(shard: Shard) -> None:
    def one_more() -> None:
        with _written.get_lock():
            _written.value += 1

    write_shard(shard, one_more)


def _follow(futures: set[Future], counter: Any, progress: Callable[[int], object]) -> None:
    """Until all are done or one fails."""
    left, seen = futures, 0
    while left:
        done, left = wait(left, timeout=POLL, return_when=FIRST_EXCEPTION)
        progress(counter.value - seen)
        seen = counter.value
        for future in done:
            future.result()


def _beside(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
