"""ChestX-ray14: labels, boxes and splits of the fake folder, and of the real tables and films."""

import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_jax.data.build import build
from plan_jax.data.fake_labels import fake_nih_cxr14
from plan_jax.data.image import decode_image
from plan_jax.data.nih_cxr14 import BOXES, TEST_LIST, TRAIN_LIST, NihCxr14, labels_of, read_boxes
from plan_jax.data.records import open_split, read_manifest
from plan_jax.data.store import Store
from plan_jax.errors import InputError

TABLE = "Data_Entry_2017.csv"


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("nih")
    fake_nih_cxr14(folder, seed=0)
    return folder


@pytest.fixture
def boxes(tmp_path):
    """Writes a box list with these rows and reads it."""

    def write(*rows: str | bytes):
        lines = [row if isinstance(row, bytes) else row.encode() for row in rows]
        (tmp_path / BOXES).write_bytes(b"\n".join([b"Image Index,Finding Label,Bbox [x,y,w,h],,,", *lines]))
        dropped = Counter()
        return read_boxes(tmp_path / BOXES, dropped), dropped

    return write


def without_lists(raw: Path, folder: Path) -> Path:
    for path in raw.iterdir():
        if path.name not in (TRAIN_LIST, TEST_LIST):
            (folder / path.name).symlink_to(path)
    return folder


def test_every_row_is_kept_or_counted_with_its_reason(raw):
    made = NihCxr14(raw)
    sizes = {name: len(rows) for name, rows in made.rows().items()}
    assert sizes == {"train": 14, "tune": 1, "validation": 2, "test": 6}
    flawed = {
        "file name not as published": 1,
        "patient unlike the file name": 1,
        "unknown finding": 1,
        "image of an earlier row": 1,
        "fewer cells than the header": 1,
        "in no list": 1,
        "image file missing": 1,
    }
    boxes = {
        "box: not inside the image": 3,
        "box: fewer cells than the header": 1,
        "box: unknown finding or image": 1,
        "box: its image is not used": 1,
    }
    assert made.dropped == flawed | boxes
    rows = len((raw / TABLE).read_text().splitlines()) - 1
    assert sum(sizes.values()) + sum(flawed.values()) == rows


def test_no_patient_is_in_two_splits_and_the_test_list_wins(raw):
    splits = NihCxr14(raw).rows()
    patients = {name: {row.patient for row in rows} for name, rows in splits.items()}
    assert sum(map(len, patients.values())) == len(set.union(*patients.values()))
    assert patients["test"] == {"00000010", "00000011", "00000012"}


def test_without_the_lists_all_patients_are_dealt(raw, tmp_path):
    made = NihCxr14(without_lists(raw, tmp_path))
    splits = made.rows()
    assert "in no list" not in made.dropped
    assert sum(map(len, splits.values())) == 24
    patients = [{row.patient for row in rows} for rows in splits.values()]
    assert len(patients) == 4
    assert sum(map(len, patients)) == len(set.union(*patients))


def test_a_row_says_what_the_tables_say(raw):
    rows = {row.key: row for rows in NihCxr14(raw).rows().values() for row in rows}
    plain, boxed = rows["00000001_001.png"], rows["00000012_000.png"]
    assert (plain.patient, plain.study, plain.frame) == ("00000001", "00000001_001", (1024, 1024))
    assert plain.labels == ("Infiltration",)
    assert plain.phrases == ()
    assert plain.where == "Data_Entry_2017.csv line 3"
    assert {row.image.parent.parent.name for row in rows.values()} == {"images_001", "images_002"}
    infiltration, mass = boxed.phrases
    assert (infiltration.text, infiltration.category) == ("infiltration", "Infiltration")
    np.testing.assert_allclose(infiltration.boxes, [(225.08, 547.02, 311.86, 626.21), (512, 0, 1024, 1024)])
    assert (mass.text, mass.boxes) == ("mass", ((1, 2, 4, 6),))
    assert sum(bool(row.phrases) for row in rows.values()) == 3


def test_the_same_files_give_the_same_rows_and_another_seed_deals_anew(raw, tmp_path):
    fake_nih_cxr14(tmp_path, seed=0)
    first, again, other = NihCxr14(raw).rows(), NihCxr14(raw).rows(), NihCxr14(raw, seed=1).rows()
    assert first == again
    assert first["test"] == other["test"]
    assert first["validation"] != other["validation"]
    assert [row.phrases for row in first["test"]] == [row.phrases for row in NihCxr14(tmp_path).rows()["test"]]


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("No Finding", ()),
        ("Cardiomegaly", ("Cardiomegaly",)),
        ("Nodule|Mass", ("Mass", "Nodule")),
        ("pleural_thickening|Infiltrate", ("Infiltration", "Pleural Thickening")),
        ("No Finding|Mass", None),
        ("Mass|", None),
        ("", None),
    ],
)
def test_labels_are_the_parts_of_the_cell(cell, labels):
    assert labels_of(cell) == labels


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("00000001_000.png,Mass,-1,2,3,4", "not inside the image"),
        ("00000001_000.png,Mass,1,2,3,-4", "not inside the image"),
        ("00000001_000.png,Mass,1,2,0,4", "not inside the image"),
        ("00000001_000.png,Mass,1,nan,3,4", "not inside the image"),
        ("00000001_000.png,Mass,1,2,inf,4", "not inside the image"),
        ("00000001_000.png,Mass,1e30,2,3,4", "not inside the image"),
        ("00000001_000.png,Mass,1,1000,3,24.5", "not inside the image"),
        ("00000001_000.png,Mass,1,2,,4", "not inside the image"),
        ("00000001_000.png,Mass,1,2,3", "fewer cells than the header"),
        ("00000001_000.png,Mass,1,2,3,4,,,,5", "more cells than the header"),
        ("00000001_000.png,Gout,1,2,3,4", "unknown finding or image"),
        ("../../etc/passwd,Mass,1,2,3,4", "unknown finding or image"),
        (b"0000\xff001_000.png,Mass,1,2,3,4", "unknown finding or image"),
    ],
)
def test_a_box_that_is_none_is_counted(boxes, row, reason):
    found, dropped = boxes("00000001_000.png,Infiltrate,1,2,3,4,,,", row)
    assert [(box.finding, box.box) for box in found] == [("Infiltration", (1, 2, 4, 6))]
    assert dropped == {f"box: {reason}": 1}


