import csv
import hashlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan_jax.data.build import build
from plan_jax.data.covid_cxr import CovidCxr, Line, labels, patient_groups, read_table, why_dropped
from plan_jax.data.dealing import split_of_groups
from plan_jax.data.fake import fake
from plan_jax.data.image import decode_image, encode_png
from plan_jax.data.records import Record, open_split
from plan_jax.data.store import Store, record_of
from plan_jax.errors import InputError

PUBLISHED = (
    "patientid,offset,sex,age,finding,survival,intubated,intubation_present,went_icu,in_icu,needed_supplemental_O2,"
    "extubated,temperature,pO2_saturation,leukocyte_count,neutrophil_count,lymphocyte_count,view,modality,date,"
    "location,folder,filename,doi,url,license,clinical_notes,other_notes,"
)
HEADER = PUBLISHED.split(",")  # 29 names, the last one empty


def cells(**values: str) -> list[str]:
    defaults = {"patientid": "1", "finding": "COVID-19", "view": "PA", "modality": "X-ray", "folder": "images"}
    return [({"clinical_notes": "Opacity on the left."} | defaults | values).get(name, "") for name in HEADER]


@pytest.fixture
def raw(tmp_path):
    """Writes a raw folder: a table of these rows, and a small picture for every file named in `pictures`."""

    def write(rows: list[list[str]], pictures: dict[str, bytes | tuple[int, int]]):
        folder = tmp_path / "raw"
        (folder / "images").mkdir(parents=True)
        with open(folder / "metadata.csv", "w", encoding="utf-8-sig", newline="") as file:
            csv.writer(file).writerows([HEADER, *rows])
        for number, (name, content) in enumerate(pictures.items()):
            data = content if isinstance(content, bytes) else picture(number, *content)
            (folder / "images" / name).write_bytes(data)
        return folder

    return write


def picture(number: int, height: int = 24, width: int = 20) -> bytes:
    return encode_png(np.random.default_rng(number).integers(0, 256, (height, width), np.uint8))


def records(made: CovidCxr) -> list[Record]:
    """Those whose image can be decoded."""
    found = [record_of(row, Store()) for part in made.rows().values() for row in part]
    return [record for record in found if isinstance(record, Record)]


def line(number: int, patient: str = "", filename: str = "", notes: str = "") -> Line:
    return Line(number, patient, "", "PA", "X-ray", filename, notes, extra=False)


QUIRKS = [
    (cells(patientid="7", filename="a.png", finding="Pneumonia/Viral/COVID-19", view="AP erect"), ""),
    (cells(patientid="7", filename="b.png", view="AP Supine", clinical_notes="fever of 38\ufffdC,\n no  effusion"), ""),
    (cells(patientid="8", filename="a.png"), "image of an earlier row"),
    (cells(filename="c.png", view="L"), "not a frontal X-ray"),
    (cells(filename="c.png", view=""), "not a frontal X-ray"),
    (cells(filename="c.png", view="Axial", modality="CT"), "not a frontal X-ray"),
    (cells(filename="c.png", modality="CT"), "not a frontal X-ray"),
    (cells(filename="c.png", clinical_notes=" \n"), "no clinical notes"),
    (cells(filename="c.png", clinical_notes="\ufffd?"), "no clinical notes"),
    (cells(filename="c.png")[:23], "no clinical notes"),  # a short row
    (cells(filename="gone.png"), "image file missing"),
    (cells(filename="../images/c.png"), "image file missing"),
    (cells(filename=""), "image file missing"),
    (cells(filename="broken.png"), "image cannot be decoded"),
    ([*cells(filename="c.png"), "", " "], ""),  # a long row whose cells are empty
    ([*cells(filename="d.png"), "that was cut off"], "more cells than the header"),
    (cells(patientid="", filename="d.png", finding="todo"), ""),
    (cells(patientid="9", filename="e.JPG", finding="Unknown", view="ap"), ""),
]
PICTURES = {"a.png": (24, 20), "b.png": (24, 20), "c.png": (24, 20), "d.png": (24, 20), "e.JPG": (24, 20)} | {
    "broken.png": picture(99)[:-30]
}


def test_every_row_is_kept_or_counted_with_its_reason(raw):
    folder = raw([quirk for quirk, _ in QUIRKS] + [[], ["", ""]], PICTURES)
    manifest = build("covid_cxr", raw=folder, out=folder.parent / "out")
    expected = Counter(reason for _, reason in QUIRKS)
    assert len(read_table(folder / "metadata.csv")) == len(QUIRKS) == expected.total()
    assert sum(part["records"] for part in manifest["splits"].values()) == expected.pop("")
    assert manifest["dropped"] == expected


