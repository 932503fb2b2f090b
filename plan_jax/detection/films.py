"""The splits that a head learns from, is chosen on and is scored on."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np

from plan_jax.data.records import Record, Split, open_split, read_manifest
from plan_jax.data.rsna import Rsna, detection_split
from plan_jax.detection.examples import Films, SplitBoxes, read_boxes
from plan_jax.errors import InputError


class DealtSplit:
    """Records of several splits of one data set, read as one split. Attributes: as of Split."""

    def __init__(self, name: str, directory: Path, places: Sequence[tuple[Films, int]]):
        self.name, self.directory, self._places = name, directory, tuple(places)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> Record:
        split, place = self._places[index]
        return split[place]

    def __repr__(self) -> str:
        return f"DealtSplit({str(self.directory)!r}, {self.name!r})"


def detection_films(
    directory: Path, names: Sequence[str], *, shown: Callable[[Split], Iterable[int]]
) -> list[SplitBoxes]:
    """The boxes of the named splits of a built data set; `shown` may put a progress bar around the indices of each.

    RSNA is dealt anew into the peers' splits for detection, so that a film of the built train split may test here.
    InputError: there is no such split.
    """

    def read(name: str) -> SplitBoxes:
        split = open_split(directory, name)
        return read_boxes(split, shown(split))

    manifest = read_manifest(directory)
    if manifest["name"] != Rsna.name:
        return [read(name) for name in names]
    parts = [read(name) for name in manifest["splits"]]
    patients = [str(patient) for part in parts for patient in part.patient]
    split_of = detection_split(patients, seed=manifest["options"]["seed"])
    return [dealt(parts, split_of, name) for name in names]


def dealt(parts: Sequence[SplitBoxes], split_of: Mapping[str, str], name: str) -> SplitBoxes:
    """The records of all parts whose patient is dealt into the split `name`. InputError: there are none."""
    picked = [
        (part, row) for part in parts for row, patient in enumerate(part.patient) if split_of[str(patient)] == name
    ]
    if not picked:
        splits = ", ".join(sorted(set(split_of.values())))
        raise InputError(f"split must be one of {splits} for detection here, got {name!r}; choose one of them")
    places = [(part.split, row) for part, row in picked]
    return SplitBoxes(
        DealtSplit(name, parts[0].split.directory, places),
        np.array([part.key[row] for part, row in picked]),
        np.array([part.patient[row] for part, row in picked]),
        tuple(part.boxes[row] for part, row in picked),
    )
