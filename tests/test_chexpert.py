"""CheXpert and its 5x200 list: what becomes of every row, and that no patient is trained and tested on."""

import json
import random
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_jax.data.chexpert import CheXpert
from plan_jax.data.chexpert_5x200 import FINDINGS, CheXpert5x200, draw, read_list
from plan_jax.data.chexpert_table import LABELS, TRAIN, Film, key_of, read_films
from plan_jax.data.fake_labels import CANDIDATES, fake_chexpert, fake_chexpert_5x200
from plan_jax.errors import InputError

IMAGE = "train/patient00001/study1/view1_frontal.jpg"
FLAWED = {
    "path not as published": 1,
    "fewer cells than the header": 1,
    "more cells than the header": 1,
    "label not 1, 0, -1 or empty": 1,
    "image of an earlier row": 1,
}


@pytest.fixture(autouse=True)
def two_per_class(monkeypatch):
    monkeypatch.setattr(CheXpert5x200, "per_class", 2)


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("chexpert")
    fake_chexpert(folder, seed=0)
    return folder


@pytest.fixture
def table(tmp_path):
    """Writes train.csv with these rows (path, view, labels by name) and reads it."""

    def write(*rows: tuple[str, str, dict[str, str]]):
        lines = [",".join(("Path", "Frontal/Lateral", *LABELS))]
        lines += [",".join((path, view, *(dict.fromkeys(LABELS, "") | labels).values())) for path, view, labels in rows]
        (tmp_path / TRAIN).write_text("\n".join(lines))
        dropped = Counter()
        return read_films(tmp_path / TRAIN, dropped), dropped

    return write


def sizes(splits) -> dict[str, int]:
    return {name: len(rows) for name, rows in splits.items()}


def film(number: int, **present: int) -> Film:
    values = tuple(present.get(name.replace(" ", "_"), 0) for name in LABELS)
    return Film(f"train/patient{number:05d}/study1/view1_frontal.jpg", f"train.csv line {number + 1}", values)


def test_every_row_is_kept_or_counted_with_its_reason(raw):
    made = CheXpert(raw)
    splits = made.rows()
    assert sizes(splits) == {"train": 29, "tune": 4, "validation": 3, "test": 4}
    assert made.dropped == FLAWED | {
        "not a frontal film": 16,
        "image of the 5x200 list": 10,
        "patient of the 5x200 list": 10,
        "patient of the test split": 1,
        "image file missing": 1,
    }
    lines = sum(
        len((raw / "CheXpert-v1.0-small" / name).read_text().splitlines()) - 1 for name in ("train.csv", "valid.csv")
    )
    assert sum(sizes(splits).values()) + made.dropped.total() == lines


def test_no_patient_is_in_two_splits_and_none_of_the_5x200_list_is_in_any(raw):
    held = {row.patient for row in CheXpert5x200(raw).rows()["test"]}
    splits = CheXpert(raw).rows()
    patients = [{row.patient for row in rows} for rows in splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients))
    assert len(held) == 10
    assert not held & set.union(*patients)


def test_valid_csv_is_the_test_split_and_wins_over_train_csv(raw):
    test = CheXpert(raw).rows()["test"]
    assert [row.where for row in test] == [f"valid.csv line {line}" for line in (2, 3, 4, 5)]
    assert {row.key.split("/")[0] for row in test} == {"valid"}


def test_a_row_says_what_the_table_says(raw):
    row = next(row for row in CheXpert5x200(raw).rows()["test"] if row.labels == ("Atelectasis",))
    assert row.key == row.image.relative_to(raw / "CheXpert-v1.0-small").as_posix()
    assert row.study == f"{row.patient}/study1"
    assert row.where.startswith("train.csv line ")
    assert row.image.is_file()
    assert (row.sections, row.phrases) == ((), ())


def test_uncertain_is_present_for_three_findings_and_empty_is_absent(table):
    (uncertain, certain, empty), dropped = table(
        (f"CheXpert-v1.0/{IMAGE}", "Frontal", dict.fromkeys(LABELS, "-1.0")),
        ("train/patient2/study1/view1_frontal.jpg", "frontal", dict.fromkeys(LABELS, "1.0")),
        ("train/patient3/study1/view1_frontal.jpg", "Frontal", {"Edema": "NaN", "Fracture": "0.0"}),
    )
    assert uncertain.labels == ("Edema", "Atelectasis", "Pleural Effusion")
    assert certain.labels == LABELS
    assert empty.labels == ()
    assert not dropped


