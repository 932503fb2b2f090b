"""The commands of those who study the method: `ablate` and `benchmark`."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

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
    from plan_jax.tables import render

    study = Study(config, tuple(call.arms.split(",")), call.seeds, call.out, call.split, call.size)
    outcome = ablate(study, jobs=call.jobs, equal_time=call.equal_time, report_only=call.report_only)
    if outcome.tables:
        print((call.out / "ablation.json").read_text() if call.json else render(outcome.tables), end="")
    for failure in outcome.failures:
        print(f"plan_jax: {failure.name} failed: {failure.reason}", file=sys.stderr)
    return outcome.exit_code


def add_benchmark(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "benchmark",
        help="measure the bench (can its findings be learnt?) or the speed and memory of the alignment",
        description="bench: trains the project's image path on the phantoms' exact masks for a few hundred steps and "
        "prints for every finding how well it is detected and located on other patients, beside what the feature grid "
        "allows. A level says something about a method only if every finding's presence AUROC reaches .9. "
        "alignment: times the local loss and its gradient and weighs its memory, each shape and implementation in a "
        "process of its own on one core (or on the accelerator), as a share of the matrix peak measured in between; "
        "beside it the classic local loss in PyTorch, if torch is installed (a CPU build serves). Some minutes.",
    )
    parser.add_argument("name", choices=("bench", "alignment"), metavar="NAME", help="bench or alignment")
    levels = ("easy", "cooc", "realistic")
    parser.add_argument(
        "--level",
        action="append",
        choices=levels,
        metavar="LEVEL",
        help="bench: easy, cooc or realistic (default: all)",
    )
    parser.add_argument(
        "--config", default="configs/phantom.py", metavar="FILE", help="bench: default configs/phantom.py"
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
    parser.set_defaults(
        run=lambda call: _alignment(call) if call.name == "alignment" else _benchmark(call, call.level or levels)
    )


def _alignment(call: argparse.Namespace) -> int:
    import json

    from plan_jax.benchmark.alignment import alignment_table, benchmark_alignment, save_sweep, sweep_lines
    from plan_jax.tables import render

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
    print("\n".join([*sweep_lines(rows), f"plot: {call.out / 'alignment.png'}"]))
    return 0


def _benchmark(call: argparse.Namespace, levels: Sequence[str]) -> int:
    import json

    from plan_jax.config_file import read_config

    configs = {level: read_config(f"{call.config}:{level}") for level in levels}
    from plan_jax.benchmark.bench import bench, bench_tables, bench_verdicts
    from plan_jax.tables import render

    rows = bench(configs, quick=call.quick)
    if call.json:
        print(json.dumps(rows, indent=2))
        return 0
    print(render(bench_tables(rows)))
    print("\n".join(bench_verdicts(rows)))
    return 0
