"""A config file and its overrides from the command line, as the dataclasses that the code reads."""

import difflib
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from plan_jax.config import Config, default_config, freeze
from plan_jax.errors import InputError


def read_config(path: Path, overrides: Sequence[str] = ()) -> Config:
    """Runs `get_config()` of a file and applies overrides such as "--config.optim.learning_rate=1e-3".

    Raises:
        InputError: the file is missing or wrong, or an override names no field or has the wrong type.
    """
    if not path.is_file():
        raise InputError(f"--config must be a Python file, got {path}; choose one of configs/*.py")
    known = [name for name, _ in _leaves(default_config())]
    for override in overrides:
        _check_override(override, known)
    values = flags.FlagValues()
    arguments = ["train", f"--config={path}", *overrides]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
        return freeze(holder.value)
    except (flags.Error, ValueError, TypeError) as error:
        raise InputError(
            f"overrides must fit the type of their field, got {_line(error)}; see plan_jax/config.py"
        ) from error
    except (AttributeError, KeyError, SyntaxError, NameError, ImportError) as error:
        raise InputError(f"{path} must set known fields only, got {_line(error)}; see plan_jax/config.py") from error


def _check_override(override: str, known: list[str]) -> None:
    name, equals, _ = override.partition("=")
    if not name.startswith("--config.") or not equals:
        raise InputError(f"an override must read --config.field=value, got {override!r}; see --help")
    field = name.removeprefix("--config.")
    if field not in known:
        near = difflib.get_close_matches(field, known, n=1, cutoff=0.5)
        hint = f"did you mean --config.{near[0]}?" if near else "the fields are in plan_jax/config.py"
        raise InputError(f"{name} must name a field of the configuration, got no such field; {hint}")


def _leaves(config: ConfigDict, prefix: str = "") -> list[tuple[str, object]]:
    """(dotted name, value) of every field."""
    rows = []
    for name, value in config.items():
        rows += _leaves(value, f"{prefix}{name}.") if isinstance(value, ConfigDict) else [(prefix + name, value)]
    return rows


def _line(error: Exception) -> str:
    """An error's text in one line."""
    return " ".join(str(error).split())
