import json

import pytest

from plan_jax.__main__ import main
from plan_jax.errors import InputError
from plan_jax.tables.into import END, write_into
from plan_jax.tables.paper import ARRANGEMENTS, paper_tables
from plan_jax.tables.reference import FILE, read_reference
from plan_jax.tables.render import render
from plan_jax.tables.results import results_tables

SOURCE = {"title": "A title", "id": "arXiv:0000.00000", "table": "1"}
NUMBER = {"task": "grounding", "data_set": "ms_cxr", "method": "A", "metric": "cnr_abs", "value": 1.5, "source": "s"}


def run_with(path, **results):
    (path / "results").mkdir(parents=True)
    for name, result in results.items():
        (path / "results" / f"{name}.json").write_text(json.dumps(result))
    return path


def reference(path, **changes):
    content = {"methods": ["A", "B", "C"], "variants": ["C"], "sources": {"s": SOURCE}, "numbers": [NUMBER]}
    path.write_text(json.dumps(content | changes))
    return path


def cells(table) -> dict[str, dict]:
    """Row -> heading -> cell, where something stands."""
    found = {}
    for row in table.rows:
        named = dict(zip((column.heading for column in table.columns), row, strict=True))
        name = " ".join(str(named.pop(part)) for part in ("method", "direction") if part in named)
        found[name] = {heading: cell for heading, cell in named.items() if cell not in (None, "")}
    return found


def test_peers_stand_above_our_runs_and_unknown_cells_are_empty(tmp_path):
    run = run_with(tmp_path / "r", grounding={"cnr_abs": 1.0}, grounding_ms_cxr={"cnr_abs": 2.0, "data_set": "ms_cxr"})
    (table,) = paper_tables([run], reference=read_reference(reference(tmp_path / "reference.json")))
    assert cells(table) == {
        "A": {"MS-CXR |CNR|": 1.5, "source": "arXiv:0000.00000"},
        "B": {},
        str(run): {"MS-CXR |CNR|": 2.0, "|CNR|": 1.0, "source": "this repository"},
    }


def test_every_task_has_the_columns_of_its_data_sets(tmp_path):
    run = run_with(
        tmp_path / "r",
        retrieval={"r@1_image_to_text": 0.25, "data_set": "phantom"},
        retrieval_chexpert_5x200={"p@5_text_to_image": 0.5, "data_set": "chexpert_5x200"},
        zero_shot_siim={"auroc": 0.75, "f1_macro": 0.5, "data_set": "siim"},
        detection_rsna={
            "map": 0.5,
            "fractions": {"0.01": {"map": 0.125, "map_compat": 0.25}, "1": {"map": 0.5}},
            "data_set": "rsna",
        },
    )
    retrieval, detection, zero_shot = map(cells, paper_tables([run]))
    ours = {"source": "this repository"}
    assert retrieval[f"{run} image to text"] == {"phantom R@1": 0.25} | ours
    assert retrieval[f"{run} text to image"] == {"CheXpert 5x200 P@5": 0.5} | ours
    rsna = {"RSNA 1 % mAP": 0.125, "RSNA 1 % mAP, peers' count": 0.25, "RSNA 100 % mAP": 0.5}
    assert detection[str(run)] == rsna | ours
    assert zero_shot[str(run)] == {"SIIM AUROC": 0.75, "SIIM F1": 0.5} | ours


def test_data_sets_without_any_number_are_named_and_have_no_columns(tmp_path):
    run = run_with(tmp_path / "r", zero_shot_siim={"auroc": 0.75, "data_set": "siim"})
    (table,) = paper_tables([run])
    assert {column.heading.split()[0] for column in table.columns} == {"method", "SIIM", "source"}
    assert any("left out" in note and "CheXpert 5x200, RSNA, COVIDx." in note for note in table.notes)


def test_peers_stand_only_where_one_of_the_public_data_sets_does(tmp_path):
    run = run_with(tmp_path / "r", zero_shot={"auroc": 0.75, "data_set": "phantom"})
    (table,) = paper_tables([run])
    assert [row[0] for row in table.rows] == [str(run)]
    assert not any("Empty: none was read" in note for note in table.notes)


def test_both_ways_of_counting_average_precision_are_explained(tmp_path):
    run = run_with(tmp_path / "r", detection={"map": 0.5, "map_compat": 0.75})
    for table in (*paper_tables([run]), *results_tables([run])):
        assert "every image counts" in " ".join(table.notes)
        assert "Peers' count" in render([table])


