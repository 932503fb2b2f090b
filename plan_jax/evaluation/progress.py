"""Progress bars and pieces of long loops."""

import itertools
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str, unit: str) -> Iterator[Item]:
    """The items, with a bar on stderr: rate and time left; seldom redrawn where stderr is a file."""
    every = 0.2 if sys.stderr.isatty() else 10.0
    yield from tqdm(items, desc=what, unit=unit, mininterval=every, dynamic_ncols=True)


def in_chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
