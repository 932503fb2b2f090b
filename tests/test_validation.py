"""Validation against the same numbers by plain loops and by the user's own way to a map, on one device and on many."""

import dataclasses
import json
import math
import os
import socket
import subprocess
import sys
from pathlib import Path

import cv2
import fakes
import jax
import numpy as np
import oracle
import pytest
from conftest import CONFIG, QUICK, TINY

from plan_jax.config import Config
from plan_jax.config_file import read_config
from plan_jax.data.image import decode_image
from plan_jax.data.records import Phrase, open_split
from plan_jax.data.text import Tokenizer
from plan_jax.inference import Plan
from plan_jax.model import initial_variables
from plan_jax.plots import beside, with_boxes
from plan_jax.sharding import make_mesh
from plan_jax.train import validation
from plan_jax.train.placement import placement
from plan_jax.train.validation import open_validation

PAIRS = 7  # in the validation split of the phantoms: no multiple of four or eight devices


def settings(data: Path, *overrides: str) -> tuple[Config, Tokenizer]:
    tokenizer = Tokenizer.load(data / "tokenizer.json")
    config = read_config(CONFIG, (*TINY, "--config.train.validate_every=1", f"--config.data.dir={data}", *overrides))
    text_encoder = dataclasses.replace(config.text_encoder, vocab_size=tokenizer.vocab_size)
    return dataclasses.replace(config, text_encoder=text_encoder), tokenizer


def on_devices(config: Config, tokenizer: Tokenizer, devices, *, fsdp: int = 1):
    """The validation of a mesh, and the first variables, which lie there as they do in training."""
    mesh = make_mesh(devices, fsdp=fsdp)
    variables = initial_variables(config, config.seed)
    return open_validation(config, tokenizer, mesh=mesh), jax.device_put(variables, placement(variables, mesh))


def mean_loss(similarity, temperature: float) -> float:
    """Each pair against its row and its column."""
    total, count = 0.0, len(similarity)
    for i in range(count):
        for others in (similarity[i], [row[i] for row in similarity]):
            total += math.log(sum(math.exp(x / temperature) for x in others)) - similarity[i][i] / temperature
    return total / (2 * count)


def test_the_losses_are_those_of_the_chosen_pairs_in_plain_loops(phantom_data):
    config, tokenizer = settings(phantom_data, "--config.data.crop=0.875", "--config.train.validation_pairs=4")
    held_out, variables = on_devices(config, tokenizer, jax.devices()[:1])
    split = open_split(phantom_data, "validation")
    assert len(split) == PAIRS
    records = [split[index] for index in (0, 1, 3, 5)]
    plan = Plan(config, tokenizer, initial_variables(config, config.seed), step=0)
    images = plan.encode_images(np.stack([middle_of(decode_image(of.image, name=of.key)) for of in records]))
    texts = plan.encode_texts([record.report for record in records], truncate=True)
    exact = oracle.Arrays(images.patch, texts.word, texts.word_logit, texts.mask, images.pooled, texts.pooled)
    similarity = oracle.word_patch_similarity(exact, config.alignment)
    expected = {
        "validation_global_loss": mean_loss(images.pooled @ texts.pooled.T, config.loss.global_temperature),
        "validation_local_loss": mean_loss(similarity, config.loss.local_temperature),
    }
    expected["validation_loss"] = sum(expected.values())  # both weigh 1 here
    assert held_out.measure(variables, config) == pytest.approx(expected, rel=1e-4)


def middle_of(film: np.ndarray) -> np.ndarray:
    """A square phantom's 32 of 37 pixels, resized by OpenCV: what training would crop at random."""
    whole = cv2.resize(film, (37, 37), interpolation=cv2.INTER_AREA)
    return whole[2:34, 2:34, None]


@pytest.fixture(scope="module")
def on_one(phantom_data):
    """What one device measures and draws."""
    config, tokenizer = settings(phantom_data)
    held_out, variables = on_devices(config, tokenizer, jax.devices()[:1])
    return held_out.measure(variables, config), held_out.pictures(variables, config)


def test_eight_devices_that_share_parameters_and_small_pieces_change_nothing(phantom_data, on_one):
    config, tokenizer = settings(phantom_data, "--config.evaluation.batch_size=2")
    held_out, variables = on_devices(config, tokenizer, jax.devices(), fsdp=4)
    assert held_out.measure(variables, config) == pytest.approx(on_one[0], rel=1e-5)
    for found, expected in zip(held_out.pictures(variables, config), on_one[1], strict=True):
        np.testing.assert_allclose(found.astype(int), expected.astype(int), atol=1)


PROCESS = """
import json, sys
from pathlib import Path
import jax
jax.config.update("jax_num_cpu_devices", 2)
jax.distributed.initialize("127.0.0.1:" + sys.argv[1], 2, int(sys.argv[2]))
import test_validation as same

config, tokenizer = same.settings(Path(sys.argv[3]))
held_out, variables = same.on_devices(config, tokenizer, jax.devices(), fsdp=2)
found, pictures = held_out.measure(variables, config), held_out.pictures(variables, config)
print(json.dumps([found, [picture.mean() for picture in pictures]]))
"""


