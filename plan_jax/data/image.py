"""Images in and out: PNG, JPEG and DICOM to gray levels 0-255, and the square that the model sees.

What is decoded is decided by the content, not by the name. Whatever is wrong with a file becomes one InputError. The
decoders' own complaints are kept off the screen: PNG is put in order (`plan_jax.data.png_stream`) before cv2 sees it,
and foreign JPEG goes through Pillow, because cv2's JPEG decoder prints and then returns half an image.
"""

import contextlib
import io
import struct
import warnings
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pydicom
from jaxtyping import Num, Shaped, UInt8, UInt16
from PIL import Image, ImageOps
from PIL.JpegImagePlugin import JpegImageFile
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array

from plan_jax.config import DataConfig
from plan_jax.data.frame_header import frame_size
from plan_jax.data.png_stream import SIGNATURE as PNG
from plan_jax.data.png_stream import ordered_png, png_sides
from plan_jax.errors import InputError
from plan_jax.geometry import Letterbox

# Checked before decoding. A chest radiograph has 4 to 20 million pixels; JPEG and DICOM end at this side anyway.
MAX_PIXELS, MAX_SIDE = 2**26, 2**16 - 1

_JPEG = b"\xff\xd8\xff"
_DICOM_SUFFIXES = (".dcm", ".dicom")
_JPEG_SYNTAXES = (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes, *uid.JPEG2000TransferSyntaxes)
_GRAY, _COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


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
        return _decode_dicom(data, name=str(path), deep=deep)
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
        return _stretch(image, deep=deep) if foreign else np.rint(image / 257).astype(np.uint8)
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
    _check_size(box.content_height, box.content_width, "the square that it must fill with its short side")
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


def _check_size(height: int, width: int, name: str) -> None:
    if not 1 <= height * width <= MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise InputError(
            f"image must have sides of 1 to {MAX_SIDE} and at most {MAX_PIXELS} pixels, "
            f"got {height} x {width} in {name}; reduce it"
        )


def _damaged(kind: str, name: str) -> InputError:
    return InputError(f"{kind} must be whole, got damaged data or data cut short in {name}; get the file again")


@contextlib.contextmanager
def _no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _stretch(values: Num[np.ndarray, "H W"], *, deep: bool) -> np.ndarray:
    """Lowest value to 0, highest to white; all 0 where they are equal."""
    low, high = float(values.min()), float(values.max())
    white = 65535 if deep else 255
    return _levels((values - low) * (white / (high - low) if high > low else 0.0), deep=deep)


def _levels(values: Num[np.ndarray, "H W"], *, deep: bool) -> np.ndarray:
    """Values of 0 to white as gray levels."""
    return np.rint(values).astype(np.uint16 if deep else np.uint8)


# PNG and JPEG


def _decode_png(data: bytes, name: str, *, check_pixels: bool) -> np.ndarray:
    sides = png_sides(data)
    if sides is None:
        raise _damaged("PNG", name)
    _check_size(*sides, name)
    ordered = ordered_png(data, check_pixels=check_pixels)
    if ordered is None:
        raise _damaged("PNG", name)
    content, transparent = ordered
    if isinstance(content, np.ndarray):
        return content
    flags = cv2.IMREAD_UNCHANGED if transparent else cv2.IMREAD_GRAYSCALE | cv2.IMREAD_ANYDEPTH
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    except cv2.error as error:
        raise _damaged("PNG", name) from error
    if image is None:
        raise _damaged("PNG", name)
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
    _check_size(*size[:2], name)
    return cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)


def _decode_jpeg(data: bytes, name: str) -> np.ndarray:
    # Pillow warns of a damaged EXIF block, which is no reason to complain. Filters belong to the whole process, so they
    # stay untouched while training reads stored images, which have no such block.
    with _no_warnings() if b"Exif" in data else contextlib.nullcontext():
        try:
            image: Image.Image = JpegImageFile(io.BytesIO(data))  # not Image.open, whose own size limit only warns
            _check_size(image.height, image.width, name)
            image.draft("L", None)  # the luma is stored as such: no detour through colour
            image.load()
            image = ImageOps.exif_transpose(image) if "exif" in image.info else image
            return np.array(image if image.mode == "L" else image.convert("L"))
        except InputError:
            raise
        except Exception as error:  # damaged data raise almost anything
            raise _damaged("JPEG", name) from error


# DICOM


