"""Which checkpoints a run has, and what is in them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from plan_jax.checkpoint import digest
from plan_jax.errors import InputError

FOLDER = "checkpoints"
ABOUT = "_CHECKPOINT_METADATA"  # where orbax keeps custom metadata
SCORE = "score"  # in a checkpoint's custom metadata: its validation loss
UNREADABLE = (KeyError, ValueError, OSError)  # what orbax raises on reading


def saved_steps(workdir: Path) -> list[int]:
    """Finished steps of each of a run's checkpoints."""
    folder = workdir / FOLDER
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.is_dir() else []


def latest_step(workdir: Path) -> int:
    """Finished steps of a run's newest checkpoint.

    Raises:
        InputError: the run has none.
    """
    steps = saved_steps(workdir)
    if not steps:
        raise InputError(
            f"{workdir} must hold a checkpoint, got none in {workdir / FOLDER}; train first or check --workdir"
        )
    return steps[-1]


def best_step(workdir: Path) -> int:
    """Finished steps of a run's checkpoint of lowest validation loss, the first of equals.

    Raises:
        InputError: none was scored.
    """
    scores = scores_of(workdir)
    best = best_of(scores, list(scores))
    if best is None:
        raise InputError(
            f"{workdir} must hold a checkpoint with a validation loss, got none; "
            "train with --config.train.validate_every=N or use --checkpoint latest"
        )
    return best


def chosen_step(workdir: Path, checkpoint: str) -> int:
    """Finished steps of the checkpoint "latest", "best", or of the one of so many steps.

    Raises:
        InputError: the run has none such.
    """
    if checkpoint in ("latest", "best"):
        return latest_step(workdir) if checkpoint == "latest" else best_step(workdir)
    steps = saved_steps(workdir)
    if not (checkpoint.isdecimal() and int(checkpoint) in steps):
        there = ", ".join(map(str, steps)) or "none"
        raise InputError(f"--checkpoint must be latest, best or a step, got {checkpoint}; {workdir} holds {there}")
    return int(checkpoint)


def load_variables(workdir: Path, step: int, abstract_variables: Any) -> Any:
    """Parameters and batch statistics of one checkpoint, without its optimizer.

    Raises:
        InputError: it is damaged, or of other shapes.
    """
    path, parts = (workdir / FOLDER / str(step)).absolute(), None
    fault = digest.damage(path, "variables/")
    if fault is None:
        parts, fault = read_parts(path, {"variables": abstract_variables})
    if parts is None:
        raise InputError(
            f"{path} must be a whole checkpoint of the run's configuration, got a damaged one, {fault}; "
            f"use another one: {workdir} holds {', '.join(map(str, saved_steps(workdir)))}"
        )
    return parts["variables"]


def read_parts(path: Path, abstract_parts: dict[str, Any]) -> tuple[dict[str, Any] | None, str | None]:
    """The parts, or what is wrong with the files. InputError: they are whole and of another configuration."""
    try:
        _refuse_other_shapes(path, abstract_parts)
        return ocp.load_checkpointables(str(path), abstract_parts), None
    except InputError:
        raise
    except UNREADABLE as error:
        if (path / digest.FILE).is_file():  # and the files are as they were written
            raise InputError(
                f"{path} must be a checkpoint of the run's configuration, got {type(error).__name__} on reading it; "
                "use the configuration and the version that wrote it, or another --workdir"
            ) from error
        return None, f"{type(error).__name__} on reading it"


def _refuse_other_shapes(path: Path, abstract_parts: dict[str, Any]) -> None:
    """Before orbax reads any array: it says a wrong shape as it says damage, and leaves other reads unfinished."""
    saved_parts = ocp.checkpointables_metadata(str(path)).metadata
    for name, abstract in abstract_parts.items():
        if saved_parts.get(name) is None:
            raise KeyError(name)  # is not there, or orbax cannot make it out
        if abstract is None:
            continue
        saved, wanted = _shapes(saved_parts[name]), _shapes(abstract)
        for leaf in sorted(saved.keys() | wanted.keys()):
            if saved.get(leaf) != wanted.get(leaf):
                raise InputError(
                    f"{path} must be a checkpoint of the run's configuration, got {name}.{leaf} of shape "
                    f"{saved.get(leaf)} for {wanted.get(leaf)}; use the configuration that wrote it, or another "
                    "--workdir"
                )


def _shapes(tree: Any) -> dict[str, tuple[int, ...]]:
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(where, simple=True, separator="."): np.shape(leaf) for where, leaf in leaves}


def scores_of(workdir: Path) -> dict[int, float]:
    """The validation loss of each of a run's checkpoints that has one which can be read."""
    scores = {}
    for step in saved_steps(workdir):
        try:  # orbax's own reader would also open every array, and say pages of a damaged one
            about = json.loads((workdir / FOLDER / str(step) / ABOUT).read_text(encoding="utf-8"))
            scores[step] = float(about["custom_metadata"][SCORE])
        except (OSError, ValueError, TypeError, KeyError):
            continue
    return scores


def best_of(scores: Mapping[int, float], steps: Sequence[int]) -> int | None:
    """The step of lowest score among `steps`, the first of equals; None where none is scored."""
    return min((step for step in steps if step in scores), key=lambda step: (scores[step], step), default=None)
