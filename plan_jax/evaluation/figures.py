"""Chooses what the figure page shows: a typical phrase, its words, and of every class the worst and the best phrase."""

from pathlib import Path

import numpy as np

from plan_jax.checkpoint import latest_step
from plan_jax.config import load_config
from plan_jax.data.records import Record, Split, manifest_hash, open_split, read_manifest
from plan_jax.errors import InputError
from plan_jax.evaluation.grounding import example_of, metrics_of, queries_of
from plan_jax.evaluation.readouts import Query, Readouts
from plan_jax.evaluation.samples import object_in, read_samples, results_path
from plan_jax.figure_page import Figures, Pair, write_figure_page
from plan_jax.inference import Plan
from plan_jax.plots import Example

CLASSES = 12  # of which a pair is shown, the first by name


def write_figures(out: Path, workdir: Path, *, data: Path | None = None) -> str:
    """Writes the page and returns what it shows, in words.

    Args:
        out: the HTML file.
        workdir: the run directory, with the scores of `evaluate grounding`.
        data: the data set that was scored; by default the one the run trained on.

    InputError: grounding was not scored on this data with the newest checkpoint.
    """
    directory = data or Path(load_config(workdir / "config.json").data.dir)
    results = results_path(workdir, "grounding", read_manifest(directory)["name"])
    scored = object_in(results)
    wanted = {"step": latest_step(workdir), "data": manifest_hash(directory)}
    if not wanted.items() <= scored.items():
        raise InputError(
            f"{results} must be of the newest checkpoint and of {directory}, got another or none; "
            f"run `python -m plan_jax evaluate grounding --workdir {workdir}` with the same --data first"
        )
    rows = read_samples(results)
    typical, pairs = choose(rows["category"], rows["trained/pointing"], rows["trained/cnr_signed"])
    split, plan = open_split(directory, scored["split"]), Plan.load(workdir)
    shown = list(dict.fromkeys([typical, *(row for pair in pairs.values() for row in pair)]))
    found = {row: _query(split, rows["record"], row) for row in shown}
    examples = dict(zip(shown, _examples(plan, [query for _, query in found.values()]), strict=True))
    record, query = found[typical]
    text = record.report if any(letter.isalnum() for letter in record.report) else query.phrase.text
    counts = {name: int((rows["category"] == name).sum()) for name in pairs}
    figures = Figures(
        typical=examples[typical],
        words=plan.ground_words(query.image, text),
        pairs=tuple(Pair(name, counts[name], *(examples[row] for row in pair)) for name, pair in pairs.items()),
    )
    write_figure_page(out, figures, title=f"PLAN: how the network grounds after {plan.step} steps")
    return f"{len(examples[typical].rounds) or 1} maps of one phrase, its words, pairs of {len(pairs)} classes"


def choose(category: np.ndarray, pointing: np.ndarray, cnr: np.ndarray) -> tuple[int, dict[str, tuple[int, int]]]:
    """The row of median signed CNR, and for each class the rows of its worst and its best phrase.

    Pointing decides before signed CNR; of equal rows the first is taken.
    """
    typical = int(np.argsort(cnr, kind="stable")[(len(cnr) - 1) // 2])
    order = np.lexsort((cnr, pointing))
    pairs = {}
    for name in np.unique(category)[:CLASSES]:
        of_class = order[category[order] == name]
        pairs[str(name)] = (int(of_class[0]), int(of_class[-1]))
    return typical, pairs


def _query(split: Split, records: np.ndarray, row: int) -> tuple[Record, Query]:
    """The record and the query that a row of the scores is of."""
    index = int(records[row])
    place = int((records[:row] == index).sum())
    record = split[index]
    return record, list(queries_of(record, index))[place]


def _examples(plan: Plan, queries: list[Query]) -> list[Example]:
    every = Readouts(plan, ()).maps(queries)
    names = [name for name in every if name == "trained" or name.startswith("round_")]
    examples = []
    for number, query in enumerate(queries):
        maps = {name: every[name][number] for name in names}
        examples.append(example_of(query, maps, {name: metrics_of(found, query) for name, found in maps.items()}))
    return examples
