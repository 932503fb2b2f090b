"""Where a task's results lie, and beside them the rows that its statistics are computed from."""

import json
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from jaxtyping import Shaped

from plan_jax.config import load_config
from plan_jax.data.records import MANIFEST
from plan_jax.errors import InputError
from plan_jax.train.workdir import DATA_MANIFEST


def results_path(workdir: Path, task: str, data_set: str) -> Path:
    """RUN/results/TASK.json for the data set of the run's training data, else RUN/results/TASK_NAME.json."""
    return workdir / "results" / f"{task}{'' if data_set == _trained_on(workdir) else f'_{data_set}'}.json"


def samples_path(results: Path) -> Path:
    """What the statistics of a results file are computed from: a row for each phrase (grounding) or image."""
    rows = "phrases" if results.stem.split("_")[0] == "grounding" else "samples"
    return results.with_name(f"{results.stem}_{rows}.npz")


def save_samples(results: Path, samples: Mapping[str, np.ndarray]) -> None:
    """Writes them beside the results file; a kill leaves the file before or the whole new one."""
    path = samples_path(results)
    path.parent.mkdir(exist_ok=True)
    partial = path.with_suffix(".tmp.npz")
    np.savez_compressed(partial, allow_pickle=False, **samples)
    partial.replace(path)


def read_samples(results: Path) -> dict[str, Shaped[np.ndarray, "..."]]:
    """What `save_samples` wrote beside a results file. InputError: it is not there, damaged or without patients."""
    path = samples_path(results)
    try:
        with path.open("rb") as whole, np.load(whole, allow_pickle=False) as file:
            samples = {name: file[name] for name in file.files}
    except (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} must be as evaluate wrote it, got {type(error).__name__}; evaluate again") from error
    if "patient" not in samples:
        raise InputError(f"{path} must hold whose each row is, got no patients; evaluate again")
    return samples


def object_in(path: Path) -> dict:
    """What a JSON file holds; nothing where there is none or it is damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _trained_on(workdir: Path) -> str:
    """The name of the data set that the run trained on; "" where that cannot be told."""
    directory = Path(load_config(workdir / "config.json").data.dir)
    return str((object_in(workdir / DATA_MANIFEST) or object_in(directory / MANIFEST)).get("name", ""))
