"""One run of an ablation as a process of its own: `python -m plan_jax.ablation.child`, which reads its run from stdin.

Its stdout and stderr go to RUN/log.txt. When stdin closes, because the parent stops or is killed, the run saves and
ends; it never outlives the parent, so a second start finds no one else in its folder.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

from ml_collections import ConfigDict

from plan_jax.ablation.places import Place
from plan_jax.ablation.study import PHRASES, Trial
from plan_jax.config import freeze
from plan_jax.errors import InputError
from plan_jax.evaluation.run import Subject, evaluate
from plan_jax.train.loop import fit

LOG = "log.txt"
STOP_POLL = 0.2  # seconds between looks at whether to stop
TRACEBACK = "Traceback (most recent call last)"


@dataclasses.dataclass(frozen=True)
class Failure:
    """A run that did not come to its end, and why. `wrong_input`: a person can mend it (exit code 2)."""

    name: str
    reason: str
    wrong_input: bool = False


def run_child(trial: Trial, place: Place, stop: threading.Event) -> Failure | None:
    """Trains a run to its end and scores it in a process in `place`; waits for it, and has it save and end on `stop`.

    Must be called in a thread of its own, which is pinned to the place's cores.
    """
    if place.cores:
        os.sched_setaffinity(0, place.cores)  # of this thread; the child inherits it before it imports anything
    trial.workdir.mkdir(parents=True, exist_ok=True)
    log = trial.workdir / LOG
    before = log.stat().st_size if log.exists() else 0
    with log.open("ab") as output:
        code = _run(_message(trial), output, dict(place.environment), stop)
    if code == 0 and (trial.workdir / PHRASES).is_file():
        return None
    with log.open("rb") as file:
        file.seek(before)
        written = file.read().decode(errors="replace")
    reason, wrong_input = why(code, written)
    return Failure(trial.name, f"{reason} (see {log})", wrong_input)


def _run(message: bytes, output, environment: dict[str, str], stop: threading.Event) -> int:
    """The exit code of a child."""
    here = str(Path(__file__).parents[2])  # the same package, from whatever current directory
    path = os.pathsep.join(filter(None, [here, os.environ.get("PYTHONPATH")]))
    child = subprocess.Popen(
        [sys.executable, "-m", __spec__.name],
        stdin=subprocess.PIPE,
        stdout=output,
        stderr=output,
        env=os.environ | {"PYTHONPATH": path} | environment,
    )
    assert child.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # it died at once: its log says why
        child.stdin.write(message)
        child.stdin.flush()
        while child.poll() is None and not stop.wait(STOP_POLL):
            pass
    with contextlib.suppress(BrokenPipeError):
        child.stdin.close()
    return child.wait()


def why(code: int, written: str) -> tuple[str, bool]:
    """The reason of a process's end from its exit code and what it wrote, and whether that is wrong input."""
    if code < 0:
        return f"ended by {signal.Signals(-code).name}", False
    if code == 0:
        return f"scoring wrote no {PHRASES}", False
    _, trace, after = written.rpartition(TRACEBACK)
    lines = [line for line in after.splitlines() if line.strip()]
    if not trace:
        return (lines[-1] if lines else f"ended with exit code {code} and wrote nothing"), False
    raised = next((line for line in lines[1:] if not line.startswith(" ")), lines[-1])  # what follows the frames
    kind, _, message = raised.partition(": ")
    wrong_input = kind == f"{InputError.__module__}.{InputError.__name__}"
    return message if wrong_input else raised, wrong_input


def _message(trial: Trial) -> bytes:
    run = {"config": dataclasses.asdict(trial.config), "workdir": str(trial.workdir), "split": trial.split}
    return json.dumps(run).encode() + b"\n"


def main() -> None:
    """What the child does. An error ends it with a traceback in its log, from which the parent reads the reason."""
    run = json.loads(sys.stdin.readline())
    threading.Thread(target=_stop_with_parent, daemon=True).start()
    config, workdir = freeze(ConfigDict(run["config"])), Path(run["workdir"])
    state = fit(config, workdir)
    if int(state.step) < config.train.steps:
        sys.exit(f"stopped and saved at step {int(state.step)}; the same command continues")
    evaluate("grounding", workdir, Subject(split=run["split"]), reuse=(workdir / PHRASES).is_file())


def _stop_with_parent() -> None:
    """Asks this process to save and end when the parent closes its end of stdin, or dies."""
    os.read(sys.stdin.fileno(), 1)  # not sys.stdin.read, whose lock would be held when the interpreter ends
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main()
