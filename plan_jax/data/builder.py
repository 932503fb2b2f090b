"""The TFDS builder of every data set: shards of ArrayRecord written side by side, without TensorFlow; a killed build
goes on."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import tensorflow_datasets as tfds

from plan_jax.data.records import features
from plan_jax.data.row import Row
from plan_jax.data.shards import Shard, finished
from plan_jax.data.source import Source
from plan_jax.errors import InputError


class WriteShards(Protocol):
    """Writes the shards of a source that are not whole yet; `progress` is told how many rows are done since."""

    def __call__(self, source: Source, *, progress: Callable[[int], object]) -> None: ...


def builder_of(source: Source, *, data_dir: Path, write: WriteShards) -> "Builder":
    """The builder of a data set, named as the set is; `data_dir` gets NAME/VERSION/."""
    tables = source.tables
    fields = {"name": tables.name, "VERSION": tfds.core.Version(tables.version), "summary": tables.summary}
    made = type(type(tables).__name__, (Builder,), fields, skip_registration=True)  # pyright: ignore[reportCallIssue]
    return made(source, data_dir=data_dir, write=write)


class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of what `builder_of` makes.

    Attributes:
        dropped: rows of the raw data that gave no record, by reason.
        split_counts: split -> its records, patients, and the SHA-256 of its keys, one per line.
        progress: is told how many rows are done since the last call.
    """

    summary: str = ""
    code_path = None  # where TFDS would look for checksums of downloads; finding it needs importlib_resources

    def __init__(self, source: Source, *, data_dir: Path, write: WriteShards):
        self._source, self._write = source, write
        self.dropped: Counter[str] = Counter()
        self.split_counts: dict[str, dict[str, int | str]] = {}
        self.progress: Callable[[int], object] = lambda done: None
        super().__init__(data_dir=data_dir, file_format="array_record")

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(builder=self, description=self.summary, features=features(), disable_shuffling=True)

    def _split_generators(self, dl_manager):
        raise NotImplementedError("_generate_splits does it all")

    def _generate_examples(self):
        raise NotImplementedError("_generate_splits does it all")

    def _generate_splits(self, dl_manager, download_config):
        """TFDS's own writer holds a split in memory and needs TensorFlow above 1 GB."""
        del dl_manager, download_config
        self.dropped.update(self._source.dropped)
        self._source.parts.mkdir(parents=True, exist_ok=True)
        self._write(self._source, progress=self.progress)
        return list(self._taken())

    def _taken(self) -> Iterator[tfds.core.SplitInfo]:
        """Moves the whole shards to where TFDS looks for them, and counts what they hold."""
        for name, of_split in self._source.shards.items():
            known = [(shard, finished(shard)) for shard in of_split]
            full = [(shard, found) for shard, found in known if found and found.records]
            if not full:
                raise InputError(f"split {name} must hold at least one image, got none that can be read; check --raw")
            template = self._get_filename_template(split_name=name)
            for index, (shard, _) in enumerate(full):
                shard.path.rename(template.sharded_filepath(shard_index=index, num_shards=len(full)))
            self._count(name, of_split, [dict(found.dropped) if found else {} for _, found in known])
            lengths, size = [found.records for _, found in full], sum(found.bytes for _, found in full)
            yield tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=size, filename_template=template)

    def _count(self, split: str, shards: Sequence[Shard], lost: Sequence[dict[int, str]]) -> None:
        kept: list[Row] = []
        for shard, of_shard in zip(shards, lost, strict=True):
            self.dropped.update(of_shard.values())
            kept += [row for index, row in enumerate(shard.rows) if index not in of_shard]
        keys = hashlib.sha256("\n".join(row.key for row in kept).encode()).hexdigest()
        patients = len({row.patient for row in kept})
        self.split_counts[split] = {"records": len(kept), "patients": patients, "keys_sha256": keys}


class _LocalInfo(tfds.core.DatasetInfo):
    """What TFDS knows of a data set that is made here."""

    def initialize_from_bucket(self) -> None:
        """Asks no server for what is published of this data set; TFDS would, and would leave a temporary folder."""
