"""The four tables in the paper's arrangement: a row for each method, columns by data set, peers above our runs."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from plan_jax.tables.columns import (
    DETECTION,
    DIRECTIONS,
    GROUNDING,
    PRECISION,
    RECALL,
    ZERO_SHOT,
    ZERO_SHOT_MORE,
    named,
)
from plan_jax.tables.files import Result, read_results
from plan_jax.tables.model import Cell, Column, Table
from plan_jax.tables.reference import Reference, read_reference
from plan_jax.tables.results import MAP_NOTE, by_fraction, macro_named

DATA_SETS = {
    "ms_cxr": "MS-CXR",
    "chexpert_5x200": "CheXpert 5x200",
    "rsna": "RSNA",
    "siim": "SIIM",
    "covidx": "COVIDx",
    "object_cxr": "Object-CXR",
    "nih_cxr14": "NIH",
    "mimic_cxr": "MIMIC-CXR",
    "openi": "Open-i",
}
FRACTIONS = (1, 10, 100)  # per cent of the training data
AVERAGE_PRECISION = tuple(
    Column(f"{share} % {column.heading}", f"{share}/{column.name}", column.digits)
    for share in FRACTIONS
    for column in DETECTION
)
BINARY = (*named(ZERO_SHOT, "auroc"), *named(ZERO_SHOT_MORE, "auprc"), *named(ZERO_SHOT, "accuracy", "f1"))
ONE_OF_MANY = (*named(ZERO_SHOT, "accuracy"), *named(ZERO_SHOT_MORE, "precision", "recall"), *named(ZERO_SHOT, "f1"))
PEERS_NOTE = (
    "Methods with a source: as printed there, with the splits and details of that source. Empty: none was read."
)
MISSING_NOTE = "Data sets of this table that are left out, since no method has a number there: {}."


@dataclasses.dataclass(frozen=True)
class Arrangement:
    """One of the four tables.

    Attributes:
        title: what stands above it.
        standard: data sets -> their columns, shown as soon as one method has a number there.
        others: the columns of any further data set that a run was scored on, as far as it has them.
        directions: retrieval only: names at the end of a metric -> words; a row for each.
        notes: sentences below it.
    """

    title: str
    standard: dict[str, tuple[Column, ...]]
    others: tuple[Column, ...]
    directions: dict[str, str] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()


ARRANGEMENTS = {
    "grounding": Arrangement(
        "Phrase grounding",
        {"ms_cxr": named(GROUNDING, "cnr_abs", "cnr_signed", "miou_raw", "pointing")},
        named(GROUNDING, "cnr_abs", "cnr_signed", "miou_raw", "pointing"),
    ),
    "retrieval": Arrangement(
        "Image-text retrieval", {"chexpert_5x200": PRECISION}, (*PRECISION, *RECALL), directions=DIRECTIONS
    ),
    "detection": Arrangement(
        "Object detection, encoder frozen",
        {"rsna": AVERAGE_PRECISION, "object_cxr": AVERAGE_PRECISION},
        AVERAGE_PRECISION,
        notes=(MAP_NOTE,),
    ),
    "zero_shot": Arrangement(
        "Zero-shot classification",
        {
            "chexpert_5x200": ONE_OF_MANY,
            "rsna": BINARY,
            "siim": BINARY,
            "covidx": named(ZERO_SHOT, "accuracy"),
        },
        BINARY,
    ),
}


def paper_tables(runs: Sequence[Path], *, reference: Reference | None = None) -> list[Table]:
    """The table of every one of the four tasks that a run has results of: peers, then the runs in their order.

    InputError for a run without results or with a results file that is not a JSON object.
    """
    reference = reference or read_reference()
    results = {str(run): read_results(run) for run in runs}
    tables = []
    for task in ARRANGEMENTS:
        found = {run: [one for one in every if one.task == task] for run, every in results.items()}
        if any(found.values()):
            tables.append(_table(task, found, reference))
    return tables


def _table(task: str, found: dict[str, list[Result]], reference: Reference) -> Table:
    arrangement = ARRANGEMENTS[task]
    ours = {run: {one.data_set: metrics_of(one) for one in every} for run, every in found.items()}
    peers = {method: _of_peer(task, method, reference) for method in reference.methods}
    peers = {method: known for method, known in peers.items() if known or method not in reference.variants}
    ends = {f"_{name}": words for name, words in arrangement.directions.items()} or {"": ""}
    columns = _columns(arrangement, ours, tuple(ends))
    known = {data_set for of_sets in (*peers.values(), *ours.values()) for data_set in of_sets}
    missing = [DATA_SETS[data_set] for data_set in arrangement.standard if data_set not in known]
    columns = [(data_set, column) for data_set, column in columns if data_set in known]
    if len(missing) == len(arrangement.standard):
        peers = {}  # they were never scored on what is left
    heads = [Column("method", "method"), *([Column("direction", "direction")] if arrangement.directions else [])]
    rows = []
    for end, words in ends.items():
        direction = [words] if words else []
        for name, of_sets in (peers | ours).items():
            cells = [of_sets.get(data_set, {}).get(f"{column.name}{end}") for data_set, column in columns]
            source = " ".join(reference.sources.get((task, name), ())) if name in peers else "this repository"
            rows.append((name, *direction, *cells, source))
    shown = [
        Column(
            f"{DATA_SETS.get(data_set, data_set)} {column.heading}".strip(), f"{data_set}/{column.name}", column.digits
        )
        for data_set, column in columns
    ]
    columns = (*heads, *shown, Column("source", "source"))
    notes = (
        *([PEERS_NOTE] if peers else []),
        *([MISSING_NOTE.format(", ".join(missing))] if missing else []),
        *arrangement.notes,
    )
    return Table(arrangement.title, columns, tuple(rows), notes)


def _columns(arrangement: Arrangement, ours: dict[str, dict[str, dict]], ends: tuple[str, ...]):
    """(data set, column): the standard ones, then those that some run has."""
    columns = [(data_set, column) for data_set, of_set in arrangement.standard.items() for column in of_set]
    for data_set in dict.fromkeys(name for of_sets in ours.values() for name in of_sets):
        known = set().union(*(of_sets.get(data_set, {}) for of_sets in ours.values()))
        more = (column for column in arrangement.others if any(f"{column.name}{end}" in known for end in ends))
        columns += [(data_set, column) for column in more if (data_set, column) not in columns]
    return columns


def metrics_of(result: Result) -> dict[str, Cell]:
    """A file's metrics by the names that the columns have."""
    if result.task == "zero_shot":
        return macro_named(result.content)
    if result.task == "detection":
        shares = by_fraction(result.content).items()
        return {f"{share:g}/{metric}": value for share, metrics in shares for metric, value in metrics.items()}
    return result.content


def _of_peer(task: str, method: str, reference: Reference) -> dict[str, dict[str, Cell]]:
    found: dict[str, dict[str, Cell]] = {}
    for (of_task, data_set, of_method, metric), value in reference.numbers.items():
        if (of_task, of_method) == (task, method):
            found.setdefault(data_set, {})[metric] = value
    return found
