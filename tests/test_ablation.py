import dataclasses
import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import CONFIG, TINY
from scipy.stats import ttest_rel

from plan_jax import __version__
from plan_jax.ablation import child, places, runs
from plan_jax.ablation.arms import ARMS, arm_config
from plan_jax.ablation.child import Failure, run_child
from plan_jax.ablation.compare import METRICS, PRIOR, compare, p_value
from plan_jax.ablation.places import Place, cpu_places, gpu_places
from plan_jax.ablation.report import report
from plan_jax.ablation.runs import Outcome, ablate, run_study
from plan_jax.ablation.study import EQUAL_TIME, PHRASES, Study, Trial, choose_steps, finished, scaled_steps, speed
from plan_jax.bootstrap import interval
from plan_jax.checkpoint import saved_steps
from plan_jax.config import Config, config_hash, load_config, save_config
from plan_jax.config_file import read_config
from plan_jax.data.pipeline import TrainBatches
from plan_jax.data.records import open_split
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError
from plan_jax.train.workdir import differing_fields

DIFFERENCE_TO_PLAN = {
    "plan": {},
    "static": {"alignment.rounds": 0},
    "global_only": {"loss.local_weight": 0.0},
    "no_history": {"alignment.history": 0.0},
    "no_word_importance": {"alignment.word_importance": "uniform", "alignment.word_keep": 1.0},
    "no_patch_importance": {"alignment.importance": 0.0},
    "all_words": {"alignment.word_keep": 1.0},
}
WAIT = 240  # seconds, on a busy machine


@pytest.fixture(scope="module")
def base() -> Config:
    return read_config(CONFIG, TINY)


def make_study(base: Config, out: Path, *arms: str, seeds: int = 2, **more) -> Study:
    return Study(base, arms or ("plan", "static"), seeds, out, **more)


def write_manifest(folder: Path, text: str = "") -> str:
    """A data folder as far as run_study looks at it."""
    folder.mkdir(exist_ok=True)
    keys = ("name", "version", "options", "classes", "splits", "shards", "dropped", "summary")
    (folder / "manifest.json").write_text(json.dumps(dict.fromkeys(keys, text)))
    return str(folder)


def some_scores(seed: int, *, cnr: float = 1.0, phrases: int = 30) -> dict[str, np.ndarray]:
    """Random scores of the same phrases for every seed."""
    index, rng = np.arange(phrases), np.random.default_rng(seed)
    scores = {
        "patient": np.array([f"p{number // 2}" for number in index]),
        "category": np.array(["nodule", "effusion", "bulla"])[index % 3],
        "located": index % 2 == 0,
    }
    for method, mean in (("trained", cnr), ("global_map", -1.0), ("competition", cnr + 1), (PRIOR, 0.5)):
        scores[f"{method}/cnr_signed"] = rng.normal(mean, 0.3, phrases)
        scores[f"{method}/pointing"] = rng.random(phrases)
        scores[f"{method}/own_above_others"] = np.where(index % 5, rng.random(phrases), np.nan)
    return {name: column.astype(np.float32) if "/" in name else column for name, column in scores.items()}


def write_run(trial: Trial, scores: dict[str, np.ndarray], *, data: str = "d", speeds: tuple = (1, 50, 60, 40)) -> None:
    """A finished run, as fit and evaluate leave it."""
    (trial.workdir / "results").mkdir(parents=True, exist_ok=True)
    text = dataclasses.replace(trial.config.text_encoder, vocab_size=77)  # what fit sets
    save_config(trial.workdir / "config.json", dataclasses.replace(trial.config, text_encoder=text))
    about = {"step": trial.config.train.steps, "split": trial.split, "data": data, "version": __version__}
    about["config"] = config_hash(load_config(trial.workdir / "config.json"))
    (trial.workdir / "results" / "grounding.json").write_text(json.dumps(about))
    np.savez(trial.workdir / PHRASES, **scores)
    lines = [json.dumps({"step": step, "images_per_second": value}) for step, value in enumerate(speeds)]
    (trial.workdir / "metrics.jsonl").write_text("\n".join(lines) + "\n")