def test_a_folder_without_its_tables_is_an_error_that_names_them(raw, tmp_path):
    made = NihCxr14(tmp_path)
    with pytest.raises(InputError, match=r"got no Data_Entry_2017_v2020\.csv in .*; give another"):
        made.inputs()
    (tmp_path / TABLE).write_bytes((raw / TABLE).read_bytes())
    with pytest.raises(InputError, match=r"got no BBox_List_2017\.csv"):
        made.inputs()
    (tmp_path / BOXES).write_bytes((raw / BOXES).read_bytes())
    with pytest.raises(InputError, match=r"Data_Entry_2017\.csv must have a row with an image to use, got .*missing"):
        made.rows()
    (tmp_path / TEST_LIST).touch()
    with pytest.raises(
        InputError, match=r"must hold train_val_list\.txt and test_list\.txt or none, got test_list\.txt"
    ):
        made.inputs()


@settings(max_examples=80)
@given(st.integers(0, 2**32), st.sampled_from([TABLE, BOXES, TEST_LIST]), st.booleans())
def test_a_damaged_table_gives_rows_or_an_input_error_that_names_it(raw, tmp_path_factory, seed, name, cut):
    rng, folder = random.Random(seed), tmp_path_factory.mktemp("damaged")
    for path in raw.iterdir():
        (folder / path.name).symlink_to(path)
    data = bytearray((raw / name).read_bytes())
    for _ in range(8):
        data[rng.randrange(len(data))] = rng.choice((*b'",\n\r', rng.randrange(256)))
    (folder / name).unlink()
    (folder / name).write_bytes(data[: rng.randrange(len(data))] if cut else data)
    try:
        splits, message = NihCxr14(folder).rows(), ""
    except InputError as error:
        splits, message = {}, str(error)
    assert splits or name in message
    rows = [row for part in splits.values() for row in part]
    assert all(
        0 <= x0 < x1 <= 1024 and 0 <= y0 < y1 <= 1024 for r in rows for p in r.phrases for x0, y0, x1, y1 in p.boxes
    )
    patients = [{row.patient for row in part} for part in splits.values()]
    assert sum(map(len, patients)) == len(set().union(*patients))


# The real tables and films


def test_the_real_box_list_has_984_boxes_on_880_images(shared):
    dropped = Counter()
    found = read_boxes(shared / "nih" / BOXES, dropped)
    assert len(found) == 984
    assert len({box.image for box in found}) == 880
    assert not dropped
    assert Counter(box.finding for box in found) == {
        "Atelectasis": 180,
        "Cardiomegaly": 146,
        "Effusion": 153,
        "Infiltration": 123,
        "Mass": 85,
        "Nodule": 79,
        "Pneumonia": 120,
        "Pneumothorax": 98,
    }
    assert found[0].box == pytest.approx((225.084745762712, 547.019216763771, 311.864406779661, 626.205657780991))


def test_the_25_real_films_are_25_rows(shared):
    made = NihCxr14(shared / "nih")
    splits = made.rows()
    rows = [row for part in splits.values() for row in part]
    assert len(rows) == 25
    assert len({row.patient for row in rows}) == 9
    assert all(row.image.is_file() for row in rows)
    assert made.dropped == {"box: its image is not used": 984}
    assert Counter(label for row in rows for label in row.labels) == {
        "Hernia": 8,
        "Cardiomegaly": 4,
        "Infiltration": 3,
        "Effusion": 2,
        "Emphysema": 1,
        "Mass": 1,
        "Nodule": 1,
    }


def test_the_real_films_build_as_they_are(shared, tmp_path):
    build("nih_cxr14", raw=shared / "nih", out=tmp_path / "built", images=Store(side=64), jobs=1)
    manifest = read_manifest(tmp_path / "built")
    assert {name: split["records"] for name, split in manifest["splits"].items()} == {
        "train": 15,
        "tune": 1,
        "validation": 1,
        "test": 8,
    }
    assert manifest["dropped"] == {"box: its image is not used": 984}
    assert "nih_cxr14 1.0.0: 1009 rows in, 25 records out" in (tmp_path / "built" / "report.txt").read_text()
    records = [record for split in manifest["splits"] for record in open_split(tmp_path / "built", split)]
    assert {decode_image(record.image, name=record.key).shape for record in records} == {(64, 64)}
    assert len({record.key for record in records}) == 25
