import io
import struct
import zlib

import cv2
import numpy as np
import pydicom
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate

from plan_jax.config import DataConfig
from plan_jax.data.image import (
    decode_image,
    encode_jpeg,
    encode_png,
    letterbox_image,
    model_input,
    read_image,
    shrink_image,
)
from plan_jax.errors import InputError

GRADIENT = np.add.outer(np.arange(16) * 4, np.arange(24) * 7).astype(np.uint8)  # 16 high, 24 wide, 0 to 221


@pytest.fixture(autouse=True)
def _nothing_is_printed(capfd):
    """Decoders written in C print past Python: nothing may arrive on the screen in any test here."""
    yield
    assert capfd.readouterr() == ("", "")


def encoded(image, kind="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(buffer, kind, **options)
    return buffer.getvalue()


def decode(data: bytes) -> np.ndarray:
    return decode_image(data, name="the test", foreign=True)


def dicom(values: np.ndarray, *, syntax=uid.ExplicitVRLittleEndian, header=True, **tags) -> bytes:
    """A DICOM file of one gray (or RGB) frame; `tags` are set last, None removes one."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.file_meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    dataset.Rows, dataset.Columns = values.shape[:2]
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated = dataset.BitsStored = 8 * values.dtype.itemsize
    dataset.HighBit, dataset.PixelRepresentation = dataset.BitsStored - 1, int(values.dtype.kind == "i")
    dataset.PixelData = values.tobytes()
    for name, value in tags.items():
        if value is None:
            delattr(dataset, name)
        else:
            setattr(dataset, name, value)
    if syntax.is_encapsulated and "PixelData" in dataset:
        dataset["PixelData"].VR = "OB"
    buffer = io.BytesIO()
    if header:
        dataset.save_as(buffer, enforce_file_format=True)
    else:
        dataset.file_meta = FileMetaDataset()
        dataset.save_as(buffer, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    return buffer.getvalue()


@pytest.fixture
def read(tmp_path):
    """Writes bytes to a file and reads it as an image."""

    def write_and_read(data: bytes, name: str = "film.dcm") -> np.ndarray:
        (tmp_path / name).write_bytes(data)
        return read_image(tmp_path / name)

    return write_and_read


def assert_image_or_error(decoder, *, name: str) -> None:
    try:
        image, message = decoder(), name
    except InputError as error:
        image, message = GRADIENT, str(error)
    assert (image.dtype, image.ndim) == (np.uint8, 2)
    assert name in message


# PNG and JPEG


@pytest.mark.parametrize("name", ["film.png", "film.jpg", "film", "film.dcm"])
def test_the_content_decides_not_the_name(read, name):
    np.testing.assert_array_equal(read(encoded(GRADIENT), name), GRADIENT)
    assert np.abs(read(encoded(GRADIENT, "JPEG", quality=100), name).astype(int) - GRADIENT).max() <= 2
    np.testing.assert_array_equal(read(dicom(np.array([[0, 255]], np.uint8)), name), [[0, 255]])


@given(st.integers(1, 40), st.integers(1, 40), st.integers(0, 2**32 - 1))
def test_an_encoded_image_comes_back_unchanged(height, width, seed):
    image = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    np.testing.assert_array_equal(decode(encode_png(image)), image)


def test_colour_becomes_luma():
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]], np.uint8)
    np.testing.assert_allclose(decode(encoded(colours)), [[76, 150, 29, 90]], atol=1)
    paletted = Image.fromarray(colours).quantize(4, dither=Image.Dither.NONE)
    np.testing.assert_allclose(decode(encoded(paletted)), [[76, 150, 29, 90]], atol=1)
    patch = np.repeat(np.repeat(colours, 16, 0), 16, 1)
    jpeg = decode(encoded(patch, "JPEG", quality=100, subsampling=0))
    np.testing.assert_allclose(jpeg[8, 8::16], [76, 150, 29, 90], atol=2)


def test_transparency_is_laid_over_black():
    pixels = np.array([[[200, 200, 200, 255], [200, 200, 200, 51], [200, 200, 200, 0]]], np.uint8)
    np.testing.assert_array_equal(decode(encoded(pixels)), [[200, 40, 0]])
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(pixels).convert("LA"))), [[200, 40, 0]])
    paletted = Image.fromarray(np.array([[0, 1]], np.uint8), "L").convert("P")
    paletted.putpalette([100, 100, 100, 200, 200, 200])
    np.testing.assert_array_equal(decode(encoded(paletted, transparency=0)), [[0, 200]])


def test_one_bit_images_are_black_and_white():
    np.testing.assert_array_equal(decode(encoded(Image.fromarray(np.array([[True, False]])))), [[255, 0]])


def test_cmyk_jpeg_is_read():
    image = Image.new("CMYK", (16, 16), (10, 20, 30, 40))
    np.testing.assert_allclose(decode(encoded(image, "JPEG")), np.asarray(image.convert("L")), atol=2)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, GRADIENT),
        (2, GRADIENT[:, ::-1]),
        (3, GRADIENT[::-1, ::-1]),
        (4, GRADIENT[::-1]),
        (5, GRADIENT.T),
        (6, np.rot90(GRADIENT, -1)),
        (7, GRADIENT[::-1, ::-1].T),
        (8, np.rot90(GRADIENT)),
    ],
)
def test_exif_orientation_is_applied(kind, orientation, upright):
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"quality": 100} if kind == "JPEG" else {}
    image = decode(encoded(GRADIENT, kind, exif=exif, **options))
    assert image.shape == upright.shape
    assert np.abs(image.astype(int) - upright).max() <= 2


def test_a_damaged_exif_block_is_ignored():
    image = decode(encoded(GRADIENT, "JPEG", quality=100, exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff junk"))
    assert image.shape == GRADIENT.shape


def test_sixteen_bits_are_scaled_by_the_range_in_use():
    values = np.array([[1000, 2000, 3040, 3550]], np.uint16)  # of 0 to 65535: nearly black without scaling
    expected = [[0, 100, 204, 255]]
    np.testing.assert_array_equal(decode(cv2.imencode(".png", values)[1].tobytes()), expected)
    colour = cv2.imencode(".png", np.repeat(values[..., None], 3, 2))[1].tobytes()
    np.testing.assert_allclose(decode(colour), expected, atol=1)
    opaque = np.concatenate([np.repeat(values[..., None], 3, 2), np.full((1, 4, 1), 65535, np.uint16)], 2)
    np.testing.assert_allclose(decode(cv2.imencode(".png", opaque)[1].tobytes()), expected, atol=1)


def test_a_constant_sixteen_bit_image_is_black():
    assert not decode(cv2.imencode(".png", np.full((4, 4), 900, np.uint16))[1].tobytes()).any()


def test_a_stored_sixteen_bit_image_is_shown_from_0_to_65535():
    values = np.array([[0, 257, 128 * 257, 65535], [128, 129, 1000, 60000]], np.uint16)
    expected = [[0, 1, 128, 255], [0, 1, 4, 233]]
    np.testing.assert_array_equal(decode_image(encode_png(values), name="stored"), expected)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 9), (64, 80), (333, 250)])
def test_a_stored_jpeg_has_the_pixels_that_pillow_decodes(height, width, capfd):
    noise = np.random.default_rng(height).integers(0, 256, (height, width), np.uint8)
    for image in (noise, cv2.GaussianBlur(noise, (0, 0), 2)):
        data = encode_jpeg(image)
        stored = decode_image(data, name="stored")
        np.testing.assert_array_equal(stored, decode_image(data, name="foreign", foreign=True))
        if len(data) > 700:
            with pytest.raises(InputError, match="must be whole"):
                decode_image(data[:-40], name="cut")
    assert capfd.readouterr() == ("", "")


def test_a_colour_or_turned_jpeg_may_stand_where_stored_ones_do():
    turned = encoded(GRADIENT, "JPEG", quality=100, exif=_turned())
    np.testing.assert_array_equal(decode_image(turned, name="x"), decode(turned))
    colour = encoded(np.repeat(GRADIENT[..., None], 3, axis=2), "JPEG", quality=100)
    np.testing.assert_array_equal(decode_image(colour, name="x"), decode(colour))


def _turned() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6
    return exif


def test_deep_images_keep_sixteen_bits_of_what_has_them_and_only_of_that(read, tmp_path):
    values = np.array([[0, 1000, 2500, 4000]], np.uint16)
    read(dicom(values))
    deep = read_image(tmp_path / "film.dcm", deep=True)
    np.testing.assert_array_equal(deep, [[0, 16384, 40959, 65535]])
    inverted = dicom(values, PhotometricInterpretation="MONOCHROME1")
    read(inverted)
    np.testing.assert_array_equal(read_image(tmp_path / "film.dcm", deep=True), 65535 - deep)
    read(dicom(values, WindowCenter=1000, WindowWidth=1001, VOILUTFunction="LINEAR_EXACT"))
    windowed = read_image(tmp_path / "film.dcm", deep=True)
    np.testing.assert_allclose(windowed, [[0, 32767.5, 65535, 65535]], atol=1)
    read(dicom(np.array([[0, 7, 255]], np.uint8)))
    assert read_image(tmp_path / "film.dcm", deep=True).dtype == np.uint8
    read(cv2.imencode(".png", values)[1].tobytes(), "film.png")
    np.testing.assert_array_equal(read_image(tmp_path / "film.png", deep=True), deep)


def test_eight_bits_are_never_stretched():
    image = np.array([[100, 110]], np.uint8)
    np.testing.assert_array_equal(decode(encoded(image)), image)


def test_odd_extra_chunks_change_nothing_and_print_nothing():
    extra = PngInfo()
    for kind, content in ((b"gAMA", b"\0\0\x27\x10"), (b"cHRM", b"1"), (b"tEXt", b"zz" * 50), (b"zTXt", b"broken")):
        extra.add(kind, content)
    data = encoded(GRADIENT, pnginfo=extra, icc_profile=b"no profile")
    np.testing.assert_array_equal(decode(data), GRADIENT)


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_every_truncation_is_an_error_that_names_the_file(kind):
    data = encoded(np.random.default_rng(0).integers(0, 256, (24, 24), np.uint8), kind)
    for length in range(4, len(data)):
        with pytest.raises(
            InputError, match=r"damaged data or data cut short in the test; get the file again|PNG, JPEG"
        ):
            decode(data[:length])


def test_every_flipped_byte_of_a_png_is_an_error():
    data = encoded(GRADIENT)
    for at in range(len(data)):
        with pytest.raises(InputError, match="in the test"):
            decode(data[:at] + bytes([data[at] ^ 255]) + data[at + 1 :])


@given(st.data())
def test_a_damaged_jpeg_is_an_image_or_an_error_and_nothing_else(data):
    exif = Image.Exif()
    exif[0x0112] = 6
    whole = bytearray(encoded(GRADIENT, "JPEG", exif=exif))
    for at in data.draw(st.lists(st.integers(3, len(whole) - 1), min_size=1, max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    assert_image_or_error(lambda: decode(bytes(whole)), name="in the test")


def test_a_jpeg_with_a_hole_prints_nothing():
    data = encoded(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8), "JPEG")
    assert decode(data[: len(data) // 2] + data[len(data) // 2 + 200 :]).shape == (64, 64)


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(("width", "height"), [(60000, 60000), (2**31 - 1, 2**31 - 1), (0, 10), (2**16, 2)])
def test_absurd_png_sizes_are_refused(width, height):
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0))
    data = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0" * 1000)) + chunk(b"IEND", b"")
    with pytest.raises(InputError, match="in the test; reduce it"):
        decode(data)


def test_absurd_jpeg_sizes_are_refused_before_decoding():
    data = bytearray(encoded(GRADIENT, "JPEG"))
    at = data.index(b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", 65000, 65000)
    with pytest.raises(InputError, match="got 65000 x 65000 in the test; reduce it"):
        decode(bytes(data))


@pytest.mark.parametrize("content", [b"hello", b"GIF89a" + b"\0" * 50, b"\0" * 200, b"BM" + b"\0" * 60])
def test_what_is_no_image_is_refused(read, content):
    with pytest.raises(InputError, match=r"must be PNG, JPEG or DICOM, got something else in .*film\.png; convert it"):
        read(content, "film.png")


def test_missing_files_folders_and_empty_files_are_refused(read, tmp_path):
    with pytest.raises(InputError, match=r"must be a file, got none at .*none\.png; give the path"):
        read_image(tmp_path / "none.png")
    with pytest.raises(InputError, match="must be a file, got a folder at"):
        read_image(str(tmp_path))
    for name in ("film.png", "film.dcm"):
        with pytest.raises(InputError, match="must hold data, got 0 bytes in"):
            read(b"", name)


# DICOM


def test_dicom_without_a_window_shows_its_range(read):
    values = np.array([[100, 355, 610]], np.uint16)
    np.testing.assert_array_equal(read(dicom(values)), [[0, 128, 255]])
    np.testing.assert_array_equal(read(dicom(np.array([[-100, 155]], np.int16))), [[0, 255]])
    np.testing.assert_array_equal(read(dicom(np.array([[0, 7, 255]], np.uint8))), [[0, 7, 255]])


def test_monochrome1_is_inverted(read):
    values = np.array([[0, 1000, 4000]], np.uint16)
    shown = read(dicom(values))
    np.testing.assert_array_equal(read(dicom(values, PhotometricInterpretation="MONOCHROME1")), 255 - shown)


@pytest.mark.parametrize(
    ("function", "expected"),
    [
        (None, [0, 3, 130, 255, 255]),  # ((x - (100 - .5)) / (51 - 1) + .5) * 255
        ("LINEAR", [0, 3, 130, 255, 255]),
        ("LINEAR_EXACT", [0, 3, 128, 250, 255]),  # ((x - 100) / 51 + .5) * 255
        ("SIGMOID", [0, 30, 128, 222, 255]),  # 255 / (1 + exp(-4 (x - 100) / 51))
    ],
)
def test_the_window_decides_what_is_black_and_white(read, function, expected):
    values = np.array([[-500, 75, 100, 124.5, 2000]]) * 2 + 20  # stored; slope and intercept take them back
    tags = {"VOILUTFunction": function} if function else {}
    data = dicom(
        values.astype(np.int16), RescaleSlope=0.5, RescaleIntercept=-10, WindowCenter=100, WindowWidth=51, **tags
    )
    np.testing.assert_allclose(read(data), [expected], atol=1)


def test_the_linear_window_reaches_black_and_white_where_the_standard_says(read):
    values = np.arange(4096, dtype=np.uint16)[None]
    shown = read(dicom(values, BitsStored=12, HighBit=11, WindowCenter=2048, WindowWidth=4096))[0]
    assert shown[0] == 0
    assert shown[-1] == 255
    np.testing.assert_allclose(shown, np.arange(4096) / 4095 * 255, atol=0.5001)


def test_the_first_of_several_windows_counts(read):
    values = np.array([[0, 50, 100]], np.uint16)
    several = read(dicom(values, WindowCenter=[50, 900], WindowWidth=[21, 5]))
    np.testing.assert_array_equal(several, read(dicom(values, WindowCenter=50, WindowWidth=21)))
    np.testing.assert_array_equal(several[0, ::2], [0, 255])


@pytest.mark.parametrize("window", [{"WindowWidth": 0, "WindowCenter": 5}, {"WindowCenter": 5}, {"WindowWidth": 5}])
def test_half_a_window_is_no_window(read, window):
    np.testing.assert_array_equal(read(dicom(np.array([[10, 1000]], np.uint16), **window)), [[0, 255]])


def with_table(entries: list[int], *, first: int, bits: int, vr: str = "US") -> dict:
    item = Dataset()
    item.LUTDescriptor = [len(entries), first, bits]
    item.add_new("LUTData", vr, entries if vr == "US" else np.array(entries, "<u2").tobytes())
    return {"VOILUTSequence": [item]}


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_the_table_comes_before_the_window(read, vr):
    values = np.array([[0, 500, 501, 502, 503, 4000]], np.uint16)
    table = with_table([0, 4095, 819, 1638], first=500, bits=12, vr=vr)
    shown = read(dicom(values, WindowCenter=5, WindowWidth=5, **table))
    np.testing.assert_array_equal(shown, [[0, 0, 255, 51, 102, 102]])


def test_a_table_of_eight_bit_entries_takes_sixteen_bit_values(read):
    values = np.array([[0, 255, 256, 511]], np.uint16)
    table = with_table([i // 2 for i in range(512)], first=0, bits=8)
    np.testing.assert_array_equal(read(dicom(values, **table)), [[0, 127, 128, 255]])


def test_a_table_may_be_packed_in_bytes(read):
    table = with_table([0, 51, 102, 255], first=0, bits=8)
    table["VOILUTSequence"][0]["LUTData"] = pydicom.DataElement("LUTData", "OW", bytes([0, 51, 102, 255]))
    np.testing.assert_array_equal(read(dicom(np.array([[3, 2, 1, 0]], np.uint16), **table)), [[255, 102, 51, 0]])


@pytest.mark.parametrize("last", [3.0, np.nan, np.inf])
def test_floating_point_pixels_must_be_finite(read, last):
    values = np.array([[1, 2, last]], np.float32)
    data = dicom(values, PixelData=None, FloatPixelData=values.tobytes())
    if last == 3:
        np.testing.assert_array_equal(read(data), [[0, 128, 255]])
    else:
        with pytest.raises(InputError, match=r"DICOM pixels must be finite, got NaN or infinity in .*film\.dcm"):
            read(data)


def test_unused_high_bits_are_not_part_of_the_value(read):
    values = np.array([[0xF000, 0xF800, 0x0FFF]], np.uint16)
    np.testing.assert_array_equal(read(dicom(values, BitsStored=12, HighBit=11)), [[0, 128, 255]])


def test_colour_dicom_becomes_luma(read):
    colours = np.array([[[255, 0, 0], [0, 255, 0], [0, 0, 255], [90, 90, 90]]], np.uint8)
    data = dicom(colours, SamplesPerPixel=3, PlanarConfiguration=0, PhotometricInterpretation="RGB")
    np.testing.assert_allclose(read(data), [[76, 150, 29, 90]], atol=1)
    patch = np.repeat(np.repeat(colours, 16, 0), 16, 1)
    frame = encoded(patch, "JPEG", quality=100, subsampling=0)
    tags = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "YBR_FULL_422"}
    data = dicom(patch, syntax=uid.JPEGBaseline8Bit, PixelData=encapsulate([frame]), **tags)
    np.testing.assert_allclose(read(data)[8, 8::16], [76, 150, 29, 90], atol=2)


@pytest.mark.parametrize("syntax", [uid.JPEG2000Lossless, uid.RLELossless])
def test_lossless_compression_changes_nothing(read, syntax):
    plain = dicom(np.random.default_rng(0).integers(0, 2**16, (64, 80), np.uint16))
    dataset = pydicom.dcmread(io.BytesIO(plain))
    dataset.compress(syntax, generate_instance_uid=False)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    np.testing.assert_array_equal(read(buffer.getvalue()), read(plain))


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian])
def test_data_without_a_header_are_read_where_the_name_says_dicom(read, syntax):
    data = dicom(np.array([[0, 100, 255]], np.uint8), syntax=syntax, header=False)
    assert data[128:132] != b"DICM"
    np.testing.assert_array_equal(read(data, "film.DCM"), [[0, 100, 255]])
    with pytest.raises(InputError, match="must be PNG, JPEG or DICOM"):
        read(data, "film.bin")


FRAME = np.zeros((4, 4), np.uint16)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (dicom(FRAME, PixelData=None), "must hold a whole image, got no pixels in"),
        (dicom(FRAME, Rows=None), "must hold a whole image, got no pixels in"),
        (b"hello, this is text" * 20, "must hold a whole image, got no pixels in"),
        (dicom(FRAME, NumberOfFrames=3), "must hold one frame, got 3 in"),
        (dicom(FRAME, Rows=60000, Columns=60000), "got 60000 x 60000 in"),
        (dicom(FRAME, PhotometricInterpretation="PALETTE COLOR"), "must be one of MONOCHROME1"),
        (dicom(FRAME, PhotometricInterpretation=None), "must be one of MONOCHROME1.* got None"),
        (dicom(FRAME, syntax=uid.MPEG2MPML, PixelData=encapsulate([b"abcd"])), "a transfer syntax that is not supp"),
        (dicom(FRAME, syntax=uid.RLELossless, PixelData=encapsulate([b"abcd"])), "damaged data or a transfer syntax"),
    ],
)
def test_dicom_that_cannot_be_shown_is_an_error_that_names_the_file(read, data, message):
    with pytest.raises(InputError, match=rf"(?s){message}.*film\.dcm"):
        read(data)


def test_every_truncation_of_a_dicom_file_is_an_error(read):
    data = dicom(GRADIENT.astype(np.uint16))
    for length in range(140, len(data), 7):
        with pytest.raises(InputError, match=r"film\.dcm"):
            read(data[:length])


def test_a_compressed_frame_cut_short_inside_a_whole_dicom_file_is_an_error(read):
    frame = encoded(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8), "JPEG")
    values = np.zeros((64, 64), np.uint8)
    assert read(dicom(values, syntax=uid.JPEGBaseline8Bit, PixelData=encapsulate([frame]))).shape == (64, 64)
    for length in (len(frame) // 2, len(frame) - 2):
        data = dicom(values, syntax=uid.JPEGBaseline8Bit, PixelData=encapsulate([frame[:length]]))
        with pytest.raises(InputError, match=r"DICOM must be whole, .* in .*film\.dcm"):
            read(data)


@given(st.data())
def test_a_damaged_dicom_file_is_an_image_or_an_error_and_nothing_else(tmp_path_factory, data):
    whole = bytearray(dicom(GRADIENT[:4, :4], RescaleSlope=2, RescaleIntercept=1, WindowCenter=9, WindowWidth=9))
    for at in data.draw(st.lists(st.integers(128, len(whole) - 1), min_size=1, max_size=4)):
        whole[at] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.mktemp("damaged") / "film.dcm"
    path.write_bytes(whole)
    assert_image_or_error(lambda: read_image(path), name="film.dcm")


def test_errors_hold_no_word_of_the_header(read):
    data = dicom(FRAME, syntax=uid.MPEG2MPML, PixelData=encapsulate([b"abcd"]), PatientName="Roe^Jane", PatientID="77x")
    with pytest.raises(InputError) as caught:
        read(data)
    assert "Roe" not in str(caught.value)
    assert "77x" not in str(caught.value)


# The model's input


@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (10, 7), (64, 64), (1, 500), (500, 1)])
def test_the_letterbox_tells_where_the_pixels_are(shape):
    image = np.full(shape, 200, np.uint8)
    square, box = letterbox_image(image, 64)
    assert square.shape == (64, 64)
    assert square.dtype == np.uint8
    x0, y0, x1, y1 = box.boxes_to_model(np.array([0, 0, shape[1], shape[0]])).round().astype(int)
    assert (square[y0:y1, x0:x1] == 200).all()
    assert square.sum() == 200 * (y1 - y0) * (x1 - x0)


@pytest.mark.parametrize("fit", ["long", "short"])
@pytest.mark.parametrize("shape", [(300, 200), (200, 300), (97, 61), (64, 64)])
def test_what_the_model_sees_is_the_middle_of_what_training_loads(shape, fit):
    image = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    for size, crop in ((56, 0.875), (33, 0.7), (20, 1.0)):
        side = round(size / crop)
        loaded, _ = letterbox_image(image, side, fit=fit)
        seen, box = model_input(image, DataConfig(image_size=size, crop=crop, fit_side=fit))
        first = (side - size) // 2
        np.testing.assert_array_equal(seen, loaded[first : first + size, first : first + size])
        assert box.size == size


def test_an_image_much_too_long_to_be_enlarged_by_its_short_side_is_refused():
    with pytest.raises(InputError, match=r"sides of 1 to 65535 .* short side"):
        letterbox_image(np.zeros((1, 3000), np.uint8), 64, fit="short")


def test_an_image_of_the_right_size_is_copied_as_it_is():
    image = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    square, _ = letterbox_image(image, 32)
    np.testing.assert_array_equal(square, image)
    square[:] = 0
    assert image.any()


def test_shrinking_averages_areas():
    image = np.random.default_rng(0).integers(0, 256, (64, 32), np.uint8)
    square, _ = letterbox_image(image, 16)
    means = image.reshape(16, 4, 8, 4).mean((1, 3))
    np.testing.assert_allclose(square[:, 4:12], means, atol=0.501)
    np.testing.assert_array_equal(shrink_image(image, long_side=16), square[:, 4:12])


def test_a_mark_lands_where_its_box_lands():
    image = np.zeros((500, 400), np.uint8)
    image[100:150, 40:120] = 255
    square, box = letterbox_image(image, 128)
    x0, y0, x1, y1 = box.boxes_to_model(np.array([40, 100, 120, 150]))
    bright = np.argwhere(square > 127)
    np.testing.assert_allclose(bright.min(0), [y0, x0], atol=0.6)
    np.testing.assert_allclose(bright.max(0) + 1, [y1, x1], atol=0.6)


@given(st.integers(1, 60), st.integers(1, 60))
def test_shrinking_never_enlarges_and_keeps_the_long_side(height, width):
    small = shrink_image(np.zeros((height, width), np.uint8), long_side=20)
    assert max(small.shape) == min(max(height, width), 20)


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4, 1), np.uint8), np.zeros((4, 4), np.float32), np.zeros((0, 4), np.uint8)]
)
def test_anything_but_gray_bytes_is_refused(image):
    for call in (encode_png, lambda image: letterbox_image(image, 8), lambda image: shrink_image(image, long_side=8)):
        with pytest.raises(InputError, match=r"must be \[H W\] uint8"):
            call(image)


# Real files


def test_the_real_dicom_pair_is_inverted_by_its_one_different_tag(shared):
    plain = read_image(shared / "dicom" / "1.2.276.0.7230010.3.1.4.8323329.6904.1517875201.850819.dcm")
    inverted = read_image(shared / "dicom" / "Fake_MONOHR1.dcm")
    assert plain.shape == (1024, 1024)
    np.testing.assert_array_equal(inverted, 255 - plain)
    assert plain[400:600, 300:400].mean() < plain[400:600, 500:560].mean()  # a lung is darker than the spine


def test_every_real_picture_decodes_as_another_library_does(shared):
    paths = sorted((shared / "nih" / "images").iterdir()) + sorted((shared / "covid_cxr" / "images").iterdir())
    assert len(paths) == 25 + 199
    for path in paths:
        with Image.open(path) as image:
            np.testing.assert_array_equal(read_image(path), np.asarray(image.convert("L")), err_msg=path.name)