def test_two_processes_of_two_devices_have_the_losses_and_the_pictures_of_one(phantom_data, on_one):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": f"{here}{os.pathsep}{here.parent}", "XLA_FLAGS": QUICK}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROCESS, port, str(number), str(phantom_data)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    for process in processes:
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        losses, pictures = json.loads(output.splitlines()[-1])
        assert losses == pytest.approx(on_one[0], rel=1e-5)
        assert pictures == pytest.approx([picture.mean() for picture in on_one[1]], abs=0.05)


def test_the_pictures_are_the_maps_that_the_user_is_given(phantom_data):
    config, tokenizer = settings(phantom_data, "--config.evaluation.prompt=There is {}.", "--config.train.pictures=3")
    held_out, variables = on_devices(config, tokenizer, jax.devices()[:1])
    plan = Plan(config, tokenizer, initial_variables(config, config.seed), step=0)
    asked = [(record, record.phrases[0]) for record in open_split(phantom_data, "validation") if record.phrases][:3]
    pictures = held_out.pictures(variables, config)
    assert len(pictures) == 3
    for picture, (record, phrase) in zip(pictures, asked, strict=True):
        film = decode_image(record.image, name=record.key)
        found = plan.ground(film, phrase.text)
        expected = beside(film, found.map, boxes=phrase.boxes, caption=phrase.text)
        np.testing.assert_allclose(picture.astype(int), expected.astype(int), atol=1)


class Listed(fakes.Records):
    """Records that note which of them are read."""

    def __getitem__(self, index):
        self.read = [*getattr(self, "read", []), index]
        return super().__getitem__(index)


@pytest.fixture
def made(phantom_data, tmp_path, monkeypatch):
    """The validation, the first variables and the configuration of records in memory, on one device."""

    def make(records, *overrides):
        split = Listed(records, name="validation", directory=tmp_path)
        fakes.data_set(tmp_path, "toy", validation=records)
        monkeypatch.setattr(validation, "open_split", lambda *_: split)
        config, tokenizer = settings(phantom_data, *overrides)
        config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(tmp_path)))
        return *on_devices(config, tokenizer, jax.devices()[:1]), config, split

    return make


@pytest.mark.parametrize(("wanted", "read"), [(3, [0, 2, 4]), (7, [*range(7)]), (100, [*range(7)]), (2, [0, 3])])
def test_the_pairs_are_evenly_spaced_and_all_where_there_are_fewer(made, wanted, read):
    records = [fakes.record(number, "A nodule.") for number in range(7)]
    assert made(records, f"--config.train.validation_pairs={wanted}")[3].read == read


def test_reports_are_looked_for_but_not_written_and_without_a_sentence_nothing_is_drawn(made, phantom_data):
    """The second has nothing to look for; the last has a box, and so comes with its phrase."""
    report = "There is a nodule in the left lung. The heart is normal."
    phantom = open_split(phantom_data, "validation")[0]
    blank, nodule = (Phrase(text, boxes=((1.0, 1.0, 4.0, 4.0),)) for text in (" . ", "nodule"))
    records = [dataclasses.replace(phantom, sections=(("findings", report),), phrases=()), fakes.record(90)]
    records += [fakes.record(120, "Clear.", phrases=(blank, nodule))]
    held_out, variables, config, _ = made(records, "--config.train.pictures=9")
    plain, placed = held_out.pictures(variables, config)

    as_it_is = dataclasses.replace(config, evaluation=dataclasses.replace(config.evaluation, prompt="{}"))
    plan = Plan(as_it_is, Tokenizer.load(phantom_data / "tokenizer.json"), initial_variables(config, config.seed), 0)
    film, other = decode_image(phantom.image, name="film"), np.full((8, 8), 120, np.uint8)
    expected = beside(film, plan.ground(film, "There is a nodule in the left lung.").map, caption="")  # no letters
    np.testing.assert_allclose(plain.astype(int), expected.astype(int), atol=1)
    assert placed.shape == beside(other, np.zeros((8, 8)), caption="nodule").shape
    np.testing.assert_array_equal(placed[-320:, :320], with_boxes(other, boxes=nodule.boxes))


def test_no_pictures_are_drawn_where_none_are_wanted(made):
    records = [fakes.record(number, "A nodule.") for number in range(2)]
    held_out, variables, config, _ = made(records, "--config.train.pictures=0")
    assert held_out.pictures(variables, config) == []


@pytest.mark.parametrize(
    ("records", "told"),
    [
        ([], 0),
        ([fakes.record(number) for number in range(5)], 0),
        ([fakes.record(1, "A nodule."), fakes.record(2), fakes.record(3, "...")], 1),
    ],
    ids=["no records", "no reports", "one report"],
)
def test_too_few_reports_give_no_validation_and_one_line(records, told, made, capsys):
    held_out, *_, config, _ = made(records)
    assert held_out is None
    said = f"no validation: validation pairs must be at least 2 with a report, got {told} from {config.data.dir}\n"
    assert capsys.readouterr().err == said


def test_a_data_set_without_the_split_gives_no_validation_and_one_line(phantom_data, tmp_path, capsys):
    config, tokenizer = settings(phantom_data)
    fakes.data_set(tmp_path, "toy", train=[])
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dir=str(tmp_path)))
    assert open_validation(config, tokenizer, mesh=make_mesh()) is None
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_that_never_validates_reads_nothing_and_says_nothing(phantom_data, capsys):
    config, tokenizer = settings(phantom_data, "--config.train.validate_every=0", "--config.data.dir=nowhere")
    assert open_validation(config, tokenizer, mesh=make_mesh()) is None
    assert capsys.readouterr().err == ""
