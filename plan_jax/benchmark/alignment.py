"""How fast and how large the alignment loss is: shapes x implementations, beside the classic local loss in PyTorch."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from plan_jax.ablation.places import devices_here
from plan_jax.benchmark import measure
from plan_jax.benchmark.child import ask, core
from plan_jax.benchmark.classic import find_torch
from plan_jax.benchmark.measure import ONE_CORE, Case
from plan_jax.evaluation.progress import progress
from plan_jax.tables.model import Column, Table

SHAPES: tuple[dict[str, Any], ...] = (
    {"D": 768, "N": 361, "L": 32},
    {"D": 256, "N": 196, "L": 32},
    {"D": 128, "N": 196, "L": 64},
)
PAIRS, QUICK_PAIRS = 48, 12
ROUNDS = (0, 1, 3)
SWEEP = (8, 16, 32, 48, 64, 128, 256, 512)  # pairs of the memory sweep, at the first shape; compiled, not run
CLASSIC_SWEEP = (8, 16, 32)  # run, as PyTorch compiles nothing; and the main table's row
LARGE_PAIRS = 128  # where the form that holds all pairs is compiled for its memory, not run

COLUMNS = (
    Column("loss", "implementation"),
    Column("B", "B", 0),
    Column("L", "L", 0),
    Column("N", "N", 0),
    Column("D", "D", 0),
    Column("rounds", "K", 0),
    Column("lengths", "lengths"),
    Column("ms", "ms", 0),
    Column("times as fast as classic", "ratio_to_baseline", 2),
    Column("temporaries MiB", "temp_mib", 1),
    Column("peak MiB", "peak_mib", 0),
    Column("GFLOP", "gflop", 0),
    Column("share of matrix peak", "gemm_share", 2),
)


def cases(*, quick: bool, torch: bool, accelerator: bool) -> tuple[list[Case], list[Case]]:
    """The main table's cases and those of the memory sweep."""
    pairs = QUICK_PAIRS if quick else PAIRS
    ours = ("scan", "auto") if accelerator else ("scan",)
    repeats = 3 if quick else 5
    main: list[Case] = []
    for shape in SHAPES:
        size: dict[str, Any] = {"B": pairs, **shape, "repeats": repeats}
        main += [Case("classic", **size)] if torch else []
        main += [Case(name, K=rounds, **size) for name in ours for rounds in ROUNDS]
    size = {"B": pairs, "L": 97, "N": 196, "D": 256, "K": 3, "repeats": repeats}
    main += [Case("scan", lengths=lengths, **size) for lengths in ("full", "ragged", "buckets")]
    large: dict[str, Any] = {
        "B": QUICK_PAIRS if quick else LARGE_PAIRS,
        "L": 32,
        "N": 196,
        "D": 256,
        "K": 1,
        "run": False,
    }
    main += [Case(name, **large) for name in ("reference", "scan")]
    first = SHAPES[0]
    sweep = [Case("scan", B=count, K=1, run=False, **first) for count in SWEEP if not quick or count <= 64]
    if torch:
        sweep += [Case("classic", B=count, repeats=1, **first) for count in CLASSIC_SWEEP if count <= pairs]
    return main, sweep


def benchmark_alignment(*, quick: bool) -> list[dict]:
    """Measures every case in a process of its own and returns the rows, ready for JSON.

    A row has "implementation", "shape" {B, L, N, D, K}, "lengths", "ms", "ratio_to_baseline" (the classic loss's time
    over the row's, at the same B, L, N, D), "temp_bytes", "peak_bytes", "flops", "gemm_share" (counted operations over
    the time, against the square product timed in between), "memory_sweep" (True on rows of memory against B) and, where
    a process ended without a result, "failed", the reason.
    """
    platform, _ = devices_here()
    main, sweep = cases(quick=quick, torch=find_torch() is not None, accelerator=platform != "cpu")
    rows = [
        row_of(case, _measured(case, platform), memory_sweep=case in sweep)
        for case in progress([*main, *sweep], "benchmark alignment", "case")
    ]
    return with_ratios(rows)


def row_of(case: Case, found: dict, *, memory_sweep: bool) -> dict:
    """A row from what a process found."""
    shape = {name: getattr(case, name) for name in "BLNDK"}
    row = {"implementation": case.implementation, "shape": shape, "lengths": case.lengths, "memory_sweep": memory_sweep}
    share = None
    if found.get("ms"):
        share = found["flops"] / (found["ms"] / 1e3) / found["gemm_flops_per_second"]
    names = ("ms", "temp_bytes", "peak_bytes", "output_bytes", "flops", "gemm_flops_per_second", "device", "failed")
    return row | {name: found.get(name) for name in names} | {"gemm_share": share, "ratio_to_baseline": None}


def with_ratios(rows: Sequence[dict]) -> list[dict]:
    """The rows with `ratio_to_baseline`, where the classic loss was timed at the same shape and lengths."""

    def key(row: dict) -> tuple:
        return (*(row["shape"][name] for name in "BLND"), row["lengths"])

    timed = [row for row in rows if row["ms"] and not row["memory_sweep"]]
    classic = {key(row): row["ms"] for row in timed if row["implementation"] == "classic"}
    ratios = {id(row): classic[key(row)] / row["ms"] for row in timed if key(row) in classic}
    return [row | {"ratio_to_baseline": ratios.get(id(row))} for row in rows]


