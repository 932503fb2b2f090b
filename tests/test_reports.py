import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan_jax.data.repeats import first_alike
from plan_jax.data.reports import (
    SECTIONS,
    clean_report,
    clean_sentences,
    clean_text,
    decode_report,
    extract_sections,
    place_words,
    section_name,
    split_sections,
    word_count,
)

REPORT = """                                 FINAL REPORT
 EXAMINATION:  CHEST (PA AND LAT)
 
 INDICATION:  ___ year old with cough
 
 COMPARISON:  None.
 
 FINDINGS: 
 
 The lungs are clear.
 Heart size is normal.
 
 IMPRESSION: 
 
 1. No pneumonia.  2. No change.
"""  # noqa: W291, W293 as published
PIECES = st.sampled_from(
    [
        "\n ",
        "\n \n",
        "\n",
        " ",
        "IMPRESSION:",
        "FINDINS: ",
        "CHEST, PA:",
        "COMPARISON: ",
        "1. ",
        "12.",
        "Clear",
        ".",
        "5",
    ]
)
TEXTS = st.one_of(st.text(), st.lists(PIECES, max_size=25).map("".join))


# Sections


def test_the_sections_of_a_report_in_the_order_of_their_use():
    found = extract_sections(REPORT)
    assert list(found) == ["impression", "findings", "comparison"]
    assert found["impression"] == "1. No pneumonia.  2. No change."
    assert found["findings"] == "The lungs are clear.\n Heart size is normal."
    assert found["comparison"] == "None."


def test_every_header_starts_a_section_and_the_title_is_the_preamble():
    names = [name for name, _ in split_sections(REPORT)]
    assert names == ["preamble", "examination", "indication", "comparison", "findings", "impression"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\n FINDINGS: one\n two\n FINDINGS: three\n", {"findings": "three"}),  # the last of a name
        ("\n FINDINGS: one\n two\n FINDINGS: \n \n", {"findings": "one\n two"}),  # which is not an empty one
        ("\n FINDINGS:\n IMPRESSION: one\n two", {"findings": "IMPRESSION: one\n two"}),  # in the line after a header
        ("\n FINDINGS: one", {"findings": "one"}),
        ("FINDINGS: one", {}),  # not after a line break and a space
        ("\nFINDINGS: one", {}),
        ("\n Findings: one", {}),
        ("\n INDICATION: cough\n \n Clear.\n \n No effusion.\n", {"last_paragraph": "Clear.\n \n No effusion."}),
        ("Title\n \n Clear lungs.", {"last_paragraph": "Clear lungs."}),
        ("\n COMPARISON: none\n \n Clear.", {"last_paragraph": "Clear.", "comparison": "none"}),
        ("\n COMPARISON: Clear lungs.", {"comparison": "Clear lungs."}),
        ("\n CHEST, TWO VIEWS: Clear.\n", {"findings": "Clear."}),
        ("", {}),
    ],
)
def test_sections_worked_by_hand(text, expected):
    assert extract_sections(text) == expected


@pytest.mark.parametrize(
    ("header", "name"),
    [
        ("IMPRESSON", "impression"),
        ("CONCLUSION", "impression"),
        ("FINDINGS AND IMPRESSION", "impression"),
        ("FINDINS", "findings"),
        ("FINDING", "findings"),
        ("PORTABLE AP CHEST", "findings"),
        ("COMPARISONS", "comparison"),
        ("REFERENCE EXAM", "comparison"),
        ("HISTORY OF CHEST PAIN", "history"),  # not findings, though it says chest
        ("NDICATION", "ndication"),
        ("WET READ ", "wet read"),
    ],
)
def test_headers_are_told_by_what_they_mean(header, name):
    assert section_name(header) == name


def test_line_ends_of_windows_and_other_bytes_are_read():
    assert extract_sections(decode_report(REPORT.replace("\n", "\r\n").encode())) == extract_sections(REPORT)
    assert decode_report(b"\xef\xbb\xbfone\rtwo \xb5\xff") == "one\ntwo \ufffd\ufffd"


@given(TEXTS)
def test_any_text_gives_sections_that_are_parts_of_it(text):
    found = extract_sections(text)
    assert list(found) == [name for name in SECTIONS if name in found]
    assert all(part in text and part.strip() for part in found.values())
    assert "last_paragraph" not in found or not {"impression", "findings"} & set(found)
    assert all(part in text for _, part in split_sections(text))


# Cleaning


