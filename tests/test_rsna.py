import re
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_jax.data.fake_boxes import IMAGES, fake_rsna
from plan_jax.data.image import read_image
from plan_jax.data.row import Row
from plan_jax.data.rsna import Rsna, detection_split
from plan_jax.data.splits import train_validation_test
from plan_jax.errors import InputError

TABLE, FOLDER = "stage_2_train_labels.csv", "stage_2_train_images"
HEADER = "patientId,x,y,width,height,Target"


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rsna")
    fake_rsna(folder, seed=0)
    return folder


@pytest.fixture
def write(raw, tmp_path):
    """Writes a raw folder with this table and the images of the made-up one; `{0}` in the table names its first."""
    names = sorted(path.stem for path in (raw / FOLDER).iterdir())

    def write_table(*lines: str, header: str = HEADER) -> Path:
        (tmp_path / TABLE).write_text("\n".join((header, *lines)).format(*names), encoding="utf-8")
        if not (tmp_path / FOLDER).exists():
            (tmp_path / FOLDER).symlink_to(raw / FOLDER)
        return tmp_path

    return write_table


def all_rows(folder: Path, **options) -> list[Row]:
    return [row for part in Rsna(folder, **options).rows().values() for row in part]


def boxes(row: Row) -> tuple:
    return tuple(box for phrase in row.phrases for box in phrase.boxes)


def test_every_line_is_used_or_counted_with_its_reason(raw):
    made = Rsna(raw)
    rows = [row for part in made.rows().values() for row in part]
    assert len(rows) == IMAGES
    assert made.dropped == {
        "image file missing": 1,
        "not as many cells as the header": 2,
        "no box inside the image": 1,
        "another line of the image is damaged": 1,
        "lines of the image contradict each other": 2,
        "no name of a file": 1,
    }
    lines = (raw / TABLE).read_text().splitlines()[1:]
    assert len(lines) == sum(made.dropped.values()) + sum(max(1, len(boxes(row))) for row in rows)
    made.rows()
    assert sum(made.dropped.values()) == 8  # not twice


def test_a_row_holds_what_the_lines_of_its_patient_say(raw):
    lines = (raw / TABLE).read_text().splitlines()
    rows = all_rows(raw)
    assert Counter(len(boxes(row)) for row in rows) == {0: 12, 1: 3, 2: 3, 3: 3, 4: 3}
    for row in rows:
        number = int(re.fullmatch(r"stage_2_train_labels\.csv line (\d+)", row.where).group(1))
        said = [line.split(",") for line in lines if line.startswith(row.key)]
        assert lines[number - 1].startswith(row.key)
        expected = [tuple(map(float, cells[1:5])) for cells in said if cells[-1] == "1"]
        assert [(x0, y0, x1 - x0, y1 - y0) for x0, y0, x1, y1 in boxes(row)] == expected
        assert row.labels == (("pneumonia",) if expected else ())
        assert [(phrase.text, phrase.category) for phrase in row.phrases] == [("pneumonia", "pneumonia")][
            : len(expected)
        ]
        assert row.patient == row.study == row.key
        assert row.frame == (1024, 1024)
        assert row.runs == row.sections == ()


