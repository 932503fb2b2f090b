from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_jax.data.fake_boxes import fake_object_cxr
from plan_jax.data.image import decode_image, read_image
from plan_jax.data.object_cxr import ObjectCxr, object_box
from plan_jax.data.row import Row
from plan_jax.data.store import Store, record_of
from plan_jax.errors import InputError

HEADER = "image_name,annotation"
BAD = "object cannot be read"


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("object_cxr")
    fake_object_cxr(folder, seed=0)
    return folder


@pytest.fixture
def write(raw, tmp_path):
    """Writes a raw folder with this train.csv, a dev.csv of one image without objects, and the made-up images."""

    def write_tables(*lines: str, header: str = HEADER) -> Path:
        (tmp_path / "train.csv").write_text("\n".join((header, *lines)), encoding="utf-8")
        (tmp_path / "dev.csv").write_text(f"{HEADER}\n08000.jpg,\n")
        for part in ("train", "dev"):
            if not (tmp_path / part).exists():
                (tmp_path / part).symlink_to(raw / part)
        return tmp_path

    return write_tables


def all_rows(folder: Path, **options) -> list[Row]:
    return [row for part in ObjectCxr(folder, **options).rows().values() for row in part]


def test_every_line_is_used_or_counted_with_its_reason(raw):
    made = ObjectCxr(raw)
    parts = made.rows()
    assert sum(map(len, parts.values())) == 16 + 8
    assert made.dropped == {"image file missing": 1, "not as many cells as the header": 1, BAD: 2}
    assert len((raw / "train.csv").read_text().splitlines()) == 1 + 16 + 4


def test_dev_is_the_test_split_and_a_fifth_of_train_is_validation(raw):
    parts = ObjectCxr(raw).rows()
    assert [row.key for row in parts["test"]] == [f"{number:05d}.jpg" for number in range(8000, 8008)]
    assert all(row.image.parent.name == ("dev" if name == "test" else "train") for name in parts for row in parts[name])
    assert {name: len(part) for name, part in parts.items()} == {
        "train": 14,
        "validation": 2,
        "test": 8,
    }  # of 20: 16, 4


def test_the_published_number_of_images_splits_into_6400_and_1600(tmp_path, monkeypatch):
    for part, numbers in (("train", range(8000)), ("dev", range(8000, 9000))):
        (tmp_path / part).mkdir()
        (tmp_path / f"{part}.csv").write_text("\n".join([HEADER, *(f"{number:05d}.jpg," for number in numbers)]))
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    parts = ObjectCxr(tmp_path).rows()
    assert {name: len(part) for name, part in parts.items()} == {"train": 6400, "validation": 1600, "test": 1000}


def test_a_row_holds_the_boxes_of_all_objects_in_pixels_of_its_image(raw):
    rows = all_rows(raw)
    lines = {
        line.split(",")[0]: line.split(",")[1]
        for part in ("train", "dev")
        for line in (raw / f"{part}.csv").read_text().splitlines()
        if "," in line
    }
    kinds = set()
    for row in rows:
        objects = [text.split() for text in lines[row.key].split(";") if text]
        kinds |= {kind for kind, *_ in objects}
        boxes = [box for phrase in row.phrases for box in phrase.boxes]
        assert [[box[0], box[2]] for box in boxes] == [
            [min(map(int, values[::2])), max(map(int, values[::2]))] for _, *values in objects
        ]
        assert [phrase.text for phrase in row.phrases] == (["foreign object"] if objects else [])
        assert row.labels == (("foreign object",) if objects else ())
        assert row.frame is None
        height, width = read_image(row.image).shape
        assert all(x1 <= width and y1 <= height for _, _, x1, y1 in boxes)
    assert kinds == {"0", "1", "2"}
    assert sum(not row.labels for row in rows) == 6


def test_every_row_becomes_a_record_with_its_boxes_where_it_is_bright(raw):
    for row in all_rows(raw):
        record = record_of(row, Store(side=48))
        image = decode_image(record.image, name=row.key)
        assert max(image.shape) == 48
        for phrase in record.phrases:
            for box in phrase.boxes:
                x0, y0, x1, y1 = np.rint(box).astype(int)
                assert image[y0:y1, x0:x1].mean() > image.mean()


def test_the_same_files_give_the_same_rows_and_the_seed_deals_anew(raw, tmp_path):
    fake_object_cxr(tmp_path, seed=0)
    for path in (path for path in raw.rglob("*") if path.is_file()):
        assert path.read_bytes() == (tmp_path / path.relative_to(raw)).read_bytes()
    assert ObjectCxr(raw).rows() == ObjectCxr(raw).rows()
    first, other = ObjectCxr(raw).rows(), ObjectCxr(raw, seed=1).rows()
    assert {row.key for row in first["validation"]} != {row.key for row in other["validation"]}
    assert first["test"] == other["test"]


