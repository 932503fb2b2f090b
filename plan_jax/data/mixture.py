"""Several data sets to train on, drawn from by weight."""

import bisect
import dataclasses
import itertools
import math
from collections import Counter
from collections.abc import Sequence

from plan_jax.config import DataConfig
from plan_jax.data.records import Record, Split, open_split
from plan_jax.errors import InputError


class Mixture:
    """Splits of several data sets, read as one: an index is that into their concatenation.

    A record's key, unique in its own data set, is given as FOLDER:KEY. Small to pickle, like the splits.

    Attributes:
        ranges: the indices of each split.
        weights: how often each is drawn from, relative to the others; above 0, kept to a percent of the smallest.
    """

    def __init__(self, splits: Sequence[Split], weights: Sequence[float]):
        self._splits, self.weights = tuple(splits), tuple(weights)
        ends = [0, *itertools.accumulate(map(len, self._splits))]
        self.ranges = tuple(range(start, end) for start, end in itertools.pairwise(ends))

    def __len__(self) -> int:
        return self.ranges[-1].stop

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):
            raise IndexError(f"index must be from 0 to {len(self) - 1}, got {index}")
        number = bisect.bisect_right([each.stop for each in self.ranges], index)
        split = self._splits[number]
        record = split[index - self.ranges[number].start]
        return dataclasses.replace(record, key=f"{split.directory}:{record.key}")

    def check_batch_size(self, size: int) -> None:
        """InputError where a data set has fewer records than a batch takes of it: some would be in it twice."""
        for split, weight in zip(self._splits, self.weights, strict=True):
            needed = math.ceil(size * weight / sum(self.weights))
            if len(split) < needed:
                raise InputError(
                    f"{split.directory} must have at least the {needed} records that a batch of {size} takes of it, "
                    f"got {len(split)}; lower its weight in config.data.mixture, or data.batch_size"
                )


def open_training(config: DataConfig) -> Split | Mixture:
    """The train split of `config.dir`, or its mixture with those of `config.mixture`.

    Raises:
        InputError: a folder is not one that build wrote, or is named twice.
    """
    splits = [open_split(folder, "train") for folder in (config.dir, *(folder for folder, _ in config.mixture))]
    if len(splits) == 1:
        return splits[0]
    (folder, times), *_ = Counter(split.directory for split in splits).most_common(1)
    if times > 1:
        raise InputError(
            f"config.data.mixture must name folders other than data.dir, each once, got {folder} {times} times; "
            "to draw from it more often raise its weight"
        )
    return Mixture(splits, (1.0, *(weight for _, weight in config.mixture)))
