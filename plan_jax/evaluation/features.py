"""Features of a whole split: what retrieval, zero-shot classification and the linear probe compare."""

import dataclasses
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool

from plan_jax.data.image import decode_image, model_input
from plan_jax.data.records import Record, Split, read_manifest
from plan_jax.errors import InputError
from plan_jax.evaluation.progress import in_chunks, progress
from plan_jax.inference import Plan
from plan_jax.types import TextFeatures

# Data sets whose classes exclude each other. By name, since a small split of another set may happen to show one finding
# in each image.
SINGLE_LABEL = ("chexpert_5x200", "covidx")


@dataclasses.dataclass(frozen=True)
class SplitImages:
    """A split's images as features, and what is known of each.

    Attributes:
        features: of all images, on the host: `ImageFeatures`, or what another encoder made of them.
        keys: the records' names.
        patients: whose image it is.
        reports: the whole text of each record.
        labels: the classes present in each record.
    """

    features: Any
    keys: np.ndarray
    patients: np.ndarray
    reports: list[str]
    labels: list[tuple[str, ...]]

    def label_matrix(self, classes: tuple[str, ...]) -> Bool[np.ndarray, "I C"]:
        """Which classes are present."""
        return np.array([[name in present for name in classes] for present in self.labels])


def encode_split(
    plan: Plan, split: Split, task: str, *, encode: Callable | None = None, scratch: Path | None = None
) -> SplitImages:
    """Encodes every image of a split in batches, with a progress bar named `task`; only a batch's pixels are held.

    Args:
        plan: the model.
        split: what is read.
        task: what the bar says.
        encode: from model inputs [I H W 1] to arrays of so many rows (default: `plan.encode_images`).
        scratch: a folder with room for features beyond `evaluation.memory` (default: the system's temporary folder).

    Raises:
        InputError: the split is empty.
    """
    if not len(split):
        raise InputError(f"{split} must hold records, got none; give another split or data set")
    config, records = plan.config, []
    encode = encode or plan.encode_images

    def parts() -> Iterator[Any]:
        indices = progress(range(len(split)), f"{task} ({split.name})", "image")
        for chunk in in_chunks(indices, config.evaluation.batch_size):
            batch = [split[index] for index in chunk]
            squares = [model_input(decode_image(of.image, name=of.key), config.data)[0] for of in batch]
            records.extend(dataclasses.replace(of, image=b"") for of in batch)
            yield encode(np.stack(squares)[..., None])

    features = stored(parts(), len(split), memory=config.evaluation.memory, scratch=scratch)
    return _split_images(features, records)


def encode_reports(plan: Plan, reports: list[str], *, scratch: Path | None = None) -> TextFeatures:
    """Features of many texts, cut where they are longer than the text encoder reads; kept as those of a split."""
    config = plan.config.evaluation
    chunks = in_chunks(progress(reports, "reports", "text"), config.batch_size)
    parts = (plan.encode_texts(chunk, truncate=True) for chunk in chunks)
    return stored(parts, len(reports), memory=config.memory, scratch=scratch)


def stored(parts: Iterable[Any], rows: int, *, memory: float, scratch: Path | None = None) -> Any:
    """Trees of arrays joined along their first axis, `rows` in all, on the host.

    What is larger than `memory` GiB lies in unnamed temporary files in `scratch`, which the system removes with the
    arrays, also after a kill.
    """
    whole, start = None, 0
    for part in parts:
        if whole is None:
            large = sum(leaf[:1].nbytes for leaf in jax.tree.leaves(part)) * rows > memory * 2**30
            whole = jax.tree.map(lambda leaf, large=large: _room(leaf, rows, scratch if large else None, large), part)
        count = len(jax.tree.leaves(part)[0])
        for to, leaf in zip(jax.tree.leaves(whole), jax.tree.leaves(part), strict=True):
            to[start : start + count] = leaf
        start += count
    return whole


def _room(leaf: np.ndarray, rows: int, scratch: Path | None, on_disk: bool) -> np.ndarray:
    shape = (rows, *leaf.shape[1:])
    if not on_disk or not leaf.size:
        return np.empty(shape, leaf.dtype)
    with tempfile.TemporaryFile(dir=scratch) as file:  # the map keeps the file after it is closed
        return np.memmap(file, leaf.dtype, "w+", shape=shape)


def take(features: Any, rows: np.ndarray) -> Any:
    """Some rows of every array."""
    return jax.tree.map(lambda leaf: np.asarray(leaf[rows]), features)


def has_words(report: str) -> bool:
    """Whether a report says anything."""
    return any(letter.isalnum() for letter in report)


def classes_of(split: Split, task: str) -> tuple[str, ...]:
    """The classes of the split's data set. InputError: it has none."""
    classes = tuple(read_manifest(split.directory)["classes"])
    if not classes:
        raise InputError(f"{split.directory} must have classes, got none; {task} needs a data set with labels")
    return classes


def is_single_label(split: Split) -> bool:
    """Whether the classes of the split's data set exclude each other."""
    return read_manifest(split.directory)["name"] in SINGLE_LABEL


def check_labels(labels: Bool[np.ndarray, "I C"], split: Split) -> None:
    """InputError unless every record of a single-label set has exactly one label."""
    counts = labels.sum(axis=1)
    if (counts != 1).any():
        raise InputError(
            f"every record of {split} must have exactly one label, got {counts[counts != 1][0]} in one; build it again"
        )


def _split_images(features: Any, records: list[Record]) -> SplitImages:
    return SplitImages(
        features=features,
        keys=np.array([record.key for record in records]),
        patients=np.array([record.patient for record in records]),
        reports=[record.report for record in records],
        labels=[record.labels for record in records],
    )
