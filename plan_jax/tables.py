"""The results of runs as tables: for the terminal, Markdown, CSV, LaTeX and HTML.

Layout of RUN/results/TASK.json, where an interval is {"value", "low", "high"} (or a plain number) and METRICS is
{metric: interval}:

    every task      METRICS of the trained network beside "n", "data", "config", "version"
    grounding       cnr_signed, pointing, own_above_others, auroc, miou_raw, miou_minmax, cnr_abs (macro over the
                    classes); "per_class": {class: METRICS}; "with_location", "without_location": METRICS and "n";
                    other read-outs (`plan_jax.evaluation.readouts`): "round_0" ... "round_{K-1}", "word_mean",
                    "not_spread", "competition", "mirrored", "global_map", "untrained": METRICS; what it must beat:
                    "chance", "centre_prior", "phrase_blind_prior", "image_blind_type_prior", "image_blind_prior",
                    "image_blind_told_prior", and "grid_ceiling": METRICS;
                    "lead": {prior: the model's metric less the prior's, paired by phrase, also "per_class"}
    retrieval       r@1_image_to_text ... r@10_text_to_image, median_rank_image_to_text, median_rank_text_to_image;
                    "pool": number of images; "chance", "untrained": METRICS; "pools": {size: METRICS, with "chance"
                    and "untrained"}
    zero_shot       auroc, accuracy, f1_macro; "per_class": {class: {auroc, accuracy, f1}}; "chance", "untrained":
                    METRICS

What a file lacks stays an empty cell; a task without a file gets no table.
"""

import csv
import dataclasses
import html
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

from plan_jax.errors import InputError

Cell = str | dict | float | None  # words, or an interval, a number, or nothing known


@dataclasses.dataclass(frozen=True)
class Column:
    """A heading, the name in CSV files, and the digits after the point (None: words, no numbers)."""

    heading: str
    name: str
    digits: int | None = None


@dataclasses.dataclass(frozen=True)
class Table:
    """A cell is words, a number, an interval {"value", "low", "high"}, or None where nothing was measured."""

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]


GROUNDING = (
    Column("signed CNR", "cnr_signed", 2),
    Column("pointing", "pointing", 3),
    Column("own above others", "own_above_others", 3),
    Column("AUROC", "auroc", 3),
    Column("mIoU raw", "miou_raw", 3),
    Column("mIoU minmax", "miou_minmax", 3),
    Column("|CNR|", "cnr_abs", 2),
)
HARDEST = "image_blind_told_prior"  # the prior that every class is compared with
LEADS = (
    Column("signed CNR less told prior's", "cnr_signed", 2),
    Column("pointing less told prior's", "pointing", 3),
)
RETRIEVAL = (
    Column("R@1", "r@1", 3),
    Column("R@5", "r@5", 3),
    Column("R@10", "r@10", 3),
    Column("median rank", "median_rank", 1),
)
ZERO_SHOT = (Column("AUROC", "auroc", 3), Column("accuracy", "accuracy", 3), Column("F1", "f1", 3))
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
DIRECTIONS = {"image_to_text": "image to text", "text_to_image": "text to image"}


def results_tables(
    runs: Sequence[Path], *, tasks: Sequence[str] = ("grounding", "retrieval", "zero_shot")
) -> list[Table]:
    """The tables of the tasks that the runs have results of; a first column names the run if there are several.

    InputError for a run without results or with a results file that is not a JSON object.
    """
    results = {run: _read(Path(run)) for run in runs}
    tables = []
    for task in tasks:
        makers = MAKERS[task]
        having = {run: found[task] for run, found in results.items() if task in found}
        for make in makers:
            made = {run: make(result) for run, result in having.items()}
            made = {run: table for run, table in made.items() if table.rows}
            if len(runs) == 1:
                tables += made.values()
            elif made:
                tables.append(_stacked(made))
    return tables


def grounding_table(result: dict) -> Table:
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
    return Table(_title("Phrase grounding", result), (Column("method", "method"), *GROUNDING), rows)


