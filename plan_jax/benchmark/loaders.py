"""A loader measured in a process of its own: `python -m plan_jax.benchmark.loaders`, asked and answering in JSON lines.

The process lives for a whole comparison and is asked in turn with the one that it is compared with. What is counted is
CPU time, its workers' included, from buffers that are full to buffers that are full again, so that what was read ahead
before counts as little as what is read ahead after. Without workers it is pinned to one core.
"""

import contextlib
import dataclasses
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from plan_jax.benchmark.classic import find_torch
from plan_jax.benchmark.torch_loader import Films, torch_batches
from plan_jax.config import DataConfig
from plan_jax.data.image import decode_image, letterbox_image
from plan_jax.data.pipeline import TrainBatches, load_image
from plan_jax.data.records import Split, from_example
from plan_jax.data.text import Tokenizer

OURS, TORCH = "plan_jax", "torch"
STAGES = ("read", "parse", "decode", "resize", "text", "sample")
BATCHES = "batches"
LENGTH = 200_000  # records of a large data set
STILL, TICK, LONGEST = 0.25, 0.012, 30.0  # seconds: buffers are full when the CPU time grows less than TICK in STILL


@dataclasses.dataclass(frozen=True)
class Work:
    """What both loaders read.

    Attributes:
        folder: of a data set that `build` wrote; its train split is read.
        files: folder of the same images as files, in the order of the records.
        records: how many of the split's first records are read.
        batch_size, max_tokens, max_words: as in `DataConfig`.
    """

    folder: str
    files: str
    records: int
    batch_size: int
    max_tokens: int
    max_words: int


class Repeated(Split):
    """The first records of a split over and over, to the length of a large data set.

    Grain draws a place in the order of an epoch again until it lies in the data: of 70 records that takes 0.6 ms, of
    many next to nothing.
    """

    def __init__(self, directory: Path, name: str, count: int):
        super().__init__(directory, name)
        self.count = min(count, super().__len__())

    def __len__(self) -> int:
        return LENGTH

    def example(self, index: int) -> bytes:
        return super().example(index % self.count)

    def __reduce__(self):
        return Repeated, (self.directory, self.name, self.count)


def open_train(work: Work) -> Repeated:
    """The records that are read; `count` of them are different."""
    return Repeated(Path(work.folder).resolve(), "train", work.records)


def our_batches(work: Work, *, size: int, workers: int) -> TrainBatches:
    """As training reads them, with the default order of sentences."""
    return TrainBatches(open_train(work), _tokenizer(work), _data_config(work, size, workers), seed=0)


def their_batches(work: Work, *, size: int, workers: int) -> Iterator[dict[str, Any]]:
    """The baseline's."""
    split = open_train(work)
    reports = [split[index].report for index in range(split.count)]
    tokenizer = Path(work.folder) / "tokenizer.json"
    films = Films(
        sorted(Path(work.files).iterdir()), reports, tokenizer=tokenizer, size=size, max_tokens=work.max_tokens
    )
    return torch_batches(find_torch(), films, batch_size=work.batch_size, workers=workers)


def stage_times(work: Work, *, size: int, images: int) -> dict[str, float]:
    """CPU seconds that each stage of our loader takes for `images` images; "sample" is all of them, one by one."""
    split, tokenizer, config = open_train(work), _tokenizer(work), _data_config(work, size)

    def encode(text: str) -> object:
        return tokenizer.encode(text, max_tokens=work.max_tokens, max_words=work.max_words, truncate=True)

    indices = [number % split.count for number in range(images)]
    taken: dict[str, float] = {}

    def timed(stage: str, function: Callable[[Any], Any], inputs: list) -> list:
        function(inputs[0])
        begin = time.process_time()
        outputs = [function(each) for each in inputs]
        taken[stage] = time.process_time() - begin
        return outputs

    examples = timed("read", split.example, indices)
    records = timed("parse", from_example, examples)
    decoded = timed("decode", lambda record: decode_image(record.image, name=record.key), records)
    timed("resize", lambda image: letterbox_image(image, size), decoded)
    timed("text", lambda record: encode(record.report), records)

    def sample(index: int) -> None:
        record = split[index]
        load_image(record, config)
        encode(record.report)

    timed("sample", sample, indices)
    return taken


def cpu_seconds() -> float:
    """CPU time of this process and of the worker processes that it has now."""
    total = time.process_time()
    for child in multiprocessing.active_children():
        with contextlib.suppress(FileNotFoundError):  # it ended in between
            fields = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
            total += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return total


def settle() -> float:
    """Waits until nothing is read ahead any more; returns the time at which something was last."""
    begin = since = time.perf_counter()
    mark = cpu_seconds()
    while time.perf_counter() - since < STILL and since - begin < LONGEST:
        time.sleep(STILL / 10)
        now = cpu_seconds()
        if now - mark > TICK:
            mark, since = now, time.perf_counter()
    return since


def batch_times(batches: Iterator, *, images: int, batch_size: int) -> dict[str, float]:
    """CPU and wall seconds for `images` images, rounded up to whole batches, and how many these were."""
    count = -(-images // batch_size)
    settle()
    cpu, begin = cpu_seconds(), time.perf_counter()
    for _ in range(count):
        next(batches)
    end = max(time.perf_counter(), settle())
    return {"cpu": cpu_seconds() - cpu, "wall": end - begin, "images": count * batch_size}


def answer(work: Work, request: dict, batches: Any) -> dict[str, float]:
    """What a request asks for: the times of the stages, or of batches from an open loader."""
    if request["stage"] != BATCHES:
        return stage_times(work, size=request["size"], images=request["images"])
    return batch_times(batches, images=request["images"], batch_size=work.batch_size)


def main() -> None:
    """Reads {"loader", "work", "core"}, then requests {"stage", "size", "workers", "images"}; a loader stays open."""
    replies, sys.stdout = sys.stdout, sys.stderr
    asked = json.loads(sys.stdin.readline())
    work, make = Work(**asked["work"]), {OURS: our_batches, TORCH: their_batches}[asked["loader"]]
    cores = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    opened, batches = None, None
    for line in sys.stdin:
        request = json.loads(line)
        key = (request["size"], request["workers"])
        if cores:
            os.sched_setaffinity(0, cores if request["workers"] else {asked["core"]})
        if request["stage"] == BATCHES and key != opened:
            _close(batches)
            opened, batches = key, make(work, size=request["size"], workers=request["workers"])
            next(batches)
        replies.write(json.dumps(answer(work, request, batches)) + "\n")
        replies.flush()
    _close(batches)


def _close(batches: Any) -> None:
    if isinstance(batches, TrainBatches):
        batches.close()


def _data_config(work: Work, size: int, workers: int = 0) -> DataConfig:
    """`size` is the side of the square that is loaded; on the device it would be cropped."""
    return DataConfig(
        batch_size=work.batch_size,
        image_size=size,
        crop=1.0,
        max_tokens=work.max_tokens,
        max_words=work.max_words,
        workers=workers,
    )


def _tokenizer(work: Work) -> Tokenizer:
    return Tokenizer.load(Path(work.folder) / "tokenizer.json")


if __name__ == "__main__":
    main()
