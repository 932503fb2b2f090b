"""Images in and out: PNG, JPEG and DICOM to gray levels 0-255, and the square that the model sees.

What is decoded is decided by the content, not by the name. Whatever is wrong with a file becomes one InputError. The
decoders' own complaints are kept off the screen: PNG is put in order (`plan_jax.data.png_stream`) before cv2 sees it,
and foreign JPEG goes through Pillow, because cv2's JPEG decoder prints and then returns half an image.
"""

import contextlib
import io
import struct
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Shaped, UInt8, UInt16
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile

from plan_jax.config import DataConfig
from plan_jax.data.dicom import decode_dicom
from plan_jax.data.frame_header import frame_size
from plan_jax.data.gray import check_size, damaged, no_warnings, stretch
from plan_jax.data.png_stream import SIGNATURE as PNG
from plan_jax.data.png_stream import ordered_png, png_sides
from plan_jax.errors import InputError
from plan_jax.geometry import Letterbox

_JPEG = b"\xff\xd8\xff"
_DICOM_SUFFIXES = (".dcm", ".dicom")


def read_image(path: str | Path, *, deep: bool = False) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]:
    """The gray image in a PNG, JPEG or DICOM file.

    PNG and JPEG as in `decode_image`. DICOM: rescale, then the first VOI LUT, or else the first window, or else the
    range from the lowest to the highest value, becomes 0-255; MONOCHROME1 is inverted; colour becomes luma.
    `deep`: what has more than 8 bits becomes 0-65535 instead, uint16.
    InputError: no file, empty, too large, cut short, damaged, of another kind, DICOM without pixels or of several
    frames.
    """
    path = Path(path)
    if not path.is_file():
        state = "a folder" if path.is_dir() else "none"
        raise InputError(f"image must be a file, got {state} at {path}; give the path of a PNG, JPEG or DICOM file")
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"image must be readable, got {error.strerror} at {path}; check its permissions") from error
    headerless = path.suffix.lower() in _DICOM_SUFFIXES and not data.startswith((PNG, _JPEG))
    if data[128:132] == b"DICM" or (data and headerless):
        return decode_dicom(data, name=str(path), deep=deep)
    return _decode(data, str(path), foreign=True, deep=deep)


def decode_image(data: bytes, *, name: str, foreign: bool = False) -> UInt8[np.ndarray, "H W"]:
    """The gray image in an encoded PNG or JPEG.

    Colour becomes luma, transparency is laid over black, EXIF orientation is applied (not to transparent PNG). 8-bit
    values stay as they are. 16-bit values are scaled so that the range in use, lowest to highest, becomes 0-255:
    radiographs have 10 to 14 significant bits and would be nearly black if 65535 were white.
    `name` is what an error calls the image. `foreign`: not written by `encode_png` or `encode_jpeg`. Of what they wrote
    16-bit values are of 0-65535, and that it is whole is checked only where that costs nothing.
    InputError: empty, too large, cut short, damaged, not PNG or JPEG.
    """
    return _decode(data, name, foreign=foreign, deep=False)


def _decode(data: bytes, name: str, *, foreign: bool, deep: bool) -> np.ndarray:
    if not data:
        raise InputError(f"image must hold data, got 0 bytes in {name}; get the file again")
    if data.startswith(PNG):
        image = _decode_png(data, name, check_pixels=foreign)
        if image.dtype == np.uint8:
            return image
        return stretch(image, deep=deep) if foreign else np.rint(image / 257).astype(np.uint8)
    if data.startswith(_JPEG):
        stored = None if foreign else _stored_jpeg(data, name)
        return _decode_jpeg(data, name) if stored is None else stored
    raise InputError(f"image must be PNG, JPEG or DICOM, got something else in {name}; convert it")


def encode_png(image: UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]) -> bytes:
    """A gray image as PNG of 8 or 16 bits."""
    done, data = cv2.imencode(".png", image if image.dtype == np.uint16 else _checked_gray(image))
    if not done:
        raise RuntimeError("cv2 did not encode a PNG")
    return data.tobytes()


def encode_jpeg(image: UInt8[np.ndarray, "H W"]) -> bytes:
    """A gray image as JPEG of quality 95: a tenth of the bytes, a gray level or two off."""
    done, data = cv2.imencode(".jpg", _checked_gray(image), (cv2.IMWRITE_JPEG_QUALITY, 95))
    if not done:
        raise RuntimeError("cv2 did not encode a JPEG")
    return data.tobytes()


def model_input(
    image: UInt8[np.ndarray, "H W"], config: DataConfig
) -> tuple[UInt8[np.ndarray, "size size"], Letterbox]:
    """What the model sees of an image everywhere but in training, and where its pixels went."""
    return letterbox_image(image, config.image_size, crop=config.crop, fit=config.fit_side)


