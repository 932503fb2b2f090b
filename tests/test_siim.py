from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_jax.data.build import build
from plan_jax.data.fake_boxes import IMAGES, fake_siim
from plan_jax.data.image import decode_image
from plan_jax.data.records import open_split, read_manifest
from plan_jax.data.row import Row
from plan_jax.data.run_lengths import decode_runs
from plan_jax.data.siim import Siim, find_images
from plan_jax.data.store import Store, record_of
from plan_jax.errors import InputError

TABLE, FOLDER = "train-rle.csv", "dicom-images-train"
HEADER = "ImageId, EncodedPixels"


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("siim")
    fake_siim(folder, seed=0)
    return folder


@pytest.fixture
def write(raw, tmp_path):
    """Writes a raw folder with this table and the images of the made-up one; `{0}` in the table names its first."""
    names = sorted(find_images(raw / FOLDER))

    def write_table(*lines: str, header: str = HEADER) -> Path:
        (tmp_path / TABLE).write_text("\n".join((header, *lines)).format(*names), encoding="utf-8")
        if not (tmp_path / FOLDER).exists():
            (tmp_path / FOLDER).symlink_to(raw / FOLDER)
        return tmp_path

    return write_table


def all_rows(folder: Path, **options) -> list[Row]:
    return [row for part in Siim(folder, **options).rows().values() for row in part]


def lines_of(raw: Path) -> list[list[str]]:
    return [line.split(",") for line in (raw / TABLE).read_text().splitlines()[1:]]


def test_every_line_is_used_or_counted_with_its_reason(raw):
    made = Siim(raw)
    rows = [row for part in made.rows().values() for row in part]
    assert len(rows) == IMAGES
    assert made.dropped == {
        "image file missing": 1,
        "not as many cells as the header": 1,
        "run lengths cannot be read": 2,
        "another line of the image is damaged": 1,
    }
    lines = Counter(cells[0] for cells in lines_of(raw))
    assert sum(lines.values()) == sum(made.dropped.values()) + sum(lines[row.key] for row in rows)
    assert {cells[1] for cells in lines_of(raw)[:4]} == {"-1", " -1"}


def test_the_lines_of_an_image_are_one_mask_with_one_box(raw):
    rows = all_rows(raw)
    several = 0
    for row in rows:
        texts = [cells[1] for cells in lines_of(raw) if cells[0] == row.key and "-1" not in cells[1]]
        several += len(texts) > 1
        assert row.frame == (1024, 1024)
        if not texts:
            assert row.labels == row.phrases == row.runs == ()
            continue
        union = sum(decode_runs(text, height=1024, width=1024).astype(int) for text in texts) > 0
        ((text, category, box),) = [(phrase.text, phrase.category, phrase.boxes) for phrase in row.phrases]
        (runs,) = row.runs
        np.testing.assert_array_equal(decode_runs(runs, height=1024, width=1024), union)
        x, y, width, height = cv2.boundingRect(union.astype(np.uint8))
        assert box == ((x, y, x + width, y + height),)
        assert (text, category, row.labels) == ("pneumothorax", "pneumothorax", ("pneumothorax",))
    assert several == 4
    assert sum(bool(row.labels) for row in rows) == 8


