import contextlib
import dataclasses
import hashlib
import json
import math
import shutil
import signal
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event
from train_runs import STEPS, Run, assert_equal_bits, assert_same_run, metrics

from plan_jax.__main__ import main
from plan_jax.checkpoint import best_step, load_variables, saved_steps
from plan_jax.config import Config, load_config, save_config
from plan_jax.config_file import read_config
from plan_jax.data.build import build
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError
from plan_jax.inference import Plan
from plan_jax.train.guard import NonFiniteLoss, SkipGuard
from plan_jax.train.log import MetricsLog
from plan_jax.train.loop import fit
from plan_jax.train.state import learning_rate
from plan_jax.train.workdir import check_workdir, differing_fields, prepare_workdir

PROMISED = {"step", "loss", "global_loss", "local_loss", "images_per_second", "learning_rate"}


@pytest.fixture
def start(trained, tmp_path):
    """Starts `train` commands of the trained run's configuration; none outlives the test."""
    with contextlib.ExitStack() as started:
        yield lambda *more: started.enter_context(Run((*trained.arguments, *more), tmp_path / "pieces"))


def test_a_run_stopped_by_sigterm_and_ctrl_c_continues_the_same(trained, start):
    """Also where worker processes read the data for some of the time, and with checkpoints at other steps."""
    for number, step, more in (
        (signal.SIGTERM, 20, []),
        (
            signal.SIGINT,
            60,
            ["--config.data.workers=1", "--config.data.prefetch=0", "--config.train.checkpoint_every=7"],
        ),
    ):
        run = start(*more)
        run.wait_for_step(step)
        code, out, err = run.stop(number)
        assert code == 0, err[-2000:]
        reached = metrics(run.workdir)[-1]["step"]
        assert step <= reached < STEPS
        assert out == f"{run.workdir}: step {reached}, saved; the same command continues\n"
        assert "Traceback" not in err
        assert saved_steps(run.workdir)[-1] == reached
    assert start().end()[0] == 0
    assert_same_run(run.workdir, trained)


def test_a_finished_run_returns_at_once_and_writes_no_metrics(trained, capsys, monkeypatch):
    def no_step(*_, **__):
        raise AssertionError("a finished run must not step")

    monkeypatch.setattr("plan_jax.train.loop.Steps", no_step)
    before = (trained.workdir / "metrics.jsonl").read_bytes()
    assert main([*trained.arguments, "--workdir", str(trained.workdir)]) == 0
    assert capsys.readouterr().out == f"{trained.workdir}: step {STEPS}, finished\n"
    assert (trained.workdir / "metrics.jsonl").read_bytes() == before


def test_the_loss_falls_well_below_chance(trained):
    losses = [line["loss"] for line in metrics(trained.workdir)]
    chance = 2 * math.log(8)  # two losses over batches of eight
    assert losses[0] == pytest.approx(chance, abs=0.5)  # sharp temperatures set the first guesses apart
    assert np.mean(losses[-20:]) < 0.6 * chance


def test_every_logged_step_has_one_line_with_the_promised_numbers(trained):
    lines = metrics(trained.workdir)
    assert [line["step"] for line in lines] == list(range(1, STEPS + 1))
    for line in lines:
        assert line.keys() >= PROMISED
        assert all(isinstance(value, int | float) and math.isfinite(value) for value in line.values())
        assert line["loss"] == pytest.approx(line["global_loss"] + line["local_loss"], rel=1e-5)
        assert line["images_per_second"] > 0


def test_the_learning_rate_rises_in_a_line_and_falls_along_a_cosine(trained):
    """Against the formula: 60 steps up to 2e-3, then half a cosine to 0 at the end."""
    for line in metrics(trained.workdir):
        done = line["step"] - 1
        falling = (1 + math.cos(math.pi * (done - 60) / (STEPS - 60))) / 2
        assert line["learning_rate"] == pytest.approx(2e-3 * (done / 60 if done < 60 else falling), abs=1e-8)


def test_a_run_shorter_than_its_warmup_still_reaches_the_peak(trained):
    config = dataclasses.replace(trained.config, train=dataclasses.replace(trained.config.train, steps=10))
    assert max(float(np.asarray(learning_rate(config)(step))) for step in range(11)) == pytest.approx(2e-3)