def test_the_numbers_in_the_package_are_of_known_columns_and_have_their_sources():
    found = read_reference(FILE)
    known = {task: {c.name for of in made.standard.values() for c in of} for task, made in ARRANGEMENTS.items()}
    assert found.numbers
    for task, data_set, method, metric in found.numbers:
        assert data_set in ARRANGEMENTS[task].standard
        assert metric.removesuffix("_image_to_text").removesuffix("_text_to_image") in known[task]
        assert found.sources[task, method]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sources": {}}, "a source must have"),
        ({"sources": {"s": SOURCE | {"id": " "}}}, "a source must have"),
        ({"sources": {"s": {"title": "A title", "id": "arXiv:1"}}}, "a source must have"),
        ({"numbers": [{name: NUMBER[name] for name in NUMBER if name != "source"}]}, "a number must have"),
        ({"numbers": [NUMBER | {"value": "1.5"}]}, "a number must have"),
        ({"numbers": [NUMBER | {"method": "D"}]}, "a listed method"),
        ({"numbers": [NUMBER, NUMBER]}, "once"),
    ],
)
def test_a_number_without_a_source_is_refused(changes, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read_reference(reference(tmp_path / "reference.json", **changes))


# Details


def test_results_on_other_data_sets_name_them(tmp_path):
    own, other = {"cnr_abs": 1.0, "data_set": "phantom", "n": 3}, {"cnr_abs": 2.0, "data_set": "ms_cxr"}
    run = run_with(tmp_path / "run", grounding=own, grounding_ms_cxr=other)
    titles = [table.title for table in results_tables([run])]
    assert titles == ["Phrase grounding (n = 3, 95 % bootstrap intervals)", "Phrase grounding on ms_cxr"]
    trained_there = run_with(tmp_path / "there", grounding=other)
    both = results_tables([run, trained_there])
    assert [(table.title, len(table.rows)) for table in both] == [
        ("Phrase grounding", 1),
        ("Phrase grounding on ms_cxr", 2),
    ]


def test_shares_of_the_training_data_are_rows(tmp_path):
    shares = {"0.01": {"auroc": 0.5}, "1.0": {"auroc": 0.75}}
    (table,) = results_tables([run_with(tmp_path / "run", linear_probe={"auroc": 0.75, "fractions": shares})])
    assert [row[:2] for row in table.rows] == [("1 %", 0.5), ("100 %", 0.75)]


# Into a file


def test_a_block_is_replaced_and_nothing_else(tmp_path):
    path = tmp_path / "README.md"
    path.write_text(f"before\n<!-- tables a -->\nold\n{END}\nbetween\n<!-- tables b -->\n{END}\nafter")
    assert write_into(path, "new \\1\n| x |\n", name="b")
    expected = f"before\n<!-- tables a -->\nold\n{END}\nbetween\n<!-- tables b -->\nnew \\1\n| x |\n{END}\nafter"
    assert path.read_text() == expected
    assert not write_into(path, "new \\1\n| x |\n", name="b")
    assert write_into(path, "", name="a")
    assert "old" not in path.read_text()
    assert [file.name for file in tmp_path.iterdir()] == ["README.md"]


@pytest.mark.parametrize(
    "text",
    [
        "no marks",
        "<!-- tables a -->\nno end",
        f"{END}\n<!-- tables a -->\n",
        f"<!-- tables a -->\n<!-- tables b -->\n{END}",
        f"<!-- tables a -->\n{END}\n<!-- tables a -->\n{END}",
        f"text <!-- tables a -->\n{END}",
    ],
)
def test_a_file_without_the_marks_is_refused_and_stays(text, tmp_path):
    path = tmp_path / "README.md"
    path.write_text(text)
    with pytest.raises(InputError, match="must have a line <!-- tables a --> once"):
        write_into(path, "new", name="a")
    assert path.read_text() == text
    with pytest.raises(InputError, match="must be a file"):
        write_into(tmp_path / "none.md", "new", name="a")


def test_the_command_writes_its_tables_into_a_block(tmp_path, capsys):
    run = run_with(tmp_path / "run", grounding={"cnr_signed": 1.25, "data_set": "phantom"})
    path = tmp_path / "README.md"
    path.write_text(f"<!-- tables results -->\n{END}\n")
    call = ["tables", str(run), "--into", str(path)]
    assert main(call) == 0
    once = path.read_text()
    assert once.count("1.25") == 2  # in the paper's arrangement and in detail
    assert main(call) == 0
    assert path.read_text() == once
    assert main([*call, "--paper"]) == 0
    assert path.read_text().count("1.25") == 1
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: block results written",
        f"{path}: block results is as it was",
        f"{path}: block results written",
    ]
    assert main([*call, "--format", "csv"]) == 2
    assert main([*call, "--block", "other"]) == 2
