import pytest

from plan_jax.data import chexpert_table, covidx, mimic_cxr, ms_cxr, nih_cxr14, phantom_easy, phantom_realistic
from plan_jax.data.chexpert_5x200 import FINDINGS
from plan_jax.data.records import open_split
from plan_jax.evaluation.prompts import prompts_of


def test_the_phantoms_prompts_are_in_the_words_of_its_reports(phantom_data):
    train = open_split(phantom_data, "train")
    text = " ".join(train[index].report.lower() for index in range(len(train)))
    labels = {label for index in range(len(train)) for label in train[index].labels}
    for label in labels:
        names = [prompt.removeprefix("there is ") for prompt in prompts_of(label, "phantom")]
        assert len(names) > 1
        assert any(name.removeprefix("a ") in text for name in names)


def test_a_class_without_prompts_of_its_own_is_asked_for_by_name():
    assert prompts_of("Elsewhere Seen") == prompts_of("Elsewhere Seen", "nih_cxr14") == ("there is elsewhere seen",)


@pytest.mark.parametrize(
    ("data_set", "classes"),
    [
        ("phantom", phantom_easy.CLASSES),
        ("phantom", phantom_realistic.CLASSES),
        ("chexpert", chexpert_table.LABELS),
        ("chexpert_5x200", FINDINGS),
        ("mimic_cxr", mimic_cxr.CLASSES),
        ("ms_cxr", ms_cxr.CLASSES),
        ("nih_cxr14", nih_cxr14.CLASSES),
        ("covidx", covidx.CLASSES),
        ("rsna", ("pneumonia",)),
        ("siim", ("pneumothorax",)),
    ],
)
def test_every_class_of_a_data_set_has_several_prompts_that_no_other_class_has(data_set, classes):
    prompts = [prompts_of(name, data_set) for name in classes]
    assert all(len(group) > 1 for group in prompts)
    assert len({prompt for group in prompts for prompt in group}) == sum(len(group) for group in prompts)
    assert all(prompt == " ".join(prompt.split()) for group in prompts for prompt in group)


def test_the_prompts_of_the_5x200_set_are_all_combinations_of_the_published_words():
    counts = [len(prompts_of(name, "chexpert_5x200")) for name in FINDINGS]
    assert counts == [3 * 7 * 10, 15, 4 * 6 * 8, 6 * 3, 6 * 3 * 2]  # of three kinds of effusion, two are distinct
    assert "mild linear atelectasis at the left lung base" in prompts_of("Atelectasis", "chexpert_5x200")
    assert "pulmonary edema" in prompts_of("Edema", "chexpert_5x200")
    assert prompts_of("Atelectasis", "mimic_cxr") == prompts_of("Atelectasis")


def test_the_same_word_means_another_thing_in_another_data_set():
    assert prompts_of("pneumothorax", "siim") != prompts_of("pneumothorax", "phantom") == prompts_of("pneumothorax")