def test_a_record_holds_what_the_row_says(raw):
    made = CovidCxr(raw([quirk for quirk, _ in QUIRKS], PICTURES))
    by_key = {record.key: record for record in records(made)}
    assert sorted(by_key) == ["a.png", "b.png", "c.png", "d.png", "e.JPG"]
    a, b = by_key["a.png"], by_key["b.png"]
    assert a.sections == (("clinical_notes", "Opacity on the left."),)
    assert b.sections == (("clinical_notes", "fever of 38\ufffdC, no effusion"),)
    assert a.labels == ("Pneumonia", "Viral", "COVID-19")
    assert by_key["d.png"].labels == by_key["e.JPG"].labels == ()
    assert a.phrases == ()
    assert made.classes == ("COVID-19", "Pneumonia", "Viral")
    np.testing.assert_array_equal(decode_image(a.image, name="a"), decode_image(picture(0), name="a"))


def test_the_images_of_a_study_share_patient_and_notes(raw):
    made = CovidCxr(
        raw(
            [
                cells(patientid="1", filename="a.png", clinical_notes="one"),
                cells(patientid="1", filename="b.png", clinical_notes="one"),
                cells(patientid="1", filename="c.png", clinical_notes="two"),
                cells(patientid="2", filename="d.png", clinical_notes="three"),
            ],
            PICTURES,
        )
    )
    study = {record.key: record.study for record in records(made)}
    assert study["a.png"] == study["b.png"]
    assert len(set(study.values())) == 3


def test_large_images_are_reduced_and_small_ones_kept(raw):
    made = CovidCxr(raw([cells(filename="a.png"), cells(filename="b.png")], {"a.png": (1030, 700), "b.png": (30, 512)}))
    shapes = {record.key: decode_image(record.image, name="x").shape for record in records(made)}
    assert shapes == {"a.png": (512, 348), "b.png": (30, 512)}


def test_two_builds_read_the_same_and_another_seed_deals_anew(raw):
    rows = [cells(patientid=str(i), filename=f"{i}.png", clinical_notes=f"case {i}") for i in range(30)]
    folder = raw(rows, {f"{i}.png": (8, 8) for i in range(30)})
    first, again, other = (CovidCxr(folder, seed=seed).rows() for seed in (0, 0, 1))
    assert first == again
    assert first != other
    assert {name: len(part) for name, part in first.items()} == {"train": 21, "tune": 3, "validation": 3, "test": 3}
    identities = [CovidCxr(folder, seed=seed).identity(size=None, images=Store()) for seed in (0, 0, 1)]
    assert identities[0] == identities[1] != identities[2]


def test_size_keeps_the_first_images_of_each_split_and_counts_the_rest(raw):
    rows = [cells(patientid=str(i), filename=f"{i}.png", clinical_notes=f"case {i}") for i in range(9)]
    folder = raw(rows, {f"{i}.png": (8, 8) for i in range(9)})
    manifest = build("covid_cxr", raw=folder, out=folder.parent / "out", size=5)
    assert sum(part["records"] for part in manifest["splits"].values()) == 6  # at least one of each split
    assert manifest["dropped"] == {"beyond --size": 3}
    assert manifest["options"]["size"] == 5


def test_the_command_builds_a_data_set_that_reads_back(raw, tmp_path):
    rows = [cells(patientid=str(i), filename=f"{i}.png", clinical_notes=f"case {i} has pneumonia") for i in range(8)]
    folder = raw([*rows, cells(view="L")], {f"{i}.png": (40, 30) for i in range(8)})
    manifest = build("covid_cxr", raw=folder, out=tmp_path / "built")
    assert manifest["dropped"] == {"not a frontal X-ray": 1}
    assert manifest["classes"] == ["COVID-19"]
    assert sum(part["records"] for part in manifest["splits"].values()) == 8
    train = open_split(tmp_path / "built", "train")
    expected = [record_of(row, Store()) for row in CovidCxr(folder).rows()["train"]]
    assert [train[i] for i in range(len(train))] == expected


