"""Which steps are left out, and what is remembered of the losses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax.config import TrainConfig
from plan_jax.train.skip import FIRST, RECENT, all_finite, judge, no_losses, where_taken

CONFIG = TrainConfig()
judge_one = jax.jit(judge, static_argnames="config")


def taken_of(losses, config=CONFIG, finite=()):
    """Which of these steps are taken, and the record after them; the numbers of the steps in `finite` are not."""
    record, taken = no_losses(), []
    for step, loss in enumerate(losses):
        ok, record = judge_one(record, jnp.float32(loss), jnp.asarray(step not in finite), config=config)
        taken.append(bool(ok))
    return taken, record


def noisy(count: int) -> np.ndarray:
    return 5 + 0.1 * np.random.default_rng(0).standard_normal(count)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_loss_that_is_not_finite_is_left_out_and_forgotten(bad):
    losses = noisy(10)
    taken, record = taken_of([*losses[:5], bad, *losses[5:]])
    assert taken == [True] * 5 + [False] + [True] * 5
    assert int(record.skipped) == 1
    _, without = taken_of(losses)
    np.testing.assert_allclose([record.mean, record.variance], [without.mean, without.variance], rtol=1e-6)


def test_a_step_whose_other_numbers_are_not_finite_is_left_out():
    assert taken_of([5.0, 5.0, 5.0], finite={1})[0] == [True, False, True]


def test_mean_and_variance_of_the_first_losses_are_numpy_s():
    losses = noisy(RECENT)
    _, record = taken_of(losses)
    np.testing.assert_allclose([record.mean, record.variance], [losses.mean(), losses.var()], rtol=1e-4)


def test_a_spike_is_left_out_but_no_step_within_the_noise():
    losses = noisy(3 * RECENT)
    assert all(taken_of(losses)[0])
    losses[200] = 5 + 0.1 * 15
    taken, record = taken_of(losses)
    assert [step for step, ok in enumerate(taken) if not ok] == [200]
    assert (int(record.skipped), int(record.in_a_row)) == (1, 0)


def test_no_spike_is_looked_for_where_there_is_too_little_to_compare_with_or_none_is_wanted():
    losses = noisy(FIRST + 20)
    losses[FIRST - 1] = 50.0
    assert all(taken_of(losses)[0])
    losses = noisy(FIRST + 20)
    losses[FIRST + 10] = 50.0
    assert not all(taken_of(losses)[0])
    assert all(taken_of(losses, dataclasses.replace(TrainConfig(), spike=0.0))[0])


def test_a_lasting_rise_is_a_spike_for_a_few_steps_only():
    taken, record = taken_of([*noisy(150), *(noisy(60) + 4)])
    left_out = [step for step, ok in enumerate(taken) if not ok]
    assert left_out == list(range(150, 150 + len(left_out)))
    assert 0 < len(left_out) <= TrainConfig().skip_limit
    assert int(record.in_a_row) == 0


def test_steps_in_a_row_are_counted_until_one_is_taken():
    losses = [5.0, np.nan, np.nan, np.nan]
    _, record = taken_of(losses)
    assert (int(record.skipped), int(record.in_a_row)) == (3, 3)
    _, record = taken_of([*losses, 5.0])
    assert (int(record.skipped), int(record.in_a_row)) == (3, 0)


def test_what_is_left_out_keeps_every_bit():
    old, new = {"x": jnp.array([1.0, -0.0])}, {"x": jnp.array([jnp.nan, jnp.inf])}
    assert np.asarray(where_taken(jnp.asarray(False), new, old)["x"]).tobytes() == np.asarray(old["x"]).tobytes()
    assert np.asarray(where_taken(jnp.asarray(True), new, old)["x"]).tobytes() == np.asarray(new["x"]).tobytes()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_number_of_a_tree_that_is_not_finite_is_found(bad):
    tree = {"mean": jnp.ones((2, 3)), "norm": jnp.float32(1e38)}
    assert bool(all_finite(tree))
    assert not bool(all_finite(tree | {"mean": tree["mean"].at[1, 2].set(bad)}))
    assert not bool(all_finite(tree | {"norm": jnp.float32(bad)}))
