"""The benchmark of the loader: both loaders do the same work, and what is measured, counted and printed."""

import dataclasses
import io
import json
import time
from pathlib import Path

import cv2
import jax
import numpy as np
import pytest
from conftest import CONFIG, TINY
from PIL import Image

from plan_jax.__main__ import main
from plan_jax.benchmark import appetite as its
from plan_jax.benchmark import input as module
from plan_jax.benchmark.appetite import appetite, random_batch
from plan_jax.benchmark.classic import find_torch
from plan_jax.benchmark.films import build_films, draw_film, draw_report, write_films
from plan_jax.benchmark.input import NO_TORCH, Effort, benchmark_input, input_lines, input_table, with_ratios
from plan_jax.benchmark.loaders import Work, open_train, our_batches, stage_times
from plan_jax.benchmark.torch_loader import Films, format_of, write_files
from plan_jax.config_file import read_config
from plan_jax.data.image import decode_image, encode_jpeg, encode_png, letterbox_image
from plan_jax.data.text import Tokenizer
from plan_jax.geometry import loaded_side
from plan_jax.model import PlanModel
from plan_jax.tables.render import render
from plan_jax.train.state import create_state, make_optimizer
from plan_jax.train.step import train_step

FIELDS = {"loader", "stage", "workers", "format", "bytes", "size", "batch_size", "device", "failed"}
FIELDS |= {"images_per_core_second", "images_per_second", "ratio_to_torch"}
SMALLEST = Effort(films=20, batch_size=4, images=4, repeats=1, sizes=(48,), workers=(0,), steps=1)


@pytest.fixture(scope="module")
def config():
    return read_config(CONFIG, TINY)


@pytest.fixture(scope="module")
def works(tmp_path_factory) -> dict[str, Work]:
    """Few made-up films, once as PNG and once as JPEG, and as files."""
    folder = tmp_path_factory.mktemp("films")
    raw, made = write_films(folder / "raw", count=8), {}
    for form in ("png", "jpeg"):
        built = build_films(raw, folder / form, format=form)
        made[form] = Work(str(built), str(folder / f"{form}_files"), 256, 2, 128, 97)
        split = open_train(made[form])
        write_files((split[index].image for index in range(split.count)), folder / f"{form}_files")
    return made


def assert_same_square(ours: np.ndarray, theirs: np.ndarray) -> None:
    """Equal but for rounding and the noise: Pillow's box takes a pixel wholly or not at all, ours takes parts of it."""
    assert ours.dtype == theirs.dtype == np.uint8
    difference = np.abs(ours.astype(int) - theirs)
    assert difference.mean() < 1
    assert np.percentile(difference, 99) <= 8
    np.testing.assert_array_equal(ours.any(axis=0), theirs.any(axis=0))  # the same columns are empty


def test_made_up_films_cost_as_many_bytes_as_radiographs():
    films = [draw_film(index) for index in range(4)]
    assert {film.shape[0] for film in films} == {512}
    pixels = sum(film.size for film in films)
    assert sum(len(encode_png(film)) for film in films) / pixels == pytest.approx(0.46, abs=0.05)
    assert sum(len(encode_jpeg(film)) for film in films) / pixels == pytest.approx(0.21, abs=0.04)


def test_made_up_reports_have_the_length_of_reports():
    words = [len(draw_report(index).split()) for index in range(100)]
    assert 40 < np.mean(words) < 110
    assert len({draw_report(index) for index in range(100)}) > 90


@pytest.mark.parametrize("size", [224, 256])
@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_both_ways_of_reading_a_film_give_the_same_square(works, form, size):
    """What the baseline does in Pillow, without torch, against what ours does."""
    split = open_train(works[form])
    assert split.count > 3
    for index in range(split.count):
        data = split[index].image
        assert format_of(data) == form
        ours, box = letterbox_image(decode_image(data, name="film"), size)
        with Image.open(io.BytesIO(data)) as film:
            content = film.convert("L").resize((box.content_width, box.content_height), Image.Resampling.BOX)
        theirs = np.zeros((size, size), np.uint8)
        theirs[box.top : box.top + box.content_height, box.left : box.left + box.content_width] = content
        assert_same_square(ours, theirs)


