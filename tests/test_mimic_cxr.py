"""MIMIC-CXR: made-up raw folders in the published layouts become rows; damage is counted or named, never more."""

import gzip
import os
import shutil
import zipfile
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_jax.data.csv_table import read_table
from plan_jax.data.fake_reports import fake_mimic_cxr, fake_ms_cxr
from plan_jax.data.mimic_cxr import CLASSES, TABLES, TUNE, MimicCxr
from plan_jax.data.mimic_reports import ARCHIVE, FOLDER, MAX_BYTES, TABLE, NoReport, open_reports
from plan_jax.data.ms_cxr import MsCxr
from plan_jax.data.records import file_hash
from plan_jax.errors import InputError

METADATA, SPLIT, CHEXPERT = TABLES
DROPPED = {
    "image of an earlier row": 1,
    "image file missing": 1,
    "neither findings nor impression": 1,
    "no official split": 1,
    "no report of the study": 1,
    "not a frontal view": 9,  # 8 lateral films, one without a view
    "report of too few words": 1,
    "train image of a subject of MS-CXR": 1,
}


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("mimic") / "raw"
    fake_mimic_cxr(folder, seed=0)
    return folder


@pytest.fixture
def raw(published, tmp_path) -> Path:
    """A copy that a test may change."""
    return shutil.copytree(published, tmp_path / "raw")


def parts(folder: Path, seed: int = 0) -> tuple[dict, Counter]:
    made = MimicCxr(folder, seed=seed)
    return dict(made.rows()), made.dropped


def contents(folder: Path) -> dict[Path, str]:
    return {path.relative_to(folder): file_hash(path) for path in folder.rglob("*") if path.is_file()}


def by_study(folder: Path) -> dict:
    return {row.study: row for part in parts(folder)[0].values() for row in part}


def change(path: Path, old: str, new: str, count: int = -1) -> None:
    data = path.read_bytes()
    packed = path.suffix == ".gz"
    data = (gzip.decompress(data) if packed else data).replace(old.encode(), new.encode(), count)
    path.write_bytes(gzip.compress(data) if packed else data)


def lines_of(path: Path) -> list[str]:
    return path.read_text().splitlines()


# Rows


def test_every_image_is_a_row_or_counted_by_its_reason(raw):
    rows, dropped = parts(raw)
    assert {name: len(part) for name, part in rows.items()} == {"train": 31, "tune": 1, "validation": 4, "test": 3}
    assert dropped == DROPPED
    assert sum(map(len, rows.values())) + dropped.total() == len(lines_of(raw / METADATA)) - 1


def test_a_row_says_what_tables_and_report_say(raw):
    dicom, subject, study = read_table(raw / METADATA, ("dicom_id", "subject_id", "study_id"))[0].cells
    report = raw / FOLDER / f"files/p{subject[:2]}/p{subject}/s{study}.txt"
    report.write_text("\n FINDINGS: Clear lungs,\n no effusion.\n \n IMPRESSION: 1. Normal chest. 2. Normal.\n")
    row = by_study(raw)[study]
    assert (row.key, row.patient, row.study, row.where) == (dicom, subject, study, f"{METADATA} line 2")
    assert row.image == raw / f"files/p{subject[:2]}/p{subject}/s{study}/{dicom}.jpg"
    assert row.sections == (("impression", "Normal chest."), ("findings", "Clear lungs no effusion."))
    assert row.phrases == ()


def test_patients_never_cross_splits_and_official_splits_are_followed(raw):
    rows, _ = parts(raw)
    official = dict(row.cells for row in read_table(raw / f"{SPLIT}.gz", ("dicom_id", "split")))
    names = {"train": {"train"}, "tune": {"train"}, "validation": {"validate"}, "test": {"test"}}
    patients: set[str] = set()
    for split, part in rows.items():
        assert {official[row.key] for row in part} == names[split]
        own = {row.patient for row in part}
        assert not own & patients
        patients |= own