@pytest.mark.parametrize(
    ("path", "key"),
    [
        (f"CheXpert-v1.0-small/{IMAGE}", IMAGE),
        (f"/data/x/{IMAGE}", IMAGE),
        (IMAGE, IMAGE),
        ("../../etc/passwd", ""),
        (f"{IMAGE}/../../../../../etc/passwd", ""),
        ("train/../study1/view1_frontal.jpg", ""),
        (f"{IMAGE}\n", ""),
        ("train/patient\u0661/study1/view1_frontal.jpg", ""),
        ("", ""),
    ],
)
def test_only_a_published_path_names_an_image(path, key):
    assert key_of(path) == key


def test_the_same_files_give_the_same_rows_and_another_seed_deals_anew(raw, tmp_path):
    fake_chexpert(tmp_path, seed=0)
    first, again, other = CheXpert(raw).rows(), CheXpert(raw).rows(), CheXpert(raw, seed=1).rows()
    assert first == again
    assert first["test"] == other["test"]
    assert first["validation"] != other["validation"]
    keys = [[row.key for row in rows] for rows in first.values()]
    assert keys == [[row.key for row in rows] for rows in CheXpert(tmp_path).rows().values()]
    written = [{p.relative_to(f): p.read_bytes() for p in f.rglob("*.*g")} for f in (raw, tmp_path)]
    assert written[0] == written[1]


def test_counts_start_anew_with_every_reading(raw):
    made = CheXpert(raw)
    made.rows()
    first = made.dropped.copy()
    made.rows()
    assert made.dropped == first


def test_an_image_that_is_missing_moves_no_patient(raw, tmp_path):
    shutil.copytree(raw, tmp_path / "part")
    before = CheXpert(raw).rows()
    gone = before["train"][0]
    (tmp_path / "part" / gone.image.relative_to(raw)).unlink()
    after = CheXpert(tmp_path / "part").rows()
    assert [row.key for row in after["train"]] == [row.key for row in before["train"][1:]]
    assert sizes(after) == sizes(before) | {"train": len(before["train"]) - 1}


def test_raw_may_be_the_folder_or_its_parent(raw):
    inside = CheXpert(raw / "CheXpert-v1.0-small")
    assert inside.rows() == CheXpert(raw).rows()
    assert [path.name for path in inside.inputs()] == ["train.csv", "valid.csv"]


def test_a_folder_without_the_tables_is_an_error_that_names_them(tmp_path):
    for data_set in (CheXpert, CheXpert5x200):
        with pytest.raises(InputError, match=r"--raw must hold train\.csv or a folder CheXpert-v1\.0"):
            data_set(tmp_path).inputs()
    (tmp_path / TRAIN).touch()
    with pytest.raises(InputError, match=r"must hold train\.csv and valid\.csv, got no valid\.csv"):
        CheXpert(tmp_path).inputs()


def test_without_any_image_the_error_says_what_was_left_out(raw, tmp_path):
    home = tmp_path / "CheXpert-v1.0-small"
    home.mkdir()
    for name in ("train.csv", "valid.csv"):
        shutil.copy(raw / home.name / name, home)
    with pytest.raises(
        InputError, match=r"train\.csv must have a row with an image to use, got .*41 image file missing"
    ):
        CheXpert(tmp_path).rows()


# The 5x200 list


def test_the_draw_takes_as_many_of_each_finding_alone_and_counts_the_rest(raw):
    made = CheXpert5x200(raw)
    (split,) = made.rows().items()
    assert split[0] == "test"
    assert Counter(row.labels for row in split[1]) == {(name,): 2 for name in FINDINGS}
    assert made.dropped == FLAWED | {"not a frontal film": 15, "not in the 5x200 list": 48}
    assert made.rows() == CheXpert5x200(raw, seed=5).rows()


@pytest.mark.parametrize(
    "present",
    [
        {"Edema": 1, "Atelectasis": 1},
        {"Edema": 1, "Atelectasis": -1},
        {"Edema": 1, "Lung_Opacity": 1},
        {"Edema": 1, "Pneumonia": -1},
        {"Edema": -1},
        {},
    ],
)
def test_a_film_with_more_than_one_finding_or_an_uncertain_one_is_no_candidate(present):
    alone = [film(10 + i, **{name.replace(" ", "_"): 1, "No_Finding": -1}) for i, name in enumerate(FINDINGS)]
    chosen = draw([film(1, **present), *alone], per_class=1)
    assert [(one.key, one.finding) for one in chosen] == [(f.key, n) for f, n in zip(alone, FINDINGS, strict=True)]