@pytest.mark.parametrize(
    ("text", "box"),
    [
        ("0 10 20 30 40", (10, 20, 30, 40)),
        ("1 10 20 30.5 40.25", (10, 20, 30.5, 40.25)),
        (" 0  30 40 10 20 ", (10, 20, 30, 40)),  # the corners the other way round
        ("2 5 9 8 1 3 4", (3, 1, 8, 9)),
        ("2 5 9 8 1 3 4 20 4", (3, 1, 20, 9)),
        ("0 0 0 65535 65535", (0, 0, 65535, 65535)),
        ("0 10 20 30", None),
        ("0 10 20 30 40 50 60", None),
        ("2 10 20 30 40", None),
        ("2 1 2 3 4 5 6 7", None),
        ("3 10 20 30 40", None),
        ("0 10 20 10 40", None),
        ("2 1 1 2 2 2 2 x", None),
        ("0 -1 20 30 40", None),
        ("0 nan 20 30 40", None),
        ("0 inf 20 30 40", None),
        ("0 1e30 20 30 40", None),
        ("0 1 2 65536 40", None),
        ("0 1 2 3_0 40", None),
        ("rectangle 1 2 30 40", None),
        ("", None),
    ],
)
def test_an_object_has_its_true_bounding_box_or_none(text, box):
    assert object_box(text) == box


@given(
    st.text(max_size=30) | st.lists(st.floats() | st.integers(), max_size=9).map(lambda v: "2 " + " ".join(map(str, v)))
)
def test_any_text_is_a_box_of_some_size_or_none(text):
    x0, y0, x1, y1 = object_box(text) or (0, 0, 1, 1)
    assert 0 <= x0 < x1 <= 65535
    assert 0 <= y0 < y1 <= 65535


# Damage


@pytest.mark.parametrize(
    ("lines", "reason", "count"),
    [
        (("00001.jpg,0 1 2 30 40;9 9",), BAD, 1),
        (("00001.jpg,none",), BAD, 1),
        (("00001.jpg",), "not as many cells as the header", 1),
        (("00001.jpg,0 1 2 30 40,0 1 2 30 40",), "not as many cells as the header", 1),
        (('00001.jpg,"0 1 2 30 40',), "not as many cells as the header", 1),
        (("../../etc/passwd,",), "no name of a file", 1),
        (("/etc/passwd,",), "no name of a file", 1),
        (("..,",), "no name of a file", 1),
        (("x\0.jpg,",), "no name of a file", 1),
        (("nothing.jpg,",), "image file missing", 1),
        (("00001.jpg,0 1 2 30 40", "00001.jpg,"), "lines of the image contradict each other", 2),
        (("08000.jpg,0 1 2 30 40",), "train image that is in dev too", 1),
    ],
)
def test_a_damaged_line_takes_its_image_and_nobody_else(write, lines, reason, count):
    made = ObjectCxr(write("00000.jpg,", *lines))
    parts = made.rows()
    assert sorted(row.key for part in parts.values() for row in part) == ["00000.jpg", "08000.jpg"]
    assert made.dropped == {reason: count}
    assert [row.labels for row in parts["test"]] == [()]


def test_a_repeated_line_or_object_and_empty_objects_do_no_harm(write):
    line = "00000.jpg,;0 1 2 30 40; ;1 1 2 30 40;"
    rows = {row.key: row for row in all_rows(write(line, line))}
    assert rows["00000.jpg"].phrases[0].boxes == ((1, 2, 30, 40),)


@pytest.mark.parametrize("header", ["", "image_name", "image_name annotation", "image_path,annotation"])
def test_a_header_without_its_columns_is_an_error_that_names_file_and_line(write, header):
    with pytest.raises(InputError, match=r"train\.csv line 1 must have the column"):
        ObjectCxr(write("00000.jpg,", header=header)).rows()


def test_a_raw_folder_without_its_parts_is_an_error_that_says_which(write):
    folder = write("00000.jpg,")
    (folder / "dev").unlink()
    with pytest.raises(InputError, match=r"got no dev/ in"):
        ObjectCxr(folder).inputs()
    (folder / "dev.csv").unlink()
    with pytest.raises(InputError, match=r"got no dev\.csv in"):
        ObjectCxr(folder).rows()


@settings(max_examples=100)
@given(data=st.data(), part=st.sampled_from(["train", "dev"]))
def test_any_damage_to_a_table_gives_sound_rows_or_an_error_that_names_it(raw, tmp_path_factory, data, part):
    folder = tmp_path_factory.mktemp("damaged")
    for name in ("train", "dev"):
        table = bytearray((raw / f"{name}.csv").read_bytes())
        if name == part:
            for at in data.draw(st.lists(st.integers(0, len(table) - 1), max_size=6)):
                table[at] = data.draw(st.integers(0, 255))
            table = table[: data.draw(st.integers(0, len(table)))]
        (folder / f"{name}.csv").write_bytes(table)
        (folder / name).symlink_to(raw / name)
    try:
        rows, message = all_rows(folder), ""
    except InputError as error:
        rows, message = [], str(error)
    assert f"{part}.csv" in message or not message
    for row in rows:
        assert row.image.resolve().is_relative_to(raw)
        assert bool(row.phrases) == bool(row.labels)
        assert all(x0 < x1 and y0 < y1 for phrase in row.phrases for x0, y0, x1, y1 in phrase.boxes)