def test_subjects_of_ms_cxr_train_nothing_but_are_tested(raw):
    rows, dropped = parts(raw)
    evaluated = {row.cells[0].split("/")[2][1:] for row in read_table(next((raw / "ms-cxr").iterdir()), ("path",))}
    assert len(evaluated) == 2
    assert not evaluated & {row.patient for split in ("train", "tune", "validation") for row in rows[split]}
    assert evaluated & {row.patient for row in rows["test"]}
    shutil.rmtree(raw / "ms-cxr")
    assert parts(raw)[1] == Counter(dropped) - Counter({"train image of a subject of MS-CXR": 1})


@pytest.mark.parametrize("place", [".", "..", "../ms-cxr"])
def test_ms_cxr_is_found_in_the_folder_and_beside_it(raw, place):
    table = next((raw / "ms-cxr").iterdir())
    (raw / place).mkdir(exist_ok=True)
    shutil.move(table, raw / place / table.name)
    assert parts(raw)[1]["train image of a subject of MS-CXR"] == (place != "..")


def test_labels_are_those_marked_present(raw):
    rows = by_study(raw)
    study = next(iter(rows))
    subject = rows[study].patient
    cells = ["1.0", "-1.0", "0.0", "", "1", "nan", *[""] * 8]
    table = [["subject_id", "study_id", *CLASSES], [subject, study, *cells]]
    (raw / f"{CHEXPERT}.gz").unlink()
    (raw / CHEXPERT).write_text("\n".join(map(",".join, table)))
    rows = by_study(raw)
    assert rows.pop(study).labels == (CLASSES[0], CLASSES[4])
    assert {row.labels for row in rows.values()} == {()}


def test_negative_only_studies_are_rows(raw):
    assert ("No Finding",) in {row.labels for row in by_study(raw).values()}


def test_the_same_input_gives_the_same_rows_and_another_seed_another_tune(published, tmp_path):
    fake_mimic_cxr(tmp_path / "raw", seed=0)
    assert contents(tmp_path / "raw") == contents(published)
    made = MimicCxr(published)
    first = made.rows()
    assert made.rows() == first
    assert made.dropped == DROPPED  # counted anew
    tuned = {parts(published, seed)[0]["tune"][0].patient for seed in range(5)}
    assert len(tuned) > 1
    assert round(TUNE * 64_586) == 646


@pytest.mark.parametrize("form", ["zip", "table"])
def test_reports_are_read_alike_from_folder_zip_and_table(published, tmp_path, form):
    fake_mimic_cxr(tmp_path / "raw", seed=0, reports=form)
    assert not (tmp_path / "raw" / FOLDER).exists()
    found, expected = parts(tmp_path / "raw"), parts(published)
    assert found[1] == expected[1]
    for split, part in expected[0].items():
        assert [(row.key, row.sections) for row in found[0][split]] == [(row.key, row.sections) for row in part]
    assert not (tmp_path / "raw" / FOLDER).exists()  # nothing is unpacked


def test_other_bytes_line_ends_and_typing_errors_do_not_lose_a_report(raw):
    reports = {path.stem[1:]: path.read_bytes() for path in (raw / FOLDER).rglob("*.txt")}
    rows = by_study(raw)
    marks = {"bytes": b"\xb5", "line ends": b"\r\n", "typing errors": b"IMPRESSON"}
    for mark in marks.values():
        (study,) = [study for study, data in reports.items() if mark in data]
        assert [name for name, _ in rows[study].sections] == ["impression", "findings"]


def test_inputs_are_the_tables_and_the_one_file_of_reports(raw, tmp_path):
    names = [path.name for path in MimicCxr(raw).inputs()]
    assert names == [METADATA, f"{SPLIT}.gz", f"{CHEXPERT}.gz", "MS_CXR_Local_Alignment_v1.0.0.csv"]
    fake_mimic_cxr(tmp_path / "zip", seed=0, reports="zip")
    assert ARCHIVE in [path.name for path in MimicCxr(tmp_path / "zip").inputs()]


# Damage