class FakeRunner:
    """Finishes each run at once and remembers which it was given."""

    def __init__(self, data_dir: str, speeds: dict[str, tuple] | None = None):
        self.data, self.speeds, self.ran = runs.manifest_hash(data_dir), speeds or {}, []

    def __call__(self, trial: Trial, place: Place, stop: threading.Event) -> Failure | None:
        self.ran.append(trial.name)
        speeds = self.speeds.get(trial.arm, (1, 50, 50))
        write_run(trial, some_scores(trial.seed), data=self.data, speeds=speeds)
        return None


@pytest.mark.parametrize("arm", DIFFERENCE_TO_PLAN)
def test_an_arm_differs_from_plan_in_the_named_fields_only(base, arm):
    rows = differing_fields(arm_config(base, "plan"), arm_config(base, arm))
    assert {name: value for name, _, value in rows} == DIFFERENCE_TO_PLAN[arm]


def test_plan_is_the_whole_method_and_changes_nothing_else(base):
    changed = {name for name, *_ in differing_fields(base, arm_config(base, "plan"))}
    assert changed <= set(ARMS["plan"])
    assert all(name.startswith("alignment.") for name in changed)
    assert arm_config(base, "plan").alignment.rounds == 2
    assert arm_config(base, "default") == base


@pytest.mark.parametrize("arm", [arm for arm in ARMS if arm not in {*DIFFERENCE_TO_PLAN, "default"}])
def test_every_other_arm_changes_the_phantoms_configuration_in_each_field_it_names(arm):
    base = read_config(CONFIG)
    assert {name: value for name, _, value in differing_fields(base, arm_config(base, arm))} == ARMS[arm]
    one_choice = len(ARMS[arm]) == 1 or all(name.endswith("temperature") for name in ARMS[arm])
    assert one_choice or arm_config(base, arm).alignment.rounds > 0


def test_an_unknown_arm_is_answered_with_the_nearest_name(base, tmp_path):
    with pytest.raises(InputError, match="'statik'; did you mean static"):
        make_study(base, tmp_path, "plan", "statik")


def test_an_arm_cannot_pass_the_checks_of_the_configuration(base, monkeypatch):
    monkeypatch.setitem(ARMS, "wrong", {"alignment.rounds": -1})
    with pytest.raises(InputError, match=r"alignment\.rounds must be at least 0"):
        arm_config(base, "wrong")


@pytest.mark.parametrize(("arms", "seeds"), [(("plan", "plan"), 1), (("plan",), 0)])
def test_a_study_needs_different_arms_and_a_seed(base, tmp_path, arms, seeds):
    with pytest.raises(InputError, match=r"--arms|--seeds"):
        make_study(base, tmp_path, *arms, seeds=seeds)


def test_trials_go_seed_by_seed_and_differ_in_arm_and_seed_alone(base, tmp_path):
    trials = make_study(base, tmp_path).trials()
    assert [trial.name for trial in trials] == ["plan/seed_0", "static/seed_0", "plan/seed_1", "static/seed_1"]
    assert [name for name, *_ in differing_fields(trials[0].config, trials[2].config)] == ["seed"]
    assert trials[1].workdir == tmp_path / "runs" / "static" / "seed_0"


def test_arms_of_one_seed_draw_the_same_batches(base, tmp_path, phantom_data):
    split, tokenizer = open_split(phantom_data, "train"), Tokenizer.load(phantom_data / "tokenizer.json")

    def beginning(trial: Trial) -> list[bytes]:
        batches = TrainBatches(split, tokenizer, trial.config.data, seed=trial.config.seed)
        try:
            seen = [next(batches) for _ in range(3)]
        finally:
            batches.close()
        return [np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(seen)]

    one, other, next_seed, _ = make_study(base, tmp_path).trials()
    assert beginning(one) == beginning(other) != beginning(next_seed)


@pytest.mark.parametrize(
    ("steps", "ratio", "multiple", "expected"), [(1800, 1.5, 20, 2700), (1800, 0.333, 20, 600), (40, 0.01, 20, 20)]
)
def test_scaled_steps_are_a_multiple_and_never_none(steps, ratio, multiple, expected):
    assert scaled_steps(steps, ratio, multiple=multiple) == expected


