import dataclasses
import re
import time
from collections import Counter

import numpy as np
import pytest

from plan_jax.config import DataConfig
from plan_jax.data.image import decode_image, letterbox_image
from plan_jax.data.mixture import Mixture
from plan_jax.data.pipeline import READ_AHEAD, TrainBatches
from plan_jax.data.records import Record, open_split
from plan_jax.data.text import Tokenizer, split_sentences
from plan_jax.errors import InputError

# The train split has 132 records: 11 batches of 12 are an epoch.
EPOCH = 11
SMALL = DataConfig(batch_size=12, image_size=48, crop=1.0, max_tokens=80, max_words=64)


class Records(list):
    """Records in memory, read like a split; counts how often one was read."""

    reads = 0

    def __getitem__(self, index: int) -> Record:
        self.reads += 1
        return super().__getitem__(index)


@pytest.fixture(scope="module")
def split(phantom_data):
    found = open_split(phantom_data, "train")
    assert len(found) == EPOCH * SMALL.batch_size
    return found


@pytest.fixture(scope="module")
def tokenizer(phantom_data) -> Tokenizer:
    return Tokenizer.load(phantom_data / "tokenizer.json")


@pytest.fixture(scope="module")
def mixture(split, other_data) -> Mixture:
    """The split with a smaller one, from which every third record comes."""
    return Mixture([split, open_split(other_data, "train")], [1.0, 0.5])


@pytest.fixture
def batches(split, tokenizer):
    """Makes batches of the train split; closed after the test."""
    made = []

    def make(seed: int = 0, *, source=split, process=None, **fields) -> TrainBatches:
        config = dataclasses.replace(SMALL, **fields)
        made.append(TrainBatches(source, tokenizer, config, seed=seed, process=process))
        return made[-1]

    yield make
    for one in made:
        one.close()


def take(source: TrainBatches, count: int) -> list[dict[str, np.ndarray]]:
    taken = [next(source) for _ in range(count)]
    return [{f.name: np.asarray(getattr(batch, f.name)) for f in dataclasses.fields(batch)} for batch in taken]


def assert_same(one: list[dict], other: list[dict]) -> None:
    assert len(one) == len(other)
    for a, b in zip(one, other, strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name], err_msg=name)


def order(found: list[dict]) -> list[int]:
    return [int(index) for batch in found for index in batch["record"]]


def words_of(text: str) -> Counter:
    return Counter(re.findall(r"[a-z0-9]+", text.lower()))


def decoded(row: dict, index: int, tokenizer: Tokenizer) -> Counter:
    """The words of one row, put together again from its pieces."""
    names = {number: piece for piece, number in tokenizer._vocab.items()}
    words: dict[int, str] = {}
    for piece, word in zip(row["token_ids"][index], row["word_ids"][index], strict=True):
        if word >= 0:
            words[word] = words.get(word, "") + names[int(piece)].removeprefix("##")
    return Counter(words.values())


def test_a_batch_has_the_shapes_and_types_that_the_model_reads(batches):
    (batch,) = take(batches(), 1)
    shapes = {name: (array.shape, array.dtype.name) for name, array in batch.items()}
    assert shapes == {
        "image": ((12, 48, 48, 1), "uint8"),
        "token_ids": ((12, 80), "int32"),
        "word_ids": ((12, 80), "int32"),
        "token_mask": ((12, 80), "bool"),
        "sentence_ids": ((12, 80), "int32"),
        "record": ((12,), "int32"),
        "words_cut": ((12,), "int32"),
    }
    assert batch["token_mask"].any(axis=1).all()
    assert (batch["word_ids"].max(axis=1) > 0).all()
    assert ((batch["word_ids"] < 0) | batch["token_mask"]).all()


