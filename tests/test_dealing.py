"""How rows become splits: by patient, whatever images are there."""

from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_jax.data.dealing import deal, deal_around_test, with_images
from plan_jax.data.records import SPLITS
from plan_jax.data.row import Row
from plan_jax.errors import InputError

patients = st.lists(st.integers(0, 30).map(str), max_size=60)


def rows(names: list[str], part: str = "train") -> list[Row]:
    keys = [f"{part}{number}" for number in range(len(names))]
    return [Row(key, name, key, Path(key), key) for key, name in zip(keys, names, strict=True)]


@settings(max_examples=60)
@given(patients, patients, st.integers(0, 3))
def test_every_row_is_in_the_one_split_of_its_patient_or_counted(rest, test, seed):
    dropped = Counter()
    splits = deal_around_test(rows(rest), rows(test, "test"), seed=seed, dropped=dropped)
    assert tuple(splits) == SPLITS
    assert splits["test"] == rows(test, "test")
    assert sum(map(len, splits.values())) + dropped.total() == len(rest) + len(test)
    assert dropped == Counter({"patient of the test split": sum(name in test for name in rest)})
    sets = [{row.patient for row in part} for part in splits.values()]
    assert sum(map(len, sets)) == len(set().union(*sets))


@settings(max_examples=30)
@given(patients, st.integers(0, 3))
def test_without_a_test_split_the_tenth_that_would_be_tested_on_is_trained_on(rest, seed):
    four, three = deal(rows(rest), seed=seed), deal_around_test(rows(rest), [], seed=seed, dropped=Counter())
    assert {row.key for row in three["train"]} == {row.key for row in four["train"] + four["test"]}
    assert (three["tune"], three["validation"]) == (four["tune"], four["validation"])
    order = [int(row.key.removeprefix("train")) for row in three["train"]]
    assert order == sorted(order)


def test_rows_without_an_image_are_counted_and_empty_splits_left_out(tmp_path):
    (tmp_path / "a.png").touch()
    here, gone, odd, long = (Row(n, n, n, tmp_path / n, n) for n in ("a.png", "b.png", "c\0.png", "d" * 5000))
    dropped = Counter()
    assert with_images({"train": [gone, here, odd], "tune": [long]}, dropped=dropped, table=tmp_path) == {
        "train": [here]
    }
    assert dropped == {"image file missing": 3}
    with pytest.raises(InputError, match=r"t\.csv must have a row with an image to use, got no rows; give the data"):
        with_images({}, dropped=Counter(), table=tmp_path / "t.csv")
