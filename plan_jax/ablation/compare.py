"""Every arm's grounding with its interval, and its paired difference to the reference arm.

A figure is the mean over seeds of the macro average over categories. Its 95 % interval resamples seeds and patients
jointly. The patients of a split are the same in all runs and the arms of a seed saw the same batches, so one draw
serves all arms, and differences are paired. p-values: two-sided paired t-test over seeds.
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Float, Int
from scipy.stats import ttest_rel

from plan_jax.bootstrap import LEVELS
from plan_jax.errors import InputError
from plan_jax.tables.results import HARDEST

METRICS = ("cnr_signed", "pointing", "own_above_others")
BEFORE_ROUNDS = "round_0"
READOUTS = ("trained", BEFORE_ROUNDS, "global_map")  # the phrase's map, the same before the rounds, the global one
COMPETITION = "competition"
PRIOR = HARDEST
SEED = 0  # of the bootstrap

Scores = Mapping[str, np.ndarray]  # of a run: patient, category, located, and METHOD/METRIC, one value per phrase
Runs = Mapping[int, Scores]  # of an arm, by seed


@dataclasses.dataclass(frozen=True)
class Phrases:
    """The phrases of the split, the same in every run, and how often each resample draws their patients.

    Attributes:
        patient: index of the patient.
        category: index of the category.
        located: the phrase says side or zone.
        drawn: row 0 draws every patient once: the data as they are.
    """

    patient: Int[np.ndarray, " n"]
    category: Int[np.ndarray, " n"]
    located: Bool[np.ndarray, " n"]
    drawn: Float[np.ndarray, "S G"]

    @classmethod
    def of(cls, scores: Scores, *, resamples: int) -> "Phrases":
        """The phrases that a run was scored on."""
        names, patient = np.unique(scores["patient"], return_inverse=True)
        category = np.unique(scores["category"], return_inverse=True)[1]
        count = len(names)
        drawn = np.random.default_rng(SEED).multinomial(count, np.full(count, 1 / count), size=resamples)
        return cls(patient, category, scores["located"], np.concatenate([np.ones((1, count)), drawn]))

    def averages(
        self, values: Float[np.ndarray, " n"], kept: Bool[np.ndarray, " n"] | None = None
    ) -> Float[np.ndarray, " S"]:
        """Macro average over categories in each resample, of the kept phrases with a finite value; NaN for none."""
        known = np.isfinite(values) if kept is None else kept & np.isfinite(values)
        shape = self.drawn.shape[1], int(self.category.max()) + 1
        cell = self.patient[known] * shape[1] + self.category[known]
        totals, counts = (
            self.drawn @ np.bincount(cell, weights=weights, minlength=shape[0] * shape[1]).reshape(shape)
            for weights in (values[known].astype(np.float64), None)
        )  # [S G] [G C] -> [S C]
        present = counts > 0
        means = np.divide(totals, counts, out=np.zeros_like(totals), where=present)
        number = present.sum(axis=1)
        return np.divide(means.sum(axis=1), number, out=np.full(len(number), np.nan), where=number > 0)

    def inverted(self, cnr_signed: Float[np.ndarray, " n"]) -> int:
        """Categories whose mean is negative."""
        return int((np.bincount(self.category, weights=cnr_signed) < 0).sum())


def compare(arms: Mapping[str, Runs], reference: str, *, resamples: int) -> dict:
    """All figures: {"arms": {arm: figures}, "prior": {metric: estimate}}.

    An arm's figures: METRICS; "readout", the best of READOUTS by its own signed CNR, which those metrics are of;
    "seeds"; "inverted", the categories with a negative mean signed CNR on its worst seed; "difference" to the reference
    on the seeds that both have, None for itself; "above_prior", for all phrases and by location words; "rounds",
    METRICS after all rounds less those before them, None without rounds; "competition", METRICS of the read-out by
    competition of prompts. InputError for runs that were scored on different phrases.
    """
    for name, runs in arms.items():
        for seed, scores in runs.items():
            _check_same_phrases(scores, _first(arms[reference]), f"{name}/seed_{seed}")
    phrases = Phrases.of(_first(arms[reference]), resamples=resamples)
    readouts = {name: _readout(runs, phrases) for name, runs in arms.items()}
    figures = {}
    for name, runs in arms.items():
        chosen = readouts[name]
        figures[name] = {
            "readout": chosen,
            "seeds": sorted(runs),
            "inverted": max(phrases.inverted(scores[f"{chosen}/cnr_signed"]) for scores in runs.values()),
            **_estimates(runs, chosen, phrases),
            "difference": None
            if name == reference
            else _difference(runs, chosen, arms[reference], readouts[reference], phrases),
            "above_prior": _above_prior(runs, chosen, phrases),
            "rounds": _gain_of_rounds(runs, phrases) if _has(runs, BEFORE_ROUNDS) else None,
            "competition": _estimates(runs, COMPETITION, phrases) if _has(runs, COMPETITION) else None,
        }
    return {"arms": figures, "prior": _estimates({0: _first(arms[reference])}, PRIOR, phrases)}


def estimate(per_seed: Sequence[Float[np.ndarray, " S"]]) -> dict | None:
    """Mean over seeds with its interval, as {"value", "low", "high", "per_seed"}; None where nothing is known.

    `per_seed`: of every seed the figure on the data (element 0) and on each resample of patients. Each resample draws
    the seeds anew too, the same ones wherever there are as many seeds.
    """
    values = np.stack(per_seed, axis=1)  # [S seeds]
    picked = np.random.default_rng(SEED).integers(values.shape[1], size=values.shape)
    picked[0] = np.arange(values.shape[1])
    means = np.take_along_axis(values, picked, axis=1).mean(axis=1)
    resampled = means[1:][np.isfinite(means[1:])]
    if not np.isfinite(means[0]) or not resampled.size:
        return None
    low, high = np.percentile(resampled, LEVELS)
    return {"value": float(means[0]), "low": float(low), "high": float(high), "per_seed": values[0].tolist()}


def p_value(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Two-sided paired t-test over seeds; None for a single seed, or for differences that do not vary."""
    differences = np.subtract(one, other)
    if len(differences) < 2 or np.ptp(differences) <= 1e-9 * max(1.0, float(np.abs(differences).max())):
        return None
    return float(ttest_rel(one, other).pvalue)