def test_a_row_holds_the_image_and_the_report_of_its_record(batches, split, tokenizer):
    (batch,) = take(batches(), 1)
    for row, index in enumerate(batch["record"]):
        record = split[int(index)]
        expected, _ = letterbox_image(decode_image(record.image, name=record.key), 48)
        np.testing.assert_array_equal(batch["image"][row, ..., 0], expected)
        assert decoded(batch, row, tokenizer) == words_of(record.report)


@pytest.mark.parametrize("fit", ["long", "short"])
def test_the_square_that_is_loaded_is_larger_than_what_the_model_sees_by_the_crop(fit, batches, split):
    (batch,) = take(batches(crop=0.75, fit_side=fit), 1)
    for image, index in zip(batch["image"], batch["record"], strict=True):
        record = split[int(index)]
        expected, _ = letterbox_image(decode_image(record.image, name=record.key), 64, fit=fit)
        np.testing.assert_array_equal(image[..., 0], expected)


def test_the_same_seed_gives_the_same_batches(batches):
    assert_same(take(batches(5), 3), take(batches(5), 3))


def test_another_seed_gives_another_order(batches):
    assert order(take(batches(5), 2)) != order(take(batches(6), 2))


def test_every_record_comes_once_per_epoch_and_in_another_order_each_epoch(batches):
    both = order(take(batches(), 2 * EPOCH))
    first, second = both[: len(both) // 2], both[len(both) // 2 :]
    assert sorted(first) == sorted(second) == list(range(132))
    assert first != second
    assert first != sorted(first)


def test_an_epoch_that_ends_within_a_batch_still_shows_every_record_once(batches):
    found = order(take(batches(batch_size=50), 8))
    assert [sorted(found[start : start + 132]) for start in (0, 132, 264)] == [list(range(132))] * 3


def test_sentences_are_shuffled_anew_in_every_epoch_and_keep_the_words_of_the_report(batches, split, tokenizer):
    found = take(batches(), 2 * EPOCH)
    rows = {(n // EPOCH, int(i)): (b, row) for n, b in enumerate(found) for row, i in enumerate(b["record"])}
    moved = 0
    for index in range(len(split)):
        (one, i), (other, j) = rows[0, index], rows[1, index]
        assert decoded(one, i, tokenizer) == decoded(other, j, tokenizer) == words_of(split[index].report)
        moved += (one["token_ids"][i] != other["token_ids"][j]).any()
    many = sum(len(split_sentences(split[index].report)) > 2 for index in range(len(split)))
    assert many > 50
    assert moved > many / 2  # three sentences keep their order in one of six draws


def test_sentences_can_keep_their_order(batches, split, tokenizer):
    (batch,) = take(batches(sentences="all"), 1)
    for row, index in enumerate(batch["record"]):
        report = tokenizer.encode(split[int(index)].report, max_tokens=80, max_words=64, truncate=True)
        np.testing.assert_array_equal(batch["token_ids"][row], report.token_ids)


def test_a_long_report_is_cut_after_a_word(batches, split, tokenizer):
    (batch,) = take(batches(max_tokens=24, max_words=6, sentences="all"), 1)
    for row, index in enumerate(batch["record"]):
        words = re.findall(r"[a-z0-9]+", split[int(index)].report.lower())
        assert decoded(batch, row, tokenizer) == Counter(words[:6])
    assert (batch["word_ids"].max(axis=1) == 5).any()


@pytest.mark.parametrize("count", [1, EPOCH - 1, EPOCH, EPOCH + 2])
def test_seeking_a_stored_position_continues_exactly(batches, count):
    source = batches(3)
    take(source, count)
    position = source.state["position"]
    assert position == count * 12
    other = batches(3)
    other.seek(position)
    assert_same(take(other, 3), take(source, 3))


def test_seeking_back_repeats(batches):
    source = batches()
    first = take(source, 4)
    source.seek(12)
    assert_same(take(source, 3), first[1:])


def test_the_position_is_what_was_handed_out_and_not_what_was_read_ahead(batches):
    source = batches()
    seen = [source.state["position"]]
    for _ in range(3):
        take(source, 1)
        seen.append(source.state["position"])
    assert seen == [0, 12, 24, 36]


def whole(parts: list[list[dict]]) -> list[dict]:
    """The batches of all processes: row i of the whole is one of process i modulo their count."""
    steps = zip(*parts, strict=True)
    return [
        {
            name: np.stack([part[name] for part in step], axis=1).reshape(-1, *step[0][name].shape[1:])
            for name in step[0]
        }
        for step in steps
    ]


@pytest.mark.parametrize("mixed", [False, True])
@pytest.mark.parametrize("sentences", ["shuffled", "some"])
def test_a_run_of_8_processes_continues_on_2_with_the_batches_of_one(batches, mixture, split, mixed, sentences):
    """3 batches on 8 processes, 7 on 2, over the end of an epoch, beside one process that is never stopped."""
    fields = {"source": mixture if mixed else split, "batch_size": 16, "sentences": sentences}
    expected = take(batches(4, **fields), 10)
    found, position = [], 0
    for processes, steps in ((8, 3), (2, 7)):
        sources = [batches(4, process=(index, processes), **fields) for index in range(processes)]
        for source in sources:
            source.seek(position)
        found += whole([take(source, steps) for source in sources])
        states = [source.state for source in sources]
        assert all(state == {"position": len(found) * 16, "workers": 0, "processes": processes} for state in states)
        position = states[-1]["position"]
    assert_same(found, expected)
    if not mixed:
        assert sorted(order(found)[:132]) == list(range(132))


def test_a_run_continues_with_another_number_of_workers_and_processes(batches, mixture):
    """Batches are those of one process without workers, whoever reads: process 1 of 2, then the only one."""
    expected = take(batches(7, source=mixture), 7)
    found = take(batches(7, source=mixture), 2)
    second = batches(7, source=mixture, workers=2, process=(1, 2))
    second.seek(24)
    rows = [{name: array[1::2] for name, array in batch.items()} for batch in expected[2:5]]
    assert_same(take(second, 3), rows)
    assert second.state == {"position": 60, "workers": 2, "processes": 2}
    third = batches(7, source=mixture, workers=1)
    third.seek(second.state["position"])
    assert_same(found + take(third, 2), expected[:2] + expected[5:])


@pytest.mark.parametrize(("size", "processes"), [(12, 5), (12, 8), (1, 2)])
def test_a_batch_that_cannot_be_cut_into_equal_parts_is_refused_with_both_numbers(batches, size, processes):
    with pytest.raises(InputError, match=rf"must be a multiple of {processes} \(processes\).*got {size}"):
        batches(batch_size=size, process=(0, processes))


def test_the_threads_read_a_few_batches_ahead_and_no_more(batches, split):
    records = Records([split[index] for index in range(12)])
    source = batches(source=records)
    take(source, 1)
    seen = -1
    while records.reads > seen:  # until they rest
        seen = records.reads
        time.sleep(0.2)
    assert seen <= (READ_AHEAD + 1) * 12


def test_a_batch_larger_than_the_split_is_refused_with_both_numbers(batches):
    with pytest.raises(InputError, match=r"at most 132 .*got 133"):
        batches(batch_size=133)


def test_an_image_that_is_damaged_is_named_by_its_record(batches, split):
    whole = [split[index] for index in range(3)]
    damaged = Record("film-13", "p", "s", whole[0].image[:200], sections=(("findings", "a nodule"),))
    with pytest.raises(InputError, match="film-13"):
        take(batches(source=Records([*whole, damaged]), batch_size=4), 1)


def test_a_report_without_words_gives_a_row_without_words(batches, split):
    silent = dataclasses.replace(split[0], sections=(("findings", "... \n"),))
    (batch,) = take(batches(source=Records([silent]), batch_size=1), 1)
    assert (batch["word_ids"] == -1).all()
    assert batch["token_mask"].sum() >= 2
