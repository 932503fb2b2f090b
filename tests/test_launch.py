"""The shell commands: checked by shellcheck, and what they would run. The demo itself is run elsewhere."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from shell import EXTRAS, LAUNCH, ROOT, SAVED, World, bash, dry_run, plan_commands

OPTIONS = {
    "demo.sh": ("--quick", "--out", "--dry-run", "--help"),
    "reproduce.sh": ("--quick", "--out", "--train-data", "--config", "--data", "--no-ablation", "--dry-run", "--help"),
    "test.sh": ("--dry-run", "--help"),
}
DEVICE_OPTIONS = {
    "gpu.sh": "--config --workdir --data --slurm --nodes --gpus --partition --time --coordinator --process PLAN_VENV",
    "slurm.sbatch": "--config --workdir scancel PLAN_VENV",
    "tpu_vm.sh": "run create setup start follow status stop delete --name --zone --project --type --version --spot "
    "--create-flag --prepare --config --workdir --data --poll",
    "tpu_worker.sh": "setup start state follow stop PLAN_VENV",
}
WRONG_CALLS = [
    *("gpu.sh --fast", "gpu.sh --config", "gpu.sh runs/x", "gpu.sh --nodes 2", "gpu.sh --coordinator host:1"),
    *("gpu.sh --process 0/2", "gpu.sh --slurm --coordinator auto", "gpu.sh --coordinator host --process 0/2"),
    *("slurm.sbatch --config configs/plan_r50.py", "tpu_worker.sh fly", "tpu_vm.sh fly", "tpu_vm.sh run"),
    *("tpu_vm.sh stop --name t", "tpu_vm.sh create --name t --zone z", "tpu_vm.sh start --name t --zone z"),
    "tpu_vm.sh start --name t --zone z --workdir runs/x",
    "tpu_vm.sh start --name t --zone z --workdir /x --config nothing.py",
]
ALL_OPTIONS = {script: (*options, "PLAN_VENV") for script, options in OPTIONS.items()} | {
    script: (*options.split(), "--dry-run", "--help") for script, options in DEVICE_OPTIONS.items()
}


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which(
        "shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    assert shellcheck, "install tests/requirements.txt"
    scripts = [*sorted(LAUNCH.glob("*.sh")), *sorted(LAUNCH.glob("*.sbatch")), ROOT / ".ci" / "run"]
    done = subprocess.run([shellcheck, "-x", "-P", "SCRIPTDIR", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", ALL_OPTIONS)
def test_help_names_the_options_and_needs_no_environment(script, tmp_path):
    done = bash(LAUNCH / script, "--help", cwd=tmp_path, PATH="/usr/bin:/bin", HOME="/nonexistent")
    assert done.returncode == 0, done.stderr
    assert [option for option in ALL_OPTIONS[script] if option not in done.stdout] == []


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        *(("demo.sh", wrong) for wrong in (["--fast"], ["--out"], ["--out", ""], ["runs/x"])),
        *(("reproduce.sh", ["--data", wrong]) for wrong in ("", "ms_cxr", "=x", "ms_cxr=", "nothing=x")),
        ("reproduce.sh", ["--train-data"]),
        ("reproduce.sh", ["--config"]),
        *((script, arguments) for script, *arguments in map(str.split, WRONG_CALLS)),
    ],
)
def test_a_wrong_call_is_refused_in_one_line(script, arguments):
    done = bash(LAUNCH / script, *arguments)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""


def test_demo_runs_every_step_in_order_and_starts_nothing_in_a_dry_run(tmp_path):
    out = tmp_path / "out"
    build, train, evaluate, tables = plan_commands(dry_run(LAUNCH / "demo.sh", "--out", str(out)))
    assert build[:4] == ["build", "phantom", "--out", f"{out}/data"]
    assert train[:5] == ["train", "--config", "configs/phantom.py", "--workdir", str(out)]
    assert f"--config.data.dir={out}/data" in train
    assert evaluate == ["evaluate", "grounding", "retrieval", "zero_shot", "--workdir", str(out), "--reuse", "--quiet"]
    assert tables == ["tables", str(out)]
    assert list(tmp_path.iterdir()) == []


def test_reproduce_runs_every_step_in_order_on_phantoms(tmp_path):
    out = tmp_path / "out"
    commands = plan_commands(dry_run(LAUNCH / "reproduce.sh", "--out", str(out)))
    assert [words[0] for words in commands] == [
        *("build", "train", "evaluate", "figures", "ablate", "tables", "figures", "tables"),
    ]
    build, train, evaluate, figures, ablate, compare, arm_figures, tables = commands
    assert build == ["build", "phantom", "--out", f"{out}/phantoms"]
    assert f"--config.data.dir={out}/phantoms" in train
    assert f"--config.data.dir={out}/phantoms" in ablate
    assert evaluate[1:6] == ["grounding", "retrieval", "zero_shot", "detection", "linear_probe"]
    assert {"--reuse", "--quiet"} <= set(evaluate)
    assert figures[1:3] == ["--workdir", f"{out}/run"]
    runs = [f"{out}/ablation/runs/{arm}/seed_0" for arm in ablate[ablate.index("--arms") + 1].split(",")]
    assert compare == ["tables", runs[0], runs[-1], "--compare"]
    assert arm_figures[2] in runs
    assert tables == ["tables", f"{out}/run"]
    assert list(tmp_path.iterdir()) == []


def test_reproduce_takes_a_configuration_that_lies_beside_the_caller(tmp_path):
    (tmp_path / "my.py").touch()
    train = plan_commands(dry_run(LAUNCH / "reproduce.sh", "--config", "my.py:easy", cwd=tmp_path))[1]
    assert train[:3] == ["train", "--config", f"{tmp_path}/my.py:easy"]


def test_quick_reproduce_is_the_same_path_smaller_and_has_its_own_folder():
    quick, full = (plan_commands(dry_run(LAUNCH / "reproduce.sh", *options)) for options in (["--quick"], []))
    assert [words[0] for words in quick] == [words[0] for words in full]
    assert quick[-1] == ["tables", str(ROOT / "runs" / "reproduce_quick" / "run")]
    assert "--size" in quick[0]


def test_reproduce_scores_each_real_data_set_on_its_tasks(tmp_path):
    options = ["--train-data", "mimic_cxr=my data/mimic", "--config", "configs/plan_r50.py", "--no-ablation"]
    options += ["--data", "ms_cxr=a b", "--data", "rsna=/built/rsna"]
    commands = plan_commands(dry_run(LAUNCH / "reproduce.sh", *options, cwd=tmp_path))
    train, *scored, figures, rsna, _ = commands
    assert train[:3] == ["train", "--config", "configs/plan_r50.py"]
    assert f"--config.data.dir={tmp_path}/my data/mimic" in train
    asked = {words[words.index("--data") + 1]: words[1 : words.index("--workdir")] for words in (*scored, rsna)}
    assert asked == {
        f"{tmp_path}/my data/mimic": ["retrieval"],
        f"{tmp_path}/a b": ["grounding"],
        "/built/rsna": ["zero_shot", "detection", "linear_probe"],
    }
    assert figures[-1].endswith("figures_ms_cxr.html")


def test_demo_writes_into_the_project_unless_told_otherwise(tmp_path):
    commands = plan_commands(dry_run(LAUNCH / "demo.sh", cwd=tmp_path))
    assert commands[-1] == ["tables", str(ROOT / "runs" / "demo")]


def test_quick_demo_is_smaller_and_has_its_own_folder():
    build, train, *_, tables = plan_commands(dry_run(LAUNCH / "demo.sh", "--quick"))
    assert tables == ["tables", str(ROOT / "runs" / "demo_quick")]
    assert build[-2] == "--size"
    assert re.fullmatch(r"--config\.train\.steps=\d+", train[-1])


def test_a_relative_out_is_seen_from_the_callers_folder_and_spaces_survive(tmp_path):
    commands = plan_commands(dry_run(LAUNCH / "demo.sh", "--out", "my runs/a", cwd=tmp_path))
    assert commands[-1] == ["tables", f"{tmp_path}/my runs/a"]
    assert f"--config.data.dir={tmp_path}/my runs/a/data" in commands[1]


@pytest.mark.parametrize("script", OPTIONS)
def test_the_named_environment_is_made_and_used(script, tmp_path):
    python = f"{tmp_path}/my env/bin/python"
    commands = dry_run(LAUNCH / script, cwd=tmp_path, PLAN_VENV="my env")
    make, install, *others = commands
    assert make[-1] == f"{tmp_path}/my env"
    assert python in install
    assert str(ROOT / "requirements.txt") in install
    assert others
    assert {words[1] if words[0] == "exec" else words[0] for words in others} == {python}


def test_an_environment_with_these_requirements_is_taken_as_it_is(tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)
    stamp = tmp_path / ".installed-requirements.txt"
    shutil.copy(ROOT / "requirements.txt", stamp)
    commands = dry_run(LAUNCH / "demo.sh", PLAN_VENV=str(tmp_path))
    assert len(plan_commands(commands)) == len(commands)
    stamp.write_text("jax==0.1\n")
    commands = dry_run(LAUNCH / "demo.sh", PLAN_VENV=str(tmp_path))
    assert len(plan_commands(commands)) == len(commands) - 1


def test_scripts_work_from_a_folder_with_spaces(tmp_path):
    project = tmp_path / "my project"
    shutil.copytree(LAUNCH, project / "launch")
    commands = dry_run(project / "launch" / "demo.sh", cwd=tmp_path)
    assert commands[0][-1] == f"{project}/.venv"
    assert commands[-1][-2:] == ["tables", f"{project}/runs/demo"]


def test_tests_check_format_lint_and_types_before_they_run():
    commands = [words[words.index("-m") + 1 :] for words in dry_run(LAUNCH / "test.sh", "-k", "one or two")[-4:]]
    assert [words[0] for words in commands] == ["ruff", "ruff", "basedpyright", "pytest"]
    assert commands[-1] == [*["pytest", "-n", "auto", "--maxprocesses", "4", "--dist", "loadfile", "-k"], "one or two"]


def test_pythons_that_are_too_old_or_cannot_run_are_passed_over(tmp_path):
    for name, text in {"python3.13": "exit 127", "python3": "exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("bash", "dirname", "basename", "cat"):
        (tools / tool).symlink_to(shutil.which(tool) or tool)
    path = f"{tmp_path}:{tools}"
    none = bash(LAUNCH / "demo.sh", "--dry-run", PATH=path, PLAN_VENV=str(tmp_path / "env"))
    assert none.returncode == 1
    assert "needs Python 3.11, 3.12 or 3.13" in none.stderr
    (tmp_path / "python3.11").symlink_to(sys.executable)
    make, *_ = dry_run(LAUNCH / "demo.sh", PATH=path, PLAN_VENV=str(tmp_path / "env"))
    assert make[0] == str(tmp_path / "python3.11")


@pytest.mark.parametrize("script", DEVICE_OPTIONS)
def test_a_dry_run_starts_nothing_and_names_no_secret_and_no_place_but_the_projects(script, tmp_path):
    world = World(tmp_path)
    programs = ("gcloud", "srun", "sbatch", "scontrol", "nvidia-smi", "tar", "mkdir", "rm")
    for program in programs:
        world.add(program, "exit 1")
    commands = dry_run(LAUNCH / script, **world.environment)
    assert commands
    assert not [words for words in world.calls("python") if words[1] == "-m"]
    assert not [program for program in programs if world.calls(program)]
    words = [word for words in commands for word in words]
    for text in ((LAUNCH / script).read_text(), *words):
        elsewhere = text.replace(str(world.folder), "").replace(str(ROOT), "")
        assert not re.search(r"/(home|root|Users|work|scratch|data)/", elsewhere), text
        assert not re.search(r"token|password|secret|credential|AIza|hf_", elsewhere, re.IGNORECASE), text


def test_the_environment_for_gpus_and_tpus_is_that_of_the_packages_extras(tmp_path):
    world = World(tmp_path)
    for script, extra in (("gpu.sh", "cuda"), ("slurm.sbatch", "cuda"), ("tpu_worker.sh", "tpu")):
        assert not [words for words in dry_run(LAUNCH / script, **world.environment) if "install" in words]
        (tmp_path / "env" / f".installed-{extra}").write_text("jax==0.1\n")
        (install,) = [words for words in dry_run(LAUNCH / script, **world.environment) if "install" in words]
        (tmp_path / "env" / f".installed-{extra}").write_text(f"{EXTRAS[extra][0]}\n")
        assert install[-3:] == ["-r", str(ROOT / "requirements.txt"), *EXTRAS[extra]]


def test_what_training_says_when_it_was_stopped_is_what_the_scripts_look_for():
    _, phrase = SAVED.split(", ")
    assert any(phrase in file.read_text() for file in (ROOT / "plan_jax").rglob("*.py"))
    for script in ("slurm.sbatch", "tpu_worker.sh"):
        assert f", {phrase}$/" in (LAUNCH / script).read_text()


def test_ci_runs_the_tests_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    _, *lines = script.read_text().splitlines()
    assert lines == ['exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../launch/test.sh"']
