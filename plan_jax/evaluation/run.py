"""One evaluation command: load the run, score it on a split, write RUN/results/TASK.json and what it was made from."""

import dataclasses
import importlib
import json
from collections.abc import Sequence
from pathlib import Path

from plan_jax import __version__
from plan_jax.checkpoint import chosen_step
from plan_jax.config import config_hash, load_config
from plan_jax.config_file import with_overrides
from plan_jax.data.records import manifest_hash, open_split, read_manifest
from plan_jax.evaluation.compilations import counted_compilations
from plan_jax.evaluation.grounding import evaluate_grounding
from plan_jax.evaluation.samples import object_in, results_path, samples_path, save_samples
from plan_jax.gallery import write_gallery
from plan_jax.inference import Plan
from plan_jax.plots import save_figure
from plan_jax.sharding import make_mesh
from plan_jax.tables.results import grounding_table

FIGURE = 6  # examples in maps.png
OVERRIDABLE = ("evaluation", "detection")  # groups of the configuration that a trained run leaves free


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is scored, and on what.

    Attributes:
        checkpoint: as `Plan.load` takes it.
        data: a built data set; by default the one the run trained on.
        split: by default `evaluation.split` of the run.
    """

    checkpoint: str = "latest"
    data: Path | None = None
    split: str | None = None


def evaluate(
    task: str, workdir: Path, subject: Subject = Subject(), *, reuse: bool = False, overrides: Sequence[str] = ()
) -> Path:
    """Scores a run on a task and returns the path of its results file.

    Args:
        task: one of `plan_jax.tables.files.TASKS`; grounding also writes gallery.html and maps.png.
        workdir: the run directory.
        subject: which of its checkpoints, on which data; by default the newest, on the test split of its own.
        reuse: return at once if the results file is of this checkpoint, configuration, data and version.
        overrides: such as "--config.evaluation.bootstrap=200", of the groups in OVERRIDABLE.
    """
    config = with_overrides(load_config(workdir / "config.json"), overrides, groups=OVERRIDABLE)
    directory = subject.data or Path(config.data.dir)
    about = {
        "task": task,
        "step": chosen_step(workdir, subject.checkpoint),
        "split": subject.split or config.evaluation.split,
        "data": manifest_hash(directory),
        "data_set": read_manifest(directory)["name"],
        "config": config_hash(config),
        "version": __version__,
    }
    path = results_path(workdir, task, about["data_set"])
    if reuse and about.items() <= object_in(path).items() and samples_path(path).is_file():
        return path
    plan = Plan.load(workdir, str(about["step"])).over(make_mesh())
    plan = dataclasses.replace(plan, config=config) if overrides else plan
    with counted_compilations() as compiled:
        if task == "grounding":
            results = _grounding(plan, directory, about["split"], path)
        else:
            results = _scored(task, plan, directory, about["split"], path)
    partial = path.with_suffix(".json.tmp")
    partial.write_text(json.dumps({**results, **about, "compilations": compiled.value}, indent=2) + "\n")
    partial.replace(path)
    return path


def _grounding(plan: Plan, directory: Path, split: str, path: Path) -> dict:
    has_train = "train" in read_manifest(directory)["splits"]
    train = open_split(directory, "train") if has_train else None
    results, examples, scores = evaluate_grounding(plan, open_split(directory, split), train)
    save_samples(path, scores.columns())
    title = f"PLAN: grounding maps after {plan.step} steps"
    of_set = path.stem.removeprefix("grounding")  # the pictures of another data set stand beside those of the own
    run = path.parent.parent
    write_gallery(run / f"gallery{of_set}.html", examples, title=title, summary=grounding_table(results))
    save_figure(run / f"maps{of_set}.png", examples[:FIGURE])
    return results


def _scored(task: str, plan: Plan, directory: Path, split: str, path: Path) -> dict:
    module = importlib.import_module(f"plan_jax.evaluation.{task}")  # each task's libraries when it is asked for
    workdir = path.parent.parent
    if task == "detection":
        results, samples = module.evaluate_detection(plan, directory, workdir, split=split)
    else:
        score = getattr(module, f"evaluate_{task}")
        results, samples = score(plan, open_split(directory, split), scratch=workdir)
    save_samples(path, samples)
    return results
