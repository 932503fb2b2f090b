"""What a table is, before it is printed."""

import dataclasses

Cell = str | dict | float | None  # words, or an interval, a number, or nothing known


@dataclasses.dataclass(frozen=True)
class Column:
    """A heading, the name in CSV files, and the digits after the point (None: words, no numbers)."""

    heading: str
    name: str
    digits: int | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A cell is words, a number, an interval {"value", "low", "high"}, or None where nothing was measured.

    `notes` are sentences that stand below it; CSV has none.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()


def bounds_of(cell: Cell) -> tuple:
    """A number as (value, low, high), with None for what is not there."""
    return (cell.get("value"), cell.get("low"), cell.get("high")) if isinstance(cell, dict) else (cell, None, None)