def _halves(name: str, result: dict) -> dict[str, dict]:
    """A method's metrics on the phrases with and without a location, where they are told apart."""
    halves = {"with_location": "phrases with a location", "without_location": "phrases without a location"}
    return {f"{name}, {words}": result[key] for key, words in halves.items() if key in result}


def _grounding_classes(result: dict) -> Table:
    leads = result.get("lead", {}).get(HARDEST, {}).get("per_class", {})
    rows = tuple(
        (name, *_cells(metrics, GROUNDING), *_cells(leads.get(name, {}), LEADS))
        for name, metrics in result.get("per_class", {}).items()
    )
    return Table("Phrase grounding by class, trained", (Column("class", "class"), *GROUNDING, *LEADS), rows)


def retrieval_table(result: dict) -> Table:
    """Both directions in the full pool and in smaller ones, with chance beside, from the content of retrieval.json."""
    pools = {f"{result.get('pool', '')} (all)".strip(): result} | result.get("pools", {})
    rows = []
    for pool, part in pools.items():
        methods = {"trained": part} | {METHODS[key]: part[key] for key in ("untrained", "chance") if key in part}
        for direction, words in DIRECTIONS.items():
            for method, metrics in methods.items():
                cells = (metrics.get(f"{column.name}_{direction}") for column in RETRIEVAL)
                rows.append((pool, words, method, *cells))
    heads = (Column("pool", "pool"), Column("direction", "direction"), Column("method", "method"))
    return Table(_title("Retrieval", result), (*heads, *RETRIEVAL), tuple(rows))


def zero_shot_table(result: dict) -> Table:
    """Macro averages and every class, from the content of zero_shot.json."""
    macro = {"all classes (macro)": result}
    macro |= {f"{METHODS[key]} (macro)": result[key] for key in ("untrained", "chance") if key in result}
    rows = [(name, *_cells(metrics | {"f1": metrics.get("f1_macro")}, ZERO_SHOT)) for name, metrics in macro.items()]
    rows += [(name, *_cells(metrics, ZERO_SHOT)) for name, metrics in result.get("per_class", {}).items()]
    return Table(_title("Zero-shot classification", result), (Column("class", "class"), *ZERO_SHOT), tuple(rows))


MAKERS: dict[str, tuple[Callable[[dict], Table], ...]] = {
    "grounding": (grounding_table, _grounding_classes),
    "retrieval": (retrieval_table,),
    "zero_shot": (zero_shot_table,),
}


def render(tables: Sequence[Table], *, format: str = "text") -> str:
    """Tables as `text`, `md`, `tex` or `html` one after the other, or as one `csv` (see `to_csv`)."""
    if format == "csv":
        return to_csv(tables)
    if format not in FORMATS:
        raise InputError(f"format must be one of csv, {', '.join(FORMATS)}, got {format}; choose one of them")
    return "\n\n".join(FORMATS[format](table) for table in tables) + "\n"


def to_text(table: Table) -> str:
    """Aligned columns for a terminal."""
    grid = [[column.heading for column in table.columns], *_words(table)]
    widths = [max(map(len, column)) for column in zip(*grid, strict=True)]
    sides = ["<" if column.digits is None else ">" for column in table.columns]
    lines = ["  ".join(f"{c:{s}{w}}" for c, s, w in zip(line, sides, widths, strict=True)).rstrip() for line in grid]
    lines.insert(1, "  ".join("-" * width for width in widths))
    return "\n".join([table.title, "", *lines])


def to_markdown(table: Table) -> str:
    """A Markdown table under a bold title."""
    heads = [column.heading for column in table.columns]
    marks = ["---" if column.digits is None else "---:" for column in table.columns]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (heads, *_words(table))]
    lines.insert(1, "| " + " | ".join(marks) + " |")
    return "\n".join([f"**{table.title}**", "", *lines])


