"""A build is complete or not there, repeatable byte for byte, and says why it cannot be made."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from plan_jax.data import build as build_module
from plan_jax.data.build import build
from plan_jax.data.companions import VOCAB_SIZE
from plan_jax.data.phantom import make_phantom, phantom_record
from plan_jax.data.records import MANIFEST, STAGING, file_hash, open_split, read_manifest
from plan_jax.data.rows import RowSet
from plan_jax.data.text import SPECIAL, Tokenizer, train_wordpiece
from plan_jax.errors import InputError

SIZE = 60
SCRIPT = """
import sys
from pathlib import Path
from plan_jax.data.build import build
build("phantom", out=Path(sys.argv[1]), size=60, seed=1)
print("tensorflow" in sys.modules)
"""


class Broken(RowSet):
    """Fails when the rows are read, as a damaged table does."""

    name, version, summary = "broken", "1.0.0", "A damaged table."

    def inputs(self):
        return ()

    def rows(self):
        raise InputError("table.csv line 2 must have an image, got none; repair it")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """A build that no test changes."""
    out = tmp_path_factory.mktemp("build") / "new" / "phantom"
    build("phantom", out=out, size=SIZE, seed=1)
    return out


@pytest.fixture
def copy(built, tmp_path) -> Path:
    """A build for a test to change."""
    return shutil.copytree(built, tmp_path / "copy")


def contents(directory: Path) -> dict[str, str]:
    """Path -> hash of every file."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): file_hash(path) for path in paths}


def test_a_build_holds_the_data_its_tokenizer_a_sheet_and_nothing_else(built):
    assert {path.name for path in built.iterdir()} == {
        "phantom",
        MANIFEST,
        "tokenizer.json",
        "contact_sheet.png",
        "report.txt",
    }
    assert sorted(path.name.split(".")[0] for path in (built / "phantom" / "1.0.0").iterdir()) == [
        "dataset_info",
        "features",
        "phantom-test",
        "phantom-train",
        "phantom-tune",
        "phantom-validation",
    ]
    with Image.open(built / "contact_sheet.png") as sheet:
        assert sheet.width > 1000


def test_the_manifest_tells_what_was_built(built):
    manifest = read_manifest(built)
    assert manifest["name"] == "phantom"
    assert manifest["version"] == "1.0.0"
    assert manifest["options"] == {"size": SIZE, "seed": 1, "level": "easy"}
    assert "nodule" in manifest["classes"]
    assert manifest["dropped"] == {}
    assert sum(split["records"] for split in manifest["splits"].values()) == SIZE
    folder = built / "phantom" / "1.0.0"
    assert manifest["shards"] == {path.name: file_hash(path) for path in folder.glob("*.array_record*")}
    assert str(built) not in (built / MANIFEST).read_text()


def test_the_records_are_the_phantoms_of_the_seed(built):
    for name in read_manifest(built)["splits"]:
        split = open_split(built, name)
        for record in (split[0], split[-1]):
            index = int(record.key.removeprefix("phantom-"))
            assert record == phantom_record(make_phantom(1, index, level="easy"))


def test_the_tokenizer_is_learned_from_the_train_split_alone(copy, built):
    train = open_split(built, "train")
    expected = train_wordpiece((train[i].report for i in range(len(train))), vocab_size=VOCAB_SIZE)
    assert Tokenizer.load(built / "tokenizer.json").vocabulary == expected.vocabulary
    tokenizer = Tokenizer.load(built / "tokenizer.json")
    for index in range(len(train)):
        tokens = tokenizer.encode(train[index].report, max_tokens=256, max_words=100, truncate=False)
        assert tokenizer._vocab["[UNK]"] not in tokens.token_ids


def test_two_processes_write_the_same_bytes_without_tensorflow_and_keep_stdout_clean(built, tmp_path):
    for number in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", SCRIPT, str(tmp_path / number)],
            env=os.environ | {"PYTHONHASHSEED": number},
            cwd=Path(__file__).parents[1],
            capture_output=True,
            text=True,
            check=True,
        )
        assert done.stdout == "False\n"
        assert f"{SIZE}/{SIZE}" in done.stderr
        assert "image/s" in done.stderr
        assert contents(tmp_path / number) == contents(built)


