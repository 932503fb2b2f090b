import dataclasses
import pickle
from collections import Counter

import numpy as np
import pytest

from plan_jax.config import DataConfig
from plan_jax.data.mixture import Mixture, open_training
from plan_jax.data.pipeline import TrainBatches
from plan_jax.data.records import Split, open_split
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError

SMALL = DataConfig(batch_size=12, image_size=32, max_tokens=32, max_words=24)


@pytest.fixture
def data(phantom_data, other_data) -> DataConfig:
    """132 records, and 15 others, from which every third sample comes."""
    return dataclasses.replace(SMALL, dir=str(phantom_data), mixture=((str(other_data), 0.5),))


@pytest.fixture
def drawn(data):
    """Takes the indices of the first samples."""

    def take(count: int, *, seed: int = 0, source=None, **fields) -> list[int]:
        config = dataclasses.replace(data, **fields)
        tokenizer = Tokenizer.load(f"{config.dir}/tokenizer.json")
        batches = TrainBatches(source or open_training(config), tokenizer, config, seed=seed)
        try:
            found = [next(batches).record for _ in range(count // config.batch_size)]
        finally:
            batches.close()
        return [int(index) for index in np.concatenate(found)]

    return take


def test_without_a_mixture_it_is_the_split_itself(phantom_data):
    assert isinstance(open_training(DataConfig(dir=str(phantom_data))), Split)


def test_an_index_is_that_into_the_concatenation_and_a_key_names_the_data_set_too(data, phantom_data, other_data):
    first, second = open_split(phantom_data, "train"), open_split(other_data, "train")
    assert first[3].key.startswith("phantom-")
    mixture = pickle.loads(pickle.dumps(open_training(data)))  # noqa: S301 - as a worker gets it
    assert isinstance(mixture, Mixture)
    assert len(mixture) == len(first) + len(second) == 147
    for index, split, folder in ((0, first, phantom_data), (131, first, phantom_data), (132, second, other_data)):
        record = split[index % 132]
        assert mixture[index] == dataclasses.replace(record, key=f"{folder}:{record.key}")
    assert mixture[146].image == second[14].image
    for index in (-1, 147):
        with pytest.raises(IndexError, match=f"got {index}"):
            mixture[index]


def test_every_data_set_is_drawn_as_often_as_it_weighs_and_goes_through_all_its_records_each_time(drawn):
    found = drawn(600)
    ours, theirs = [i for i in found if i < 132], [i for i in found if i >= 132]
    assert (len(ours), len(theirs)) == (400, 200)
    assert all(sum(i >= 132 for i in found[start : start + 12]) == 4 for start in range(0, 600, 12))
    for indices, size in ((ours, 132), (theirs, 15)):
        epochs = [indices[start : start + size] for start in range(0, len(indices) - size + 1, size)]
        assert all(set(epoch) == set(epochs[0]) and len(set(epoch)) == size for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) == len(epochs) > 2
    assert max(Counter(theirs).values()) == 14


def test_weights_of_any_scale_are_shares(drawn, data, other_data):
    shares = [sum(i >= 132 for i in drawn(240, batch_size=4, mixture=((str(other_data), w),))) for w in (0.1, 3.0)]
    assert shares == [pytest.approx(240 / 11, abs=1), pytest.approx(180, abs=1)]


def test_data_sets_of_one_size_have_orders_of_their_own_and_other_seeds_other_ones(drawn, other_data):
    split = open_split(other_data, "train")
    twice = Mixture([split, split], [1.0, 1.0])

    def orders(seed: int) -> list[list[int]]:
        found = drawn(30, source=twice, seed=seed, batch_size=10)
        return [[i % 15 for i in found if i // 15 == number] for number in (0, 1)]

    seen = [*orders(0), *orders(1)]
    assert all(sorted(each) == list(range(15)) for each in seen)
    assert len({tuple(each) for each in seen}) == 4
    assert orders(1) == seen[2:]


def test_the_first_data_set_keeps_the_order_that_it_has_alone(drawn):
    assert [i for i in drawn(180) if i < 132][:120] == drawn(120, mixture=())


@pytest.mark.parametrize("again", ["dir", "mixture"])
def test_a_folder_named_twice_is_refused(again, data):
    folder = data.dir + "/." if again == "dir" else data.mixture[0][0]
    twice = dataclasses.replace(data, mixture=(*data.mixture, (folder, 1.0)))
    with pytest.raises(InputError, match=r"config\.data\.mixture must name folders other than data\.dir.* 2 times"):
        open_training(twice)


def test_a_folder_that_is_no_build_is_refused_by_name(data, tmp_path):
    with pytest.raises(InputError, match=f"data directory must .*{tmp_path}"):
        open_training(dataclasses.replace(data, mixture=((str(tmp_path), 1.0),)))


def test_a_data_set_smaller_than_its_part_of_a_batch_is_refused(drawn, data):
    ((folder, _),) = data.mixture
    assert len(drawn(30, batch_size=30, mixture=((folder, 1.0),))) == 30
    with pytest.raises(InputError, match=rf"{folder} must have at least the 16 records that a batch of 32 .*got 15"):
        drawn(32, batch_size=32, mixture=((folder, 1.0),))
