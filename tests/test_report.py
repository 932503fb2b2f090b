"""The report of a build counts what is there, and holds no word of a report and no patient."""

from plan_jax.__main__ import main
from plan_jax.data.build import build
from plan_jax.data.fake import fake
from plan_jax.data.records import Phrase, Record, open_split
from plan_jax.data.report import Tally, report_lines
from plan_jax.data.store import Store


def record(key: str, report: str, *labels: str, phrases=()) -> Record:
    return Record(key, f"patient of {key}", f"study {key}", b"", (("findings", report),), labels, tuple(phrases))


BOXES = Phrase("opacity", boxes=((0.0, 0.0, 1.0, 1.0), (1.0, 1.0, 2.0, 2.0)))
NORMAL = "The heart is of normal size. The lungs are clear."


def test_labels_words_phrases_and_repeated_texts_are_counted_by_split():
    tally = Tally()
    train = [record("a", NORMAL), record("b", "An effusion.", "effusion", "edema"), record("c", "", "edema")]
    test = [record("d", NORMAL.upper(), phrases=[BOXES, Phrase("x", mask=b"1")]), record("e", "one two three four")]
    tally.add("train", train)
    tally.add("test", test)
    assert tally.summary() == {
        "labels": {"train": {"(no label)": 1, "edema": 2, "effusion": 1}, "test": {"(no label)": 2}},
        "words": {
            "train": {"without": 1, "median": 6, "p95": 9, "max": 10},
            "test": {"without": 0, "median": 7, "p95": 9, "max": 10},
        },
        "marked": {
            "train": {"phrases": 0, "boxes": 0, "masks": 0},
            "test": {"phrases": 2, "boxes": 2, "masks": 1},
        },
        "repeated_texts": {"studies": 4, "near_an_earlier_one": 1, "which_is_in_another_split": 1},
    }


def test_two_images_of_one_study_do_not_repeat_its_report():
    tally = Tally()
    tally.add("train", [Record(key, "p", "one study", b"", (("findings", NORMAL),)) for key in "ab"])
    assert tally.summary()["repeated_texts"]["near_an_earlier_one"] == 0


def test_the_command_prints_the_report_that_it_wrote_and_the_same_again_when_nothing_is_left_to_do(tmp_path, capsys):
    fake("nih_cxr14", out=tmp_path / "raw")
    call = ["build", "nih_cxr14", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out"), "--side", "32"]
    assert main(call) == 0
    first = capsys.readouterr().out
    assert main(call) == 0
    assert capsys.readouterr().out == first
    assert first.startswith((tmp_path / "out" / "report.txt").read_text())
    manifest = build("nih_cxr14", raw=tmp_path / "raw", out=tmp_path / "out", images=Store(side=32))
    rows = sum(split["records"] for split in manifest["splits"].values()) + sum(manifest["dropped"].values())
    assert f"nih_cxr14 {manifest['version']}: {rows} rows in" in first
    for reason, count in manifest["dropped"].items():
        assert f"left out: {count} rows, {reason}" in first


def test_what_is_printed_and_kept_holds_no_patient_and_no_sentence(tmp_path, capsys):
    fake("mimic_cxr", out=tmp_path / "raw")
    assert main(["build", "mimic_cxr", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "out")]) == 0
    shown = "".join(capsys.readouterr()) + (tmp_path / "out" / "manifest.json").read_text()
    train = open_split(tmp_path / "out", "train")
    for index in range(len(train)):
        for private in (train[index].patient, train[index].study, train[index].report):
            assert private not in shown


def test_a_data_set_without_reports_or_labels_has_no_lines_for_them():
    tally = Tally()
    tally.add("test", [record("a", ""), record("b", "")])
    splits = {"test": {"records": 2, "patients": 2}}
    manifest = {"name": "x", "version": "1", "splits": splits, "dropped": {}, "summary": tally.summary()}
    assert report_lines(manifest) == ["x 1: 2 rows in, 2 records out", "test: 2 records of 2 patients"]


def test_labels_are_a_table_with_their_shares_of_each_split():
    tally = Tally()
    tally.add("train", [record(key, "", "edema") for key in "abc"] + [record("d", "")])
    tally.add("test", [record("e", "", "edema", "effusion")])
    splits = {"train": {"records": 4, "patients": 4}, "test": {"records": 1, "patients": 1}}
    manifest = {"name": "x", "version": "1", "splits": splits, "dropped": {}, "summary": tally.summary()}
    assert [" ".join(line.split()) for line in report_lines(manifest)[3:]] == [
        "labels train test",
        "(no label) 1 25.0 % 0 0.0 %",
        "edema 3 75.0 % 1 100.0 %",
        "effusion 0 0.0 % 1 100.0 %",
    ]
