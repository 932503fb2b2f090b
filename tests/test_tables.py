import csv
import io
import json

import pytest

from plan_jax.errors import InputError
from plan_jax.tables.render import render
from plan_jax.tables.results import grounding_table, results_tables


def span(value):
    return {"value": value, "low": value - 0.1, "high": value + 0.1}


GROUNDING = {
    "cnr_signed": span(2.0),
    "cnr_abs": span(2.5),
    "pointing": span(0.75),
    "n": 12,
    "data": "abc",
    "per_class": {"nodule": {"cnr_signed": span(3.0)}},
    "with_location": {"cnr_signed": span(2.25), "n": 6},
    "chance": {"cnr_signed": 0.0},
    "image_blind_prior": {"cnr_signed": span(-1.0), "cnr_abs": span(1.0)},
}
RETRIEVAL = {
    "r@1_image_to_text": span(0.5),
    "median_rank_text_to_image": span(3.0),
    "pool": 400,
    "chance": {"r@1_image_to_text": 0.0025},
    "pools": {"200": {"r@1_image_to_text": span(0.75), "chance": {"r@1_image_to_text": 0.005}}},
}
ZERO_SHOT = {"auroc": span(0.875), "f1_macro": span(0.5), "per_class": {"a_b & c": {"f1": span(0.25)}}}


def run_with(path, **results):
    (path / "results").mkdir(parents=True)
    for task, result in results.items():
        (path / "results" / f"{task}.json").write_text(json.dumps(result))
    return path


def grid(markdown):
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.replace("\\|", "!").strip("|").split("|")] for line in lines]


def test_signed_cnr_stands_before_its_absolute_value_and_priors_below_the_trained_network(tmp_path):
    head, _, *rows = grid(render([grounding_table(GROUNDING)], format="md"))
    columns = ["signed CNR", "pointing", "own above others", "AUROC", "mIoU raw", "mIoU minmax", "!CNR!"]
    assert head == ["method", *columns]
    assert rows == [
        ["trained", "2.00 [1.90, 2.10]", "0.750 [0.650, 0.850]", "", "", "", "", "2.50 [2.40, 2.60]"],
        ["trained, phrases with a location", "2.25 [2.15, 2.35]", *[""] * 6],
        ["chance", "0.00", *[""] * 6],
        ["image-blind prior", "-1.00 [-1.10, -0.90]", *[""] * 5, "1.00 [0.90, 1.10]"],
    ]


def test_retrieval_names_pool_direction_and_chance(tmp_path):
    (table,) = results_tables([run_with(tmp_path / "run", retrieval=RETRIEVAL)])
    rows = grid(render([table], format="md"))[2:]
    assert rows[0] == ["400 (all)", "image to text", "trained", "0.500 [0.400, 0.600]", "", "", ""]
    assert rows[1] == ["400 (all)", "image to text", "chance", "0.003", "", "", ""]
    assert rows[2] == ["400 (all)", "text to image", "trained", "", "", "", "3.0 [2.9, 3.1]"]
    assert [row[0] for row in rows] == ["400 (all)"] * 4 + ["200"] * 4


def test_zero_shot_shows_the_macro_average_then_every_class(tmp_path):
    (table,) = results_tables([run_with(tmp_path / "run", zero_shot=ZERO_SHOT)])
    assert grid(render([table], format="md"))[2:] == [
        ["all classes (macro)", "0.875 [0.775, 0.975]", "", "0.500 [0.400, 0.600]"],
        ["a_b & c", "", "", "0.250 [0.150, 0.350]"],
    ]


def test_all_tasks_of_a_run_are_shown_and_missing_ones_are_not(tmp_path):
    everything = run_with(tmp_path / "a", grounding=GROUNDING, retrieval=RETRIEVAL, zero_shot=ZERO_SHOT)
    titles = [table.title for table in results_tables([everything])]
    assert titles == [
        "Phrase grounding (n = 12, 95 % bootstrap intervals)",
        "Phrase grounding by class, trained",
        "Retrieval",
        "Zero-shot classification",
    ]
    assert len(results_tables([run_with(tmp_path / "b", retrieval=RETRIEVAL)])) == 1


def test_every_class_is_compared_with_the_prior_that_is_told_where_it_is(tmp_path):
    lead = {"image_blind_told_prior": {"per_class": {"nodule": {"cnr_signed": span(-1.0), "pointing": span(0.25)}}}}
    (_, table) = results_tables([run_with(tmp_path / "run", grounding=GROUNDING | {"lead": lead})])
    (row,) = grid(render([table], format="md"))[2:]
    assert row[:2] == ["nodule", "3.00 [2.90, 3.10]"]
    assert row[-2:] == ["-1.00 [-1.10, -0.90]", "0.250 [0.150, 0.350]"]


def test_several_runs_share_a_table_that_names_them(tmp_path):
    runs = [run_with(tmp_path / "a", grounding=GROUNDING), run_with(tmp_path / "b", grounding={"cnr_abs": 1.0})]
    head, _, *rows = grid(render(results_tables(runs)[:1], format="md"))
    assert head[:2] == ["run", "method"]
    assert [row[0] for row in rows] == [str(runs[0])] * 4 + [str(runs[1])]
    assert rows[-1] == [str(runs[1]), "trained", *[""] * 6, "1.00"]


def test_text_columns_are_aligned():
    lines = render([grounding_table(GROUNDING)]).splitlines()[2:]
    ends = {line.index("[") for line in lines if "2.00 [" in line or "2.25 [" in line}
    assert len(ends) == 1
    assert max(map(len, lines)) == len(lines[1])


def test_csv_is_one_table_in_full_precision(tmp_path):
    run = run_with(tmp_path / "run", grounding={"cnr_signed": span(1 / 3)}, retrieval=RETRIEVAL)
    rows = list(csv.DictReader(io.StringIO(render(results_tables([run]), format="csv"))))
    assert rows[0] == {
        "table": "Phrase grounding",
        "row": "trained",
        "metric": "cnr_signed",
        "value": repr(1 / 3),
        "low": repr(1 / 3 - 0.1),
        "high": repr(1 / 3 + 0.1),
    }
    chance = [row for row in rows if row["row"] == "400 (all) / image to text / chance" and row["metric"] == "r@1"]
    assert [(row["value"], row["low"], row["high"]) for row in chance] == [("0.0025", "", "")]


def test_latex_and_html_escape_what_they_must(tmp_path):
    result = ZERO_SHOT | {"per_class": {"50%_<b>&|x": {"f1": span(0.25)}}}
    tables = results_tables([run_with(tmp_path / "run", zero_shot=result)])
    latex = render(tables, format="tex")
    assert r"50\%\_<b>\&\textbar{}x &" in latex
    assert latex.count(r"\\") == 3
    page = render(tables, format="html")
    assert "<th>50%_&lt;b&gt;&amp;|x</th>" in page
    assert "<td>0.250 <small>[0.150, 0.350]</small></td>" in page


def test_runs_without_results_and_broken_files_are_named(tmp_path):
    with pytest.raises(InputError, match=r"empty must hold results/.*evaluate grounding"):
        results_tables([tmp_path / "empty"])
    broken = run_with(tmp_path / "broken", grounding=GROUNDING)
    path = broken / "results" / "grounding.json"
    for content in ("{", "[1]"):
        path.write_text(content)
        with pytest.raises(InputError, match=r"grounding\.json must"):
            results_tables([broken])


def test_an_unknown_format_is_refused_with_the_choices():
    with pytest.raises(InputError, match="md, tex, html, got pdf"):
        render([], format="pdf")
