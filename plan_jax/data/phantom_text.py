"""Reports about phantoms: a sentence per finding, some negations, some sentences about nothing visible, shuffled."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from plan_jax.data.phantom_scene import Finding

# class -> its names; a leading "a" or "an" is the article, which a query leaves out
SYNONYMS = {
    "nodule": ("a nodule", "a coin lesion"),
    "cavity": ("a cavity", "a ring shadow", "cavitation"),
    "atelectasis": ("atelectasis", "collapse", "a linear band"),
    "reticulation": ("reticulation", "a reticular pattern", "interstitial lines"),
    "bulla": ("a bulla", "a bleb"),
    "consolidation": ("consolidation", "an infiltrate"),
    "fracture": ("a fracture", "a broken rib"),
    "effusion": ("an effusion", "pleural fluid"),
    "opacity": ("an opacity", "a hazy density"),
    "pneumothorax": ("a pneumothorax", "collapsed lung"),
    "cardiomegaly": ("cardiomegaly", "an enlarged heart"),
    "edema": ("edema", "vascular congestion"),
    "pleural thickening": ("pleural thickening", "a thick pleura"),
}
TEMPLATES = (
    "there is {}.",
    "{} is seen.",
    "{} is present.",
    "{} is noted.",
    "the image shows {}.",
    "we see {}.",
    "findings include {}.",
    "appearance of {}.",
)
NEGATIONS = ("no {}.", "no evidence of {}.", "{} is not seen.", "without {}.")
DISTRACTORS = (
    "comparison with previous study.",
    "single frontal view.",
    "history of cough.",
    "study is of good quality.",
)
LOCATED = 0.5  # share of the finding sentences that name side, zone or both


@dataclass(frozen=True)
class Mention:
    """What a report says of one finding: the query for it, and whether that names side or zone."""

    phrase: str
    located: bool


@dataclass(frozen=True)
class Report:
    """Sentences in order; one mention per finding, in the order of the findings; the classes that are negated."""

    sentences: tuple[str, ...]
    mentions: tuple[Mention, ...]
    negated: tuple[str, ...]


def phantom_report(findings: Sequence[Finding], classes: Sequence[str], rng: np.random.Generator) -> Report:
    """A report in lower case that mentions every finding once and negates 0-2 of the absent `classes`."""
    sentences, mentions = [], []
    for finding in findings:
        name, place = _pick(rng, SYNONYMS[finding.category]), _place(finding, rng)
        sentences.append(_pick(rng, TEMPLATES).format(name + place))
        mentions.append(Mention(_without_article(name) + place, bool(place)))
    present = {finding.category for finding in findings}
    absent = [name for name in classes if name not in present]
    negated = tuple(absent[i] for i in rng.permutation(len(absent))[: rng.integers(0, 3)])
    sentences += [_pick(rng, NEGATIONS).format(_without_article(_pick(rng, SYNONYMS[name]))) for name in negated]
    if rng.uniform() < 0.5:
        sentences.append(_pick(rng, DISTRACTORS))
    order = rng.permutation(len(sentences))
    return Report(tuple(sentences[i] for i in order), tuple(mentions), negated)


def _place(finding: Finding, rng: np.random.Generator) -> str:
    """Words for side and zone: both, one of them, or none; only those that the finding has."""
    if rng.uniform() >= LOCATED or not finding.side:
        return ""
    form = rng.integers(0, 4)
    if finding.side == "both":
        return " in both lungs"
    if form < 2:
        return f" in the {finding.side} {finding.zone} zone"
    if form == 2:
        return f" in the {finding.zone} zone"
    return _pick(rng, (f" in the {finding.side} lung", f" on the {finding.side}"))


def _pick(rng: np.random.Generator, options: Sequence[str]) -> str:
    return options[int(rng.integers(0, len(options)))]


def _without_article(name: str) -> str:
    return name.removeprefix("an ").removeprefix("a ")
