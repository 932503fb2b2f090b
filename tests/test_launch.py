"""The shell commands: checked by shellcheck, and what they would run. The demo itself is run elsewhere."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
OPTIONS = {
    "demo.sh": ("--quick", "--out", "--dry-run", "--help"),
    "reproduce.sh": ("--quick", "--out", "--train-data", "--config", "--data", "--no-ablation", "--dry-run", "--help"),
    "test.sh": ("--dry-run", "--help"),
}


def bash(script: Path, *arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(script), *arguments]
    kept = {name: value for name, value in os.environ.items() if name != "PLAN_VENV"}
    return subprocess.run(command, cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False)


def dry_run(script: Path, *arguments: str, cwd: Path = ROOT, **environment: str) -> list[list[str]]:
    """The commands that the script would run, split into words as the shell would."""
    done = bash(script, "--dry-run", *arguments, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if line and not line.startswith("==")]


def plan_commands(commands: list[list[str]]) -> list[list[str]]:
    """Of these the ones that run plan_jax, without `PYTHON -m plan_jax`."""
    return [words[3:] for words in commands if words[1:3] == ["-m", "plan_jax"]]


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which(
        "shellcheck", path=os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    )
    assert shellcheck, "install tests/requirements.txt"
    scripts = [*sorted(LAUNCH.glob("*.sh")), ROOT / ".ci" / "run"]
    done = subprocess.run([shellcheck, "-x", "-P", "SCRIPTDIR", *scripts], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("script", OPTIONS)
def test_help_names_the_options_and_needs_no_environment(script, tmp_path):
    done = bash(LAUNCH / script, "--help", cwd=tmp_path, PATH="/usr/bin:/bin", HOME="/nonexistent")
    assert done.returncode == 0, done.stderr
    assert [option for option in (*OPTIONS[script], "PLAN_VENV") if option not in done.stdout] == []


@pytest.mark.parametrize(
    ("script", "arguments"),
    [
        *(("demo.sh", wrong) for wrong in (["--fast"], ["--out"], ["--out", ""], ["runs/x"])),
        *(("reproduce.sh", ["--data", wrong]) for wrong in ("", "ms_cxr", "=x", "ms_cxr=", "nothing=x")),
        ("reproduce.sh", ["--train-data"]),
        ("reproduce.sh", ["--config"]),
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


def test_ci_runs_the_tests_and_nothing_else():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    _, *lines = script.read_text().splitlines()
    assert lines == ['exec bash "$(dirname -- "${BASH_SOURCE[0]}")/../launch/test.sh"']