def alignment_table(rows: Sequence[dict]) -> Table:
    """The main rows."""
    cells = []
    for row in rows:
        if not row["memory_sweep"]:
            values = (
                row
                | row["shape"]
                | {
                    "temp_mib": _scaled(row["temp_bytes"], 2**20),
                    "peak_mib": _scaled(row["peak_bytes"], 2**20),
                    "gflop": _scaled(row["flops"], 1e9),
                }
            )
            cells.append(tuple(values[column.name] for column in COLUMNS))
    devices = sorted({row["device"] for row in rows if row["device"]})
    return Table(f"Alignment loss and gradient, float32 ({', '.join(devices)})", COLUMNS, tuple(cells))


def exponent(pairs: Sequence[float], memory: Sequence[float]) -> float:
    """b of memory ~ pairs^b, the slope of a least-squares line through the logarithms."""
    return float(np.polyfit(np.log(pairs), np.log(memory), 1)[0])


def sweep_of(rows: Sequence[dict]) -> dict[str, tuple[list[int], list[int]]]:
    """Per implementation the pairs and the bytes of the memory sweep: temporaries and results, or the peak measured."""
    found: dict[str, dict[int, int]] = {}
    for row in rows:
        memory = (
            row["peak_bytes"] if row["implementation"] == "classic" else _sum(row["temp_bytes"], row["output_bytes"])
        )
        at_first = {name: row["shape"][name] for name in "DNL"} == SHAPES[0] and row["lengths"] == "full"
        if at_first and memory and (row["memory_sweep"] or row["implementation"] == "classic"):
            found.setdefault(row["implementation"], {})[row["shape"]["B"]] = memory
    return {name: (sorted(of), [of[count] for count in sorted(of)]) for name, of in found.items()}


def sweep_lines(rows: Sequence[dict]) -> list[str]:
    """A line per implementation: how its memory grows."""
    return [
        f"{name}: memory ~ B^{exponent(pairs, memory):.2f}, {memory[0] / 2**20:.0f} MiB at B = {pairs[0]} and "
        f"{memory[-1] / 2**20:.0f} MiB at B = {pairs[-1]} (D, N, L = {', '.join(str(SHAPES[0][x]) for x in 'DNL')})"
        for name, (pairs, memory) in sweep_of(rows).items()
        if len(pairs) > 1
    ]


def ratio_lines(rows: Sequence[dict]) -> list[str]:
    """What the table's rows say together: memory against the two other forms, and what padding costs."""
    main = [row for row in rows if not row["memory_sweep"]]

    def first(implementation: str, field: str, **wanted: Any) -> Any:
        """The field of the first such row that has one."""
        for row in main:
            has = {**row["shape"], "lengths": row["lengths"]}
            if row["implementation"] == implementation and row[field] and wanted.items() <= has.items():
                return row[field]
        return None

    ragged, full = ({"L": 97, "lengths": lengths} for lengths in ("ragged", "full"))
    ratios = (
        ("peak of classic / of scan with one round", first("classic", "peak_bytes"), first("scan", "peak_bytes", K=1)),
        (
            "temporaries of reference / of scan",
            *(first(x, "temp_bytes", L=32, N=196, K=1, B=_largest(main)) for x in ("reference", "scan")),
        ),
        (
            "time for each operation, ragged / full",
            first("scan", "gemm_share", **full),
            first("scan", "gemm_share", **ragged),
        ),
        ("time, buckets / ragged", first("scan", "ms", L=97, lengths="buckets"), first("scan", "ms", **ragged)),
    )
    return [f"{name}: {above / below:.2f}" for name, above, below in ratios if above and below]


def _largest(rows: Sequence[dict]) -> int:
    """Pairs of the rows of the form that holds all pairs."""
    return max((row["shape"]["B"] for row in rows if row["implementation"] == "reference"), default=0)


def save_sweep(path: Path, rows: Sequence[dict]) -> None:
    """Writes a PNG of memory against the number of pairs, with the fitted exponent of each implementation."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, (pairs, memory) in sweep_of(rows).items():
        grows = f"{name} ~ B^{exponent(pairs, memory):.2f}" if len(pairs) > 1 else name
        axes.loglog(pairs, [value / 2**20 for value in memory], "o-", base=2, label=grows)
    axes.set(
        xlabel="pairs B", ylabel="memory of loss and gradient, MiB", title="D, N, L = 768, 361, 32, one pass or round"
    )
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=120)


def _measured(case: Case, platform: str) -> dict:
    """What the case's process found, or {"failed": its last line}."""
    cpu = platform == "cpu"
    asked = {"case": dataclasses.asdict(case), "core": core() if cpu else None}
    return ask(measure.__name__, asked, ONE_CORE if cpu else {})


def _scaled(value: float | None, unit: float) -> float | None:
    return None if value is None else value / unit


def _sum(*values: int | None) -> int | None:
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None
