"""Damaged and hostile tables, lists, archives and reports: each gives sound rows or an InputError that names the file.

A hundred for each data set in every run; PLAN_JAX_MUTATIONS=800 makes it 8,800, which with the images of
test_image_mutations.py is more than ten thousand.
"""

import math
import os
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from plan_jax.data.build import DATA_SETS, row_set
from plan_jax.data.fake import FAKES, fake
from plan_jax.data.rows import RowSet
from plan_jax.data.source import Source
from plan_jax.data.store import Store
from plan_jax.errors import InputError

COUNT = int(os.environ.get("PLAN_JAX_MUTATIONS", "100"))
SECONDS = 20  # for one reading of some kilobytes, on a busy machine
HOSTILE = (
    *(b"../../etc/passwd", b"/etc/passwd", b"..", b"", b"nan", b"inf", b"-1", b"1e308", b"-0.0", b"9" * 40, b"1,1"),
    *(b'"', b'""', b"\n", b"\r", b"\0", b"\xff\xfe", b"\xef\xbb\xbf", b"\xe2\x80\xae", b"x" * 200_000, b";", b" "),
    *(b"<!DOCTYPE a>", b"&lt;", b"]]>", b"{", b"[", b"null", b'{"a":' * 2000, b"=cmd|' /C calc'!A0", b"%00"),
)
Random = np.random.Generator


# Ways to damage a text


def flipped(data: bytes, random: Random) -> bytes:
    changed = bytearray(data)
    for at in random.integers(0, len(data), random.integers(1, 9)):
        changed[at] = random.integers(0, 256)
    return bytes(changed)


def cut(data: bytes, random: Random) -> bytes:
    return data[: random.integers(0, len(data))]


def holed(data: bytes, random: Random) -> bytes:
    start, end = sorted(random.integers(0, len(data), 2))
    return data[:start] + data[end:]


def said_otherwise(data: bytes, random: Random) -> bytes:
    """A cell is something hostile instead."""
    ends = [at for at, byte in enumerate(data) if byte in b',;\n"< \t']
    if len(ends) < 2:
        return data + HOSTILE[random.integers(len(HOSTILE))]
    at = int(random.integers(0, len(ends) - 1))
    return data[: ends[at] + 1] + HOSTILE[random.integers(len(HOSTILE))] + data[ends[at + 1] :]


def inserted(data: bytes, random: Random) -> bytes:
    at = int(random.integers(0, len(data)))
    return data[:at] + HOSTILE[random.integers(len(HOSTILE))] + data[at:]


def shuffled(data: bytes, random: Random) -> bytes:
    """Lines in another order, one of them twice, the header perhaps among them."""
    lines = data.split(b"\n")
    return b"\n".join(lines[at] for at in [*random.permutation(len(lines)), random.integers(len(lines))])


def recoded(data: bytes, random: Random) -> bytes:
    return data.decode("utf-8", errors="replace").encode(
        ("utf-16", "utf-32", "utf-7", "cp037")[random.integers(4)], errors="replace"
    )


DAMAGE: tuple[Callable[[bytes, Random], bytes], ...] = (
    *(flipped, said_otherwise, inserted, said_otherwise, cut, holed, shuffled, inserted, recoded),
)


def texts_of(raw: Path) -> list[Path]:
    """All that is not an image."""
    images = (".png", ".jpg", ".jpeg", ".dcm")
    return sorted(path for path in raw.rglob("*") if path.is_file() and path.suffix.lower() not in images)


def assert_sound(tables: RowSet, raw: Path) -> None:
    """The rows keep the rules of the schema, their images lie in the folder, their boxes are boxes."""
    for rows in Source(tables, Store(), None, raw).rows.values():
        for row in rows:
            assert row.image.resolve().is_relative_to(raw.resolve())
            assert row.key
            assert row.patient
            assert not row.runs or len(row.runs) == len(row.phrases)
            for phrase in row.phrases:
                for x0, y0, x1, y1 in phrase.boxes:
                    assert all(map(math.isfinite, (x0, y0, x1, y1)))
                    assert x0 < x1
                    assert y0 < y1
            for _, text in row.sections:
                text.encode()  # no half of a surrogate pair
    assert all(count > 0 and reason for reason, count in tables.dropped.items())


def refusal(name: str, raw: Path) -> str:
    """What reading the folder is refused with, or "" where its rows are sound."""
    try:
        assert_sound(row_set(name)(raw), raw)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize("name", FAKES)
def test_a_damaged_table_gives_sound_rows_or_an_error_that_names_the_file(name, tmp_path, capfd):
    fake(name, out=tmp_path / "raw")
    raw, refused = tmp_path / "raw", 0
    assert refusal(name, raw) == ""
    files = texts_of(raw)
    for number in range(COUNT):
        random = np.random.default_rng([zlib.crc32(name.encode()), number])
        path, damage = files[random.integers(len(files))], DAMAGE[number % len(DAMAGE)]
        whole, start = path.read_bytes(), time.process_time()
        path.write_bytes(damage(whole, random))
        case = f"{name} {path.name} {damage.__name__} {number}"
        try:
            message = refusal(name, raw)
        except Exception as error:
            raise AssertionError(case) from error
        path.write_bytes(whole)
        refused += message != ""
        assert not message or (str(raw) in message and len(message) < 1000 and "\n" not in message), case
        assert time.process_time() - start < SECONDS, case
    assert refused < COUNT  # some damage costs its own lines and no others
    assert capfd.readouterr() == ("", "")


def test_every_data_set_with_raw_files_is_tried():
    assert set(FAKES) == set(DATA_SETS) - {"phantom"}
