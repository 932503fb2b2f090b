"""One evaluation command: load the run, score it on a split, write RUN/results/TASK.json."""

import json
from pathlib import Path

from plan_jax import __version__
from plan_jax.checkpoint import latest_step
from plan_jax.config import config_hash, load_config
from plan_jax.data.records import manifest_hash, open_split
from plan_jax.evaluation.grounding import evaluate_grounding
from plan_jax.evaluation.retrieval import evaluate_retrieval
from plan_jax.evaluation.zero_shot import evaluate_zero_shot
from plan_jax.gallery import write_gallery
from plan_jax.inference import Plan
from plan_jax.plots import save_figure
from plan_jax.sharding import make_mesh
from plan_jax.tables import grounding_table

FIGURE = 6  # examples in maps.png


def evaluate(
    task: str, workdir: Path, *, data: Path | None = None, split: str | None = None, reuse: bool = False
) -> Path:
    """Scores a run's newest checkpoint on a task and returns the path of its results file.

    Args:
        task: grounding (also writes gallery.html and maps.png), retrieval or zero_shot.
        workdir: the run directory.
        data: a built data set; by default the one the run trained on.
        split: by default `evaluation.split` of the run.
        reuse: return at once if the results file is of this checkpoint, configuration, data and version.
    """
    config = load_config(workdir / "config.json")
    directory = data or Path(config.data.dir)
    about = {
        "task": task,
        "step": latest_step(workdir),
        "split": split or config.evaluation.split,
        "data": manifest_hash(directory),
        "config": config_hash(config),
        "version": __version__,
    }
    path = workdir / "results" / f"{task}.json"
    if reuse and about.items() <= _results_in(path).items():
        return path
    plan, records = Plan.load(workdir).over(make_mesh()), open_split(directory, about["split"])
    if task == "grounding":
        results, examples, scores = evaluate_grounding(plan, records, open_split(directory, "train"))
        path.parent.mkdir(exist_ok=True)
        scores.save(path.with_name("grounding_phrases.npz"))
        title = f"PLAN: grounding maps after {plan.step} steps"
        write_gallery(workdir / "gallery.html", examples, title=title, summary=grounding_table(results))
        save_figure(workdir / "maps.png", examples[:FIGURE])
    else:
        results, _ = {"retrieval": evaluate_retrieval, "zero_shot": evaluate_zero_shot}[task](
            plan, records, scratch=workdir
        )
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".json.tmp")
    partial.write_text(json.dumps({**results, **about}, indent=2) + "\n")
    partial.replace(path)
    return path


def _results_in(path: Path) -> dict:
    """What a results file holds; nothing where there is none or it is damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
