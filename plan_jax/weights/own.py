"""The whole model as one file of tensors by our own names, such as `params/patch_projection/Dense_0/kernel`."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors import SafetensorError, safe_open

from plan_jax.errors import InputError
from plan_jax.weights.tensors import read_tensors, write_tensors

FILE = "model.safetensors"
STEP = "plan_jax_step"


def save_model(path: Path, variables: Any, *, step: int) -> None:
    """Writes all parameters and batch statistics, and how many steps they were trained for."""
    leaves = jax.tree_util.tree_leaves_with_path(variables)
    write_tensors(path, {_name(keys): np.asarray(leaf) for keys, leaf in leaves}, metadata={STEP: str(step)})


def load_model(path: Path, template: Any) -> tuple[Any, int]:
    """(variables, steps they were trained for), in the shapes of `template`.

    Raises:
        InputError: the file is damaged, or of another configuration.
    """
    tensors, step = read_tensors(path), _step(path)
    wanted = {_name(keys): leaf.shape for keys, leaf in jax.tree_util.tree_leaves_with_path(template)}
    for name in sorted(wanted.keys() | tensors.keys()):
        ours, theirs = wanted.get(name), tensors[name].shape if name in tensors else None
        if ours != theirs:
            raise InputError(
                f"{path} must hold the model of the config.json beside it, got {name} {theirs or 'not at all'} for "
                f"{ours or 'no parameter'}; export the run again"
            )
    return jax.tree_util.tree_map_with_path(lambda keys, _: jax.device_put(tensors[_name(keys)]), template), step


def _step(path: Path) -> int:
    try:
        with safe_open(path, framework="numpy") as file:
            return int((file.metadata() or {})[STEP])
    except (SafetensorError, KeyError, ValueError) as error:
        raise InputError(
            f"{path} must be a model that export wrote, got a file without {STEP}; export again"
        ) from error


def _name(keys: Any) -> str:
    return "/".join(key.key for key in keys)
