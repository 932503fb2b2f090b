"""COVIDx: what becomes of every line of the two lists."""

import random
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_jax.data.covidx import LISTS, CovidX
from plan_jax.data.fake_labels import fake_covidx
from plan_jax.errors import InputError


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("covidx")
    fake_covidx(folder, seed=0)
    return folder


@pytest.fixture
def lists(tmp_path):
    """Writes the lists and an image file for every name given."""

    def write(train: str, test: str = "", *, images=()):
        for part, text in (("train", train), ("test", test)):
            (tmp_path / part).mkdir()
            (tmp_path / LISTS[part]).write_text(text, encoding="utf-8", newline="")
        for name in images:
            (tmp_path / name).touch()
        return CovidX(tmp_path)

    return write


def test_every_line_is_kept_or_counted_with_its_reason(raw):
    made = CovidX(raw)
    sizes = {name: len(rows) for name, rows in made.rows().items()}
    assert sizes == {"train": 20, "tune": 1, "validation": 2, "test": 4}
    assert made.dropped == {
        "fewer than four words": 1,
        "unknown class": 1,
        "file name with a folder": 1,
        "image of an earlier row": 1,
        "patient of the test split": 2,
        "image file missing": 1,
    }
    lines = sum(len((raw / name).read_text().splitlines()) for name in LISTS.values())
    assert sum(sizes.values()) + made.dropped.total() == lines


def test_no_patient_is_in_two_splits_and_the_test_list_wins(raw):
    splits = CovidX(raw).rows()
    patients = {name: {row.patient for row in rows} for name, rows in splits.items()}
    assert sum(map(len, patients.values())) == len(set.union(*patients.values()))
    assert patients["test"] == {"p15", "p20", "p21", "p22"}


def test_a_row_says_what_the_line_says_and_a_name_may_hold_spaces(lists):
    made = lists(
        "\ufeff3 COVID (1).png covid-19 sirm\r\n\r\n4  b.png normal rsna\n",
        images=("train/COVID (1).png", "train/b.png"),
    )
    first, second = (row for rows in made.rows().values() for row in rows)
    assert (first.key, first.patient, first.labels) == ("train/COVID (1).png", "3", ("COVID-19",))
    assert (first.image, first.where) == (made.raw / "train" / "COVID (1).png", "train_COVIDx9A.txt line 1")
    assert (second.labels, second.where) == (("normal",), "train_COVIDx9A.txt line 3")
    assert CovidX.classes == ("normal", "pneumonia", "COVID-19")


def test_the_same_lists_give_the_same_rows_and_another_seed_deals_anew(raw, tmp_path):
    fake_covidx(tmp_path, seed=0)
    first, again, other = CovidX(raw).rows(), CovidX(raw).rows(), CovidX(raw, seed=3).rows()
    assert first == again
    assert first["test"] == other["test"]
    assert first["validation"] != other["validation"]
    keys = [[row.key for row in rows] for rows in first.values()]
    assert keys == [[row.key for row in rows] for rows in CovidX(tmp_path).rows().values()]


def test_a_folder_without_a_list_is_an_error_that_names_it(tmp_path):
    (tmp_path / LISTS["train"]).touch()
    with pytest.raises(InputError, match=r"--raw must hold .*, got no test_COVIDx9A\.txt in .*; give another"):
        CovidX(tmp_path).inputs()


def test_lists_without_a_usable_line_are_an_error_that_says_why(lists):
    made = lists("1 a.png normal rsna\n2 ../../etc/passwd normal rsna\n3 .. normal rsna\n")
    with pytest.raises(InputError, match=r"got 1 file name with a folder, 2 image file missing; give"):
        made.rows()


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.booleans())
def test_a_damaged_list_gives_rows_or_an_input_error_that_names_it(raw, tmp_path_factory, seed, cut):
    rng, folder = random.Random(seed), tmp_path_factory.mktemp("damaged")
    data = bytearray((raw / LISTS["train"]).read_bytes())
    for _ in range(8):
        data[rng.randrange(len(data))] = rng.choice((*b" \n/\0", rng.randrange(256)))
    (folder / LISTS["train"]).write_bytes(data[: rng.randrange(len(data))] if cut else data)
    (folder / LISTS["test"]).write_bytes((raw / LISTS["test"]).read_bytes())
    for part in LISTS:
        (folder / part).symlink_to(raw / part)
    splits = CovidX(folder).rows()
    assert len(splits["test"]) == 4
    assert all(row.image.parent == folder / row.key.split("/")[0] for rows in splits.values() for row in rows)
    patients = [{row.patient for row in rows} for rows in splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients))


@settings(max_examples=60)
@given(st.lists(st.text(max_size=30), max_size=3))
def test_any_line_is_counted(tmp_path_factory, lines):
    folder = tmp_path_factory.mktemp("lines")
    (folder / LISTS["train"]).write_text("\n".join(lines), encoding="utf-8", errors="replace")
    (folder / LISTS["test"]).touch()
    with pytest.raises(InputError, match=r"train_COVIDx9A\.txt must have a row with an image"):
        CovidX(folder).rows()
