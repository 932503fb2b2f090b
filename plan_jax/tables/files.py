"""The results files of a run: RUN/results/TASK.json for the data set it trained on, TASK_NAME.json for data set NAME.

An interval is {"value", "low", "high"} (or a plain number) and METRICS is {metric: interval}:

    every task      METRICS of the trained network beside "n", "data", "config", "version", "data_set", "compilations"
    grounding       cnr_signed, pointing, own_above_others, auroc, miou_raw, miou_minmax, cnr_abs (macro over the
                    classes); "per_class": {class: METRICS}; "with_location", "without_location": METRICS and "n";
                    other read-outs (`plan_jax.evaluation.readouts`): "round_0" ... "round_{K-1}", "word_mean",
                    "not_spread", "competition", "mirrored", "global_map", "untrained": METRICS; what it must beat:
                    "chance", "centre_prior", "phrase_blind_prior", "image_blind_type_prior", "image_blind_prior",
                    "image_blind_told_prior", and "grid_ceiling": METRICS;
                    "lead": {prior: the model's metric less the prior's, paired by phrase, also "per_class"}
    retrieval       r@1_image_to_text ... r@10_text_to_image, median_rank_image_to_text, median_rank_text_to_image;
                    "pool": number of images; "chance", "untrained": METRICS; "pools": {size: METRICS, with "chance"
                    and "untrained"}; or, of a set with one class per image, p@1_image_to_text ... p@100_text_to_image
    zero_shot       auroc, accuracy, f1_macro and others; "per_class": {class: {auroc, accuracy, f1}}; "chance",
                    "untrained": METRICS
    detection       map, map_compat with all of the training data; "fractions": {"0.01": METRICS, ...}
    linear_probe    auroc; "fractions": {"0.01": METRICS, ...}
"""

import dataclasses
import json
from pathlib import Path

from plan_jax.errors import InputError

TASKS = ("grounding", "retrieval", "zero_shot", "detection", "linear_probe")


@dataclasses.dataclass(frozen=True)
class Result:
    """A results file that was read.

    Attributes:
        path: of the file.
        task: one of TASKS.
        data_set: the name of the data set, "" where the file does not say.
        own: whether it is the data set that the run trained on.
        content: all that the file holds.
    """

    path: Path
    task: str
    data_set: str
    own: bool
    content: dict


def read_results(run: Path) -> list[Result]:
    """All results of a run: by task, its own data set first.

    InputError: the run has none, or one is not a JSON object.
    """
    found = []
    for task in TASKS:
        folder = Path(run) / "results"
        own = folder / f"{task}.json"
        for path in [*([own] if own.is_file() else []), *sorted(folder.glob(f"{task}_*.json"))]:
            content = _content(path)
            name = str(content.get("data_set", path.stem.removeprefix(task).removeprefix("_")))
            found.append(Result(path, task, name, path == own, content))
    if not found:
        raise InputError(
            f"{run} must hold results/{{{','.join(TASKS)}}}.json, got none of them; "
            f"run `python -m plan_jax evaluate grounding --workdir {run}` first"
        )
    return found


def _content(path: Path) -> dict:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputError(f"{path} must be JSON, got {error}; evaluate the run again") from error
    if not isinstance(content, dict):
        raise InputError(f"{path} must hold a JSON object; evaluate the run again")
    return content