def test_the_made_up_folder_shows_every_reason_to_leave_a_row_out(tmp_path):
    fake("covid_cxr", out=tmp_path / "raw")
    manifest = build("covid_cxr", raw=tmp_path / "raw", out=tmp_path / "built")
    assert manifest["dropped"] == {
        "not a frontal X-ray": 2,
        "no clinical notes": 2,  # one row is cut off before its note
        "image file missing": 2,
        "image of an earlier row": 1,
        "more cells than the header": 1,
        "image cannot be decoded": 1,
    }
    assert sum(part["records"] for part in manifest["splits"].values()) == 24


# The table


def test_byte_order_mark_quoted_lines_and_damaged_bytes_are_read(tmp_path):
    path = tmp_path / "metadata.csv"
    table = ",".join(HEADER) + "\r\n" + ",".join(cells(filename="a.png", clinical_notes='"one,\r\ntwo ""three"""'))
    path.write_bytes(b"\xef\xbb\xbf" + table.encode() + b"\r\n\r\n" + ",".join(cells(view="PA")).encode() + b" \xb0,\n")
    first, second = read_table(path)
    assert (first.number, first.patient, first.notes) == (3, "1", 'one, two "three"')
    assert (second.number, second.view, second.extra) == (5, "PA", False)


def test_names_of_columns_may_have_spaces_and_capitals(tmp_path):
    path = tmp_path / "metadata.csv"
    path.write_text("Patientid, finding,view,modality,filename ,clinical_notes\n3,ARDS,PA,X-ray,a.png,text\n")
    assert read_table(path) == [Line(2, "3", "ARDS", "PA", "X-ray", "a.png", "text", extra=False)]


@given(st.lists(st.lists(st.text(max_size=4), max_size=31), max_size=3))
def test_any_table_under_the_header_is_read_row_by_row(tmp_path_factory, rows):
    path = tmp_path_factory.mktemp("table") / "metadata.csv"
    with open(path, "w", encoding="utf-8", errors="replace", newline="") as file:
        csv.writer(file).writerows([HEADER, *rows])
    read = read_table(path)
    assert len(read) == sum(any(cell.strip() for cell in cells) for cells in rows)
    assert all(isinstance(why_dropped(row, path.parent), str) for row in read)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have the column patientid, got none; give metadata.csv as published"),
        (b"patientid,finding,view,modality,filename\n", "must have the column clinical_notes"),
        ("patientid".encode("utf-16"), "must have the column patientid"),
        (",".join(HEADER).encode() + b'\n"' + b"x" * 200_000, "must be a CSV table, got field larger than field limit"),
    ],
)
def test_what_is_no_such_table_is_an_error_that_names_it(raw, content, message):
    folder = raw([], {})
    (folder / "metadata.csv").write_bytes(content)
    with pytest.raises(InputError, match=rf"metadata\.csv {message}"):
        CovidCxr(folder).rows()


