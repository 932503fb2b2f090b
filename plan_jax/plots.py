"""Pictures of grounding maps. Similarity has no absolute zero (the loss compares images, so a constant added to all
patches of an image changes nothing it sees), hence colour shows the contrast within a map: none up to the map's median,
full orange at its highest value, growing with the square between. True boxes are yellow with a dark edge.

Matplotlib is loaded only by the functions that write a file.
"""

import dataclasses
import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

Box = tuple[float, float, float, float]

MATCH, BOX, EDGE = (255, 110, 0), (255, 235, 60), (20, 20, 20)  # RGB
OPACITY = 0.85  # of the colour at a map's highest value
WORD_COLUMNS = 8  # pictures in a row of word maps
SIDE = 320  # about the longer side of a picture in pixels
LINE, LETTER = 16, 8  # height and width in pixels that a letter of a caption takes


@dataclasses.dataclass(frozen=True)
class Example:
    """A phrase, an image and where the network finds the one in the other.

    Attributes:
        image: gray levels of the stored image.
        grounding_map: similarity of every pixel with the phrase, of the image's size.
        boxes: true boxes (x0, y0, x1, y1) in pixels, half open.
        pointing: 1 if the map's peak lies inside the truth, else 0 (a share where several pixels tie).
        rounds: the map and its signed CNR after 0, 1, ... K rounds; empty where the model has none.
    """

    image: UInt8[np.ndarray, "H W"]
    grounding_map: Float[np.ndarray, "H W"]
    boxes: tuple[Box, ...]
    phrase: str
    category: str
    cnr_signed: float
    pointing: float
    rounds: tuple[tuple[Float[np.ndarray, "H W"], float], ...] = ()

    @property
    def hit(self) -> bool:
        """Whether the pointing game counts as won."""
        return self.pointing >= 0.5


def contrast(grounding_map: Float[np.ndarray, "H W"]) -> Float[np.ndarray, "H W"]:
    """0 up to the map's median, 1 at its highest value, a square between, so that the best places stand out.

    A constant map is 0.
    """
    middle, highest = float(np.median(grounding_map)), float(grounding_map.max())
    if highest <= middle:
        return np.zeros(grounding_map.shape)
    return np.clip((grounding_map - middle) / (highest - middle), 0, 1) ** 2


def overlay(
    image: UInt8[np.ndarray, "H W"],
    grounding_map: Float[np.ndarray, "H W"],
    *,
    boxes: Sequence[Box] = (),
    side: int = SIDE,
) -> UInt8[np.ndarray, "h w 3"]:
    """The map's `contrast` over the gray image, with box outlines, as RGB.

    Small images grow by a whole factor to at most `side` pixels, large ones shrink to it. ValueError for a map of
    another size than the image.
    """
    if image.shape != grounding_map.shape:
        raise ValueError(f"the map must have the image's size {image.shape}, got {grounding_map.shape}")
    gray = _resized(image, side)
    method = cv2.INTER_LINEAR if gray.size >= image.size else cv2.INTER_AREA
    share = cv2.resize(contrast(grounding_map).astype(np.float32), gray.shape[::-1], interpolation=method)
    return _outlined(_tinted(gray, share), boxes, scale=gray.shape[1] / image.shape[1])


def with_boxes(
    image: UInt8[np.ndarray, "H W"], *, boxes: Sequence[Box] = (), side: int = SIDE
) -> UInt8[np.ndarray, "h w 3"]:
    """The gray image alone with box outlines, as RGB, sized as by `overlay`."""
    gray = _resized(image, side)
    return _outlined(np.repeat(gray[..., None], 3, axis=2), boxes, scale=gray.shape[1] / image.shape[1])


