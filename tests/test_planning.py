"""The table of what fits, from rows that `compile --json` printed, perhaps in several environments."""

import json

import pytest

from plan_jax.__main__ import main
from plan_jax.compilation.planning import COLUMNS, planning_table, read_rows
from plan_jax.errors import InputError

GIB, MIB = 2**30, 2**20


def row(batch_size: int, peak_gib: float | None, *, fits: bool | None, **more) -> dict:
    """What `compile` says of a step on four chips of 16 GiB."""
    peak = None if peak_gib is None else int(peak_gib * GIB)
    sent = {"all-reduce": 300 * MIB, "all-gather": batch_size * MIB} if fits else {}
    about = {
        "topology": "v5e:2x2",
        "chips": 4,
        "program": "step",
        "exchange": "gather",
        "remat": "block",
        "fsdp": 1,
        "parts": 1,
    }
    about |= {"batch_size": batch_size, "memory_bytes": 16 * GIB, "peak_bytes": peak, "state_bytes": 2 * GIB}
    return about | {"collective_bytes": sent, "fits": fits, "unknown_loops": 0, "kernels": 0} | more


SEARCH = [row(128, 5, fits=True), row(256, 9, fits=True), row(512, 17, fits=False), row(384, 13, fits=True)]


def lines(rows: list[dict]) -> list[dict]:
    return [dict(zip((column.name for column in COLUMNS), line, strict=True)) for line in planning_table(rows).rows]


def test_a_line_has_the_largest_batch_that_fits_with_its_memory_and_traffic():
    (line,) = lines(SEARCH)
    assert (line["batch_size"], line["bad"], line["chips"], line["memory_bytes"]) == (384, 512, 4, 16)
    assert (line["peak_bytes"], line["state_bytes"]) == (13, 2)
    assert (line["all-reduce"], line["all-gather"], line["all-to-all"]) == (300, 384, 0)


def test_settings_and_topologies_have_lines_of_their_own_in_the_order_of_the_rows():
    rows = [*SEARCH, *(each | {"exchange": "ring"} for each in SEARCH), row(8, 1, fits=True, topology="v4:2x2x1")]
    found = [(line["topology"], line["exchange"], line["batch_size"]) for line in lines(rows)]
    assert found == [("v5e:2x2", "gather", 384), ("v5e:2x2", "ring", 384), ("v4:2x2x1", "gather", 8)]


def test_where_nothing_fits_or_nothing_failed_the_cells_are_empty():
    refused, alone, unknown = row(8, None, fits=False), row(8, 1, fits=True), row(8, 1, fits=None, memory_bytes=None)
    (line,) = lines([refused])
    assert (line["batch_size"], line["bad"], line["peak_bytes"], line["all-gather"]) == (None, 8, None, None)
    (line,) = lines([alone])
    assert (line["batch_size"], line["bad"], line["peak_bytes"]) == (8, None, 1)
    (line,) = lines([unknown])
    assert (line["batch_size"], line["bad"], line["memory_bytes"]) == (None, None, None)


def test_the_command_puts_rows_of_several_files_into_a_block(tmp_path, capsys):
    files = [tmp_path / "tpu.json", tmp_path / "gpu.json"]
    files[0].write_text(json.dumps(SEARCH))
    files[1].write_text(json.dumps([row(1024, 60, fits=True, topology="h100:1x1x8", chips=8)]))
    page = tmp_path / "PAGE.md"
    page.write_text("before\n<!-- tables plan -->\n<!-- end tables -->\nafter\n")
    call = ["compile", "--rows", *map(str, files)]
    assert main([*call, "--into", str(page)]) == 0
    text = page.read_text()
    assert text.startswith("before\n<!-- tables plan -->\n**What fits")
    assert text.endswith("|\n<!-- end tables -->\nafter\n")
    assert "\n| v5e:2x2 | 4 | 16.0 | step | gather | block | 1 | 1 | 384 | 512 | 13.00 | 2.00 |" in text
    assert "\n| h100:1x1x8 | 8 | 16.0 | step | gather | block | 1 | 1 | 1024 |  | 60.00 | 2.00 |" in text
    assert main(call) == 0
    printed = capsys.readouterr().out
    assert [line.split()[0] for line in printed.splitlines() if ":" in line[:8]] == ["v5e:2x2", "h100:1x1x8"]


@pytest.mark.parametrize("content", ["{", "{}", "[1]", '[{"topology": "v5e:2x2"}]', "\xff"])
def test_a_file_of_something_else_is_refused_by_name(tmp_path, content):
    path = tmp_path / "rows.json"
    path.write_bytes(content.encode("latin-1"))
    with pytest.raises(InputError, match=r"--rows .*rows\.json must be"):
        read_rows([path])


def test_a_missing_file_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match=r"none\.json"):
        read_rows([tmp_path / "none.json"])


@pytest.mark.parametrize("call", [[], ["--config", "c.py"], ["--config", "c.py", "--topology", "cpu:1", "--rows", "r"]])
def test_a_call_that_neither_compiles_nor_reads_or_does_both_is_refused(call, capsys):
    assert main(["compile", *call]) == 2
    assert "compile must have --config and --topology, or else --rows" in capsys.readouterr().err
