"""Image-report retrieval: is an image's own report the most similar one, and the reverse?"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np

from plan_jax.data.records import Split
from plan_jax.errors import InputError
from plan_jax.evaluation import class_retrieval
from plan_jax.evaluation.described import described
from plan_jax.evaluation.features import encode_reports, encode_split, has_words, is_single_label, take
from plan_jax.evaluation.progress import progress
from plan_jax.inference import Plan
from plan_jax.metrics.retrieval import (
    QueryRanks,
    chance_ranks,
    joined,
    pools,
    query_metrics,
    retrieval_metrics,
    retrieval_ranks,
)
from plan_jax.types import ImageFeatures, TextFeatures

SEED = 0  # of the pools
POOLED = "_in_"  # R@1_..._in_1000: the column of a metric within pools


def evaluate_retrieval(plan: Plan, split: Split, *, scratch: Path | None = None) -> tuple[dict, dict[str, np.ndarray]]:
    """R@k and median rank both ways, on the full split and on random pools, chance beside; see `plan_jax.tables.files`.

    Identical reports count as one. Records without a word of report are left out and counted as "without_text". A data
    set whose classes exclude each other is scored by class instead (`plan_jax.evaluation.class_retrieval`).

    Args:
        plan: the model.
        split: what is scored; its features may be larger than memory, and no matrix of all scores is held.
        scratch: a folder with room for features beyond `evaluation.memory`.

    Returns:
        The results; and per image what `statistics_of` reads: the metrics of the query that it is, and of the text
        whose first image it is (NaN where it is of none).
    """
    if is_single_label(split):
        return class_retrieval.evaluate_class_retrieval(plan, split, scratch=scratch)
    config = plan.config.evaluation
    images = encode_split(plan, split, "retrieval", scratch=scratch)
    kept = np.flatnonzero([has_words(report) for report in images.reports])
    if not len(kept):
        raise InputError(f"{split} must hold reports, got none; retrieval needs a data set with reports")
    number: dict[str, int] = {}  # of each text, in the order of their first images
    owner = np.array([number.setdefault(images.reports[index], len(number)) for index in kept])
    texts = encode_reports(plan, list(number), scratch=scratch)
    score_of = _Scores(plan, images.features, kept, texts)
    everything = np.arange(len(kept))
    ranks = retrieval_ranks(score_of, owner, everything, block=config.block, shown=_shown)
    samples = {"key": images.keys[kept], "patient": images.patients[kept]} | _columns(ranks, len(kept))
    chance = {"chance": retrieval_metrics(query_metrics(chance_ranks(owner, everything)))}
    if 0 < config.pool < len(kept):
        parts = list(pools(len(kept), pool=config.pool, seed=SEED))
        shown = progress(parts, f"retrieval in pools of {config.pool}", "pool")
        ranks = joined([retrieval_ranks(score_of, owner, part, block=config.block) for part in shown])
        samples |= {f"{name}{POOLED}{config.pool}": of for name, of in _columns(ranks, len(kept)).items()}
        pooled = query_metrics(joined([chance_ranks(owner, part) for part in parts]))
        chance["pools"] = retrieval_metrics(pooled)
    results = described(statistics_of(samples), samples["patient"], resamples=config.bootstrap)
    results["chance"] = chance["chance"]
    if "pools" in chance:
        results["pools"][str(config.pool)]["chance"] = chance["pools"]
    return results | {"n": len(kept), "pool": len(kept), "without_text": len(images.reports) - len(kept)}, samples


class _Scores:
    """The scores of a block. The images of the last one stay on the device, since blocks of one row follow another."""

    def __init__(self, plan: Plan, images: ImageFeatures, kept: np.ndarray, texts: TextFeatures):
        self._plan, self._images, self._kept, self._texts = plan, images, kept, texts
        self._rows, self._placed = np.empty(0, int), images

    def __call__(self, rows: np.ndarray, columns: np.ndarray) -> np.ndarray:
        if not np.array_equal(rows, self._rows):
            self._rows, self._placed = rows, jax.device_put(take(self._images, self._kept[rows]))
        return self._plan.score(self._placed, take(self._texts, columns))


def statistics_of(samples: dict[str, np.ndarray]) -> Callable[[np.ndarray], dict[str, float]]:
    """The metrics of the given rows of `samples`; of pools as "pools/SIZE/METRIC"."""
    if class_retrieval.COLUMN in samples:
        return class_retrieval.statistics_of(samples)
    groups: dict[str, dict[str, np.ndarray]] = {}
    for column, values in samples.items():
        name, _, size = column.partition(POOLED)
        if name.startswith(("r@", "rank_")):
            groups.setdefault(f"pools/{size}/" if size else "", {})[name] = values

    def statistics(rows: np.ndarray) -> dict[str, float]:
        found = {}
        for group, columns in groups.items():
            metrics = retrieval_metrics({name: values[rows] for name, values in columns.items()})
            found |= {f"{group}{name}": value for name, value in metrics.items()}
        return found

    return statistics


def _columns(ranks: dict[str, QueryRanks], images: int) -> dict[str, np.ndarray]:
    """The metrics of the queries, each in the row of its image."""
    found = {name: np.full(images, np.nan) for name in query_metrics(ranks)}
    for way, asked in ranks.items():
        for name, values in query_metrics({way: asked}).items():
            found[name][asked.query] = values
    return found


def _shown(rows: Sequence[slice]):
    return progress(rows, "retrieval scores", "block of images")
