"""Open-i: reports from the archive or the table, films by their names; the real reports are counted."""

import gzip
import io
import shutil
import tarfile
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_jax.data.fake_openi import LOST_FILM, NEITHER, NO_FILM, NO_FINDINGS, NO_IMPRESSION, fake_openi
from plan_jax.data.openi import VIEWS, OpenI, image_key
from plan_jax.data.openi_reports import ARCHIVE, MAX_BYTES, TABLE, Report, read_reports
from plan_jax.data.records import file_hash
from plan_jax.data.repeats import first_alike
from plan_jax.data.reports import place_words
from plan_jax.data.text import split_sentences
from plan_jax.errors import InputError

FOLDER = "NLMCXR_png"


@pytest.fixture(scope="module")
def published(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("openi") / "raw"
    fake_openi(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def tables(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("openi") / "tables"
    fake_openi(folder, seed=0, tables=True)
    return folder


@pytest.fixture
def raw(published, tmp_path) -> Path:
    return shutil.copytree(published, tmp_path / "raw")


def parts(folder: Path, seed: int = 0) -> tuple[dict, Counter]:
    made = OpenI(folder, seed=seed)
    return dict(made.rows()), made.dropped


def xml(number: object, findings: str = "Clear lungs.", head: str = "", images: str = "") -> bytes:
    text = f'<AbstractText Label="FINDINGS">{findings}</AbstractText>'
    return f'{head}<eCitation><uId id="CXR{number}"/>{text}{images}</eCitation>'.encode()


def pack(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


# Rows


def test_every_film_of_the_archive_is_a_row_or_counted(published):
    rows, dropped = parts(published)
    assert {split: len(part) for split, part in rows.items()} == {"train": 34, "tune": 6, "validation": 6, "test": 6}
    assert dropped == {
        "image file missing": 2,
        "neither findings nor impression": 2,
        "report is not XML as published": 2,
        "report without an image": 1,
    }


def test_the_tables_keep_frontal_films_alone(tables):
    rows, dropped = parts(tables)
    assert {split: len(part) for split, part in rows.items()} == {"train": 17, "tune": 3, "validation": 3, "test": 3}
    assert dropped == {
        "image file missing": 1,
        "image name is not as published": 1,
        "image of an earlier row": 1,
        "neither findings nor impression": 1,
        "no report of that number": 1,
        "not a frontal view": 28,
    }
    assert all(row.key.endswith("-1001") for part in rows.values() for row in part)


def test_archive_and_views_together_give_the_rows_of_the_tables(published, tables, tmp_path):
    raw = shutil.copytree(published, tmp_path / "raw")
    shutil.copy(tables / VIEWS, raw)
    for split, part in parts(tables)[0].items():
        found = parts(raw)[0][split]
        assert [(row.key, row.sections) for row in found] == [(row.key, row.sections) for row in part]
        assert {row.image.parent.name for row in found} == {FOLDER}
    assert [path.name for path in OpenI(raw).inputs()] == [ARCHIVE, VIEWS]


def test_a_row_says_what_the_report_says(published):
    rows = {row.key: row for part in parts(published)[0].values() for row in part}
    reports = {report.number: report for report in read_reports(published / ARCHIVE, Counter())}
    for row in rows.values():
        report = reports[row.patient]
        assert row.key.startswith(f"{row.patient}_IM-")
        assert (row.study, row.where) == (row.patient, f"{ARCHIVE} report {row.patient}")
        assert row.image.name.startswith(f"CXR{row.patient}_")
        expected = {"findings": report.findings, "impression": report.impression}
        assert row.sections == tuple((name, text) for name, text in expected.items() if text)
    patients = {row.patient for row in rows.values()}
    assert {str(NO_FINDINGS), str(NO_IMPRESSION)} < patients
    assert not {str(NEITHER), str(NO_FILM), str(LOST_FILM)} & patients


def test_patients_never_cross_splits_and_the_seed_deals_them(published):
    first, again, other = parts(published), parts(published), parts(published, seed=1)
    assert first == again
    assert first[0] != other[0]
    seen: dict[str, str] = {}
    for split, part in first[0].items():
        assert all(seen.setdefault(row.patient, split) == split for row in part)


def test_the_same_seed_writes_the_same_bytes(published, tmp_path):
    fake_openi(tmp_path / "raw", seed=0)
    hashes = [
        {path.name: file_hash(path) for path in folder.rglob("*") if path.is_file()}
        for folder in (published, tmp_path / "raw")
    ]
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("CXR1_1_IM-0001-3001", ("1", "IM-0001-3001")),
        ("1_IM-0001-3001.dcm.png", ("1", "IM-0001-3001")),
        ("CXR3999_IM-2047-1001-0001-0002.png", ("3999", "IM-2047-1001-0001-0002")),
        ("../1_IM-0001-3001.dcm.png", None),
        ("1_IM-0001-3001.jpg", None),
        ("CXR_IM-0001-3001", None),
        ("", None),
    ],
)
def test_the_names_of_a_film_have_one_key(name, key):
    assert image_key(name) == key


# Damage


def test_members_are_read_by_content_and_names_lead_nowhere(tmp_path):
    members = {
        "../../up.xml": xml(1),
        "/root.xml": xml(2, findings="nan"),
        "a/" * 60 + "deep.xml": xml("0003", findings="One <i>two</i>\n three &amp; four"),
        "4.txt": xml(4),
        "5.xml": xml(1),
        "6.xml": xml("x"),
        "7.xml": b"",
        "8.xml": b"\xff\xfe" + xml(8),
        "9.xml": xml(9, head='<?xml version="1.0" encoding="no-such"?>'),
        "10.xml": xml(10, head='<?xml version="1.0" encoding="shift_jis"?>'),
        "11.xml": xml(11, findings="x" * MAX_BYTES),
        "12.xml": xml(12, head='<!DOCTYPE e [<!ENTITY a "aaaa">]>', findings="&a;"),
        "13.xml": xml(13, head='<!DOCTYPE e SYSTEM "file:///etc/hostname">'),
        "14.xml": xml(14).replace(b"eCitation", b"other"),
    }
    dropped: Counter[str] = Counter()
    reports = read_reports(pack(tmp_path / ARCHIVE, members), dropped)
    assert [(r.number, r.findings) for r in reports] == [
        ("1", "Clear lungs."),
        ("2", ""),
        ("3", "One two three & four"),
        ("14", "Clear lungs."),
    ]
    assert dropped == {
        "report is not XML as published": 7,
        "report of an earlier number": 1,
        "report without a number": 1,
    }
    assert [path.name for path in tmp_path.iterdir()] == [ARCHIVE]


def test_links_in_the_archive_are_not_followed(tmp_path):
    with tarfile.open(tmp_path / ARCHIVE, "w:gz") as archive:
        for number, kind in enumerate((tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.FIFOTYPE)):
            link = tarfile.TarInfo(f"{number}.xml")
            link.type, link.linkname = kind, "/etc/hostname"
            archive.addfile(link)
    assert read_reports(tmp_path / ARCHIVE, Counter()) == []


def test_an_archive_without_its_end_is_an_error_that_names_it(published, tmp_path):
    data = gzip.decompress((published / ARCHIVE).read_bytes())
    for damaged in (data[:5120], data[:5000], data[:5120] + b"?" * 512 + data[5632:]):
        (tmp_path / ARCHIVE).write_bytes(gzip.compress(damaged))
        with pytest.raises(InputError, match=rf"{ARCHIVE} must be the archive as published, got .*; get it again"):
            read_reports(tmp_path / ARCHIVE, Counter())


@settings(max_examples=80)
@given(
    inside=st.booleans(),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damaged_archives_are_counted_or_named(published, tmp_path_factory, inside, flips, cut):
    raw = tmp_path_factory.mktemp("damaged")
    (raw / FOLDER).symlink_to(published / FOLDER)
    data = (published / ARCHIVE).read_bytes()
    data = bytearray(gzip.decompress(data) if inside else data)
    for place, byte in flips:
        data[int(place * (len(data) - 1))] = byte
    data = bytes(data[: round(cut * len(data))])
    (raw / ARCHIVE).write_bytes(gzip.compress(data) if inside else data)
    check_damaged(raw, ARCHIVE)


@settings(max_examples=80)
@given(
    name=st.sampled_from([TABLE, VIEWS]),
    flips=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), max_size=4),
    cut=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damaged_tables_are_counted_or_named(tables, tmp_path_factory, name, flips, cut):
    raw = tmp_path_factory.mktemp("damaged")
    for path in tables.iterdir():
        (raw / path.name).symlink_to(path)
    data = bytearray((tables / name).read_bytes())
    for place, byte in flips:
        data[int(place * (len(data) - 1))] = byte
    (raw / name).unlink()
    (raw / name).write_bytes(bytes(data[: round(cut * len(data))]))
    check_damaged(raw, name)


def check_damaged(raw: Path, name: str) -> None:
    found, message = {}, ""
    try:
        found = parts(raw)[0]
    except InputError as error:
        message = str(error)
    assert not message or name in message or "must have a row with an image to use" in message
    keys = [row.key for part in found.values() for row in part]
    assert len(set(keys)) == len(keys)
    assert all(row.image.is_relative_to(raw) for part in found.values() for row in part)


def test_missing_parts_are_errors_with_the_next_step(tables, raw):
    shutil.rmtree(raw / FOLDER)
    with pytest.raises(InputError, match=r"got no NLMCXR_png/ in .*; give another folder"):
        OpenI(raw).inputs()
    (raw / ARCHIVE).unlink()
    with pytest.raises(InputError, match=r"got no NLMCXR_reports\.tgz in"):
        OpenI(raw).inputs()
    shutil.copy(tables / TABLE, raw)
    with pytest.raises(InputError, match=r"got no indiana_projections\.csv in"):
        OpenI(raw).inputs()


def test_a_folder_without_films_is_an_error_that_says_why(raw):
    for path in (raw / FOLDER).iterdir():
        path.unlink()
    with pytest.raises(InputError, match=rf"{ARCHIVE} must have a row with an image to use, got 54 image file missing"):
        parts(raw)


# The real reports


@pytest.fixture(scope="module")
def real(shared) -> list[Report]:
    dropped: Counter[str] = Counter()
    reports = read_reports(shared / "openi" / ARCHIVE, dropped)
    assert not dropped
    return reports


def test_the_real_archive_gives_all_its_reports(real):
    assert len(real) == 3955
    assert sum(not report.findings for report in real) == 530
    assert sum(not report.impression for report in real) == 34
    assert sum(not report.findings and not report.impression for report in real) == 28


def test_the_films_of_the_real_reports_have_keys_of_their_own(real):
    keys = [image_key(name) for report in real for name in report.images]
    assert len(keys) == len(set(keys)) == 7470
    assert all(image_key(name)[0] == report.number for report in real for name in report.images)
    assert sum(not report.images for report in real) == 104


def test_real_sentences_and_texts_are_counted_as_the_readme_of_the_archive_counts_them(real):
    texts = [text for report in real for text in (report.findings, report.impression)]
    sentences = [sentence for text in texts for sentence in split_sentences(text)]
    assert len({sentence.lower() for sentence in sentences}) == 8606
    assert sum(place_words(sentence)[2] for sentence in sentences) == 3704
    whole = {f"{report.findings} {report.impression}".strip() for report in real}
    assert len(whole - {""}) == 3159


def test_reports_that_repeat_an_earlier_one_are_counted(real):
    found = first_alike([f"{report.findings} {report.impression}" for report in real])
    assert sum(first != index for index, first in enumerate(found)) == 818
