"""Data sets in memory and models that answer as a test says."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np

from plan_jax.config import Config, EvaluationConfig
from plan_jax.data.image import encode_png
from plan_jax.data.records import Record
from plan_jax.types import ImageFeatures, TextFeatures


class Records(list):
    """Records in memory, read like a split; `directory` holds the manifest of a data set where one is needed."""

    def __init__(self, records, *, name: str = "test", directory: Path | None = None):
        super().__init__(records)
        self.name, self.directory = name, directory


def data_set(directory: Path, name: str, classes=(), **splits: list[Record]) -> dict[str, Records]:
    """Splits of records with a manifest of data set `name`."""
    counts = {split: {"records": len(records)} for split, records in splits.items()}
    manifest = {"name": name, "version": "1.0.0", "options": {}, "classes": list(classes), "splits": counts}
    manifest |= {"shards": {}, "dropped": {}, "summary": {}}
    (directory / "manifest.json").write_text(json.dumps(manifest))
    return {split: Records(records, name=split, directory=directory) for split, records in splits.items()}


def record(number: int, report: str = "", **fields) -> Record:
    """An image whose every pixel is `number`."""
    image = encode_png(np.full((8, 8), number, np.uint8))
    sections = (("findings", report),) if report else ()
    return Record(f"r{number}", f"p{number}", f"s{number}", image, **({"sections": sections} | fields))


class ByNumber:
    """A model that reads the number off an image and off a text, and scores by `score_of` (image, text).

    `truncate` is what texts are expected to be encoded with: a long report is cut, a prompt is not.
    """

    def __init__(
        self,
        score_of: Callable,
        *,
        number_of: Callable[[str], float] = lambda text: float(text.split()[-1]),
        truncate: bool = True,
        **fields,
    ):
        evaluation = dataclasses.replace(EvaluationConfig(), **({"bootstrap": 20, "batch_size": 4} | fields))
        self.config = dataclasses.replace(Config(), evaluation=evaluation)
        self.score_of, self.number_of, self.truncate = score_of, number_of, truncate

    def encode_images(self, images):
        number = np.asarray(images).max(axis=(1, 2, 3)).astype(float)
        return ImageFeatures(pooled=number[:, None], patch=number[:, None, None], grid=(1, 1))

    def encoder_features(self, images):
        return self.encode_images(images).pooled

    def encode_texts(self, texts, *, truncate=False):
        assert truncate == self.truncate
        number = np.array([self.number_of(text) for text in texts])
        one = np.ones((len(texts), 1), bool)
        return TextFeatures(pooled=number[:, None], word=number[:, None, None], word_logit=one * 0.0, mask=one)

    def score(self, images, texts):
        return np.asarray(self.score_of(images.pooled, texts.pooled.T))


def values(metrics: dict, names) -> dict[str, float]:
    """The values of metrics that have an interval."""
    return {name: metrics[name]["value"] for name in names}
