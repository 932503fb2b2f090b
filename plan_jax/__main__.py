"""The command line: `python -m plan_jax COMMAND --help` explains each command.

Heavy libraries are imported by the command that needs them, so that --help answers at once.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from plan_jax import __version__
from plan_jax.commands.benchmark import add_benchmark
from plan_jax.commands.data import add_build, add_fake
from plan_jax.commands.results import add_checkpoint, add_evaluate, add_figures, add_tables
from plan_jax.commands.study import CONFIG_HELP, add_ablate, add_compile
from plan_jax.errors import InputError

STACK_SIZE = "--fibers_default_thread_stack_size"  # an option of libtpu
EPILOG = """\
from nothing to a grounded phrase:
  python -m plan_jax build phantom --out runs/phantom_data
  python -m plan_jax train --config configs/phantom.py --workdir runs/first --config.data.dir=runs/phantom_data
  python -m plan_jax evaluate grounding --workdir runs/first
  python -m plan_jax ground --workdir runs/first --image film.png --phrase "nodule in the left upper zone" --out map.png

exit codes: 0 done, 2 the input or the call was wrong (one line says what and what to do), 1 anything else
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    parser = make_parser()
    call, overrides = parser.parse_known_args(arguments)
    if overrides and call.command not in ("train", "evaluate", "ablate", "benchmark", "compile"):
        parser.error(f"unknown arguments: {' '.join(overrides)}")
    call.overrides = overrides
    _quiet_libraries()
    _deepen_stacks()
    try:
        return call.run(call)
    except InputError as error:
        print(f"plan_jax: {error}", file=sys.stderr)
        return 2
    except (ArithmeticError, OSError) as error:
        print(f"plan_jax: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("plan_jax: interrupted", file=sys.stderr)
        return 1


def _deepen_stacks() -> None:
    """Gives the threads of a TPU's compiler stacks of 4 MiB, unless the environment says how large.

    With those it has by itself (libtpu 0.0.42) it overflows them, and dies, on convolutions of some batches: of 8 pairs
    per v5e chip, of 1440 per v6e chip.
    """
    given = os.environ.get("LIBTPU_INIT_ARGS", "")
    if STACK_SIZE not in given:
        os.environ["LIBTPU_INIT_ARGS"] = f"{given} {STACK_SIZE}={2**22}".strip()


class _Parser(argparse.ArgumentParser):
    """Says in one line what is wrong with a call, as for any other input."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"plan_jax: {message}; see {self.prog} --help\n")


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands."""
    parser = _Parser(
        prog="python -m plan_jax",
        description="PLAN: which words of a report belong to which pixels of its radiograph, learnt without boxes.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_build(commands)
    add_fake(commands)
    _add_train(commands)
    add_evaluate(commands)
    _add_ground(commands)
    add_tables(commands)
    add_figures(commands)
    _add_export(commands)
    add_ablate(commands)
    add_benchmark(commands)
    add_compile(commands)
    return parser


def _add_train(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "train",
        help="pretrain on pairs; the same command continues a stopped run",
        description="Pretrains into a run directory (config.json, metrics.jsonl, checkpoints/, tensorboard/). Ctrl-C, "
        "SIGTERM and Google Cloud's notice to a TPU that it is preempted save and stop; the same command continues "
        "exactly there. Fields are set by --config.FIELD=VALUE: --config.data.dir=DIR --config.train.steps=300 "
        "--config.optim.learning_rate=1e-3 --config.seed=1; all of them, with their defaults, are in "
        "plan_jax/config.py.",
    )
    parser.add_argument("--config", required=True, metavar="FILE", help=CONFIG_HELP)
    parser.add_argument("--workdir", type=Path, required=True, metavar="RUN", help="the run directory")
    parser.add_argument(
        "--coordinator",
        metavar="auto|HOST:PORT",
        help="train in several processes: auto inside SLURM, on all workers of a TPU slice, in Kubernetes or Open MPI; "
        "or the address of the first process. Each runs this command and must see --workdir and the data",
    )
    parser.add_argument("--process", metavar="I/N", help="with HOST:PORT, this process's number from 0 and their count")
    parser.add_argument(
        "--profile", metavar="FIRST:COUNT", help="record these steps, counted from 1, into RUN/profile for TensorBoard"
    )
    parser.set_defaults(run=_train)


def _train(call: argparse.Namespace) -> int:
    from plan_jax.config_file import read_config

    config = read_config(call.config, call.overrides)
    from plan_jax.hosts import is_first, join_hosts
    from plan_jax.train.guard import NonFiniteLoss
    from plan_jax.train.loop import fit
    from plan_jax.train.trace import parse_steps

    profile = parse_steps(call.profile) if call.profile else None
    join_hosts(call.coordinator, call.process)
    try:
        state = fit(config, call.workdir, profile=profile)
    except NonFiniteLoss as error:
        print(f"plan_jax: {error}", file=sys.stderr)
        return 1
    done = int(state.step) >= config.train.steps
    if is_first():
        print(
            f"{call.workdir}: step {int(state.step)}, " + ("finished" if done else "saved; the same command continues")
        )
    return 0


def _add_ground(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "ground",
        help="show where in an image a phrase points",
        description="Writes a picture of the image beside the phrase's heat map. The image is a PNG, JPEG or DICOM of "
        "8 or 16 bit; the map has its size.",
    )
    parser.add_argument("--workdir", type=Path, required=True, metavar="RUN", help="the run directory")
    add_checkpoint(parser)
    parser.add_argument("--image", type=Path, required=True, metavar="FILE")
    parser.add_argument("--phrase", required=True, metavar="TEXT", help='for example "left lower zone opacity"')
    parser.add_argument(
        "--against",
        action="append",
        default=[],
        metavar="TEXT",
        help="another finding that may be there, to which the map gives way; may be repeated",
    )
    parser.add_argument("--words", action="store_true", help="a map under each word; the phrase may be a whole report")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    parser.set_defaults(run=_ground)


def _ground(call: argparse.Namespace) -> int:
    from plan_jax.inference import Plan
    from plan_jax.plots import save_overlay, save_word_maps

    if call.words and call.against:
        raise InputError("--words must stand without --against, got both; leave one out")
    plan = Plan.load(call.workdir, call.checkpoint)
    try:
        if call.words:
            each = plan.ground_words(call.image, call.phrase)
            words = [each.text[start:end] for start, end in each.spans]
            save_word_maps(call.out, each.image, each.maps, words=words, importance=each.importance)
            print(f"{call.out}: maps of {len(words)} words")
            return 0
        found = plan.ground(call.image, call.phrase, against=call.against)
        save_overlay(call.out, found.image, found.map, phrase=found.phrase, boxes=())
    except OSError as error:
        raise InputError(f"--out must be a file that can be written, got {call.out}: {error.strerror}") from error
    row, column = divmod(int(found.map.argmax()), found.map.shape[1])
    print(
        f"{call.out}: peak at column {column}, row {row} of {found.map.shape[1]} x {found.map.shape[0]} pixels, "
        f"similarity {found.map.max():.3f}; score of image and phrase {found.score:.3f}"
    )
    return 0


def _add_export(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "export",
        help="hand a trained model to PyTorch, transformers or another program",
        description="Writes a checkpoint of a run for other programs. torchvision: the image encoder, "
        "model.safetensors by the names of torchvision (a ResNet's are timm's too), for classifiers and detectors. "
        "hf-bert: the text encoder and its tokenizer, a folder for transformers. safetensors: the whole model by our "
        "own names; Plan.load opens it. stablehlo: grounding as one program with its parameters, for any number of "
        "pairs, on CPU, GPU and TPU, which jax.export.deserialize opens without this package.",
    )
    parser.add_argument("--workdir", type=Path, required=True, metavar="RUN", help="the run directory")
    add_checkpoint(parser)
    parser.add_argument("--to", required=True, choices=("torchvision", "hf-bert", "safetensors", "stablehlo"))
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.set_defaults(run=_export)


def _export(call: argparse.Namespace) -> int:
    from plan_jax.export import export

    print(f"{call.out}: {', '.join(export(call.workdir, call.to, call.out, checkpoint=call.checkpoint))}")
    return 0


def _quiet_libraries() -> None:
    """Keeps chatter of the libraries off the terminal; their errors still show.

    Not those of orbax, which logs by absl and asyncio in pages what it then raises.
    """
    import logging

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    for name in ("jax", "huggingface_hub"):
        logging.getLogger(name).setLevel(logging.ERROR)
    for name in ("absl", "orbax", "asyncio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


if __name__ == "__main__":
    sys.exit(main())
