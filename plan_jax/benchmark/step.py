"""How fast a whole training step is on the devices here, where its time goes, and what it exchanges on more devices."""

import dataclasses
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from plan_jax.ablation.places import devices_here
from plan_jax.benchmark import step_parts, step_scaling
from plan_jax.benchmark.child import LoaderChild, ask, core
from plan_jax.benchmark.films import build_films, write_films
from plan_jax.benchmark.loaders import BATCHES, OURS, Work, open_train
from plan_jax.benchmark.measure import ONE_CORE
from plan_jax.benchmark.step_parts import PARTS, STEP
from plan_jax.benchmark.step_scaling import EXCHANGES, batches_of, with_verdicts
from plan_jax.config import Config
from plan_jax.counting.counts import KINDS
from plan_jax.data.store import Store
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError
from plan_jax.evaluation.progress import progress
from plan_jax.geometry import loaded_side
from plan_jax.tables.model import Column, Table

REST, INPUT, SCALING = "rest", "input", "scaling"
VIRTUAL = "--xla_force_host_platform_device_count={}"  # how XLA is told to make devices of a CPU
FIELDS = ("part", "series", "batch_size", "devices", "device", "ms", "share", "images_per_second")
FIELDS += ("flops", "flops_per_second", "mfu", "unknown_loops", "kernels")
FIELDS += ("argument_bytes", "temp_bytes", "peak_bytes", "in_use_bytes", "collective_bytes", *EXCHANGES.values())
FIELDS += ("watched_bytes", "flat", "failed")

COLUMNS = (
    Column("part", "part"),
    Column("ms", "ms", 1),
    Column("share of step", "share", 2),
    Column("images/s", "images_per_second", 0),
    Column("GFLOP", "flops", 2),
    Column("GFLOP/s", "flops_per_second", 1),
    Column("MFU", "mfu", 3),
    Column("arguments MiB", "argument_bytes", 1),
    Column("temporaries MiB", "temp_bytes", 1),
    Column("peak MiB", "peak_bytes", 1),
)
SCALING_COLUMNS = (
    Column("fixed", "series"),
    Column("devices", "devices", 0),
    Column("global batch", "batch_size", 0),
    Column("GFLOP", "flops", 2),
    Column("temporaries MiB", "temp_bytes", 1),
    Column("parameters KiB", "parameter_bytes", 1),
    Column("features KiB", "feature_bytes", 1),
    Column("watched pairs KiB", "watched_bytes", 1),
    *(Column(f"{kind} KiB", kind, 1) for kind in KINDS),
    Column("flat", "flat"),
)
MIB = 2**20
UNITS = {"flops": 1e9, "flops_per_second": 1e9, "argument_bytes": MIB, "temp_bytes": MIB, "peak_bytes": MIB}
UNITS |= dict.fromkeys((*KINDS, *EXCHANGES.values(), "watched_bytes"), 1024)


@dataclasses.dataclass(frozen=True)
class Effort:
    """How much is measured.

    Attributes:
        films: that are made up where no data are given; seven tenths of them, the train split, are read.
        records: that are read at most.
        images: that a measurement of the loader reads at least.
        reads: measurements of the loader; the median counts.
        repeats: runs of the step and of each part.
        counts: of virtual devices.
        least: the compiler tries less on virtual devices.
    """

    films: int = 60
    records: int = 256
    images: int = 256
    reads: int = 3
    repeats: int = 15
    counts: tuple[int, ...] = (1, 2, 4, 8)
    least: bool = False


QUICK = Effort(films=20, images=32, reads=1, repeats=3, counts=(2, 8), least=True)


