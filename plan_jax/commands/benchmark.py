"""The command that measures: `benchmark`."""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from plan_jax.errors import InputError

if TYPE_CHECKING:
    from plan_jax.config import Config

PHANTOM, LARGE = "configs/phantom.py", "configs/plan_r50.py"
LEVELS = ("easy", "cooc", "realistic")


def add_benchmark(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="measure the bench (can its findings be learnt?), or how fast and large the alignment, the loader or a "
        "training step is",
        description="bench: trains the project's image path on the phantoms' exact masks for a few hundred steps and "
        "prints for every finding how well it is detected and located on other patients, beside what the feature grid "
        "allows. A level says something about a method only if every finding's presence AUROC reaches .9. "
        "alignment: times the local loss and its gradient and weighs its memory, each shape and implementation in a "
        "process of its own on one core (or on the accelerator), as a share of the matrix peak measured in between; "
        "beside it the classic local loss in PyTorch, if torch is installed (a CPU build serves). Some minutes. "
        "input: counts the images that a core reads in a second, by stage, beside a plain PyTorch loader, if torch is "
        "installed, and beside what a training step on this machine's device takes. Some minutes. "
        "step: times a whole training step on the devices here and, as programs of their own, its parts: encoders "
        "(views, forward and backward pass), alignment (both losses and their gradient with respect to the features) "
        "and optimizer (norms, clipping, update), with images/s, MFU where the chip's peak is known, and memory; "
        "rest is what is left of the step and may be negative, because the compiler works across the parts' borders; "
        "input is the host's reading, on one core, which goes on meanwhile. Where the batch does not fit, half of it "
        "is tried, and so on. Fields are set by --config.FIELD=VALUE.",
        epilog="example: python -m plan_jax benchmark step --config configs/plan_r50.py --config.data.batch_size=256",
    )
    parser.add_argument(
        "name", choices=("bench", "alignment", "input", "step"), metavar="NAME", help="bench, alignment, input or step"
    )
    parser.add_argument(
        "--level",
        action="append",
        choices=LEVELS,
        metavar="LEVEL",
        help="bench: easy, cooc or realistic (default: all)",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help=f"bench: default {PHANTOM}; input and step: whose training step, default {PHANTOM} on a CPU, else {LARGE}",
    )
    parser.add_argument(
        "--data",
        type=Path,
        metavar="DIR",
        help="input and step: what is read, a folder that build wrote (default: made-up films of 512 px)",
    )
    parser.add_argument(
        "--scaling",
        action="store_true",
        help="step: also compile it for 1, 2, 4 and 8 virtual devices and check that what each of them exchanges stays "
        "flat, with the global batch fixed and with the batch per device fixed; nothing is run there, since virtual "
        "devices share the cores. Some minutes more",
    )
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("runs/benchmark"),
        metavar="DIR",
        help="alignment: folder of alignment.json, .png",
    )
    parser.add_argument("--quick", action="store_true", help="smaller and shorter; bench may miss subtle findings")
    parser.add_argument("--json", action="store_true", help="print the rows as a JSON list and nothing else")
    parser.set_defaults(run=lambda call: COMMANDS[call.name](call))


def _alignment(call: argparse.Namespace) -> int:
    import json

    from plan_jax.benchmark.alignment import (
        alignment_table,
        benchmark_alignment,
        ratio_lines,
        save_sweep,
        sweep_lines,
    )
    from plan_jax.tables.render import render

    if call.overrides:
        raise InputError(f"benchmark alignment must have no fields of a configuration, got {call.overrides[0]}")
    rows = benchmark_alignment(quick=call.quick)
    save_sweep(call.out / "alignment.png", rows)
    (call.out / "alignment.json").write_text(json.dumps(rows, indent=2) + "\n")
    for row in rows:
        if row["failed"]:
            print(f"plan_jax: {row['implementation']} at {row['shape']} failed: {row['failed']}", file=sys.stderr)
    if call.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(render([alignment_table(rows)]))
    print("\n".join([*ratio_lines(rows), *sweep_lines(rows), f"plot: {call.out / 'alignment.png'}"]))
    return 0


def _input(call: argparse.Namespace) -> int:
    import json

    config = _config_here(call)
    from plan_jax.benchmark.input import benchmark_input, input_lines, input_table
    from plan_jax.tables.render import render

    rows = benchmark_input(config, data=call.data, quick=call.quick)
    for row in rows:
        if row["failed"]:
            print(f"plan_jax: {row['loader']}, {row['stage']}, failed: {row['failed']}", file=sys.stderr)
    if call.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(render([input_table(rows)]))
    print("\n".join(input_lines(rows)))
    return 0


def _step(call: argparse.Namespace) -> int:
    import json

    config = _config_here(call)
    from plan_jax.benchmark.step import benchmark_step, scaling_table, step_lines, step_table
    from plan_jax.benchmark.step_scaling import scaling_lines
    from plan_jax.tables.render import render

    rows = benchmark_step(config, data=call.data, quick=call.quick, scaling=call.scaling)
    for row in rows:
        if row["failed"]:
            where = f" on {row['devices']} devices, {row['series']} fixed," if row["series"] else ""
            print(f"plan_jax: {row['part']}{where} failed: {row['failed']}", file=sys.stderr)
    if call.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(render([step_table(rows)]))
    print("\n".join(step_lines(rows)))
    if call.scaling:
        print("\n" + render([scaling_table(rows)]))
        print("\n".join(scaling_lines(rows)))
    return 0


def _config_here(call: argparse.Namespace) -> "Config":
    """The configuration that is named, or the one for this machine's devices."""
    from plan_jax.config_file import read_config

    config = read_config(call.config, call.overrides) if call.config else None
    from plan_jax.ablation.places import devices_here

    return config or read_config(PHANTOM if devices_here()[0] == "cpu" else LARGE, call.overrides)


def _bench(call: argparse.Namespace) -> int:
    import json

    from plan_jax.config_file import read_config

    configs = {
        level: read_config(f"{call.config or PHANTOM}:{level}", call.overrides) for level in call.level or LEVELS
    }
    from plan_jax.benchmark.bench import bench, bench_tables, bench_verdicts
    from plan_jax.tables.render import render

    rows = bench(configs, quick=call.quick)
    if call.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(render(bench_tables(rows)))
    print("\n".join(bench_verdicts(rows)))
    return 0


COMMANDS = {"alignment": _alignment, "input": _input, "step": _step, "bench": _bench}
