"""Two thousand damaged and hostile files: each is an image or an InputError, in bounded time and memory."""

import io
import resource
import struct
import sys
import time
import zlib
from collections.abc import Callable

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from plan_jax.data.frame_header import frame_size
from plan_jax.data.gray import MAX_PIXELS, MAX_SIDE
from plan_jax.data.image import decode_image, read_image
from plan_jax.data.png_stream import ordered_png
from plan_jax.errors import InputError

SECONDS, MEGABYTES = 5, 700  # for one file; an image of MAX_PIXELS takes some copies of 64 MB
COUNTS = {  # 2,000 in all
    "gray.png": 330,
    "deep.png": 330,
    "clear.png": 200,
    "plain.jpg": 330,
    "turned.jpg": 300,
    "raw.dcm": 300,
    "jpeg.dcm": 150,
    "real.dcm": 60,
}
SIDES = (0, 1, 63, 65, 4000, 8000, 20_000, 65_535)  # 8000 x 8000 is the largest that may be an image

# x, y and steps of the passes of an interlaced PNG
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))

Random = np.random.Generator


@pytest.fixture(autouse=True)
def _nothing_is_printed(capfd):
    yield
    assert capfd.readouterr() == ("", "")


def encoded(image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def dicom(values: np.ndarray, *, jpeg: bytes = b"") -> bytes:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = uid.JPEGBaseline8Bit if jpeg else uid.ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = values.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation, dataset.PixelRepresentation = 1, "MONOCHROME2", 0
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.dtype.itemsize
    dataset.HighBit = dataset.BitsStored - 1
    dataset.WindowCenter, dataset.WindowWidth, dataset.RescaleSlope, dataset.RescaleIntercept = 100, 90, 2, -5
    dataset.PixelData = encapsulate([jpeg]) if jpeg else values.tobytes()
    dataset["PixelData"].VR = "OB" if jpeg else "OW"
    buffer = io.BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def valid() -> dict[str, bytes]:
    """Name -> a whole file that is not the real one."""
    image = np.random.default_rng(0).integers(0, 256, (64, 80), np.uint8)
    deep = np.random.default_rng(1).integers(0, 4096, (64, 80), np.uint16)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a film"
    jpeg = encoded(image, "JPEG")
    return {
        "gray.png": encoded(image, "PNG"),
        "deep.png": cv2.imencode(".png", deep)[1].tobytes(),
        "clear.png": encoded(np.stack([image] * 4, axis=2), "PNG"),
        "plain.jpg": jpeg,
        "turned.jpg": encoded(image, "JPEG", exif=exif),
        "raw.dcm": dicom(deep),
        "jpeg.dcm": dicom(image, jpeg=jpeg),
    }


# Ways to damage a file


def flipped(data: bytes, random: Random) -> bytes:
    """One to eight bytes are others, half of the time all near the beginning."""
    changed = bytearray(data)
    end = min(len(data), 700) if random.random() < 0.5 else len(data)
    for at in random.integers(0, end, random.integers(1, 9)):
        changed[at] = random.integers(0, 256)
    return _sealed(bytes(changed))


def cut(data: bytes, random: Random) -> bytes:
    return data[: random.integers(0, len(data))]


def holed(data: bytes, random: Random) -> bytes:
    start, end = sorted(random.integers(0, len(data), 2))
    return data[:start] + data[end:]


def doubled(data: bytes, random: Random) -> bytes:
    start, end = sorted(random.integers(0, len(data), 2))
    return data[:end] + data[start:]


def mislabelled(data: bytes, random: Random) -> bytes:
    """Begins as another kind of file."""
    heads = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", bytes(128) + b"DICM", b"GIF89a", b"%PDF-1.7", b"")
    head = heads[random.integers(0, len(heads))]
    return head + (data if random.random() < 0.5 else data[len(head) :])


def resized(data: bytes, random: Random) -> bytes:
    """Its headers promise other sides; in a DICOM file sometimes the header of the frame alone does."""
    height, width = (SIDES[at] for at in random.integers(0, len(SIDES), 2))
    places = []
    for mark, skip, form in ((b"IHDR", 4, ">II"), (b"\xff\xc0", 5, ">HH"), (b"\x28\0\x10\0US\x02\0", 8, "<H")):
        at = data.find(mark)
        if at >= 0:
            places.append((at + skip, form))
    changed = bytearray(data)
    for at, form in places if random.random() < 0.5 else places[:1]:
        if form == "<H":
            struct.pack_into("<H", changed, at, height)
            struct.pack_into("<H", changed, at + 10, width)
        else:
            struct.pack_into(form, changed, at, *((width, height) if form == ">II" else (height, width)))
    return _sealed(bytes(changed))


def _sealed(data: bytes) -> bytes:
    """The checksums of a PNG made right again, without which every change would be found at once."""
    at, sealed = 8, bytearray(data)
    while data.startswith(b"\x89PNG") and at + 12 <= len(data):
        end = at + 8 + struct.unpack_from(">I", data, at)[0]
        if end + 4 > len(data):
            break
        struct.pack_into(">I", sealed, end, zlib.crc32(data[at + 4 : end]))
        at = end + 4
    return bytes(sealed)


DAMAGE: tuple[Callable[[bytes, Random], bytes], ...] = (flipped, flipped, resized, cut, holed, doubled, mislabelled)


def memory() -> float:
    """The most that this process ever held, in megabytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def assert_image_or_error(path, case: str) -> bool:
    """Whether the file was an image; anything but an image or an InputError fails the test, as does taking long."""
    start, before = time.process_time(), memory()
    image, message = None, str(path)
    try:
        image = read_image(path)
    except InputError as error:
        message = str(error)
    assert str(path) in message, case
    assert time.process_time() - start < SECONDS, case
    assert memory() - before < MEGABYTES, case
    if image is not None:
        assert (image.dtype, image.ndim) == (np.uint8, 2), case
        assert 1 <= image.size <= MAX_PIXELS, case
        assert max(image.shape) <= MAX_SIDE, case
    return image is not None


def assert_all_hold(path, data: bytes) -> None:
    outcomes = set()
    path.write_bytes(data)
    assert assert_image_or_error(path, "whole")
    for number in range(COUNTS[path.name]):
        random = np.random.default_rng([zlib.crc32(path.name.encode()), number])
        damage = DAMAGE[number % len(DAMAGE)]
        path.write_bytes(damage(data, random))
        outcomes.add(assert_image_or_error(path, f"{path.name} {damage.__name__} {number}"))
    assert False in outcomes


@pytest.mark.parametrize("name", [name for name in COUNTS if name != "real.dcm"])
def test_a_damaged_file_is_an_image_or_an_error_within_bounds(valid, tmp_path, name):
    assert_all_hold(tmp_path / name, valid[name])


def test_a_damaged_real_file_is_an_image_or_an_error_within_bounds(shared, tmp_path):
    assert_all_hold(tmp_path / "real.dcm", (shared / "dicom" / "Fake_MONOHR1.dcm").read_bytes())


# One by one


def test_a_frame_that_claims_other_sides_than_its_file_costs_nothing(valid, tmp_path):
    data, path = bytearray(valid["jpeg.dcm"]), tmp_path / "film.dcm"
    struct.pack_into(">HH", data, data.index(b"\xff\xc0") + 5, 20_000, 20_000)
    path.write_bytes(data)
    before = memory()
    with pytest.raises(InputError, match=r"must hold a frame of its own size, got another in .*film\.dcm"):
        read_image(path)
    assert memory() - before < 50


def test_the_size_of_a_frame_is_read_in_every_family_of_jpeg():
    jpeg_2000 = b"\xff\x4f\xff\x51" + struct.pack(">HH4I4IH", 41, 0, 90, 70, 10, 6, 90, 70, 0, 0, 1)
    assert frame_size(jpeg_2000) == (64, 80, 1)
    assert frame_size(b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0\0\0\0jp2c" + jpeg_2000) == (64, 80, 1)
    header = b"\xff\xf7" + struct.pack(">HBHHB3B", 11, 16, 64, 80, 1, 1, 0x11, 0)  # of JPEG-LS
    scan = b"\xff\xda" + struct.pack(">H", 8) + bytes(6) + b"\x7f" * 9 + b"\xff\xd9"
    assert frame_size(b"\xff\xd8\xff\xff" + header + scan) == (64, 80, 1)


@pytest.mark.parametrize("second", [b"\xff\xc0", b"\xff\xde", b"\xff\xf7"])
def test_a_frame_with_two_headers_has_no_size(valid, second):
    jpeg = valid["plain.jpg"]
    assert frame_size(jpeg) == (64, 80, 1)
    segment = second + struct.pack(">HBHHB3B", 11, 8, 9, 9, 1, 1, 0x11, 0)
    assert frame_size(jpeg[:-2] + segment + jpeg[-2:]) is None
    assert frame_size(jpeg[:2] + segment + jpeg[2:]) is None


def test_a_deflated_file_is_refused_before_it_grows(tmp_path):
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = uid.DeflatedExplicitVRLittleEndian
    image.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    image.Rows = image.Columns = 8
    image.save_as(tmp_path / "film.dcm", enforce_file_format=True)
    with pytest.raises(InputError, match=r"must not be deflated as a whole, got that in .*film\.dcm; convert it"):
        read_image(tmp_path / "film.dcm")


@settings(max_examples=60)
@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from(["L", "1", "P", "LA", "RGB", "RGBA", "I;16"]), st.data())
def test_a_png_put_in_order_is_the_same_picture(height, width, mode, data):
    random = np.random.default_rng(data.draw(st.integers(0, 99)))
    values = random.integers(0, 256, (height, width, 4), np.uint8)
    if mode == "I;16":
        png = cv2.imencode(".png", random.integers(0, 2**16, (height, width), np.uint16))[1].tobytes()
    else:
        picture = Image.fromarray(values).convert("RGB").quantize(9) if mode == "P" else Image.fromarray(values)
        png = encoded(picture if mode == "P" else picture.convert(mode), "PNG")
    shown = []
    for check_pixels in (True, False):
        content, _ = ordered_png(png, check_pixels=check_pixels)
        plain = isinstance(content, np.ndarray)
        shown.append(content if plain else cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED))
    np.testing.assert_array_equal(*shown)
    np.testing.assert_array_equal(shown[0], cv2.imdecode(np.frombuffer(png, np.uint8), cv2.IMREAD_UNCHANGED))


def test_an_interlaced_png_is_read():
    lines = np.random.default_rng(0).integers(0, 256, (8, 8), np.uint8)
    passes = [lines[y::down, x::across] for x, y, across, down in ADAM7]
    stream = b"".join(b"\0" + line.tobytes() for part in passes for line in part)
    header = struct.pack(">IIBBBBB", 8, 8, 8, 0, 0, 0, 1)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(stream)), (b"IEND", b""))
    png = _sealed(b"\x89PNG\r\n\x1a\n" + b"".join(struct.pack(">I", len(c)) + k + c + bytes(4) for k, c in chunks))
    np.testing.assert_array_equal(decode_image(png, name="x", foreign=True), lines)
