"""The ablation: trains and scores what is not finished, side by side where the machine allows, then reports."""

import dataclasses
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait

from tqdm import tqdm

from plan_jax.ablation.child import Failure, run_child
from plan_jax.ablation.places import Place, find_places
from plan_jax.ablation.report import report
from plan_jax.ablation.study import Study, Trial, choose_steps, finished
from plan_jax.data.build import build
from plan_jax.data.records import manifest_hash
from plan_jax.errors import InputError
from plan_jax.tables.model import Table

Runner = Callable[[Trial, Place, threading.Event], Failure | None]


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The tables of what is finished (none before a run of the reference is), and the runs that failed."""

    tables: list[Table]
    failures: list[Failure]

    @property
    def exit_code(self) -> int:
        """0 if no run failed, 2 if all that failed did so on wrong input, else 1."""
        if not self.failures:
            return 0
        return 2 if all(failure.wrong_input for failure in self.failures) else 1


def ablate(study: Study, *, jobs: int | None = None, equal_time: bool = False, report_only: bool = False) -> Outcome:
    """Runs what is not finished and writes OUT/ablation.json, .md and .png from all that is.

    A run that fails is named in the outcome while the others go on. Ctrl-C has all runs save; the same call continues.

    Args:
        study: what is compared.
        jobs: runs side by side; by default one per core, or one per GPU.
        equal_time: afterwards also train every other arm for the time, not the steps, of the first one.
        report_only: train nothing, report what is finished.

    Raises:
        InputError: the data or the options are unusable, or there is nothing to report with `report_only`.
    """
    if report_only:
        return Outcome(report(study), [])
    train = study.base.train
    if equal_time and train.steps <= train.log_every:
        raise InputError(
            f"train.log_every must be below train.steps so that speeds are known, got {train.log_every} and "
            f"{train.steps}; lower train.log_every"
        )
    study = with_data(study)
    failures = run_study(study, find_places(jobs), equal_time=equal_time)
    known = any(finished(trial) for trial in study.trials() if trial.arm == study.reference)
    return Outcome(report(study) if known else [], failures)


def with_data(study: Study) -> Study:
    """The study with a data folder: the configuration's, or a phantom built once in OUT/data."""
    if study.base.data.dir:
        return study
    folder = study.out / "data"
    build("phantom", out=folder, level=study.base.data.level, size=study.size)
    data = dataclasses.replace(study.base.data, dir=str(folder.resolve()))
    return dataclasses.replace(study, base=dataclasses.replace(study.base, data=data))


def run_study(
    study: Study, places: Sequence[Place], *, equal_time: bool = False, runner: Runner = run_child
) -> list[Failure]:
    """All runs that are not finished: those of equal steps, then, if asked for, those of equal time."""
    data = manifest_hash(study.base.data.dir)
    total = study.seeds * (len(study.arms) + equal_time * (len(study.arms) - 1))
    first = study.trials()
    with tqdm(total=total, desc="ablate", unit="run", smoothing=0, dynamic_ncols=True, file=sys.stderr) as bar:
        failures = _run_all(first, places, runner, data=data, bar=bar)
        if equal_time:
            choose_steps(study)
            tried = {trial.workdir for trial in first}  # an arm as fast as the reference needs no other runs
            then = [trial for trial in study.equal_time_trials() if trial.workdir not in tried]
            bar.total = len(first) + len(then)
            failures += _run_all(then, places, runner, data=data, bar=bar)
    return failures


def _run_all(
    trials: Sequence[Trial], places: Sequence[Place], runner: Runner, *, data: str, bar: tqdm
) -> list[Failure]:
    """Those of the runs that are not finished, one in each place at a time."""
    free: queue.SimpleQueue[Place] = queue.SimpleQueue()
    for place in places:
        free.put(place)
    stop = threading.Event()

    def in_free_place(trial: Trial) -> Failure | None:
        place = free.get()
        try:
            return None if stop.is_set() else runner(trial, place, stop)
        except OSError as error:
            return Failure(trial.name, f"{type(error).__name__}: {error}")
        finally:
            free.put(place)

    waiting = [trial for trial in trials if not finished(trial, data=data)]
    bar.initial += len(trials) - len(waiting)  # they take no time: what is left is reckoned without them
    bar.update(len(trials) - len(waiting))
    with ThreadPoolExecutor(len(places)) as pool:
        futures = [pool.submit(in_free_place, trial) for trial in waiting]
        try:
            return _collected(futures, bar)
        except KeyboardInterrupt:
            bar.write("stopping: the runs save where they are; the same command continues", file=sys.stderr)
            raise
        finally:
            stop.set()  # and the pool waits for its threads


def _collected(futures: Sequence[Future[Failure | None]], bar: tqdm) -> list[Failure]:
    """The failures among the runs, in the order of the runs; each is shown when it happens."""
    left = set(futures)
    while left:
        done, left = wait(left, timeout=1.0, return_when=FIRST_COMPLETED)
        for future in done:
            if failure := future.result():
                bar.write(f"{failure.name} failed: {failure.reason}", file=sys.stderr)
            bar.update()
        if sys.stderr.isatty():
            bar.refresh()  # its clock goes on
    return [failure for future in futures if (failure := future.result())]
