"""Compiling the programs of a configuration for a topology, and what to say of them."""

import dataclasses
import functools
import re
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from plan_jax.compilation.programs import PROGRAMS, state_bytes
from plan_jax.compilation.topology import GIB, Topology, devices_of
from plan_jax.config import Config
from plan_jax.counting.counts import KINDS, count
from plan_jax.errors import InputError
from plan_jax.sharding import make_mesh
from plan_jax.tables.model import Cell, Column, Table

COLUMNS = (
    Column("topology", "topology"),
    Column("program", "program"),
    Column("global batch", "batch_size", 0),
    Column("fits", "fits"),
    Column("GiB per chip", "peak_bytes", 2),
    Column("of", "memory_bytes", 2),
    Column("parameters and moments", "state_bytes", 2),
    Column("arguments", "argument_bytes", 2),
    Column("temporaries", "temp_bytes", 2),
    Column("TFLOP", "flops", 3),
    *(Column(f"{kind} MiB", kind, 1) for kind in KINDS),
    Column("compiled in s", "seconds", 0),
)
UNITS = {
    "peak_bytes": GIB,
    "memory_bytes": GIB,
    "state_bytes": GIB,
    "argument_bytes": GIB,
    "temp_bytes": GIB,
    "flops": 1e12,
}
NEEDS = re.compile(r"\b([\d.]+)([KMGT])\b")  # how the TPU compiler writes sizes
# Of -1 to 1, read by XLA's compilers. A TPU's then keeps less in its fast memory and frees less in the large one by
# computing again, so that the peak is an upper bound of what the usual effort (0) finds.
LEAST_EFFORT: dict[str, Any] = {"exec_time_optimization_effort": -1.0}
# How a program is refused for its batch: for memory, or by JAX for more of a GPU's kernel than can be launched.
TOO_LARGE = ("RESOURCE_EXHAUSTED", "kernel launch grid")
MOST = 2**24  # pairs of a batch that is tried
AIM, ENOUGH = 0.98, 0.95  # shares of a chip's memory: where a search aims, and at which it ends
POWER = {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def compile_program(name: str, config: Config, topology: Topology, mesh: Mesh, *, quick: bool = False) -> dict:
    """A row: what one program of PROGRAMS needs on each chip of a topology.

    Bytes are of one chip; "peak_bytes" = arguments + temporaries + outputs less the outputs that take the place of
    arguments. "flops" and "collective_bytes" are of one step and one chip (`counts.Counts`). Where the compiler
    refuses the program for want of memory, "fits" is False, "peak_bytes" is what it said that it needs at least, and
    the rest is None. `quick`: with the least effort.
    """
    row = {"topology": topology.name, "chips": topology.size, "program": name}
    row |= {"exchange": config.alignment.exchange, "fsdp": config.mesh.fsdp, "parts": config.train.micro_batches}
    row |= {"remat": ", ".join(dict.fromkeys((config.image_encoder.remat, config.text_encoder.remat)))}
    row |= {"batch_size": config.data.batch_size, "memory_bytes": topology.chip.memory}
    row |= {"state_bytes": state_bytes(config, mesh) if name == "step" else None}
    start = time.perf_counter()
    try:
        compiled = PROGRAMS[name](config, mesh).compile(compiler_options=LEAST_EFFORT if quick else None)
    except (jax.errors.JaxRuntimeError, AssertionError) as error:
        if not any(said in str(error) for said in TOO_LARGE):
            raise
        row |= _refused(str(error)) | {"seconds": time.perf_counter() - start}
    else:
        row |= {"seconds": time.perf_counter() - start} | needs_of(compiled)
    return row | {"fits": fits(row["peak_bytes"], row["memory_bytes"], refused="error" in row)}


def fits(peak_bytes: int | None, memory_bytes: int | None, *, refused: bool = False) -> bool | None:
    """Whether a program fits into a chip; None where the chip's memory is not known."""
    if refused:
        return False
    return None if memory_bytes is None or peak_bytes is None else peak_bytes <= memory_bytes


def needs_of(compiled: jax.stages.Compiled) -> dict:
    """The bytes and the counts of a row.

    Raises:
        RuntimeError: the compiler does not tell them.
    """
    memory, text = compiled.memory_analysis(), compiled.as_text()
    if memory is None or text is None:
        raise RuntimeError("the compiler tells neither the memory nor the text of its programs")
    counts = count(text)
    kept = memory.output_size_in_bytes - memory.alias_size_in_bytes
    return {
        "peak_bytes": memory.argument_size_in_bytes + memory.temp_size_in_bytes + kept,
        "argument_bytes": memory.argument_size_in_bytes,
        "temp_bytes": memory.temp_size_in_bytes,
        "output_bytes": memory.output_size_in_bytes,
        "alias_bytes": memory.alias_size_in_bytes,
        **dataclasses.asdict(counts),
    }


def _refused(message: str) -> dict:
    """What a compiler said that ran out of memory."""
    line = " ".join(message.splitlines()[0].split())
    sizes = [float(number) * POWER[unit] for number, unit in NEEDS.findall(line)]
    nothing = dict.fromkeys(("argument_bytes", "temp_bytes", "output_bytes", "alias_bytes", "flops"))
    nothing |= {"collective_bytes": {}, "unknown_loops": None, "kernels": None}
    return {"peak_bytes": int(max(sizes)) if sizes else None, **nothing, "error": line}


# Several programs, several batches


def rows_of(
    topologies: Sequence[Topology],
    programs: Sequence[str],
    config: Config,
    *,
    largest: bool = False,
    quick: bool = False,
) -> Iterator[dict]:
    """A row per topology and program, as it is compiled; with `largest` one per batch that was tried.

    Raises:
        InputError: a compiler is not installed, or the batch cannot be cut among the chips.
    """
    for topology in topologies:
        mesh = make_mesh(devices_of(topology), fsdp=config.mesh.fsdp)
        if largest and topology.chip.memory is None:
            raise InputError(f"--largest-batch must have a chip of known memory, got {topology.name}; name another")
        for program in programs:
            measure = functools.partial(_measure, program, config, topology, mesh, quick)
            if largest:
                yield from largest_batch(measure, start=config.data.batch_size, step=topology.size)
            else:
                yield measure(config.data.batch_size)


def _measure(program: str, config: Config, topology: Topology, mesh: Mesh, quick: bool, size: int) -> dict:
    """A row of the program at another global batch."""
    return compile_program(program, with_batch(config, size), topology, mesh, quick=quick)


def with_batch(config: Config, size: int) -> Config:
    """The configuration with another global batch."""
    return dataclasses.replace(config, data=dataclasses.replace(config.data, batch_size=size))


def largest_batch(measure: Callable[[int], dict], *, start: int, step: int) -> Iterator[dict]:
    """Rows of the batches that are tried to find where they stop fitting.

    Doubles from `start` until a batch does not fit (or halves until one fits), then tries the batch between these two
    that would use up the memory if that grew evenly, and last the middle between the two then closest; nothing more
    once `ENOUGH` of the memory is taken. All but `start` are multiples of `step`; at `MOST` pairs the search ends
    without an answer.
    """
    good, bad, size = None, None, start
    between = [_middle, _used_up]
    while size and size <= MOST:
        row = measure(size)
        yield row
        good, bad = (row, bad) if row["fits"] else (good, row)
        if bad is None:
            size *= 2
        elif good is None:
            size = bad["batch_size"] // 2 // step * step
        else:
            if not between or good["peak_bytes"] >= ENOUGH * good["memory_bytes"]:
                return
            size = between.pop()(good, bad) // step * step
            if size in (good["batch_size"], bad["batch_size"]):
                return


def _middle(good: dict, bad: dict) -> int:
    return (good["batch_size"] + bad["batch_size"]) // 2


def _used_up(good: dict, bad: dict) -> int:
    """Where `AIM` of the memory would be taken if it grew evenly from a batch that fits to one that does not.

    The middle where the compiler did not say how much the latter needs, or no more than there is.
    """
    if bad["peak_bytes"] is None or bad["peak_bytes"] <= bad["memory_bytes"]:
        return _middle(good, bad)
    share = (AIM * good["memory_bytes"] - good["peak_bytes"]) / (bad["peak_bytes"] - good["peak_bytes"])
    return good["batch_size"] + int(share * (bad["batch_size"] - good["batch_size"]))


# Tables


def compile_table(rows: Sequence[dict]) -> Table:
    """A line per program."""
    cells = tuple(tuple(_cell(row, column) for column in COLUMNS) for row in rows)
    return Table("Compiled, per chip and step (bytes in GiB and MiB)", COLUMNS, cells)


def _cell(row: dict, column: Column) -> Cell:
    value = row["collective_bytes"].get(column.name) if column.name in KINDS else row[column.name]
    if column.name == "fits":
        return {True: "yes", False: "no", None: "unknown"}[value]
    divisor = 2**20 if column.name in KINDS else UNITS.get(column.name, 1)
    return value if value is None or column.digits is None else value / divisor


def compile_line(row: dict) -> str:
    """What is said as soon as a program is compiled."""
    fitted = {True: "fits", False: "does not fit", None: "unknown whether it fits"}[row["fits"]]
    memory, peak = row["memory_bytes"], row["peak_bytes"]
    sizes = "" if peak is None else f", {peak / GIB:.2f} GiB" + (f" of {memory / GIB:.2f}" if memory else "")
    return f"{row['topology']}, {row['program']}, batch {row['batch_size']}: {fitted}{sizes}"


def compile_notes(rows: Sequence[dict]) -> list[str]:
    """Lines that say what the figures leave out."""
    notes = []
    for row in rows:
        where = f"{row['topology']}, {row['program']}, batch {row['batch_size']}"
        if "error" in row:
            notes.append(f"{where}: the compiler refused it: {row['error']}")
        if row["unknown_loops"]:
            notes.append(
                f"{where}: {row['unknown_loops']} loops run as long as the data asks; TFLOP and collectives count "
                "their bodies once"
            )
        if row["kernels"]:
            notes.append(f"{where}: TFLOP leaves out {row['kernels']} calls of hand-written kernels")
    return notes
