"""A run directory is begun once; it is continued only as the same run on the same data."""

import dataclasses
import functools
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from plan_jax.checkpoint import saved_steps
from plan_jax.config import Config, load_config, placeless, save_config
from plan_jax.data.records import MANIFEST, file_hash, manifest_hash
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError
from plan_jax.weights.pretrained import Origin

TOKENIZER = "tokenizer.json"
DATA_MANIFEST = "data_manifest.json"  # a copy of that of data.dir
MANIFEST_HASHES = "data_manifests.json"  # SHA-256 of the manifests of data.dir and of data.mixture, in their order

# Fields that may differ when a run continues: they change what is shown and kept, not what is learned. Folders of the
# data may be moved; that their content stays the same is told by their manifests.
FREE_FIELDS = (
    "data.workers",
    "data.prefetch",
    "train.log_every",
    "train.checkpoint_every",
    "train.keep_checkpoints",
    "train.micro_batches",
    "train.skip_limit",
    "train.validate_every",
    "train.validation_pairs",
    "train.pictures",
    "train.stall_seconds",
)
FREE_GROUPS = ("mesh.", "evaluation.", "detection.")  # the machine, and what is done with the finished network


def check_workdir(workdir: Path, config: Config, data_dir: Path, tokenizer: Tokenizer) -> None:
    """InputError where a run that has begun there is another one, or on other data. Writes nothing.

    A run without a checkpoint has nothing to continue and is begun anew.
    """
    if not saved_steps(workdir):
        return
    folders = _folders(config, data_dir)
    _refuse_other_data(workdir, folders, [manifest_hash(folder) for folder in folders])
    if not _holds(workdir / TOKENIZER, tokenizer):
        raise _other_data(workdir, data_dir, TOKENIZER, field="dir")
    _refuse_other_run(workdir, config)


def prepare_workdir(workdir: Path, config: Config, data_dir: Path, tokenizer: Tokenizer) -> None:
    """Writes config.json, tokenizer.json and the manifests, in one process, after `check_workdir`.

    Every start of a run does: a kill leaves each file as it was, or the whole new one.
    """
    hashes = [manifest_hash(folder) for folder in _folders(config, data_dir)]
    try:
        workdir.mkdir(parents=True, exist_ok=True)
        _write_whole(workdir / TOKENIZER, tokenizer.save)
        _write_whole(workdir / DATA_MANIFEST, functools.partial(shutil.copyfile, data_dir / MANIFEST))
        _write_whole(workdir / MANIFEST_HASHES, lambda path: path.write_text(json.dumps(hashes, indent=2) + "\n"))
        save_config(workdir / "config.json", config)
    except OSError as error:
        raise InputError(f"--workdir must be a folder that can be written, got {workdir}: {error.strerror}") from error


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    partial = path.with_name(f"{path.name}.tmp")
    write(partial)
    partial.replace(path)


def _folders(config: Config, data_dir: Path) -> list[Path]:
    return [data_dir, *(Path(folder) for folder, _ in config.data.mixture)]


def record_origins(workdir: Path, origins: Sequence[Origin]) -> None:
    """Writes RUN/weights.json: which published weights the run began with, and which of their tensors were not used."""
    (workdir / "weights.json").write_text(
        json.dumps([dataclasses.asdict(origin) for origin in origins], indent=2) + "\n"
    )


def _holds(path: Path, tokenizer: Tokenizer) -> bool:
    """Whether the file is this tokenizer's, or is not there yet."""
    return not path.is_file() or Tokenizer.load(path).vocabulary == tokenizer.vocabulary


def _refuse_other_run(workdir: Path, config: Config) -> None:
    for name, before, now in differing_fields(placeless(load_config(workdir / "config.json")), placeless(config)):
        if name not in FREE_FIELDS and not name.startswith(FREE_GROUPS):
            raise InputError(
                f"config.{name} must stay as the run in {workdir} began, which is {before!r}, got {now!r}; "
                "use another --workdir for another run"
            )


def _refuse_other_data(workdir: Path, folders: Sequence[Path], hashes: Sequence[str]) -> None:
    recorded, copied = workdir / MANIFEST_HASHES, workdir / DATA_MANIFEST
    if recorded.is_file():
        before = json.loads(recorded.read_text())
    else:  # begun before mixtures
        before = [file_hash(copied)] if copied.is_file() else hashes
    for number, (old, new) in enumerate(zip(before, hashes, strict=False)):  # their count is told by data.mixture
        if old != new:
            raise _other_data(workdir, folders[number], MANIFEST, field="mixture" if number else "dir")


def _other_data(workdir: Path, folder: Path, file: str, *, field: str) -> InputError:
    return InputError(
        f"config.data.{field} must hold the data with which the run in {workdir} began, got another "
        f"{file} in {folder}; use another --workdir for another run"
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
