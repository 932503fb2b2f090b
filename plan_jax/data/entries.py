"""Tables with a line per box or mask: read so that damage stays in its line, gathered by image.

A box that cannot be read is a box that is missing: a detector that finds it would be called wrong. So an image with one
damaged line is left out whole.
"""

import csv
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from plan_jax.data.records import SPLITS
from plan_jax.data.row import Row
from plan_jax.errors import InputError

# why lines are dropped
CELLS = "not as many cells as the header"
NO_NAME = "no name of a file"
SIBLING = "another line of the image is damaged"
CONTRADICTION = "lines of the image contradict each other"

_FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")  # also keeps a name from leading out of the folder
_NUMBER = re.compile(r"-?\d{1,9}(\.\d{0,9})?", re.ASCII)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Line:
    """A line of a table. `cells`: of the columns asked for, stripped; `whole`: it has as many cells as the header."""

    number: int
    cells: tuple[str, ...]
    whole: bool


@dataclass(frozen=True)
class Entry(Generic[Value]):
    """What a line says of an image, or why it says nothing: `fault` is "" where `value` holds."""

    number: int
    name: str
    value: Value | None
    fault: str = ""


def published(raw: Path, table: str, images: str) -> Path:
    """Path of the table. InputError: `raw` lacks the table or the folder of images."""
    if not (raw / table).is_file() or not (raw / images).is_dir():
        missing = images + "/" if (raw / table).is_file() else table
        raise InputError(f"--raw must hold {table} and {images}/, got no {missing} in {raw}; give another folder")
    return raw / table


def read_lines(path: Path, columns: Sequence[str]) -> Iterator[Line]:
    """The lines below the header of a CSV table whose cells hold no line breaks; blank lines are passed over.

    Bytes that are no UTF-8 become U+FFFD. InputError: the file cannot be read, the header lacks a column.
    """
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as error:
        raise InputError(f"{path} must be readable, got {error.strerror}; check its permissions") from error
    lines = text.replace("\r\n", "\n").split("\n")
    header = [name.lower() for name in _cells(lines[0]) or ()]
    for column in columns:
        if column.lower() not in header:
            raise InputError(f"{path} line 1 must have the column {column}, got none; give the table as published")
    places = [header.index(column.lower()) for column in columns]
    for number, line in enumerate(lines[1:], start=2):
        if not line.strip():
            continue
        read = _cells(line)
        cells = read or [cell.strip('" \r') for cell in line.split(",")]  # broken quotes: it still tells the image
        whole = bool(read) and len(cells) >= len(header) and not any(cells[len(header) :])
        yield Line(number, tuple(cells[place] if place < len(cells) else "" for place in places), whole)


def _cells(line: str) -> list[str] | None:
    """The cells of one line, stripped; None where its quotes do not match or a cell is absurdly long."""
    try:
        return [cell.strip() for cell in next(csv.reader([line], strict=True), [])]
    except csv.Error:
        return None


def is_file_name(name: str) -> bool:
    """Whether the name of an image can be joined to a folder."""
    return _FILE_NAME.fullmatch(name) is not None


def file_names(entries: Iterable[Entry]) -> set[str]:
    """The images that a table names, damaged lines included."""
    return {entry.name for entry in entries if is_file_name(entry.name)}


def gather(entries: Iterable[Entry[Value]], dropped: Counter[str]) -> dict[str, list[Entry[Value]]]:
    """Image -> its entries, in the order of the table; images with a damaged entry are dropped and counted."""
    groups: dict[str, list[Entry[Value]]] = {}
    for entry in entries:
        if is_file_name(entry.name):
            groups.setdefault(entry.name, []).append(entry)
        else:
            dropped[entry.fault or NO_NAME] += 1
    for name in [name for name, group in groups.items() if any(entry.fault for entry in group)]:
        dropped.update(entry.fault or SIBLING for entry in groups.pop(name))
    return groups


def numbers(cells: Sequence[str]) -> list[float] | None:
    """The cells as numbers; None where one is not a plain decimal number of at most nine digits before the point."""
    return [float(cell) for cell in cells] if all(map(_NUMBER.fullmatch, cells)) else None


def split_rows(
    rows: Iterable[Row], split: Mapping[str, str], *, table: Path, dropped: Counter[str]
) -> dict[str, list[Row]]:
    """Split -> its rows, in the given order and without empty splits; `split` names that of each patient.

    InputError: there are no rows.
    """
    parts: dict[str, list[Row]] = {name: [] for name in SPLITS}
    for row in rows:
        parts[split[row.patient]].append(row)
    if not any(parts.values()):
        reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(dropped.items()))
        raise InputError(
            f"{table} must have a line that can be used, got {reasons or 'no lines'}; give the data set as published"
        )
    return {name: part for name, part in parts.items() if part}
