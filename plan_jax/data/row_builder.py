"""The TFDS builder of every data set that is a `RowSet`: shards written in parallel, a killed build goes on."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import tensorflow_datasets as tfds

from plan_jax.data.builder import BuildOptions, RecordBuilder
from plan_jax.data.records import SPLITS, file_hash
from plan_jax.data.rows import Row, RowSet
from plan_jax.data.shards import Shard, finished, write_shards
from plan_jax.data.store import record_of
from plan_jax.errors import InputError

PARTS = "parts"  # in the staging folder: shards of a build that may go on later
SHARD_ROWS = 1024  # of one file: some 100 MB at 512 px as PNG


def builder_of(rows: type[RowSet]) -> type[RecordBuilder]:
    """The builder of a data set, named as the set is."""
    fields = {"name": rows.name, "VERSION": tfds.core.Version(rows.version), "summary": rows.summary, "row_set": rows}
    return type(rows.__name__, (RowBuilder,), fields, skip_registration=True)  # pyright: ignore[reportCallIssue]


class RowBuilder(RecordBuilder, skip_registration=True):
    """Base of what `builder_of` makes; `row_set` is the data set's `RowSet`."""

    row_set: type[RowSet]

    def __init__(self, options: BuildOptions, *, data_dir: Path):
        super().__init__(options, data_dir=data_dir)
        self.parts = data_dir / PARTS

    def check(self) -> None:
        name, options = self.row_set.name, self.options
        if options.raw is None:
            raise InputError(f"--raw must name the folder of the published files for {name}, got none; add it")
        if options.level:
            raise InputError(f"--level must be left out for {name}, got {options.level!r}; remove it")
        if options.size is not None and options.size < 1:
            raise InputError(f"--size must be at least 1 for {name}, got {options.size}; leave it out for all images")
        self.tables = self.row_set(options.raw, seed=options.seed)
        self.inputs = {path.name: file_hash(path) for path in self.tables.inputs()}

    def manifest_options(self) -> dict[str, int | str]:
        size = {} if self.options.size is None else {"size": self.options.size}
        return {**self.inputs, "seed": self.options.seed, **size, **dataclasses.asdict(self.options.images)}

    def total(self) -> int:
        return sum(len(rows) for rows in self.splits.values())

    def read(self) -> Mapping[str, Sequence[Row]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return self.splits

    @property
    def splits(self) -> Mapping[str, Sequence[Row]]:
        """The rows by split, read once; with --size, the first of every split in proportion."""
        if not hasattr(self, "_rows"):
            found = self.tables.rows()
            self._rows = {name: tuple(found[name]) for name in SPLITS if found.get(name)}
            self.dropped.update(self.tables.dropped)
            self._keep_first()
            self.classes = tuple(self.tables.classes)
            _check_rows(self._rows, self.classes)
        return self._rows

    def _keep_first(self) -> None:
        everything, size = sum(map(len, self._rows.values())), self.options.size
        if size is None or size >= everything:
            return
        kept = {name: rows[: max(1, round(size * len(rows) / everything))] for name, rows in self._rows.items()}
        self.dropped["beyond --size"] += everything - sum(map(len, kept.values()))
        self._rows = kept

    def _generate_splits(self, dl_manager, download_config):
        del dl_manager, download_config
        self.parts.mkdir(parents=True, exist_ok=True)
        make = partial(record_of, store=self.options.images)
        shards = {
            name: [
                Shard(self.parts / f"{name}-{start // SHARD_ROWS:05d}", rows[start : start + SHARD_ROWS], make)
                for start in range(0, len(rows), SHARD_ROWS)
            ]
            for name, rows in self.splits.items()
        }
        everything = [shard for of_split in shards.values() for shard in of_split]
        write_shards(everything, processes=self.options.jobs, progress=self.progress)
        return list(self._taken(shards))

    def _taken(self, shards: Mapping[str, Sequence[Shard]]) -> Iterator[tfds.core.SplitInfo]:
        """Moves the whole shards to where TFDS looks for them, and counts what they hold."""
        for name, of_split in shards.items():
            known = [(shard, finished(shard)) for shard in of_split]
            full = [(shard, found) for shard, found in known if found and found.records]
            kept: list[Row] = []
            for shard, found in known:
                lost = dict(found.dropped) if found else {}
                self.dropped.update(lost.values())
                kept += [row for index, row in enumerate(shard.rows) if index not in lost]
            if not full:
                raise InputError(f"split {name} must hold at least one image, got none that can be read; check --raw")
            template = self._get_filename_template(split_name=name)
            for index, (shard, _) in enumerate(full):
                shard.path.rename(template.sharded_filepath(shard_index=index, num_shards=len(full)))
            lengths = [found.records for _, found in full]
            keys = hashlib.sha256("\n".join(row.key for row in kept).encode()).hexdigest()
            patients = len({row.patient for row in kept})
            self.split_counts[name] = {"records": len(kept), "patients": patients, "keys_sha256": keys}
            size = sum(found.bytes for _, found in full)
            yield tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=size, filename_template=template)


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
