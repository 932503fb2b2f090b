"""The commands that make data sets: `build` and `fake`."""

import argparse
import shlex
from pathlib import Path

from plan_jax.errors import InputError

FAKE_NAMES = "covid_cxr, chexpert, chexpert_5x200, covidx, nih_cxr14, rsna, siim, object_cxr, mimic_cxr, ms_cxr, openi"
BUILD_NAMES = f"phantom, {FAKE_NAMES}"


def add_build(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "build",
        help="turn raw files into a data set that train and evaluate read",
        description="Writes a data set as ArrayRecord, with its tokenizer, a manifest, a report and a contact sheet. "
        "phantom is made from nothing (toys that test a method, not radiographs); the others read --raw as published.",
    )
    parser.add_argument("name", metavar="NAME", help=BUILD_NAMES)
    parser.add_argument("--raw", type=Path, metavar="DIR", help="folder of the raw files, in their published layout")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write")
    parser.add_argument("--size", type=int, metavar="N", help="phantom: number of images, all splits together")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of everything drawn at random (default 0)")
    parser.add_argument("--level", default="", metavar="LEVEL", help="phantom: easy (default), cooc or realistic")
    parser.add_argument("--side", type=int, default=512, metavar="PX", help="of stored images, at most (default 512)")
    parser.add_argument(
        "--fit", choices=("long", "short"), default="long", help="which side --side is of (default long)"
    )
    parser.add_argument(
        "--format",
        choices=("png", "png16", "jpeg"),
        default="png",
        help="of stored images (default png); png16: 16 bit",
    )
    parser.add_argument("--jobs", type=int, metavar="N", help="processes (default: one per core)")
    parser.add_argument(
        "--runner",
        choices=("local", "beam"),
        default="local",
        help="beam: Apache Beam writes the shards, on a cluster that sees both folders; pip install 'plan_jax[beam]'",
    )
    parser.add_argument(
        "--beam-options", default="", metavar="TEXT", help='for example "--runner=FlinkRunner --flink_master=HOST:8081"'
    )
    parser.add_argument(
        "--vocab", type=Path, metavar="FILE", help="vocab.txt of a BERT instead of a trained vocabulary"
    )
    parser.set_defaults(run=_build)


def _build(call: argparse.Namespace) -> int:
    from plan_jax.data.build import build
    from plan_jax.data.report import report_lines
    from plan_jax.data.store import Store

    if call.beam_options and call.runner != "beam":
        raise InputError(f"--beam-options must come with --runner beam, got {call.runner}; add it")
    manifest = build(
        call.name,
        raw=call.raw,
        out=call.out,
        size=call.size,
        seed=call.seed,
        level=call.level,
        vocab=call.vocab,
        images=Store(call.side, call.fit, call.format),
        jobs=call.jobs,
        beam=shlex.split(call.beam_options) if call.runner == "beam" else None,
    )
    print("\n".join(report_lines(manifest)))
    print(f"{call.out}: {', '.join(sorted(path.name for path in call.out.iterdir()))}")
    return 0


def add_fake(commands: argparse._SubParsersAction) -> None:
    parser = commands.add_parser(
        "fake",
        help="write a small made-up raw folder in the published layout of a data set",
        description="For trials without access to the data: a few small films with the tables of the published set and "
        "their quirks (missing files, damaged lines), which `build NAME --raw DIR` reads.",
    )
    parser.add_argument("name", metavar="NAME", help=FAKE_NAMES)
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="a new folder")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of everything drawn at random (default 0)")
    parser.set_defaults(run=_fake)


def _fake(call: argparse.Namespace) -> int:
    from plan_jax.data.fake import fake

    fake(call.name, out=call.out, seed=call.seed)
    print(f"{call.out}: made-up {call.name}; build it with: build {call.name} --raw {call.out} --out DIR")
    return 0
