"""The commands of those who study the method: `ablate` and `compile`."""

import argparse
import sys
from pathlib import Path

from plan_jax.errors import InputError

CONFIG_HELP = "for example configs/phantom.py, or configs/phantom.py:cooc for another level of the phantom"
ARMS = "plan,static,global_only,no_history,no_word_importance,no_patch_importance,all_words"


def add_ablate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "ablate",
        help="train arms that differ in one part of the method, and compare them",
        description="Trains every arm with every seed, scores grounding and writes OUT/ablation.json, .md and .png. "
        "The arms of one seed start from the same random numbers and see the same batches, so differences are paired. "
        "Ctrl-C saves; the same command continues, and what is finished is never run again. Fields are set for all "
        "arms by --config.FIELD=VALUE. What a run prints is in OUT/runs/ARM/seed_S/log.txt.",
    )
    add = parser.add_argument
    add("--config", required=True, metavar="FILE", help=f"what every arm starts from, {CONFIG_HELP}")
    add(
        "--arms", default=ARMS, metavar="A,B,...", help="the first is the reference of the others; default: %(default)s"
    )
    add("--seeds", type=int, default=5, metavar="N", help="0 to N-1, each for parameters and data order (default 5)")
    add("--out", type=Path, required=True, metavar="DIR", help="folder of the runs, the report and the phantom")
    add("--split", choices=("tune", "validation", "test"), default="test", help="choose on tune, report on test")
    add("--size", type=int, metavar="N", help="number of images of the phantom, which is built where data.dir is empty")
    add("--jobs", type=int, metavar="N", help="runs side by side: default one per core, pinned to it, or one per GPU")
    add("--equal-time", action="store_true", help="also train each arm for the time of the first one, as ARM@time")
    add("--report-only", action="store_true", help="train nothing; report the runs that are finished so far")
    add("--json", action="store_true", help="print the content of DIR/ablation.json instead of the tables")
    parser.set_defaults(run=_ablate)


def _ablate(call: argparse.Namespace) -> int:
    from plan_jax.config_file import read_config

    config = read_config(call.config, call.overrides)
    from plan_jax.ablation.runs import ablate
    from plan_jax.ablation.study import Study
    from plan_jax.tables.render import render

    study = Study(config, tuple(call.arms.split(",")), call.seeds, call.out, call.split, call.size)
    outcome = ablate(study, jobs=call.jobs, equal_time=call.equal_time, report_only=call.report_only)
    if outcome.tables:
        print((call.out / "ablation.json").read_text() if call.json else render(outcome.tables), end="")
    for failure in outcome.failures:
        print(f"plan_jax: {failure.name} failed: {failure.reason}", file=sys.stderr)
    return outcome.exit_code


def add_compile(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "compile",
        help="say what a training step needs on hardware that is not here: memory, work, traffic",
        description="Compiles the programs of a configuration for a topology, without its chips, and prints for every "
        "chip and step: peak memory (arguments + temporaries + outputs less those that take an argument's place) and "
        "whether it fits, floating-point operations, and the bytes of every kind of collective. alignment is both "
        "losses and their gradient with respect to the features; step is encoders, losses, backward pass and "
        "optimizer. Nothing is run. Fields are set by --config.FIELD=VALUE: the global batch is "
        "--config.data.batch_size=32768. Needs the compiler of the chip: pip install 'plan_jax[tpu]' or "
        "'plan_jax[cuda]', each in an environment of its own; --rows puts together what several of them said.",
        epilog="example: python -m plan_jax compile --config configs/plan_r50.py --topology v5e:16x16 "
        "--config.data.batch_size=32768 --largest-batch",
    )
    add = parser.add_argument
    add("--config", metavar="FILE", help=CONFIG_HELP)
    add(
        "--topology",
        action="append",
        default=[],
        metavar="CHIP:SHAPE",
        help="chips along each axis: v5e:16x16, v4:4x4x4, v5p:4x4x4, v6e:16x16, h100:1x1x8 (slices x hosts x GPUs), "
        "or cpu:4 to try the command; may be repeated",
    )
    add("--program", choices=("alignment", "step"), metavar="NAME", help="alignment or step (default: both)")
    add("--largest-batch", action="store_true", help="double the batch until it does not fit, then close in on it")
    add(
        "--quick",
        action="store_true",
        help="let the compiler try less: several times faster, and the peak memory is an upper bound",
    )
    add("--json", action="store_true", help="print the rows as a JSON list and nothing else")
    add(
        "--rows",
        nargs="+",
        type=Path,
        default=[],
        metavar="FILE",
        help="instead of compiling, rows that --json printed: the planning table of all of them",
    )
    add(
        "--into", type=Path, metavar="FILE", help="put the planning table into a Markdown file, in the place of a block"
    )
    add("--block", default="plan", metavar="NAME", help="<!-- tables NAME --> to <!-- end tables --> (default plan)")
    parser.set_defaults(run=_compile)


def _compile(call: argparse.Namespace) -> int:
    if bool(call.rows) == bool(call.config and call.topology):
        raise InputError("compile must have --config and --topology, or else --rows, got both or neither; choose one")
    rows = _read_rows(call.rows) if call.rows else _compiled_rows(call)
    from plan_jax.compilation.planning import planning_table
    from plan_jax.compilation.report import compile_notes, compile_table
    from plan_jax.tables.into import write_into
    from plan_jax.tables.render import render

    if call.into:
        changed = write_into(call.into, render([planning_table(rows)], format="md"), name=call.block)
        print(f"{call.into}: block {call.block} {'written' if changed else 'is as it was'}", file=sys.stderr)
    if call.json:
        import json

        print(json.dumps(rows, indent=2))
    elif not call.into:
        plan = [planning_table(rows)] if call.rows or call.largest_batch else []
        print(render([*([] if call.rows else [compile_table(rows)]), *plan]), end="")
        print("\n".join(compile_notes(rows)))
    return 0


def _read_rows(paths: list[Path]) -> list[dict]:
    from plan_jax.compilation.planning import read_rows

    return read_rows(paths)


def _compiled_rows(call: argparse.Namespace) -> list[dict]:
    from plan_jax.config_file import read_config

    config = read_config(call.config, call.overrides)
    from plan_jax.compilation.report import compile_line, rows_of
    from plan_jax.compilation.topology import parse_topology

    rows, programs = [], (call.program,) if call.program else ("alignment", "step")
    chosen = [parse_topology(name) for name in call.topology]
    for row in rows_of(chosen, programs, config, largest=call.largest_batch, quick=call.quick):
        rows.append(row)
        print(compile_line(row), file=sys.stderr)
    return rows
