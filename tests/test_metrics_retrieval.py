import itertools
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from plan_jax.metrics import retrieval as metrics
from plan_jax.metrics.precision import PRECISION_AT, Ranking

LEVELS = st.sampled_from([0.0, 1.0, 2.0])  # few, so that ties are frequent


def ranks_of(scores, owner, images=None, *, block=64):
    """The ranks of a matrix that is at hand."""
    owner = np.asarray(owner)
    pool = np.arange(len(owner)) if images is None else np.asarray(images)
    return metrics.retrieval_ranks(lambda rows, columns: scores[np.ix_(rows, columns)], owner, pool, block=block)


def metrics_of(ranks):
    return metrics.retrieval_metrics(metrics.query_metrics(ranks))


def expected_hits_by_orders(scores, owned, k):
    """Share of all orders that respect the scores in which an own candidate is among the first k."""
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    firsts = [next(place for place, index in enumerate(order) if owned[index]) + 1 for order in orders]
    return np.mean([first <= k for first in firsts]), np.mean(firsts)


@settings(max_examples=40, deadline=None)
@given(arrays(np.float64, (5, 4), elements=LEVELS), arrays(np.int64, 5, elements=st.integers(0, 3)), st.integers(1, 6))
def test_ranks_equal_the_mean_over_all_orders_of_ties(scores, owner, block):
    owner = np.unique(owner, return_inverse=True)[1]
    texts = np.unique(owner)
    scores = scores[:, : len(texts)]
    ranks = ranks_of(scores, owner, block=block)
    for direction, matrix, owned in (
        ("image_to_text", scores, owner[:, None] == texts),
        ("text_to_image", scores.T, texts[:, None] == owner),
    ):
        for k in (1, 2, 3):
            oracle = [expected_hits_by_orders(row, own, k) for row, own in zip(matrix, owned, strict=True)]
            np.testing.assert_allclose(metrics.hits(ranks[direction], k), [hit for hit, _ in oracle])
            np.testing.assert_allclose(metrics.expected_rank(ranks[direction]), [rank for _, rank in oracle])


def test_retrieval_of_a_hand_worked_matrix():
    scores = np.array([[0.9, 0.1, 0.2], [0.8, 0.5, 0.6], [0.1, 0.2, 0.3]])
    found = metrics_of(ranks_of(scores, np.arange(3)))
    # image to text: ranks 1, 3, 1. text to image: ranks 1, 1, 2.
    assert found["r@1_image_to_text"] == pytest.approx(2 / 3)
    assert found["r@5_image_to_text"] == 1
    assert found["median_rank_image_to_text"] == 1
    assert found["r@1_text_to_image"] == pytest.approx(2 / 3)
    assert set(found) == {
        f"{name}_{way}" for name in ("r@1", "r@5", "r@10", "median_rank") for way in ("image_to_text", "text_to_image")
    }


def test_a_text_of_two_images_asks_once_and_either_will_do():
    scores = np.array([[0.5, 0.9], [0.1, 0.7], [0.2, 0.4]])
    ranks = ranks_of(scores, [0, 1, 1])
    assert metrics.expected_rank(ranks["image_to_text"]).tolist() == [2, 1, 1]
    assert ranks["text_to_image"].query.tolist() == [0, 1]  # the first image that owns it
    assert metrics.expected_rank(ranks["text_to_image"]).tolist() == [1, 2]


def test_a_constant_score_gives_exactly_chance():
    n = 20
    found = metrics_of(ranks_of(np.zeros((n, n)), np.arange(n)))
    for way in ("image_to_text", "text_to_image"):
        assert found[f"r@1_{way}"] == pytest.approx(1 / n)
        assert found[f"r@10_{way}"] == pytest.approx(10 / n)
        assert found[f"median_rank_{way}"] == (n + 1) / 2


def test_chance_is_known_without_any_score():
    owner, pool = np.array([0, 0, 1, 2, 2, 2, 3]), np.array([6, 5, 1, 0, 3])
    scored = ranks_of(np.zeros((7, 4)), owner, pool)
    for way, ranks in metrics.chance_ranks(owner, pool).items():
        for name in ("query", "ahead", "tied", "own"):
            np.testing.assert_array_equal(getattr(ranks, name), getattr(scored[way], name), err_msg=f"{way} {name}")


@pytest.mark.parametrize("levels", [3, 0])  # nearly all tied, or nothing
@pytest.mark.parametrize("block", [1, 7, 32, 1000])
def test_ranks_do_not_depend_on_the_block_size(block, levels):
    rng = np.random.default_rng(0)
    owner = np.unique(rng.integers(0, 60, 90), return_inverse=True)[1]
    shape = (90, owner.max() + 1)
    scores = rng.integers(0, levels, shape).astype(float) if levels else rng.normal(size=shape)
    own = owner[:, None] == np.arange(shape[1])
    for way, matrix, owned in (("image_to_text", scores, own), ("text_to_image", scores.T, own.T)):
        found = ranks_of(scores, owner, block=block)[way]
        best = np.where(owned, matrix, -np.inf).max(1, keepdims=True)
        np.testing.assert_array_equal(found.ahead, (~owned & (matrix > best)).sum(1))
        np.testing.assert_array_equal(found.tied, (~owned & (matrix == best)).sum(1))
        np.testing.assert_array_equal(found.own, (owned & (matrix == best)).sum(1))