def test_every_row_becomes_a_record_with_its_mask(raw):
    for row in all_rows(raw):
        record = record_of(row, Store(side=32))
        for phrase in record.phrases:
            mask = decode_image(phrase.mask, name=row.key) > 0
            ((x0, y0, x1, y1),) = phrase.boxes
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            found = (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            np.testing.assert_allclose((x0, y0, x1, y1), found, atol=1)
            image = decode_image(record.image, name=row.key)
            assert image[mask].mean() > image[~mask].mean()


def test_images_are_split_never_lines(raw):
    parts = Siim(raw).rows()
    keys = [row.key for part in parts.values() for row in part]
    assert len(set(keys)) == len(keys)
    assert {name: len(part) for name, part in parts.items()} == {"train": 17, "validation": 3, "test": 4}


def test_the_published_number_of_images_splits_into_70_15_15(tmp_path, monkeypatch):
    names = [f"1.2.{number}" for number in range(12_047)]
    lines = [f"{name}, -1" for name in names + names[:907]]
    (tmp_path / TABLE).write_text("\n".join([HEADER, *lines]))
    (tmp_path / FOLDER).mkdir()
    monkeypatch.setattr("plan_jax.data.siim.find_images", lambda folder: dict.fromkeys(names, folder))
    parts = Siim(tmp_path).rows()
    assert {name: len(part) for name, part in parts.items()} == {"train": 8432, "validation": 1808, "test": 1807}


def test_the_same_files_give_the_same_rows_and_the_seed_deals_anew(raw, tmp_path):
    fake_siim(tmp_path, seed=0)
    files = [path.relative_to(raw) for path in sorted(raw.rglob("*")) if path.is_file()]
    assert files == [path.relative_to(tmp_path) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert all((raw / path).read_bytes() == (tmp_path / path).read_bytes() for path in files)
    assert Siim(raw).rows() == Siim(raw).rows()
    assert {row.key for row in Siim(raw).rows()["test"]} != {row.key for row in Siim(raw, seed=1).rows()["test"]}


def test_images_are_found_in_any_folder_below_and_the_first_of_two_counts(tmp_path):
    for path in ("b/c/1.2.dcm", "a/1.2.dcm", "1.3.dcm", "a/notes.txt", "1.2/readme"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).touch()
    assert find_images(tmp_path) == {"1.2": tmp_path / "a/1.2.dcm", "1.3": tmp_path / "1.3.dcm"}


# Damage


@pytest.mark.parametrize(
    ("lines", "reason", "count"),
    [
        (("{1}, 5 -10",), "run lengths cannot be read", 1),
        (("{1}, 5 nan",), "run lengths cannot be read", 1),
        (("{1}, 5 1e30",), "run lengths cannot be read", 1),
        (("{1}, 5 0",), "run lengths cannot be read", 1),
        (("{1}, 5",), "run lengths cannot be read", 1),
        (("{1}, 1048576 1",), "run lengths cannot be read", 1),
        (("{1}, 1 99999999999999999999",), "run lengths cannot be read", 1),
        (("{1},",), "run lengths cannot be read", 1),
        (("{1}",), "not as many cells as the header", 1),
        (("{1}, 5 10, 15",), "not as many cells as the header", 1),
        (('{1}, "5 10',), "run lengths cannot be read", 1),
        (('{1},"5 10',), "not as many cells as the header", 1),
        (("../../etc/passwd, -1",), "no name of a file", 1),
        ((", -1",), "no name of a file", 1),
        (("1.2.3, -1",), "image file missing", 1),
        (("{1}, 5 10", "{1}, -1"), "lines of the image contradict each other", 2),
    ],
)
def test_a_damaged_line_takes_its_image_and_nobody_else(write, lines, reason, count):
    made = Siim(write("{0}, -1", *lines))
    (only,) = made.rows().values()
    assert len(only) == 1
    assert made.dropped == {reason: count}


def test_the_other_lines_of_an_image_go_with_a_damaged_one(write):
    made = Siim(write("{0}, -1", "{1}, 5 10", "{1}, 5 x"))
    (only,) = made.rows().values()
    assert [row.labels for row in only] == [()]
    assert made.dropped == {"another line of the image is damaged": 1, "run lengths cannot be read": 1}


def test_the_column_is_found_with_and_without_its_space(write):
    for header in (HEADER, "ImageId,EncodedPixels"):
        ((row,),) = Siim(write("{0},1024 2", "{0}, 1024 3", header=header)).rows().values()
        assert row.runs == ("1024 3",)
        assert row.phrases[0].boxes == ((1, 0, 2, 3),)
        assert row.where == "train-rle.csv line 2"


@pytest.mark.parametrize("header", ["", "ImageId", "ImageId;EncodedPixels", '"ImageId, EncodedPixels'])
def test_a_header_without_its_columns_is_an_error_that_names_file_and_line(write, header):
    with pytest.raises(InputError, match=r"train-rle\.csv line 1 must have the column"):
        Siim(write("{0}, -1", header=header)).rows()


def test_a_table_without_a_usable_line_is_an_error_that_says_why(write):
    with pytest.raises(
        InputError, match=r"train-rle\.csv must have a line that can be used, got 1 image file missing;"
    ):
        Siim(write("1.2, -1")).rows()


def test_a_raw_folder_without_its_parts_is_an_error_that_says_which(tmp_path):
    with pytest.raises(InputError, match=r"got no train-rle\.csv in"):
        Siim(tmp_path).inputs()
    (tmp_path / TABLE).touch()
    with pytest.raises(InputError, match=r"got no dicom-images-train/ in"):
        Siim(tmp_path).rows()


@settings(max_examples=60)
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
        assert len(row.runs) == len(row.phrases) == len(row.labels)
        for phrase in row.phrases:
            ((x0, y0, x1, y1),) = phrase.boxes
            assert 0 <= x0 < x1 <= 1024
            assert 0 <= y0 < y1 <= 1024


def test_the_real_dicom_pair_builds_as_it_is(shared, tmp_path):
    """One film, and its copy whose tag says that it is inverted, in the published layout."""
    raw = tmp_path / "raw"
    (raw / FOLDER).mkdir(parents=True)
    names = sorted(path.stem for path in (shared / "dicom").glob("*.dcm"))
    for name in names:
        (raw / FOLDER / f"{name}.dcm").write_bytes((shared / "dicom" / f"{name}.dcm").read_bytes())
    (raw / TABLE).write_text("\n".join([HEADER, *(f"{name}, -1" for name in names)]))
    build("siim", raw=raw, out=tmp_path / "built", images=Store(side=128), jobs=1)
    manifest = read_manifest(tmp_path / "built")
    assert {name: split["records"] for name, split in manifest["splits"].items()} == {
        "train": 1,
        "test": 1,
    }
    assert manifest["dropped"] == {}
    records = [record for split in ("train", "test") for record in open_split(tmp_path / "built", split)]
    plain, inverted = (decode_image(record.image, name=record.key) for record in sorted(records, key=lambda r: r.key))
    assert plain.shape == inverted.shape == (128, 128)
    assert plain.std() > 30
    np.testing.assert_allclose(plain.astype(int) + inverted, 255, atol=1)
