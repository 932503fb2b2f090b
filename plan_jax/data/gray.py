"""What every decoder of an image needs: limits, what is said of damage, and gray levels."""

import contextlib
import warnings
from collections.abc import Iterator

import numpy as np
from jaxtyping import Num

from plan_jax.errors import InputError

# Checked before decoding. A chest radiograph has 4 to 20 million pixels; JPEG and DICOM end at this side anyway.
MAX_PIXELS, MAX_SIDE = 2**26, 2**16 - 1


def check_size(height: int, width: int, name: str) -> None:
    """InputError for sides, in pixels, that no radiograph has and that would fill the memory; `name` is the image's."""
    if not 1 <= height * width <= MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise InputError(
            f"image must have sides of 1 to {MAX_SIDE} and at most {MAX_PIXELS} pixels, "
            f"got {height} x {width} in {name}; reduce it"
        )


def damaged(kind: str, name: str) -> InputError:
    """What to raise of an image of that kind that is not whole."""
    return InputError(f"{kind} must be whole, got damaged data or data cut short in {name}; get the file again")


@contextlib.contextmanager
def no_warnings() -> Iterator[None]:
    """Nothing is warned of inside; filters belong to the whole process, so not where threads decode."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def stretch(values: Num[np.ndarray, "H W"], *, deep: bool) -> np.ndarray:
    """Lowest value to 0, highest to white; all 0 where they are equal."""
    low, high = float(values.min()), float(values.max())
    white = 65535 if deep else 255
    return gray_levels((values - low) * (white / (high - low) if high > low else 0.0), deep=deep)


def gray_levels(values: Num[np.ndarray, "H W"], *, deep: bool) -> np.ndarray:
    """Values of 0 to white as gray levels."""
    return np.rint(values).astype(np.uint16 if deep else np.uint8)