def test_twenty_thousand_images_are_ranked_in_the_memory_of_a_few_blocks():
    """A matrix of all scores would take 1.6 GB here, as float32."""
    n, block = 20_000, 4_000
    rng = np.random.default_rng(0)
    image, text = (rng.normal(size=(n, 4)).astype(np.float32) for _ in range(2))
    tracemalloc.start()
    try:
        ranks = metrics.retrieval_ranks(
            lambda rows, columns: image[rows] @ text[columns].T, np.arange(n), np.arange(n), block=block
        )
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 5 * 4 * block**2
    some = rng.integers(0, n, 20)
    scores = image[some] @ text.T
    own = np.take_along_axis(scores, some[:, None], 1)
    near = np.abs(scores - own) < 1e-5  # which may round differently in a matrix of another shape
    ahead = (scores > own).sum(1)
    assert (np.abs(ranks["image_to_text"].ahead[some] - ahead) < near.sum(1)).all()


def test_every_block_is_scored_once_and_those_of_own_pairs_once_more():
    asked = []

    def score_of(rows, columns):
        asked.append((rows[0], columns[0]))
        return np.zeros((len(rows), len(columns)))

    metrics.retrieval_ranks(score_of, np.arange(40), np.arange(40), block=10)
    assert len(asked) == 4 + 16
    assert len(set(asked)) == 16
    asked.clear()
    metrics.retrieval_ranks(score_of, np.arange(40), np.arange(40), block=40)
    assert asked == [(0, 0)]


def test_pools_score_each_image_among_its_pool_only():
    rng = np.random.default_rng(0)
    owner = np.unique(rng.integers(0, 40, 50), return_inverse=True)[1]
    scores = rng.normal(size=(50, owner.max() + 1))
    parts = list(metrics.pools(50, pool=20, seed=3))
    assert [len(part) for part in parts] == [20, 20]
    assert len(set(np.concatenate(parts).tolist())) == 40
    assert [part.tolist() for part in metrics.pools(50, pool=20, seed=3)] == [part.tolist() for part in parts]
    ranks = metrics.joined([ranks_of(scores, owner, part) for part in parts])
    asked = ranks["image_to_text"].query
    assert asked.tolist() == np.concatenate(parts).tolist()
    for place, image in enumerate(asked[:20]):
        own, rivals = owner[image], np.unique(owner[parts[0]])
        assert ranks["image_to_text"].ahead[place] == (scores[image, rivals] > scores[image, own]).sum()
    texts = ranks["text_to_image"].query
    assert set(owner[texts].tolist()) == set(owner[asked].tolist())


def test_queries_that_are_not_asked_enter_no_metric():
    nothing = np.full(3, np.nan)
    assert metrics.retrieval_metrics({"r@1_image_to_text": nothing, "rank_image_to_text": nothing}) == {}
    found = metrics.retrieval_metrics({"r@1_x": np.array([1, np.nan, 0]), "rank_x": np.array([np.nan, 4.0, 2.0])})
    assert found == {"r@1_x": 0.5, "median_rank_x": 3.0}


def test_retrieval_refuses_what_it_cannot_rank():
    with pytest.raises(ValueError, match="at least one image"):
        ranks_of(np.zeros((2, 2)), [0, 1], [])
    with pytest.raises(ValueError, match="finite"):
        ranks_of(np.array([[0, np.nan], [0, 0]]), [0, 1])
    with pytest.raises(ValueError, match="pool must"):
        list(metrics.pools(2, pool=3, seed=0))


# Class precision


def expected_precision(scores, relevant, k):
    """The mean over all orders that respect the scores."""
    orders = [
        order
        for order in itertools.permutations(range(len(scores)))
        if all(scores[a] >= scores[b] for a, b in itertools.pairwise(order))
    ]
    return np.mean([relevant[list(order[:k])].mean() for order in orders])


@settings(max_examples=30, deadline=None)
@given(
    arrays(np.float64, (2, 5), elements=LEVELS),
    arrays(np.bool_, (2, 5)),
    arrays(np.int64, 5, elements=st.integers(0, 2)).filter(np.any),
)
def test_precision_equals_the_mean_over_all_orders_of_ties(scores, relevant, counts):
    found = Ranking.of(scores, relevant).precision((1, 2, 3, 5, 6))
    assert found.keys() == {1, 2, 3, 5}  # six candidates there are not
    for k, values in found.items():
        oracle = [expected_precision(*query, k) for query in zip(scores, relevant, strict=True)]
        np.testing.assert_allclose(values, oracle, atol=1e-12)
    # candidates that a resample holds twice, or not at all, are as if written so
    drawn = np.repeat(np.arange(5), counts)
    again = Ranking.of(scores[:, drawn], relevant[:, drawn]).precision()
    resampled = Ranking.of(scores, relevant).precision(counts=counts)
    assert resampled.keys() == again.keys() == {k for k in PRECISION_AT if k <= len(drawn)}
    for k, values in again.items():
        np.testing.assert_allclose(resampled[k], values, atol=1e-12)


def test_precision_of_hand_worked_scores():
    scores = np.array([[0.9, 0.5, 0.5, 0.1]])
    relevant = np.array([[False, True, False, True]])
    found = Ranking.of(scores, relevant).precision((1, 2, 3, 4))
    # the second place is one of two that score the same, one of which is of the class
    assert {k: values[0] for k, values in found.items()} == {1: 0, 2: 0.25, 3: pytest.approx(1 / 3), 4: 0.5}
    with pytest.raises(ValueError, match="finite"):
        Ranking.of(np.array([[np.nan]]), np.array([[True]]))
