"""Class retrieval: are the texts that score highest with an image of its class, and the reverse?

For data sets whose classes exclude each other, such as CheXpert 5x200. The texts are the records' own reports, or,
where no record has one (the published CheXpert), the fixed prompts of the classes.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from plan_jax.data.records import Split, read_manifest
from plan_jax.evaluation.described import described
from plan_jax.evaluation.features import (
    SplitImages,
    check_labels,
    classes_of,
    encode_reports,
    encode_split,
    has_words,
    take,
)
from plan_jax.evaluation.prompts import prompts_of
from plan_jax.inference import Plan
from plan_jax.metrics.precision import PRECISION_AT, Ranking
from plan_jax.metrics.retrieval import blocks
from plan_jax.types import TextFeatures

COLUMN, TEXTS = "class", "texts/class"  # of samples: the class of each image, and of each prompt
TO_TEXT, TO_IMAGE = "_image_to_text", "_text_to_image"


def evaluate_class_retrieval(
    plan: Plan, split: Split, *, scratch: Path | None = None
) -> tuple[dict, dict[str, np.ndarray]]:
    """P@k both ways over all queries, chance beside; a k larger than the number of candidates is left out.

    "texts" says what the texts are. Records without a report, where others have one, ask and are found but have no text
    ("without_text").

    Returns:
        The results; and per image its class, the P@k of the query that it is, and either the P@k of its report as a
        query (NaN without one) or its scores with all prompts.
    """
    classes, config = classes_of(split, "retrieval"), plan.config.evaluation
    images = encode_split(plan, split, "retrieval", scratch=scratch)
    labels = images.label_matrix(classes)
    check_labels(labels, split)
    of_image = labels.argmax(axis=1)
    written = np.flatnonzero([has_words(report) for report in images.reports])
    samples = {"key": images.keys, "patient": images.patients, COLUMN: of_image}
    if len(written):
        texts = encode_reports(plan, [images.reports[index] for index in written], scratch=scratch)
        of_text = of_image[written]
        samples |= _by_reports(plan, images, texts, of_image, written)
    else:
        prompts = [prompts_of(name, read_manifest(split.directory)["name"]) for name in classes]
        of_text = np.repeat(np.arange(len(classes)), [len(group) for group in prompts])
        scores = plan.score(images.features, plan.encode_texts([text for group in prompts for text in group]))
        samples |= {"scores": scores, TEXTS: of_text} | _precisions(scores, of_image, of_text, TO_TEXT)
    results = described(statistics_of(samples), images.patients, resamples=config.bootstrap)
    results |= {"texts": "reports" if len(written) else "prompts", "n": len(of_image), "pool": len(of_image)}
    results["n_texts"] = len(of_text)
    results["without_text"] = len(of_image) - len(written) if len(written) else 0
    results["chance"] = _chance(of_image, of_text, prompts=not len(written))
    return results, samples


def statistics_of(samples: dict[str, np.ndarray]) -> Callable[[np.ndarray], dict[str, float]]:
    """The metrics of the given rows of `samples`.

    Queries are resampled, and each ranks the candidates of all rows, as in report retrieval. Prompts that ask are
    fixed, and what is resampled are the images that they rank; every class counts the same, whatever its number of
    prompts.
    """
    columns = {name: values for name, values in samples.items() if name.startswith("p@")}
    asking = None
    if "scores" in samples:
        relevant = samples[TEXTS][:, None] == samples[COLUMN]
        asking = Ranking.of(samples["scores"].T, relevant)

    def statistics(rows: np.ndarray) -> dict[str, float]:
        found = {name: values[rows][~np.isnan(values[rows])] for name, values in columns.items()}
        if asking is not None:
            counts = np.bincount(rows, minlength=len(samples[COLUMN]))
            asked = asking.precision(counts=counts).items()
            found |= {f"p@{k}{TO_IMAGE}": _by_class(values, samples[TEXTS]) for k, values in asked}
        return {name: float(values.mean()) for name, values in found.items() if values.size}

    return statistics


def _by_reports(
    plan: Plan, images: SplitImages, texts: TextFeatures, of_image: np.ndarray, written: np.ndarray
) -> dict[str, np.ndarray]:
    """P@k of every image among all reports, and of every report among all images, a block of queries at a time."""
    of_text, block = of_image[written], plan.config.evaluation.block
    to_text = [
        _precisions(plan.score(take(images.features, _rows(part)), texts), of_image[part], of_text, TO_TEXT)
        for part in blocks(len(of_image), block)
    ]
    to_image = [
        _precisions(plan.score(images.features, take(texts, _rows(part))).T, of_text[part], of_image, TO_IMAGE)
        for part in blocks(len(of_text), block)
    ]
    columns = {name: np.concatenate([part[name] for part in to_text]) for name in to_text[0]}
    for name in to_image[0]:
        columns[name] = np.full(len(of_image), np.nan)
        columns[name][written] = np.concatenate([part[name] for part in to_image])
    return columns


def _by_class(values: np.ndarray, of_query: np.ndarray) -> np.ndarray:
    """The mean of each class's queries."""
    counts = np.bincount(of_query)
    return np.bincount(of_query, weights=values)[counts > 0] / counts[counts > 0]


def _rows(part: slice) -> np.ndarray:
    return np.arange(part.start, part.stop)


def _precisions(scores: np.ndarray, of_query: np.ndarray, of_candidate: np.ndarray, way: str) -> dict[str, np.ndarray]:
    found = Ranking.of(scores, of_query[:, None] == of_candidate).precision()
    return {f"p@{k}{way}": values for k, values in found.items()}


def _chance(of_image: np.ndarray, of_text: np.ndarray, *, prompts: bool) -> dict[str, float]:
    """P@k of constant scores: for every k the share of the candidates that are of the query's class."""
    found = {}
    for way, asks, candidates in ((TO_TEXT, of_image, of_text), (TO_IMAGE, of_text, of_image)):
        share = (np.bincount(candidates, minlength=asks.max() + 1) / len(candidates))[asks]
        mean = (_by_class(share, asks) if prompts and way == TO_IMAGE else share).mean()
        found |= {f"p@{k}{way}": float(mean) for k in PRECISION_AT if k <= len(candidates)}
    return found