def test_speed_is_the_median_without_each_runs_first_reading(base, tmp_path):
    one, other = make_study(base, tmp_path, "plan").trials()
    write_run(one, some_scores(0), speeds=(1, 10, 30))
    write_run(other, some_scores(1), speeds=(2, 20, 500))
    assert speed([one, other]) == 25
    (one.workdir / PHRASES).unlink()  # not finished
    assert speed([one, other]) == 260


def test_equal_time_scales_the_steps_once_and_keeps_them(base, tmp_path):
    base = dataclasses.replace(base, train=dataclasses.replace(base.train, steps=300, log_every=10))
    study = make_study(base, tmp_path, "plan", "static", "all_words")
    for trial in study.trials():
        write_run(trial, some_scores(0), speeds=(1, *{"plan": (50, 60), "static": (120, 100)}.get(trial.arm, (54, 56))))
    choose_steps(study)
    found = {trial.name: trial for trial in study.equal_time_trials()}
    assert list(found) == ["static@time/seed_0", "all_words@time/seed_0", "static@time/seed_1", "all_words@time/seed_1"]
    static = found["static@time/seed_1"]
    assert static.config.train.steps == 600
    assert {name for name, *_ in differing_fields(study.trials()[-2].config, static.config)} == {"train.steps"}
    assert static.workdir == tmp_path / "runs" / "static@time" / "seed_1"
    same = found["all_words@time/seed_0"]  # as fast as plan: the first run serves for both
    assert same.workdir == tmp_path / "runs" / "all_words" / "seed_0"
    assert finished(same)

    before = (tmp_path / EQUAL_TIME).read_text()
    for trial in study.trials():
        write_run(trial, some_scores(0), speeds=(1, 7, 7))
    choose_steps(study)
    assert (tmp_path / EQUAL_TIME).read_text() == before
    with pytest.raises(InputError, match="must stay plan"):
        make_study(base, tmp_path, "static", "plan").equal_time_trials()


def test_a_damaged_equal_time_file_is_named(base, tmp_path):
    (tmp_path / EQUAL_TIME).write_text("{}")
    with pytest.raises(InputError, match=EQUAL_TIME):
        make_study(base, tmp_path).equal_time_trials()


def test_finished_means_this_configuration_this_split_and_scores_of_every_phrase(base, tmp_path):
    (trial,) = make_study(base, tmp_path, "plan", seeds=1).trials()
    assert not finished(trial)
    write_run(trial, some_scores(0), data="here")
    assert finished(trial)
    assert finished(trial, data="here")
    assert not finished(trial, data="elsewhere")
    assert not finished(dataclasses.replace(trial, split="tune"))
    assert not finished(dataclasses.replace(trial, config=arm_config(base, "static")))
    longer = dataclasses.replace(trial.config.train, steps=base.train.steps + 1)
    assert not finished(dataclasses.replace(trial, config=dataclasses.replace(trial.config, train=longer)))
    (trial.workdir / PHRASES).unlink()
    assert not finished(trial)


def with_data(base: Config, folder: Path) -> Config:
    return dataclasses.replace(base, data=dataclasses.replace(base.data, dir=write_manifest(folder)))


def test_resuming_runs_only_what_is_not_finished(base, tmp_path, capsys):
    study = make_study(with_data(base, tmp_path / "data"), tmp_path)
    runner = FakeRunner(study.base.data.dir)
    assert run_study(study, [Place()], runner=runner) == []
    assert runner.ran == [trial.name for trial in study.trials()]
    (study.trials()[2].workdir / PHRASES).unlink()
    again = FakeRunner(study.base.data.dir)
    assert run_study(study, [Place(), Place()], runner=again) == []
    assert again.ran == ["plan/seed_1"]
    assert "4/4" in capsys.readouterr().err  # the finished ones count as done


