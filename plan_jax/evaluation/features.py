"""Features of a whole split: what retrieval and zero-shot classification compare."""

import dataclasses

import jax
import numpy as np

from plan_jax.data.image import decode_image, model_input
from plan_jax.data.records import Split
from plan_jax.evaluation.progress import in_chunks, progress
from plan_jax.inference import Plan
from plan_jax.types import ImageFeatures


@dataclasses.dataclass(frozen=True)
class SplitImages:
    """A split's images in the joint space, and what is known of each.

    Attributes:
        features: of all images, on the host.
        reports: the whole text of each record.
        labels: the classes present in each record.
        patients: whose image it is.
    """

    features: ImageFeatures
    reports: list[str]
    labels: list[tuple[str, ...]]
    patients: np.ndarray


def encode_split(plan: Plan, split: Split, task: str) -> SplitImages:
    """Encodes every image of a split in batches, with a progress bar named `task`."""
    parts, reports, labels, patients = [], [], [], []
    indices = progress(range(len(split)), f"{task} ({split.name})", "image")
    for chunk in in_chunks(indices, plan.config.evaluation.batch_size):
        records = [split[index] for index in chunk]
        squares = [model_input(decode_image(record.image, name=record.key), plan.config.data)[0] for record in records]
        parts.append(jax.device_get(plan.encode_images(np.stack(squares)[..., None])))
        reports += [record.report for record in records]
        labels += [record.labels for record in records]
        patients += [record.patient for record in records]
    features = jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)
    return SplitImages(features, reports, labels, np.array(patients))
