"""The report of an ablation: OUT/ablation.json with all figures, ablation.md with the tables, ablation.png."""

import json
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plan_jax import __version__
from plan_jax.ablation.compare import METRICS, PRIOR, Scores, compare
from plan_jax.ablation.study import PHRASES, RESULTS, Study, Trial, finished, speed
from plan_jax.config import config_hash
from plan_jax.errors import InputError
from plan_jax.tables.model import Column, Table
from plan_jax.tables.render import render
from plan_jax.tables.results import METHODS

FIGURES = (
    Column("signed CNR", "cnr_signed", 2),
    Column("pointing", "pointing", 3),
    Column("own above others", "own_above_others", 3),
)
ARM = Column("arm", "arm")
READOUT_NAMES = {"trained": "own map", "round_0": "own map before the rounds", "global_map": "global map"}
PARTS = {"all": "", "with_location": ", with location", "without_location": ", without location"}
NOTES = """
Every figure is the mean over seeds of the macro average over categories; its 95 % interval resamples seeds and patients
jointly, with the same draws for all arms. The arms of a seed began with the same random numbers and saw the same
batches, so differences are paired; p is of the two-sided paired t-test over seeds. With few seeds trust p before the
interval: resampling n seeds makes it too narrow by about sqrt((n - 1) / n). `readout`: for every arm the best of its
maps by its signed CNR on this split: the phrase's own map, the same before the refinement rounds, the map of the global
similarity; choosing on what is reported favours an arm a little, `global_only` most. `inverted`: categories whose mean
signed CNR is negative, on the arm's worst seed. `time`: of training, relative to the first arm; ARM@time is the arm
trained for the first arm's time instead of its steps.

![dots: seeds; bars: means with intervals; line: the prior](ablation.png)
"""


def report(study: Study) -> list[Table]:
    """Writes the report of the finished runs into OUT and returns its tables.

    An arm of which fewer seeds are finished is compared on the seeds that both have.

    Raises:
        InputError: no run of the reference is finished, or scores are damaged or of different data.
    """
    trials = [*study.trials(), *study.equal_time_trials()]
    done = [trial for trial in trials if finished(trial)]
    if all(trial.arm != study.reference for trial in done):
        raise InputError(
            f"{study.out} must hold a finished run of {study.reference} scored on {study.split}, got none; "
            "run the same command without --report-only"
        )
    names = [name for arm in study.arms for name in (arm, f"{arm}@time")]
    by_arm = {name: of_arm for name in names if (of_arm := [trial for trial in done if trial.arm == name])}
    arms = {name: {trial.seed: read_scores(trial) for trial in of_arm} for name, of_arm in by_arm.items()}
    result = {
        "settings": _settings(study, done) | {"runs_finished": len(done), "runs": len(trials)},
        **compare(arms, study.reference, resamples=study.base.evaluation.bootstrap),
    }
    seconds = {name: _seconds(of_arm) for name, of_arm in by_arm.items()}
    reference = seconds[study.reference]
    for name, of_arm in by_arm.items():
        own = seconds[name]
        result["arms"][name]["steps"] = of_arm[0].config.train.steps
        result["arms"][name]["time"] = own / reference if own and reference else None
    tables = tables_of(result)
    (study.out / "ablation.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n")
    (study.out / "ablation.md").write_text(render(tables, format="md") + NOTES)
    save_plot(study.out / "ablation.png", result)
    return tables


def read_scores(trial: Trial) -> Scores:
    """The scores of every phrase in a run. InputError for a file that is damaged or lacks some."""
    path = trial.workdir / PHRASES
    try:
        with path.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            scores = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} must be as evaluate wrote it, got {error!r}; remove it and run again") from error
    methods = [f"{method}/{metric}" for method in ("trained", PRIOR) for metric in METRICS]
    missing = [name for name in ("patient", "category", "located", *methods) if name not in scores]
    if missing:
        raise InputError(f"{path} must hold {missing[0]}, got no such scores; remove it and run again")
    for name in (name for name in scores if name.endswith(("/cnr_signed", "/pointing"))):
        if not np.isfinite(scores[name]).all():
            raise InputError(f"{path} must hold finite {name}, got NaN or infinity; remove it and run again")
    return scores


def tables_of(result: dict) -> list[Table]:
    """Arms; differences to the reference and to the prior; what the rounds do; the read-out by competition."""
    tables = (_arms_table, _differences_table, _above_prior_table, _rounds_table, _competition_table)
    return [made for make in tables if (made := make(result)).rows]


