"""Data sets of rows: built from their made-up raw folders by the real commands, in parallel, and on after a kill."""

import dataclasses
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from plan_jax.__main__ import main
from plan_jax.data import shards, source
from plan_jax.data.build import PARTS, build
from plan_jax.data.fake import FAKES, fake
from plan_jax.data.image import decode_image, encode_png
from plan_jax.data.records import MANIFEST, STAGING, Phrase, file_hash, open_split
from plan_jax.data.row import Row
from plan_jax.data.shards import Shard, finished, write_shard
from plan_jax.data.store import Store, record_of
from plan_jax.errors import InputError


def contents(directory: Path) -> dict[str, str]:
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {path.relative_to(directory).as_posix(): file_hash(path) for path in paths}


@pytest.mark.parametrize("name", FAKES)
def test_every_data_set_builds_from_its_made_up_raw_folder(name, tmp_path, capsys):
    assert main(["fake", name, "--out", str(tmp_path / "raw")]) == 0
    call = [
        "build",
        name,
        "--raw",
        str(tmp_path / "raw"),
        "--out",
        str(tmp_path / "out"),
        "--side",
        "48",
        "--jobs",
        "1",
    ]
    assert main(call) == 0
    assert "records" in capsys.readouterr().out
    manifest = build(name, raw=tmp_path / "raw", out=tmp_path / "out", images=Store(side=48), jobs=1)
    assert name == "chexpert_5x200" or sum(manifest["dropped"].values()) > 0  # a raw folder has quirks; a list none
    patients: set[str] = set()
    for split, counts in manifest["splits"].items():
        records = open_split(tmp_path / "out", split)
        found = [records[i] for i in range(len(records))]
        assert len(found) == counts["records"] > 0
        own = {record.patient for record in found}
        assert not own & patients
        patients |= own
        for record in found:
            height, width = decode_image(record.image, name=record.key).shape
            assert max(height, width) <= 48
            for phrase in record.phrases:
                for x0, y0, x1, y1 in phrase.boxes:
                    assert 0 <= x0 < x1 <= width
                    assert 0 <= y0 < y1 <= height


def test_a_made_up_folder_never_goes_into_one_that_holds_something(tmp_path, capsys):
    (tmp_path / "real.csv").write_text("years of work")
    assert main(["fake", "rsna", "--out", str(tmp_path)]) == 2
    assert "--out must be a new or an empty folder" in capsys.readouterr().err
    with pytest.raises(InputError, match="did you mean rsna"):
        fake("rnsa", out=tmp_path / "new")


def test_one_process_and_two_write_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "SHARD_ROWS", 3)
    fake("object_cxr", out=tmp_path / "raw")
    for jobs in (1, 2):
        build("object_cxr", raw=tmp_path / "raw", out=tmp_path / str(jobs), jobs=jobs)
    assert contents(tmp_path / "1") == contents(tmp_path / "2")


SLOW = """
import sys, time
from pathlib import Path
from plan_jax.data import shards, source
from plan_jax.data.build import build
source.SHARD_ROWS = 2
whole = shards.write_shard
def slowly(shard, progress):
    whole(shard, progress)
    time.sleep(0.3)
shards.write_shard = slowly
build("rsna", raw=Path(sys.argv[1]), out=Path(sys.argv[2]), jobs=1)
"""


