"""Level `realistic`: 96x96, subtle findings where anatomy puts them, in patients who do not stand still.

Every finding keeps to a hard support, which is its exact mask; within it, its gray levels may vary.
"""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Bool, Float32

from plan_jax.data.phantom_scene import Ellipse, Finding, Scene, grid, side_of, zone_of

SIZE = 96
CLASSES = (
    "opacity",
    "effusion",
    "pneumothorax",
    "nodule",
    "cardiomegaly",
    "atelectasis",
    "edema",
    "pleural thickening",
)
BILATERAL = ("edema",)
MIDLINE = ("cardiomegaly",)  # has neither side nor zone
X, Y = grid(SIZE)
MID = (SIZE - 1) / 2
BLUR = 0.8  # of the anatomy, standard deviation in pixels
Mask = Bool[np.ndarray, "H W"]
Layer = Float32[np.ndarray, "H W"]


@dataclass(frozen=True)
class Anatomy:
    """Lungs (image left, image right), heart and the fields they cover."""

    lungs: tuple[Ellipse, Ellipse]
    heart: Ellipse
    fields: tuple[Mask, ...]  # the aerated part of each lung


def realistic_scene(patient: np.random.Generator, image: np.random.Generator) -> Scene:
    """One phantom. `patient` decides anatomy and exposure, `image` the noise and 1-3 findings of distinct types."""
    anatomy, background = _anatomy(patient)
    background = background + image.normal(0, 4, (SIZE, SIZE)).astype(np.float32)
    findings = []
    for number in image.choice(len(CLASSES), size=image.integers(1, 4), replace=False):
        category = CLASSES[number]
        lung = int(image.integers(0, 2))
        layer = DRAW[category](anatomy, lung, image).astype(np.float32)
        if layer.any():
            findings.append(_located(category, layer, anatomy.lungs[lung]))
    return Scene(background, tuple(findings))


def _located(category: str, layer: Layer, lung: Ellipse) -> Finding:
    """The finding with side and zone of its centre."""
    if category in MIDLINE:
        return Finding(category, "", "", layer)
    rows, columns = np.nonzero(layer)
    side = "both" if category in BILATERAL else side_of(columns.mean(), SIZE)
    return Finding(category, side, zone_of(rows.mean(), lung), layer)


