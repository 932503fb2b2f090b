"""Phrase grounding: does the map of a phrase light up inside its true boxes, and more than a prior's does?"""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Shaped

from plan_jax.bootstrap import interval
from plan_jax.config import Config
from plan_jax.data.image import decode_image
from plan_jax.data.records import Phrase, Split
from plan_jax.errors import InputError
from plan_jax.evaluation.priors import Priors
from plan_jax.evaluation.progress import in_chunks, progress
from plan_jax.evaluation.readouts import Query, Readouts
from plan_jax.inference import Plan
from plan_jax.metrics.grounding import OWN_ABOVE_OTHERS, grounding_metrics, own_above_others, scorable
from plan_jax.plots import Example

SEED = 0  # of the bootstrap and the sample
BEATEN = ("image_blind_prior", "image_blind_told_prior")  # `lead` in the results: the model's metric less theirs
LEADING = ("cnr_signed", "pointing")


@dataclasses.dataclass(frozen=True)
class Scores:
    """The metrics of every phrase, by method.

    Attributes:
        patient, category, located: of each phrase, [n].
        metrics: method -> metric -> [n]; `own_above_others` is NaN where the image shows nothing else.
    """

    patient: Shaped[np.ndarray, " n"]
    category: Shaped[np.ndarray, " n"]
    located: Bool[np.ndarray, " n"]
    metrics: dict[str, dict[str, Float[np.ndarray, " n"]]]

    def save(self, path: Path) -> None:
        """An npz without objects: patient, category, located and METHOD/METRIC."""
        columns: dict[str, Any] = {"patient": self.patient, "category": self.category, "located": self.located}
        for method, row in self.metrics.items():
            columns |= {f"{method}/{metric}": values.astype(np.float32) for metric, values in row.items()}
        partial = path.with_suffix(".tmp.npz")
        np.savez_compressed(partial, **columns)
        partial.replace(path)


def evaluate_grounding(plan: Plan, split: Split, train: Split) -> tuple[dict, list[Example], Scores]:
    """Metrics of the model's read-outs, of the priors and, if configured, of the untrained network.

    Args:
        plan: the model.
        split: what is scored; its images and maps are not kept, so that it may be larger than memory.
        train: where the priors are estimated.

    Returns:
        The results as laid out in `plan_jax.tables`; `evaluation.gallery` queries with their maps, drawn at random and
        not by success; and the metrics of every phrase.
    """
    priors = Priors.fit((q.phrase.category, q.phrase.side, q.phrase.zone, q.truth) for q in queries(train, "priors"))
    readouts = Readouts(plan, priors.categories)
    untrained = Readouts(plan.untrained(), ()) if plan.config.evaluation.untrained else None
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    asked: list[tuple[str, Phrase]] = []
    sample = Sample(plan.config.evaluation.gallery)
    for batch in in_chunks(queries(split, "grounding"), plan.config.evaluation.batch_size):
        found = readouts.maps(batch)
        if untrained:
            found["untrained"] = untrained.maps(batch)["trained"]
        for number, query in enumerate(batch):
            maps = {name: every[number] for name, every in found.items()}
            maps |= priors.maps(query.phrase, example=len(asked), shape=query.truth.shape)
            for name, grounding_map in maps.items():
                rows[name].append(_metrics(grounding_map, query))
            asked.append((query.patient, query.phrase))
            sample.offer(_example(query, maps, {name: every[-1] for name, every in rows.items()}))
    if not asked:
        raise InputError(f"{split} must hold phrases with boxes, got none; grounding needs a data set with boxes")
    scores = _scores(rows, asked)
    return _results(scores, plan.config), sample.kept, scores


def _metrics(grounding_map: Float[np.ndarray, "H W"], query: Query) -> dict[str, float]:
    own = own_above_others(grounding_map, query.truth, query.others)
    return grounding_metrics(grounding_map, query.truth) | {OWN_ABOVE_OTHERS: own}


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


