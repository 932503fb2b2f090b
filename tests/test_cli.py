import csv
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
from pydicom import uid

from plan_jax import __version__
from plan_jax.__main__ import main
from plan_jax.checkpoint import saved_steps

ROOT = Path(__file__).parents[1]
CONFIG = str(ROOT / "configs" / "phantom.py")
COMMANDS = ("build", "train", "evaluate", "ground", "tables", "figures")
PHRASE = "nodule in the left upper zone"


@pytest.fixture
def refused(capsys):
    """The one line with which a call is refused; everything else that was promised of it is checked here."""

    def call(*arguments: object) -> str:
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        assert code == 2, err
        assert out == ""
        (line,) = err.splitlines()
        assert line.startswith("plan_jax: ")
        assert "Traceback" not in line
        return line

    return call


@pytest.fixture(scope="module")
def film(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("films") / "film.png"
    cv2.imwrite(str(path), np.random.default_rng(0).integers(0, 255, (50, 70), np.uint8))
    return path


@pytest.fixture(scope="module")
def raw(tmp_path_factory) -> Path:
    """Twelve patients in the layout of the COVID-19 Image Data Collection, without a box anywhere."""
    folder = tmp_path_factory.mktemp("raw")
    (folder / "images").mkdir()
    names = ("patientid", "finding", "view", "modality", "filename", "clinical_notes")
    with (folder / "metadata.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(names)
        for number in range(12):
            name = f"{number}.png"
            cv2.imwrite(str(folder / "images" / name), np.full((40, 30), 10 * number, np.uint8))
            table.writerow((number, "Pneumonia", "PA", "X-ray", name, f"Opacity number {number} in the left lung."))
    return folder


@pytest.fixture(scope="module")
def boxless(raw, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("boxless") / "data"
    assert main(["build", "covid_cxr", "--raw", str(raw), "--out", str(out)]) == 0
    return out


def damaged(kind: str, film: Path, folder: Path) -> Path:
    path = folder / f"{kind}.png"
    content = {
        "truncated": film.read_bytes()[:300],
        "empty": b"",
        "text": b"no image",
        "header": film.read_bytes()[:20],
    }
    path.write_bytes(content[kind])
    return path


def without_pixels(folder: Path) -> Path:
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=["a test"])
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset = pydicom.FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.PatientName, dataset.PatientID = "Doe^Jane", "12345"
    dataset.save_as(folder / "report.dcm", enforce_file_format=True)
    return folder / "report.dcm"


# What is refused


@pytest.mark.parametrize(
    "call", [[], ["nothing"], ["train"], ["evaluate", "--workdir", "x"], ["ground", "--phrase", "a"]]
)
def test_an_incomplete_call_is_refused_with_the_way_to_help(call, refused):
    assert refused(*call).endswith("--help")


@pytest.mark.parametrize(
    "call",
    [
        ["evaluate", "nothing", "--workdir", "x"],
        ["evaluate", "grounding", "--workdir", "x", "--split", "nothing"],
        ["tables", "x", "--format", "nothing"],
        ["build", "phantom", "--out", "x", "--size", "nothing"],
        ["tables", "x", "--nothing"],
    ],
)
def test_a_wrong_argument_is_refused_by_name(call, refused):
    assert "nothing" in refused(*call)


def test_a_data_set_of_unknown_name_is_refused_with_the_near_one(refused, tmp_path):
    line = refused("build", "phantm", "--out", tmp_path / "data")
    assert "'phantm'" in line
    assert "did you mean phantom?" in line
    assert "covid_cxr" in refused("build", "radiographs", "--out", tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_a_missing_raw_folder_is_refused_by_name(refused, tmp_path):
    assert str(tmp_path / "nowhere") in refused(
        "build", "covid_cxr", "--raw", tmp_path / "nowhere", "--out", tmp_path / "o"
    )
    assert "--raw" in refused("build", "covid_cxr", "--out", tmp_path / "o")
    assert "metadata.csv" in refused("build", "covid_cxr", "--raw", tmp_path, "--out", tmp_path / "o")


def test_a_folder_that_cannot_be_built_into_is_refused_by_name(refused, film):
    assert str(film) in refused("build", "phantom", "--out", film)
    assert str(film / "data") in refused("build", "phantom", "--out", film / "data")


@pytest.mark.parametrize(("option", "value"), [("--size", 3), ("--seed", -1), ("--level", "hard"), ("--raw", ROOT)])
def test_a_phantom_that_cannot_be_made_is_refused_by_option(option, value, refused, tmp_path):
    assert option in refused("build", "phantom", "--out", tmp_path / "data", option, value)


def test_a_misspelt_override_is_refused_with_the_near_field(refused, tmp_path):
    line = refused("train", "--config", CONFIG, "--workdir", tmp_path, "--config.optim.learnin_rate=1")
    assert "did you mean --config.optim.learning_rate?" in line


def test_a_config_file_with_a_misspelt_field_is_refused_with_the_near_field(refused, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(Path(CONFIG).read_text().replace("config.optim.learning_rate", "config.optim.learnin_rate"))
    line = refused("train", "--config", path, "--workdir", tmp_path / "run")
    assert str(path) in line
    assert 'Did you mean "learning_rate"' in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", ["--config.seed=x", "--config.data.batch_size=0", "--seed=1", "stray"])
def test_an_override_that_does_not_fit_is_refused(option, refused, tmp_path):
    assert option.partition("=")[0].removeprefix("--") in refused(
        "train", "--config", CONFIG, "--workdir", tmp_path, option
    )


def test_overrides_belong_to_training_only(refused, tmp_path):
    assert "--config.seed=1" in refused("tables", tmp_path, "--config.seed=1")


def test_a_data_folder_that_is_no_build_is_refused_by_name(refused, tmp_path):
    train = ("train", "--config", CONFIG, "--workdir", tmp_path / "run")
    assert "--config.data.dir" in refused(*train)
    assert f"got {tmp_path}" in refused(*train, f"--config.data.dir={tmp_path}")
    assert str(tmp_path / "nowhere") in refused(*train, f"--config.data.dir={tmp_path / 'nowhere'}")
    assert not (tmp_path / "run").exists()


def test_data_with_fewer_records_than_a_batch_is_refused(refused, trained, tmp_path):
    line = refused(*trained.arguments, "--config.data.batch_size=133", "--workdir", tmp_path / "run")
    assert "data.batch_size" in line
    assert "132" in line


@pytest.mark.parametrize(
    "heads",
    [
        "text_encoder.heads=5",
        "image_encoder.local_stage=9",
        "image_encoder.channels=2",
        "text_encoder.max_positions=8",
    ],
)
def test_sizes_that_do_not_fit_together_are_refused_before_training(heads, refused, trained, tmp_path):
    assert heads.partition("=")[0] in refused(*trained.arguments, "--workdir", tmp_path / "run", f"--config.{heads}")


@pytest.mark.parametrize("kind", ["truncated", "empty", "text", "header"])
def test_a_damaged_image_is_refused_by_name(kind, refused, trained, film, tmp_path):
    path = damaged(kind, film, tmp_path)
    call = ("ground", "--workdir", trained.workdir, "--image", path, "--phrase", PHRASE, "--out", tmp_path / "map.png")
    assert str(path) in refused(*call)
    assert not (tmp_path / "map.png").exists()


def test_an_image_that_does_not_exist_is_refused_by_name(refused, trained, tmp_path):
    for path in (tmp_path / "nowhere.png", tmp_path):
        call = (
            "ground",
            "--workdir",
            trained.workdir,
            "--image",
            path,
            "--phrase",
            PHRASE,
            "--out",
            tmp_path / "map.png",
        )
        assert str(path) in refused(*call)


def test_a_dicom_without_pixels_is_refused_by_name_and_without_the_patient(refused, trained, tmp_path):
    path = without_pixels(tmp_path)
    call = ("ground", "--workdir", trained.workdir, "--image", path, "--phrase", PHRASE, "--out", tmp_path / "map.png")
    line = refused(*call)
    assert str(path) in line
    assert "pixels" in line
    assert "Doe" not in line
    assert "12345" not in line


@pytest.mark.parametrize("phrase", ["", "   ", "...", "nodule " * 25])
def test_a_phrase_that_cannot_be_read_is_refused(phrase, refused, trained, film, tmp_path):
    call = ("ground", "--workdir", trained.workdir, "--image", film, "--phrase", phrase, "--out", tmp_path / "map.png")
    assert "phrase must" in refused(*call)
    assert not (tmp_path / "map.png").exists()


def test_a_map_that_cannot_be_written_is_refused_by_name(refused, trained, film, tmp_path):
    for out in (tmp_path, film / "map.png"):
        call = ("ground", "--workdir", trained.workdir, "--image", film, "--phrase", PHRASE, "--out", out)
        line = refused(*call)
        assert "--out" in line
        assert str(out) in line


def test_a_run_directory_that_does_not_exist_is_refused_by_name(refused, film, tmp_path):
    run = tmp_path / "nowhere"
    for call in (
        ("evaluate", "grounding", "--workdir", run),
        ("ground", "--workdir", run, "--image", film, "--phrase", PHRASE, "--out", tmp_path / "map.png"),
        ("tables", run),
    ):
        assert str(run) in refused(*call)
    assert not run.exists()


def test_a_run_directory_without_a_checkpoint_is_refused_by_name(refused, trained, film, tmp_path):
    for name in ("config.json", "tokenizer.json"):
        shutil.copy(trained.workdir / name, tmp_path)
    (tmp_path / "checkpoints").mkdir()
    for call in (
        ("evaluate", "retrieval", "--workdir", tmp_path),
        ("ground", "--workdir", tmp_path, "--image", film, "--phrase", PHRASE, "--out", tmp_path / "map.png"),
    ):
        line = refused(*call)
        assert f"{tmp_path} must hold a checkpoint" in line


@pytest.mark.parametrize("content", ['{"seed": 0', '{"sede": 0}'])
def test_a_run_directory_with_a_damaged_configuration_is_refused_by_name(content, refused, tmp_path):
    (tmp_path / "config.json").write_text(content)
    assert str(tmp_path / "config.json") in refused("evaluate", "grounding", "--workdir", tmp_path)


def test_evaluating_on_a_folder_that_is_no_build_is_refused_by_name(refused, trained, tmp_path):
    line = refused("evaluate", "retrieval", "--workdir", trained.workdir, "--data", tmp_path)
    assert str(tmp_path) in line


def test_grounding_on_data_without_boxes_is_refused(trained, boxless, capfd):
    capfd.readouterr()
    assert main(["evaluate", "grounding", "--workdir", str(trained.workdir), "--data", str(boxless)]) == 2
    *progress, line = capfd.readouterr().err.splitlines()
    assert line.startswith("plan_jax: ")
    assert "boxes" in line
    assert "Traceback" not in "".join(progress)


# What is done


def test_a_map_is_drawn_and_described(trained, film, tmp_path, capsys):
    out = tmp_path / "new folder" / "map.png"
    call = ["ground", "--workdir", trained.workdir, "--image", film, "--phrase", PHRASE, "--out", out]
    assert main([str(argument) for argument in call]) == 0
    printed, err = capsys.readouterr()
    assert err == ""
    assert printed.startswith(f"{out}: peak at column ")
    assert "of 70 x 50 pixels" in printed
    assert cv2.imread(str(out)) is not None


def test_a_build_says_what_it_wrote_and_what_it_left_out(raw, tmp_path, capsys):
    shutil.copytree(raw, tmp_path / "raw")
    with (tmp_path / "raw" / "metadata.csv").open("a") as file:
        file.write("13,Pneumonia,L,X-ray,0.png,a lateral film\n")
    assert main(["build", "covid_cxr", "--raw", str(tmp_path / "raw"), "--out", str(tmp_path / "data")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[:3] == [
        "covid_cxr 1.1.0: 13 rows in, 12 records out",
        "  left out: 1 rows, not a frontal X-ray",
        "train: 9 records of 9 patients",
    ]
    assert lines[-1].startswith(f"{tmp_path / 'data'}: contact_sheet.png, covid_cxr, manifest.json, report.txt")


def test_a_model_is_evaluated_on_data_that_it_did_not_train_on(trained, boxless, tmp_path, capsys):
    run = shutil.copytree(trained.workdir, tmp_path / "run", ignore=shutil.ignore_patterns("tensorboard"))
    call = ["evaluate", "retrieval", "--workdir", str(run), "--data", str(boxless), "--split", "train", "--json"]
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert json.loads(printed) == json.loads((run / "results" / "retrieval_covid_cxr.json").read_text())
    assert json.loads(printed)["n"] == 10 - 1
    assert main(["tables", str(run)]) == 0
    assert "Retrieval on covid_cxr (n = 9" in capsys.readouterr().out


def test_an_interruption_is_said_in_one_line(monkeypatch, tmp_path, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("plan_jax.tables.paper.paper_tables", interrupted)
    assert main(["tables", str(tmp_path)]) == 1
    assert capsys.readouterr().err == "plan_jax: interrupted\n"


# The process


def python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "plan_jax", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_a_process_exits_with_2_and_one_line(trained, film, tmp_path):
    call = ("ground", "--workdir", str(trained.workdir), "--image", str(film), "--out", str(tmp_path / "map.png"))
    done = python(*call, "--phrase", "")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "plan_jax: phrase must contain a word, got none; write at least one letter or digit\n"


def test_a_process_draws_a_map_and_writes_nothing_on_stderr(trained, film, tmp_path):
    call = ("ground", "--workdir", str(trained.workdir), "--image", str(film), "--out", str(tmp_path / "map.png"))
    done = python(*call, "--phrase", PHRASE)
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "map.png").is_file()


def test_help_answers_within_two_seconds():
    """The best of three: the machine may be busy with something else."""
    times = []
    for _ in range(3):
        start = time.monotonic()
        printed = python("--help").stdout
        times.append(time.monotonic() - start)
        assert all(f"    {command}" in printed for command in COMMANDS)
    assert min(times) < 2


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: python -m plan_jax {command} ")


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize(
    ("given", "after"),
    [
        (None, "--fibers_default_thread_stack_size=4194304"),
        ("--xla_a=1", "--xla_a=1 --fibers_default_thread_stack_size=4194304"),
        ("--fibers_default_thread_stack_size=1", "--fibers_default_thread_stack_size=1"),
    ],
)
def test_a_tpu_s_compiler_gets_deep_stacks_unless_the_environment_says_how_deep(given, after, monkeypatch, capsys):
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    if given is not None:
        monkeypatch.setenv("LIBTPU_INIT_ARGS", given)
    for _ in range(2):
        assert main(["tables", "nowhere"]) == 2
    assert os.environ["LIBTPU_INIT_ARGS"] == after
    assert "nowhere" in capsys.readouterr().err


def test_a_test_run_left_its_checkpoints(trained):
    """The tests above read the shared run and must not have changed it."""
    assert saved_steps(trained.workdir)[-1] == 300
    assert not (trained.workdir / "results").exists()
