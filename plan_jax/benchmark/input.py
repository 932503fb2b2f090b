"""How fast films and reports are read, stage by stage, beside a plain PyTorch loader and what the device could take."""

import contextlib
import dataclasses
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from plan_jax.ablation.places import devices_here
from plan_jax.benchmark import appetite
from plan_jax.benchmark.child import LoaderChild, ask, core
from plan_jax.benchmark.classic import find_torch
from plan_jax.benchmark.films import build_films, write_films
from plan_jax.benchmark.loaders import BATCHES, OURS, STAGES, TORCH, Work, open_train
from plan_jax.benchmark.measure import ONE_CORE
from plan_jax.benchmark.torch_loader import format_of, write_files
from plan_jax.config import Config
from plan_jax.tables.model import Column, Table

FORMATS = ("png", "jpeg")
SIZES = (256, 224)  # sides of the loaded square: 256 as by default, and one that is no half of a film of 512
NO_TORCH = "for the rows of a PyTorch loader: pip install torch==2.13.0 (a CPU build serves)"

COLUMNS = (
    Column("loader", "loader"),
    Column("what", "what"),
    Column("stored as", "format"),
    Column("KiB per image", "kib", 0),
    Column("side", "size", 0),
    Column("images per core second", "images_per_core_second", 0),
    Column("images/s", "images_per_second", 0),
    Column("times as fast as torch", "ratio_to_torch", 2),
)


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        films: that are made up where no data are given; seven tenths of them, the train split, are read.
        records: that are read at most.
        batch_size: of both loaders.
        images: that a measurement reads at least.
        repeats: of every measurement, ours and theirs in turn; medians count.
        sizes, workers: sides of the square, and worker processes, that are measured.
        steps: of training.
    """

    films: int = 160
    records: int = 256
    batch_size: int = 32
    images: int = 256
    repeats: int = 3
    sizes: tuple[int, ...] = SIZES
    workers: tuple[int, ...] = (0, 1, 2)
    steps: int = 5


QUICK = Effort(films=20, batch_size=8, images=64, repeats=1, sizes=SIZES[:1], workers=(0, 1), steps=1)


def benchmark_input(config: Config, *, data: Path | None = None, quick: bool = False) -> list[dict]:
    """Measures all loaders and the training step of `config`, and returns the rows, ready for JSON.

    A row has "loader" (plan_jax, torch or device), "stage" (of `loaders.STAGES`, batches, or step), "workers" (None for
    what has none), "format" (of the stored images: png, jpeg or mixed), "bytes" (mean of an image), "size",
    "batch_size", "images_per_core_second" (CPU time of all processes), "images_per_second" (wall clock; None for
    stages), "ratio_to_torch" (of images per core second, same workers, format and size), "device" and "failed", the
    reason where a process ended without a result.

    Args:
        config: of the training step; its own image size and batch.
        data: a folder that `build` wrote, whose train split is read; None makes films up.
    """
    effort = QUICK if quick else Effort()
    platform, _ = devices_here()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        rows = [row for work in _works(data, folder, effort) for row in _loader_rows(work, effort)]
    return with_ratios([*rows, _step_row(config, platform, effort)])


def with_ratios(rows: Sequence[dict]) -> list[dict]:
    """The rows with `ratio_to_torch`, where PyTorch's loader was measured at the same workers, format and size."""

    def key(row: dict) -> tuple:
        return tuple(row[name] for name in ("stage", "workers", "format", "size"))

    speed = "images_per_core_second"
    torch = {key(row): row[speed] for row in rows if row["loader"] == TORCH and row[speed]}
    return [
        row | {"ratio_to_torch": row[speed] / torch[key(row)] if row[speed] and key(row) in torch else None}
        for row in rows
    ]


def input_table(rows: Sequence[dict]) -> Table:
    """All rows of loaders."""
    cells = []
    for row in rows:
        if row["loader"] != "device":
            workers = "" if row["workers"] is None else f", {row['workers']} workers"
            values = row | {"what": row["stage"] + workers, "kib": row["bytes"] / 1024}
            cells.append(tuple(values[column.name] for column in COLUMNS))
    return Table("Films and reports to batches", COLUMNS, tuple(cells))


