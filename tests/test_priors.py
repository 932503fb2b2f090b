import numpy as np
import pytest

from plan_jax.data.records import Phrase
from plan_jax.errors import InputError
from plan_jax.evaluation.priors import PRIORS, Priors, centre_prior
from plan_jax.metrics.grounding import grounding_metrics


def mask_at(row, column, shape=(8, 10)):
    mask = np.zeros(shape, bool)
    mask[row, column] = True
    return mask


def fitted():
    return Priors.fit(
        [
            ("nodule", "left", "upper", mask_at(0, 0)),
            ("nodule", "left", "upper", mask_at(0, 1)),
            ("nodule", "left", "lower", mask_at(7, 0)),
            ("nodule", "right", "lower", mask_at(7, 9)),
            ("bulla", "", "", mask_at(4, 4)),
        ]
    )


def asked(priors, category, side, zone, **options):
    """The maps of a phrase that says all that is known of its place."""
    phrase = Phrase(text=f"{category} in the {side} {zone} zone", category=category, side=side, zone=zone)
    return priors.maps(phrase, **options)


def test_every_prior_has_its_public_name_and_the_grid_size():
    maps = asked(fitted(), "nodule", "left", "upper", example=0)
    assert tuple(maps) == PRIORS
    assert all(values.shape == (8, 10) for values in maps.values())


def test_phrase_blind_is_the_mean_over_all_training_phrases():
    expected = sum(mask_at(*place).astype(float) for place in ((0, 0), (0, 1), (7, 0), (7, 9), (4, 4)))
    np.testing.assert_allclose(asked(fitted(), "x", "", "", example=0)["phrase_blind_prior"], expected / 5)


@pytest.mark.parametrize(
    ("query", "places"),
    [
        (("nodule", "left", "upper"), [(0, 0), (0, 1)]),
        (("nodule", "left", ""), [(0, 0), (0, 1), (7, 0)]),
        (("nodule", "left", "mid"), [(0, 0), (0, 1), (7, 0)]),  # unseen zone: all zones of the side
        (("nodule", "right", "upper"), [(7, 9)]),
        (("nodule", "", "lower"), [(7, 0), (7, 9)]),
        (("nodule", "both", "mid"), [(0, 0), (0, 1), (7, 0), (7, 9)]),
        (("nodule", "", ""), [(0, 0), (0, 1), (7, 0), (7, 9)]),
        (("bulla", "left", "upper"), [(4, 4)]),
        (("fracture", "left", "upper"), [(0, 0), (0, 1), (7, 0), (7, 9), (4, 4)]),  # unseen class: all phrases
    ],
)
def test_image_blind_uses_what_the_phrase_says_and_falls_back(query, places):
    expected = sum(mask_at(*place).astype(float) for place in places) / len(places)
    np.testing.assert_allclose(asked(fitted(), *query, example=0)["image_blind_prior"], expected)


def test_a_phrase_that_is_silent_about_the_place_leaves_only_the_told_prior_knowing_it():
    silent = Phrase(text="nodule", category="nodule", side="left", zone="upper")
    maps, full = fitted().maps(silent, example=0), asked(fitted(), "nodule", "left", "upper", example=0)
    np.testing.assert_array_equal(maps["image_blind_prior"], maps["image_blind_type_prior"])
    np.testing.assert_array_equal(maps["image_blind_told_prior"], full["image_blind_prior"])
    assert not np.array_equal(maps["image_blind_told_prior"], maps["image_blind_prior"])
    only_zone = Phrase(text="Nodule, upper zone.", category="nodule", side="left", zone="upper")
    expected = fitted().means["nodule", "", "upper"]
    np.testing.assert_array_equal(fitted().maps(only_zone, example=0)["image_blind_prior"], expected)


def test_the_type_prior_ignores_side_and_zone():
    priors = fitted()
    by_type = asked(priors, "nodule", "left", "upper", example=0)["image_blind_type_prior"]
    np.testing.assert_array_equal(by_type, asked(priors, "nodule", "", "", example=0)["image_blind_prior"])
    unseen = asked(priors, "fracture", "left", "upper", example=0)
    np.testing.assert_array_equal(unseen["image_blind_type_prior"], unseen["phrase_blind_prior"])


def test_the_centre_prior_peaks_in_the_middle_and_is_symmetric():
    odd = centre_prior((5, 7))
    assert odd[2, 3] == odd.max() == 1
    np.testing.assert_allclose(odd, odd[::-1, ::-1])
    even = centre_prior((4, 8))
    assert even[1, 3] == pytest.approx(even[2, 4])


def test_chance_is_repeatable_and_differs_between_examples():
    priors = fitted()
    first = asked(priors, "nodule", "", "", example=1)["chance"]
    np.testing.assert_array_equal(first, asked(priors, "bulla", "left", "", example=1)["chance"])
    assert not np.array_equal(first, asked(priors, "nodule", "", "", example=2)["chance"])


def test_chance_scores_like_an_uninformative_map():
    priors = Priors.fit([("nodule", "", "", np.zeros((32, 32), bool))])
    truth = np.zeros((32, 32), bool)
    truth[4:20, 8:24] = True  # a quarter of the image
    found = [grounding_metrics(asked(priors, "nodule", "", "", example=i)["chance"], truth) for i in range(400)]
    mean = {name: np.mean([metrics[name] for metrics in found]) for name in found[0]}
    assert mean["auroc"] == pytest.approx(0.5, abs=0.01)
    assert mean["cnr_signed"] == pytest.approx(0, abs=0.01)
    assert mean["pointing"] == pytest.approx(0.25, abs=0.08)


def test_masks_of_other_sizes_are_averaged_on_one_grid_and_maps_come_back_at_the_size_asked():
    large = np.zeros((16, 20), bool)
    large[:8] = True
    small = np.zeros((4, 5), bool)
    small[:2] = True
    priors = Priors.fit([("a", "", "", large), ("a", "", "", small)], grid=(8, 10))
    maps = asked(priors, "a", "", "", example=0, shape=(32, 40))
    assert all(values.shape == (32, 40) for values in maps.values())
    assert maps["image_blind_prior"][:8].min() == pytest.approx(1)
    assert maps["image_blind_prior"][24:].max() == pytest.approx(0)
    assert maps["image_blind_prior"].mean() == pytest.approx(0.5, abs=0.02)


def test_a_training_split_without_masks_is_refused():
    with pytest.raises(InputError, match="got none"):
        Priors.fit([])
