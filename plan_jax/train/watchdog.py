"""Says where a run waits when it does not move: on a pod one process that hangs stops all others without a word."""

import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import NamedTuple

import jax
from tqdm import tqdm


class _Place(NamedTuple):
    where: str
    since: float


class Watchdog:
    """A thread that looks whether the training loop still moves, while the context lasts.

    After `seconds` in one place it tells which process waits where, with the Python stacks of all threads (lines of
    code and no values, which might be of reports), again whenever the time has doubled, and once when the loop goes on.
    It needs the interpreter: what hangs without ever giving that free is not told.

    Args:
        seconds: how long a place may take; 0 switches it off.
        process: (index, count), JAX's own where it is not given.
        clock: seconds that only grow.
        tell: takes the text (default: to stderr).
    """

    def __init__(
        self,
        seconds: float,
        *,
        process: tuple[int, int] | None = None,
        clock: Callable[[], float] = time.monotonic,
        tell: Callable[[str], None] | None = None,
    ):
        index, count = process or (jax.process_index(), jax.process_count())
        self._name = f"process {index} of {count}"
        self._seconds, self._clock, self._tell = seconds, clock, tell or _to_stderr
        self._place = _Place("start", clock())
        self._told: _Place | None = None  # the place that it spoke of last
        self._limit = seconds  # that such a place may take until it speaks again
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)

    def at(self, where: str) -> None:
        """The loop is here now, such as "input" or "step 120"."""
        left, now = self._place, self._clock()
        self._place = _Place(where, now)
        if self._told is left:
            self._tell(f"{self._name} goes on after {now - left.since:.0f} s at: {left.where}")

    def look(self) -> float:
        """Tells what there is to tell, and gives the seconds until the next look."""
        place, now = self._place, self._clock()
        if place is not self._told:
            self._limit = self._seconds
        waited = now - place.since
        if waited >= self._limit:
            self._told = place
            self._tell(f"{self._name} has been waiting {waited:.0f} s at: {place.where}\n{_stacks()}")
            while waited >= self._limit:
                self._limit *= 2
        return self._limit - waited

    def __enter__(self) -> "Watchdog":
        self.at("start")
        if self._seconds > 0:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(min(self.look(), threading.TIMEOUT_MAX)):
            pass


def _stacks() -> str:
    """Where every other thread is, the main one first, the innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    frames = {number: frame for number, frame in sys._current_frames().items() if number != threading.get_ident()}
    return "\n".join(
        f"Thread {names.get(number, number)}:\n{''.join(traceback.format_stack(frames[number])).rstrip()}"
        for number in sorted(frames, key=lambda number: number != threading.main_thread().ident)
    )


def _to_stderr(text: str) -> None:
    tqdm.write(text, file=sys.stderr)
