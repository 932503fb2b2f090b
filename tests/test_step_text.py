from collections import Counter

import numpy as np
import pytest

from plan_jax.config import DataConfig
from plan_jax.data.records import Record
from plan_jax.data.step_text import step_text

SECTIONS = (("impression", "No acute disease."), ("findings", "Lungs are clear. Heart is large. No effusion."))


def text_of(sections=SECTIONS, *, text: str = "report", sentences: str = "all", seed: int = 0) -> str:
    record = Record("key", "patient", "study", b"", sections=tuple(sections))
    return step_text(record, DataConfig(text=text, sentences=sentences), np.random.default_rng(seed))


def drawn(sections=SECTIONS, *, times: int = 200, **choice) -> Counter:
    return Counter(text_of(sections, seed=seed, **choice) for seed in range(times))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("report", "No acute disease. Lungs are clear. Heart is large. No effusion."),
        ("findings", "Lungs are clear. Heart is large. No effusion."),
        ("impression", "No acute disease."),
    ],
)
def test_a_section_is_chosen_by_its_name(text, expected):
    assert text_of(text=text) == expected


@pytest.mark.parametrize("empty", [(), (("impression", ""),), (("impression", " \n"),), (("impression", "1. ."),)])
def test_a_report_without_the_section_is_read_whole(empty):
    sections = (*empty, ("findings", "Lungs are clear."))
    assert text_of(sections, text="impression").split()[-3:] == ["Lungs", "are", "clear."]
    assert text_of((*empty, ("clinical_notes", "Cough.")), text="findings").endswith("Cough.")


def test_sections_of_one_name_are_read_together():
    sections = (("findings", "One."), ("impression", "Two."), ("findings", "Three."))
    assert text_of(sections, text="findings") == "One. Three."


@pytest.mark.parametrize("text", ["report", "findings", "impression"])
@pytest.mark.parametrize("sentences", ["all", "shuffled", "one", "some"])
@pytest.mark.parametrize("sections", [(), (("findings", ""),)])
def test_a_report_without_text_stays_empty(sections, sentences, text):
    assert text_of(sections, text=text, sentences=sentences) == ""


def test_one_sentence_is_any_of_the_chosen_text_equally_often():
    found = drawn(text="findings", sentences="one", times=600)
    assert found.keys() == {"Lungs are clear.", "Heart is large.", "No effusion."}
    assert all(150 < count < 250 for count in found.values())


def test_some_sentences_are_every_choice_but_none_in_the_order_of_the_report():
    found = drawn(text="findings", sentences="some", times=900)
    a, b, c = "Lungs are clear.", "Heart is large.", "No effusion."
    assert found.keys() == {a, b, c, f"{a} {b}", f"{a} {c}", f"{b} {c}", f"{a} {b} {c}"}
    assert 250 < found[f"{a} {b} {c}"] < 350  # how many is drawn first
    assert all(60 < count < 140 for text, count in found.items() if text != f"{a} {b} {c}")


def test_shuffled_sentences_are_all_there_in_every_order():
    found = drawn(text="findings", sentences="shuffled")
    assert len(found) == 6
    assert {tuple(sorted(text.split())) for text in found} == {tuple(sorted(SECTIONS[1][1].split()))}


@pytest.mark.parametrize("sentences", ["shuffled", "one", "some"])
def test_the_random_numbers_decide_and_nothing_else(sentences):
    assert drawn(sentences=sentences) == drawn(sentences=sentences)