def beside(
    image: UInt8[np.ndarray, "H W"], grounding_map: Float[np.ndarray, "H W"], *, boxes: Sequence[Box] = (), caption: str
) -> UInt8[np.ndarray, "h w 3"]:
    """The image and, right of it, the overlay, as one RGB picture; above them a dark strip with the caption, if any.

    OpenCV's letters are ASCII: others become "?". What does not fit into two lines is left out.
    """
    pair = np.concatenate([with_boxes(image, boxes=boxes), overlay(image, grounding_map, boxes=boxes)], axis=1)
    if not caption:
        return pair
    strip = np.full((2 * LINE + 4, pair.shape[1], 3), EDGE, np.uint8)
    shown = _wrapped(caption.encode("ascii", "replace").decode(), width=max(8, pair.shape[1] // LETTER), lines=2)
    for number, line in enumerate(shown.splitlines(), start=1):
        at = (4, number * LINE - 4)
        cv2.putText(strip, line, at, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (255, 255, 255), 1, cv2.LINE_AA)
    return np.concatenate([strip, pair])


def save_overlay(
    path: Path,
    image: UInt8[np.ndarray, "H W"],
    grounding_map: Float[np.ndarray, "H W"],
    *,
    phrase: str,
    boxes: Sequence[Box] = (),
) -> None:
    """Writes a PNG: the image beside the overlay, the phrase above, a colour bar with the map's values."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 5), layout="constrained")
    left, right, bar = figure.subplots(1, 3, width_ratios=(10, 10, 0.5))
    _show(left, with_boxes(image, boxes=boxes, side=2 * SIDE), title="image")
    _show(right, overlay(image, grounding_map, boxes=boxes, side=2 * SIDE), title="grounding map")
    _colour_bar(bar, float(np.median(grounding_map)), float(grounding_map.max()))
    figure.suptitle(_wrapped(phrase, width=80, lines=4), parse_math=False)
    _save(figure, path)


def save_word_maps(
    path: Path,
    image: UInt8[np.ndarray, "H W"],
    maps: Float[np.ndarray, "L H W"],
    *,
    words: Sequence[str],
    importance: Float[np.ndarray, " L"],
) -> None:
    """Writes a PNG: the image, then under every word its own map, with the word's share of the whole."""
    from matplotlib.figure import Figure

    columns = min(len(words) + 1, WORD_COLUMNS)
    rows = -(-(len(words) + 1) // columns)
    figure = Figure(figsize=(1.8 * columns, 2.1 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, columns)
    pictures = [with_boxes(image), *(overlay(image, one) for one in maps)]
    titles = ["image", *(f"{word} ({share:.0%})" for word, share in zip(words, importance, strict=True))]
    for place, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        _show(
            figure.add_subplot(grid[place // columns, place % columns]),
            picture,
            title=_wrapped(title, width=24, lines=1),
        )
    _save(figure, path)


def save_figure(path: Path, examples: Sequence[Example]) -> None:
    """Writes a PNG strip: per example the image with its true boxes above the map."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.1 * len(examples), 5.2), layout="constrained")
    grid = figure.add_gridspec(2, len(examples))
    for column, example in enumerate(examples):
        pictures = (
            with_boxes(example.image, boxes=example.boxes),
            overlay(example.image, example.grounding_map, boxes=example.boxes),
        )
        titles = (_wrapped(example.phrase, width=24, lines=3), f"signed CNR {example.cnr_signed:.2f}")
        for row in range(2):
            _show(figure.add_subplot(grid[row, column]), pictures[row], title=titles[row])
    _save(figure, path)


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    longest = max(image.shape)
    if longest <= side:
        return image.repeat(side // longest, axis=0).repeat(side // longest, axis=1)
    height, width = (max(1, round(n * side / longest)) for n in image.shape)
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)


def _tinted(gray: np.ndarray, share: np.ndarray) -> np.ndarray:
    """Colour over gray, `share` (0..1) of the full opacity."""
    opacity = OPACITY * share[..., None]
    return (gray[..., None] * (1 - opacity) + np.array(MATCH) * opacity).round().astype(np.uint8)


def _outlined(picture: np.ndarray, boxes: Sequence[Box], *, scale: float) -> np.ndarray:
    thickness = max(2, max(picture.shape) // 160)
    for x0, y0, x1, y1 in boxes:
        corners = (round(x0 * scale), round(y0 * scale)), (round(x1 * scale) - 1, round(y1 * scale) - 1)
        cv2.rectangle(picture, *corners, EDGE, thickness + 2)
        cv2.rectangle(picture, *corners, BOX, thickness)
    return picture


def _show(axes, picture: np.ndarray, *, title: str) -> None:
    axes.imshow(picture)
    axes.set_axis_off()
    axes.set_title(title, fontsize=9, parse_math=False)


def _colour_bar(axes, middle: float, highest: float) -> None:
    """From no colour at the map's median to full colour at its highest value."""
    shares = np.linspace(1, 0, 256)[:, None] ** 2
    top = highest if highest > middle else middle + 1e-3
    axes.imshow(_tinted(np.full((256, 1), 110, np.uint8), shares), extent=(0, 1, middle, top), aspect="auto")
    axes.set_xticks([])
    axes.yaxis.tick_right()
    axes.yaxis.set_label_position("right")
    axes.set_ylabel("similarity with the phrase, from the map's median up")


def _wrapped(text: str, *, width: int, lines: int) -> str:
    return "\n".join(textwrap.wrap(text, width, max_lines=lines, placeholder=" ..."))


def _save(figure, path: Path) -> None:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120)
