"""MS-CXR: its tables, CSV and JSON, become one row per image; damage is counted or named, never more."""

import json
import shutil
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_jax.data.fake_reports import HEIGHT, WIDTH, fake_ms_cxr
from plan_jax.data.ms_cxr import CLASSES, COLUMNS, TABLES, MsCxr, find_table, subjects
from plan_jax.data.records import Phrase
from plan_jax.errors import InputError

NEW_CSV, NEW_JSON, CSV, JSON = TABLES
DROPPED = {
    "another box of the phrase is damaged": 1,
    "image file missing": 1,
    "no box inside the image": 1,
    "path is not as published": 2,
    "unknown class": 1,
}
DICOM = "00000000-11111111-22222222-33333333-44444444"
PATH = f"files/p10/p10000001/s50000001/{DICOM}.jpg"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> dict[str, Path]:
    """Table -> raw folder."""
    folders = {table: tmp_path_factory.mktemp("ms_cxr") / "raw" for table in TABLES}
    for table, folder in folders.items():
        fake_ms_cxr(folder, seed=0, table=table)
    return folders


def parts(folder: Path) -> tuple[dict, Counter]:
    made = MsCxr(folder)
    return dict(made.rows()), made.dropped


def line(**values: object) -> dict[str, object]:
    known = (DICOM, "Pneumonia", "opacity in the left base", PATH, 1, 2, 10, 20, WIDTH, HEIGHT)
    return dict(zip(COLUMNS, known, strict=True)) | values


def raw_of(folder: Path, *lines: dict, image: bool = True) -> Path:
    """A raw folder with these lines and an empty file for the image."""
    (folder / PATH).parent.mkdir(parents=True)
    if image:
        (folder / PATH).touch()
    cells = [[f'"{value}"' for value in values.values()] for values in lines]
    (folder / CSV).write_text("\n".join(map(",".join, [list(lines[0]), *cells])))
    return folder


@pytest.mark.parametrize("table", [CSV, JSON])
def test_without_splits_every_image_is_tested_or_counted(published, table):
    rows, dropped = parts(published[table])
    assert {split: len(part) for split, part in rows.items()} == {"test": 16}
    assert dropped == DROPPED
    assert all(set(row.labels) <= set(CLASSES) and row.phrases for row in rows["test"])


@pytest.mark.parametrize("table", [NEW_CSV, NEW_JSON])
def test_a_column_of_splits_is_followed(published, table):
    rows, dropped = parts(published[table])
    assert {split: len(part) for split, part in rows.items()} == {"train": 8, "validation": 4, "test": 4}
    assert dropped == DROPPED
    patients = [{row.patient for row in part} for part in rows.values()]
    assert sum(map(len, patients)) == len(set.union(*patients))


def test_csv_and_json_give_the_same_rows(published):
    for one, other in ((CSV, JSON), (NEW_CSV, NEW_JSON)):
        found = [
            {split: [(row.key, row.phrases, row.labels) for row in part] for split, part in parts(folder)[0].items()}
            for folder in (published[one], published[other])
        ]
        assert found[0] == found[1]
        assert subjects(published[one] / one) == subjects(published[other] / other)


def test_boxes_of_one_text_are_one_phrase_and_other_texts_are_others(tmp_path):
    raw = raw_of(
        tmp_path,
        line(),
        line(category_name="Edema", label_text=" heart\n is large ", x=0, y=0, w=WIDTH, h=HEIGHT),
        line(x=30, w=5.5),
        line(),  # twice
    )
    ((row,),) = parts(raw)[0].values()
    assert (row.key, row.patient, row.study, row.frame) == (DICOM, "10000001", "50000001", (HEIGHT, WIDTH))
    assert (row.image, row.where, row.labels) == (raw / PATH, f"{CSV} line 2", ("Pneumonia", "Edema"))
    boxes = ((1.0, 2.0, 11.0, 22.0), (30.0, 2.0, 35.5, 22.0))
    assert row.phrases == (
        Phrase("opacity in the left base", "Pneumonia", "left", "lower", True, boxes),
        Phrase("heart is large", "Edema", boxes=((0.0, 0.0, WIDTH, HEIGHT),)),
    )


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"x": -1}, "no box inside the image"),
        ({"w": 1e-9}, "no box inside the image"),
        ({"w": 0}, "no box inside the image"),
        ({"h": -3}, "no box inside the image"),
        ({"x": 55}, "no box inside the image"),
        ({"y": "1e300", "h": "1e300"}, "no box inside the image"),
        ({"w": "nan"}, "no box inside the image"),
        ({"w": "inf"}, "no box inside the image"),
        ({"w": "ten"}, "no box inside the image"),
        ({"image_width": 0}, "no box inside the image"),
        ({"image_height": "1e9"}, "no box inside the image"),
        ({"image_height": "70.5"}, "no box inside the image"),
        ({"label_text": " . "}, "no phrase"),
        ({"category_name": "pneumonia"}, "unknown class"),
        ({"dicom_id": "other"}, "path is not as published"),
        ({"path": "../" + PATH}, "path is not as published"),
        ({"path": PATH.replace("p10/", "p11/")}, "path is not as published"),
        ({"path": "/etc/passwd", "dicom_id": "passwd"}, "path is not as published"),
        ({"image_height": 71}, "lines of the image contradict each other"),
    ],
)
def test_a_line_that_cannot_be_used_is_counted_and_its_phrase_with_it(tmp_path, values, reason):
    raw = raw_of(tmp_path, line(label_text="sound", x=2), line(**values), line(x=3))
    ((row,),) = parts(raw)[0].values()
    assert parts(raw)[1][reason] == 1
    sibling = {"label_text", "dicom_id", "image_height"} & set(values) and reason[:2] != "no"
    count = 2 if sibling or "label_text" in values or "dicom_id" in values else 1
    assert len(row.phrases) == count