def _decode_dicom(data: bytes, *, name: str, deep: bool) -> np.ndarray:
    with _no_warnings():  # pydicom warns of deviations that do not touch the pixels
        try:
            if uid.DeflatedExplicitVRLittleEndian.encode() in data:  # pydicom would inflate it to any size
                raise InputError(f"DICOM must not be deflated as a whole, got that in {name}; convert it")
            dataset = pydicom.dcmread(io.BytesIO(data), force=True)
            _check_dicom(dataset, name)
            return _dicom_gray(dataset, name, deep=deep and dataset.BitsStored > 8)
        except InputError:
            raise
        except Exception as error:  # pydicom and its plugins raise almost anything; their words may hold patient data
            raise InputError(
                f"DICOM must decode, got damaged data or a transfer syntax that is not supported in {name}; "
                "get the file again or convert it to an uncompressed one"
            ) from error


def _check_dicom(dataset: pydicom.Dataset, name: str) -> None:
    """Raises InputError for what can be seen before decoding, and gives headerless data their transfer syntax."""
    if not dataset.get("Rows") or not any(
        k in dataset for k in ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
    ):
        raise InputError(
            f"DICOM must hold a whole image, got no pixels in {name}; give an image, or get the file again"
        )
    if int(dataset.get("NumberOfFrames") or 1) != 1:
        raise InputError(f"DICOM must hold one frame, got {dataset.NumberOfFrames} in {name}; export one of them")
    _check_size(int(dataset.Rows), int(dataset.Columns), name)
    if dataset.get("PhotometricInterpretation") not in (*_GRAY, *_COLOUR):
        raise InputError(
            f"DICOM PhotometricInterpretation must be one of {', '.join((*_GRAY, *_COLOUR))}, "
            f"got {dataset.get('PhotometricInterpretation')} in {name}; convert it"
        )
    if "TransferSyntaxUID" not in dataset.file_meta:
        implicit, little = dataset.original_encoding
        explicit = uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
        dataset.file_meta.TransferSyntaxUID = uid.ImplicitVRLittleEndian if implicit else explicit
    if dataset.file_meta.TransferSyntaxUID in _JPEG_SYNTAXES:
        if not dataset.PixelData.rstrip(b"\0").endswith(b"\xff\xd9"):  # the decoders would fill in what is missing
            raise _damaged("DICOM", name)
        size = frame_size(get_frame(dataset.PixelData, 0, number_of_frames=1))
        if size not in [(dataset.Rows, dataset.Columns, components) for components in (1, 3)]:
            raise InputError(f"DICOM must hold a frame of its own size, got another in {name}; get the file again")


def _dicom_gray(dataset: pydicom.Dataset, name: str, *, deep: bool) -> np.ndarray:
    values = pixel_array(dataset)
    if values.ndim == 3:
        gray = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)
        return gray if gray.dtype == np.uint8 else _stretch(gray, deep=deep)
    values = apply_modality_lut(values, dataset).astype(np.float64)
    if not np.isfinite(values).all():
        raise InputError(f"DICOM pixels must be finite, got NaN or infinity in {name}; export it again")
    gray = _display(values, dataset, deep=deep)
    return np.iinfo(gray.dtype).max - gray if dataset.PhotometricInterpretation == "MONOCHROME1" else gray


def _display(values: np.ndarray, dataset: pydicom.Dataset, *, deep: bool) -> np.ndarray:
    """Values to gray levels by the VOI LUT or window (DICOM PS3.3 C.11.2), or by their range where there is neither.

    Not pydicom's `apply_voi_lut`: it keeps indices in the type of the table's entries, which overflows for 8-bit
    entries, and its windows give a range that depends on four other tags.
    """
    if dataset.get("VOILUTSequence"):
        item = dataset.VOILUTSequence[0]
        entries, first = item.LUTDescriptor[0] or 2**16, item.LUTDescriptor[1]
        table = item.LUTData
        if isinstance(table, bytes):
            table = np.frombuffer(table, np.uint8 if len(table) == entries else "<u2")
        index = np.clip(np.rint(values) - first, 0, entries - 1).astype(int)
        return _stretch(np.asarray(table), deep=deep)[None, :].take(index)
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width <= 0:  # a window without width shows nothing
        return _stretch(values, deep=deep)
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        shown = 0.5 + 0.5 * np.tanh(2 * (values - centre) / width)
    elif function == "LINEAR_EXACT" or width < 1:
        shown = (values - centre) / width + 0.5
    else:
        shown = (values - centre + 0.5) / max(width - 1, 1e-6) + 0.5
    return _levels((65535 if deep else 255) * np.clip(shown, 0, 1), deep=deep)


def _first(value) -> float | None:
    """A number, or the first of several."""
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    return None if value is None else float(value)
