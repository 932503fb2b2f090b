"""Linear probe: how well a logistic regression on the frozen image encoder's features tells the classes."""

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from plan_jax.data.records import Split, open_split, read_manifest
from plan_jax.data.splits import fraction_of
from plan_jax.errors import InputError
from plan_jax.evaluation.described import described
from plan_jax.evaluation.features import check_labels, classes_of, encode_split, is_single_label
from plan_jax.evaluation.progress import progress
from plan_jax.inference import Plan
from plan_jax.metrics.classification import auroc, chosen

SEED = 42  # of the training patients that a fraction draws (MGCA)
STRENGTH = 1.0  # C, the inverse of the L2 penalty: scikit-learn's default, not tuned on any split [ours]
STEPS = 1000  # of the solver at most
TRAINED_ON = "train"
SCORES = "scores_"  # the columns of samples: SCORES + fraction


def evaluate_linear_probe(plan: Plan, split: Split, *, scratch: Path | None = None) -> tuple[dict, dict]:
    """AUROC of every class and on average, for each of `evaluation.fractions` of the training patients.

    The last pooled features of the image encoder, before the projection, standardised by the training images of the
    fraction; one regression per class, or one of all classes where they exclude each other, which then also has an
    accuracy. A class without both labels among the training images of a fraction is left out there ("excluded").

    Returns:
        The results, those of the largest fraction at the top level; and per image the scores and labels that
        `statistics_of` reads.
    """
    classes, single = classes_of(split, "linear_probe"), is_single_label(split)
    manifest = read_manifest(split.directory)
    if not manifest["splits"].get(TRAINED_ON, {}).get("records"):
        raise InputError(
            f"{split.directory} must have a split to train on, got only {', '.join(manifest['splits'])}; "
            "linear_probe needs a data set with one"
        )
    train = encode_split(
        plan, open_split(split.directory, TRAINED_ON), "linear_probe", encode=plan.encoder_features, scratch=scratch
    )
    images = encode_split(plan, split, "linear_probe", encode=plan.encoder_features, scratch=scratch)
    labels, known = images.label_matrix(classes), train.label_matrix(classes)
    if single:
        check_labels(labels, split)
    samples = {
        "key": images.keys,
        "patient": images.patients,
        "labels": labels,
        "classes/names": np.array(classes),
        "classes/exclusive": np.array(single),
    }
    drawn = {}
    fractions = sorted(set(plan.config.evaluation.fractions))
    for fraction in progress(fractions, "linear_probe", "fraction"):
        rows = fraction_of(train.patients, fraction, seed=SEED)
        samples[f"{SCORES}{fraction:g}"] = probe(train.features[rows], known[rows], images.features, single=single)
        drawn[f"{fraction:g}"] = len(rows)
    results = described(statistics_of(samples), images.patients, resamples=plan.config.evaluation.bootstrap)
    return _with_counts(results, samples, drawn) | {"n": len(labels), "features": images.features.shape[1]}, samples


def probe(
    train: Float[np.ndarray, "n F"],
    labels: Bool[np.ndarray, "n C"],
    features: Float[np.ndarray, "m F"],
    *,
    single: bool,
) -> Float[np.ndarray, "m C"]:
    """Log-odds of each class of other images; NaN for a class that regression cannot learn: one without both labels."""
    scores = np.full((len(features), labels.shape[1]), np.nan)
    if single:
        own = labels.argmax(axis=1)
        learnt = np.unique(own)
        if len(learnt) > 1:
            scores[:, learnt] = _fitted(train, own).predict_log_proba(features)
        return scores
    for column, present in enumerate(labels.T):
        if present.any() and not present.all():
            scores[:, column] = _fitted(train, present).decision_function(features)
    return scores


def _fitted(features: np.ndarray, target: np.ndarray) -> Pipeline:
    regression = make_pipeline(StandardScaler(), LogisticRegression(C=STRENGTH, max_iter=STEPS))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # what STEPS reach is the probe, as an early stop is
        return regression.fit(features, target)


def statistics_of(samples: dict[str, np.ndarray]) -> Callable[[np.ndarray], dict[str, float]]:
    """The metrics of the given rows of `samples`: of each fraction "fractions/0.1/METRIC", of the largest "METRIC"."""
    labels, names = samples["labels"], [str(name) for name in samples["classes/names"]]
    scores = {column.removeprefix(SCORES): of for column, of in samples.items() if column.startswith(SCORES)}
    largest = max(scores, key=float)

    def statistics(rows: np.ndarray) -> dict[str, float]:
        found = {}
        for fraction, of in scores.items():
            metrics = _metrics(of[rows], labels[rows], names, single=bool(samples["classes/exclusive"]))
            found |= metrics if fraction == largest else {}
            found |= {f"fractions/{fraction}/{name}": value for name, value in metrics.items()}
        return found

    return statistics


def _metrics(
    scores: Float[np.ndarray, "m C"], labels: Bool[np.ndarray, "m C"], names: list[str], *, single: bool
) -> dict[str, float]:
    found = {
        f"per_class/{name}/auroc": auroc(scores[:, column], labels[:, column])
        for column, name in enumerate(names)
        if _scorable(scores[:, column], labels[:, column])
    }
    if found:
        found["auroc"] = float(np.mean(list(found.values())))
    learnt = ~np.isnan(scores).any(axis=0)
    if single and learnt.any():
        found["accuracy"] = float((chosen(np.where(learnt, scores, -np.inf)) * labels).sum(axis=1).mean())
    return found


def _scorable(scores: Float[np.ndarray, " m"], labels: Bool[np.ndarray, " m"]) -> bool:
    return bool(not np.isnan(scores).any() and labels.any() and not labels.all())


def _with_counts(results: dict, samples: dict[str, np.ndarray], drawn: dict[str, int]) -> dict:
    """The results with the number of training images of every fraction, and the classes that have no metric."""
    parts, names = results.setdefault("fractions", {}), samples["classes/names"]
    for fraction, count in drawn.items():
        columns = zip(names, samples[f"{SCORES}{fraction}"].T, samples["labels"].T, strict=True)
        excluded = [str(name) for name, scores, labels in columns if not _scorable(scores, labels)]
        parts[fraction] = parts.get(fraction, {}) | {"n_train": count, "excluded": excluded}
    largest = max(drawn, key=float)
    return results | {"n_train": drawn[largest], "excluded": parts[largest]["excluded"]}
