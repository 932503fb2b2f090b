"""Tables as published: CSV, plain or gzipped, row by row with the line that each comes from.

Names of columns are matched without case and outer spaces, damaged characters are replaced, and a row that does not fit
its header is marked rather than guessed at: a cell too many or too few may put every label under another name.
"""

import csv
import gzip
import io
import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from plan_jax.errors import InputError

MAX_BYTES = 2**30  # of a table, decompressed: far above what is published; a small .gz may unfold to anything
TOO_MANY, TOO_FEW, BROKEN = "more cells than the header", "fewer cells than the header", "a cell over several lines"


@dataclass(frozen=True)
class TableRow:
    """A row of a table.

    Attributes:
        line: in the file; the last one where a cell has several.
        cells: of the columns asked for, in that order, stripped; "" where the row is too short.
        fault: why the row cannot be trusted, a reason to count, or "".
    """

    line: int
    cells: tuple[str, ...]
    fault: str = ""


def read_text(path: Path) -> str:
    """The text of a file, decompressed if its name ends in .gz; damaged characters become U+FFFD, no byte order mark.

    InputError: it cannot be read or is no whole gzip file.
    """
    try:
        data = path.read_bytes()
        if path.suffix == ".gz":
            with gzip.open(io.BytesIO(data)) as stream:
                data = stream.read(MAX_BYTES + 1)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"{path} must be a file that can be read, got {reason}; get it again") from error
    if len(data) > MAX_BYTES:
        raise InputError(f"{path} must hold at most {MAX_BYTES} bytes of text, got more; give the table as published")
    return data.decode("utf-8-sig", errors="replace")


def read_table(path: Path, columns: Sequence[str]) -> list[TableRow]:
    """The rows of a CSV file, blank ones left out.

    A row is too short where a cell under a name is missing (a header may end in columns without one), and too long
    where a cell beyond the header holds something.
    InputError: the file cannot be read, has not these columns once each, or its quotes or sizes are no table's; names
    file and line.
    """
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        names = [name.strip().lower() for name in next(lines, [])]
        for column in columns:
            count = names.count(column.lower())
            if count != 1:
                raise InputError(f"{path} line 1 must name the column {column} once, got {count}; give it as published")
        return list(_rows(lines, names, [names.index(column.lower()) for column in columns]))
    except csv.Error as error:
        raise InputError(f"{path} line {lines.line_num} must be of a CSV table, got {error}; repair it") from error


def _rows(lines, names: Sequence[str], places: Sequence[int]) -> Iterator[TableRow]:
    width, needed = len(names), max((place + 1 for place, name in enumerate(names) if name), default=0)
    for cells in lines:
        if not any(map(str.strip, cells)):
            continue
        found = tuple(cells[place].strip() if place < len(cells) else "" for place in places)
        yield TableRow(lines.line_num, found, _fault(cells, width=width, needed=needed))


def _fault(cells: Sequence[str], *, width: int, needed: int) -> str:
    if any("\n" in cell or "\r" in cell for cell in cells):
        return BROKEN  # two stray quotes swallow what is between them, whole rows if need be
    if len(cells) < needed:
        return TOO_FEW
    return TOO_MANY if any(map(str.strip, cells[width:])) else ""


def is_blank(cell: str) -> bool:
    """Whether a cell says nothing: empty, or "nan" as pandas writes it."""
    return cell.strip().lower() in ("", "nan")


def number(cell: str) -> float | None:
    """The finite number in a cell, or None."""
    try:
        value = float(cell)
    except ValueError:
        return None
    return value if math.isfinite(value) else None