def to_csv(tables: Sequence[Table]) -> str:
    """All numbers in full precision, one per line: table, row, metric, value, low, high."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("table", "row", "metric", "value", "low", "high"))
    for table in tables:
        for row in table.rows:
            cells = list(zip(row, table.columns, strict=True))
            name = " / ".join(_word(cell, column) for cell, column in cells if column.digits is None)
            numbers = [(cell, column) for cell, column in cells if column.digits is not None]
            writer.writerows((table.title, name, column.name, *_split(cell)) for cell, column in numbers)
    return buffer.getvalue()


def to_latex(table: Table) -> str:
    """A booktabs table."""
    marks = "".join("l" if column.digits is None else "r" for column in table.columns)
    heads = [column.heading for column in table.columns]
    lines = [" & ".join(map(_tex, line)) + r" \\" for line in (heads, *_words(table))]
    body = "\n".join([lines[0], r"\midrule", *lines[1:]])
    start = f"\\begin{{table}}\n\\caption{{{_tex(table.title)}}}\n\\begin{{tabular}}{{{marks}}}\n\\toprule\n"
    return start + body + "\n\\bottomrule\n\\end{tabular}\n\\end{table}"


def to_html(table: Table) -> str:
    """A <table>, its text escaped; the bounds of an interval are <small>."""
    heads = "".join(f"<th>{html.escape(column.heading)}</th>" for column in table.columns)
    lines = []
    for row in table.rows:
        cells = [
            f"<th>{html.escape(_word(cell, column))}</th>"
            if column.digits is None
            else f"<td>{_html(cell, column)}</td>"
            for cell, column in zip(row, table.columns, strict=True)
        ]
        lines.append("<tr>" + "".join(cells) + "</tr>")
    caption = f"<caption>{html.escape(table.title)}</caption>"
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>" + "\n".join(lines) + "</tbody></table>"


FORMATS = {"text": to_text, "md": to_markdown, "tex": to_latex, "html": to_html}


def _read(run: Path) -> dict[str, dict]:
    results = {}
    for task in MAKERS:
        path = run / "results" / f"{task}.json"
        if not path.is_file():
            continue
        try:
            results[task] = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise InputError(f"{path} must be JSON, got {error}; evaluate the run again") from error
        if not isinstance(results[task], dict):
            raise InputError(f"{path} must hold a JSON object; evaluate the run again")
    if not results:
        raise InputError(
            f"{run} must hold results/{{{','.join(MAKERS)}}}.json, got none of them; "
            f"run `python -m plan_jax evaluate grounding --workdir {run}` first"
        )
    return results


def _stacked(tables: dict[Path, Table]) -> Table:
    first = next(iter(tables.values()))
    rows = tuple((str(run), *row) for run, table in tables.items() for row in table.rows)
    return Table(first.title.split(" (")[0], (Column("run", "run"), *first.columns), rows)


def _title(title: str, result: dict) -> str:
    return f"{title} (n = {result['n']}, 95 % bootstrap intervals)" if "n" in result else title


def _cells(metrics: dict, columns: tuple[Column, ...]) -> tuple[Cell, ...]:
    return tuple(metrics.get(column.name) for column in columns)


def _split(cell: Cell) -> tuple:
    """A number as (value, low, high), with None for what is not there."""
    return (cell.get("value"), cell.get("low"), cell.get("high")) if isinstance(cell, dict) else (cell, None, None)


def _parts(cell: Cell, column: Column) -> tuple[str, str]:
    """A number and its interval, rounded; empty where nothing is known."""
    value, low, high = ("" if x is None else f"{x:.{column.digits}f}" for x in _split(cell))
    return value, f"[{low}, {high}]" if low and high else ""


def _word(cell: Cell, column: Column) -> str:
    if column.digits is None:
        return str(cell)
    return " ".join(part for part in _parts(cell, column) if part)


def _words(table: Table) -> list[list[str]]:
    return [[_word(cell, column) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows]


def _html(cell: Cell, column: Column) -> str:
    value, bounds = _parts(cell, column)
    return f"{value} <small>{bounds}</small>" if bounds else value


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
    return "".join(special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