def letterbox_image(
    image: UInt8[np.ndarray, "H W"], size: int, *, crop: float = 1.0, fit: str = "long"
) -> tuple[UInt8[np.ndarray, "size size"], Letterbox]:
    """The image in a square of side `size` as `Letterbox.fit` says, and where its pixels went."""
    height, width = _checked_gray(image).shape
    box = Letterbox.fit(height, width, size, crop=crop, fit=fit)
    return put_image(image, box), box


def put_image(image: UInt8[np.ndarray, "H W"], box: Letterbox) -> UInt8[np.ndarray, "size size"]:
    """The image where the box says, with zeros around it; what lies outside the square is cut off."""
    check_size(box.content_height, box.content_width, "the square that it must fill with its short side")
    content = _resize(_checked_gray(image), box.content_height, box.content_width)
    rows, content_rows = _overlap(box.top, box.content_height, box.size)
    columns, content_columns = _overlap(box.left, box.content_width, box.size)
    square = np.zeros((box.size, box.size), np.uint8)
    square[rows, columns] = content[content_rows, content_columns]
    return square


def _overlap(start: int, length: int, size: int) -> tuple[slice, slice]:
    """What of `length` pixels from `start` on lies within 0 to `size`: there, and counted from their own first."""
    first, end = max(start, 0), min(start + length, size)
    return slice(first, end), slice(first - start, end - start)


def shrink_image(image: Shaped[np.ndarray, "H W"], *, long_side: int) -> Shaped[np.ndarray, "h w"]:
    """The image with its long side reduced to `long_side` by area averaging, or as it is where it is not longer.

    uint8 or uint16.
    """
    height, width = image.shape if image.dtype == np.uint16 else _checked_gray(image).shape
    if max(height, width) <= long_side:
        return image
    box = Letterbox.fit(height, width, long_side)
    return _resize(image, box.content_height, box.content_width)


def _resize(image: np.ndarray, height: int, width: int) -> np.ndarray:
    if image.shape == (height, width):
        return image
    shrinks = height * width < image.size
    return cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


def _checked_gray(image: np.ndarray) -> np.ndarray:
    if image.ndim != 2 or image.dtype != np.uint8 or not image.size:
        raise InputError(f"image must be [H W] uint8, got {image.shape} {image.dtype}; decode it with read_image")
    return image


# PNG and JPEG


def _decode_png(data: bytes, name: str, *, check_pixels: bool) -> np.ndarray:
    sides = png_sides(data)
    if sides is None:
        raise damaged("PNG", name)
    check_size(*sides, name)
    ordered = ordered_png(data, check_pixels=check_pixels)
    if ordered is None:
        raise damaged("PNG", name)
    content, transparent = ordered
    if isinstance(content, np.ndarray):
        return content
    flags = cv2.IMREAD_UNCHANGED if transparent else cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise damaged("PNG", name) from error
    if image is None:
        raise damaged("PNG", name)
    if image.ndim == 3:
        opacity = image[..., 3] / (255 if image.dtype == np.uint8 else 65535)
        gray = cv2.cvtColor(image, cv2.COLOR_BGRA2GRAY)
        image = np.rint(gray * opacity).astype(image.dtype)
    return image


def _stored_jpeg(data: bytes, name: str) -> np.ndarray | None:
    """The same pixels as by `_decode_jpeg` in four fifths of the time, of what `encode_jpeg` wrote; None of all else.

    Only of that: cv2 prints of damage and fills it in. Stored images are whole, as ArrayRecord's checksums say.
    """
    if b"Exif" in data[:64] or not data.endswith(b"\xff\xd9"):
        return None
    try:
        size = frame_size(data)
    except (IndexError, struct.error):
        return None
    if size is None or size[2] != 1:
        return None
    check_size(*size[:2], name)
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)


def _decode_jpeg(data: bytes, name: str) -> np.ndarray:
    # Pillow warns of a damaged EXIF block, which is no reason to complain. Filters belong to the whole process, so they
    # stay untouched while training reads stored images, which have no such block.
    with no_warnings() if b"Exif" in data else contextlib.nullcontext():
        try:
            image: Image.Image = JpegImageFile(io.BytesIO(data))  # not Image.open, whose own size limit only warns
            check_size(image.height, image.width, name)
            image.draft("L", None)  # the luma is stored as such: no detour through colour
            image.load()
            image = ImageOps.exif_transpose(image) if "exif" in image.info else image
            return np.array(image if image.mode == "L" else image.convert("L"))
        except InputError:
            raise
        except Exception as error:  # damaged data raise almost anything
            raise damaged("JPEG", name) from error