def test_a_killed_build_goes_on_with_the_shards_that_are_whole(tmp_path, monkeypatch):
    fake("rsna", out=tmp_path / "raw")
    out = tmp_path / "out"
    parts = out / STAGING / PARTS
    child = subprocess.Popen([sys.executable, "-c", SLOW, str(tmp_path / "raw"), str(out)], stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while len(list(parts.glob("*.json"))) < 2:
        assert child.poll() is None, "the build ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert not (out / MANIFEST).exists()
    before = {path.name for path in parts.glob("*.json")}

    written = []
    whole = shards.write_shard
    monkeypatch.setattr(
        shards, "write_shard", lambda shard, progress: written.append(shard.path) or whole(shard, progress)
    )
    monkeypatch.setattr(source, "SHARD_ROWS", 2)
    build("rsna", raw=tmp_path / "raw", out=out, jobs=1)
    assert written
    assert not {f"{path.name}.json" for path in written} & before
    build("rsna", raw=tmp_path / "raw", out=tmp_path / "fresh", jobs=1)
    assert contents(out) == contents(tmp_path / "fresh")


def test_another_build_does_not_take_the_shards_of_a_killed_one(tmp_path):
    fake("rsna", out=tmp_path / "raw")
    parts = tmp_path / "out" / STAGING / PARTS
    parts.mkdir(parents=True)
    (parts / "train-00000").write_bytes(b"of another")
    (parts / "train-00000.json").write_text('{"records": 9, "bytes": 1, "dropped": []}')
    build("rsna", raw=tmp_path / "raw", out=tmp_path / "out", jobs=1)
    build("rsna", raw=tmp_path / "raw", out=tmp_path / "fresh", jobs=1)
    assert contents(tmp_path / "out") == contents(tmp_path / "fresh")


# A row's record


@pytest.fixture
def row(tmp_path) -> Row:
    """A film of 100 x 60 whose boxes count pixels of a frame of 200 x 120."""
    levels = np.random.default_rng(0).integers(0, 256, (100, 60), np.uint8)
    (tmp_path / "film.png").write_bytes(encode_png(levels))
    boxes = ((20.0, 40.0, 60.0, 80.0), (110.0, 190.0, 500.0, 900.0), (300.0, 300.0, 400.0, 400.0))
    phrase = Phrase("opacity", boxes=boxes)
    return Row("k", "p", "s", tmp_path / "film.png", "t.csv line 2", phrases=(phrase,), frame=(200, 120))


def test_boxes_follow_the_image_and_end_at_its_border(row):
    record = record_of(row, Store(side=50))
    assert decode_image(record.image, name="x").shape == (50, 30)
    assert record.phrases[0].boxes == ((5.0, 10.0, 15.0, 20.0), (27.5, 47.5, 30.0, 50.0))


def test_the_short_side_can_be_the_measure_and_nothing_is_enlarged(row):
    shapes = {
        (side, fit): decode_image(record_of(row, Store(side, fit)).image, name="x").shape
        for side, fit in ((30, "short"), (30, "long"), (512, "long"), (512, "short"))
    }
    assert list(shapes.values()) == [(50, 30), (30, 18), (100, 60), (100, 60)]


def test_a_mask_in_run_lengths_is_stored_at_the_image_s_size(row):
    # Columns 10 to 19 of the frame, all 200 rows: one run from pixel 2000 on.
    record = record_of(dataclasses.replace(row, runs=("2000 2000",)), Store(side=50))
    mask = decode_image(record.phrases[0].mask, name="x") > 0
    assert mask.shape == (50, 30)
    assert np.flatnonzero(mask.any(axis=0)).tolist() in ([2, 3, 4], [3, 4], [2, 3])
    assert record_of(dataclasses.replace(row, runs=("x",)), Store()) == "mask cannot be decoded"


def test_missing_and_damaged_images_are_told_apart(row, tmp_path):
    assert record_of(dataclasses.replace(row, image=tmp_path / "none.png"), Store()) == "image file missing"
    (tmp_path / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\nxx")
    assert record_of(dataclasses.replace(row, image=tmp_path / "bad.png"), Store()) == "image cannot be decoded"


def test_jpeg_is_smaller_and_near(row, tmp_path):
    smooth = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 256, (200, 200), np.uint8), (0, 0), 5)
    (tmp_path / "smooth.png").write_bytes(encode_png(smooth))
    smooth_row = dataclasses.replace(row, image=tmp_path / "smooth.png", frame=None, phrases=())
    png, jpeg = (record_of(smooth_row, Store(format=of)).image for of in ("png", "jpeg"))
    assert len(jpeg) < len(png) / 2
    difference = np.abs(np.int16(decode_image(jpeg, name="j")) - decode_image(png, name="p"))
    assert difference.max() <= 6


def test_png16_stores_16_bits_of_a_deep_film_whose_8_bit_view_is_that_of_png(row, tmp_path):
    levels = cv2.GaussianBlur(np.random.default_rng(0).integers(0, 4096, (90, 60)).astype(np.float32), (0, 0), 3)
    (tmp_path / "deep.png").write_bytes(cv2.imencode(".png", levels.astype(np.uint16))[1].tobytes())
    deep_row = dataclasses.replace(row, image=tmp_path / "deep.png", frame=None, phrases=())
    plain, deep = (record_of(deep_row, Store(side=45, format=of)).image for of in ("png", "png16"))
    assert cv2.imdecode(np.frombuffer(deep, np.uint8), cv2.IMREAD_UNCHANGED).dtype == np.uint16
    difference = np.abs(np.int16(decode_image(deep, name="d")) - decode_image(plain, name="p"))
    assert difference.max() <= 1
    same = record_of(dataclasses.replace(row, frame=None, phrases=()), Store(format="png16")).image
    assert same == record_of(dataclasses.replace(row, frame=None, phrases=()), Store()).image


@pytest.mark.parametrize("wrong", [{"side": 0}, {"fit": "wide"}, {"format": "tiff"}])
def test_images_that_cannot_be_stored_so_are_refused(wrong):
    with pytest.raises(InputError, match="images must be stored at a side of at least 1"):
        Store(**wrong)


def test_a_shard_is_whole_or_not_there(row, tmp_path):
    def fails(row):
        raise RuntimeError("disk gone")

    shard = Shard(tmp_path / "train-00000", (row,), fails)
    with pytest.raises(RuntimeError, match="disk gone"):
        write_shard(shard, lambda: None)
    assert finished(shard) is None
    assert not shard.path.exists()