def _example(query: Query, maps: dict[str, np.ndarray], rows: dict[str, dict[str, float]]) -> Example:
    rounds = [name for name in maps if name.startswith("round_")]
    steps = [*rounds, "trained"] if rounds else []
    return Example(
        image=query.image,
        grounding_map=maps["trained"],
        boxes=query.phrase.boxes,
        phrase=query.phrase.text,
        category=query.phrase.category,
        cnr_signed=rows["trained"]["cnr_signed"],
        pointing=rows["trained"]["pointing"],
        rounds=tuple((maps[name], rows[name]["cnr_signed"]) for name in steps),
    )


def queries(split: Split, task: str) -> Iterator[Query]:
    """Every phrase of a split with a region that can be scored, with a progress bar named `task`."""
    for index in progress(range(len(split)), f"{task} ({split.name})", "image"):
        record = split[index]
        image = decode_image(record.image, name=record.key)
        regions = [(phrase, box_mask(phrase.boxes, *image.shape)) for phrase in record.phrases]
        regions = [(phrase, truth) for phrase, truth in regions if scorable(truth)]
        for phrase, truth in regions:
            others = tuple(other for rival, other in regions if rival.category != phrase.category)
            yield Query(index, record.patient, phrase, image, truth, others)


def box_mask(boxes: tuple[tuple[float, float, float, float], ...], height: int, width: int) -> Bool[np.ndarray, "H W"]:
    """True on the pixels whose centre lies in a box (x0, y0, x1, y1)."""
    mask = np.zeros((height, width), bool)
    rows, columns = np.arange(height) + 0.5, np.arange(width) + 0.5
    for x0, y0, x1, y1 in boxes:
        mask |= ((rows >= y0) & (rows < y1))[:, None] & ((columns >= x0) & (columns < x1))[None, :]
    return mask


def _scores(rows: dict[str, list[dict[str, float]]], asked: list[tuple[str, Phrase]]) -> Scores:
    return Scores(
        patient=np.array([patient for patient, _ in asked]),
        category=np.array([phrase.category for _, phrase in asked]),
        located=np.array([phrase.located for _, phrase in asked]),
        metrics={
            name: {metric: np.array([row[metric] for row in every]) for metric in every[0]}
            for name, every in rows.items()
        },
    )


def _results(scores: Scores, config: Config) -> dict:
    """Macro averages over the categories with patient-bootstrap intervals: the model's at the top level."""
    category, located, found = scores.category, scores.located, dict(scores.metrics)

    def averages(columns: dict[str, np.ndarray], kept: np.ndarray) -> dict:
        described = {}
        for metric, values in columns.items():
            rows = kept & np.isfinite(values)
            if rows.any():
                described[metric] = interval(
                    values[rows],
                    scores.patient[rows],
                    classes=category[rows],
                    resamples=config.evaluation.bootstrap,
                    seed=SEED,
                )
        return described

    def parts(columns: dict[str, np.ndarray]) -> dict:
        halves = {"with_location": located, "without_location": ~located}
        return {name: {"n": int(kept.sum()), **averages(columns, kept)} for name, kept in halves.items() if kept.any()}

    def per_class(columns: dict[str, np.ndarray]) -> dict:
        return {str(name): averages(columns, category == name) for name in np.unique(category)}

    everything, trained = np.ones(len(category), bool), found.pop("trained")
    results = {"n": len(category), **averages(trained, everything)}
    results["per_class"] = per_class(trained)
    results |= parts(trained)
    results |= {name: averages(columns, everything) for name, columns in found.items()}
    for name in ("competition", *BEATEN):
        if name in found:
            results[name] |= parts(found[name])
    leads = {name: {m: trained[m] - found[name][m] for m in LEADING} for name in BEATEN}
    results["lead"] = {
        name: {**averages(lead, everything), **parts(lead), "per_class": per_class(lead)}
        for name, lead in leads.items()
    }
    return results