@pytest.mark.skipif(find_torch() is None, reason="needs torch, which is no requirement: pip install torch==2.13.0")
@pytest.mark.parametrize("form", ["png", "jpeg"])
def test_both_loaders_give_the_same_squares_and_the_same_tokens(works, form):
    work, split = works[form], open_train(works[form])
    tokenizer = Tokenizer.load(f"{work.folder}/tokenizer.json")
    reports = [split[index].report for index in range(split.count)]
    films = Films(
        sorted(Path(work.files).iterdir()),
        reports,
        tokenizer=Path(work.folder) / "tokenizer.json",
        size=256,
        max_tokens=128,
    )
    assert len(films) == split.count
    for index in range(split.count):
        ours, _ = letterbox_image(decode_image(split[index].image, name="film"), 256)
        tokens = tokenizer.encode(reports[index], max_tokens=128, max_words=97, truncate=True)
        assert not tokens.cut
        theirs = films[index]
        assert_same_square(ours, theirs["image"][0].numpy())
        np.testing.assert_array_equal(theirs["token_ids"].numpy(), tokens.token_ids)
        np.testing.assert_array_equal(theirs["token_mask"].numpy(), tokens.token_mask)


def test_our_batches_are_those_of_training_and_come_from_the_first_records(works):
    work = dataclasses.replace(works["png"], records=3)
    batches = our_batches(work, size=64, workers=0)
    split = open_train(work)
    assert split.count == 3
    try:
        batch = next(batches)
    finally:
        batches.close()
    for row, index in enumerate(np.asarray(batch.record)):
        expected, _ = letterbox_image(decode_image(split[int(index) % 3].image, name="film"), 64)
        np.testing.assert_array_equal(np.asarray(batch.image)[row, ..., 0], expected)


def test_every_stage_is_timed(works):
    taken = stage_times(works["jpeg"], size=64, images=3)
    assert list(taken) == ["read", "parse", "decode", "resize", "text", "sample"]
    assert all(seconds > 0 for seconds in taken.values())


def test_a_random_batch_is_one_that_the_step_takes(config):
    batch, side = random_batch(config), loaded_side(config.data.image_size, config.data.crop)
    assert batch.image.shape == (8, side, side, 1)
    assert (batch.token_mask.sum(1) == batch.word_ids.max(1) + 3).all()  # [CLS] and [SEP]
    state = jax.eval_shape(lambda: create_state(config))
    _, metrics = train_step.eval_shape(
        state, batch, model=PlanModel(config), optimizer=make_optimizer(config), config=config
    )
    assert "loss" in metrics


def test_the_first_step_which_compiles_does_not_count(config, monkeypatch):
    taken = []

    def step(state, batch, **_):
        taken.append(batch)
        time.sleep(0.3 if len(taken) == 1 else 0)
        return state, {}

    monkeypatch.setattr(its, "train_step", step)
    monkeypatch.setattr(its, "create_state", lambda config: {})
    monkeypatch.setattr(its.jax, "default_backend", lambda: "gpu")  # whose clock is that of the wall
    found = appetite(config, steps=3)
    assert len(taken) == 4
    assert found["images_per_second"] > 8 / 0.3
    assert (found["batch_size"], found["size"], found["device"]) == (8, 32, "cpu")


def test_a_step_that_does_not_fit_is_tried_with_half_of_the_batch(config, monkeypatch):
    tried = []

    def seconds(config, steps):
        tried.append(config.data.batch_size)
        if config.data.batch_size > 2:
            raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: out of memory")
        return 0.5

    monkeypatch.setattr(its, "_seconds_per_step", seconds)
    assert appetite(config, steps=1)["images_per_second"] == 4
    assert tried == [8, 4, 2]


def row(loader: str, speed: float | None, **fields) -> dict:
    base = {"loader": loader, "stage": "batches", "workers": 0, "format": "png", "size": 224, "bytes": 1024.0}
    return base | {"images_per_core_second": speed, "images_per_second": None, "failed": None, "batch_size": 8} | fields


def test_the_ratio_is_to_torch_at_the_same_workers_format_and_size():
    rows = [row("plan_jax", 30.0), row("torch", 20.0), row("plan_jax", 30.0, workers=1), row("torch", None, workers=1)]
    rows += [row("plan_jax", 9.0, stage="read", workers=None), row("plan_jax", 9.0, format="jpeg")]
    assert [each["ratio_to_torch"] for each in with_ratios(rows)] == [1.5, 1.0, None, None, None, None]


