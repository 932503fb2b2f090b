"""What to book: rows of `compile` as a table of chips, memory, traffic and the largest batch that fits."""

import json
from collections.abc import Sequence
from pathlib import Path

from plan_jax.compilation.topology import GIB
from plan_jax.counting.counts import KINDS
from plan_jax.errors import InputError
from plan_jax.tables.model import Cell, Column, Table

SETTING = ("topology", "program", "exchange", "remat", "fsdp", "parts")  # what one line of the table is about
NEEDED = {*SETTING, "chips", "batch_size", "memory_bytes", "peak_bytes", "state_bytes", "collective_bytes", "fits"}
COLUMNS = (
    Column("topology", "topology"),
    Column("chips", "chips", 0),
    Column("GiB of a chip", "memory_bytes", 1),
    Column("program", "program"),
    Column("exchange", "exchange"),
    Column("remat", "remat"),
    Column("fsdp", "fsdp", 0),
    Column("micro-batches", "parts", 0),
    Column("largest global batch that fits", "batch_size", 0),
    Column("tried, does not fit", "bad", 0),
    Column("GiB per chip at the largest", "peak_bytes", 2),
    Column("of these parameters and moments", "state_bytes", 2),
    *(Column(f"{kind} MiB", kind, 0) for kind in KINDS),
)


def read_rows(paths: Sequence[Path]) -> list[dict]:
    """The rows of files that `compile --json` printed.

    Raises:
        InputError: a file is missing or holds something else.
    """
    rows = []
    for path in paths:
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError) as error:
            raise InputError(
                f"--rows {path} must be what compile --json printed, got {error}; print it anew"
            ) from error
        if not isinstance(found, list) or not all(isinstance(row, dict) and row.keys() >= NEEDED for row in found):
            raise InputError(f"--rows {path} must be a list of rows of compile --json, got another; print it anew")
        rows += found
    return rows


def planning_table(rows: Sequence[dict]) -> Table:
    """A line per topology, program and setting; memory and traffic are those of the largest batch that fits."""
    groups: dict[tuple, list[dict]] = {}
    for row in rows:
        groups.setdefault(tuple(row[name] for name in SETTING), []).append(row)
    title = "What fits, per chip and step (bytes in GiB and MiB)"
    return Table(title, COLUMNS, tuple(map(_line, groups.values())))


def _line(rows: Sequence[dict]) -> tuple[Cell, ...]:
    largest = max((row for row in rows if row["fits"]), key=lambda row: row["batch_size"], default=None)
    bad = min((row["batch_size"] for row in rows if row["fits"] is False), default=None)
    values = {name: rows[0][name] for name in (*SETTING, "chips")} | {"bad": bad, "batch_size": None}
    values |= {"memory_bytes": rows[0]["memory_bytes"] and rows[0]["memory_bytes"] / GIB}
    if largest:
        values |= {kind: largest["collective_bytes"].get(kind, 0) / 2**20 for kind in KINDS}
        values |= {name: largest[name] and largest[name] / GIB for name in ("peak_bytes", "state_bytes")}
        values |= {"batch_size": largest["batch_size"]}
    return tuple(values.get(column.name) for column in COLUMNS)
