"""A run directory is begun once; it is continued only as the same run on the same data."""

import dataclasses
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from plan_jax.checkpoint import saved_steps
from plan_jax.config import Config, load_config, save_config
from plan_jax.data.records import MANIFEST
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError
from plan_jax.weights.pretrained import Origin

TOKENIZER = "tokenizer.json"

# Fields that may differ when a run continues: they change what is shown and kept, not what is learned.
FREE_FIELDS = ("data.dir", "data.workers", "train.log_every", "train.checkpoint_every", "train.keep_checkpoints")


def prepare_workdir(workdir: Path, config: Config, data_dir: Path, tokenizer: Tokenizer) -> None:
    """Writes config.json and tokenizer.json, after checking that a run already there is the same run on the same data.

    A run without a checkpoint has nothing to continue and is begun anew.
    """
    manifest = workdir / "data_manifest.json"
    if saved_steps(workdir):
        same = not manifest.is_file() or manifest.read_bytes() == (data_dir / MANIFEST).read_bytes()
        if not same or not _holds(workdir / TOKENIZER, tokenizer):
            raise InputError(
                f"config.data.dir must hold the data with which the run in {workdir} began, got another "
                f"{TOKENIZER if same else MANIFEST} in {data_dir}; use another --workdir for another run"
            )
        _refuse_other_run(workdir, config)
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        tokenizer.save(workdir / TOKENIZER)
        shutil.copyfile(data_dir / MANIFEST, manifest)
        save_config(workdir / "config.json", config)
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be written, got {workdir}: {error.strerror}") from error


def record_origins(workdir: Path, origins: Sequence[Origin]) -> None:
    """Writes RUN/weights.json: which published weights the run began with, and which of their tensors were not used."""
    (workdir / "weights.json").write_text(
        json.dumps([dataclasses.asdict(origin) for origin in origins], indent=2) + "\n"
    )


def _holds(path: Path, tokenizer: Tokenizer) -> bool:
    """Whether the file is this tokenizer's, or is not there yet."""
    return not path.is_file() or Tokenizer.load(path).vocabulary == tokenizer.vocabulary


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
