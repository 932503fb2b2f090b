"""The TFDS builder of every data set: shards of ArrayRecord written side by side, without TensorFlow; a killed build
goes on."""

import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import tensorflow_datasets as tfds

from plan_jax.data.records import SPLITS, features
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.data.shards import Shard, finished, write_shards
from plan_jax.data.store import Store
from plan_jax.errors import InputError

PARTS = "parts"  # in the staging folder: shards of a build that may go on later
SHARD_ROWS = 1024  # of one file: some 100 MB at 512 px as PNG
ROWS_PER_PROCESS = 256  # fewer are done before another process has started


def builder_of(tables: RowSet, *, data_dir: Path, images: Store, size: int | None, jobs: int | None) -> "Builder":
    """The builder of a data set, named as the set is.

    Args:
        tables: the data set.
        data_dir: gets NAME/VERSION/ and, meanwhile, parts/.
        images: how images are stored.
        size: images to keep, the first of every split in proportion; None keeps all.
        jobs: processes; None for one per core, or fewer where there is little to do.
    """
    fields = {"name": tables.name, "VERSION": tfds.core.Version(tables.version), "summary": tables.summary}
    made = type(type(tables).__name__, (Builder,), fields, skip_registration=True)  # pyright: ignore[reportCallIssue]
    return made(tables, data_dir=data_dir, images=images, size=size, jobs=jobs)


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of what `builder_of` makes.

    Attributes:
        dropped: rows of the raw data that gave no record, by reason.
        split_counts: split -> its records, patients, and the SHA-256 of its keys, one per line.
        progress: is told how many rows are done since the last call.
    """

    summary: str = ""
    code_path = None  # where TFDS would look for checksums of downloads; finding it needs importlib_resources

    def __init__(self, tables: RowSet, *, data_dir: Path, images: Store, size: int | None, jobs: int | None):
        self.tables, self.parts = tables, data_dir / PARTS
        self._images, self._size, self._jobs = images, size, jobs
        self.dropped: Counter[str] = Counter()
        self.split_counts: dict[str, dict[str, int | str]] = {}
        self.progress: Callable[[int], object] = lambda done: None
        super().__init__(data_dir=data_dir, file_format="array_record")

    @property
    def splits(self) -> Mapping[str, Sequence[Row]]:
        """The rows by split, read once."""
        if not hasattr(self, "_rows"):
            found = self.tables.rows()
            self._rows = {name: tuple(found[name]) for name in SPLITS if found.get(name)}
            self.dropped.update(self.tables.dropped)
            self._keep_first()
            _check_rows(self._rows, self.tables.classes)
        return self._rows

    @property
    def total(self) -> int:
        """Number of rows."""
        return sum(map(len, self.splits.values()))

    def _keep_first(self) -> None:
        everything, size = sum(map(len, self._rows.values())), self._size
        if size is None or size >= everything:
            return
        kept = {name: rows[: max(1, round(size * len(rows) / everything))] for name, rows in self._rows.items()}
        self.dropped["beyond --size"] += everything - sum(map(len, kept.values()))
        self._rows = kept

    # Everything below speaks TFDS.

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(builder=self, description=self.summary, features=features(), disable_shuffling=True)

    def _split_generators(self, dl_manager):
        raise NotImplementedError("_generate_splits does it all")

    def _generate_examples(self):
        raise NotImplementedError("_generate_splits does it all")

    def _generate_splits(self, dl_manager, download_config):
        """TFDS's own writer holds a split in memory and needs TensorFlow above 1 GB."""
        del dl_manager, download_config
        self.parts.mkdir(parents=True, exist_ok=True)
        make = partial(self.tables.record, images=self._images)
        shards = {
            name: [
                Shard(self.parts / f"{name}-{start // SHARD_ROWS:05d}", rows[start : start + SHARD_ROWS], make)
                for start in range(0, len(rows), SHARD_ROWS)
            ]
            for name, rows in self.splits.items()
        }
        everything = [shard for of_split in shards.values() for shard in of_split]
        jobs = self._jobs or max(1, min(len(os.sched_getaffinity(0)), self.total // ROWS_PER_PROCESS))
        write_shards(everything, processes=jobs, progress=self.progress)
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


class _LocalInfo(tfds.core.DatasetInfo):
    """What TFDS knows of a data set that is made here."""

    def initialize_from_bucket(self) -> None:
        """Asks no server for what is published of this data set; TFDS would, and would leave a temporary folder."""


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
