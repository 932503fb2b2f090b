"""The benchmark of the alignment: what it measures, counts and prints."""

import dataclasses
import json

import numpy as np
import pytest

from plan_jax.benchmark import alignment
from plan_jax.benchmark.alignment import (
    alignment_table,
    benchmark_alignment,
    cases,
    exponent,
    ratio_lines,
    row_of,
    save_sweep,
    sweep_lines,
    sweep_of,
    with_ratios,
)
from plan_jax.benchmark.classic import find_torch
from plan_jax.benchmark.measure import Case, measure
from plan_jax.tables.render import render

SMALL = {"B": 4, "L": 6, "N": 9, "D": 5}


def found(**values) -> dict:
    return {
        "ms": 10.0,
        "flops": 2_000_000,
        "gemm_flops_per_second": 1e9,
        "temp_bytes": 2**20,
        "output_bytes": 2**20,
    } | values


def test_a_measurement_says_time_memory_and_operations():
    row = measure(Case("scan", K=1, repeats=2, **SMALL))
    assert row["ms"] > 0
    assert row["gemm_flops_per_second"] > 1e6
    assert row["repeats"] == 2
    assert row["output_bytes"] >= 4 * (4 * 9 * 5 + 4 * 6 * 5 + 4 * 6)  # the gradients
    assert row["temp_bytes"] > 0
    assert row["peak_bytes"] >= 0
    # Feature form by hand: 16 D and a round of 16 D for every word and patch.
    assert row["flops"] == 4 * (4 * 6) * 9 * (16 * 5 + 16 * 5)


def test_a_case_that_is_only_compiled_has_no_time():
    row = measure(Case("reference", run=False, **SMALL))
    assert "ms" not in row
    assert row["temp_bytes"] > 0


def test_ragged_reports_have_from_five_words_up_and_buckets_round_their_lengths_up():
    full, ragged, buckets = (
        Case("scan", 200, 97, 4, 4, lengths=name).words() for name in ("full", "ragged", "buckets")
    )
    assert set(full) == {97}
    assert (ragged.min(), ragged.max()) == (5, 97)
    assert set(buckets) == {33, 65, 97}
    assert np.all((buckets >= ragged) & (buckets - ragged < 33))


@pytest.mark.parametrize("torch", [True, False])
def test_every_shape_is_measured_with_every_number_of_rounds_beside_the_baseline_where_there_is_one(torch):
    main, sweep = cases(quick=False, torch=torch, accelerator=False)
    for shape in alignment.SHAPES:
        own = [case for case in main if {name: getattr(case, name) for name in "DNL"} == shape and case.B == 48]
        assert [case.K for case in own if case.implementation == "scan"] == [0, 1, 3]
        assert sum(case.implementation == "classic" for case in own) == torch
    assert {case.implementation for case in sweep} == ({"scan", "classic"} if torch else {"scan"})


def test_the_ratio_is_to_the_classic_loss_of_the_same_shape():
    rows = with_ratios(
        [
            row_of(Case("classic", **SMALL), found(ms=30.0), memory_sweep=False),
            row_of(Case("scan", K=3, **SMALL), found(ms=10.0), memory_sweep=False),
            row_of(Case("scan", K=3, **(SMALL | {"N": 4})), found(), memory_sweep=False),
            row_of(Case("scan", lengths="ragged", **SMALL), found(), memory_sweep=False),
        ]
    )
    assert [row["ratio_to_baseline"] for row in rows] == [1.0, 3.0, None, None]
    assert rows[1]["gemm_share"] == pytest.approx(0.2)  # 2 MFLOP in 10 ms of a machine of 1 GFLOP/s
    assert rows[1]["shape"] == SMALL | {"K": 3}


def test_the_exponent_of_a_power_is_found():
    pairs = [8, 16, 32, 64]
    assert exponent(pairs, [3.0 * count**1.7 for count in pairs]) == pytest.approx(1.7)