def test_the_boxes_lie_where_the_images_are_bright_and_monochrome1_is_inverted(raw):
    for row in all_rows(raw):
        image = read_image(row.image)
        assert image.shape == (64, 64)
        for x0, y0, x1, y1 in boxes(row):
            inside = image[int(y0 // 16) : int(y1 // 16), int(x0 // 16) : int(x1 // 16)]
            assert inside.mean() > image.mean()
    assert sum(b"MONOCHROME1" in path.read_bytes() for path in (raw / FOLDER).iterdir()) == 1


def test_the_same_files_give_the_same_rows_and_the_seed_deals_anew(raw, tmp_path):
    fake_rsna(tmp_path, seed=0)
    for path in raw.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(raw)).read_bytes()
    assert Rsna(raw).rows() == Rsna(raw).rows()
    assert {row.key for row in Rsna(raw).rows()["test"]} != {row.key for row in Rsna(raw, seed=1).rows()["test"]}
    assert {row.key for row in all_rows(raw)} == {row.key for row in all_rows(raw, seed=1)}


def test_a_missing_image_moves_no_other_patient(raw, write):
    lines = (raw / TABLE).read_text().splitlines()[1:]
    before = {row.key: name for name, part in Rsna(raw).rows().items() for row in part}
    gone = next(iter(before))
    changed = [line.replace(",,,,,0", ",,,,,7") if line.startswith(gone) else line for line in lines]
    after = {row.key: name for name, part in Rsna(write(*changed)).rows().items() for row in part}
    assert after == {key: name for key, name in before.items() if key != gone}


@pytest.mark.parametrize(
    ("split", "sizes"),
    [
        (lambda names: train_validation_test(names, share=0.3, seed=0), (18_678, 4_003, 4_003)),
        (lambda names: detection_split(names, seed=0), (16_010, 5_337, 5_337)),
    ],
)
def test_the_published_number_of_patients_splits_as_in_the_peers(split, sizes):
    names = [f"{number:05d}" for number in range(26_684)]
    counts = Counter(split(names).values())
    assert (counts["train"], counts["validation"], counts["test"]) == sizes
    assert split(names[::-1]) == split(names)


def test_the_published_table_gives_the_published_splits(tmp_path, monkeypatch):
    lines = [f"{number:05d},,,,,0" for number in range(26_684)]
    (tmp_path / TABLE).write_text("\n".join([HEADER, *lines]))
    (tmp_path / FOLDER).mkdir()
    monkeypatch.setattr(Path, "is_file", lambda path: True)
    parts = Rsna(tmp_path).rows()
    assert {name: len(part) for name, part in parts.items()} == {"train": 18678, "validation": 4003, "test": 4003}


@pytest.mark.parametrize("count", range(5))
def test_few_names_go_to_train_then_test_then_validation(count):
    split = train_validation_test([str(number) for number in range(count)], share=0.3, seed=0)
    assert Counter(split.values()) == Counter(["train", "test", "train", "validation"][:count])


# Damage


@pytest.mark.parametrize(
    ("lines", "reason", "count"),
    [
        (("{1},-1.0,2.0,30.0,40.0,1",), "no box inside the image", 1),
        (("{1},nan,2.0,30.0,40.0,1",), "no box inside the image", 1),
        (("{1},1e30,2.0,30.0,40.0,1",), "no box inside the image", 1),
        (("{1},1.0,2.0,0.0,40.0,1",), "no box inside the image", 1),
        (("{1},1.0,2.0,30.0,-40.0,1",), "no box inside the image", 1),
        (("{1},1.0,1000.0,30.0,40.0,1",), "no box inside the image", 1),
        (("{1},,,,,1",), "no box inside the image", 1),
        (("{1},1.0,2.0,30.0,40.0,0",), "box with Target 0", 1),
        (("{1},,,,,2",), "Target is not 0 or 1", 1),
        (("{1},,,,,",), "Target is not 0 or 1", 1),
        (("{1}",), "not as many cells as the header", 1),
        (('{1},",,,,0',), "not as many cells as the header", 1),
        (("{1},1.0,2.0,30.0,40.0,1,9",), "not as many cells as the header", 1),
        (("../../etc/passwd,,,,,0",), "no name of a file", 1),
        (("{1}\0,,,,,0",), "no name of a file", 1),
        (("n" * 5000 + ",,,,,0",), "no name of a file", 1),
        (("nobody,,,,,0",), "image file missing", 1),
        (("{1},1.0,2.0,30.0,40.0,1", "{1},,,,,0"), "lines of the image contradict each other", 2),
    ],
)
def test_a_damaged_line_takes_its_patient_and_nobody_else(write, lines, reason, count):
    made = Rsna(write("{0},,,,,0", *lines))
    (only,) = made.rows().values()
    assert len(only) == 1
    assert made.dropped == {reason: count}


def test_the_other_boxes_of_a_patient_go_with_a_damaged_one(write):
    made = Rsna(write("{0},,,,,0", "{1},1.0,2.0,30.0,40.0,1", '{1},"1.0,2.0,30.0,40.0,1'))
    (only,) = made.rows().values()
    assert [row.labels for row in only] == [()]
    assert made.dropped == {"another line of the image is damaged": 1, "not as many cells as the header": 1}


def test_spaces_empty_cells_blank_lines_and_a_repeated_box_do_no_harm(write):
    made = Rsna(write(" {0} , 1.0,2.0, 30,40 ,1,,\r", "", "{0},1.0,2.0,30.0,40.0,1", header="\ufeff" + HEADER + "\r"))
    ((row,),) = made.rows().values()
    assert boxes(row) == ((1, 2, 31, 42),)
    assert not made.dropped


@pytest.mark.parametrize("header", ["", "patientId,x,y,width,height", '"patientId,x,y,width,height,Target'])
def test_a_header_without_its_columns_is_an_error_that_names_file_and_line(write, header):
    with pytest.raises(InputError, match=r"stage_2_train_labels\.csv line 1 must have the column"):
        Rsna(write("{0},,,,,0", header=header)).rows()


def test_a_table_without_a_usable_line_is_an_error_that_says_why(write):
    with pytest.raises(InputError, match=r"labels\.csv must have a line that can be used, got 2 image file missing;"):
        Rsna(write("a,,,,,0", "b,,,,,0")).rows()
    with pytest.raises(InputError, match="got no lines; give the data set as published"):
        Rsna(write()).rows()


@pytest.mark.parametrize(("gone", "message"), [(TABLE, rf"got no {TABLE} in"), (FOLDER, rf"got no {FOLDER}/ in")])
def test_a_raw_folder_without_its_parts_is_an_error_that_says_which(write, gone, message):
    folder = write("{0},,,,,0")
    (folder / gone).unlink()
    with pytest.raises(InputError, match=message):
        Rsna(folder).inputs()


@settings(max_examples=150)
@given(data=st.data())
def test_any_damage_to_the_table_gives_sound_rows_or_an_error_that_names_it(raw, tmp_path_factory, data):
    table = bytearray((raw / TABLE).read_bytes())
    for at in data.draw(st.lists(st.integers(0, len(table) - 1), max_size=6)):
        table[at] = data.draw(st.integers(0, 255))
    folder = tmp_path_factory.mktemp("damaged")
    (folder / TABLE).write_bytes(table[: data.draw(st.integers(0, len(table)))])
    (folder / FOLDER).symlink_to(raw / FOLDER)
    try:
        rows, message = all_rows(folder), ""
    except InputError as error:
        rows, message = [], str(error)
    assert TABLE in message or not message
    for row in rows:
        assert row.image.resolve().is_relative_to(raw)
        assert all(0 <= x0 < x1 <= 1024 and 0 <= y0 < y1 <= 1024 for x0, y0, x1, y1 in boxes(row))
        assert bool(boxes(row)) == bool(row.labels)
