"""The results of runs in detail: every read-out, prior, pool and class (`plan_jax.tables.files` says what is read)."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path

from plan_jax.tables.columns import (
    DETECTION,
    DIRECTIONS,
    GROUNDING,
    LEADS,
    MACRO,
    PRECISION,
    PROBE,
    RECALL,
    ZERO_SHOT,
    ZERO_SHOT_MORE,
)
from plan_jax.tables.files import TASKS, read_results
from plan_jax.tables.model import Cell, Column, Table

HARDEST = "image_blind_told_prior"  # the prior that every class is compared with
METHODS = {
    "word_mean": "trained, mean over the words",
    "not_spread": "trained, map not spread",
    "competition": "trained, against the other findings' prompts",
    "mirrored": "trained, mirrored image and side words",
    "global_map": "trained, map of the global similarity",
    "untrained": "untrained",
    "chance": "chance",
    "centre_prior": "centre prior",
    "phrase_blind_prior": "phrase-blind prior",
    "image_blind_type_prior": "image-blind prior, type only",
    "image_blind_prior": "image-blind prior",
    "image_blind_told_prior": "image-blind prior, told side and zone",
    "grid_ceiling": "perfect answer on the grid",
}
MAP_NOTE = (
    "mAP: mean over IoU .4 to .75, every image counts. Peers' count: boxes that score below .5 do not count, nor do "
    "images without true boxes or without such detections."
)


def results_tables(runs: Sequence[Path], *, tasks: Sequence[str] = TASKS) -> list[Table]:
    """The tables of the tasks that the runs have results of; a first column names the run if there are several.

    InputError for a run without results or with a results file that is not a JSON object.
    """
    results = {run: read_results(run) for run in runs}
    tables = []
    for task in tasks:
        of_task = {run: [one for one in every if one.task == task] for run, every in results.items()}
        for data_set in dict.fromkeys(one.data_set for every in of_task.values() for one in every):
            having = {run: one for run, every in of_task.items() for one in every if one.data_set == data_set}
            where = "" if all(one.own for one in having.values()) else f" on {data_set}"
            for make in MAKERS[task]:
                made = {run: make(one.content, where) for run, one in having.items()}
                made = {run: table for run, table in made.items() if table.rows}
                if len(runs) == 1:
                    tables += made.values()
                elif made:
                    tables.append(_stacked(made))
    return tables


def grounding_table(result: dict, where: str = "") -> Table:
    """Trained network, its two halves by location words, and all it must beat, from the content of grounding.json."""
    parts = {"trained": result} | _halves("trained", result)
    parts |= {f"trained, after round {key[6:]}": result[key] for key in result if key.startswith("round_")}
    for key, name in METHODS.items():
        if key in result:
            parts |= {name: result[key]} | _halves(name, result[key])
    for key, lead in result.get("lead", {}).items():
        name = f"trained less {METHODS[key]}"
        parts |= {name: lead} | _halves(name, lead)
    rows = tuple((name, *_cells(metrics, GROUNDING)) for name, metrics in parts.items())
    return Table(_title(f"Phrase grounding{where}", result), (Column("method", "method"), *GROUNDING), rows)


def _halves(name: str, result: dict) -> dict[str, dict]:
    """A method's metrics on the phrases with and without a location, where they are told apart."""
    halves = {"with_location": "phrases with a location", "without_location": "phrases without a location"}
    return {f"{name}, {words}": result[key] for key, words in halves.items() if key in result}


def _grounding_classes(result: dict, where: str) -> Table:
    leads = result.get("lead", {}).get(HARDEST, {}).get("per_class", {})
    rows = tuple(
        (name, *_cells(metrics, GROUNDING), *_cells(leads.get(name, {}), LEADS))
        for name, metrics in result.get("per_class", {}).items()
    )
    return Table(f"Phrase grounding{where} by class, trained", (Column("class", "class"), *GROUNDING, *LEADS), rows)


def _recall_table(result: dict, where: str) -> Table:
    return _retrieval(f"Retrieval{where}", result, RECALL)