def test_tensorboard_shows_the_same_losses(trained):
    found: dict[str, dict[int, float]] = {}
    for path in (trained.workdir / "tensorboard").iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):  # a record: length (8 bytes), its checksum (4), event, checksum (4)
            length = int.from_bytes(data[at : at + 8], "little")
            event = Event.FromString(data[at + 12 : at + 12 + length])  # pyright: ignore[reportAttributeAccessIssue]
            at += 16 + length
            for value in event.summary.value:
                found.setdefault(value.tag, {})[event.step] = value.simple_value
    assert found.keys() >= PROMISED - {"step"}
    losses = {line["step"]: line["loss"] for line in metrics(trained.workdir)}
    assert found["loss"].keys() == losses.keys()
    assert all(found["loss"][step] == pytest.approx(loss) for step, loss in losses.items())


def test_the_run_directory_holds_the_configuration_with_the_vocabulary_of_the_data(trained):
    differing = differing_fields(trained.config, load_config(trained.workdir / "config.json"))
    assert [name for name, _, _ in differing] == ["text_encoder.vocab_size"]
    vocabulary = json.loads((trained.workdir / "tokenizer.json").read_text())["model"]["vocab"]
    assert differing[0][2] == len(vocabulary)


@pytest.mark.parametrize(
    ("override", "field"),
    [
        ("seed=1", "config.seed"),
        ("optim.learning_rate=0.5", "config.optim.learning_rate"),
        ("train.steps=400", "config.train.steps"),
        ("data.batch_size=16", "config.data.batch_size"),
        ("alignment.rounds=2", "config.alignment.rounds"),
        ("optim.rules=(('text_encoder/',0.1,1.0),)", "config.optim.rules"),
    ],
)
def test_a_run_directory_of_another_configuration_is_refused_by_field(override, field, trained, capsys):
    before = (trained.workdir / "config.json").read_bytes()
    code = main([*trained.arguments, "--workdir", str(trained.workdir), f"--config.{override}"])
    assert code == 2
    assert f"{field} must stay" in capsys.readouterr().err
    assert (trained.workdir / "config.json").read_bytes() == before


def test_a_run_directory_of_other_data_is_refused(trained, tmp_path):
    build("phantom", out=tmp_path / "other", size=150, seed=1)
    config = dataclasses.replace(
        trained.config, data=dataclasses.replace(trained.config.data, dir=str(tmp_path / "other"))
    )
    before = (trained.workdir / "tokenizer.json").read_bytes()
    with pytest.raises(InputError, match=r"config\.data\.dir must hold the data with which the run"):
        fit(config, trained.workdir)
    assert (trained.workdir / "tokenizer.json").read_bytes() == before


def test_a_run_continues_on_data_that_was_moved(trained, phantom_data, tmp_path):
    shutil.copytree(phantom_data, tmp_path / "moved")
    config = dataclasses.replace(
        trained.config, data=dataclasses.replace(trained.config.data, dir=str(tmp_path / "moved"))
    )
    workdir = shutil.copytree(trained.workdir, tmp_path / "run")
    assert_equal_bits(fit(config, workdir), trained.state)


def test_a_run_that_never_saved_can_begin_with_another_configuration(trained, tmp_path):
    (tmp_path / "config.json").write_text('{"seed": 9}')
    tokenizer = Tokenizer.load(trained.workdir / "tokenizer.json")
    run = tmp_path, trained.config, Path(trained.config.data.dir), tokenizer
    check_workdir(*run)
    prepare_workdir(*run)
    assert load_config(tmp_path / "config.json") == trained.config


@pytest.fixture
def begun(trained, other_data, tmp_path):
    """Prepares the directory of a run on two data sets, which has a checkpoint from the first call on."""
    tokenizer = Tokenizer.load(trained.workdir / "tokenizer.json")

    def prepare(folder: Path = other_data, weight: float = 0.5, **fields) -> Path:
        data = dataclasses.replace(trained.config.data, **{"mixture": ((str(folder), weight),), **fields})
        workdir = tmp_path / "run"
        run = workdir, dataclasses.replace(trained.config, data=data), Path(data.dir), tokenizer
        check_workdir(*run)
        prepare_workdir(*run)
        (workdir / "checkpoints" / "5").mkdir(parents=True, exist_ok=True)
        return workdir

    prepare()
    return prepare


