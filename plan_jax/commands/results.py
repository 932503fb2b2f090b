"""The commands that score a run and show what came out: `evaluate`, `tables` and `figures`."""

import argparse
from pathlib import Path

from plan_jax.errors import InputError
from plan_jax.tables.files import TASKS

FORMATS = ("text", "md", "tex", "csv", "html")


def add_evaluate(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "evaluate",
        help="score a run on held-out data",
        description="Scores a checkpoint of a run and writes RUN/results/TASK.json, or TASK_NAME.json for "
        "another data set than that it trained on: every metric with its 95% bootstrap interval over patients, and "
        "beside it what `tables --compare` needs. grounding also writes RUN/gallery.html and scores the priors "
        "that a grounding number must beat. Fields are set by --config.evaluation.FIELD=VALUE and "
        "--config.detection.FIELD=VALUE.",
    )
    add = parser.add_argument
    add("tasks", nargs="+", choices=TASKS, metavar="TASK", help=f"one or more of {', '.join(TASKS)}")
    add("--workdir", type=Path, required=True, metavar="RUN", help="the run directory")
    add_checkpoint(parser)
    add("--data", type=Path, metavar="DIR", help="a folder that build wrote (default: the training data)")
    add("--split", choices=("train", "tune", "validation", "test"), help="default: evaluation.split of the run")
    add("--reuse", action="store_true", help="keep a results file of this very checkpoint, configuration and data")
    add("--json", action="store_true", help="print the results as JSON, an object per task")
    add("--quiet", action="store_true", help="write the files only; `tables` prints them")
    parser.set_defaults(run=_evaluate)


def add_checkpoint(parser: argparse.ArgumentParser) -> None:
    """The option that `Plan.load` takes."""
    parser.add_argument(
        "--checkpoint",
        default="latest",
        metavar="latest|best|STEP",
        help="which checkpoint: the newest (default), that of lowest validation loss, or that of so many steps",
    )


def _evaluate(call: argparse.Namespace) -> int:
    from plan_jax.evaluation.run import Subject, evaluate

    subject = Subject(checkpoint=call.checkpoint, data=call.data, split=call.split)
    for task in call.tasks:
        path = evaluate(task, call.workdir, subject, reuse=call.reuse, overrides=call.overrides)
        if call.json:
            print(path.read_text(), end="")
    if not call.json and not call.quiet:
        from plan_jax.tables.render import render
        from plan_jax.tables.results import results_tables

        print(render(results_tables([call.workdir], tasks=call.tasks)), end="")
    return 0


def add_tables(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "tables",
        help="print the results of runs as tables",
        description="Prints the results of runs, RUN/results/*.json: the tables of the four tasks in the paper's "
        "arrangement, with the numbers of other methods as far as a source was read, then every read-out, prior and "
        "class. --compare prints the differences of the first run and each other, scored on the same records, with "
        "their 95% intervals and p.",
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN")
    add("--format", choices=FORMATS, help="default: text, with --into md")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--paper", action="store_true", help="only the tables in the paper's arrangement")
    which.add_argument("--detail", action="store_true", help="only every read-out, prior and class")
    which.add_argument("--compare", action="store_true", help="differences between the first run and the others")
    add("--into", type=Path, metavar="FILE", help="put the tables into a Markdown file, in the place of block NAME")
    add(
        "--block",
        default="results",
        metavar="NAME",
        help="what stands between <!-- tables NAME --> and <!-- end tables --> (default results)",
    )
    parser.set_defaults(run=_tables)


def _tables(call: argparse.Namespace) -> int:
    from plan_jax.tables.into import write_into
    from plan_jax.tables.render import render

    if call.into and call.format not in (None, "md"):
        raise InputError(f"--into must go with --format md, got {call.format}; leave --format out")
    text = render(_chosen_tables(call), format=call.format or ("md" if call.into else "text"))
    if call.into is None:
        print(text, end="")
    else:
        changed = write_into(call.into, text, name=call.block)
        print(f"{call.into}: block {call.block} {'written' if changed else 'is as it was'}")
    return 0


def _chosen_tables(call: argparse.Namespace) -> list:
    if call.compare:
        from plan_jax.evaluation.significance import comparison_tables

        return comparison_tables(call.runs)
    from plan_jax.tables.paper import paper_tables
    from plan_jax.tables.results import results_tables

    tables = [] if call.detail else paper_tables(call.runs)
    return tables if call.paper else [*tables, *results_tables(call.runs)]


def add_figures(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "figures",
        help="write a page that shows how a run grounds: rounds, words, failures beside successes",
        description="Writes one HTML file, which needs no other: the refinement's rounds for one phrase, a map under "
        "each word of its report, and of every class the worst phrase beside the best, as `evaluate grounding` scored "
        "them on the same data.",
    )
    parser.add_argument("--workdir", type=Path, required=True, metavar="RUN", help="the run directory")
    parser.add_argument(
        "--data", type=Path, metavar="DIR", help="a folder that build wrote (default: the training data)"
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: RUN/figures.html")
    parser.set_defaults(run=_figures)


def _figures(call: argparse.Namespace) -> int:
    from plan_jax.evaluation.figures import write_figures

    out = call.out or call.workdir / "figures.html"
    try:
        print(f"{out}: {write_figures(out, call.workdir, data=call.data)}")
    except OSError as error:
        raise InputError(f"--out must be a file that can be written, got {out}: {error.strerror}") from error
    return 0