def save_plot(path: Path, result: dict) -> None:
    """Writes a PNG of signed CNR and pointing: per arm a dot for each seed, mean and interval; a line for the prior."""
    from matplotlib.figure import Figure

    names = list(result["arms"])
    figure = Figure(figsize=(10, 1.6 + 0.45 * len(names)), layout="constrained")
    for axes, column in zip(figure.subplots(1, 2, sharey=True), FIGURES[:2], strict=True):
        axes.axvline(result["prior"][column.name]["value"], color="0.5", linestyle="--", label=METHODS[PRIOR])
        for place, name in enumerate(names):
            found = result["arms"][name][column.name]
            axes.plot(found["per_seed"], [place] * len(found["per_seed"]), "o", color="tab:orange", alpha=0.6, ms=5)
            axes.plot([found["low"], found["high"]], [place + 0.22] * 2, color="tab:blue", linewidth=2)
            axes.plot(found["value"], place + 0.22, "D", color="tab:blue", ms=6)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel(column.heading)
        axes.grid(axis="x", alpha=0.3)
    figure.axes[0].invert_yaxis()
    figure.axes[0].legend(loc="best", fontsize=8)
    figure.suptitle(f"{result['settings']['split']}: seeds (dots), mean and 95 % interval (below them)", fontsize=10)
    figure.savefig(path, format="png", dpi=120)


def _arms_table(result: dict) -> Table:
    """All arms; the last row is the prior."""
    settings = result["settings"]
    after = (Column("inverted", "inverted", 0), Column("readout", "readout"), Column("seeds", "seeds", 0))
    columns = (ARM, *FIGURES, *after, Column("steps", "steps", 0), Column("time", "time", 2))
    rows = [
        (
            *(name, *_cells(row), row["inverted"], READOUT_NAMES[row["readout"]]),
            *(len(row["seeds"]), row["steps"], row["time"]),
        )
        for name, row in result["arms"].items()
    ]
    prior = (METHODS[PRIOR], *_cells(result["prior"]), None, "", None, None, None)
    count = f"{settings['runs_finished']} of {settings['runs']} runs"
    title = f"Grounding on {settings['split']}: mean over seeds, 95 % intervals over seeds and patients ({count})"
    return Table(title, columns, (*rows, prior))


def _differences_table(result: dict) -> Table:
    """The seeds that both have, and p-values."""
    columns = [c for column in FIGURES for c in (column, Column("p", f"{column.name}_p"))]
    rows = []
    for name, row in result["arms"].items():
        if difference := row["difference"]:
            cells = [cell for metric in METRICS for cell in (difference[metric], _p(difference[metric]))]
            rows.append((name, *cells, len(difference["seeds"])))
    title = f"Difference to {result['settings']['reference']} on the same seeds; p: paired t-test over seeds"
    return Table(title, (ARM, *columns, Column("seeds", "seeds", 0)), tuple(rows))


def _above_prior_table(result: dict) -> Table:
    """Signed CNR and pointing, for all phrases and by location words."""
    cells = [(part, column) for part in PARTS for column in FIGURES[:2]]
    columns = [Column(column.heading + PARTS[part], f"{column.name}_{part}", column.digits) for part, column in cells]
    rows = tuple(
        (name, *(row["above_prior"][part][column.name] for part, column in cells))
        for name, row in result["arms"].items()
    )
    return Table(f"Difference to the {METHODS[PRIOR]}", (ARM, *columns), rows)


def _rounds_table(result: dict) -> Table:
    rows = tuple((name, *_cells(row["rounds"])) for name, row in result["arms"].items() if row["rounds"])
    return Table(
        "What the rounds do to the map of the same network: after all of them less before", (ARM, *FIGURES), rows
    )


def _competition_table(result: dict) -> Table:
    rows = tuple((name, *_cells(row["competition"])) for name, row in result["arms"].items() if row["competition"])
    title = "Read-out by competition with the prompts of the other findings (needs their list)"
    return Table(title, (ARM, *FIGURES), rows)


def _p(difference: dict | None) -> str:
    p = None if difference is None else difference["p"]
    return "" if p is None else f"{p:.4f}" if p >= 1e-4 else "<0.0001"


def _cells(figures: dict) -> tuple:
    return tuple(figures[metric] for metric in METRICS)


def _seconds(trials: Sequence[Trial]) -> float | None:
    """Time to train one run, up to the factor batch size; the same run can serve two arms."""
    images_per_second = speed(trials)
    return trials[0].config.train.steps / images_per_second if images_per_second else None


def _settings(study: Study, done: Sequence[Trial]) -> dict:
    """What was compared. InputError for runs on different data."""
    data = {json.loads((trial.workdir / RESULTS).read_text())["data"]: trial.name for trial in done}
    if len(data) > 1:
        raise InputError(
            f"all runs in {study.out} must be on the same data, got other data in {' and '.join(data.values())}; "
            "use another --out for other data"
        )
    return {
        "reference": study.reference,
        "split": study.split,
        "seeds": study.seeds,
        "steps": study.base.train.steps,
        "bootstrap": study.base.evaluation.bootstrap,
        "data": next(iter(data)),
        "config": config_hash(study.base),
        "version": __version__,
    }