def test_a_patient_of_two_splits_stays_in_the_one_furthest_from_train(raw):
    lines = gzip.decompress((raw / f"{SPLIT}.gz").read_bytes()).decode().splitlines()
    dicom, study, subject, split = lines[1].split(",")
    assert split == "train"
    (raw / f"{SPLIT}.gz").unlink()
    (raw / SPLIT).write_text("\n".join([*lines, f"{'0' * 8},{study},{subject},test"]))
    rows, dropped = parts(raw)
    assert dropped["patient of another split"] > 0
    assert dicom not in {row.key for part in rows.values() for row in part}


@pytest.mark.parametrize("name", ["../../x", "a/b", "", "x" * 65, "A\x00"])
def test_identifiers_that_could_lead_out_of_the_folder_are_dropped(raw, name):
    lines = lines_of(raw / METADATA)
    with open(raw / METADATA, "a") as file:
        file.write(f"{name},10000000,50000000,,PA,1,1\nabc,{name},50000000,,PA,1,1\nabc,10000000,{name},,PA,1,1\n")
    assert parts(raw)[1]["identifiers are not as published"] == 3
    assert len(lines_of(raw / METADATA)) == len(lines) + 3


@pytest.mark.parametrize(
    ("table", "column"),
    [(METADATA, "ViewPosition"), (METADATA, "dicom_id"), (f"{SPLIT}.gz", "split"), (f"{CHEXPERT}.gz", "Edema")],
)
def test_a_table_without_a_column_is_an_error_that_names_both(raw, table, column):
    change(raw / table, column, "other", 1)
    with pytest.raises(InputError, match=f"{table} line 1 must name the column {column} once, got 0"):
        parts(raw)


@pytest.mark.parametrize("name", ["metadata", "split", "chexpert"])
def test_a_missing_table_is_an_error_that_names_it(raw, name):
    next(raw.glob(f"*{name}*")).unlink()
    with pytest.raises(InputError, match=rf"got no mimic-cxr-2\.0\.0-{name}\.csv\[\.gz\] in"):
        MimicCxr(raw).inputs()


def test_missing_images_and_reports_are_errors_with_the_next_step(raw):
    shutil.rmtree(raw / FOLDER)
    with pytest.raises(InputError, match=r"--raw must hold mimic-cxr-reports\.zip, .*; add the reports"):
        MimicCxr(raw).inputs()
    shutil.rmtree(raw / "files")
    with pytest.raises(InputError, match="got no files/ in"):
        MimicCxr(raw).inputs()


def test_without_a_usable_row_the_error_says_why(raw):
    change(raw / METADATA, ",PA,", ",LL,")
    change(raw / METADATA, ",AP,", ",LL,")
    with pytest.raises(
        InputError, match=rf"{METADATA} must have a row with an image to use, got .* 54 not a frontal view"
    ):
        parts(raw)


def test_a_quote_that_is_never_closed_is_an_error_that_names_the_line(raw):
    change(raw / METADATA, "CHEST", '"CHEST', 1)
    with pytest.raises(InputError, match=rf"{METADATA} line 56 must be of a CSV table, got unexpected end of data"):
        parts(raw)


