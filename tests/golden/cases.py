"""What tests/golden/*.npz holds, in words that need none of the libraries it comes from.

Weights and inputs are drawn from their names, so only what the libraries answered is stored: of every array its norm
and SAMPLES of its values.
"""

import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent
SAMPLES = 48

RESNETS = {  # name: (size of the input, images, gradients too)
    "resnet18-224-train": (224, 2, True),
    "resnet50-224": (224, 1, True),
    "resnet50-299": (299, 1, False),
    "resnet101-224": (224, 1, False),
}
BERTS = {  # name: the sizes of the reference's configuration
    "bert-small": {"layers": 5, "hidden": 96, "heads": 4, "intermediate": 200, "vocab_size": 90, "max_positions": 40},
    "bert-base": {},
}
VITS = {  # name: (side of the input, sizes)
    "vit-small-32": (32, {"layers": 3, "hidden": 48, "heads": 3, "intermediate": 96, "grid": 4, "patch": 8}),
    "vit-base-224": (224, {}),
    "vit-base-288": (288, {}),
}


def drawn(name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Numbers of a tensor, from its name alone: no scale is 1 and no bias 0, so that a swap or an omission shows."""
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    norm = any(word in name for word in ("norm", "bn", "downsample.1", "ln_", "LayerNorm", "encoder.ln"))
    if name.endswith("running_var") or (norm and name.endswith("weight")):
        return rng.uniform(0.5, 1.5, shape).astype("f4")
    if len(shape) < 2:
        return (0.2 * rng.normal(size=shape)).astype("f4")
    fan_in = np.prod(shape[1:]) if len(shape) in (2, 4) else shape[-1]
    return (rng.normal(size=shape) * np.sqrt(2 / fan_in)).astype("f4")


def image(size: int, count: int) -> np.ndarray:
    """[count size size 3]"""
    return np.random.default_rng(size).normal(size=(count, size, size, 3)).astype("f4")


def reports(vocab_size: int, tokens: int = 24) -> tuple[np.ndarray, np.ndarray]:
    """Ids and masks of a full and a padded report, whose padding holds arbitrary ids."""
    ids = np.random.default_rng(tokens).integers(0, vocab_size, (2, tokens)).astype("i4")
    return ids, np.arange(tokens) < np.array([[tokens], [tokens - 9]])


def direction(shape: tuple[int, ...]) -> np.ndarray:
    """The scalar whose gradient is compared is <direction, features>."""
    return np.random.default_rng(shape[-1]).normal(size=shape)


def summary(array: np.ndarray) -> np.ndarray:
    """[1 + SAMPLES]: the norm and some values of an array."""
    flat = np.asarray(array, np.float64).ravel()
    chosen = np.random.default_rng(flat.size).integers(0, flat.size, SAMPLES)
    return np.concatenate([[np.linalg.norm(flat)], flat[chosen]])


def error(got: np.ndarray, want: np.ndarray) -> float:
    """Of an array against a stored summary, relative to the size of its values."""
    got = summary(got)
    norm = abs(got[0] - want[0]) / want[0]
    spread = np.sqrt(np.mean(want[1:] ** 2))
    return max(norm, np.sqrt(np.mean((got[1:] - want[1:]) ** 2)) / max(spread, 1e-3 * want[0]))


def load(name: str) -> Mapping[str, np.ndarray]:
    """The summaries of a case."""
    with np.load(FOLDER / f"{name}.npz", allow_pickle=False) as file:
        return dict(file)