def test_the_draw_is_the_documented_one():
    films = [film(i, **{FINDINGS[i % 5].replace(" ", "_"): 1}) for i in range(5000)]
    places = sorted(np.random.RandomState(0).choice(1000, 200, replace=False))
    chosen = draw(films, per_class=200)
    assert [one.key for one in chosen] == [films[5 * place + k].key for k in range(5) for place in places]
    assert places[:6] == [1, 5, 8, 14, 27, 30]  # what pandas' sample(n=200, random_state=0) keeps of 1,000 rows


def test_too_few_candidates_are_an_error_that_says_how_many(raw, monkeypatch):
    monkeypatch.setattr(CheXpert5x200, "per_class", CANDIDATES + 1)
    for data_set in (CheXpert, CheXpert5x200):
        with pytest.raises(
            InputError, match=r"must have 4 frontal films with Atelectasis alone .* got 3; give the whole"
        ):
            data_set(raw).rows()


def test_a_users_list_stands_for_the_draw_in_both_data_sets(tmp_path, monkeypatch):
    monkeypatch.setattr(CheXpert5x200, "per_class", 200)
    fake_chexpert_5x200(tmp_path, seed=0)
    made, trained = CheXpert5x200(tmp_path), CheXpert(tmp_path)
    test = made.rows()["test"]
    assert [row.patient for row in test] == [f"patient{3 * k + i:05d}" for k in range(5) for i in (1, 2)]
    assert [row.labels for row in test] == [(name,) for name in FINDINGS for _ in range(2)]
    assert (made.dropped, [path.name for path in made.inputs()]) == ({}, ["chexpert_5x200.json"])
    assert [path.name for path in trained.inputs()] == ["train.csv", "valid.csv", "chexpert_5x200.json"]
    assert not {row.patient for row in test} & {row.patient for rows in trained.rows().values() for row in rows}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", r"must be JSON, got .*line 1"),
        ("[" * 100_000, r"must be JSON, got"),
        ("[]", r"must map image paths to five numbers, got list"),
        ("{}", r"must map image paths"),
        (b"\xff\xfe{}", r"must be JSON"),
        (json.dumps({IMAGE: [1, 0, 0, 0, 0], "../../etc/passwd": [1, 0, 0, 0, 0]}), r"entry 2 .* got another path"),
        (json.dumps({IMAGE: [1, 0, 0, 0, 0], f"x/{IMAGE}": [1, 0, 0, 0, 0]}), r"entry 2 .* got an image again"),
        (json.dumps({IMAGE: [1, 1, 0, 0, 0]}), r"entry 1 .* got other numbers"),
        (json.dumps({IMAGE: [1, 0, 0, 0, float("nan")]}), r"entry 1 .* got other numbers"),
        (json.dumps({IMAGE: [1, 0, 0, 0]}), r"entry 1 .* got no list of five"),
        (json.dumps({IMAGE: {"Edema": 1}}), r"entry 1 .* got no list of five"),
    ],
)
def test_a_list_that_is_none_is_an_error_that_names_file_and_entry(tmp_path, content, message):
    path = tmp_path / "chexpert_5x200.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(InputError, match=rf"chexpert_5x200\.json {message}"):
        read_list(path)


# Damage


@settings(max_examples=60)
@given(st.integers(0, 2**32), st.sampled_from(["flip", "cut", "insert"]))
def test_a_damaged_table_gives_rows_or_an_input_error_that_names_it(raw, tmp_path_factory, seed, kind):
    rng, home = random.Random(seed), raw / "CheXpert-v1.0-small"
    data = bytearray((home / TRAIN).read_bytes())
    if kind == "cut":
        del data[rng.randrange(len(data)) :]
    for _ in range(rng.randrange(1, 6)) if data else ():
        place = rng.randrange(len(data))
        data[place : place + (kind == "flip")] = bytes([rng.choice((*b'",\n\r', rng.randrange(256)))])
    folder = tmp_path_factory.mktemp("damaged")
    (folder / TRAIN).write_bytes(data)
    (folder / "valid.csv").write_bytes((home / "valid.csv").read_bytes())
    (folder / "train").symlink_to(home / "train")
    (folder / "valid").symlink_to(home / "valid")
    try:
        splits, message = CheXpert(folder).rows(), ""
    except InputError as error:
        splits, message = {}, str(error)
    assert splits or "train.csv" in message
    rows = [row for part in splits.values() for row in part]
    assert all(row.image.is_relative_to(folder) and set(row.labels) <= set(LABELS) for row in rows)
    patients = [{row.patient for row in part} for part in splits.values()]
    assert sum(map(len, patients)) == len(set().union(*patients))
