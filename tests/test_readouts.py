"""The ways to read a map: each on a model that was trained, against what it must equal by construction."""

import dataclasses

import numpy as np
import pytest

from plan_jax.alignment.reference import compete
from plan_jax.config import EvaluationConfig
from plan_jax.data.image import decode_image, letterbox_image
from plan_jax.data.records import open_split
from plan_jax.evaluation.grounding import queries
from plan_jax.evaluation.readouts import Query, Readouts, covered, swap_sides
from plan_jax.geometry import Letterbox
from plan_jax.inference import Plan

CLASSES = ("bulla", "cavity", "nodule")


@pytest.fixture(scope="module")
def batch(phantom_data) -> list[Query]:
    return list(queries(open_split(phantom_data, "test"), "grounding"))


@pytest.fixture(scope="module")
def refined(plan) -> Plan:
    return plan.with_alignment(rounds=2)


@pytest.fixture(scope="module")
def maps(refined, batch):
    return Readouts(refined, CLASSES).maps(batch)


def test_every_readout_is_a_finite_map_of_the_image_size_for_every_query(maps, batch):
    assert set(maps) == {
        "trained", "word_mean", "not_spread", "round_0", "round_1", "competition", "mirrored", "global_map",
        "grid_ceiling",
    }  # fmt: skip
    for found in maps.values():
        assert [grid.shape for grid in found] == [query.image.shape for query in batch]
        assert all(np.isfinite(grid).all() for grid in found)


def test_the_plain_readout_is_the_map_that_users_see(refined, maps, batch):
    for query, found in list(zip(batch, maps["trained"], strict=True))[:3]:
        seen = refined.ground(query.image, query.phrase.text).map
        np.testing.assert_allclose(found, seen, atol=1e-5)


def test_the_readout_after_k_rounds_is_that_of_a_model_with_k_rounds(plan, maps, batch):
    for k in (0, 1):
        expected = Readouts(plan.with_alignment(rounds=k), ()).maps(batch)["trained"]
        np.testing.assert_allclose(np.stack(maps[f"round_{k}"]), np.stack(expected), atol=1e-5)


def test_the_readout_that_is_not_spread_is_that_of_a_model_without_it_and_has_the_higher_peak(refined, maps, batch):
    plain = Readouts(refined.with_alignment(map_spread=0.0), ()).maps(batch)
    np.testing.assert_allclose(np.stack(maps["not_spread"]), np.stack(plain["trained"]), atol=1e-5)
    assert "not_spread" not in plain
    assert np.stack(maps["not_spread"]).max() > np.stack(maps["trained"]).max()


def test_the_mirrored_readout_is_the_plain_one_of_a_mirrored_image_turned_back(refined, maps, batch):
    query = batch[0]
    turned = dataclasses.replace(
        query,
        image=np.ascontiguousarray(query.image[:, ::-1]),
        phrase=dataclasses.replace(query.phrase, text=swap_sides(query.phrase.text)),
    )
    plain = Readouts(refined, ()).maps([turned])["trained"][0]
    np.testing.assert_allclose(maps["mirrored"][0], plain[:, ::-1], atol=1e-5)


def test_the_global_map_averages_to_the_global_similarity_before_it_is_normalised(plan, batch):
    query = batch[0]
    square = letterbox_image(query.image, plan.config.data.image_size)[0][None, ..., None]
    texts = plan.encode_phrases([query.phrase.text, "a nodule"])
    maps = plan.global_maps(square, texts, np.array([0, 0]))
    pooled = np.asarray(plan.encode_images(square).pooled)[0]
    expected = np.asarray(texts.pooled) @ pooled
    found = maps.mean((1, 2))
    np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), rtol=1e-4)


def test_all_maps_of_an_image_are_those_of_each_phrase_alone(plan, batch):
    squares = np.stack([letterbox_image(q.image, plan.config.data.image_size)[0] for q in batch[:2]])[..., None]
    images, texts = plan.encode_images(squares), plan.encode_texts(["a nodule", "a cavity on the left"])
    together = plan.ground_all(images, texts)
    alone = plan.ground_features(images, texts)[0]  # text r in image r
    np.testing.assert_allclose(np.stack([together[0, 0], together[1, 1]]), alone, atol=1e-6)


def test_sides_are_swapped_as_whole_words_only():
    assert swap_sides("Left upper zone, right base; leftover bright") == "right upper zone, left base; leftover bright"
    assert swap_sides(swap_sides("on the left and right")) == "on the left and right"


def test_competition_takes_from_a_map_what_the_others_claim():
    config = EvaluationConfig(competition=0.5, competition_temperature=0.1)
    own = np.array([[0.9, 0.9, 0.1]], np.float32)
    rival = np.array([[0.0, 0.8, 0.0]], np.float32)
    np.testing.assert_allclose(compete(own, rival[None], config=config), own - 0.5 * rival, atol=1e-6)
    several = np.stack([rival, rival, rival])
    np.testing.assert_allclose(compete(own, several, config=config), own - 0.5 * rival, atol=1e-6)
    off = dataclasses.replace(config, competition=0.0)
    np.testing.assert_array_equal(compete(own, several, config=off), own)


def test_a_phrase_grounded_against_others_gives_way_to_their_maps(plan, batch):
    image = batch[0].image
    others = ["a cavity", "a bulla on the left"]
    square, letterbox = letterbox_image(image, plan.config.data.image_size)
    grids = plan.ground_all(plan.encode_images(square[None, ..., None]), plan.encode_phrases(["a nodule", *others]))[0]
    expected = letterbox.map_to_original(np.asarray(compete(grids[0], grids[1:], config=plan.config.evaluation)))
    np.testing.assert_allclose(plan.ground(image, "a nodule", against=others).map, expected, atol=1e-5)
    assert not np.allclose(plan.ground(image, "a nodule").map, expected, atol=1e-3)


def test_the_ceiling_is_the_share_of_each_cell_that_the_truth_covers():
    truth = np.zeros((8, 8), bool)
    truth[0:4, 0:6] = True  # of four cells of 4 px: one whole, one half
    np.testing.assert_allclose(covered(truth, (2, 2), Letterbox.fit(8, 8, 8)), [[1, 0.5], [0, 0]])


def test_other_findings_are_those_of_another_category_in_the_same_image(batch):
    for query in batch:
        same_image = [other for other in batch if other.record == query.record and other is not query]
        rivals = [other.truth for other in same_image if other.phrase.category != query.phrase.category]
        assert len(query.others) == len(rivals)
        assert all((found == rival).all() for found, rival in zip(query.others, rivals, strict=True))
    assert any(query.others for query in batch)


def test_the_image_of_a_query_is_that_of_its_record(phantom_data, batch):
    split = open_split(phantom_data, "test")
    for query in batch[:3]:
        np.testing.assert_array_equal(query.image, decode_image(split[query.record].image, name="x"))
