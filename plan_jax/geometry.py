"""Where the pixels of an original image lie in the model's square input, and the exact way back.

Coordinates are continuous: pixel i covers [i, i + 1), its centre is i + 0.5. Boxes are (x0, y0, x1, y1).
"""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from plan_jax.errors import InputError

FITS = {"long": max, "short": min}  # which side of an image fills the square


def loaded_side(size: int, crop: float) -> int:
    """Side in pixels of the square that is loaded where the model sees `size` of it, the share `crop` of its side."""
    if not 0 < crop <= 1:
        raise InputError(f"crop must be above 0 and at most 1, got {crop}; 1 shows all that is loaded")
    return round(size / crop)


@dataclass(frozen=True)
class Letterbox:
    """How an image was put into a square: x_model = x * scale_x + left, y_model = y * scale_y + top.

    Training loads a square of the side `loaded_side` and shows the model a part of it, drawn at random; everywhere else
    the model sees the part in the middle, at the same scale.

    Attributes:
        height, width: of the original image, in pixels.
        size: side of the model's input.
        content_height, content_width: the whole pixels that the resized image takes. The scales follow from them, one
            per axis, because rounding to whole pixels makes them differ a little.
        top, left: model coordinates of the original image's corner; negative where the input shows a crop.
    """

    height: int
    width: int
    size: int
    content_height: int
    content_width: int
    top: int
    left: int

    @classmethod
    def fit(cls, height: int, width: int, size: int, *, crop: float = 1.0, fit: str = "long") -> "Letterbox":
        """The middle of a square of side `loaded_side(size, crop)` that holds the image, centred, its aspect kept.

        Its long side is scaled to that side and zeros fill the rest; or, where `fit` is "short", its short side is and
        what is left of the long one lies outside. With `crop` = 1 the model sees the whole square.
        """
        if fit not in FITS:
            raise InputError(f"fit must be one of {', '.join(FITS)}, got {fit!r}; choose one of them")
        if min(height, width, size) < 1:
            raise InputError(
                f"height, width and size must be at least 1, got {height}, {width}, {size}; give sizes in pixels"
            )
        side, filled = loaded_side(size, crop), FITS[fit](height, width)
        content_height = max(1, round(height * side / filled))
        content_width = max(1, round(width * side / filled))
        margin = (side - size) // 2
        return cls(
            height=height,
            width=width,
            size=size,
            content_height=content_height,
            content_width=content_width,
            top=(side - content_height) // 2 - margin,
            left=(side - content_width) // 2 - margin,
        )

    @property
    def scale_y(self) -> float:
        """Model pixels per original pixel, downwards."""
        return self.content_height / self.height

    @property
    def scale_x(self) -> float:
        """Model pixels per original pixel, to the right."""
        return self.content_width / self.width

    def boxes_to_model(self, boxes: Float[np.ndarray, "... 4"]) -> Float[np.ndarray, "... 4"]:
        """Boxes of the original image in the coordinates of the model's input; nothing is clipped."""
        scale, shift = self._box_transform()
        return np.asarray(boxes, np.float64) * scale + shift

    def boxes_to_original(self, boxes: Float[np.ndarray, "... 4"]) -> Float[np.ndarray, "... 4"]:
        """Boxes of the model's input in the coordinates of the original image; the inverse of `boxes_to_model`."""
        scale, shift = self._box_transform()
        return (np.asarray(boxes, np.float64) - shift) / scale

    def map_to_original(self, grid_map: Float[np.ndarray, "*batch h w"]) -> Float[np.ndarray, "*batch height width"]:
        """A map on the feature grid as a map of the original image's pixels, by one bilinear interpolation.

        The h x w cells divide the whole input of the model. A value belongs to its cell's centre; between centres it is
        interpolated, beyond the outermost centres it stays constant. A pixel whose centre lies outside the input takes
        the minimum of its map: it counts as background. Values must be finite.
        """
        grid_map = np.asarray(grid_map)
        grid_map = grid_map.astype(np.result_type(grid_map.dtype, np.float32), copy=False)
        rows, cols = self.interpolation(grid_map.shape[-2:])
        lowest = grid_map.min(axis=(-2, -1), keepdims=True)
        rows, cols = rows.astype(grid_map.dtype), cols.astype(grid_map.dtype)
        full = rows @ grid_map @ cols.T  # [height h] [*batch h w] [w width] -> [*batch height width]
        seen = np.logical_and.outer(rows.any(axis=1), cols.any(axis=1))
        return np.where(seen, full, lowest)

    def interpolation(
        self, grid: tuple[int, int]
    ) -> tuple[Float[np.ndarray, "height h"], Float[np.ndarray, "width w"]]:
        """The two matrices behind `map_to_original`; a row sums to 1, or is 0 where the pixel is outside the input."""
        rows = _interpolation(self.height, grid[0], scale=self.scale_y, shift=self.top, size=self.size)
        cols = _interpolation(self.width, grid[1], scale=self.scale_x, shift=self.left, size=self.size)
        return rows, cols

    def _box_transform(self) -> tuple[Float[np.ndarray, " 4"], Float[np.ndarray, " 4"]]:
        scale = np.array([self.scale_x, self.scale_y] * 2)
        return scale, np.array([self.left, self.top] * 2, np.float64)


def _interpolation(
    pixels: int, cells: int, *, scale: float, shift: int, size: int
) -> Float[np.ndarray, "pixels cells"]:
    """Weights of the cells in every pixel of one axis."""
    centre = (np.arange(pixels) + 0.5) * scale + shift  # in model pixels
    position = np.clip(centre * cells / size - 0.5, 0, cells - 1)  # in cells, 0 at the centre of the first
    below = np.minimum(position.astype(int), max(cells - 2, 0))
    weight = position - below
    seen = (centre >= 0) & (centre < size)
    index = np.arange(pixels)
    matrix = np.zeros((pixels, cells))
    matrix[index, below] = (1 - weight) * seen
    matrix[index, np.minimum(below + 1, cells - 1)] += weight * seen
    return matrix