def test_the_same_build_again_is_left_as_it_is(copy, capsys):
    before = {path: path.stat().st_mtime_ns for path in copy.rglob("*")}
    manifest = build("phantom", out=copy, size=SIZE, seed=1, level="easy")
    assert manifest == read_manifest(copy)
    assert {path: path.stat().st_mtime_ns for path in copy.rglob("*")} == before
    output = capsys.readouterr()
    assert output.out == ""
    assert "already holds phantom 1.0.0" in output.err


def test_another_build_in_the_same_folder_is_refused_with_both_names(copy):
    before = contents(copy)
    with pytest.raises(InputError, match=r"size=60 seed=1 level=easy.*size=60 seed=2 level=easy"):
        build("phantom", out=copy, size=SIZE, seed=2)
    assert contents(copy) == before


def test_an_unfinished_build_is_built_anew(copy, built):
    (copy / MANIFEST).unlink()
    (copy / STAGING / "phantom" / "1.0.0").mkdir(parents=True)
    shutil.copy(copy / "phantom" / "1.0.0" / "dataset_info.json", copy / STAGING / "phantom" / "1.0.0")
    (copy / STAGING / "phantom" / "incomplete.X_1.0.0").mkdir()
    next((copy / "phantom" / "1.0.0").glob("*train*")).write_bytes(b"half")
    (copy / "mine.txt").write_text("kept")
    build("phantom", out=copy, size=SIZE, seed=1)
    found = contents(copy)
    assert found.pop("mine.txt")
    assert found == contents(built)


def test_a_build_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setitem(build_module.DATA_SETS, "broken", (__name__, "Broken"))
    with pytest.raises(InputError, match=r"table\.csv line 2"):
        build("broken", raw=tmp_path, out=tmp_path / "out")
    assert list((tmp_path / "out").iterdir()) == []


def test_lost_shards_of_a_complete_build_are_noticed(copy):
    next((copy / "phantom" / "1.0.0").glob("*train*")).unlink()
    with pytest.raises(InputError, match="train"):
        build("phantom", out=copy, size=SIZE, seed=1)


def test_a_folder_that_is_not_ours_is_never_removed(tmp_path):
    (tmp_path / "phantom").mkdir()
    (tmp_path / "phantom" / "thesis.txt").write_text("years of work")
    with pytest.raises(InputError, match="give another"):
        build("phantom", out=tmp_path, size=SIZE)
    assert (tmp_path / "phantom" / "thesis.txt").read_text() == "years of work"


def test_a_given_vocabulary_is_used_and_part_of_the_builds_identity(tmp_path, built):
    vocab = tmp_path / "vocab.txt"
    vocab.write_text("\n".join([*SPECIAL, "nodule"]))
    manifest = build("phantom", out=tmp_path / "out", size=SIZE, seed=1, vocab=vocab)
    assert Tokenizer.load(tmp_path / "out" / "tokenizer.json").vocab_size == 6
    assert manifest["options"] == read_manifest(built)["options"] | {"vocab": file_hash(vocab)}
    with pytest.raises(InputError, match="vocab="):
        build("phantom", out=tmp_path / "out", size=SIZE, seed=1)


def test_calls_that_cannot_work_are_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="did you mean phantom"):
        build("phantoms", out=tmp_path / "out")
    with pytest.raises(InputError, match="choose one of phantom, covid_cxr"):
        build("x", out=tmp_path / "out")
    with pytest.raises(InputError, match="--out must be a folder, got the file"):
        build("phantom", out=tmp_path / "file")
    with pytest.raises(InputError, match="can be written"):
        build("phantom", out=tmp_path / "file" / "below")
    with pytest.raises(InputError, match="--raw must be a folder"):
        build("phantom", out=tmp_path / "out", raw=tmp_path / "file")
    with pytest.raises(InputError, match="vocab"):
        build("phantom", out=tmp_path / "out", vocab=tmp_path / "no_vocab.txt")
    assert not (tmp_path / "out").exists()