def test_the_hashes_of_all_manifests_are_written_down(begun, trained, other_data):
    manifests = [Path(folder) / "manifest.json" for folder in (trained.config.data.dir, other_data)]
    expected = [hashlib.sha256(path.read_bytes()).hexdigest() for path in manifests]
    assert json.loads((begun() / "data_manifests.json").read_text()) == expected


def test_a_run_on_several_data_sets_continues_where_they_were_moved_and_with_other_readers(begun, other_data, tmp_path):
    moved = shutil.copytree(other_data, tmp_path / "moved")
    workdir = begun(moved, workers=4, prefetch=0)
    assert load_config(workdir / "config.json").data.mixture == ((str(moved), 0.5),)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"weight": 0.25}, r"config\.data\.mixture must stay .* 0\.5\),\), got .* 0\.25\),\)"),
        ({"mixture": ()}, r"config\.data\.mixture must stay"),
        ({"text": "findings"}, r"config\.data\.text must stay"),
        ({"sentences": "one"}, r"config\.data\.sentences must stay"),
    ],
)
def test_a_run_with_other_weights_or_other_text_is_refused(begun, changed, told):
    with pytest.raises(InputError, match=told):
        begun(**changed)


def test_a_run_with_another_second_data_set_is_refused(begun, other_data, tmp_path):
    other = shutil.copytree(other_data, tmp_path / "other")
    (other / "manifest.json").write_text((other / "manifest.json").read_text() + "\n")
    with pytest.raises(InputError, match=rf"config\.data\.mixture must hold the data .*manifest\.json in {other}"):
        begun(other)


def test_a_run_begun_before_mixtures_is_held_to_the_manifest_that_it_copied(begun, trained, other_data):
    workdir = begun()
    save_config(workdir / "config.json", trained.config)
    (workdir / "data_manifests.json").unlink()
    assert begun(mixture=()) == workdir
    (workdir / "data_manifests.json").unlink()
    with pytest.raises(InputError, match=r"config\.data\.dir must hold the data"):
        begun(mixture=(), dir=str(other_data))


def test_a_run_directory_that_cannot_be_written_is_refused(trained, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="--workdir must be a folder that can be written"):
        fit(trained.config, tmp_path / "file" / "run")


def test_a_run_without_a_data_folder_is_refused_with_the_option_that_sets_it(tmp_path):
    with pytest.raises(InputError, match=r"--config\.data\.dir"):
        fit(Config(), tmp_path)


@pytest.mark.parametrize(
    ("rate", "rule", "step"),
    [
        ("1e30", "the norm of the parameters must be finite in float32, got a larger one", 2),  # the first has rate 0
        ("1e17", "at most 0 steps in a row must be left out, got one more", 3),  # which has no loss
    ],
)
def test_a_run_at_an_absurd_rate_stops_and_nothing_that_is_not_finite_reaches_a_checkpoint(
    rate, rule, step, trained, other_data, tmp_path, capsys
):
    """The run is on two data sets of equal weight, so that four records of each are named, with their folder."""
    absurd = ["train.steps=9", "train.checkpoint_every=1", f"optim.learning_rate={rate}", "train.keep_checkpoints=9"]
    absurd.append("train.skip_limit=0")
    absurd.append(f"data.mixture=(('{other_data}',1.0),)")
    call = [*trained.arguments, "--workdir", str(tmp_path), *(f"--config.{field}" for field in absurd)]
    assert main(call) == 1
    (message,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith(f"plan_jax: {rule}")]
    assert f"at step {step} on records {trained.config.data.dir}:phantom-" in message
    assert message.count(f"{trained.config.data.dir}:phantom-") == message.count(f"{other_data}:phantom-") == 4
    saved = saved_steps(tmp_path)  # one that would wait for the one before is left out
    assert 0 < saved[-1] < step
    assert f"the last good checkpoint is step {saved[-1]}" in message
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(Plan.load(tmp_path).variables))
    assert all(math.isfinite(value) for line in metrics(tmp_path) for value in line.values())


