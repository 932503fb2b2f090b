"""How fast a run goes, where its time is spent, and what memory it takes."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from plan_jax.config import Config
from plan_jax.counting.counts import count
from plan_jax.counting.peak import peak_flops

GIB = 2**30
STATM = Path("/proc/self/statm")  # of Linux: sizes in pages, the second one is what is in memory


class SpeedMeter:
    """Time per step since the last reading, in seconds of the host's clock.

    A step is dispatched, not waited for: what the host waits for in `input` is time without work for the device only
    where the device has done all that was dispatched. Read where the device has been waited for, as for the metrics of
    a log, or steps are counted that it has yet to do. The first reading holds the compilation.

    Attributes:
        flops: of one step on one device, where known (`flops_of`).
    """

    def __init__(
        self, step: int, batch_size: int, *, peak: float | None = None, clock: Callable[[], float] = time.monotonic
    ):
        """From `step` on, of a global batch; `peak` in operations per second of one device (`peak_flops`)."""
        self.flops: float | None = None
        self._step, self._batch_size, self._peak, self._clock = step, batch_size, peak, clock
        self._since, self._waited, self._apart = clock(), 0.0, 0.0

    @contextlib.contextmanager
    def input(self) -> Iterator[None]:
        """Around the wait for a batch."""
        start = self._clock()
        yield
        self._waited += self._clock() - start

    @contextlib.contextmanager
    def apart(self) -> Iterator[None]:
        """Around what is no part of a step, such as validation: its time is left out of the next reading."""
        start = self._clock()
        yield
        self._apart += self._clock() - start

    def read(self, step: int) -> dict[str, float]:
        """The speed of the steps up to `step` and the memory in use (`memory_in_use`), as metrics.

        "images_per_second", "step_seconds" = "input_seconds" (the host's wait for a batch) + "compute_seconds" (all
        else), and "mfu": the operations in `flops` as a share of those that the device could do meanwhile, where both
        are known. What rematerialisation does again is among them. No speed where there was no step.
        """
        memory, steps, now = memory_in_use(jax.local_devices()), step - self._step, self._clock()
        if not steps:
            return memory
        seconds = max(now - self._since - self._apart, 1e-9) / steps
        waited = self._waited / steps
        found = {"images_per_second": self._batch_size / seconds, "step_seconds": seconds}
        found |= {"input_seconds": waited, "compute_seconds": seconds - waited}
        if self.flops and self._peak:
            found["mfu"] = self.flops / (seconds * self._peak)
        self._step, self._since, self._waited, self._apart = step, now, 0.0, 0.0
        return found | memory


def flops_of(compiled: jax.stages.Compiled) -> float | None:
    """Operations of one run on one device; None where the backend gives no text of its programs.

    Those of matrix products and convolutions. Too few where the program has hand-written kernels, whose work is not
    counted, or loops of unknown length, which count once (`counting.counts.Counts`).
    """
    try:
        text = compiled.as_text()
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return None
    return count(text).flops if text else None


def peak_of(config: Config, device: Any) -> float | None:
    """Operations per second that a device can do of a run's matrix products; None where that is not known."""
    kinds = {config.image_encoder.dtype, config.text_encoder.dtype}
    dtype = "bfloat16" if "bfloat16" in kinds else "float32"  # of the two the higher peak: the share is never flattered
    return peak_flops(device.device_kind, dtype)


def memory_in_use(devices: Sequence[Any]) -> dict[str, float]:
    """Memory in GiB, as metrics.

    "device_memory_gib" is the most that was in use at once since the process began, of the device where that was most;
    left out where the backend does not tell, as on a CPU. "host_memory_gib" is what this process holds now; where there
    is no /proc, the most it has held.
    """
    peaks = [stats["peak_bytes_in_use"] for stats in map(_stats, devices) if "peak_bytes_in_use" in stats]
    device = {"device_memory_gib": max(peaks) / GIB} if peaks else {}
    return {**device, "host_memory_gib": _resident_bytes() / GIB}


def _stats(device: Any) -> dict[str, int]:
    try:
        return device.memory_stats() or {}
    except (jax.errors.JaxRuntimeError, NotImplementedError):
        return {}


def _resident_bytes() -> int:
    if STATM.is_file():
        return int(STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    import resource  # Unix only

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most