def benchmark_step(
    config: Config, *, data: Path | None = None, quick: bool = False, scaling: bool = False
) -> list[dict]:
    """Measures the step of `config` and its parts, and returns the rows, ready for JSON.

    A row has all of FIELDS; None is what is not known or makes no sense.
    "part": step, or a part of it that is a program of its own: encoders (views, forward and backward pass), alignment
    (both losses and their gradient with respect to the features), optimizer (norms, clipping, update); rest, what of
    the step is in none of them; input, what the host reads meanwhile, on one core; scaling, a step that is compiled
    for "devices" virtual devices. "share": of the step's time. Work and bytes are of one device. "collective_bytes":
    by kind. "peak_bytes" and "in_use_bytes": `compile_program`, `step_parts.measure_parts`. "series",
    "parameter_bytes", "feature_bytes", "watched_bytes" and "flat": `step_scaling`. "failed": why a row has no figures.

    Args:
        config: its vocabulary is replaced by that of the data, as in training, unless its text encoder has weights.
        data: a folder that `build` wrote; None makes films up.
        scaling: also compile for virtual devices.

    Raises:
        InputError: the batch cannot be cut among the devices, or `data` is no such folder.
    """
    effort = QUICK if quick else Effort()
    cpu = devices_here()[0] == "cpu"
    tasks = list(_scaling_tasks(config, effort)) if scaling else []
    names = progress((INPUT, STEP, *tasks), "benchmark step", "part")
    with tempfile.TemporaryDirectory() as temporary:
        next(names)
        work = _work(config, data, Path(temporary), effort)
        if not config.text_encoder.weights:
            vocabulary = Tokenizer.load(Path(work.folder) / "tokenizer.json").vocab_size
            text = dataclasses.replace(config.text_encoder, vocab_size=vocabulary)
            config = dataclasses.replace(config, text_encoder=text)
        seconds, failed = _seconds_per_image(work, config, effort)
    next(names)
    asked = {"config": dataclasses.asdict(config), "repeats": effort.repeats, "core": core() if cpu else None}
    found = _answer(step_parts.__name__, asked, ONE_CORE if cpu else {})
    parts = found if isinstance(found, list) else [{"part": name, **found} for name in (STEP, *PARTS)]
    rows = [*with_shares(parts), _input_row(parts[0], seconds, failed)]
    return [_row(row) for row in rows] + [_row(row) for row in with_verdicts(_scaling_rows(names, config, effort))]


def with_shares(parts: Sequence[dict]) -> list[dict]:
    """The rows of `measure_parts` with their speed and share of the step, and after them that of the rest."""
    step, rows = parts[0], []
    for part in parts:
        row = dict(part)
        if part.get("ms"):
            flops, peak = part.get("flops"), part.get("device_flops_per_second")
            row |= {"share": part["ms"] / step["ms"] if step.get("ms") else None}
            row |= {"images_per_second": 1e3 * part["batch_size"] / part["ms"]}
            row |= {"flops_per_second": 1e3 * flops / part["ms"] if flops is not None else None}
            row |= {"mfu": row["flops_per_second"] / peak if peak and flops is not None else None}
        rows.append(row)
    left = {name: _difference(parts, name) for name in ("ms", "flops")}
    share = left["ms"] / step["ms"] if left["ms"] is not None else None
    about = {name: step.get(name) for name in ("batch_size", "devices", "device")}
    return [*rows, {"part": REST, "share": share, **left, **about}]


def _difference(parts: Sequence[dict], name: str) -> float | None:
    """A figure of the step less those of all parts, where all are known."""
    known = [part[name] for part in parts if part.get(name) is not None]
    return known[0] - sum(known[1:]) if len(known) == len(parts) else None


def step_table(rows: Sequence[dict]) -> Table:
    """The step, its parts, the rest, and what the host does."""
    (step,) = (row for row in rows if row["part"] == STEP)
    title = f"Training step, global batch {step['batch_size']}, {step['devices']} x {step['device']}"
    cells = [_cells(row, COLUMNS) for row in rows if row["part"] != SCALING]
    return Table(title if step["device"] else "Training step", COLUMNS, tuple(cells))


def scaling_table(rows: Sequence[dict]) -> Table:
    """The steps on virtual devices, per device and step."""
    verdicts = {True: "yes", False: "no", None: ""}
    cells = [
        _cells(row | (row["collective_bytes"] or {}) | {"flat": verdicts[row["flat"]]}, SCALING_COLUMNS)
        for row in sorted(rows, key=lambda row: row["series"] or "", reverse=True)  # the global batch fixed first
        if row["part"] == SCALING
    ]
    return Table("Compiled for virtual devices of the CPU, per device and step", SCALING_COLUMNS, tuple(cells))