def input_lines(rows: Sequence[dict]) -> list[str]:
    """What the device takes, how many cores that is, and how to get the rows that are missing."""
    lines = []
    for step in (row for row in rows if row["loader"] == "device" and row["images_per_second"]):
        clock = " in CPU time on one core: the CPU's own, which a loader would share" if step["workers"] == 0 else ""
        lines.append(
            f"training step ({step['device']}, {step['size']} px, batch {step['batch_size']}): "
            f"{step['images_per_second']:.0f} images/s{clock}"
        )
        for row in rows:
            fast = row["images_per_core_second"]
            if row["loader"] == OURS and row["stage"] == BATCHES and row["workers"] == 0 and fast:
                cores = step["images_per_second"] / fast
                lines.append(f"  loader cores for that, {row['format']} to {row['size']} px: {cores:.2f}")
    if not any(row["loader"] == TORCH for row in rows):
        lines.append(NO_TORCH)
    return lines


def _works(data: Path | None, folder: Path, effort: Effort) -> Iterator[Work]:
    """What is read: the given data, or made-up films once as PNG and once as JPEG."""
    if data is not None:
        yield _work(data, folder / "files", effort)
        return
    raw = write_films(folder / "raw", count=effort.films)
    for form in FORMATS:
        yield _work(build_films(raw, folder / form, format=form), folder / f"{form}_files", effort)


def _work(built: Path, files: Path, effort: Effort) -> Work:
    default = Config().data
    work = Work(str(built), str(files), effort.records, effort.batch_size, default.max_tokens, default.max_words)
    split = open_train(work)
    write_files((split[index].image for index in range(split.count)), files)
    return work


def _loader_rows(work: Work, effort: Effort) -> list[dict]:
    """The rows of one set of films."""
    split = open_train(work)
    images = [split[index].image for index in range(split.count)]
    formats = {format_of(image) for image in images}
    about = {
        "format": formats.pop() if len(formats) == 1 else "mixed",
        "bytes": float(np.mean([len(image) for image in images])),
        "batch_size": work.batch_size,
        "device": "cpu",
    }
    with contextlib.ExitStack() as stack:
        names = (OURS, TORCH) if find_torch() is not None else (OURS,)
        children = {name: stack.enter_context(LoaderChild(name, work)) for name in names}
        rows = []
        for size in effort.sizes:
            times = [children[OURS].ask("stages", size, 0, effort.images) for _ in range(effort.repeats)]
            rows += [_stage_row(stage, times, effort.images) | {"size": size} | about for stage in STAGES]
            for workers in effort.workers if size == effort.sizes[0] else (0,):
                found: dict[str, list[dict]] = {name: [] for name in names}
                for _ in range(effort.repeats):
                    for name in names:
                        found[name].append(children[name].ask(BATCHES, size, workers, effort.images))
                rows += [_batches_row(name, workers, times) | {"size": size} | about for name, times in found.items()]
    return rows


def _stage_row(stage: str, times: Sequence[dict], images: int) -> dict:
    taken = [each[stage] for each in times if stage in each]
    fast = images / statistics.median(taken) if taken else None
    row = {"loader": OURS, "stage": stage, "workers": None, "failed": _failure(times)}
    return row | {"images_per_core_second": fast, "images_per_second": None}


def _batches_row(name: str, workers: int, times: Sequence[dict]) -> dict:
    whole = [each for each in times if "failed" not in each]
    rates = [statistics.median(e["images"] / e[c] for e in whole) if whole else None for c in ("cpu", "wall")]
    row = {"loader": name, "stage": BATCHES, "workers": workers, "failed": _failure(times)}
    return row | dict(zip(("images_per_core_second", "images_per_second"), rates, strict=True))


def _failure(times: Sequence[dict]) -> str | None:
    return next((each["failed"] for each in times if "failed" in each), None)


def _step_row(config: Config, platform: str, effort: Effort) -> dict:
    """What a training step of the configuration takes."""
    cpu = platform == "cpu"
    asked = {"config": dataclasses.asdict(config), "steps": effort.steps, "core": core() if cpu else None}
    found = ask(appetite.__name__, asked, ONE_CORE if cpu else {})
    row = {"loader": "device", "stage": "step", "workers": 0 if cpu else None, "format": None, "bytes": None}
    names = ("images_per_second", "batch_size", "size", "device")
    return (
        row
        | {"images_per_core_second": None, "failed": found.get("failed")}
        | {name: found.get(name) for name in names}
    )
