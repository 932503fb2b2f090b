"""Records on disk come back as they went in, and a folder that is no complete build is refused by name."""

import dataclasses
import hashlib
import json
import multiprocessing
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import pytest
import tensorflow_datasets as tfds
from hypothesis import given, settings
from hypothesis import strategies as st
from tensorflow_datasets.core.example_serializer import ExampleSerializer

from plan_jax.data import source as source_module
from plan_jax.data.builder import builder_of
from plan_jax.data.records import (
    MANIFEST,
    SPLITS,
    STAGING,
    Phrase,
    Record,
    features,
    from_example,
    manifest_hash,
    open_split,
    read_manifest,
    to_example,
)
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.data.source import Source, write_in_processes
from plan_jax.data.store import Store
from plan_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class ToyRow(Row):
    """Carries the record that it becomes."""

    made: Record | None = None


class Toy(RowSet):
    """Writes the records it is given."""

    name, version, summary = "toy", "1.2.0", "Records of a test."
    classes = ("nodule", "effusion")

    def __init__(self, splits: dict[str, list[Record]]):
        super().__init__(Path())
        self.splits = splits

    def inputs(self):
        return ()

    def rows(self):
        return {
            name: [ToyRow(r.key, r.patient, r.study, Path(), "", labels=r.labels, made=r) for r in records]
            for name, records in self.splits.items()
        }

    @staticmethod
    def record(row: ToyRow, images: Store) -> Record:
        return row.made


def png16() -> bytes:
    values = np.arange(12, dtype=np.uint16).reshape(3, 4) * 5000
    return cv2.imencode(".png", values)[1].tobytes()


def records_of(split: str) -> list[Record]:
    """Seven records: without phrases, without boxes, with several boxes, with odd characters."""
    mask = cv2.imencode(".png", np.eye(3, dtype=np.uint8) * 255)[1].tobytes()
    full = (
        Phrase("Knötchen  im linken Oberfeld", "nodule", "left", "upper", True, ((0.5, 1.0, 2.25, 3.0),), mask),
        Phrase("clear", boxes=()),
        Phrase("fluid", "effusion", "both", "lower", False, ((0.0, 0.0, 1.0, 1.0), (2.0, 2.0, 3.0, 3.0)), None),
    )
    return [
        Record(
            key=f"{split}/{i}.png",
            patient=f"{split}-{i // 2}",
            study=f"{i}",
            image=png16() + bytes([0, 255, i]),
            sections=(("findings", "Keine Ergüsse.\nNodule."), ("impression", ""))[: i % 3],
            labels=("nodule", "effusion")[: i % 3],
            phrases=full[: i % 4],
        )
        for i in range(7)
    ]


def write(directory: Path, splits: dict[str, list[Record]]) -> None:
    """Builds the splits with a manifest, as the build driver does."""
    source = Source(Toy(splits), Store(), None, directory / "parts")
    toy = builder_of(source, data_dir=directory, write=partial(write_in_processes, jobs=1))
    toy.download_and_prepare()
    shutil.rmtree(source.parts)
    manifest = {
        "name": "toy",
        "version": "1.2.0",
        "options": {},
        "classes": list(Toy.classes),
        "splits": toy.split_counts,
        "shards": {path.name: "" for path in directory.glob("*/*/*.array_record*")},
        "dropped": {},
        "summary": {},
    }
    (directory / MANIFEST).write_text(json.dumps(manifest))


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("records")
    write(directory, {name: records_of(name) for name in SPLITS})
    return directory


@pytest.mark.parametrize("name", SPLITS)
def test_records_come_back_equal_and_in_order(built, name):
    split = open_split(built, name)
    assert [split[i] for i in range(len(split))] == records_of(name)


def test_a_16_bit_image_comes_back_with_its_16_bits(built):
    image = cv2.imdecode(np.frombuffer(open_split(built, "train")[0].image, np.uint8), cv2.IMREAD_UNCHANGED)
    assert image.dtype == np.uint16
    assert image.max() == 55000


def test_order_is_kept_over_several_shards(tmp_path, monkeypatch):
    monkeypatch.setattr(source_module, "SHARD_ROWS", 3)
    write(tmp_path, {"train": records_of("train")})
    assert len(list(tmp_path.glob("toy/1.2.0/toy-train.array_record-*"))) == 3
    split = open_split(tmp_path, "train")
    assert [split[i] for i in range(7)] == records_of("train")


def test_counts_of_records_and_patients_are_right(built):
    for name, counts in read_manifest(built)["splits"].items():
        keys = "\n".join(record.key for record in records_of(name))
        digest = hashlib.sha256(keys.encode()).hexdigest()
        assert counts == {"records": 7, "patients": 4, "keys_sha256": digest}


