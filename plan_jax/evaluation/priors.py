"""Maps that know nothing of the image: a grounding number means something only above theirs.

All are estimated on the training split. A network that found out where each finding usually sits, and never looked at
the image, would score like `image_blind_prior`.
"""

import dataclasses
import re
from collections.abc import Iterable

import cv2
import numpy as np
from jaxtyping import Bool, Float

from plan_jax.data.records import Phrase
from plan_jax.errors import InputError

PRIORS = (
    "chance",
    "centre_prior",
    "phrase_blind_prior",
    "image_blind_type_prior",
    "image_blind_prior",
    "image_blind_told_prior",
)
CENTRE_WIDTH = 0.25  # standard deviation of the centre prior, as a share of each side [ours]

Key = tuple[str, str, str]  # category, side, zone; "" where not told apart


@dataclasses.dataclass(frozen=True)
class Priors:
    """How often each pixel belongs to the truth in the training split, by what the phrase says.

    Attributes:
        grid: (H, W) of the stored means.
        means: mean truth by (category, side, zone); "" in a key means all of that kind.
    """

    grid: tuple[int, int]
    means: dict[Key, Float[np.ndarray, "H W"]]

    @classmethod
    def fit(
        cls, masks: Iterable[tuple[str, str, str, Bool[np.ndarray, "h w"]]], *, grid: tuple[int, int] | None = None
    ) -> "Priors":
        """Averages training masks given as (category, side, zone, mask), with "" where side or zone is unknown.

        Masks of other sizes are averaged on `grid` (default: the size of the first mask). InputError without masks.
        """
        totals: dict[Key, np.ndarray] = {}
        counts: dict[Key, int] = {}
        for category, side, zone, mask in masks:
            grid = grid or mask.shape
            share = resize_map(mask.astype(np.float32), grid)
            keys = {(category, s, z) for s in (side, "") for z in (zone, "")} | {("", "", "")}
            for key in keys:
                if key not in totals:
                    totals[key], counts[key] = np.zeros(grid), 0
                totals[key] += share
                counts[key] += 1
        if grid is None:
            raise InputError("grounding priors need training phrases with boxes or masks, got none; build such data")
        return cls(grid=grid, means={key: totals[key] / counts[key] for key in totals})

    @classmethod
    def unfitted(cls) -> "Priors":
        """Those that need no training masks: chance and centre."""
        return cls(grid=(0, 0), means={})

    @property
    def categories(self) -> tuple[str, ...]:
        """What kinds of finding the training split has, in alphabetical order."""
        return tuple(sorted({category for category, _, _ in self.means if category}))

    def maps(
        self, phrase: Phrase, *, example: int, shape: tuple[int, int] | None = None
    ) -> dict[str, Float[np.ndarray, "H W"]]:
        """The maps named in PRIORS for one phrase, of size `shape` (default: the grid); unfitted, the first two.

        `image_blind_prior` knows the category and what the phrase says of side and zone, `image_blind_told_prior` is
        told the true side and zone even where the phrase is silent. `chance` is noise drawn anew for each `example`
        (its index): with one noise map for all, chance would hang on where that map's peak happens to lie.
        """
        shape = shape or self.grid
        known = {"chance": np.random.default_rng(example).random(shape), "centre_prior": centre_prior(shape)}
        if not self.means:
            return known
        said = set(re.findall(r"\w+", phrase.text.lower()))
        side, zone = (word if word in said else "" for word in (phrase.side, phrase.zone))
        return known | {
            "phrase_blind_prior": resize_map(self.mean("", "", ""), shape),
            "image_blind_type_prior": resize_map(self.mean(phrase.category, "", ""), shape),
            "image_blind_prior": resize_map(self.mean(phrase.category, side, zone), shape),
            "image_blind_told_prior": resize_map(self.mean(phrase.category, phrase.side, phrase.zone), shape),
        }

    def mean(self, category: str, side: str, zone: str) -> Float[np.ndarray, "H W"]:
        """The stored mean of the most that was seen in training: without the zone, then the side, then the category."""
        levels = ((category, side, zone), (category, side, ""), (category, "", zone), (category, "", ""), ("", "", ""))
        return next(self.means[key] for key in levels if key in self.means)


def centre_prior(shape: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """A Gaussian of height 1 at the centre, its standard deviation CENTRE_WIDTH of each side."""
    rows, columns = (((np.arange(n) + 0.5) / n - 0.5) / CENTRE_WIDTH for n in shape)
    return np.exp(-0.5 * (rows[:, None] ** 2 + columns[None, :] ** 2))


def resize_map(values: Float[np.ndarray, "h w"], shape: tuple[int, int]) -> Float[np.ndarray, "H W"]:
    """A map at another size: averaged over areas when it shrinks, interpolated when it grows."""
    if values.shape == tuple(shape):
        return values
    shrinks = shape[0] < values.shape[0] and shape[1] < values.shape[1]
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return cv2.resize(values, (shape[1], shape[0]), interpolation=method)
