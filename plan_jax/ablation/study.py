"""What an ablation trains: one run per arm and seed. Which runs are finished, how fast they were, and the steps that
take equal time.

`config.seed` seeds both the initial parameters and the order of the data, so the arms of one seed see the same batches
and their differences are paired.
"""

import dataclasses
import json
import statistics
from collections.abc import Iterable
from pathlib import Path

from plan_jax import __version__
from plan_jax.ablation.arms import arm_config
from plan_jax.config import Config, config_hash, load_config
from plan_jax.errors import InputError
from plan_jax.train.workdir import differing_fields

RESULTS = Path("results") / "grounding.json"
PHRASES = Path("results") / "grounding_phrases.npz"
EQUAL_TIME = "equal_time.json"
SET_BY_TRAINING = ("data.dir", "text_encoder.vocab_size")


@dataclasses.dataclass(frozen=True)
class Trial:
    """One run. `arm` names its row in the report: an arm, or ARM@time for its run of equal time."""

    arm: str
    seed: int
    config: Config
    workdir: Path
    split: str  # on which it is scored

    @property
    def name(self) -> str:
        """As messages call it."""
        return f"{self.arm}/seed_{self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """The arms and seeds of one comparison.

    Attributes:
        base: the configuration that every arm starts from.
        arms: names in `plan_jax.ablation.arms.ARMS`; the first one is the reference.
        seeds: how many, from 0 on.
        out: the folder of the runs and of the report.
        split: where the runs are scored. Choices are made on `tune`, so that `test` stays unseen.
        size: number of images of the phantom that is built in `out` where `base.data.dir` is empty; None: the default.
    InputError: no or unknown or repeated arms, or no seeds.
    """

    base: Config
    arms: tuple[str, ...]
    seeds: int
    out: Path
    split: str = "test"
    size: int | None = None

    def __post_init__(self):
        if not self.arms or len(set(self.arms)) < len(self.arms):
            raise InputError(f"--arms must name different arms, got {','.join(self.arms)!r}; name each one once")
        if self.seeds < 1:
            raise InputError(f"--seeds must be at least 1, got {self.seeds}; raise it")
        for arm in self.arms:
            arm_config(self.base, arm)

    @property
    def reference(self) -> str:
        """The arm that the others are compared with."""
        return self.arms[0]

    def trials(self) -> list[Trial]:
        """The runs of equal steps, seed by seed, so that an early look sees all arms."""
        steps = self.base.train.steps
        return [self._trial(arm, seed, arm=arm, steps=steps) for seed in range(self.seeds) for arm in self.arms]

    def equal_time_trials(self) -> list[Trial]:
        """The runs of equal time, of the arms whose steps have been chosen.

        Where the chosen steps are those of the first runs, the first run serves for both.
        """
        steps, base = chosen_steps(self), self.base.train.steps
        return [
            self._trial(f"{arm}@time" if steps[arm] != base else arm, seed, arm=arm, steps=steps[arm], time=True)
            for seed in range(self.seeds)
            for arm in self.arms
            if arm in steps
        ]

    def _trial(self, folder: str, seed: int, *, arm: str, steps: int, time: bool = False) -> Trial:
        config = arm_config(self.base, arm)
        config = dataclasses.replace(config, seed=seed, train=dataclasses.replace(config.train, steps=steps))
        workdir = self.out / "runs" / folder / f"seed_{seed}"
        return Trial(f"{arm}@time" if time else arm, seed, config, workdir, self.split)


def finished(trial: Trial, *, data: str | None = None) -> bool:
    """Whether the run is trained to its end and scored, with this configuration, on this split.

    Args:
        trial: the run.
        data: hash of the data's manifest. Given, the scores must also be of this data and of this version.
    """
    try:
        saved = load_config(trial.workdir / "config.json")
        results = json.loads((trial.workdir / RESULTS).read_text())
    except (OSError, ValueError):  # not there, or cut off: the run has to say what is wrong
        return False
    others = [name for name, *_ in differing_fields(saved, trial.config) if name not in SET_BY_TRAINING]
    about = {"step": trial.config.train.steps, "split": trial.split, "config": config_hash(saved)}
    about |= {} if data is None else {"data": data, "version": __version__}
    if others or not isinstance(results, dict):
        return False
    return about.items() <= results.items() and (trial.workdir / PHRASES).is_file()


def speed(trials: Iterable[Trial]) -> float | None:
    """Median images per second over finished runs, without each run's first reading, which holds the compilation.

    None where no run was read twice.
    """
    logs = [(trial.workdir / "metrics.jsonl").read_text().splitlines() for trial in trials if finished(trial)]
    readings = [json.loads(line)["images_per_second"] for lines in logs for line in lines[1:]]
    return statistics.median(readings) if readings else None


def scaled_steps(steps: int, ratio: float, *, multiple: int) -> int:
    """`ratio` times the steps, rounded to a multiple, at least one multiple."""
    return max(1, round(steps * ratio / multiple)) * multiple


def chosen_steps(study: Study) -> dict[str, int]:
    """Arm -> steps that take the reference's time, as far as they have been chosen (OUT/equal_time.json)."""
    return {arm: row["steps"] for arm, row in _equal_time(study).items()}


def choose_steps(study: Study) -> None:
    """Adds to OUT/equal_time.json the arms with finished runs; what was chosen once stays, so that runs can resume.

    An arm's steps are those of the reference times the ratio of their speeds, rounded to `train.log_every`.
    """
    trials, train = study.trials(), study.base.train
    speeds = {arm: speed(trial for trial in trials if trial.arm == arm) for arm in study.arms}
    reference, chosen = speeds.pop(study.reference), _equal_time(study)
    for arm, own in speeds.items():
        if arm not in chosen and reference and own:
            steps = scaled_steps(train.steps, own / reference, multiple=train.log_every)
            chosen[arm] = {"steps": steps, "images_per_second": own, "images_per_second_of_reference": reference}
    partial = study.out / f"{EQUAL_TIME}.tmp"
    partial.write_text(json.dumps({"reference": study.reference, "arms": chosen}, indent=2) + "\n")
    partial.replace(study.out / EQUAL_TIME)


def _equal_time(study: Study) -> dict[str, dict]:
    """Arm -> its row in OUT/equal_time.json."""
    path = study.out / EQUAL_TIME
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text())
        reference, rows = (
            found["reference"],
            {arm: dict(row, steps=int(row["steps"])) for arm, row in found["arms"].items()},
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} must be as an ablation wrote it, got {error!r}; restore or remove it") from error
    if reference != study.reference:
        raise InputError(
            f"the first of --arms must stay {reference}, whose time {path} holds, got {study.reference}; "
            "name it first or use another --out"
        )
    return rows