def step_lines(rows: Sequence[dict]) -> list[str]:
    """What the table's rows say together, and what they leave out."""
    of = {row["part"]: row for row in rows}
    step, read, lines = of[STEP], of[INPUT], []
    if step["ms"]:
        clock = " in CPU time on one core" if step["device"] == "cpu" else ""
        mfu = f", MFU {100 * step['mfu']:.1f} %" if step["mfu"] else ""
        lines.append(f"training step: {step['images_per_second']:.0f} images/s{clock}{mfu}")
    if step["ms"] and read["ms"]:
        shared = ", which on a CPU the step shares" if step["device"] == "cpu" else ""
        lines.append(
            f"input: a core reads {read['images_per_second']:.0f} images/s; "
            f"the step takes {read['share']:.2f} loader cores{shared}"
        )
    if step["in_use_bytes"]:
        where = "the process holds" if step["device"] == "cpu" else "a device held at most"
        lines.append(f"memory: {where} {step['in_use_bytes'] / MIB:.0f} MiB after the first step")
    if of[REST]["ms"] is not None:
        lines.append(
            "encoders, alignment and optimizer are programs of their own: within the step the compiler works across "
            "their borders, so that the rest may be negative"
        )
    for row in rows:
        if row["unknown_loops"] and row["part"] != SCALING:
            lines.append(f"{row['part']}: {row['unknown_loops']} loops of unknown length count once in GFLOP")
        if row["kernels"]:
            lines.append(f"{row['part']}: GFLOP and MFU leave out {row['kernels']} calls of hand-written kernels")
    return lines


def _work(config: Config, data: Path | None, folder: Path, effort: Effort) -> Work:
    """What the loader reads; InputError where `data` cannot be read."""
    given = config.data
    store = Store().format
    built = data or build_films(write_films(folder / "raw", count=effort.films), folder / "built", format=store)
    work = Work(
        str(built),
        str(folder),
        effort.records,
        given.batch_size,
        max_tokens=given.max_tokens,
        max_words=given.max_words,
    )
    open_train(work)
    return work


def _seconds_per_image(work: Work, config: Config, effort: Effort) -> tuple[float | None, str | None]:
    """CPU time of the loader on one core, or why there is none."""
    side = loaded_side(config.data.image_size, config.data.crop)
    with LoaderChild(OURS, work) as child:
        taken = [child.ask(BATCHES, side, 0, effort.images) for _ in range(effort.reads)]
    failed = next((each["failed"] for each in taken if "failed" in each), None)
    return (None if failed else statistics.median(each["cpu"] / each["images"] for each in taken)), failed


def _input_row(step: dict, seconds: float | None, failed: str | None) -> dict:
    """Of the batch that the step was measured with."""
    row = {"part": INPUT, "device": "cpu", "batch_size": step.get("batch_size"), "failed": failed}
    if seconds is None or row["batch_size"] is None:
        return row
    ms = 1e3 * seconds * row["batch_size"]
    share = ms / step["ms"] if step.get("ms") else None
    return row | {"ms": ms, "share": share, "images_per_second": 1 / seconds}


def _scaling_tasks(config: Config, effort: Effort) -> Iterator[tuple[int, list[tuple[str, int]]]]:
    """Per number of devices the (series, global batch) that are compiled for it."""
    found = batches_of(config, effort.counts)
    for count in dict.fromkeys(count for _, count, _ in found):
        yield count, [(series, size) for series, of, size in found if of == count]


def _scaling_rows(tasks: Iterator[Any], config: Config, effort: Effort) -> list[dict]:
    rows = []
    for count, wanted in tasks:
        sizes = sorted({size for _, size in wanted})
        asked = {"config": dataclasses.asdict(config), "sizes": sizes, "quick": effort.least}
        extra = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": VIRTUAL.format(count)}
        found = _answer(step_scaling.__name__, asked, extra)
        for series, size in wanted:
            row = found[sizes.index(size)] if isinstance(found, list) else found
            rows.append({"batch_size": size, "devices": count, **row, "part": SCALING, "series": series})
    return rows


def _answer(module: str, asked: dict, extra: dict[str, str]) -> Any:
    """The rows that a process found, or why it found none; InputError where a person can mend that."""
    found = ask(module, asked, extra)
    if isinstance(found, dict) and found["wrong_input"]:
        raise InputError(found["failed"])
    return found


def _row(known: dict) -> dict:
    return {name: known.get(name) for name in FIELDS}


def _cells(row: dict, columns: Sequence[Column]) -> tuple:
    values = (row.get(column.name) for column in columns)
    return tuple(
        value if value is None or column.digits is None else value / UNITS.get(column.name, 1)
        for value, column in zip(values, columns, strict=True)
    )
