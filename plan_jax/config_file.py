"""A config file and its overrides from the command line, as the dataclasses that the code reads."""

import dataclasses
import difflib
import runpy
from collections.abc import Sequence
from pathlib import Path

from absl import flags
from ml_collections import ConfigDict, config_flags

from plan_jax.config import Config, default_config, freeze
from plan_jax.errors import InputError


def read_config(path: Path | str, overrides: Sequence[str] = ()) -> Config:
    """Runs `get_config()` of a file and applies overrides such as "--config.optim.learning_rate=1e-3".

    "FILE.py:NAME" runs `get_config(NAME)`: one file may hold several configurations.

    Raises:
        InputError: the file is missing or wrong, or an override names no field or has the wrong type.
    """
    file, colon, variant = str(path).rpartition(".py:")
    path, arguments_of_file = (Path(f"{file}.py"), (variant,)) if colon else (Path(path), ())
    if not path.is_file():
        raise InputError(f"--config must be a Python file, got {path}; choose one of configs/*.py")
    return freeze(_overridden(_run_file(path, arguments_of_file), overrides))


def with_overrides(config: Config, overrides: Sequence[str], *, groups: Sequence[str]) -> Config:
    """A run's configuration with overrides of fields in these groups only.

    Raises:
        InputError: an override is of another group, names no field or has the wrong type.
    """
    for override in overrides:
        group = override.partition("=")[0].removeprefix("--config.").partition(".")[0]
        if override.startswith("--config.") and group not in groups:
            raise InputError(
                f"only fields of {' and '.join(groups)} may be overridden for a trained run, got {override!r}; "
                "leave it out or train with it"
            )
    return freeze(_overridden(ConfigDict(dataclasses.asdict(config)).lock(), overrides)) if overrides else config


def _overridden(config: ConfigDict, overrides: Sequence[str]) -> ConfigDict:
    known = [name for name, _ in _leaves(default_config())]
    for override in overrides:
        _check_override(override, known)
    values = flags.FlagValues()
    arguments = ["plan_jax", *overrides]
    holder = config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=arguments)
    try:
        values(arguments)
    except (flags.Error, ValueError, TypeError) as error:
        raise InputError(
            f"overrides must fit the type of their field, got {_line(error)}; see plan_jax/config.py"
        ) from error
    return holder.value


def _run_file(path: Path, arguments: tuple[str, ...]) -> ConfigDict:
    """What `get_config()` of a file returns."""
    try:
        config = runpy.run_path(str(path))["get_config"](*arguments)
    except InputError:
        raise
    except Exception as error:  # the file is a program: it may raise anything
        raise InputError(f"{path} must hold a get_config() that sets known fields, got {_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"get_config() of {path} must return default_config(), changed, got {type(config).__name__}")
    return config


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
    """An error in one line."""
    text = str(error).replace("\\n", " ")  # a KeyError shows its text quoted
    return f"{type(error).__name__}: " + " ".join(text.split())