def test_reports_too_large_or_unreadable_are_counted(raw):
    first, second = sorted((raw / FOLDER).rglob("*.txt"))[:2]
    first.write_bytes(b"\n FINDINGS: clear\n" + b" lungs" * (MAX_BYTES // 6))
    second.unlink()
    second.mkdir()
    assert parts(raw)[1]["report cannot be read"] == 2


def test_hostile_members_of_the_zip_lead_nowhere(tmp_path):
    path = tmp_path / ARCHIVE
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../p10/p10000000/s50000000.txt", "\n FINDINGS: first of two\n")
        archive.writestr("/files/p10/p10000000/s50000000.txt", "\n FINDINGS: second of two\n")
        archive.writestr("files/p10/p10000001/s50000001.txt/../../x", "\n FINDINGS: elsewhere\n")
        archive.writestr("files/p10/p10000002/s50000002.txt", b" " * (MAX_BYTES + 1), zipfile.ZIP_DEFLATED)
    with open_reports(path) as read:
        assert read("10000000", "50000000") == {"findings": "first of two"}
        for subject, study, reason in (
            ("10000001", "50000001", "no report of the study"),
            ("10000002", "50000002", "report cannot be read"),
        ):
            with pytest.raises(NoReport, match=reason):
                read(subject, study)
    assert os.listdir(tmp_path) == [ARCHIVE]


def mutated(data: bytes, flips: list[tuple[float, int]], cut: float) -> bytes:
    """The data with some bytes replaced, cut after a share of it."""
    changed = bytearray(data)
    for place, value in flips:
        changed[int(place * (len(data) - 1))] = value
    return bytes(changed[: max(1, round(cut * len(data)))])


def outcome(call: Callable) -> tuple[Any, str]:
    """What the call gives, or the message of the error that it may raise."""
    try:
        return call(), ""
    except (InputError, NoReport) as error:
        return None, str(error)


shares = st.floats(0, 1)
flips = st.lists(st.tuples(shares, st.integers(0, 255)), max_size=4)
cuts = st.one_of(st.just(1.0), shares)


@settings(max_examples=80)
@given(
    name=st.sampled_from([METADATA, f"{SPLIT}.gz", f"{CHEXPERT}.gz", "ms-cxr"]),
    inside=st.booleans(),
    flips=flips,
    cut=cuts,
)
def test_damaged_tables_give_rows_or_an_error_that_names_them(published, tmp_path_factory, name, inside, flips, cut):
    raw = tmp_path_factory.mktemp("damaged")
    for path in published.iterdir():
        (raw / path.name).symlink_to(path)
    path = next(raw.glob(name))
    if path.is_dir():
        path.unlink()
        path.mkdir()
        original = next((published / name).iterdir())
        path = path / original.name
    else:
        original = published / name
        path.unlink()
    data = original.read_bytes()
    unpack = inside and path.suffix == ".gz"
    data = mutated(gzip.decompress(data) if unpack else data, flips, cut)
    path.write_bytes(gzip.compress(data) if unpack else data)
    found, error = outcome(lambda: parts(raw)[0])
    assert not error or path.name in error or METADATA in error
    rows = [row for part in (found or {}).values() for row in part]
    assert len({row.key for row in rows}) == len(rows)
    assert all(row.image.is_relative_to(raw / "files") for row in rows)


@settings(max_examples=60)
@given(form=st.sampled_from([ARCHIVE, TABLE]), flips=flips, cut=cuts)
def test_damaged_reports_are_counted_or_an_error_that_names_them(tmp_path_factory, form, flips, cut):
    raw = tmp_path_factory.mktemp("damaged")
    data = b'study,impression,findings,last_paragraph,comparison\ns50000000,"one\ntwo",three four,,\n' * 3
    if form == ARCHIVE:
        with zipfile.ZipFile(raw / form, "w") as archive:
            for number in range(4):
                member = zipfile.ZipInfo(f"files/p10/p1000000{number}/s5000000{number}.txt")
                archive.writestr(member, f"\n FINDINGS: clear {number}\n", zipfile.ZIP_DEFLATED)
        data = (raw / form).read_bytes()
    (raw / form).write_bytes(mutated(data, flips, cut))

    def read_all() -> list:
        with open_reports(raw / form) as read:
            return [outcome(partial(read, f"1000000{number}", f"5000000{number}")) for number in range(4)]

    found, error = outcome(read_all)
    assert not error or form in error
    for sections, reason in found or ():
        assert isinstance(sections, dict) or reason in ("no report of the study", "report cannot be read")


# Other sets


def test_made_up_sets_name_patients_alike(tmp_path):
    """So that whoever trains on one and tests on the other can tell."""
    fake_ms_cxr(tmp_path / "raw", seed=0)
    (row, *_) = MsCxr(tmp_path / "raw").rows()["test"]
    assert row.image.parts[-3] == f"p{row.patient}"