@pytest.mark.parametrize(
    ("text", "sentences"),
    [
        ("1. No pneumonia.  2. No change.", ["No pneumonia", "No change"]),
        ("Clear lungs. Normal. No effusion, or\npneumothorax.", ["Clear lungs", "No effusion or pneumothorax"]),
        ("A nodule of 5.5 cm at T10. Stable for 2.", ["A nodule of", "5 cm at T", "Stable for"]),  # as the peers
        ("right-sided ___ port", ["right sided ___ port"]),
        ("1. 2. ...", []),
        ("", []),
    ],
)
def test_sentences_worked_by_hand(text, sentences):
    assert clean_sentences(text) == sentences


def test_text_is_impression_then_findings_and_nothing_else():
    sections = extract_sections(REPORT) | {"last_paragraph": "Not this one."}
    assert clean_report(sections) == (
        ("impression", "No pneumonia. No change."),
        ("findings", "The lungs are clear. Heart size is normal."),
    )
    assert clean_report({"impression": "Normal."}) == ()
    assert word_count(["No pneumonia. No change.", "two words"]) == 6


@given(TEXTS)
def test_cleaning_what_is_clean_changes_nothing(text):
    cleaned = clean_text(text)
    assert clean_text(cleaned) == cleaned
    assert clean_sentences(cleaned) == clean_sentences(text)
    assert word_count([cleaned]) == sum(len(sentence.split(" ")) for sentence in clean_sentences(text))


@given(TEXTS)
def test_sentences_are_cut_where_the_plain_expression_cuts(text):
    pieces = [piece for point in re.split(r"[0-9]+\.", text.replace("\n", " ")) for piece in point.split(".")]
    assert clean_sentences(text) == [" ".join(w) for piece in pieces if len(w := re.findall(r"\w+", piece)) > 1]


@pytest.mark.parametrize("unit", ["1", "A", "\n ", "\n A", "\n A:", "\n A: \n", "\n \n", "a.", "1.", ". ", "\n A: b\n"])
def test_long_texts_take_no_longer_than_their_length(unit):
    text = unit * (400_000 // len(unit))
    start = time.perf_counter()
    extract_sections(text)
    clean_text(text)
    assert time.perf_counter() - start < 20  # a square of the length would take hours


# Places


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("opacity in the Right Upper lobe", ("right", "upper", True)),
        ("bibasilar atelectasis", ("both", "lower", True)),
        ("left and right effusions", ("both", "", True)),
        ("from apex to base", ("", "", True)),  # two zones
        ("retrocardiac opacity", ("", "lower", True)),
        ("leftover cardiomegaly", ("", "", False)),
    ],
)
def test_words_for_places_are_found(text, expected):
    assert place_words(text) == expected


# Repeats


def test_a_report_that_says_the_same_points_at_the_first():
    texts = [
        "The lungs are clear. No effusion.",
        "Cardiomegaly is stable.",
        "1. no EFFUSION. 2. The lungs, are clear.",
        "",
        "",
        "Normal.",
        "The lungs are clear. No effusion. Stable heart size.",
    ]
    assert first_alike(texts) == [0, 1, 0, 3, 4, 5, 6]


def test_nine_sentences_of_ten_are_nearly_the_same():
    said = [f"sentence number {word}" for word in "abcdefghijk"]
    ten, nine, eight, moved = said[:10], said[:9], said[:8], [*said[:9], said[10]]
    found = first_alike([". ".join(text) for text in (ten, eight, nine, moved)])
    assert found == [0, 1, 0, 2]  # eight of ten and nine of eleven are not; moved holds all nine


@given(st.lists(st.lists(st.sampled_from("abcdefghijklmnopqrstuv"), max_size=22), max_size=14))
def test_the_index_finds_what_comparing_all_finds(texts):
    sets = [{f"the {word}" for word in words} for words in texts]

    def near(one, other):
        return bool(one) and 10 * len(one & other) >= 9 * len(one | other)

    expected = [min((j for j in range(i) if near(sets[i], sets[j])), default=i) for i in range(len(sets))]
    expected = [expected[sets.index(one)] if one else i for i, one in enumerate(sets)]
    assert first_alike([". ".join(f"the {word}" for word in words) for words in texts]) == expected


def test_many_different_reports_are_compared_quickly():
    common = ". ".join(f"the usual sentence {letter}" for letter in "abcdefghijkl")
    texts = [f"{common}. Seen in {i} of them. Film {i} once." for i in range(10_000)]
    start = time.perf_counter()
    assert first_alike(texts + texts) == [*range(10_000), *range(10_000)]
    assert time.perf_counter() - start < 30  # comparing each with each would take hours
