"""What a data set provides: rows, a split at a time. What follows is the same for all (`plan_jax.data.builder`).

A data set is one file with one `RowSet`: it turns the published tables into rows and counts what it leaves out.
Reading, shrinking and encoding images, scaling boxes, drawing masks and writing shards is not its business.
"""

import abc
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Self

from plan_jax.data.records import Record, file_hash
from plan_jax.data.row import Row
from plan_jax.data.store import Store, record_of
from plan_jax.errors import InputError


class RowSet(abc.ABC):
    """The tables of one data set, read.

    Attributes:
        name: of the data set, as on the command line.
        version: raised whenever the records of the same files and options change.
        summary: one sentence on what the data is and where it comes from (with the citation).
        classes: the names that `Row.labels` may hold, in a fixed order.
        dropped: how many rows of the tables were left out, by reason; counted while `rows` runs.
    """

    name: str
    version: str
    summary: str
    classes: tuple[str, ...] = ()

    def __init__(self, raw: Path, *, seed: int = 0):
        """Opens nothing yet: `raw` is the folder of the published files, `seed` of splits that are drawn."""
        self.raw, self.seed = raw, seed
        self.dropped: Counter[str] = Counter()

    @classmethod
    def open(cls, raw: Path | None, *, seed: int, size: int | None, level: str) -> Self:
        """The data set as the command line asks for it. InputError: options that cannot work; opens nothing yet."""
        if raw is None:
            raise InputError(f"--raw must name the folder of the published files for {cls.name}, got none; add it")
        if level:
            raise InputError(f"--level must be left out for {cls.name}, got {level!r}; remove it")
        if size is not None and size < 1:
            raise InputError(f"--size must be at least 1 for {cls.name}, got {size}; leave it out for all images")
        return cls(raw, seed=seed)

    def identity(self, *, size: int | None, images: Store) -> dict[str, int | str]:
        """What decides the records, without paths: two builds with the same are the same build.

        InputError: the raw folder is not as published.
        """
        tables = {path.name: file_hash(path) for path in self.inputs()}
        return {**tables, "seed": self.seed, **({} if size is None else {"size": size}), **images.identity()}

    @abc.abstractmethod
    def inputs(self) -> Sequence[Path]:
        """The tables (not the images) that decide the rows; their SHA-256 names the build.

        Raises:
            InputError: the raw folder is not as published; says which file is missing.
        """

    @abc.abstractmethod
    def rows(self) -> Mapping[str, Sequence[Row]]:
        """Split (of plan_jax.data.records.SPLITS) -> its rows, in an order that depends on the tables and seed alone.

        A row of a table that gives none is counted in `dropped`, by a short reason. Images are not opened, but that
        their files exist is checked.

        Raises:
            InputError: a table is damaged beyond the single row, naming file and line; or no row is left.
        """

    @staticmethod
    def record(row: Row, images: Store) -> Record | str:
        """The record of a row, or why there is none. Static, because processes are handed it."""
        return record_of(row, images)
