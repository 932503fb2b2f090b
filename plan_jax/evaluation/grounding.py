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

SEED = 0  # of the bootstrap


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


@dataclasses.dataclass(frozen=True)
class Scored:
    """A query with the model's map and its metrics."""

    query: Query
    map: Float[np.ndarray, "H W"]
    metrics: dict[str, float]


def evaluate_grounding(plan: Plan, split: Split, train: Split) -> tuple[dict, list[Scored]]:
    """Metrics of the model, of the priors and, if configured, of the untrained network; and every query's map.

    Args:
        plan: the model.
        split: what is scored.
        train: where the priors are estimated.

    Returns:
        The results as laid out in `plan_jax.tables`, and the model's queries one by one.
    """
    priors = Priors.fit((q.phrase.category, q.phrase.side, q.phrase.zone, q.truth) for q in queries(train, "priors"))
    untrained = plan.untrained() if plan.config.evaluation.untrained else None
    names = ("trained", *(("untrained",) if untrained else ()), *PRIORS)
    rows: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    scored: list[Scored] = []
    for batch in in_chunks(queries(split, "grounding"), plan.config.evaluation.batch_size):
        trained_maps = query_maps(plan, batch)
        untrained_maps = query_maps(untrained, batch) if untrained else trained_maps
        for query, trained_map, untrained_map in zip(batch, trained_maps, untrained_maps, strict=True):
            maps = {"trained": trained_map, "untrained": untrained_map}
            maps |= priors.maps(query.phrase, example=len(scored), shape=query.truth.shape)
            for name in names:
                rows[name].append(grounding_metrics(maps[name], query.truth))
            scored.append(Scored(query, trained_map, rows["trained"][-1]))
    if not scored:
        raise InputError(f"{split} must hold phrases with boxes, got none; grounding needs a data set with boxes")
    return _results(rows, [one.query for one in scored], plan.config.evaluation), scored


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


def _results(rows: dict[str, list[dict[str, float]]], asked: list[Query], config: EvaluationConfig) -> dict:
    """Macro averages over the categories with patient-bootstrap intervals: the model's at the top level."""
    category = np.array([query.phrase.category for query in asked])
    patient = np.array([query.patient for query in asked])
    located = np.array([query.phrase.located for query in asked])

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
