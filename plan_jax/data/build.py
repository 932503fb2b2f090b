"""From raw files to a data set that can be trained on: the driver behind `python -m plan_jax build`."""

import contextlib
import difflib
import importlib
import io
import json
import shutil
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from plan_jax.data.beam import write_with_beam
from plan_jax.data.builder import WriteShards, builder_of
from plan_jax.data.companions import REPORT, SHEET, TOKENIZER, write_companions
from plan_jax.data.records import MANIFEST, STAGING, data_folder, file_hash, open_split, read_manifest
from plan_jax.data.report import report_lines
from plan_jax.data.rows import RowSet
from plan_jax.data.source import Source, write_in_processes
from plan_jax.data.store import Store
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError

# data set -> module and class; imported when it is built
DATA_SETS = {
    "phantom": ("plan_jax.data.phantom", "PhantomSet"),
    "covid_cxr": ("plan_jax.data.covid_cxr", "CovidCxr"),
    "chexpert": ("plan_jax.data.chexpert", "CheXpert"),
    "chexpert_5x200": ("plan_jax.data.chexpert_5x200", "CheXpert5x200"),
    "covidx": ("plan_jax.data.covidx", "CovidX"),
    "nih_cxr14": ("plan_jax.data.nih_cxr14", "NihCxr14"),
    "rsna": ("plan_jax.data.rsna", "Rsna"),
    "siim": ("plan_jax.data.siim", "Siim"),
    "object_cxr": ("plan_jax.data.object_cxr", "ObjectCxr"),
    "mimic_cxr": ("plan_jax.data.mimic_cxr", "MimicCxr"),
    "ms_cxr": ("plan_jax.data.ms_cxr", "MsCxr"),
    "openi": ("plan_jax.data.openi", "OpenI"),
}
PARTS = "parts"  # in the staging folder: shards of a build that may go on later
IDENTITY = "identity.json"  # of the build whose finished shards lie in the staging folder


def build(
    name: str,
    *,
    out: Path,
    raw: Path | None = None,
    size: int | None = None,
    seed: int = 0,
    level: str = "",
    vocab: Path | None = None,
    images: Store = Store(),  # noqa: B008 frozen
    jobs: int | None = None,
    beam: Sequence[str] | None = None,
) -> dict:
    """Writes data set `name` into `out` and returns its manifest; a complete build of the same options is left as is.

    A build that was killed goes on with the shards that it had finished.

    Args:
        out: gets NAME/VERSION/ (the TFDS data set), tokenizer.json, contact_sheet.png, report.txt and, last,
            manifest.json.
        raw: folder with the published files, for data sets that have any.
        size: number of images; None for all, or the data set's default.
        level: for data sets with levels.
        vocab: a tokenizer.json or BERT vocab.txt to use; None learns one from the train split (or the first there is).
        images: how they are stored, for data sets that have raw files.
        jobs: processes; None for one per core, or fewer where there is little to do.
        beam: options of Apache Beam, which then writes the shards instead (`plan_jax.data.beam`).
    InputError: unknown name, unusable options, or `out` holds another build.
    """
    out = Path(out).resolve()
    raw = None if raw is None else Path(raw)
    if raw is not None and not raw.is_dir():
        raise InputError(f"--raw must be a folder, got {raw}; give the folder with the published files")
    staging = out / STAGING
    if out.exists() and not out.is_dir():
        raise InputError(f"--out must be a folder, got the file {out}; give another")
    tokenizer = Tokenizer.load(vocab) if vocab is not None else None
    tables = row_set(name).open(raw, seed=seed, size=size, level=level)
    identity = _identity(tables, tables.identity(size=size, images=images), vocab)
    if (out / MANIFEST).exists():
        return _reuse(out, identity)

    _clear_unfinished(out, identity)
    _clear_staging(staging)
    _keep_parts_of(staging, identity)
    source = Source(tables, images, size, staging / PARTS)
    write = partial(write_in_processes, jobs=jobs) if beam is None else partial(write_with_beam, options=beam)
    try:
        manifest = _write(source, identity, tokenizer, write=write, staging=staging)
        for part in (name, TOKENIZER, SHEET, REPORT, MANIFEST):  # the last one says "complete"
            (staging / part).rename(out / part)
    except (InputError, ValueError):  # the same call would fail again; after anything else it goes on
        shutil.rmtree(staging, ignore_errors=True)
        raise
    shutil.rmtree(staging, ignore_errors=True)
    return manifest


