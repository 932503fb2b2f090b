import re

import numpy as np
import pytest

from plan_jax.errors import InputError
from plan_jax.evaluation.figures import choose
from plan_jax.figure_page import Figures, Pair, write_figure_page
from plan_jax.inference import WordMaps
from plan_jax.plots import Example

HOSTILE = '<script>alert("x")</script>'


def example(phrase="a nodule", *, rounds=0):
    found = np.random.default_rng(0).normal(0, 0.2, (16, 16))
    strip = tuple((found, 0.25 * k) for k in range(rounds + 1)) if rounds else ()
    return Example(np.zeros((16, 16), np.uint8), found, ((2.0, 3.0, 7.0, 9.0),), phrase, "nodule", -0.5, 0.0, strip)


def page(path, *, typical=None, text="a nodule", pairs=()):
    spans = tuple((word.start(), word.end()) for word in re.finditer(r"\S+", text))
    maps, shares = np.zeros((len(spans), 16, 16)), np.full(len(spans), 1 / len(spans))
    words = WordMaps(maps, np.zeros((16, 16), np.uint8), text, spans, shares)
    write_figure_page(path, Figures(typical or example(), words, tuple(pairs)), title="t")
    return path.read_text()


def test_the_worst_and_the_best_of_a_class_are_by_pointing_then_by_contrast():
    category = np.array(["a", "a", "b", "a", "b", "a", "c"])
    pointing = np.array([1.0, 0.0, 1.0, 0.0, 0.0, 1.0, 0.0])
    cnr = np.array([3.0, 1.0, 0.5, -1.0, 2.0, 4.0, 9.0])
    typical, pairs = choose(category, pointing, cnr)
    assert cnr[typical] == 2.0  # the median
    assert pairs == {"a": (3, 5), "b": (4, 2), "c": (6, 6)}


def test_the_rounds_are_a_strip_with_their_contrasts(tmp_path):
    text = page(tmp_path / "a.html", typical=example(rounds=2))
    assert re.findall(r"S<sub>(\d)</sub> &middot; signed CNR ([-.\d]+)", text) == [
        ("0", "0.00"),
        ("1", "0.25"),
        ("2", "0.50"),
    ]
    assert "K = 0" not in text
    assert "no refinement rounds (K = 0)" in page(tmp_path / "b.html")


def test_every_word_has_its_map_and_a_long_report_is_cut_and_said_to_be(tmp_path):
    assert page(tmp_path / "a.html", text="no effusion is seen").count("Map of the word") == 4
    text = page(tmp_path / "b.html", text="word " * 90)
    assert text.count("Map of the word") == 40
    assert "The first 40 of 90 words." in text


def test_failures_stand_beside_successes(tmp_path):
    pairs = [Pair("nodule", 7, example("missed"), example("found")), Pair("cavity", 1, example(), example("only one"))]
    text = page(tmp_path / "a.html", pairs=pairs)
    assert text.index("worst and best of 7 phrases") < text.index("missed") < text.index("found")
    assert "cavity: its only phrase" in text
    assert text.count("only one</p>") == 1


def test_the_page_needs_no_other_file_and_escapes_what_it_is_given(tmp_path):
    text = page(
        tmp_path / "a.html", typical=example(HOSTILE), text=HOSTILE, pairs=[Pair(HOSTILE, 2, example(), example())]
    )
    assert "<script" not in text
    assert all(source.startswith("data:image/png;base64,") for source in re.findall(r'src="([^"]*)"', text))


def test_figures_of_a_run_that_is_not_scored_on_the_data_are_refused(trained, other_data, tmp_path):
    from plan_jax.evaluation.figures import write_figures

    for data in (None, other_data):
        with pytest.raises(InputError, match="evaluate grounding"):
            write_figures(tmp_path / "figures.html", trained.workdir, data=data)
    assert not list(tmp_path.iterdir())
