"""One measurement in a process of its own: `python -m plan_jax.benchmark.measure`, a case on stdin, a row on stdout.

A process for each, so that its peak memory is its own. On a CPU it is pinned to one core and its CPU time is read, so
that other work on the machine does not count; on an accelerator the wall clock is.
"""

import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

GEMM_SIDE = 1024  # of the square product that gives the machine's matrix peak
SECONDS = 20.0  # after which a measurement is not repeated any more
ONE_CORE = {"XLA_FLAGS": "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1", "OMP_NUM_THREADS": "1"}


@dataclasses.dataclass(frozen=True)
class Case:
    """What is measured: the loss of B images with their reports, and its gradient.

    Attributes:
        implementation: "classic" or one of `alignment.implementation`.
        B, L, N, D, K: pairs, words of the longest report, patches, joint dimension, rounds.
        lengths: "full", "ragged" (5 to L) or "buckets" (ragged, rounded up to a third of L, two thirds, or L).
        dtype: of the matrix products' operands.
        run: False only compiles.
        repeats: at most.
    """

    implementation: str
    B: int
    L: int
    N: int
    D: int
    K: int = 0
    lengths: str = "full"
    dtype: str = "float32"
    run: bool = True
    repeats: int = 5

    def words(self) -> np.ndarray:
        """Real words of each report [B]."""
        if self.lengths == "full":
            return np.full(self.B, self.L)
        ragged = np.random.default_rng(0).integers(min(5, self.L), self.L + 1, size=self.B)
        if self.lengths == "ragged":
            return ragged
        thirds = np.ceil(np.arange(1, 4) * self.L / 3).astype(int)
        return thirds[np.searchsorted(thirds, ragged)]

    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """Random patch [B N D] and word [B L D] features of length 1."""
        rng = np.random.default_rng(1)
        drawn = (rng.normal(size=(self.B, rows, self.D)).astype(np.float32) for rows in (self.N, self.L))
        patch, word = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in drawn)
        return patch, word


def measure(case: Case) -> dict[str, Any]:
    """Time, memory and operations of a case; None for what is not known.

    Returns "ms" (median), "peak_bytes" (highest use of memory above what was there before the first run), "temp_bytes"
    and "output_bytes" (of the compiled program), "flops" (matrix products, counted), "gemm_flops_per_second" (of a
    square product in the same process), "device".
    """
    return _classic(case) if case.implementation == "classic" else _jax(case)


def _jax(case: Case) -> dict[str, Any]:
    import jax
    import jax.numpy as jnp

    from plan_jax.alignment.cost import operations
    from plan_jax.alignment.similarity import word_patch_similarity
    from plan_jax.config import AlignmentConfig
    from plan_jax.losses import info_nce
    from plan_jax.types import ImageFeatures, TextFeatures

    config = AlignmentConfig(rounds=case.K, implementation=case.implementation, dtype=case.dtype)
    words = case.words()
    mask = jnp.arange(case.L)[None, :] < jnp.asarray(words)[:, None]

    def loss(patch: jax.Array, word: jax.Array, word_logit: jax.Array) -> jax.Array:
        images = ImageFeatures(pooled=patch[:, 0], patch=patch, grid=(1, case.N))
        texts = TextFeatures(pooled=word[:, 0], word=word, word_logit=word_logit, mask=mask)
        return info_nce(word_patch_similarity(images, texts, config=config) / 0.1, jnp.ones(case.B, bool))

    inputs = *map(jnp.asarray, case.features()), jnp.zeros((case.B, case.L))
    compiled = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2))).lower(*inputs).compile()
    memory, device = compiled.memory_analysis(), jax.devices()[0]
    square = jnp.ones((GEMM_SIDE, GEMM_SIDE), case.dtype)
    product = jax.jit(lambda x: jnp.dot(x, x, preferred_element_type=jnp.float32)).lower(square).compile()
    row = {
        "temp_bytes": memory.temp_size_in_bytes if memory else None,
        "output_bytes": memory.output_size_in_bytes if memory else None,
        "flops": operations(case.B, int(words.sum()), case.N, case.D, config=config),
        "device": device.device_kind,
    }
    if not case.run:
        return row

    def step() -> None:
        jax.block_until_ready(compiled(*inputs))

    clock = time.process_time if device.platform == "cpu" else time.perf_counter
    peak = _peak_of(step, device)
    times = _times(step, lambda: jax.block_until_ready(product(square)), clock, case.repeats)
    return row | {"peak_bytes": peak} | times


def _classic(case: Case) -> dict[str, Any]:
    from plan_jax.benchmark.classic import classic_loss, find_torch

    torch = find_torch()
    torch.set_num_threads(1)
    patch, word = (torch.tensor(x).transpose(1, 2).contiguous().requires_grad_() for x in case.features())
    lengths = case.words().tolist()

    def step() -> None:
        patch.grad = word.grad = None
        classic_loss(torch, patch, word, lengths).backward()

    square = torch.ones(GEMM_SIDE, GEMM_SIDE)
    cells = case.B * sum(lengths) * case.N
    # Two products forward, four backward, 2 D operations each for every word and patch.
    row = {"temp_bytes": None, "output_bytes": None, "flops": 12 * cells * case.D, "device": "cpu"}
    return row | {
        "peak_bytes": _peak_of(step),
        **_times(step, lambda: square @ square, time.process_time, case.repeats),
    }


def _times(step: Callable[[], Any], product: Callable[[], Any], clock: Callable[[], float], repeats: int) -> dict:
    """Medians over interleaved runs of the step and of the product that it is compared with."""
    product()
    begin = time.perf_counter()
    steps: list[float] = []
    products: list[float] = []
    while len(steps) < repeats and (not steps or time.perf_counter() - begin < SECONDS):
        for function, taken in ((step, steps), *[(product, products)] * 3):
            before = clock()
            function()
            taken.append(clock() - before)
    return {
        "ms": 1e3 * statistics.median(steps),
        "gemm_flops_per_second": 2 * GEMM_SIDE**3 / statistics.median(products),
        "repeats": len(steps),
    }


def _peak_of(step: Callable[[], Any], device: Any = None) -> int | None:
    """Bytes of memory that the first run takes at its highest, above what was in use before; None where unknown."""
    if device is not None and device.platform != "cpu":
        before = (device.memory_stats() or {}).get("bytes_in_use")
        step()
        after = (device.memory_stats() or {}).get("peak_bytes_in_use")
        return None if before is None or after is None else after - before
    try:
        Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to what is in use now
        before = _status("VmHWM")
    except OSError:  # not Linux
        step()
        return None
    step()
    return _status("VmHWM") - before


def _status(field: str) -> int:
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(f"{field}:"))
    return 1024 * int(line.split()[1])


def main() -> None:
    """Reads {"case", "core"}, pins itself to the core if there is one, and writes the row."""
    asked = json.loads(sys.stdin.readline())
    if asked["core"] is not None:
        os.sched_setaffinity(0, {asked["core"]})  # before a library makes threads
    sys.stdout.write(json.dumps(measure(Case(**asked["case"]))) + "\n")


if __name__ == "__main__":
    main()
