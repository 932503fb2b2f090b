"""What a training step exchanges on more and more devices: `python -m plan_jax.benchmark.step_scaling`, asked on stdin.

The devices are virtual: parts of this machine's CPU, for which programs are compiled, not run. Per device and step, the
exchange of the *features* (with both losses, so that every report meets every image) and that of the *parameters* (all
else: gradients, parameters that lie in parts, statistics of norms) are told apart by compiling the losses alone too.
What a step sends on (collective-permute) beside the losses' are the features of the few pairs that it watches
(`train.step.WATCHED`): they depend on no batch, are counted apart and not judged.

What must stay flat: what the parameters take, whatever the batch; and what the features take for each pair of the
global batch. So at a fixed global batch both stay flat as they are, and at a fixed batch per device the features' bytes
grow with the global batch, by no more.
"""

import json
import sys
from collections.abc import Sequence
from typing import Any

import jax
from ml_collections import ConfigDict

from plan_jax.compilation.report import compile_program, with_batch
from plan_jax.compilation.topology import parse_topology
from plan_jax.config import Config, freeze
from plan_jax.errors import InputError
from plan_jax.sharding import make_mesh

GLOBAL, PER_DEVICE = "global batch", "batch per device"  # which of the two stays as it is
SLACK = 1.05  # of the bytes at the fewest devices that exchange any: what still is flat [ours]
SENT = "collective-permute"
EXCHANGES = {"parameters": "parameter_bytes", "features": "feature_bytes"}


def batches_of(config: Config, counts: Sequence[int]) -> list[tuple[str, int, int]]:
    """(series, devices, global batch) of what is compiled; the largest count has the configuration's batch in both.

    Raises:
        InputError: the batch cannot be cut among the devices.
    """
    size, most, parts = config.data.batch_size, max(counts), config.train.micro_batches
    if size % (most * parts):
        raise InputError(
            f"config.data.batch_size must be a multiple of {most * parts} for --scaling ({most} devices x {parts} "
            f"micro-batches), got {size}; change it"
        )
    counts = [count for count in counts if not count % config.mesh.fsdp]
    return [(GLOBAL, count, size) for count in counts] + [(PER_DEVICE, count, size // most * count) for count in counts]


def compiled_rows(config: Config, devices: Sequence[Any], sizes: Sequence[int], *, quick: bool) -> list[dict]:
    """A row per global batch: of a step on the devices, as `compile_program` tells, with the bytes of each exchange."""
    mesh = make_mesh(devices, fsdp=config.mesh.fsdp)
    topology = parse_topology(f"cpu:{len(devices)}")
    rows = []
    for size in sizes:
        step, losses = (
            compile_program(name, with_batch(config, size), topology, mesh, quick=quick)
            for name in ("step", "alignment")
        )
        moved, features = (sum(row["collective_bytes"].values()) for row in (step, losses))
        watched = step["collective_bytes"][SENT] - losses["collective_bytes"][SENT]
        about = {"devices": len(devices), "batch_size": size, "device": "cpu", "failed": None}
        rows.append(step | about | {"feature_bytes": features, "watched_bytes": watched})
        rows[-1]["parameter_bytes"] = moved - features - watched
    return rows


def with_verdicts(rows: Sequence[dict]) -> list[dict]:
    """The rows with "flat": whether neither exchange has grown by more than `SLACK` since the fewest devices of the
    same series that exchange anything; None for these and where nothing was compiled.
    """
    return [row | {"flat": _is_flat(row, _first(rows, row["series"]))} for row in rows]


def growth(row: dict, first: dict, exchange: str) -> float:
    """The bytes of an exchange beside those of the first row, of features for each pair of the global batch."""
    name, pairs = EXCHANGES[exchange], first["batch_size"] / row["batch_size"] if exchange == "features" else 1
    return row[name] / first[name] * pairs if first[name] else 1.0 if not row[name] else float("inf")


def scaling_lines(rows: Sequence[dict]) -> list[str]:
    """A verdict per series and exchange: from the fewest devices that exchange anything to the most."""
    lines = []
    for series in (GLOBAL, PER_DEVICE):
        first = _first(rows, series)
        known = [row for row in rows if row["series"] == series and row["flat"] is not None]
        if first is not None and known:
            lines += [_verdict(first, known, exchange) for exchange in EXCHANGES]
            lines += [_all_together(first, known[-1])] if series == GLOBAL else []
    return lines


def _all_together(first: dict, last: dict) -> str:
    before, after = (sum(row["collective_bytes"].values()) / 1024 for row in (first, last))
    return (
        f"{GLOBAL} fixed, all together, watched pairs too: {before:.1f} KiB on each of {first['devices']} devices, "
        f"{after:.1f} on each of {last['devices']}: {after / before:.2f} times"
    )


def _verdict(first: dict, known: Sequence[dict], exchange: str) -> str:
    most = max(growth(row, first, exchange) for row in known)
    per_pair, last = exchange == "features", known[-1]
    before, after = (row[EXCHANGES[exchange]] / 1024 / (row["batch_size"] if per_pair else 1) for row in (first, last))
    return (
        f"{first['series']} fixed, {exchange}: {before:.1f} KiB{' per pair' if per_pair else ''} on each of "
        f"{first['devices']} devices, {after:.1f} on each of {last['devices']}: "
        + ("flat" if most <= SLACK else f"grows {most:.2f} times")
    )


def _first(rows: Sequence[dict], series: str) -> dict | None:
    """The row of the fewest devices above 1 of a series."""
    known = [row for row in rows if row["series"] == series and row["devices"] > 1 and row.get("parameter_bytes")]
    return min(known, key=lambda row: row["devices"], default=None)


def _is_flat(row: dict, first: dict | None) -> bool | None:
    if first is None or row["failed"] or row["devices"] <= first["devices"]:
        return None
    return all(growth(row, first, exchange) <= SLACK for exchange in EXCHANGES)


def main() -> None:
    """Reads {"config", "sizes", "quick"} and writes the rows for as many devices as this process has."""
    asked = json.loads(sys.stdin.readline())
    found = compiled_rows(freeze(ConfigDict(asked["config"])), jax.devices(), asked["sizes"], quick=asked["quick"])
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main()
