"""Tables for the terminal, Markdown, CSV, LaTeX and HTML."""

import csv
import html
import io
from collections.abc import Sequence

from plan_jax.errors import InputError
from plan_jax.tables.model import Cell, Column, Table, bounds_of


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
    return "\n".join([table.title, "", *lines, *table.notes])


def to_markdown(table: Table) -> str:
    """A Markdown table under a bold title."""
    heads = [column.heading for column in table.columns]
    marks = ["---" if column.digits is None else "---:" for column in table.columns]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in (heads, *_words(table))]
    lines.insert(1, "| " + " | ".join(marks) + " |")
    notes = ["", " ".join(table.notes).replace("|", "\\|")] if table.notes else []
    return "\n".join([f"**{table.title}**", "", *lines, *notes])


def to_csv(tables: Sequence[Table]) -> str:
    """All numbers in full precision, one per line: table, row, metric, value, low, high."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(("table", "row", "metric", "value", "low", "high"))
    for table in tables:
        for row in table.rows:
            cells = list(zip(row, table.columns, strict=True))
            name = " / ".join(str(cell) for cell, column in cells if column.digits is None and cell is not None)
            numbers = [(cell, column) for cell, column in cells if column.digits is not None]
            writer.writerows((table.title, name, column.name, *bounds_of(cell)) for cell, column in numbers)
    return buffer.getvalue()


def to_latex(table: Table) -> str:
    """A booktabs table."""
    marks = "".join("l" if column.digits is None else "r" for column in table.columns)
    heads = [column.heading for column in table.columns]
    lines = [" & ".join(map(_tex, line)) + r" \\" for line in (heads, *_words(table))]
    body = "\n".join([lines[0], r"\midrule", *lines[1:]])
    start = f"\\begin{{table}}\n\\caption{{{_tex(table.title)}}}\n\\begin{{tabular}}{{{marks}}}\n\\toprule\n"
    notes = "".join(f"\n\n{_tex(note)}" for note in table.notes)
    return start + body + "\n\\bottomrule\n\\end{tabular}" + notes + "\n\\end{table}"


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
    notes = "".join(f"\n<p>{html.escape(note)}</p>" for note in table.notes)
    return f"<table>{caption}<thead><tr>{heads}</tr></thead><tbody>" + "\n".join(lines) + f"</tbody></table>{notes}"


FORMATS = {"text": to_text, "md": to_markdown, "tex": to_latex, "html": to_html}


def _parts(cell: Cell, column: Column) -> tuple[str, str]:
    """A number and its interval, rounded; empty where nothing is known."""
    value, low, high = ("" if x is None else f"{x:.{column.digits}f}" for x in bounds_of(cell))
    return value, f"[{low}, {high}]" if low and high else ""


def _word(cell: Cell, column: Column) -> str:
    if column.digits is None:
        return "" if cell is None else str(cell)
    return " ".join(part for part in _parts(cell, column) if part)


def _words(table: Table) -> list[list[str]]:
    return [[_word(cell, column) for cell, column in zip(row, table.columns, strict=True)] for row in table.rows]


def _html(cell: Cell, column: Column) -> str:
    value, bounds = _parts(cell, column)
    return f"{value} <small>{bounds}</small>" if bounds else value


def _tex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "|": r"\textbar{}"}
    return "".join(special.get(letter, f"\\{letter}" if letter in "&%$#_{}" else letter) for letter in text)