def _clear_staging(staging: Path) -> None:
    """Removes what a killed build left, which TFDS would take up, but its finished shards."""
    for left in staging.iterdir() if staging.is_dir() else ():
        if left.name not in (PARTS, IDENTITY):
            shutil.rmtree(left) if left.is_dir() else left.unlink()


def _keep_parts_of(staging: Path, identity: dict) -> None:
    """Finished shards of another build are of no use."""
    known = staging / IDENTITY
    try:
        same = json.loads(known.read_text()) == identity
    except (OSError, ValueError):
        same = False
    if not same:
        shutil.rmtree(staging / PARTS, ignore_errors=True)
        staging.mkdir(parents=True, exist_ok=True)
        known.write_text(json.dumps(identity))


def _write(source: Source, identity: dict, tokenizer: Tokenizer | None, *, write: WriteShards, staging: Path) -> dict:
    """Builds everything in `staging` and returns the manifest."""
    tables, total = source.tables, sum(map(len, source.rows.values()))
    builder = builder_of(source, data_dir=staging, write=write)
    progress = tqdm(total=total, unit="image", desc=f"build {tables.name}", file=sys.stderr, mininterval=1)
    with progress as bar, contextlib.redirect_stdout(io.StringIO()):  # TFDS prints there
        builder.progress = bar.update
        builder.download_and_prepare()
    folder = data_folder(staging, identity)
    manifest = identity | {
        "classes": list(tables.classes),
        "splits": builder.split_counts,
        "shards": {path.name: file_hash(path) for path in sorted(folder.glob("*.array_record*"))},
        "dropped": dict(sorted(builder.dropped.items())),
        "summary": {},
    }
    _write_manifest(staging, manifest)  # with which the splits can be opened
    manifest["summary"] = write_companions(staging, tokenizer, caption=f"{tables.name}. {tables.summary}")
    (staging / REPORT).write_text("\n".join(report_lines(manifest)) + "\n", encoding="utf-8")
    _write_manifest(staging, manifest)
    return manifest


def _write_manifest(directory: Path, manifest: dict) -> None:
    (directory / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def row_set(name: str) -> type[RowSet]:
    """The tables of data set `name`. InputError: there is no such data set."""
    if name not in DATA_SETS:
        near = difflib.get_close_matches(name, DATA_SETS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"choose one of {', '.join(DATA_SETS)}"
        raise InputError(f"data set must be one of {', '.join(DATA_SETS)}, got {name!r}; {hint}")
    module, cls = DATA_SETS[name]
    return getattr(importlib.import_module(module), cls)


def _identity(tables: RowSet, options: dict[str, int | str], vocab: Path | None) -> dict:
    """What makes two builds the same."""
    if vocab is not None:
        options = options | {"vocab": file_hash(Path(vocab))}
    return {"name": tables.name, "version": tables.version, "options": options}


def _reuse(out: Path, identity: dict) -> dict:
    """The manifest in `out`, if it is of the build asked for."""
    manifest = read_manifest(out)
    there = {key: manifest[key] for key in identity}
    if there != identity:
        raise InputError(
            f"--out must be a new folder or hold the same build, got {out} with {_describe(there)} "
            f"when asked for {_describe(identity)}; give another --out or remove that folder"
        )
    open_split(out, next(iter(manifest["splits"])))  # raises if shards are gone
    tqdm.write(f"{out} already holds {_describe(identity)}; nothing to do", file=sys.stderr)
    return manifest


def _describe(identity: dict) -> str:
    options = " ".join(f"{key}={value}" for key, value in identity["options"].items())
    return f"{identity['name']} {identity['version']} ({options})"


def _clear_unfinished(out: Path, identity: dict) -> None:
    """Makes room for a build; removes only what an unfinished build leaves."""
    left = out / identity["name"]
    if left.exists() and not any(left.glob("*/dataset_info.json")):
        raise InputError(
            f"--out must be a new folder or one of ours, got {out} with a {left.name} that is not; give another"
        )
    try:
        if left.exists():
            shutil.rmtree(left)
        (out / STAGING).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"--out must be a folder that can be written, got {out}: {error.strerror}") from error
