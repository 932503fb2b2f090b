"""Is one run better than another? Paired bootstrap over patients of the difference, on the same records."""

import importlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from plan_jax.bootstrap import differences_of
from plan_jax.config import EvaluationConfig
from plan_jax.errors import InputError
from plan_jax.evaluation.progress import with_bar
from plan_jax.evaluation.samples import read_samples
from plan_jax.tables.files import Result, read_results
from plan_jax.tables.model import Column, Table

SEED = 0  # of the resamples
SAME = ("data", "split")  # what the results of two runs must agree in
ROWS = ("record", "key", "patient", "category")  # and what their samples must, as far as they have it
DIFFERENCE, P = Column("difference", "difference", 3), Column("p", "p", 4)
NOTE = (
    "First run less the other on the same records: difference with its 95 % interval and two-sided p by {resamples} "
    "resamples of the patients, p at least {least:g}. Seeds are not resampled: this tells two networks apart, not two "
    "methods."
)


def comparison_tables(runs: Sequence[Path], *, resamples: int = EvaluationConfig.bootstrap) -> list[Table]:
    """Of every results file that the first run and another have in common: the first one's metrics less the other's.

    InputError: fewer than two runs, none in common, or a common one is of other data or other records.
    """
    if len(runs) < 2:
        raise InputError(f"--compare must have at least two runs, got {len(runs)}; name another")
    first, *others = ({(one.task, one.data_set): one for one in read_results(run)} for run in runs)
    note = NOTE.format(resamples=resamples, least=2 / resamples)
    tables = []
    for key, one in first.items():
        rows = []
        for run, results in zip(runs[1:], others, strict=True):
            if key in results:
                rows += [(str(runs[0]), str(run), *row) for row in _differences(one, results[key], resamples)]
        if rows:
            columns = (Column("run", "run"), Column("less", "less"), Column("metric", "metric"), DIFFERENCE, P)
            tables.append(
                Table(" on ".join(filter(None, ("Difference: " + one.task, key[1]))), columns, tuple(rows), (note,))
            )
    if not tables:
        raise InputError(f"--compare must have runs with a task and a data set in common, got none with {runs[0]}")
    return tables


def _differences(one: Result, other: Result, resamples: int) -> list[tuple]:
    """(metric, difference, p) of every metric of the whole; those of single classes would be too many tests."""
    for name in SAME:
        if one.content.get(name) != other.content.get(name):
            raise InputError(
                f"{one.path} and {other.path} must be of the same {name}, got {one.content.get(name)} and "
                f"{other.content.get(name)}; evaluate both on the same data"
            )
    samples, against = read_samples(one.path), read_samples(other.path)
    for name in ROWS:
        if not np.array_equal(samples.get(name, np.zeros(0)), against.get(name, np.zeros(0))):
            raise InputError(
                f"{one.path} and {other.path} must be of the same records, got another {name}; evaluate both again"
            )
    statistics_of = importlib.import_module(f"plan_jax.evaluation.{one.task}").statistics_of
    shown = with_bar(statistics_of(samples), resamples + 1, f"difference in {one.task}", "resample")
    found = differences_of(shown, statistics_of(against), samples["patient"], resamples=resamples, seed=SEED)
    return [(name, row, row["p"]) for name, row in found.items() if not name.startswith("per_")]