def _readout(runs: Runs, phrases: Phrases) -> str:
    """The one rule for every arm: the best map by signed CNR over its seeds."""

    def signed(method: str) -> float:
        return float(np.mean([phrases.averages(scores[f"{method}/cnr_signed"])[0] for scores in runs.values()]))

    return max((method for method in READOUTS if _has(runs, method)), key=signed)


def _estimates(runs: Runs, method: str, phrases: Phrases) -> dict:
    return {metric: estimate(list(_per_seed(runs, method, metric, phrases).values())) for metric in METRICS}


def _per_seed(runs: Runs, method: str, metric: str, phrases: Phrases) -> dict[int, np.ndarray]:
    return {seed: phrases.averages(scores[f"{method}/{metric}"]) for seed, scores in sorted(runs.items())}


def _difference(runs: Runs, readout: str, base: Runs, base_readout: str, phrases: Phrases) -> dict | None:
    """Per metric the estimate of arm minus reference and its "p", and "seeds"; None without a common seed."""
    seeds = sorted(set(runs) & set(base))
    if not seeds:
        return None
    figures: dict = {"seeds": seeds}
    for metric in METRICS:
        own, other = _per_seed(runs, readout, metric, phrases), _per_seed(base, base_readout, metric, phrases)
        found = estimate([own[seed] - other[seed] for seed in seeds])
        p = p_value([own[seed][0] for seed in seeds], [other[seed][0] for seed in seeds])
        figures[metric] = None if found is None else found | {"p": p}
    return figures


def _above_prior(runs: Runs, readout: str, phrases: Phrases) -> dict:
    """What the arm has more than the prior: {"all", "with_location", "without_location"} -> METRICS."""
    parts = {"all": None, "with_location": phrases.located, "without_location": ~phrases.located}

    def above(metric: str, kept: np.ndarray | None) -> dict | None:
        pairs = [(scores[f"{readout}/{metric}"], scores[f"{PRIOR}/{metric}"]) for scores in runs.values()]
        return estimate([phrases.averages(own, kept) - phrases.averages(prior, kept) for own, prior in pairs])

    return {part: {metric: above(metric, kept) for metric in METRICS} for part, kept in parts.items()}


def _gain_of_rounds(runs: Runs, phrases: Phrases) -> dict:
    """METRICS of the map after all rounds less those before them, of the same network."""

    def gain(metric: str) -> dict | None:
        after, before = (_per_seed(runs, method, metric, phrases) for method in ("trained", BEFORE_ROUNDS))
        return estimate([after[seed] - before[seed] for seed in after])

    return {metric: gain(metric) for metric in METRICS}


def _check_same_phrases(scores: Scores, first: Scores, name: str) -> None:
    for column in ("patient", "category", "located"):
        if not np.array_equal(scores[column], first[column]):
            raise InputError(
                f"all runs must be scored on the same phrases, got another {column} in {name}; "
                "remove its results folder and run the same command again"
            )


def _has(runs: Runs, method: str) -> bool:
    return all(f"{method}/{metric}" in scores for scores in runs.values() for metric in METRICS)


def _first(runs: Runs) -> Scores:
    return runs[min(runs)]
