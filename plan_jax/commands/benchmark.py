"""The command that measures: `benchmark`."""

import argparse
import sys
from pathlib import Path

PHANTOM, LARGE = "configs/phantom.py", "configs/plan_r50.py"
LEVELS = ("easy", "cooc", "realistic")


def add_benchmark(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="measure the bench (can its findings be learnt?), the alignment's speed and memory, or the loader's speed",
        description="bench: trains the project's image path on the phantoms' exact masks for a few hundred steps and "
        "prints for every finding how well it is detected and located on other patients, beside what the feature grid "
        "allows. A level says something about a method only if every finding's presence AUROC reaches .9. "
        "alignment: times the local loss and its gradient and weighs its memory, each shape and implementation in a "
        "process of its own on one core (or on the accelerator), as a share of the matrix peak measured in between; "
        "beside it the classic local loss in PyTorch, if torch is installed (a CPU build serves). Some minutes. "
        "input: counts the images that a core reads in a second, by stage, beside a plain PyTorch loader, if torch is "
        "installed, and beside what a training step on this machine's device takes. Some minutes.",
    )
    parser.add_argument(
        "name", choices=("bench", "alignment", "input"), metavar="NAME", help="bench, alignment or input"
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
        help=f"bench: default {PHANTOM}; input: whose training step, default {PHANTOM} on a CPU, else {LARGE}",
    )
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="input: a folder that build wrote (default: made-up films of 512 px)"
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
    parser.set_defaults(run=lambda call: {"alignment": _alignment, "input": _input}.get(call.name, _bench)(call))


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

    from plan_jax.config_file import read_config

    config = read_config(call.config) if call.config else None
    from plan_jax.ablation.places import devices_here
    from plan_jax.benchmark.input import benchmark_input, input_lines, input_table
    from plan_jax.tables.render import render

    config = config or read_config(PHANTOM if devices_here()[0] == "cpu" else LARGE)
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


def _bench(call: argparse.Namespace) -> int:
    import json

    from plan_jax.config_file import read_config

    configs = {level: read_config(f"{call.config or PHANTOM}:{level}") for level in call.level or LEVELS}
    from plan_jax.benchmark.bench import bench, bench_tables, bench_verdicts
    from plan_jax.tables.render import render

    rows = bench(configs, quick=call.quick)
    if call.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(render(bench_tables(rows)))
    print("\n".join(bench_verdicts(rows)))
    return 0
