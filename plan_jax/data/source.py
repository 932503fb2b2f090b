"""What a build reads, cut into shards."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from plan_jax.data.records import SPLITS
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.data.shards import Shard, write_shards
from plan_jax.data.store import Store
from plan_jax.errors import InputError

SHARD_ROWS = 1024  # of one file: some 100 MB at 512 px as PNG


@dataclass(frozen=True)
class Source:
    """A data set and how it is stored. Small to pickle: another process reads the tables itself and finds the same.

    Attributes:
        tables: the data set.
        images: how images are stored.
        size: images to keep, the first of every split in proportion; None keeps all.
        parts: folder where the shards are written.
    """

    tables: RowSet
    images: Store
    size: int | None
    parts: Path

    @property
    def rows(self) -> dict[str, tuple[Row, ...]]:
        """Split -> its rows. InputError as of `RowSet.rows`; ValueError: they break a rule of the schema."""
        return self._read[0]

    @property
    def dropped(self) -> Counter[str]:
        """How many rows of the tables are left out, by reason, before an image is opened."""
        return self._read[1]

    @cached_property
    def _read(self) -> tuple[dict[str, tuple[Row, ...]], Counter[str]]:
        found = self.tables.rows()
        rows = {name: tuple(found[name]) for name in SPLITS if found.get(name)}
        _check_rows(rows, self.tables.classes)
        everything = sum(map(len, rows.values()))
        if self.size is None or self.size >= everything:
            return rows, +self.tables.dropped
        kept = {name: of[: max(1, round(self.size * len(of) / everything))] for name, of in rows.items()}
        beyond = everything - sum(map(len, kept.values()))
        return kept, self.tables.dropped + Counter({"beyond --size": beyond})

    @cached_property
    def shards(self) -> dict[str, list[Shard]]:
        """Split -> its shards."""
        make = partial(self.tables.record, images=self.images)
        return {
            name: [
                Shard(self.parts / f"{name}-{start // SHARD_ROWS:05d}", rows[start : start + SHARD_ROWS], make)
                for start in range(0, len(rows), SHARD_ROWS)
            ]
            for name, rows in self.rows.items()
        }

    def __getstate__(self) -> dict[str, Any]:
        """Without the rows."""
        return {name: vars(self)[name] for name in ("tables", "images", "size", "parts")}


def _check_rows(splits: Mapping[str, Sequence[Row]], classes: Sequence[str]) -> None:
    """Holds a data set to the schema: unique keys, patients in one split, known labels."""
    keys: set[str] = set()
    split_of: dict[str, str] = {}
    for name, rows in splits.items():
        for row in rows:
            if row.key in keys:
                raise ValueError(f"a row's key must be unique, got {row.key} again at {row.where}")
            if split_of.setdefault(row.patient, name) != name:
                raise ValueError(f"a patient must be in one split, got row {row.key} in {name} and another")
            if set(row.labels) - set(classes):
                raise ValueError(f"labels must be in {tuple(classes)}, got others in row {row.key}")
            keys.add(row.key)
    if not keys:
        raise InputError("a data set must have a row with an image, got none; check --raw")


def write_in_processes(source: Source, *, jobs: int | None, progress: Callable[[int], object]) -> None:
    """Writes the shards that are not whole yet in so many processes here; None: as `write_shards` does."""
    write_shards([shard for of in source.shards.values() for shard in of], processes=jobs, progress=progress)