def test_a_split_is_pickled_as_its_place_and_read_in_a_spawned_process(built):
    split = open_split(built, "tune")
    assert len(pickle.dumps(split)) < 1000
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        assert pool.submit(split.__getitem__, 3).result() == records_of("tune")[3]


def test_an_index_counts_from_the_end_or_is_refused(built):
    split = open_split(built, "test")
    assert split[-1] == split[np.int64(6)] == records_of("test")[6]
    for index in (7, -8):
        with pytest.raises(IndexError, match="below 7"):
            split[index]


def test_the_report_joins_the_sections_that_have_text():
    record = Record("k", "p", "s", b"", sections=(("findings", "a. b."), ("impression", ""), ("last", "c.")))
    assert record.report == "a. b. c."


BOX = st.tuples(*[st.floats(0, 1e5, width=32)] * 4)
PHRASE = st.builds(
    Phrase,
    st.text(),
    st.text(),
    st.sampled_from(["", "left", "right", "both"]),
    st.text(),
    st.booleans(),
    st.lists(BOX, max_size=3).map(tuple),
    st.none() | st.binary(min_size=1),
)
RECORD = st.builds(
    Record,
    st.text(),
    st.text(),
    st.text(),
    st.binary(),
    st.lists(st.tuples(st.text(), st.text())).map(tuple),
    st.lists(st.text()).map(tuple),
    st.lists(PHRASE, max_size=3).map(tuple),
)


@given(RECORD)
@settings(max_examples=50)
def test_any_record_survives_the_schema(record):
    schema = features()
    data = ExampleSerializer(schema.get_serialized_info()).serialize_example(schema.encode_example(to_example(record)))
    assert from_example(data) == record


def test_other_programs_read_the_files_with_tfds_alone(built):
    source = tfds.builder_from_directory(built / "toy" / "1.2.0").as_data_source("train")
    record, example = records_of("train")[3], source[3]
    assert example["key"].decode() == record.key
    assert example["image"] == record.image
    assert [text.decode() for text in example["phrases"]["text"]] == [phrase.text for phrase in record.phrases]
    assert example["boxes"]["phrase"] == [0, 2, 2]
    assert [tuple(box) for box in example["boxes"]["box"]] == [box for phrase in record.phrases for box in phrase.boxes]


def test_the_manifest_hash_changes_with_the_manifest(built, tmp_path):
    other = json.loads((built / MANIFEST).read_text()) | {"dropped": {"no image": 1}}
    (tmp_path / MANIFEST).write_text(json.dumps(other))
    assert len(manifest_hash(built)) == 64
    assert manifest_hash(built) == manifest_hash(built) != manifest_hash(tmp_path)


def test_a_folder_that_is_no_complete_build_is_refused(tmp_path):
    with pytest.raises(InputError, match="must exist"):
        open_split(tmp_path / "nothing", "train")
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="must be a folder"):
        open_split(tmp_path / "file", "train")
    with pytest.raises(InputError, match="one that build wrote"):
        open_split(tmp_path, "train")
    (tmp_path / STAGING).mkdir()
    with pytest.raises(InputError, match="complete build"):
        open_split(tmp_path, "train")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"name": "toy"}'])
def test_a_manifest_that_build_did_not_write_is_refused(tmp_path, text):
    (tmp_path / MANIFEST).write_text(text)
    with pytest.raises(InputError, match="written by build"):
        open_split(tmp_path, "train")


def test_an_unknown_split_is_refused_with_those_there_are(built):
    with pytest.raises(InputError, match="train, tune, validation, test"):
        open_split(built, "dev")


def test_missing_and_damaged_files_are_refused_by_name(tmp_path):
    write(tmp_path, {"train": records_of("train")})
    (shard,) = tmp_path.glob("*/*/*.array_record*")
    data = shard.read_bytes()
    for damaged in (b"", data[:1000], data[:200] + b"\xff" * 2000 + data[2200:]):
        shard.write_bytes(damaged)
        with pytest.raises(InputError, match="damaged data at record 0 of split train"):
            open_split(tmp_path, "train")[0]
    shard.unlink()
    with pytest.raises(InputError, match=shard.name):
        open_split(tmp_path, "train")


@pytest.mark.parametrize(
    ("splits", "error", "message"),
    [
        ({"train": [Record("a", "p", "s", b""), Record("a", "q", "s", b"")]}, ValueError, "unique"),
        ({"train": [Record("a", "p", "s", b"")], "test": [Record("b", "p", "s", b"")]}, ValueError, "one split"),
        ({"train": [Record("a", "p", "s", b"", labels=("mass",))]}, ValueError, "in row a"),
        ({"train": []}, InputError, "must have a row"),
    ],
)
def test_a_builder_is_held_to_the_schema(tmp_path, splits, error, message):
    with pytest.raises(error, match=message):
        write(tmp_path, splits)
