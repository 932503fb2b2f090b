"""Which anchors each scale has."""

import numpy as np
from jaxtyping import Float32

from plan_jax.config import DetectionConfig
from plan_jax.errors import InputError

PER_SCALE = 3
SIZE = 416  # px, the side of the input that `detection.anchors` are given for
SCALES = 3  # at most; an encoder of fewer stages has fewer


def anchors_of(config: DetectionConfig, scales: int) -> Float32[np.ndarray, "scales A 2"]:
    """Width and height of every scale's anchors in pixels of the model's input, coarsest map first.

    InputError: `detection.anchors` has too few.
    """
    given = np.array(config.anchors, np.float32)
    wanted = scales * PER_SCALE * 2
    if len(given) < wanted:
        raise InputError(
            f"detection.anchors must hold {wanted} numbers, three pairs for each of {scales} scales, got {len(given)}; "
            "change it"
        )
    return given[:wanted].reshape(scales, PER_SCALE, 2) * np.float32(config.image_size / SIZE)
