import json

import numpy as np
import pytest

from plan_jax.__main__ import main
from plan_jax.bootstrap import interval
from plan_jax.errors import InputError
from plan_jax.evaluation.grounding import statistics_of
from plan_jax.evaluation.significance import comparison_tables

N = 60
PATIENT = np.array([f"p{n // 2}" for n in range(N)])
CATEGORY = np.array(["nodule", "cavity", "nodule"] * (N // 3))
ABOUT = {"data": "a", "split": "test", "data_set": "phantom"}


def run_with(path, pointing, *, about=ABOUT, patient=PATIENT, task="grounding"):
    """A run as `evaluate grounding` leaves it, as far as the comparison reads it."""
    (path / "results").mkdir(parents=True)
    (path / "results" / f"{task}.json").write_text(json.dumps(about))
    own = np.where(np.arange(N) % 4, pointing, np.nan)  # every fourth image shows nothing else
    columns = {"record": np.arange(N), "patient": patient, "category": CATEGORY}
    columns |= {"trained/pointing": pointing, "trained/own_above_others": own, "chance/pointing": pointing * 0}
    np.savez(path / "results" / f"{task}_phrases.npz", **columns)
    return path


@pytest.fixture
def two(tmp_path):
    rng = np.random.default_rng(0)
    worse = rng.random(N)
    return run_with(tmp_path / "a", worse + 0.1 + rng.normal(0, 0.3, N)), run_with(tmp_path / "b", worse)


def samples_of(run):
    with np.load(run / "results" / "grounding_phrases.npz") as file:
        return dict(file)


def test_the_statistics_of_all_phrases_are_the_macro_averages_of_the_results(two):
    samples = samples_of(two[0])
    found = statistics_of(samples)(np.arange(N))
    assert found.keys() == {"pointing", "own_above_others"}  # of the trained network alone
    for name, value in found.items():
        values = samples[f"trained/{name}"]
        known = np.isfinite(values)
        expected = interval(values[known], PATIENT[known], classes=CATEGORY[known], resamples=2, seed=0)["value"]
        assert value == pytest.approx(expected)


def test_a_phrase_drawn_twice_counts_twice_and_a_class_that_is_not_drawn_is_left_out():
    samples = {"category": np.array(["a", "a", "b"]), "trained/pointing": np.array([1.0, 0.0, 0.5])}
    statistics = statistics_of(samples)
    assert statistics(np.array([0, 0, 1, 2])) == {"pointing": pytest.approx((2 / 3 + 0.5) / 2)}
    assert statistics(np.array([2])) == {"pointing": 0.5}
    assert statistics_of({**samples, "trained/pointing": np.full(3, np.nan)})(np.arange(3)) == {}


def test_the_difference_is_paired_by_patient(two):
    (table,) = comparison_tables(two, resamples=400)
    rows = {row[2]: row[3:] for row in table.rows}
    difference, p = rows["pointing"]
    samples = [samples_of(run)["trained/pointing"] for run in two]
    expected = interval(samples[0] - samples[1], PATIENT, classes=CATEGORY, resamples=400, seed=0)
    assert {name: difference[name] for name in expected} == pytest.approx(expected)
    assert 2 / 400 <= p <= 1


def test_a_run_compared_with_itself_differs_by_nothing(two):
    (table,) = comparison_tables([two[0], two[0]], resamples=50)
    for _, _, _, difference, p in table.rows:
        assert (difference["value"], difference["low"], difference["high"], p) == (0, 0, 0, 1)


def test_a_better_run_is_told_from_a_worse_one(two, tmp_path):
    best = run_with(tmp_path / "best", samples_of(two[1])["trained/pointing"] + 0.2)
    (table,) = comparison_tables([best, two[1]], resamples=200)
    assert [(round(row[3]["low"], 6), row[4]) for row in table.rows] == [(0.2, 0.01)] * 2


def test_runs_of_other_data_other_splits_or_other_records_are_refused(two, tmp_path):
    values = samples_of(two[0])["trained/pointing"]
    for name, about in {"data": ABOUT | {"data": "b"}, "split": ABOUT | {"split": "tune"}}.items():
        with pytest.raises(InputError, match=f"must be of the same {name}"):
            comparison_tables([two[0], run_with(tmp_path / name, values, about=about)])
    with pytest.raises(InputError, match="same records, got another patient"):
        comparison_tables([two[0], run_with(tmp_path / "others", values, patient=PATIENT[::-1])])
    with pytest.raises(InputError, match="in common"):
        comparison_tables([two[0], run_with(tmp_path / "openi", values, about=ABOUT | {"data_set": "openi"})])
    with pytest.raises(InputError, match="at least two runs"):
        comparison_tables([two[0]])


@pytest.mark.parametrize("damage", [None, b"", b"PK"])
def test_missing_or_damaged_scores_are_named(damage, two):
    path = two[1] / "results" / "grounding_phrases.npz"
    path.unlink() if damage is None else path.write_bytes(damage)
    with pytest.raises(InputError, match=r"grounding_phrases\.npz must be as evaluate wrote it"):
        comparison_tables(two)


def test_the_command_prints_the_difference_and_p(two, capsys):
    assert main(["tables", *map(str, two), "--compare", "--format", "md"]) == 0
    printed, progress = capsys.readouterr()
    assert "1001/1001" in progress
    assert printed.startswith("**Difference: grounding on phantom**")
    assert "| pointing | 0." in printed
    capsys.readouterr()
    assert main(["tables", str(two[0]), "--compare"]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
