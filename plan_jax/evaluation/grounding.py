"""Phrase grounding: does the map of a phrase light up inside its true boxes, and more than a prior's does?"""

import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from plan_jax.bootstrap import interval
from plan_jax.config import Config
from plan_jax.data.image import decode_image
from plan_jax.data.records import Phrase, Record, Split
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
        record, patient, category, located: of each phrase, [n]; `record` is the image's index in its split.
        metrics: method -> metric -> [n]; `own_above_others` is NaN where the image shows nothing else.
    """

    record: Int[np.ndarray, " n"]
    patient: Shaped[np.ndarray, " n"]
    category: Shaped[np.ndarray, " n"]
    located: Bool[np.ndarray, " n"]
    metrics: dict[str, dict[str, Float[np.ndarray, " n"]]]

    def columns(self) -> dict[str, Shaped[np.ndarray, " n"]]:
        """What is saved, and what `statistics_of` reads: record, patient, category, located and METHOD/METRIC."""
        columns: dict[str, Any] = {name: getattr(self, name) for name in ("record", "patient", "category", "located")}
        for method, row in self.metrics.items():
            columns |= {f"{method}/{metric}": values.astype(np.float32) for metric, values in row.items()}
        return columns


def evaluate_grounding(plan: Plan, split: Split, train: Split | None) -> tuple[dict, list[Example], Scores]:
    """Metrics of the model's read-outs, of the priors and, if configured, of the untrained network.

    Args:
        plan: the model.
        split: what is scored; its images and maps are not kept, so that it may be larger than memory.
        train: where the priors are estimated; without it, or without boxes there, those that need none are scored.

    Returns:
        The results as laid out in `plan_jax.tables.files`; `evaluation.gallery` queries with their maps, drawn at
        random and not by success; and the metrics of every phrase.
    """
    priors = _fitted(train)
    readouts = Readouts(plan, priors.categories)
    untrained = Readouts(plan.untrained(), ()) if plan.config.evaluation.untrained else None
    rows: dict[str, list[dict[str, float]]] = defaultdict(list)
    asked: list[tuple[int, str, Phrase]] = []
    sample = Sample(plan.config.evaluation.gallery)
    for batch in in_chunks(queries(split, "grounding"), plan.config.evaluation.batch_size):
        found = readouts.maps(batch)
        if untrained:
            found["untrained"] = untrained.maps(batch)["trained"]
        for number, query in enumerate(batch):
            maps = {name: every[number] for name, every in found.items()}
            maps |= priors.maps(query.phrase, example=len(asked), shape=query.truth.shape)
            for name, grounding_map in maps.items():
                rows[name].append(metrics_of(grounding_map, query))
            sample.offer(example_of(query, maps, {name: every[-1] for name, every in rows.items()}))
            asked.append((query.record, query.patient, query.phrase))
    if not asked:
        raise InputError(f"{split} must hold phrases with boxes, got none; grounding needs a data set with boxes")
    scores = _scores(rows, asked)
    return _results(scores, plan.config), sample.kept, scores


def _fitted(train: Split | None) -> Priors:
    """Priors of the training split, or those that need none where it has no phrase with a place."""
    if train is None:
        return Priors.unfitted()
    masks = ((q.phrase.category, q.phrase.side, q.phrase.zone, q.truth) for q in queries(train, "priors"))
    first = next(masks, None)
    return Priors.unfitted() if first is None else Priors.fit(itertools.chain([first], masks))


def metrics_of(grounding_map: Float[np.ndarray, "H W"], query: Query) -> dict[str, float]:
    """All metrics of one map; `own_above_others` is NaN where the image shows nothing else."""
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


def example_of(query: Query, maps: dict[str, np.ndarray], rows: dict[str, dict[str, float]]) -> Example:
    """What is drawn of a query, from its maps and their metrics by read-out."""
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
        yield from queries_of(split[index], index)


def queries_of(record: Record, index: int) -> Iterator[Query]:
    """Those of one record, whose index in its split is `index`; without boxes the film is not decoded."""
    if not any(phrase.boxes for phrase in record.phrases):
        return
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


def statistics_of(
    samples: Mapping[str, Shaped[np.ndarray, " n"]],
) -> Callable[[Int[np.ndarray, " m"]], dict[str, float]]:
    """The trained network's averages over the given phrases, macro over their categories, from `Scores.columns`."""
    names, category = np.unique(samples["category"], return_inverse=True)
    columns = {name.removeprefix("trained/"): samples[name] for name in samples if name.startswith("trained/")}

    def statistics(rows: Int[np.ndarray, " m"]) -> dict[str, float]:
        means = {}
        for metric, values in columns.items():
            known = rows[np.isfinite(values[rows])]
            counts = np.bincount(category[known], minlength=len(names))
            totals = np.bincount(category[known], weights=values[known], minlength=len(names))
            if len(known):
                means[metric] = float((totals[counts > 0] / counts[counts > 0]).mean())
        return means

    return statistics


def _scores(rows: dict[str, list[dict[str, float]]], asked: list[tuple[int, str, Phrase]]) -> Scores:
    return Scores(
        record=np.array([record for record, _, _ in asked]),
        patient=np.array([patient for _, patient, _ in asked]),
        category=np.array([phrase.category for _, _, phrase in asked]),
        located=np.array([phrase.located for _, _, phrase in asked]),
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
    leads = {name: {m: trained[m] - found[name][m] for m in LEADING} for name in BEATEN if name in found}
    if leads:
        results["lead"] = {
            name: {**averages(lead, everything), **parts(lead), "per_class": per_class(lead)}
            for name, lead in leads.items()
        }
    return results
