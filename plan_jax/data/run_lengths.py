"""Masks as run lengths, as SIIM-ACR writes them: "start length start length ...", decoded and encoded without loops.

A start counts pixels from the end of the run before (the first from the top left), column by column downwards.
"""

import numpy as np
from jaxtyping import Bool, Int

from plan_jax.errors import InputError


def read_runs(text: str, *, pixels: int) -> Int[np.ndarray, "runs 2"]:
    """First pixel of each run and the pixel after its last, of an image of `pixels` pixels.

    InputError: not pairs of plain numbers, a length of 0, a run beyond the last pixel.
    """
    if len(text) > 4 * pixels:  # a run of one pixel takes four characters, no text of such an image is longer
        raise InputError(f"run lengths must fit {pixels} pixels, got {len(text)} characters; repair the table")
    words = text.split()
    for word in words:
        if not (word.isascii() and word.isdigit() and len(word) <= 9):
            raise InputError(f"run lengths must be numbers of at most 9 digits, got {word[:20]!r}; repair the table")
    if not words or len(words) % 2:
        raise InputError(f"run lengths must be pairs of start and length, got {len(words)} numbers; repair the table")
    counts = np.array([int(word) for word in words], np.int64)
    if not counts[1::2].all():
        raise InputError("run lengths must have lengths of at least 1, got 0; repair the table")
    bounds = counts.cumsum()
    if bounds[-1] > pixels:
        raise InputError(f"run lengths must end within {pixels} pixels, got {bounds[-1]}; repair the table")
    return bounds.reshape(-1, 2)


def decode_runs(text: str, *, height: int, width: int) -> Bool[np.ndarray, "height width"]:
    """The mask. InputError as `read_runs`."""
    bounds = read_runs(text, pixels=height * width)
    steps = np.zeros(height * width + 1, np.int8)
    steps[bounds[:, 0]] += 1  # runs do not overlap: no index comes twice in a column
    steps[bounds[:, 1]] -= 1
    return steps[:-1].cumsum(dtype=np.int8).astype(bool).reshape(width, height).T


def encode_runs(mask: Bool[np.ndarray, "height width"]) -> str:
    """The one text without needless runs that `decode_runs` turns into the mask; "" where nothing is set."""
    line = np.concatenate([[False], mask.T.ravel(), [False]])
    bounds = np.flatnonzero(line[1:] != line[:-1])
    return " ".join(map(str, np.diff(bounds, prepend=0)))


def mask_box(mask: Bool[np.ndarray, "height width"]) -> tuple[float, float, float, float]:
    """The tight (x0, y0, x1, y1) around what is set, half open. InputError: nothing is set."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not rows.size:
        raise InputError("mask must have a pixel that is set, got none; leave the mask out")
    return float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1)
