"""The size that a JPEG, JPEG-LS or JPEG 2000 frame of a DICOM file states itself.

Decoders trust it, not the DICOM header: a file of 100 KB whose frame claims 65,535 x 65,535 pixels would cost 11 GB and
most of a minute before anyone notices. So it is read first.
"""

import re
import struct

_FRAME_HEADERS = (0xC0, 0xC1, 0xC2, 0xC3, 0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF, 0xF7)  # F7: JPEG-LS
_SCAN, _HIERARCHY = 0xDA, 0xDE
_BARE = (0x01, *range(0xD0, 0xD9))  # markers without content
_SECOND_HEADER = re.compile(rb"\xff[\xc0-\xc3\xc5-\xc7\xc9-\xcb\xcd-\xcf\xde\xf7]")  # cannot be in a scan's own data
_JP2, _CODESTREAM, _JPEG_2000 = b"\0\0\0\x0cjP  ", b"jp2c", b"\xff\x4f\xff\x51"


def frame_size(frame: bytes) -> tuple[int, int, int] | None:
    """Height, width and number of components; None where the frame does not state them exactly once.

    Raises IndexError or struct.error where the data end before that.
    """
    if frame.startswith(_JP2):  # a whole JP2 file, which the standard forbids and some devices write
        start = frame.find(_CODESTREAM) + len(_CODESTREAM)
        return _jpeg_2000_size(frame[start:]) if frame.count(_CODESTREAM) == 1 else None
    return _jpeg_2000_size(frame) if frame.startswith(_JPEG_2000) else _jpeg_size(frame)


def _jpeg_2000_size(frame: bytes) -> tuple[int, int, int] | None:
    """Of the SIZ segment (ISO/IEC 15444-1, A.5.1), which must come first."""
    if not frame.startswith(_JPEG_2000):
        return None
    right, bottom, left, top = struct.unpack_from(">4I", frame, 8)
    (components,) = struct.unpack_from(">H", frame, 40)
    return bottom - top, right - left, components


def _jpeg_size(frame: bytes) -> tuple[int, int, int] | None:
    """Of the one frame header (ISO/IEC 10918-1, B.2.2) before the first scan."""
    sizes, at = [], 0
    while frame[at] == 0xFF:
        marker = frame[at + 1]
        if marker == 0xFF or marker in _BARE:  # 0xFF fills up
            at += 1 if marker == 0xFF else 2
            continue
        if marker in _FRAME_HEADERS:
            sizes.append(struct.unpack_from(">HHB", frame, at + 5))
        if marker == _SCAN:
            whole = len(sizes) == 1 and not _SECOND_HEADER.search(frame, at)
            return sizes[0] if whole else None
        if marker == _HIERARCHY:
            return None
        at += 2 + struct.unpack_from(">H", frame, at + 2)[0]
    return None
