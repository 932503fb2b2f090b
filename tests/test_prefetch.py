import jax
import numpy as np
import pytest

from plan_jax.config import DataConfig
from plan_jax.data.pipeline import TrainBatches
from plan_jax.data.records import open_split
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError
from plan_jax.sharding import make_mesh, over_data
from plan_jax.train.prefetch import Prefetch
from plan_jax.types import Batch


class Reader:
    """Batch n holds n everywhere; some raise instead."""

    def __init__(self, failing: dict[int, BaseException] | None = None):
        self.position, self._failing = 0, failing or {}

    def __next__(self) -> Batch:
        number, self.position = self.position, self.position + 1
        if number in self._failing:
            raise self._failing[number]
        row = np.full((8, 4), number, np.int32)
        image, rows = np.full((8, 2, 2, 1), number, np.uint8), np.arange(8, dtype=np.int32)
        return Batch(image, row, row, row > 0, row, rows, rows)

    @property
    def state(self) -> dict[str, int]:
        return {"position": self.position, "workers": 0, "processes": 1}


def number_of(batch: Batch) -> int:
    (number,) = set(np.asarray(batch.token_ids).ravel().tolist())
    return number


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_batches_come_in_order_on_the_device_and_the_state_is_that_of_the_last_one_handed_out(ahead):
    reader = Reader()
    batches = Prefetch(reader, ahead=ahead)
    assert batches.state == reader.state
    for step in range(7):
        batch = next(batches)
        assert number_of(batch) == step
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(batch))
        assert batches.state == {"position": step + 1, "workers": 0, "processes": 1}
        assert reader.position == step + 1 + ahead


@pytest.mark.parametrize("ahead", [0, 1, 3, 9])
def test_an_error_of_the_reader_comes_when_its_batch_is_due_and_not_before(ahead):
    reader = Reader({4: InputError("film-13 is damaged")})
    batches = Prefetch(reader, ahead=ahead)
    assert [number_of(next(batches)) for _ in range(4)] == [0, 1, 2, 3]
    with pytest.raises(InputError, match="film-13"):
        next(batches)
    assert batches.state["position"] == 4
    assert reader.position == 5  # nothing is read beyond it


def test_ctrl_c_while_reading_ahead_interrupts_at_once_and_the_state_stays():
    batches = Prefetch(Reader({4: KeyboardInterrupt()}), ahead=2)
    assert [number_of(next(batches)) for _ in range(2)] == [0, 1]
    with pytest.raises(KeyboardInterrupt):
        next(batches)
    assert batches.state["position"] == 2


def test_with_a_sharding_every_leaf_lies_on_all_devices():
    sharding = over_data(make_mesh())
    batch = next(Prefetch(Reader(), ahead=1, sharding=sharding))
    assert number_of(batch) == 0
    for leaf in jax.tree.leaves(batch):
        assert leaf.sharding.is_equivalent_to(sharding, leaf.ndim)
        assert [shard.data.shape[0] for shard in leaf.addressable_shards] == [1] * 8
    np.testing.assert_array_equal(batch.record, np.arange(8))


def test_the_state_while_batches_are_ahead_continues_exactly(phantom_data):
    split, tokenizer = open_split(phantom_data, "train"), Tokenizer.load(phantom_data / "tokenizer.json")
    config = DataConfig(batch_size=12, image_size=32, max_tokens=32, max_words=24)

    def run(ahead: int, position: int, count: int) -> tuple[list[Batch], int]:
        source = TrainBatches(split, tokenizer, config, seed=2)
        source.seek(position)
        batches = Prefetch(source, ahead=ahead)
        taken = [next(batches) for _ in range(count)]
        source.close()
        return taken, batches.state["position"]

    expected, _ = run(0, 0, 6)
    first, position = run(3, 0, 2)
    second, _ = run(1, position, 4)
    for one, other in zip(first + second, expected, strict=True):
        jax.tree.map(np.testing.assert_array_equal, one, other)