def test_the_lines_say_how_many_cores_the_device_needs_and_that_a_cpu_is_one():
    step = row("device", None, stage="step", size=64, images_per_second=100.0, device="cpu")
    lines = input_lines([row("plan_jax", 40.0), step, row("torch", 20.0)])
    assert "100 images/s" in lines[0]
    assert "the CPU's own" in lines[0]
    assert lines[1].endswith("png to 224 px: 2.50")
    assert len(lines) == 2
    accelerator = step | {"workers": None, "device": "H100"}
    assert "CPU" not in input_lines([row("torch", 1.0), accelerator])[0]


def test_without_torch_its_rows_are_absent_and_a_line_says_how_to_get_them(config, phantom_data, monkeypatch, capsys):
    monkeypatch.setattr(module, "find_torch", lambda: None)
    monkeypatch.setattr(module, "QUICK", SMALLEST)
    monkeypatch.setattr(module, "_step_row", lambda *_: row("device", None, stage="step", device="cpu"))
    assert main(["benchmark", "input", "--quick", "--json", "--config", str(CONFIG), "--data", str(phantom_data)]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert set(rows[0]) == FIELDS
    assert {each["loader"] for each in rows} == {"plan_jax", "device"}
    assert [each["stage"] for each in rows][:-2] == ["read", "parse", "decode", "resize", "text", "sample"]
    assert all(each["images_per_core_second"] > 0 for each in rows[:-1])
    assert rows[-2]["images_per_second"] > 0
    assert {each["format"] for each in rows[:-1]} == {"png"}
    assert not any(each["failed"] for each in rows)
    assert input_lines(rows)[-1] == NO_TORCH
    assert render([input_table(rows)]).count("plan_jax") == 7


@pytest.mark.skipif(find_torch() is None, reason="needs torch, which is no requirement: pip install torch==2.13.0")
def test_with_torch_it_stands_beside_ours(config, phantom_data, monkeypatch):
    monkeypatch.setattr(module, "QUICK", SMALLEST)
    rows = benchmark_input(config, data=phantom_data, quick=True)
    torch = [each for each in rows if each["loader"] == "torch"]
    assert [each["failed"] for each in torch] == [None]
    assert torch[0]["ratio_to_torch"] == 1
    assert rows[-1]["loader"] == "device"
    assert rows[-1]["images_per_second"] > 0


def test_a_loader_that_dies_leaves_rows_that_say_why(config, phantom_data, monkeypatch, tmp_path):
    monkeypatch.setattr(module, "find_torch", lambda: None)
    monkeypatch.setattr(module, "_step_row", lambda *_: row("device", None, stage="step", device="cpu"))
    monkeypatch.setattr(module, "QUICK", dataclasses.replace(SMALLEST, sizes=(0,)))
    rows = benchmark_input(config, data=phantom_data, quick=True)
    assert all("size" in each["failed"] for each in rows[:-1])
    assert {each["images_per_core_second"] for each in rows} == {None}


def test_a_folder_without_a_build_is_refused(config, capsys, tmp_path):
    assert main(["benchmark", "input", "--config", str(CONFIG), "--data", str(tmp_path / "none")]) == 2
    assert "data directory must exist" in capsys.readouterr().err


def test_a_picture_whose_lines_have_one_filter_is_decoded_as_by_libpng():
    """Ours against cv2's decoder, for the filters none, sub and up and for sides that are no power of two."""
    random = np.random.default_rng(0)
    for height, width in ((1, 1), (1, 7), (5, 1), (33, 100), (64, 64)):
        image = random.integers(0, 256, (height, width), np.uint8)
        for kind in (cv2.IMWRITE_PNG_FILTER_NONE, cv2.IMWRITE_PNG_FILTER_SUB, cv2.IMWRITE_PNG_FILTER_UP):
            data = cv2.imencode(".png", image, (cv2.IMWRITE_PNG_FILTER, kind))[1].tobytes()
            np.testing.assert_array_equal(decode_image(data, name="film"), image)