def test_a_raw_folder_without_its_parts_is_an_error_with_the_next_step(raw, tmp_path):
    with pytest.raises(InputError, match="--raw must name the folder of the published files for covid_cxr"):
        build("covid_cxr", out=tmp_path / "out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"got no metadata\.csv in .*; give another folder"):
        build("covid_cxr", raw=tmp_path / "empty", out=tmp_path / "out")
    folder = raw([], {})
    (folder / "images").rmdir()
    with pytest.raises(InputError, match=r"got no images/ in .*; give another folder"):
        build("covid_cxr", raw=folder, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unusable_options_are_refused(raw, tmp_path):
    folder = raw([], {})
    with pytest.raises(InputError, match="--size must be at least 1"):
        build("covid_cxr", raw=folder, out=tmp_path / "out", size=0)
    with pytest.raises(InputError, match="--level must be left out"):
        build("covid_cxr", raw=folder, out=tmp_path / "out", level="easy")


def test_a_table_without_a_usable_row_is_an_error_that_says_why(raw):
    with pytest.raises(InputError, match="must have a frontal X-ray with notes and image, got 2 image file missing;"):
        CovidCxr(raw([cells(filename="a.png"), cells(filename="b.png")], {})).rows()


# Groups, splits, labels


def test_rows_are_grouped_by_patient_file_and_notes_over_any_number_of_steps():
    rows = [
        line(2, "1", "a", "text a"),
        line(3, "2", "b", "text b"),
        line(4, "3", "b", "text c"),  # the file of 3
        line(5, "4", "d", "Text C"),  # the notes of 4
        line(6, "", "e", "text e"),
        line(7, "", "f", "text f"),
        line(8, "4", "a", ""),  # joins the first row with the others
    ]
    assert patient_groups(rows) == ["1", "1", "1", "1", "row 6", "row 7", "1"]


keys = st.sampled_from(["", "x", "y", "z"])


@given(st.lists(st.tuples(keys, keys, keys), min_size=1, max_size=12))
def test_rows_that_share_something_are_in_one_group_and_others_are_not(values):
    groups = patient_groups([line(i, *value) for i, value in enumerate(values)])
    linked = np.array([[any(a and a == b for a, b in zip(v, w, strict=True)) for w in values] for v in values])
    reach = np.linalg.matrix_power(linked + np.eye(len(values)), len(values))
    for i in range(len(values)):
        for j in range(len(values)):
            assert (groups[i] == groups[j]) == (reach[i, j] > 0)


@given(st.integers(1, 80), st.integers(0, 5))
def test_splits_are_never_empty_with_enough_patients_and_train_is_the_largest(count, seed):
    sizes = Counter(split_of_groups([str(i) for i in range(count)], seed).values())
    assert sizes.total() == count
    assert sizes["train"] == max(sizes.values())
    if count >= 4:
        assert sizes["tune"] == sizes["validation"] == sizes["test"] == max(1, round(count / 10))


def test_the_split_follows_sha256_and_nothing_else():
    groups = [f"p{i}" for i in range(40)]
    order = sorted(groups, key=lambda group: hashlib.sha256(f"3:{group}".encode()).hexdigest())
    split = split_of_groups(groups[::-1] * 2, 3)
    assert [split[group] for group in order] == ["tune"] * 4 + ["validation"] * 4 + ["test"] * 4 + ["train"] * 28


@pytest.mark.parametrize(
    ("finding", "expected"),
    [
        ("Pneumonia/Viral/COVID-19", ("Pneumonia", "Viral", "COVID-19")),
        ("COVID-19, ARDS", ("COVID-19", "ARDS")),
        ("Pneumonia/Viral/Herpes ", ("Pneumonia", "Viral", "Herpes")),
        ("Pneumonia/Pneumonia", ("Pneumonia",)),
        ("No Finding", ("No Finding",)),
        ("todo", ()),
        ("Unknown", ()),
        ("", ()),
    ],
)
def test_labels_are_the_parts_of_the_finding(finding, expected):
    assert labels(finding) == expected


# The real subset


def test_the_real_collection_gives_every_row_or_a_reason(shared, tmp_path):
    folder = shared / "covid_cxr"
    manifest = build("covid_cxr", raw=folder, out=tmp_path / "out")
    lines = read_table(folder / "metadata.csv")
    assert len(lines) == 111
    assert manifest["dropped"] == {"image of an earlier row": 4}
    counts = {name: part["records"] for name, part in manifest["splits"].items()}
    assert counts == {"train": 70, "tune": 15, "validation": 10, "test": 12}
    assert len({line.patient for line in lines}) == 71
    patients = sum(part["patients"] for part in manifest["splits"].values())
    assert patients == 69  # two cases are listed under two patients each
    splits = [open_split(tmp_path / "out", name) for name in counts]
    kept = [split[i] for split in splits for i in range(len(split))]
    assert sum("\ufffd" in record.report for record in kept) == 6
    assert manifest["classes"][:3] == ["ARDS", "Bacterial", "COVID-19"]
    assert all(max(decode_image(record.image, name=record.key).shape) <= 512 for record in kept)


def test_nothing_of_the_real_collection_is_in_two_splits(shared):
    folder = shared / "covid_cxr"
    lines = {line.filename: line for line in read_table(folder / "metadata.csv")}
    seen = {}
    for name, part in CovidCxr(folder, seed=1).rows().items():
        for row in part:
            image = hashlib.sha256(row.image.read_bytes()).digest()
            for value in (row.patient, lines[row.key].patient, row.study, row.sections, image):
                assert seen.setdefault(value, name) == name


def test_the_real_rows_without_notes_are_all_counted(shared, tmp_path):
    (tmp_path / "raw").mkdir()
    (tmp_path / "raw" / "metadata.csv").write_bytes((shared / "covid_cxr" / "without_notes.csv").read_bytes())
    (tmp_path / "raw" / "images").symlink_to(shared / "covid_cxr" / "images")
    with pytest.raises(InputError, match="got 92 no clinical notes"):
        CovidCxr(tmp_path / "raw").rows()
