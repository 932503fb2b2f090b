"""DICOM files to gray levels: rescale, VOI LUT or window, MONOCHROME1, every usual transfer syntax."""

import io

import cv2
import numpy as np
import pydicom
from jaxtyping import UInt8, UInt16
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.multival import MultiValue
from pydicom.pixels.processing import apply_modality_lut
from pydicom.pixels.utils import pixel_array

from plan_jax.data.frame_header import frame_size
from plan_jax.data.gray import check_size, damaged, gray_levels, no_warnings, stretch
from plan_jax.errors import InputError

_JPEG_SYNTAXES = (*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes, *uid.JPEG2000TransferSyntaxes)
_GRAY, _COLOUR = ("MONOCHROME1", "MONOCHROME2"), ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT")


def decode_dicom(data: bytes, *, name: str, deep: bool) -> UInt8[np.ndarray, "H W"] | UInt16[np.ndarray, "H W"]:
    """The gray image in a DICOM file, 0-255, or with `deep` 0-65535 of what has more than 8 bits.

    Rescale, then the first VOI LUT, or else the first window, or else the range in use; MONOCHROME1 is inverted; colour
    becomes luma. InputError: damaged, cut short, too large, without pixels, of several frames, not decodable.
    """
    with no_warnings():  # pydicom warns of deviations that do not touch the pixels
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
    check_size(int(dataset.Rows), int(dataset.Columns), name)
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
            raise damaged("DICOM", name)
        size = frame_size(get_frame(dataset.PixelData, 0, number_of_frames=1))
        if size not in [(dataset.Rows, dataset.Columns, components) for components in (1, 3)]:
            raise InputError(f"DICOM must hold a frame of its own size, got another in {name}; get the file again")


def _dicom_gray(dataset: pydicom.Dataset, name: str, *, deep: bool) -> np.ndarray:
    values = pixel_array(dataset)
    if values.ndim == 3:
        gray = cv2.cvtColor(values, cv2.COLOR_RGB2GRAY)
        return gray if gray.dtype == np.uint8 else stretch(gray, deep=deep)
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
        return stretch(np.asarray(table), deep=deep)[None, :].take(index)
    centre, width = (_first(dataset.get(name)) for name in ("WindowCenter", "WindowWidth"))
    if centre is None or width is None or width <= 0:  # a window without width shows nothing
        return stretch(values, deep=deep)
    function = dataset.get("VOILUTFunction") or "LINEAR"
    if function == "SIGMOID":
        shown = 0.5 + 0.5 * np.tanh(2 * (values - centre) / width)
    elif function == "LINEAR_EXACT" or width < 1:
        shown = (values - centre) / width + 0.5
    else:
        shown = (values - centre + 0.5) / max(width - 1, 1e-6) + 0.5
    return gray_levels((65535 if deep else 255) * np.clip(shown, 0, 1), deep=deep)


def _first(value) -> float | None:
    """A number, or the first of several."""
    if isinstance(value, MultiValue):
        value = value[0] if len(value) else None
    return None if value is None else float(value)
