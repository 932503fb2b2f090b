"""A contact sheet: what the records of a data set look like, with their boxes and phrases."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

import cv2
from PIL import Image, ImageDraw, ImageFont

from plan_jax.data.image import decode_image
from plan_jax.data.records import Record

TILE = 256  # side of an image on the sheet, pixels
COLUMNS = 6
LINES = 5  # of text under an image
LINE_HEIGHT = 17
MARGIN = 8
COLOURS = ("#ffd166", "#06d6a0", "#5ab4ff", "#ff7b9c", "#c792ea", "#ffa657")


def contact_sheet(records: Sequence[Record], *, caption: str, path: Path) -> None:
    """Writes a PNG with a tile per record: the image with its boxes, and the phrases in the colours of the boxes."""
    rows = -(-len(records) // COLUMNS)
    width, height = TILE + MARGIN, TILE + LINES * LINE_HEIGHT + MARGIN
    sheet = Image.new("RGB", (COLUMNS * width + MARGIN, rows * height + 5 * MARGIN), "#16181d")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(13)
    draw.text((MARGIN, MARGIN), caption, fill="white", font=ImageFont.load_default(16))
    for number, record in enumerate(records):
        corner = (MARGIN + number % COLUMNS * width, 4 * MARGIN + number // COLUMNS * height)
        _tile(sheet, draw, record, corner, font)
    sheet.save(path)


def _tile(sheet: Image.Image, draw: ImageDraw.ImageDraw, record: Record, corner: tuple[int, int], font) -> None:
    x, y = corner
    gray = decode_image(record.image, name=f"record {record.key}")
    scale = TILE / max(gray.shape)
    size = (max(1, round(gray.shape[1] * scale)), max(1, round(gray.shape[0] * scale)))
    nearest_if_enlarged = cv2.INTER_NEAREST if scale > 1 else cv2.INTER_AREA
    sheet.paste(Image.fromarray(cv2.resize(gray, size, interpolation=nearest_if_enlarged)), corner)
    lines: list[tuple[str, str]] = []
    for number, phrase in enumerate(record.phrases):
        colour = COLOURS[number % len(COLOURS)]
        for x0, y0, x1, y1 in phrase.boxes:
            draw.rectangle((x + x0 * scale, y + y0 * scale, x + x1 * scale - 1, y + y1 * scale - 1), None, colour, 2)
        lines += [(line, colour) for line in textwrap.wrap(phrase.text, 38)]
    if not record.phrases:
        lines = [(line, "#c9d1d9") for line in textwrap.wrap(", ".join(record.labels) or "no finding", 38)]
    for number, (line, colour) in enumerate(lines[:LINES]):
        draw.text((x, y + TILE + 2 + number * LINE_HEIGHT), line, fill=colour, font=font)