def test_the_memory_sweep_is_plotted_with_its_exponent(tmp_path):
    rows = [
        row_of(
            Case("scan", B=count, run=False, **alignment.SHAPES[0]),
            found(temp_bytes=0, output_bytes=count * 2**20),
            memory_sweep=True,
        )
        for count in (8, 16, 32)
    ]
    assert sweep_of(rows) == {"scan": ([8, 16, 32], [8 * 2**20, 16 * 2**20, 32 * 2**20])}
    assert sweep_lines(rows)[0].startswith("scan: memory ~ B^1.00, 8 MiB at B = 8 and 32 MiB at B = 32")
    save_sweep(tmp_path / "a" / "plot.png", rows)
    assert (tmp_path / "a" / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_a_process_that_dies_leaves_a_row_that_says_why(monkeypatch):
    broken = Case("scan", B=2, L=3, N=4, D=5, lengths="full", dtype="float31", repeats=1)
    good = Case("scan", B=2, L=3, N=4, D=5, repeats=1)
    monkeypatch.setattr(alignment, "cases", lambda **_: ([good, broken], []))
    rows = benchmark_alignment(quick=True)
    assert rows[0]["failed"] is None
    assert rows[0]["ms"] > 0
    assert "float31" in rows[1]["failed"]
    assert rows[1]["ms"] is None
    table = render([alignment_table(rows)])
    assert table.count("scan") == 2
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.skipif(find_torch() is None, reason="needs torch, which is no requirement: pip install torch==2.13.0")
def test_the_baseline_is_the_classic_loss_written_out():
    torch = find_torch()
    from plan_jax.benchmark.classic import ATTENTION, LOSS, SCORE, classic_loss

    patch, word = Case("classic", **SMALL).features()
    lengths, z = [6, 2, 1, 4], np.zeros((4, 4))
    for image in range(4):
        for report, length in enumerate(lengths):
            words = word[report, :length]
            similarity = np.exp(patch[image] @ words.T)  # [N l]
            attention = np.exp(ATTENTION * similarity / similarity.sum(1, keepdims=True))
            context = (attention / attention.sum(0)).T @ patch[image]  # [l D]
            cosine = (context * words).sum(1) / np.linalg.norm(context, axis=1) / np.linalg.norm(words, axis=1)
            z[image, report] = LOSS * np.log(np.exp(SCORE * cosine).sum())
    expected = sum(np.mean(np.log(np.exp(x).sum(1)) - np.diagonal(x)) for x in (z, z.T))
    tensors = (torch.tensor(x).transpose(1, 2) for x in (patch, word))
    assert float(classic_loss(torch, *tensors, lengths)) == pytest.approx(expected, rel=1e-5)
    row = measure(dataclasses.replace(Case("classic", **SMALL), repeats=1))
    assert row["ms"] > 0
    assert row["flops"] == 12 * 4 * 24 * 9 * 5


def test_the_ratios_are_those_of_the_rows():
    large = {"B": 8, "L": 32, "N": 196, "D": 4}
    long = {"B": 2, "L": 97, "N": 4, "D": 4}
    rows = [
        row_of(Case("classic", **SMALL), found(peak_bytes=90), memory_sweep=False),
        row_of(Case("scan", K=1, **SMALL), found(peak_bytes=2), memory_sweep=False),
        row_of(Case("scan", lengths="full", **long), found(ms=10.0), memory_sweep=False),
        row_of(Case("scan", lengths="ragged", **long), found(ms=12.0), memory_sweep=False),
        row_of(Case("scan", lengths="buckets", **long), found(ms=18.0), memory_sweep=False),
        row_of(Case("reference", K=1, run=False, **large), {"temp_bytes": 700}, memory_sweep=False),
        row_of(Case("scan", K=1, run=False, **large), {"temp_bytes": 7}, memory_sweep=False),
    ]
    assert [line.rsplit(": ")[-1] for line in ratio_lines(rows)] == ["45.00", "100.00", "1.20", "1.50"]
    assert ratio_lines([]) == []
