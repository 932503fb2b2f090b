"""Data set `phantom`: synthetic chest images with reports, findings with exact masks. TOYS that test a method, not
radiographs: nothing measured on them says anything about patients.

Level `easy` has large, distinct findings anywhere in the lungs and is learnt within minutes on a core. In `cooc` each
comes with a partner, which separates methods. In `realistic` findings are subtle and lie where anatomy puts them.
`python -m plan_jax benchmark bench` shows that each finding of each level can be learnt from the pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from plan_jax.data import phantom_easy, phantom_realistic
from plan_jax.data.image import encode_png
from plan_jax.data.phantom_scene import Scene
from plan_jax.data.phantom_text import Report, phantom_report
from plan_jax.data.records import SPLITS, Phrase, Record
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.data.store import Store
from plan_jax.errors import InputError

LEVELS = {
    "easy": (phantom_easy.easy_scene, phantom_easy.CLASSES),
    "realistic": (phantom_realistic.realistic_scene, phantom_realistic.CLASSES),
    "cooc": (phantom_easy.cooc_scene, phantom_easy.CLASSES),  # last: a level's place in this list seeds its images
}
DEFAULT_SIZE = 12_000
MIN_SIZE = 12  # the smallest that gives every split a patient
HELD_OUT = 0.04  # share of the patients in each of tune, validation and test


@dataclass(frozen=True)
class Phantom:
    """One image with its findings (exact masks and boxes) and its report."""

    index: int
    patient: int
    scene: Scene
    report: Report


def make_phantom(seed: int, index: int, *, level: str) -> Phantom:
    """Image `index` of the data set of `seed`: a pure function, so any image can be made alone."""
    draw, classes = LEVELS[level]
    patient = patient_of(index)
    stream = [seed, list(LEVELS).index(level)]
    scene = draw(np.random.default_rng([*stream, 0, patient]), np.random.default_rng([*stream, 1, index]))
    report = phantom_report(scene.findings, classes, np.random.default_rng([*stream, 2, index]))
    return Phantom(index, patient, scene, report)


def patient_of(index: int) -> int:
    """The patient of an image: of three consecutive images, the first two show one patient, the third another."""
    return 2 * (index // 3) + (index % 3 == 2)


def split_of_patients(size: int, seed: int) -> list[str]:
    """Split of each patient of a data set of `size` images: 4 % each held out, at least one, the rest train."""
    count = patient_of(size - 1) + 1
    held = max(1, round(HELD_OUT * count))
    splits = ["train"] * count
    order = np.random.default_rng([seed, count]).permutation(count)
    for number, name in enumerate(SPLITS[1:]):
        for patient in order[number * held : (number + 1) * held]:
            splits[patient] = name
    return splits


def phantom_record(phantom: Phantom) -> Record:
    """The phantom as stored: encoded image and masks, one phrase per finding."""
    findings = phantom.scene.findings
    phrases = tuple(
        Phrase(
            text=mention.phrase,
            category=finding.category,
            side=finding.side,
            zone=finding.zone,
            located=mention.located,
            boxes=finding.boxes,
            mask=encode_png(finding.mask.astype(np.uint8) * 255),
        )
        for finding, mention in zip(findings, phantom.report.mentions, strict=True)
    )
    key, patient, study = _names(phantom.index)
    return Record(
        key=key,
        patient=patient,
        study=study,
        image=encode_png(phantom.scene.image),
        sections=(("findings", " ".join(phantom.report.sentences)),),
        labels=tuple(finding.category for finding in findings),
        phrases=phrases,
    )


@dataclass(frozen=True)
class PhantomRow(Row):
    """An image to draw."""

    seed: int = 0
    index: int = 0
    level: str = "easy"


class PhantomSet(RowSet):
    """`python -m plan_jax build phantom --out DIR [--size N] [--seed S] [--level easy|cooc|realistic]`."""

    name, version = "phantom", "1.0.0"
    summary = "Synthetic chest images with reports and exact masks: toys that test a method, not radiographs."

    def __init__(self, *, size: int, seed: int, level: str):
        super().__init__(Path(), seed=seed)
        self.size, self.level, self.classes = size, level, LEVELS[level][1]

    @classmethod
    def open(cls, raw: Path | None, *, seed: int, size: int | None, level: str) -> "PhantomSet":
        level = level or "easy"
        if level not in LEVELS:
            raise InputError(f"--level must be one of {', '.join(LEVELS)} for phantom, got {level!r}")
        if size is not None and size < MIN_SIZE:
            raise InputError(f"--size must be at least {MIN_SIZE} for phantom, got {size}")
        if seed < 0:
            raise InputError(f"--seed must be 0 or more, got {seed}")
        if raw is not None:
            raise InputError(f"--raw must be left out for phantom, which is made up, got {raw}")
        return cls(size=DEFAULT_SIZE if size is None else size, seed=seed, level=level)

    def identity(self, *, size: int | None, images: Store) -> dict[str, int | str]:
        """Not how images are stored: as drawn."""
        return {"size": self.size, "seed": self.seed, "level": self.level}

    def inputs(self) -> tuple[Path, ...]:
        return ()

    def rows(self) -> Mapping[str, list[PhantomRow]]:
        splits = split_of_patients(self.size, self.seed)
        found: dict[str, list[PhantomRow]] = {name: [] for name in SPLITS}
        for index in range(self.size):
            names = _names(index)
            found[splits[patient_of(index)]].append(
                PhantomRow(*names, Path(), f"image {index}", seed=self.seed, index=index, level=self.level)
            )
        return found

    @staticmethod
    def record(row: PhantomRow, images: Store) -> Record:  # pyright: ignore[reportIncompatibleMethodOverride]
        return phantom_record(make_phantom(row.seed, row.index, level=row.level))


def _names(index: int) -> tuple[str, str, str]:
    """Key, patient and study of an image."""
    return f"phantom-{index:06d}", f"p{patient_of(index):06d}", f"s{index:06d}"
