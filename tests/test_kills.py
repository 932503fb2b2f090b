"""A run that is killed again and again at random moments has the bits of a run in one go and leaves nothing behind.

Three kills in every run of the tests. PLAN_JAX_KILLS=50 makes it 50, ten in each phase, those in the compilation before
anything is compiled; that takes a quarter of an hour (`pytest -s` shows how many came in which phase).
"""

import os
import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import filelock
import jax.numpy as jnp
import pytest
from tqdm import tqdm
from train_runs import STEPS, WAIT, Run, assert_same_run, events

from plan_jax.checkpoint import Checkpoints, digest, saved_steps
from plan_jax.config import load_config
from plan_jax.data.text import Tokenizer
from plan_jax.train.workdir import prepare_workdir

KILLS = int(os.environ.get("PLAN_JAX_KILLS", "3"))
MANY = 20  # kills, from which on every phase has its share
# Phase -> what the run tells at its begin ("": any moment will do) and at its end, and the seconds after the begin in
# which a kill comes, unless the end is there before.
PHASES = {
    "step": ("", "step", 0.1),
    "save": ("save", "saved", 0.4),
    "restore": ("restore", "restored", 0.4),
    "start": ("", "restore", 6.0),
    "compile": ("compile", "step", 12.0),
}
MOVING = ("step", "save")  # phases in which the run gets on
FEW = 60  # steps before the end, from which on a kill may come too late to hit one of them