def test_equal_time_runs_follow_the_others(base, tmp_path):
    study = make_study(with_data(base, tmp_path / "data"), tmp_path, seeds=1)
    runner = FakeRunner(study.base.data.dir, {"static": (1, 75, 75)})
    assert run_study(study, [Place()], equal_time=True, runner=runner) == []
    assert runner.ran == ["plan/seed_0", "static/seed_0", "static@time/seed_0"]
    saved = load_config(tmp_path / "runs" / "static@time" / "seed_0" / "config.json")
    assert saved.train.steps == 1.5 * base.train.steps


def test_a_run_that_fails_is_named_and_the_others_go_on(base, tmp_path, capsys):
    study = make_study(with_data(base, tmp_path / "data"), tmp_path)
    fake = FakeRunner(study.base.data.dir)

    def runner(trial: Trial, place: Place, stop: threading.Event) -> Failure | None:
        if trial.name == "static/seed_0":
            return Failure(trial.name, "loss must be finite")
        if trial.name == "plan/seed_1":
            raise PermissionError("no such luck")
        return fake(trial, place, stop)

    failures = run_study(study, [Place()], equal_time=True, runner=runner)
    assert [failure.name for failure in failures] == ["static/seed_0", "plan/seed_1"]
    assert "PermissionError: no such luck" in failures[1].reason
    assert fake.ran == ["plan/seed_0", "static/seed_1"]  # equal speeds: no runs of equal time
    assert "static/seed_0 failed: loss must be finite" in capsys.readouterr().err


def test_the_exit_code_tells_wrong_input_from_other_failures():
    wrong, other = Failure("a", "", wrong_input=True), Failure("b", "")
    codes = [Outcome([], found).exit_code for found in ([], [wrong], [wrong, other], [other])]
    assert codes == [0, 2, 1, 1]


def test_every_place_holds_one_run_at_a_time(base, tmp_path):
    study = make_study(with_data(base, tmp_path / "data"), tmp_path, seeds=3)
    fake, taken, seen = FakeRunner(study.base.data.dir), set(), set()
    both = threading.Barrier(2, timeout=WAIT)

    def runner(trial: Trial, place: Place, stop: threading.Event) -> None:
        assert place not in taken
        taken.add(place)
        both.wait()  # two runs at once
        seen.add(place)
        fake(trial, place, stop)
        taken.remove(place)

    two = [Place(environment=(("PLACE", str(number)),)) for number in range(2)]
    assert run_study(study, two, runner=runner) == []
    assert seen == set(two)


