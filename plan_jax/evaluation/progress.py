"""Progress bars and pieces of long loops."""

import itertools
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

Item = TypeVar("Item")


def progress(items: Iterable[Item], what: str, unit: str) -> Iterator[Item]:
    """The items, with a bar on stderr: rate and time left; seldom redrawn where stderr is a file."""
    every = 0.2 if sys.stderr.isatty() else 10.0
    yield from tqdm(items, desc=what, unit=unit, mininterval=every, dynamic_ncols=True)


def with_bar(function: Callable[..., Item], calls: int, what: str, unit: str) -> Callable[..., Item]:
    """The function with a bar that ends with the last of so many calls."""
    bar = progress(range(calls), what, unit)
    next(bar, None)

    def shown(*arguments: object) -> Item:
        found = function(*arguments)
        next(bar, None)
        return found

    return shown


def in_chunks(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one shorter."""
    iterator = iter(items)
    while chunk := list(itertools.islice(iterator, size)):
        yield chunk
