"""Image-report retrieval: is an image's own report the most similar one, and the reverse?"""

import numpy as np

from plan_jax.bootstrap import interval, interval_of
from plan_jax.config import EvaluationConfig
from plan_jax.data.records import Split
from plan_jax.errors import InputError
from plan_jax.evaluation.features import encode_split
from plan_jax.inference import Plan
from plan_jax.metrics import (
    RECALL_AT,
    QueryRanks,
    expected_rank,
    hits,
    pooled_ranks,
    retrieval_metrics,
    retrieval_ranks,
)

SEED = 0  # of the pools and the bootstrap


def evaluate_retrieval(plan: Plan, split: Split) -> dict:
    """R@k and median rank both ways, on the full split and on random pools, chance beside; see `plan_jax.tables`.

    Identical reports count as one. Records without a word of report are left out and counted as "without_text".
    """
    config = plan.config.evaluation
    images = encode_split(plan, split, "retrieval")
    kept = np.array([any(letter.isalnum() for letter in report) for report in images.reports])
    if not kept.any():
        raise InputError(f"{split} must hold reports, got none; retrieval needs a data set with reports")
    reports = [report for report, keep in zip(images.reports, kept, strict=True) if keep]
    texts, group = np.unique(np.array(reports), return_inverse=True)
    features = plan.encode_texts(texts.tolist(), truncate=True)
    scores = plan.score(images.features, features)[kept]
    patients, own = images.patients[kept], np.arange(len(texts))

    results = _described(retrieval_ranks(scores, group, own), patients, group, config)
    results |= {"n": len(reports), "pool": len(reports), "without_text": int((~kept).sum())}
    results["chance"] = retrieval_metrics(retrieval_ranks(np.zeros_like(scores), group, own))
    if 0 < config.pool < len(reports):
        ranks = pooled_ranks(scores, group, own, pool=config.pool, seed=SEED)
        chance = pooled_ranks(np.zeros_like(scores), group, own, pool=config.pool, seed=SEED)
        pooled = _described(ranks, patients, group, config) | {"chance": retrieval_metrics(chance)}
        results["pools"] = {str(config.pool): pooled}
    return results


def _described(ranks: dict[str, QueryRanks], patients: np.ndarray, group: np.ndarray, config: EvaluationConfig) -> dict:
    """Metrics with intervals over patients; a text's patient is that of the first image that owns it."""
    first = dict(zip(group[::-1], patients[::-1], strict=True))
    owner = {"image_to_text": lambda query: patients[query], "text_to_image": lambda query: first[query]}
    described = {}
    for direction, asked in ranks.items():
        groups = np.array([owner[direction](query) for query in asked.query])
        for k in RECALL_AT:
            described[f"r@{k}_{direction}"] = interval(hits(asked, k), groups, resamples=config.bootstrap, seed=SEED)
        rank = expected_rank(asked)
        described[f"median_rank_{direction}"] = interval_of(
            lambda rows, rank=rank: float(np.median(rank[rows])), groups, resamples=config.bootstrap, seed=SEED
        )
    return described
