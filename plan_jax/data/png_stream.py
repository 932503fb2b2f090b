"""PNG files put in order before a decoder sees them: libpng prints its complaints, and returns what it could read.

What the pixels depend on is kept, every checksum verified, and the pixels' stream inflated and measured where its
writer is not known. A decoder is then handed a file without compression, so the work is not done twice. Pictures as
`build` stores them, 8 bits of gray with one filter for all lines, need no decoder: numpy undoes the filter sooner.
"""

import itertools
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from jaxtyping import UInt8

SIGNATURE = b"\x89PNG\r\n\x1a\n"

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # of a colour type (PNG specification, 11.2.2)
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}  # in bits
_PALETTE = 3  # the colour type
_PASSES = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))  # Adam7
_LAST_FILTER = 4
_NONE, _SUB, _UP = range(3)  # filters: as it is, less the pixel on the left, less the pixel above
_EXIF = (b"II*\0", b"MM\0*")


def png_sides(data: bytes) -> tuple[int, int] | None:
    """Height and width that a PNG file states; None where it does not begin as one."""
    if len(data) < 33 or data[12:16] != b"IHDR":
        return None
    width, height = struct.unpack_from(">II", data, 16)
    return height, width


def ordered_png(data: bytes, *, check_pixels: bool) -> tuple[bytes | UInt8[np.ndarray, "H W"], bool] | None:
    """The same picture in the plainest file, and whether parts may be transparent; None where the data are damaged.

    Instead of the file the pixels themselves where their lines are gray, of 8 bits, and all have the same filter.
    Memory follows what the sides promise, but no more than the data hold: check `png_sides` before.
    """
    chunks = _read_chunks(data)
    if chunks is None or len(chunks.get(b"IHDR", b"")) != 13 or b"IDAT" not in chunks:
        return None
    header = chunks[b"IHDR"]
    width, height, depth, colour, compression, filtering, interlaced = struct.unpack(">IIBBBBB", header)
    if depth not in _DEPTHS.get(colour, ()) or compression or filtering or interlaced > 1:
        return None
    stream: bytes = chunks[b"IDAT"]
    extra = _extra_chunks(chunks, colour, depth)
    if extra is None:
        return None
    plain = (depth, colour, interlaced) == (8, 0, 0) and not extra
    if check_pixels or plain:
        passes = list(_pass_shapes(height, width, depth * _CHANNELS[colour], interlaced=bool(interlaced)))
        lines = _inflate(stream, passes)
        if lines is None:
            return None
        pixels = _unfiltered(lines, height, width) if plain else None
        if pixels is not None:
            return pixels, False
        stream = zlib.compress(lines, level=0)
    parts = [(b"IHDR", header), *extra.items(), (b"IDAT", stream), (b"IEND", b"")]
    transparent = colour in (4, 6) or (colour == _PALETTE and b"tRNS" in extra)
    return SIGNATURE + b"".join(_chunk(kind, content) for kind, content in parts), transparent


def _read_chunks(data: bytes) -> dict[bytes, bytes] | None:
    """Kind -> content up to the end chunk, the first of each kind, but all IDAT in one; None for a wrong checksum."""
    view, at, pixels = memoryview(data), len(SIGNATURE), []
    chunks: dict[bytes, bytes] = {}
    while b"IEND" not in chunks:
        if at + 12 > len(data):
            return None
        end = at + 12 + struct.unpack_from(">I", data, at)[0]
        if end > len(data) or zlib.crc32(view[at + 4 : end - 4]) != struct.unpack_from(">I", data, end - 4)[0]:
            return None
        kind, content = data[at + 4 : at + 8], view[at + 8 : end - 4]
        if kind == b"IDAT":
            pixels.append(content)
        elif kind in (b"IHDR", b"PLTE", b"tRNS", b"eXIf", b"IEND"):
            chunks.setdefault(kind, bytes(content))
        at = end
    return chunks | ({b"IDAT": b"".join(pixels)} if pixels else {})


def _pass_shapes(height: int, width: int, bits: int, *, interlaced: bool) -> Iterator[tuple[int, int]]:
    """Lines and bytes per line, its filter included, of each pass over the picture."""
    for x, y, across, down in _PASSES if interlaced else ((0, 0, 1, 1),):
        columns, lines = -(-(width - x) // across), -(-(height - y) // down)
        if columns > 0 and lines > 0:
            yield lines, 1 + -(-columns * bits // 8)


def _inflate(stream: bytes, passes: list[tuple[int, int]]) -> bytes | None:
    """The filtered lines; None where the stream is damaged, too short, or names a filter that does not exist."""
    size = sum(lines * length for lines, length in passes)
    inflate = zlib.decompressobj()
    try:
        pixels = inflate.decompress(stream, size)
        if not inflate.eof:
            inflate.decompress(inflate.unconsumed_tail, 64)  # the checksum, or bytes too many, which do no harm
    except zlib.error:
        return None
    at = 0
    for lines, length in passes:
        if at + lines * length > len(pixels):
            return None
        filters = np.frombuffer(pixels, np.uint8, lines * length, at)[::length]
        if filters.max() > _LAST_FILTER:
            return None
        at += lines * length
    return pixels


def _unfiltered(lines: bytes, height: int, width: int) -> UInt8[np.ndarray, "height width"] | None:
    """The pixels, one byte each; None unless all lines have the same filter, one that sums undo."""
    filtered = np.frombuffer(lines, np.uint8, height * (width + 1)).reshape(height, width + 1)
    kind = int(filtered[0, 0])
    if kind > _UP or (filtered[:, 0] != kind).any():
        return None
    sums = filtered[:, 1:].copy()
    if kind == _SUB:
        return _row_sums(sums)
    if kind == _UP:
        for above, line in itertools.pairwise(sums):
            line += above
    return sums


def _row_sums(terms: UInt8[np.ndarray, "height width"]) -> UInt8[np.ndarray, "height width"]:
    """Running sums of every row modulo 256, by doubling: log2(W) additions of all pixels at once. Overwrites `terms`.

    The additions run over all rows as one, which is where they are fast; the first `reach` pixels of a row, to which
    the end of the row before was added, are put right after each.
    """
    spare, reach = np.empty_like(terms), 1
    while reach < terms.shape[1]:
        np.add(terms.ravel()[reach:], terms.ravel()[:-reach], out=spare.ravel()[reach:])
        spare[:, :reach] = terms[:, :reach]
        terms, spare, reach = spare, terms, 2 * reach
    return terms


def _extra_chunks(chunks: dict[bytes, bytes], colour: int, depth: int) -> dict[bytes, bytes] | None:
    """Palette, transparency and orientation, where they are usable; None for a palette picture without palette."""
    extra: dict[bytes, bytes] = {}
    palette, clear = chunks.get(b"PLTE", b""), chunks.get(b"tRNS", b"")
    if colour == _PALETTE:
        if not palette or len(palette) % 3:
            return None
        extra[b"PLTE"] = palette[: 3 * 2**depth].ljust(3 * 2**depth, b"\0")  # so that each index has its colour
    allowed = {0: (2,), 2: (6,), _PALETTE: range(1, 2**depth + 1)}.get(colour, ())
    if len(clear) in allowed:
        extra[b"tRNS"] = clear
    if chunks.get(b"eXIf", b"").startswith(_EXIF):
        extra[b"eXIf"] = chunks[b"eXIf"]
    return extra


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(content, zlib.crc32(kind)))