def _precision_table(result: dict, where: str) -> Table:
    return _retrieval(f"Retrieval by class{where}", result, PRECISION)


def _retrieval(title: str, result: dict, columns: tuple[Column, ...]) -> Table:
    """Both directions in the full pool and in smaller ones, with chance beside; no rows without such metrics."""
    pools = {f"{result.get('pool', '')} (all)".strip(): result} | result.get("pools", {})
    rows = []
    for pool, part in pools.items():
        methods = {"trained": part} | {METHODS[key]: part[key] for key in ("untrained", "chance") if key in part}
        for direction, words in DIRECTIONS.items():
            for method, metrics in methods.items():
                cells = [metrics.get(f"{column.name}_{direction}") for column in columns]
                rows.append((pool, words, method, *cells))
    if not any(cell is not None for row in rows for cell in row[3:]):
        rows = []
    heads = (Column("pool", "pool"), Column("direction", "direction"), Column("method", "method"))
    return Table(_title(title, result), (*heads, *columns), tuple(rows))


def _zero_shot_table(result: dict, where: str) -> Table:
    """Macro averages and every class, from the content of zero_shot.json."""
    macro = {"all classes (macro)": result}
    macro |= {f"{METHODS[key]} (macro)": result[key] for key in ("untrained", "chance") if key in result}
    parts = {name: macro_named(metrics) for name, metrics in macro.items()} | result.get("per_class", {})
    more = tuple(column for column in ZERO_SHOT_MORE if any(column.name in metrics for metrics in parts.values()))
    columns = (*ZERO_SHOT, *more)
    rows = tuple((name, *_cells(metrics, columns)) for name, metrics in parts.items())
    return Table(_title(f"Zero-shot classification{where}", result), (Column("class", "class"), *columns), rows)


def macro_named(metrics: dict) -> dict:
    """Metrics with the macro averages under the names that those of one class have."""
    return metrics | {name: metrics[f"{name}_macro"] for name in MACRO if f"{name}_macro" in metrics}


def _detection_table(result: dict, where: str) -> Table:
    return dataclasses.replace(_by_fraction(f"Detection{where}", result, DETECTION), notes=(MAP_NOTE,))


def _probe_table(result: dict, where: str) -> Table:
    return _by_fraction(f"Linear probe{where}", result, PROBE)


def _by_fraction(title: str, result: dict, columns: tuple[Column, ...]) -> Table:
    rows = [(f"{fraction:g} %", *_cells(metrics, columns)) for fraction, metrics in by_fraction(result).items()]
    return Table(_title(title, result), (Column("training data", "fraction"), *columns), tuple(rows))


def by_fraction(result: dict) -> dict[float, dict]:
    """Per cent of the training data -> METRICS; what stands at the top level is of all of it."""
    found = {round(100 * float(share), 6): metrics for share, metrics in result.get("fractions", {}).items()}
    return found or {100.0: result}


MAKERS: dict[str, tuple[Callable[[dict, str], Table], ...]] = {
    "grounding": (grounding_table, _grounding_classes),
    "retrieval": (_recall_table, _precision_table),
    "zero_shot": (_zero_shot_table,),
    "detection": (_detection_table,),
    "linear_probe": (_probe_table,),
}


def _stacked(tables: dict[Path, Table]) -> Table:
    """The rows of several runs; columns that only some runs have are empty for the others."""
    first = next(iter(tables.values()))
    columns = tuple(dict.fromkeys(column for table in tables.values() for column in table.columns))
    rows = []
    for run, table in tables.items():
        for row in table.rows:
            cells = dict(zip(table.columns, row, strict=True))
            rows.append((str(run), *(cells.get(column) for column in columns)))
    return Table(first.title.split(" (")[0], (Column("run", "run"), *columns), tuple(rows), first.notes)


def _title(title: str, result: dict) -> str:
    return f"{title} (n = {result['n']}, 95 % bootstrap intervals)" if "n" in result else title


def _cells(metrics: dict, columns: tuple[Column, ...]) -> tuple[Cell, ...]:
    return tuple(metrics.get(column.name) for column in columns)
