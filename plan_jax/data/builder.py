"""What a data set provides, and how it gets to disk: a TFDS builder that streams ArrayRecord, without TensorFlow."""

import abc
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from plan_jax.data.records import SPLITS, Record, features, to_example
from plan_jax.data.store import Store
from plan_jax.errors import InputError

SHARD_BYTES = 256 << 20  # a shard is closed once its records exceed this


@dataclass(frozen=True)
class BuildOptions:
    """What the command line asks of a builder; None or "" where it was not given."""

    raw: Path | None = None
    size: int | None = None
    seed: int = 0
    level: str = ""
    images: Store = field(default_factory=Store)
    jobs: int = 1  # processes


class RecordBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """Base of every data set: `class CovidCxr(RecordBuilder, skip_registration=True)` becomes data set `covid_cxr`.

    A subclass provides
        VERSION: `tfds.core.Version("1.0.0")`, raised whenever the records of the same options change;
        summary: one sentence on what the data is and where it comes from;
        classes: the names that `Record.labels` may hold, in a fixed order;
        check(): raises InputError for options that cannot work (no raw folder, an unknown level); called first, cheap;
        manifest_options(): what decides the records, for the manifest: numbers and strings, no paths (a raw folder
            enters as the hash of its table); two builds with equal options are the same build;
        read(): split name -> iterable of its records, each split consumed once, in the order of SPLITS. The order of
            the records is kept on disk and must be a pure function of the options. Reading all up front is fine;
        dropped: count `self.dropped[reason] += 1` for every row of the raw data that gives no record.
        total(): how many records to expect, for the progress bar; None where that is unknown.
    `self.options` holds the BuildOptions. Errors in the raw data: InputError naming file and row.
    """

    summary: str = ""
    classes: tuple[str, ...] = ()
    code_path = None  # where TFDS would look for checksums of downloads; finding it needs importlib_resources

    def __init__(self, options: BuildOptions, *, data_dir: Path):
        self.options = options
        self.dropped: Counter[str] = Counter()
        self.split_counts: dict[str, dict[str, int | str]] = {}
        self.progress: Callable[[int], object] = lambda done: None
        self.check()
        super().__init__(data_dir=data_dir, file_format="array_record")

    @abc.abstractmethod
    def check(self) -> None:
        """Raise InputError for options that cannot work."""

    @abc.abstractmethod
    def manifest_options(self) -> dict[str, int | str]:
        """What decides the records, without paths."""

    @abc.abstractmethod
    def read(self) -> Mapping[str, Iterable[Record]]:
        """Split name -> its records."""

    def total(self) -> int | None:
        """Number of records to expect, or None."""
        return None

    # Everything below speaks TFDS.

    def _info(self) -> tfds.core.DatasetInfo:
        return _LocalInfo(builder=self, description=self.summary, features=features(), disable_shuffling=True)

    def _split_generators(self, dl_manager):
        del dl_manager  # nothing is downloaded
        splits = self.read()
        return {name: splits[name] for name in SPLITS if name in splits}

    def _generate_examples(self, records: Iterable[Record]):
        for index, record in enumerate(records):
            yield index, to_example(record)

    def _generate_splits(self, dl_manager, download_config):
        """Stream each split into shards: TFDS's own writer holds a split in memory and needs TensorFlow above 1 GB."""
        del download_config
        infos = []
        self._patients: dict[str, str] = {}  # patient -> split
        self._keys: set[str] = set()
        for name, records in self._split_generators(dl_manager).items():
            template = self._get_filename_template(split_name=name)
            checked = self._checked(name, records)
            lengths, size = _write_shards(
                (example for _, example in self._generate_examples(checked)), features=self.info.features, name=template
            )
            infos.append(
                tfds.core.SplitInfo(name=name, shard_lengths=lengths, num_bytes=size, filename_template=template)
            )
        return infos

    def _checked(self, split: str, records: Iterable[Record]) -> Iterator[Record]:
        """Pass records on, and hold the subclass to the schema."""
        before = len(self._keys)
        for record in records:
            if record.key in self._keys:
                raise ValueError(f"a record's key must be unique, got {record.key} again in split {split}")
            if self._patients.setdefault(record.patient, split) != split:
                raise ValueError(f"a patient must be in one split, got record {record.key} in {split} and another")
            unknown = set(record.labels) - set(self.classes)
            if unknown:
                raise ValueError(f"labels must be in {self.classes}, got {sorted(unknown)} in record {record.key}")
            self._keys.add(record.key)
            self.progress(1)
            yield record
        count = len(self._keys) - before
        if not count:
            raise InputError(f"split {split} must hold at least one record, got 0; give a larger --size or more data")
        patients = sum(s == split for s in self._patients.values())
        self.split_counts[split] = {"records": count, "patients": patients}


class _LocalInfo(tfds.core.DatasetInfo):
    """What TFDS knows of a data set that is made here."""

    def initialize_from_bucket(self) -> None:
        """Asks no server for what is published of this data set; TFDS would, and would leave a temporary folder."""


def _write_shards(examples: Iterable[dict], *, features, name) -> tuple[list[int], int]:
    """Write examples in order; returns the records of each shard and the bytes in all. `name`: TFDS file template."""
    serializer = ExampleSerializer(features.get_serialized_info())
    folder = Path(name.data_dir)
    parts, lengths, total, room = [], [], 0, 0
    writer = None
    for example in examples:
        proto = serializer.get_tf_example(features.encode_example(example))
        data = proto.SerializeToString(deterministic=True)  # without it the fields come in the order of a hash table
        if writer is None or room < len(data):
            if writer is not None:
                writer.close()
            parts.append(folder / f"{name.split}-{len(parts):05d}.part")
            writer, room = ArrayRecordWriter(str(parts[-1]), "group_size:1"), SHARD_BYTES
            lengths.append(0)
        writer.write(data)
        lengths[-1] += 1
        room -= len(data)
        total += len(data)
    if writer is not None:
        writer.close()
    for index, part in enumerate(parts):  # a shard's name holds the number of shards, known only now
        part.rename(name.sharded_filepath(shard_index=index, num_shards=len(parts)))
    return lengths, total