class Killer:
    """Kills a run's main process alone, as a machine short of memory does: those that work for it must follow."""

    def __init__(self, kills: int):
        self._random = random.Random(kills)
        self._left = [list(PHASES)[number % len(PHASES)] for number in range(kills)]
        if kills >= MANY:
            self._random.shuffle(self._left)
            self._left.sort(key=lambda phase: phase != "compile")  # first, while there are no programs yet

    def kill(self, run: Run) -> bool:
        """Kills at a random moment of the next phase. False: the run ended before that."""
        phase, steps = self._next(saved=max(saved_steps(run.workdir), default=0))
        begin, end, seconds = PHASES[phase]
        if not reached(run, lambda told: told.count("step") >= steps):
            return False
        before = told_by(run).count("save")  # those that the steps until here have told of
        if begin and not reached(run, lambda told: told.count(begin) > (before if begin == "save" else 0)):
            return False
        ends, until = told_by(run).count(end), time.monotonic() + seconds * self._random.random()
        if not reached(run, lambda told: time.monotonic() >= until or told.count(end) > ends):
            return False
        run.process.kill()
        if run.process.wait(WAIT) != -signal.SIGKILL:  # it has ended in between
            return False
        self._left.pop(0)
        return True

    def _next(self, saved: int) -> tuple[str, int]:
        """The phase, and the steps that come first: as many as leave some for the kills after it."""
        moving = [number for number, phase in enumerate(self._left) if phase in MOVING]
        if self._left[0] == "restore" and not saved and moving:  # nothing to restore yet
            self._left[0], self._left[moving[0]] = self._left[moving[0]], self._left[0]
        phase = self._left[0]
        if phase not in MOVING:
            return phase, 0
        if saved > STEPS - FEW:
            return self._random.choice(("restore", "start")), 0
        return phase, self._random.randint(1, 2 * (STEPS - FEW - saved) // (len(moving) + 1) + 1)


def told_by(run: Run) -> list[str]:
    return [name for name, *_ in run.events()]


def reached(run: Run, happened: Callable[[list[str]], bool]) -> bool:
    """Waits until it has happened, True, or the run has ended, False."""
    end = time.monotonic() + WAIT
    while not happened(told_by(run)):
        if run.process.poll() is not None:
            return False
        assert time.monotonic() < end, f"nothing came after {told_by(run)[-1:]} in {WAIT} s"
        time.sleep(0.003)
    return True


def phase_of(told: list[str]) -> str:
    """Where a run was that was killed after telling this."""
    if told.count("save") > told.count("saved"):
        return "save"
    phases = {"step": "step", "compile": "compile", "restored": "start", "restore": "restore"}
    return next((phase for name, phase in phases.items() if name in told), "start")


def processes_of(group: int) -> list[int]:
    """The processes of a group that still run (Linux)."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, _, its_group = path.read_text().rpartition(")")[2].split()[:3]
        except OSError:  # has ended
            continue
        if int(its_group) == group and state != "Z":
            found.append(int(path.parent.name))
    return found


def assert_none_left(group: int) -> None:
    end = time.monotonic() + WAIT
    while left := processes_of(group):
        assert time.monotonic() < end, f"processes {left} of a killed run still run after {WAIT} s"
        time.sleep(0.02)


def assert_nothing_left_behind(workdir: Path, compiled: Path) -> None:
    names = [path.relative_to(workdir).as_posix() for path in workdir.rglob("*")]
    assert not [name for name in names if any(word in name.lower() for word in ("tmp", "lock", "partial", "damaged"))]
    for folder in (workdir / "checkpoints").iterdir():
        assert folder.name.isdigit()
        assert (folder / "digest.json").is_file()
    with filelock.FileLock(compiled / ".lockfile", timeout=0):  # it is free
        pass


def assert_only_whole_checkpoints_were_read(workdir: Path) -> None:
    """What a run got from a checkpoint are the bytes that were given to it at that step."""
    given = {(step, digest) for name, _, *about in events(workdir) if name == "save" for step, digest in [about]}
    read = [tuple(about) for name, _, *about in events(workdir) if name == "restored" and about]
    assert read
    assert set(read) <= given


class Life:
    """A run from one start to the next, in which it is killed or ends."""

    def __init__(self, arguments: tuple[str, ...], workdir: Path, compiled: Path, *, killer: Killer | None = None):
        with Run(arguments, workdir, environment={"JAX_COMPILATION_CACHE_DIR": str(compiled)}) as run:
            self.killed = killer is not None and killer.kill(run)
            code, self.out, err = run.end()
        assert code == (-signal.SIGKILL if self.killed else 0), err[-2000:]
        assert not [word for word in ("damaged", "in the way", "Traceback") if word in err], err[-2000:]
        assert_none_left(run.process.pid)
        self.phase = phase_of(told_by(run))


def test_a_run_killed_again_and_again_gives_the_bits_of_a_run_in_one_go_and_leaves_nothing_behind(trained, tmp_path):
    workdir, killer, came = tmp_path / "pieces", Killer(KILLS), Counter()
    compiled = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) if KILLS < MANY else tmp_path / "compiled"
    arguments = (*trained.arguments, "--config.train.checkpoint_every=10")
    with tqdm(total=KILLS, desc="kills") as progress:
        while came.total() < KILLS:
            workers = f"--config.data.workers={int(came.total() % 3 == 2)}"
            life = Life((*arguments, workers), workdir, compiled, killer=killer)
            came[life.phase] += life.killed
            progress.update(life.killed)
            progress.set_postfix(came)
    assert Life(arguments, workdir, compiled).out == f"{workdir}: step {STEPS}, finished\n"
    assert KILLS < MANY or came.keys() | {"step"} == PHASES.keys()  # there are steps during a save too
    assert_only_whole_checkpoints_were_read(workdir)
    assert_nothing_left_behind(workdir, compiled)
    assert_same_run(workdir, trained)


class Killed(BaseException):
    pass


class Cut:
    """Cuts the n-th file that is written, from 0, in the middle, as a kill does."""

    def __init__(self, number: int, monkeypatch):
        self._left = number
        monkeypatch.setattr(Path, "write_text", lambda path, text, **how: self.write(path, text.encode()))
        monkeypatch.setattr(shutil, "copyfile", lambda source, path: self.write(path, Path(source).read_bytes()))

    def write(self, path: Path, content: bytes) -> None:
        path.write_bytes(content if self._left else content[: len(content) // 2])
        if not self._left:
            raise Killed
        self._left -= 1


@pytest.mark.parametrize("number", range(4))
def test_a_kill_while_a_run_starts_leaves_every_file_of_its_directory_whole(number, trained, tmp_path, monkeypatch):
    names = ("config.json", "tokenizer.json", "data_manifest.json", "data_manifests.json")
    for name in names:
        shutil.copy(trained.workdir / name, tmp_path / name)
    tokenizer = Tokenizer.load(tmp_path / "tokenizer.json")
    with monkeypatch.context() as patches:
        Cut(number, patches)
        with pytest.raises(Killed):
            prepare_workdir(tmp_path, trained.config, Path(trained.config.data.dir), tokenizer)
    for name in names[1:]:
        assert (tmp_path / name).read_bytes() == (trained.workdir / name).read_bytes()
    assert load_config(tmp_path / "config.json").seed == trained.config.seed
    prepare_workdir(tmp_path, trained.config, Path(trained.config.data.dir), tokenizer)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)


def test_a_checkpoint_whose_digest_a_kill_cut_gets_it_from_the_run_that_continues(tmp_path):
    parts = {"variables": {"kernel": jnp.arange(4.0)}}
    folder = tmp_path / "checkpoints" / "5"
    with Checkpoints(tmp_path, keep=2) as first:
        first.save(5, parts)
    whole = (folder / digest.FILE).read_bytes()
    (folder / digest.FILE).unlink()
    (folder / f"{digest.FILE}.tmp").write_bytes(whole[:20])
    with Checkpoints(tmp_path, keep=2) as second:
        step, loaded = second.restore_newest(parts)
    assert (step, loaded["variables"]["kernel"].tolist()) == (5, [0, 1, 2, 3])
    assert (folder / digest.FILE).read_bytes() == whole
    assert digest.damage(folder) is None
    assert not (folder / f"{digest.FILE}.tmp").exists()