def judged(in_a_row: int, loss: float = math.nan) -> dict:
    numbers = {"loss": np.float32(loss), "gradient_norm": np.float32(1.5), "parameter_norm": np.float32(2.5)}
    return {**numbers, "skipped_in_a_row": np.int32(in_a_row)}


def test_the_guard_tells_of_a_step_that_is_left_out_and_goes_on(capsys):
    split = [SimpleNamespace(key=f"film-{index}") for index in range(5)]
    guard = SkipGuard(split, SimpleNamespace(latest=40, wait=lambda: None), limit=1)
    guard.watch(41, judged(0, 2.0), SimpleNamespace(record=jax.numpy.array([0, 1])))
    guard.watch(42, judged(1), SimpleNamespace(record=jax.numpy.array([3, 4])))
    assert capsys.readouterr().err == ""
    guard.watch(43, judged(0, 2.0), SimpleNamespace(record=jax.numpy.array([1, 2])))
    told = "step 42 is left out: loss nan, gradient norm 1.5, on records film-3, film-4\n"
    assert capsys.readouterr().err == told


@pytest.mark.parametrize(("latest", "left"), [(40, "the last good checkpoint is step 40"), (None, "no checkpoint")])
def test_the_guard_stops_after_so_many_steps_and_names_step_records_and_last_good_checkpoint(latest, left):
    guard = SkipGuard([SimpleNamespace(key="film-0")], SimpleNamespace(latest=latest, wait=lambda: None), limit=2)
    guard.watch(7, judged(3), SimpleNamespace(record=jax.numpy.array([0])))
    with pytest.raises(NonFiniteLoss) as caught:
        guard.check()
    message = str(caught.value)
    assert message.startswith("at most 2 steps in a row must be left out, got one more: loss nan, gradient norm 1.5")
    assert "at step 7 on records film-0; " in message
    assert left in message


def test_the_log_drops_steps_that_will_be_repeated_and_cut_lines(tmp_path):
    with MetricsLog(tmp_path, step=0) as log:
        for step in range(1, 6):
            log.write(step, {"loss": step / 2})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    with MetricsLog(tmp_path, step=3) as log:
        log.write(4, {"loss": 9.0})
    assert metrics(tmp_path) == [
        {"step": 1, "loss": 0.5},
        {"step": 2, "loss": 1.0},
        {"step": 3, "loss": 1.5},
        {"step": 4, "loss": 9.0},
    ]


def test_an_override_reaches_the_run(trained):
    assert read_config(Path(trained.arguments[2]), trained.arguments[3:]) == trained.config


def test_a_variables_file_holds_what_training_ended_with(trained):
    variables = {"params": trained.state.params, "batch_stats": trained.state.batch_stats}
    placed = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), variables)
    assert_equal_bits(load_variables(trained.workdir, STEPS, placed), variables)


def test_a_run_validates_shows_maps_keeps_the_best_and_records_the_steps_that_were_asked_for(trained, tmp_path):
    more = ["train.steps=6", "train.validate_every=3", "train.checkpoint_every=3", "optim.warmup_steps=1"]
    call = [*trained.arguments, "--workdir", str(tmp_path), *(f"--config.{field}" for field in more)]
    assert main([*call, "--profile", "2:2"]) == 0
    lines = metrics(tmp_path)
    validated = {line["step"]: line["validation_loss"] for line in lines if "validation_loss" in line}
    assert validated.keys() == {3, 6}
    assert best_step(tmp_path) == min(validated, key=validated.__getitem__)
    assert list((tmp_path / "profile").rglob("*.xplane.pb"))
    assert b"grounding/0" in b"".join(path.read_bytes() for path in (tmp_path / "tensorboard").iterdir())
    for name in ("gradient_norm/image_encoder/stem_conv", "parameter_norm/text_encoder/layers/0", "gradient_norm"):
        assert all(line[name] > 0 for line in lines[1:])
    assert all(0 <= line[name] <= 1 for line in lines for name in ("word_entropy/round_1", "map_sharpness/round_1"))
    assert all(line["step_seconds"] >= line["input_seconds"] >= 0 for line in lines)
    assert lines[0]["skipped"] == 0