def test_an_interrupt_stops_the_runs_and_starts_no_more(base, tmp_path, monkeypatch):
    study = make_study(with_data(base, tmp_path / "data"), tmp_path)
    started, stopped, ran = threading.Event(), [], []

    def runner(trial: Trial, place: Place, stop: threading.Event) -> None:
        ran.append(trial.name)
        started.set()
        stopped.append(stop.wait(WAIT))

    def interrupted(futures, bar):
        assert started.wait(WAIT)
        raise KeyboardInterrupt

    monkeypatch.setattr(runs, "_collected", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_study(study, [Place()], runner=runner)
    assert (ran, stopped) == (["plan/seed_0"], [True])


def test_cores_are_shared_out(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {2, 3, 5, 7, 11})
    assert [place.cores for place in cpu_places(None)] == [{2}, {3}, {5}, {7}, {11}]
    assert [place.cores for place in cpu_places(2)] == [{2, 5, 11}, {3, 7}]
    assert [place.cores for place in cpu_places(6)][-1] == {2}


def test_gpus_are_shared_out_one_by_one(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert [dict(place.environment) for place in gpu_places(None, 2)] == [
        {"CUDA_VISIBLE_DEVICES": "0"},
        {"CUDA_VISIBLE_DEVICES": "1"},
    ]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,GPU-6b")
    shared = [dict(place.environment) for place in gpu_places(4, 2)]
    assert [place["CUDA_VISIBLE_DEVICES"] for place in shared] == ["4", "GPU-6b", "4", "GPU-6b"]
    assert {place["XLA_PYTHON_CLIENT_MEM_FRACTION"] for place in shared} == {"0.450"}


@pytest.mark.parametrize(("platform", "count", "expected"), [("tpu", 4, 1), ("gpu", 3, 3)])
def test_places_follow_the_devices(monkeypatch, platform, count, expected):
    monkeypatch.setattr(places, "devices_here", lambda: (platform, count))
    assert len(places.find_places()) == expected


def test_a_wrong_number_of_jobs_and_a_missing_device_are_said(monkeypatch):
    with pytest.raises(InputError, match="--jobs must be at least 1"):
        places.find_places(0)
    monkeypatch.setenv("JAX_PLATFORMS", "abacus")
    with pytest.raises(InputError, match=r"JAX must find a device, got .*abacus"):
        places.find_places()


def test_a_child_is_pinned_before_it_starts_and_the_parent_is_not(base, tmp_path, monkeypatch):
    (trial,) = make_study(base, tmp_path, "plan", seeds=1).trials()
    before = os.sched_getaffinity(0)

    def print_cores(message, output, environment, stop):
        code = "import os; print(*os.sched_getaffinity(0))"
        return subprocess.run([sys.executable, "-c", code], stdout=output, check=True).returncode

    monkeypatch.setattr(child, "_run", print_cores)
    core = max(before)
    thread = threading.Thread(target=run_child, args=(trial, Place(frozenset({core})), threading.Event()))
    thread.start()
    thread.join()
    assert (trial.workdir / child.LOG).read_text().split() == [str(core)]
    assert os.sched_getaffinity(0) == before


FRAMES = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\n    g()\n'


@pytest.mark.parametrize(
    ("code", "written", "expected"),
    [
        (1, f"train: 3%\n{FRAMES}plan_jax.errors.InputError: a must b, got c; do d\n", ("a must b, got c; do d", True)),
        (1, f"{FRAMES}KeyError: 'x'\n\nDuring it:\n\n{FRAMES}ValueError: bad\nmore\n", ("ValueError: bad", False)),
        (1, "plan: stopped and saved at step 3\n", ("plan: stopped and saved at step 3", False)),
        (1, "", ("ended with exit code 1 and wrote nothing", False)),
        (-9, "train: 3%", ("ended by SIGKILL", False)),
        (0, "all well", (f"scoring wrote no {PHRASES}", False)),
    ],
)
def test_the_reason_of_a_failure_is_read_from_its_log(code, written, expected):
    assert child.why(code, written) == expected


def hand_scores(values: dict[str, list[float]]) -> dict[str, np.ndarray]:
    """Four phrases of three patients: nodule, nodule, nodule, bulla."""
    scores = {
        "patient": np.array(["a", "a", "b", "c"]),
        "category": np.array(["nodule", "nodule", "nodule", "bulla"]),
        "located": np.array([True, False, True, False]),
    }
    for method in ("trained", PRIOR):
        scores |= {f"{method}/{metric}": np.zeros(4, np.float32) for metric in METRICS}
    return scores | {name: np.array(column, np.float32) for name, column in values.items()}


def test_figures_agree_with_hand_worked_numbers():
    # Macro averages of signed CNR. plan: ((1+2+3)/3 + 4)/2 = 3, then (0 - 2)/2 = -1; static: 1, then 0.
    plan = {
        0: hand_scores({"trained/cnr_signed": [1, 2, 3, 4], "trained/own_above_others": [1, np.nan, 0, np.nan]}),
        1: hand_scores({"trained/cnr_signed": [0, 0, 0, -2], f"{PRIOR}/cnr_signed": [1, 1, 1, 1]}),
    }
    static = {
        0: hand_scores({"trained/cnr_signed": [0, 0, 0, 2]}),
        1: hand_scores({"trained/cnr_signed": [-3, -3, -3, 3]}),
    }
    found = compare({"plan": plan, "static": static}, "plan", resamples=50)
    rows = found["arms"]
    assert rows["plan"]["cnr_signed"]["per_seed"] == [3, -1]
    assert rows["plan"]["cnr_signed"]["value"] == 1
    assert rows["plan"]["own_above_others"]["per_seed"] == [0.5, 0]  # (1 + 0)/2 of nodule; bulla is never known
    assert [rows[arm]["inverted"] for arm in rows] == [1, 1]
    assert rows["plan"]["difference"] is None
    difference = rows["static"]["difference"]["cnr_signed"]
    assert difference["per_seed"] == [-2, 1]
    assert difference["value"] == -0.5
    assert difference["p"] == pytest.approx(ttest_rel([1, 0], [3, -1]).pvalue)
    assert rows["plan"]["above_prior"]["all"]["cnr_signed"]["per_seed"] == [3, -2]
    assert rows["plan"]["above_prior"]["with_location"]["cnr_signed"]["per_seed"] == [2, -1]
    assert rows["plan"]["above_prior"]["without_location"]["cnr_signed"]["per_seed"] == [3, -2]
    assert found["prior"]["cnr_signed"]["value"] == 0


def test_p_values_are_scipys_and_empty_where_there_is_no_test():
    one, other = [1.0, 2.0, 4.0, 3.5], [0.5, 1.9, 3.0, 3.6]
    assert p_value(one, other) == pytest.approx(ttest_rel(one, other).pvalue)
    assert p_value([1.0], [2.0]) is None
    assert p_value([1.0, 2.0], [2.0, 3.0]) is None


def test_the_interval_of_one_seed_is_that_of_the_patient_bootstrap():
    scores = some_scores(3, phrases=300)
    (own,) = compare({"plan": {0: scores}}, "plan", resamples=4000)["arms"].values()
    expected = interval(
        scores["trained/cnr_signed"], scores["patient"], classes=scores["category"], resamples=4000, seed=5
    )
    assert own["cnr_signed"]["value"] == pytest.approx(expected["value"])
    width = expected["high"] - expected["low"]
    assert abs(own["cnr_signed"]["low"] - expected["low"]) < 0.06 * width
    assert abs(own["cnr_signed"]["high"] - expected["high"]) < 0.06 * width


def test_the_interval_holds_the_variation_of_seeds_and_of_patients():
    arms = {seed: some_scores(0, cnr=2.0 * seed) for seed in range(4)}  # the same patients, seeds far apart
    (own,) = compare({"plan": arms}, "plan", resamples=2000)["arms"].values()
    spread = np.std([0, 2, 4, 6]) / 2  # standard error of the mean of four seeds, without Bessel's correction
    assert own["cnr_signed"]["high"] - own["cnr_signed"]["low"] == pytest.approx(2 * 1.96 * spread, rel=0.12)


def simulated(rng: np.random.Generator, *, difference: float) -> dict[str, dict[int, dict]]:
    """Two arms on the same patients, who differ far more than the arms."""
    patient = np.repeat(np.arange(60), 2)
    easy, arms = rng.normal(0, 2, 60)[patient], {}
    for name, mean in (("plan", 0.0), ("static", difference)):
        arms[name] = {}
        for seed in range(5):
            values = easy + mean + rng.normal(0, 0.05) + rng.normal(0, 0.5, len(patient))
            scores = {"patient": patient, "category": np.zeros(len(patient), int), "located": patient > 30}
            scores |= {f"{method}/{metric}": values for method in ("trained", PRIOR) for metric in METRICS}
            arms[name][seed] = scores
    return arms


def test_intervals_of_differences_are_paired_and_cover_the_truth():
    rng, covered, truth = np.random.default_rng(0), [], 0.3
    for _ in range(60):
        rows = compare(simulated(rng, difference=truth), "plan", resamples=300)["arms"]
        found, alone = rows["static"]["difference"]["cnr_signed"], rows["static"]["cnr_signed"]
        covered.append(found["low"] <= truth <= found["high"])
        assert found["high"] - found["low"] < 0.5 * (alone["high"] - alone["low"])
    assert np.mean(covered) >= 0.85
    assert not all(covered)  # an interval that always covers says nothing


def test_the_map_before_the_rounds_serves_where_they_harm_and_what_they_do_is_shown():
    after, before = some_scores(0, cnr=0.5), some_scores(0, cnr=2.0)
    metrics = ("cnr_signed", "pointing", "own_above_others")
    refined = {**after, **{f"round_0/{metric}": before[f"trained/{metric}"] for metric in metrics}}
    rows = compare({"default": {0: before}, "plan": {0: refined}}, "default", resamples=20)["arms"]
    assert rows["plan"]["readout"] == "round_0"
    assert rows["plan"]["difference"]["cnr_signed"]["value"] == pytest.approx(0)
    assert rows["plan"]["rounds"]["cnr_signed"]["value"] == pytest.approx(-1.5)
    assert rows["default"]["rounds"] is None


def test_every_arm_is_read_out_by_its_best_map():
    inverted = {seed: some_scores(seed, cnr=-2.0) for seed in range(2)}  # its map of the global similarity: -1
    rows = compare({"plan": {0: some_scores(0)}, "global_only": inverted}, "plan", resamples=20)["arms"]
    assert {name: row["readout"] for name, row in rows.items()} == {"plan": "trained", "global_only": "global_map"}
    assert rows["global_only"]["cnr_signed"]["value"] == pytest.approx(-1, abs=0.2)
    assert rows["global_only"]["inverted"] == 3
    assert rows["plan"]["competition"]["cnr_signed"]["value"] == pytest.approx(2, abs=0.2)


def test_an_arm_with_fewer_seeds_is_compared_on_those_that_both_have():
    plan, late = {seed: some_scores(seed, cnr=seed) for seed in (0, 1, 2)}, {1: some_scores(1, cnr=4.0)}
    rows = compare({"plan": plan, "static": late}, "plan", resamples=20)["arms"]
    assert rows["plan"]["seeds"] == [0, 1, 2]
    difference = rows["static"]["difference"]
    assert difference["seeds"] == [1]
    assert difference["cnr_signed"]["value"] == pytest.approx(3)
    assert difference["cnr_signed"]["p"] is None
    unlike = compare({"plan": {0: plan[0]}, "static": late}, "plan", resamples=20)["arms"]
    assert unlike["static"]["difference"] is None


def test_runs_on_other_phrases_are_refused():
    other = some_scores(1) | {"category": some_scores(1)["category"][::-1]}
    with pytest.raises(InputError, match="another category in static/seed_1"):
        compare({"plan": {0: some_scores(0)}, "static": {1: other}}, "plan", resamples=20)


def test_the_report_holds_what_is_finished(base, tmp_path):
    study = make_study(base, tmp_path, "plan", "static", "global_only")
    for trial in study.trials()[:4]:  # both seeds of plan, one of the others
        write_run(trial, some_scores(trial.seed), speeds=(1, 40, 40) if trial.arm == "plan" else (1, 80, 80))
    choose_steps(study)
    timed = study.equal_time_trials()[0]
    write_run(timed, some_scores(0, cnr=2.0), speeds=(1, 80, 80))
    tables = ablate(study, report_only=True).tables
    assert [row[0] for row in tables[0].rows[:-1]] == ["plan", "static", "static@time", "global_only"]
    cells = {row[0]: dict(zip((c.name for c in tables[0].columns), row, strict=True)) for row in tables[0].rows}
    assert cells["static@time"]["steps"] == 2 * base.train.steps
    assert [cells[arm]["time"] for arm in ("plan", "static", "static@time")] == [1, 0.5, 1]
    assert [cells[arm]["seeds"] for arm in ("plan", "static")] == [2, 1]
    assert "5 of 10 runs" in tables[0].title
    assert [row[0] for row in tables[1].rows] == ["static", "static@time", "global_only"]
    content = json.loads((tmp_path / "ablation.json").read_text())
    assert content["settings"]["data"] == "d"
    assert content["settings"]["reference"] == "plan"
    assert content["arms"]["static@time"]["difference"]["cnr_signed"]["value"] == pytest.approx(1, abs=0.2)
    assert "| static@time |" in (tmp_path / "ablation.md").read_text()
    assert (tmp_path / "ablation.png").read_bytes().startswith(b"\x89PNG")


def test_one_run_is_enough_for_a_report(base, tmp_path):
    study = make_study(base, tmp_path, "plan", seeds=1)
    write_run(study.trials()[0], some_scores(0), speeds=(30,))
    table, prior, competition = report(study)
    assert table.rows[0][-1] is None  # read once: its speed is not known
    assert len(prior.rows) == len(competition.rows) == 1


def test_a_report_of_nothing_says_what_to_do(base, tmp_path):
    with pytest.raises(InputError, match="must hold a finished run of plan scored on test, got none; run"):
        ablate(make_study(base, tmp_path), report_only=True)


def test_scores_that_cannot_be_used_are_named(base, tmp_path):
    study = make_study(base, tmp_path, "plan", seeds=1)
    (trial,) = study.trials()
    scores = some_scores(0)
    write_run(trial, {name: column for name, column in scores.items() if name != "trained/pointing"})
    with pytest.raises(InputError, match=r"grounding_phrases.npz must hold trained/pointing"):
        report(study)
    write_run(trial, scores | {"trained/cnr_signed": np.full(30, np.nan)})
    with pytest.raises(InputError, match="must hold finite trained/cnr_signed"):
        report(study)
    (trial.workdir / PHRASES).write_bytes((trial.workdir / PHRASES).read_bytes()[:1000])
    with pytest.raises(InputError, match="must be as evaluate wrote it"):
        report(study)


def test_runs_on_different_data_are_not_compared(base, tmp_path):
    study = make_study(base, tmp_path, seeds=1)
    for trial in study.trials():
        write_run(trial, some_scores(0), data=trial.arm)
    with pytest.raises(InputError, match="the same data, got other data in plan/seed_0 and static/seed_0"):
        report(study)


def test_equal_time_needs_two_readings_of_the_speed(base, tmp_path):
    base = dataclasses.replace(base, train=dataclasses.replace(base.train, log_every=300))
    with pytest.raises(InputError, match=r"train\.log_every must be below train.steps"):
        ablate(make_study(base, tmp_path), equal_time=True)


def test_an_ablation_stops_continues_and_reports(base, tmp_path, monkeypatch):
    """Two arms and one seed for real, in processes, from a phantom that the ablation builds."""
    monkeypatch.setattr(child, "STOP_POLL", 0.01)
    train = dataclasses.replace(base.train, steps=80, log_every=1, checkpoint_every=80)
    base = dataclasses.replace(base, train=train)
    study = make_study(base, tmp_path, "default", "static", seeds=1, size=150)
    first = runs.with_data(study).trials()[0]
    stop = threading.Event()

    def stop_when_it_trains() -> None:
        end, log = time.monotonic() + WAIT, first.workdir / "metrics.jsonl"
        while time.monotonic() < end and not (log.is_file() and log.stat().st_size):
            time.sleep(0.01)
        stop.set()

    threading.Thread(target=stop_when_it_trains).start()
    stopped = run_child(first, Place(), stop)
    assert stopped is not None
    assert "stopped and saved at step" in stopped.reason
    assert saved_steps(first.workdir)[-1] < 80

    outcome = ablate(study)
    assert outcome.failures == []
    assert [row[0] for row in outcome.tables[0].rows[:2]] == ["default", "static"]
    logs = (tmp_path / "runs" / arm / "seed_0" / "metrics.jsonl" for arm in study.arms)
    first_losses = [json.loads(log.read_text().splitlines()[0])["global_loss"] for log in logs]
    assert first_losses[0] == pytest.approx(first_losses[1], rel=1e-5)  # the same parameters and batch to begin with
    scored = {path: path.stat().st_mtime_ns for path in tmp_path.glob("runs/*/*/results/*")}
    assert len(scored) == 4
    assert ablate(study).failures == []
    assert {path: path.stat().st_mtime_ns for path in scored} == scored

    optim = dataclasses.replace(base.optim, learning_rate=1e-5)
    other = ablate(dataclasses.replace(study, base=dataclasses.replace(study.base, optim=optim)))
    assert other.exit_code == 2
    assert {failure.name for failure in other.failures} == {"default/seed_0", "static/seed_0"}
    assert all(failure.reason.startswith("config.optim.learning_rate must stay") for failure in other.failures)
    assert other.tables == []