def _anatomy(rng: np.random.Generator) -> tuple[Anatomy, Layer]:
    """Chest wall, lungs, heart, diaphragm, ribs, spine and vessels; a fifth of the width is position jitter."""
    dx, dy = rng.uniform(-9.5, 9.5), rng.uniform(-9.5, 9.5)
    s = rng.uniform(0.8, 1.0)
    right, left = (Ellipse(MID + dx + sign * 20 * s, 46 + dy, 16.5 * s, 35 * s) for sign in (-1, 1))
    heart = Ellipse(MID + dx + 5 * s, 60 + dy, rng.uniform(11, 13) * s, rng.uniform(12, 14) * s)
    in_heart = heart.inside(X, Y)
    fields = tuple(
        lung.inside(X, Y) & ~in_heart & (lung.y + 24 * s + 0.02 * (X - lung.x) ** 2 >= Y) for lung in (right, left)
    )
    body = Ellipse(MID + dx, 56 + dy, 45 * s, 62 * s).inside(X, Y)

    image = 30 + 110 * body + rng.normal(0, 6)
    image = image - 60 * (fields[0] | fields[1]) + 25 * in_heart
    image += 22 * np.exp(-(((X - MID - dx) / 5) ** 2))  # spine and mediastinum
    bend = 0.006 * (X - MID - dx) ** 2
    image += 7 * body * np.maximum(0, np.sin(2 * np.pi * ((Y - bend) / 11 + rng.uniform())))  # ribs
    coarse = rng.normal(0, 6, (12, 12)).astype(np.float32)
    image += cv2.resize(coarse, (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)  # soft tissue and vessels
    image = cv2.GaussianBlur(image.astype(np.float32), (0, 0), BLUR)
    return Anatomy((right, left), heart, fields), image


def _inner_point(field: Mask, rng: np.random.Generator) -> tuple[int, int]:
    """A uniform pixel (x, y) of a lung field."""
    rows, columns = np.nonzero(field)
    pick = rng.integers(0, len(rows))
    return int(columns[pick]), int(rows[pick])


def _opacity(anatomy: Anatomy, lung: int, rng: np.random.Generator):
    """An irregular, mottled patch."""
    x, y = _inner_point(anatomy.fields[lung], rng)
    rx, ry = rng.uniform(7, 12, 2)
    angle = np.arctan2(Y - y, X - x)
    edge = 1 + 0.2 * np.sin(3 * angle + rng.uniform(0, 6)) + 0.12 * np.sin(5 * angle + rng.uniform(0, 6))
    distance = np.sqrt(((X - x) / rx) ** 2 + ((Y - y) / ry) ** 2) / edge
    mottle = 1 + 0.4 * np.sin(2 * np.pi * (X / 5 + rng.uniform())) * np.sin(2 * np.pi * (Y / 5 + rng.uniform()))
    shade = mottle * (1 - 0.4 * np.minimum(distance, 1))
    return rng.uniform(32, 46) * (distance <= 1) * shade * anatomy.fields[lung]


def _effusion(anatomy: Anatomy, lung: int, rng: np.random.Generator):
    """Fluid at the base that climbs the lateral wall."""
    bottom = np.nonzero(anatomy.fields[lung])[0].max()
    outward = (X - anatomy.lungs[lung].x) * (-1 if lung == 0 else 1) / anatomy.lungs[lung].rx
    level = bottom - rng.uniform(4, 18) - 6 * np.maximum(0, outward) ** 2
    return rng.uniform(28, 42) * (anatomy.fields[lung] & (level <= Y))


def _pneumothorax(anatomy: Anatomy, lung: int, rng: np.random.Generator):
    """Air without vessels outside of a thin pleural line, at the top and the side."""
    shell, inward = anatomy.lungs[lung], (1 if lung == 0 else -1)
    gap = rng.uniform(5, 12)
    inner = Ellipse(shell.x + inward * gap / 2, shell.y + gap / 2, shell.rx - gap / 2, shell.ry - gap / 2)
    line = Ellipse(inner.x, inner.y, inner.rx + 1, inner.ry + 1)
    region = anatomy.fields[lung] & ~inner.inside(X, Y) & (shell.y + 10 >= Y)
    return region * np.where(line.inside(X, Y), 18.0, -rng.uniform(18, 28))


def _nodule(anatomy: Anatomy, lung: int, rng: np.random.Generator):
    """A small round spot."""
    x, y = _inner_point(anatomy.fields[lung], rng)
    r = rng.uniform(3, 4.5)
    return rng.uniform(46, 62) * ((X - x) ** 2 + (Y - y) ** 2 <= r * r)


def _cardiomegaly(anatomy: Anatomy, lung: int, rng: np.random.Generator):
    """What an enlarged heart covers beyond the usual one, whose blurred edge is filled up too."""
    del lung
    heart, s = anatomy.heart, rng.uniform(1.35, 1.55)
    large = Ellipse(heart.x + 2, heart.y, heart.rx * s, heart.ry * s * 0.9).inside(X, Y)
    in_heart = heart.inside(X, Y)
    usual = cv2.GaussianBlur(in_heart.astype(np.float32), (0, 0), BLUR)
    return 85 * (1 - usual) * (large & (usual < 0.98) & (anatomy.fields[0] | anatomy.fields[1] | in_heart))


def _atelectasis(anatomy: Anatomy, lung: int, rng: np.random.Generator):
    """A thin oblique band in the lower half."""
    shell = anatomy.lungs[lung]
    x, y = shell.x + rng.uniform(-4, 4), shell.y + rng.uniform(4, 20)
    tilt = rng.uniform(-0.5, 0.5)
    along, across = (X - x) + tilt * (Y - y), (Y - y) - tilt * (X - x)
    half = rng.uniform(8, 12)
    return rng.uniform(34, 44) * ((abs(along) <= half) & (abs(across) <= 2.2) & anatomy.fields[lung])


def _edema(anatomy: Anatomy, lung: int, rng: np.random.Generator):
    """Haze around both hila."""
    del lung
    reach = rng.uniform(14, 18)
    layer = np.zeros((SIZE, SIZE))
    for shell, field in zip(anatomy.lungs, anatomy.fields, strict=True):
        hilum = shell.x + (8 if shell.x < anatomy.heart.x else -8)
        distance = np.sqrt((X - hilum) ** 2 + ((Y - shell.y - 4) / 1.3) ** 2) / reach
        layer += field * (distance <= 1) * (1 - 0.6 * np.minimum(distance, 1))
    return rng.uniform(22, 32) * layer


def _pleural_thickening(anatomy: Anatomy, lung: int, rng: np.random.Generator):
    """A rim along a stretch of the lateral wall."""
    shell = anatomy.lungs[lung]
    width = rng.uniform(2.5, 4)
    inner = Ellipse(shell.x, shell.y, shell.rx - width, shell.ry - width)
    lateral = (shell.x - 5 > X) if lung == 0 else (shell.x + 5 < X)
    centre, half = shell.y + rng.uniform(-18, 14), rng.uniform(8, 13)
    return rng.uniform(34, 46) * (anatomy.fields[lung] & ~inner.inside(X, Y) & lateral & (abs(Y - centre) <= half))


DRAW = {
    "opacity": _opacity,
    "effusion": _effusion,
    "pneumothorax": _pneumothorax,
    "nodule": _nodule,
    "cardiomegaly": _cardiomegaly,
    "atelectasis": _atelectasis,
    "edema": _edema,
    "pleural thickening": _pleural_thickening,
}
