"""What both levels of phantom are made of: ellipses, findings as layers, and their sum."""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Bool, Float32, UInt8


@dataclass(frozen=True)
class Ellipse:
    """Centre and semi-axes in pixels; a pixel's position is its index."""

    x: float
    y: float
    rx: float
    ry: float

    def inside(self, x, y):
        """True where (x, y) lies in the ellipse; broadcasts."""
        return ((x - self.x) / self.rx) ** 2 + ((y - self.y) / self.ry) ** 2 <= 1


@dataclass(frozen=True)
class Finding:
    """One abnormality: what it adds to the gray levels, exactly 0 outside of it.

    `side` is the patient's: the patient's left lung is on the image's right, as on a film.
    """

    category: str
    side: str
    zone: str
    layer: Float32[np.ndarray, "H W"]

    @cached_property
    def mask(self) -> Bool[np.ndarray, "H W"]:
        """The pixels it changes."""
        return self.layer != 0

    @cached_property
    def boxes(self) -> tuple[tuple[float, float, float, float], ...]:
        """The tight (x0, y0, x1, y1) around the mask, half open; of a finding on both sides, one for each."""
        columns = np.flatnonzero(self.mask.any(0))
        if self.side != "both":
            return (_tight_box(self.mask),)
        halves = np.arange(self.mask.shape[1]) <= (columns[0] + columns[-1]) / 2
        return _tight_box(self.mask & halves), _tight_box(self.mask & ~halves)


def _tight_box(mask: Bool[np.ndarray, "H W"]) -> tuple[float, float, float, float]:
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)


@dataclass(frozen=True)
class Scene:
    """A background with its noise, and the findings on it."""

    background: Float32[np.ndarray, "H W"]
    findings: tuple[Finding, ...]

    @cached_property
    def image(self) -> UInt8[np.ndarray, "H W"]:
        """Background and layers, added, rounded and clipped to 0-255."""
        total = sum((finding.layer for finding in self.findings), start=self.background)
        return np.clip(np.rint(total), 0, 255).astype(np.uint8)


def grid(size: int) -> tuple[Float32[np.ndarray, "1 W"], Float32[np.ndarray, "H 1"]]:
    """x and y of every pixel of a square image, ready to broadcast."""
    steps = np.arange(size, dtype=np.float32)
    return steps[None, :], steps[:, None]


def side_of(x: float, size: int) -> str:
    """The patient's side of a column: the image's left half is the patient's right."""
    return "right" if x < (size - 1) / 2 else "left"


def zone_of(y: float, lung: Ellipse) -> str:
    """The third of the lung's height that a row lies in."""
    offset = (y - lung.y) / lung.ry
    return "upper" if offset < -1 / 3 else "lower" if offset > 1 / 3 else "mid"
