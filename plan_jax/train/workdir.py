"""A run directory is begun once; it is continued only as the same run on the same data."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

from plan_jax.checkpoint import saved_steps
from plan_jax.config import Config, load_config, save_config
from plan_jax.data.records import MANIFEST
from plan_jax.errors import InputError

# Fields that may differ when a run continues: they change what is shown and kept, not what is learned.
FREE_FIELDS = ("data.dir", "data.workers", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints")


def prepare_workdir(workdir: Path, config: Config, data_dir: Path) -> None:
    """Writes config.json and tokenizer.json, after checking that a run already there is the same run on the same data.

    A run without a checkpoint has nothing to continue and is begun anew.
    """
    files = {"tokenizer.json": "tokenizer.json", MANIFEST: "data_manifest.json"}
    if saved_steps(workdir):
        for source, copy in files.items():
            if (workdir / copy).is_file() and (workdir / copy).read_bytes() != (data_dir / source).read_bytes():
                raise InputError(
                    f"config.data.dir must hold the data with which the run in {workdir} began, got another {source} "
                    f"in {data_dir}; use another --workdir for another run"
                )
        _refuse_other_run(workdir, config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        for source, copy in files.items():
            shutil.copyfile(data_dir / source, workdir / copy)
        save_config(workdir / "config.json", config)
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be written, got {workdir}: {error.strerror}") from error


def _refuse_other_run(workdir: Path, config: Config) -> None:
    for name, before, now in differing_fields(load_config(workdir / "config.json"), config):
        if name not in FREE_FIELDS and not name.startswith("evaluation."):
            raise InputError(
                f"config.{name} must stay as the run in {workdir} began, which is {before!r}, got {now!r}; "
                "use another --workdir for another run"
            )


def differing_fields(before: Any, now: Any, prefix: str = "") -> list[tuple[str, Any, Any]]:
    """(dotted name, before, now) of every field that differs."""
    rows = []
    for field in dataclasses.fields(before):
        old, new = getattr(before, field.name), getattr(now, field.name)
        if dataclasses.is_dataclass(old):
            rows += differing_fields(old, new, f"{prefix}{field.name}.")
        elif old != new:
            rows.append((prefix + field.name, old, new))
    return rows
