"""How tests run the shell commands of launch/, with the programs around them faked."""

import os
import shlex
import shutil
import subprocess
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
LAUNCH = ROOT / "launch"
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
SAVED = "step 7, saved; the same command continues"
FINISHED = "step 9, finished"
# Answers as an environment with JAX does: numbers of GPUs, then training, which the test writes.
PYTHON = 'if [[ "$1" == -c ]]; then case "$2" in *gpu*) echo 0,1,2,3 ;; esac; exit 0; fi; exec bash "$TRAINING" "$@"'


def bash(script: Path, *arguments: str, cwd: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(script), *arguments]
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PLAN_VENV", "SLURM_", "XLA_"))}
    return subprocess.run(
        command, cwd=cwd, env=kept | environment, capture_output=True, text=True, check=False, timeout=60
    )


def dry_run(script: Path, *arguments: str, cwd: Path = ROOT, **environment: str) -> list[list[str]]:
    """The commands that the script would run, split into words as the shell would."""
    done = bash(script, "--dry-run", *arguments, cwd=cwd, **environment)
    assert done.returncode == 0, done.stderr
    return [shlex.split(line) for line in done.stdout.splitlines() if line and not line.startswith("==")]


def plan_commands(commands: list[list[str]]) -> list[list[str]]:
    """Of these the ones that run plan_jax, without `PYTHON -m plan_jax`."""
    return [words[3:] for words in commands if words[1:3] == ["-m", "plan_jax"]]


class World:
    """Fake programs in a folder that stands first on PATH, each of which notes how it was called."""

    def __init__(self, folder: Path):
        self.folder, self.log = folder, folder / "calls"
        (folder / "bin").mkdir()
        self.log.touch()
        environment = folder / "env"
        (environment / "bin").mkdir(parents=True)
        self.add(environment / "bin" / "python", PYTHON)
        shutil.copy(ROOT / "requirements.txt", environment / ".installed-requirements.txt")
        for extra in ("cuda", "tpu"):
            (environment / f".installed-{extra}").write_text(f"{EXTRAS[extra][0]}\n")
        self.environment = {
            "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
            "PLAN_VENV": str(environment),
            "TRAINING": str(folder / "training.sh"),
            "CLOUD": str(folder / "cloud"),
            "TMPDIR": str(folder),
        }

    def add(self, path: Path | str, text: str) -> None:
        path = self.folder / "bin" / path
        # In one write, as several programs may run at once.
        note = f'echo "$(printf \'%q \' {path.name} "$@")" >>{shlex.quote(str(self.log))}'
        path.write_text(f"#!/usr/bin/env bash\n{note}\n{text}\n")
        path.chmod(0o755)

    def training(self, text: str) -> None:
        (self.folder / "training.sh").write_text(text)

    def run(self, script: Path, *arguments: str, cwd: Path = ROOT, **more: str) -> subprocess.CompletedProcess[str]:
        return bash(script, *arguments, cwd=cwd, **self.environment | more)

    def calls(self, name: str) -> list[list[str]]:
        return [words for words in map(shlex.split, self.log.read_text().splitlines()) if words[0] == name]

    def trainings(self) -> list[list[str]]:
        return [words[4:] for words in self.calls("python") if words[1:4] == ["-m", "plan_jax", "train"]]

    def until_term(self) -> None:
        """Training runs until SIGTERM, upon which it says that it has saved."""
        said = f"{self.folder}: {SAVED}"
        self.training(f'trap \'echo "{said}"; exit 0\' TERM; echo $$ >"$CLOUD.pid"; while :; do sleep 0.05; done')

    def pid_of_training(self) -> int:
        """Waits for the training of `until_term`."""
        pid = self.folder / "cloud.pid"
        deadline = time.monotonic() + 20
        while not (pid.exists() and pid.read_text().endswith("\n")):
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)
        number = int(pid.read_text())
        pid.unlink()
        return number
