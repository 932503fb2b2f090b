"""Phrase grounding: does the map of a phrase light up inside its true boxes, and more than a prior's does?"""

import dataclasses
from collections.abc import Iterator

import numpy as np
from jaxtyping import Bool, Float

from plan_jax.bootstrap import interval
from plan_jax.config import EvaluationConfig
from plan_jax.data.image import decode_image, letterbox_image
from plan_jax.data.records import Phrase, Split
from plan_jax.errors import InputError
from plan_jax.evaluation.priors import PRIORS, Priors
from plan_jax.evaluation.progress import in_chunks, progress
from plan_jax.inference import Plan
from plan_jax.metrics import GROUNDING_METRICS, grounding_metrics, scorable
from plan_jax.plots import Example

SEED = 0  # of the bootstrap and the sample


@dataclasses.dataclass(frozen=True)
class Query:
    """One phrase with a true region in one image.

    Attributes:
        patient: whose image it is.
        phrase: the phrase, with its boxes.
        image: gray levels, as stored.
        truth: union of the boxes.
    """

    patient: str
    phrase: Phrase
    image: np.ndarray
    truth: Bool[np.ndarray, "H W"]


def evaluate_grounding(plan: Plan, split: Split, train: Split) -> tuple[dict, list[Example]]:
    """Metrics of the model, of the priors and, if configured, of the untrained network.

    Args:
        plan: the model.
        split: what is scored; its images and maps are not kept, so that it may be larger than memory.
        train: where the priors are estimated.

    Returns:
        The results as laid out in `plan_jax.tables`, and `evaluation.gallery` queries with their maps, drawn at random
        and not by success.
    """
    priors = Priors.fit((q.phrase.category, q.phrase.side, q.phrase.zone, q.truth) for q in queries(train, "priors"))
    untrained = plan.untrained() if plan.config.evaluation.untrained else None
    names = ("trained", *(("untrained",) if untrained else ()), *PRIORS)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    asked: list[tuple[str, Phrase]] = []
    sample = Sample(plan.config.evaluation.gallery)
    for batch in in_chunks(queries(split, "grounding"), plan.config.evaluation.batch_size):
        trained_maps = query_maps(plan, batch)
        untrained_maps = query_maps(untrained, batch) if untrained else trained_maps
        for query, trained_map, untrained_map in zip(batch, trained_maps, untrained_maps, strict=True):
            maps = {"trained": trained_map, "untrained": untrained_map}
            maps |= priors.maps(query.phrase, example=len(asked), shape=query.truth.shape)
            for name in names:
                rows[name].append(grounding_metrics(maps[name], query.truth))
            asked.append((query.patient, query.phrase))
            sample.offer(_example(query, trained_map, rows["trained"][-1]))
    if not asked:
        raise InputError(f"{split} must hold phrases with boxes, got none; grounding needs a data set with boxes")
    return _results(rows, asked, plan.config.evaluation), sample.kept


class Sample:
    """Keeps `count` of the examples it is offered, each with the same chance (reservoir sampling, fixed seed)."""

    def __init__(self, count: int):
        self.kept: list[Example] = []
        self._count, self._offered, self._rng = count, 0, np.random.default_rng(SEED)

    def offer(self, example: Example) -> None:
        """Keeps the example, perhaps in the place of another."""
        self._offered += 1
        if len(self.kept) < self._count:
            self.kept.append(example)
        elif (place := int(self._rng.integers(self._offered))) < self._count:
            self.kept[place] = example


def _example(query: Query, grounding_map: Float[np.ndarray, "H W"], metrics: dict[str, float]) -> Example:
    return Example(
        image=query.image,
        grounding_map=grounding_map,
        boxes=query.phrase.boxes,
        phrase=query.phrase.text,
        category=query.phrase.category,
        cnr_signed=metrics["cnr_signed"],
        pointing=metrics["pointing"],
    )


def query_maps(plan: Plan, batch: list[Query]) -> list[Float[np.ndarray, "H W"]]:
    """The model's map of every query, at its image's size."""
    squares, boxes = zip(*(letterbox_image(q.image, plan.config.data.image_size) for q in batch), strict=True)
    images = plan.encode_images(np.stack(squares)[..., None])
    texts = plan.encode_texts([q.phrase.text for q in batch])
    maps, _ = plan.ground_features(images, texts)
    return [letterbox.map_to_original(found) for letterbox, found in zip(boxes, maps, strict=True)]


def queries(split: Split, task: str) -> Iterator[Query]:
    """Every phrase of a split with a region that can be scored, with a progress bar named `task`."""
    for index in progress(range(len(split)), f"{task} ({split.name})", "image"):
        record = split[index]
        image = decode_image(record.image, name=record.key)
        for phrase in record.phrases:
            truth = box_mask(phrase.boxes, *image.shape)
            if scorable(truth):
                yield Query(record.patient, phrase, image, truth)


def box_mask(boxes: tuple[tuple[float, float, float, float], ...], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """True on the pixels whose centre lies in a box (x0, y0, x1, y1)."""
    mask = np.zeros((height, width), bool)
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    for x0, y0, x1, y1 in boxes:
        mask |= ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))[None, :]
    return mask


def _results(
    rows: dict[str, list[dict[str, float]]], asked: list[tuple[str, Phrase]], config: EvaluationConfig
) -> dict:
    """Macro averages over the categories with patient-bootstrap intervals: the model's at the top level."""
    category = np.array([phrase.category for _, phrase in asked])
    patient = np.array([patient for patient, _ in asked])
    located = np.array([phrase.located for _, phrase in asked])

    def averages(name: str, kept: np.ndarray) -> dict:
        columns = {metric: np.array([row[metric] for row in rows[name]])[kept] for metric in GROUNDING_METRICS}
        return {
            metric: interval(values, patient[kept], classes=category[kept], resamples=config.bootstrap, seed=SEED)
            for metric, values in columns.items()
        }

    everything = np.ones(len(asked), bool)
    parts = {"with_location": located, "without_location": ~located}
    results = {"n": len(asked), **averages("trained", everything)}
    results["per_class"] = {str(name): averages("trained", category == name) for name in np.unique(category)}
    results |= {part: {"n": int(kept.sum()), **averages("trained", kept)} for part, kept in parts.items() if kept.any()}
    return results | {name: averages(name, everything) for name in rows if name != "trained"}
