"""The ways to read a model's grounding map of a phrase: plain, by round, against other findings, mirrored, global."""

import dataclasses
import re
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, UInt8

from plan_jax.alignment.reference import clean_map, compete
from plan_jax.data.image import model_input, put_image
from plan_jax.data.records import Phrase
from plan_jax.evaluation.priors import resize_map
from plan_jax.evaluation.prompts import prompts_of
from plan_jax.geometry import Letterbox
from plan_jax.inference import Plan
from plan_jax.types import ImageFeatures

OTHER_SIDE = {"left": "right", "right": "left"}

Maps = Float[np.ndarray, "Q h w"]


@dataclasses.dataclass(frozen=True)
class Query:
    """One phrase with a true region in one image.

    Attributes:
        record: index of the image in its split.
        patient: whose image it is.
        phrase: the phrase, with its boxes.
        image: gray levels, as stored.
        truth: union of the boxes.
        others: the same for every finding of another category in the image.
    """

    record: int
    patient: str
    phrase: Phrase
    image: UInt8[np.ndarray, "H W"]
    truth: Bool[np.ndarray, "H W"]
    others: tuple[Bool[np.ndarray, "H W"], ...] = ()


class Readouts:
    """All read-outs of one model, by name.

    - trained: the map of `soft_regions`, what `Plan.ground` shows.
    - round_k: the same after k < K rounds, where the configuration has rounds.
    - word_mean: the mean over the words, not the best.
    - not_spread: without `alignment.map_spread`, where the configuration has it.
    - competition: against the prompts of all other classes, which it must be told.
    - mirrored: of the image and the side words turned round, turned back; a network that asks the anatomy and not the
      finding for an answer loses by it.
    - global_map: of the global similarity, cell by cell, cleaned as the others are.
    - grid_ceiling: knows the truth; what a perfect answer on the feature grid would score.
    """

    def __init__(self, plan: Plan, classes: Sequence[str]):
        self._plan, self._classes = plan, tuple(classes)
        prompts = [prompts_of(name) for name in classes]
        self._owner = np.repeat(np.arange(len(prompts)), [len(group) for group in prompts])
        texts = [text for group in prompts for text in group]
        self._prompts = plan.encode_texts(texts) if len(prompts) > 1 else None

    def maps(self, batch: list[Query]) -> dict[str, list[Float[np.ndarray, "H W"]]]:
        """Every read-out of every query, at its image's size."""
        first = {query.record: query for query in batch}
        place = {record: index for index, record in enumerate(first)}
        of_query = np.array([place[query.record] for query in batch])
        squares, letterboxes = zip(
            *(model_input(query.image, self._plan.config.data) for query in first.values()), strict=True
        )
        found = self._grid_maps(np.stack(squares)[..., None], of_query, [query.phrase for query in batch])
        cells = found["trained"].shape[1:]
        found["grid_ceiling"] = np.stack(
            [covered(batch[q].truth, cells, letterboxes[image]) for q, image in enumerate(of_query)]
        )
        return {
            name: [letterboxes[of_query[q]].map_to_original(grid) for q, grid in enumerate(maps)]
            for name, maps in found.items()
        }

    def _grid_maps(
        self, squares: UInt8[np.ndarray, "I H W 1"], of_query: np.ndarray, phrases: list[Phrase]
    ) -> dict[str, Maps]:
        plan = self._plan
        features = jax.device_get(plan.encode_images(squares))
        texts = plan.encode_phrases([phrase.text for phrase in phrases])
        own = _take(features, of_query)
        maps = {"trained": plan.ground_features(own, texts)[0]}
        for k in range(plan.config.alignment.rounds):
            maps[f"round_{k}"] = plan.with_alignment(rounds=k).ground_features(own, texts)[0]
        maps["word_mean"] = plan.with_alignment(map_words="mean").ground_features(own, texts)[0]
        if plan.config.alignment.map_spread:
            maps["not_spread"] = plan.with_alignment(map_spread=0.0).ground_features(own, texts)[0]
        if self._prompts is not None:
            every = plan.ground_all(features, self._prompts)  # [I prompts h w]
            maps["competition"] = self._competition(maps["trained"], every, of_query, phrases)
        swapped = plan.encode_phrases([swap_sides(phrase.text) for phrase in phrases])
        flipped = jax.device_get(plan.encode_images(squares[:, :, ::-1]))
        maps["mirrored"] = plan.ground_features(_take(flipped, of_query), swapped)[0][:, :, ::-1]
        cells = plan.global_maps(squares, texts, of_query)
        cleaned = clean_map(jnp.asarray(cells).reshape(len(cells), -1), config=plan.config.alignment)
        maps["global_map"] = np.asarray(cleaned).reshape(cells.shape)
        return maps

    def _competition(
        self, maps: Maps, every: Float[np.ndarray, "I P h w"], of_query: np.ndarray, phrases: list[Phrase]
    ) -> Maps:
        """Each map against those of the other classes; a class's map is the mean over its prompts."""
        classes = np.stack([every[:, self._owner == c].mean(1) for c in range(len(self._classes))], axis=1)
        names, config = np.array(self._classes), self._plan.config.evaluation
        rivals = [classes[image][names != phrase.category] for image, phrase in zip(of_query, phrases, strict=True)]
        return np.stack(
            [
                np.asarray(compete(jnp.asarray(own), jnp.asarray(other), config=config))
                for own, other in zip(maps, rivals, strict=True)
            ]
        )


def covered(truth: Bool[np.ndarray, "H W"], grid: tuple[int, int], letterbox: Letterbox) -> Float[np.ndarray, "h w"]:
    """The share of each cell that the true region covers, for an image that lies as the letterbox says."""
    square = put_image(truth.astype(np.uint8) * 255, letterbox)
    return resize_map(square.astype(np.float32) / 255, grid)


def swap_sides(text: str) -> str:
    """The text with left and right exchanged."""
    return re.sub(r"\b(left|right)\b", lambda side: OTHER_SIDE[side.group().lower()], text, flags=re.IGNORECASE)


def _take(features: ImageFeatures, rows: np.ndarray) -> ImageFeatures:
    return jax.tree.map(lambda leaf: leaf[rows], features)
