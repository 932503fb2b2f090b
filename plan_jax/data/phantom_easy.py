"""Levels `easy` and `cooc`: 64x64, strong findings of eight types at uniform places in the lungs.

`easy` draws the types of an image independently: learnable within a minute, but it saturates. In `cooc` a type comes
with its partner, as effusion does with atelectasis, so that only images in which one of the two is missing tell which
word means which.
"""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Float32

from plan_jax.data.phantom_scene import Ellipse, Finding, Scene, grid, side_of, zone_of

SIZE = 64
CLASSES = ("nodule", "cavity", "atelectasis", "reticulation", "bulla", "consolidation", "fracture", "effusion")
PARTNERS = (("effusion", "atelectasis"), ("nodule", "cavity"), ("consolidation", "reticulation"), ("bulla", "fracture"))
BOTH = (
    0.85  # share of a pair's appearances with both partners: one is there in 0.85 / 0.925 = 92 % of the other's images
)
EASY_DISTANCE, COOC_DISTANCE = 15.0, 13.0  # pixels between the centres of two findings
X, Y = grid(SIZE)


def easy_scene(patient: np.random.Generator, image: np.random.Generator) -> Scene:
    """One phantom. `patient` decides anatomy and exposure, `image` the noise and 1-3 findings of distinct types."""
    lungs, background = _anatomy(patient, image)
    categories = image.choice(CLASSES, size=image.integers(1, 4), replace=False)
    return _scene(lungs, background, list(categories), image, distance=EASY_DISTANCE)


def cooc_scene(patient: np.random.Generator, image: np.random.Generator) -> Scene:
    """One phantom, as `easy_scene`, with 1-4 findings: one or two pairs of partners, sometimes one of a pair only."""
    lungs, background = _anatomy(patient, image)
    categories = []
    for number in image.choice(len(PARTNERS), size=image.integers(1, 3), replace=False):
        pair = image.permutation(PARTNERS[number])
        categories += list(pair if image.uniform() < BOTH else pair[:1])
    return _scene(lungs, background, categories, image, distance=COOC_DISTANCE)


def _scene(lungs, background, categories: Sequence[str], image: np.random.Generator, *, distance: float) -> Scene:
    """Findings of these types, as many as there is room for."""
    findings: list[Finding] = []
    centres: list[tuple[float, float]] = []
    for category in categories:
        layer, half_width, half_height = _shape(category, image)
        place = _place(image, lungs, centres, (half_width, half_height), distance)
        if place is None:  # no room left beside the others
            continue
        x, y, lung = place
        centres.append((x, y))
        pixels = layer(X - x, Y - y).astype(np.float32)
        findings.append(Finding(str(category), side_of(x, SIZE), zone_of(y, lung), pixels))
    return Scene(background, tuple(findings))


def _anatomy(
    rng: np.random.Generator, noise: np.random.Generator
) -> tuple[tuple[Ellipse, Ellipse], Float32[np.ndarray, "H W"]]:
    """Body, two lungs, heart, ripple; places, sizes and brightness vary. Pixel noise."""
    shift = rng.uniform(-2, 2, (2, 2))
    scale = rng.uniform(0.95, 1.05, 2)
    right, left = (
        Ellipse(centre + dx, 32 + dy, 13.5 * s, 27 * s)
        for centre, (dx, dy), s in zip((18, 46), shift, scale, strict=True)
    )
    heart = Ellipse(34 + rng.uniform(-2, 2), 42 + rng.uniform(-2, 2), 9, 10)
    level = np.float32(150 + rng.normal(0, 6))
    ripple = 6 * np.sin(2 * np.pi * (Y / 9 + rng.uniform()))
    air = right.inside(X, Y) | left.inside(X, Y)
    image = level + ripple - 55 * air + 45 * heart.inside(X, Y)
    image = image.astype(np.float32) + noise.normal(0, 6, (SIZE, SIZE)).astype(np.float32)
    return (right, left), image


def _place(rng: np.random.Generator, lungs, centres, half, distance: float) -> tuple[float, float, Ellipse] | None:
    """A uniform place inside the lungs, away from the other centres, with the whole finding inside the image."""
    for lung, radius, angle in zip(
        rng.integers(0, 2, 64), rng.uniform(size=64) ** 0.5, rng.uniform(size=64), strict=True
    ):
        ellipse = lungs[lung]
        x = float(ellipse.x + ellipse.rx * radius * np.cos(2 * np.pi * angle))
        y = float(ellipse.y + ellipse.ry * radius * np.sin(2 * np.pi * angle))
        inside = half[0] <= x <= SIZE - 1 - half[0] and half[1] <= y <= SIZE - 1 - half[1]
        if inside and all((x - a) ** 2 + (y - b) ** 2 > distance**2 for a, b in centres):
            return x, y, ellipse
    return None


def _shape(category: str, rng: np.random.Generator):
    """(layer as a function of dx and dy from the centre, half width, half height) of a new finding."""
    gain = np.float32(rng.uniform(0.85, 1.15))
    u = rng.uniform()
    match category:
        case "nodule":
            r = 4 + 1.5 * u
            return lambda x, y: 110 * gain * (x * x + y * y <= r * r), r, r
        case "cavity":
            r = 6 + 1.5 * u
            return lambda x, y: 70 * gain * _ring(x * x + y * y, r - 2.5, r), r, r
        case "atelectasis":
            w = 7 + 2 * u
            return lambda x, y: 75 * gain * ((abs(x) <= w) & (abs(y) <= 2.5)), w, 2.5
        case "reticulation":
            r = 6 + u
            return lambda x, y: gain * _square(x, y, r) * np.where(np.floor(x + 32) % 4 < 2, 45, -18), r, r
        case "bulla":
            r = 5 + 2 * u
            return lambda x, y: -85 * gain * (x * x + y * y <= r * r), r, r
        case "consolidation":
            r = 6 + 1.5 * u
            return lambda x, y: gain * _square(x, y, r) * np.where(_checker(x, y), 55, -11), r, r
        case "fracture":
            return lambda x, y: 80 * gain * (_square(x, y, 6.5) & _diagonals(x, y)), 6.5, 6.5
        case "effusion":
            return lambda x, y: 75 * gain * (_square(x, y, 7) & (y >= x)), 7, 7
    raise ValueError(f"category must be one of {CLASSES}, got {category!r}")


def _ring(squared, inner, outer):
    return (squared <= outer * outer) & (squared >= inner * inner)


def _square(x, y, half):
    return (abs(x) <= half) & (abs(y) <= half)


def _checker(x, y):
    return (np.floor((x + 33) / 3) + np.floor((y + 33) / 3)) % 2 == 0


def _diagonals(x, y):
    return (abs(x - y + 3.5) <= 1.2) | (abs(x - y - 3.5) <= 1.2)