def test_a_patient_of_two_splits_stays_in_the_one_furthest_from_train(tmp_path):
    raw = raw_of(
        tmp_path,
        line(split="train"),
        line(split="val", label_text="kept"),
        line(split="train", x=3),
        line(split="tset", label_text="unknown"),
    )
    rows, dropped = parts(raw)
    assert [[phrase.text for phrase in row.phrases] for row in rows["validation"]] == [["kept"]]
    assert dropped == {"patient of another split": 2, "unknown split": 1}
    assert len(rows) == 1


def test_the_newest_table_counts_and_csv_rather_than_json(tmp_path):
    assert find_table(tmp_path) is None
    for table in reversed(TABLES):
        (tmp_path / table).touch()
        assert find_table(tmp_path) == tmp_path / table


def test_missing_parts_are_errors_with_the_next_step(tmp_path):
    with pytest.raises(InputError, match=r"got no MS_CXR_Local_Alignment_v1\.1\.0\.csv in .*; give another folder"):
        MsCxr(tmp_path).rows()
    (tmp_path / JSON).touch()
    with pytest.raises(InputError, match="got no files/ in"):
        MsCxr(tmp_path).inputs()
    raw = raw_of(tmp_path / "raw", line(), image=False)
    with pytest.raises(InputError, match="must have a row with an image to use, got 1 image file missing"):
        MsCxr(raw).rows()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("", f"{JSON} line 1 must be JSON"),
        ('{"images":\n[}', f"{JSON} line 2 must be JSON"),
        ("[]", f"{JSON} must hold COCO's images, categories, annotations, got TypeError"),
        ('{"images": []}', "got KeyError"),
        ('{"images": [1], "categories": [], "annotations": []}', "got AttributeError"),
        ('{"images": [], "categories": [], "annotations": [null]}', "got AttributeError"),
        ("[" * 100_000, "must hold COCO's images, categories, annotations, got RecursionError"),
        ('{"images": ' + "1" * 5000 + "}", "got ValueError"),
        ('{"images": [], "categories": [], "annotations": []}', "must have a row with an image to use, got no rows"),
    ],
)
def test_what_is_no_such_json_is_an_error_that_names_it(tmp_path, content, message):
    raw = raw_of(tmp_path, line())
    (raw / CSV).unlink()
    (raw / JSON).write_text(content)
    with pytest.raises(InputError, match=message):
        parts(raw)


values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=3), inner, max_size=2)),
    max_leaves=4,
)


@settings(max_examples=60)
@given(
    part=st.sampled_from(["images", "annotations", "categories"]),
    name=st.text(max_size=12),
    value=values,
    data=st.data(),
)
def test_any_value_in_the_json_is_counted_or_named(published, tmp_path_factory, part, name, value, data):
    original = published[NEW_JSON]
    content = json.loads((original / NEW_JSON).read_text())
    item = data.draw(st.sampled_from(content[part]))
    item[data.draw(st.sampled_from([*item, name]))] = value
    check_damaged(original, tmp_path_factory.mktemp("damaged"), NEW_JSON, json.dumps(content).encode())


@settings(max_examples=80)
@given(
    table=st.sampled_from(TABLES),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damaged_bytes_are_counted_or_named(published, tmp_path_factory, table, flips, cut):
    data = bytearray((published[table] / table).read_bytes())
    for place, byte in flips:
        data[int(place * (len(data) - 1))] = byte
    cut_data = bytes(data[: round(cut * len(data))])
    check_damaged(published[table], tmp_path_factory.mktemp("damaged"), table, cut_data)


def check_damaged(original: Path, folder: Path, table: str, data: bytes) -> None:
    (folder / "files").symlink_to(original / "files")
    (folder / table).write_bytes(data)
    found, message = {}, ""
    try:
        found = parts(folder)[0]
    except InputError as error:
        message = str(error)
    assert not message or table in message
    split_of: dict[str, str] = {}
    for split, rows in found.items():
        for row in rows:
            assert split_of.setdefault(row.patient, split) == split
            assert row.image.is_relative_to(folder / "files")
            height, width = row.frame
            for phrase in row.phrases:
                phrase.text.encode()
                assert phrase.boxes
                assert all(0 <= x0 < x1 <= width and 0 <= y0 < y1 <= height for x0, y0, x1, y1 in phrase.boxes)


def test_the_same_seed_writes_the_same_bytes(published, tmp_path):
    for seed, same in ((0, True), (1, False)):
        fake_ms_cxr(tmp_path / "raw", seed=seed)
        assert ((tmp_path / "raw" / CSV).read_bytes() == (published[CSV] / CSV).read_bytes()) == same
        shutil.rmtree(tmp_path / "raw")
