"""ArrayRecord to `Batch`: shuffled, mixed, sharded by process, deterministic, resumable (Grain).

The position of a run is one number, the index of the next sample over all processes; it does not depend on the number
of workers or processes, so a run may continue with others. What a sample is, random numbers included, depends on the
seed and that index alone.
"""

from collections.abc import Iterator, Sequence

import grain
import jax
import numpy as np
from absl import flags
from grain.experimental import ElasticIterator

from plan_jax.config import DataConfig
from plan_jax.data.image import decode_image, letterbox_image
from plan_jax.data.mixture import Mixture
from plan_jax.data.processes import follow_main_process
from plan_jax.data.records import Record, Split
from plan_jax.data.step_text import step_text
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError
from plan_jax.geometry import loaded_side
from plan_jax.types import Batch

READ_AHEAD = 4  # batches that wait in memory in each reading process: Grain counts whole batches, not samples


class TrainBatches:
    """Endless batches of this process's share of a split or mixture, each data set reshuffled every epoch of its own.

    `state` is what a checkpoint stores; `seek` continues from its position. `process` is (index, count), JAX's own
    where it is not given. Of every batch, process i has the rows `rows[i]`, or else i, i + count, i + 2 * count ...

    Raises:
        InputError: the batch cannot be cut into equal parts, or would hold all of a data set and more.
    """

    def __init__(
        self,
        split: Split | Mixture,
        tokenizer: Tokenizer,
        config: DataConfig,
        *,
        seed: int,
        process: tuple[int, int] | None = None,
        rows: Sequence[Sequence[int]] | None = None,
    ):
        index, self._processes = process or (jax.process_index(), jax.process_count())
        self._workers = config.workers
        _check_batch_size(split, config.batch_size, self._processes)
        if not flags.FLAGS.is_parsed():  # Grain's workers read flags that only absl's own main would parse
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(num_workers=config.workers) if config.workers else None
        examples = _shuffled(split, seed).random_map(_Example(tokenizer, config))
        self._iterator = ElasticIterator(
            examples if rows is None or len(rows) == 1 else _Dealt(examples, rows),
            config.batch_size,
            grain.sharding.ShardOptions(shard_index=index, shard_count=self._processes),
            read_options=grain.ReadOptions(num_threads=2, prefetch_buffer_size=READ_AHEAD),
            multiprocessing_options=workers,
        )

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        return Batch(**next(self._iterator))

    @property
    def state(self) -> dict[str, int]:
        """For a checkpoint: the index of the next sample over all processes and epochs, and who is reading."""
        position = self._iterator.get_state()["global_next_index"]
        return {"position": position, "workers": self._workers, "processes": self._processes}

    def seek(self, position: int) -> None:
        """Continues from a stored position."""
        self._iterator.set_state({"global_next_index": position})

    def close(self) -> None:
        """Stops the reading threads and workers."""
        self._iterator.close()


class _Dealt(grain.MapDataset):
    """The same samples in an order in which every process reads, of each batch, the rows that its devices hold.

    Process i of n is given the indices i, i + n, i + 2n ... (ElasticIterator); what a sample is stays as it was.
    """

    def __init__(self, parent: grain.MapDataset, rows: Sequence[Sequence[int]]):
        super().__init__(parent)
        self._order = np.array(rows).T.ravel()  # place in this order -> row of the batch

    def __len__(self) -> int:
        return len(self._parent)

    def __getitem__(self, index):
        if isinstance(index, slice):
            return self.slice(index)
        place = index % len(self._order)
        return self._parent[index - place + int(self._order[place])]


def load_image(record: Record, config: DataConfig) -> np.ndarray:
    """A record's image in the square of which training crops what the model sees: [S S 1] uint8, S = `loaded_side`."""
    side = loaded_side(config.image_size, config.crop)
    square, _ = letterbox_image(decode_image(record.image, name=record.key), side, fit=config.fit_side)
    return square[..., None]


def _check_batch_size(split: Split | Mixture, size: int, processes: int) -> None:
    if len(split) < size or size % processes:
        raise InputError(
            f"data.batch_size must be a multiple of {processes} (processes) and at most {len(split)} (records), "
            f"got {size}; change data.batch_size"
        )
    if isinstance(split, Mixture):
        split.check_batch_size(size)


def _shuffled(split: Split | Mixture, seed: int) -> grain.MapDataset:
    """(index, record) without end; of a mixture, every data set in an order of its own and as often as it weighs."""
    if not isinstance(split, Mixture):
        return _repeated(split, range(len(split)), seed)
    seeds = (seed, *map(int, np.random.SeedSequence(seed).generate_state(len(split.ranges) - 1)))
    sources = [_repeated(split, *each) for each in zip(split.ranges, seeds, strict=True)]
    return grain.MapDataset.mix(sources, split.weights)


def _repeated(split: Split | Mixture, indices: range, seed: int) -> grain.MapDataset:
    return grain.MapDataset.source(_Indexed(split, indices)).seed(seed).shuffle().repeat()


class _Indexed:
    """Some records of a split or mixture, each with its index there."""

    def __init__(self, split: Split | Mixture, indices: range):
        self._split, self._indices = split, indices

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> tuple[int, Record]:
        there = self._indices[index]
        return there, self._split[there]


class _Example(grain.transforms.RandomMap):
    """A record to the arrays of one batch row."""

    def __init__(self, tokenizer: Tokenizer, config: DataConfig):
        self._tokenizer, self._config = tokenizer, config

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        follow_main_process()  # Grain offers no other place to run code when a worker starts

    def random_map(self, element: tuple[int, Record], rng: np.random.Generator) -> dict[str, np.ndarray]:
        index, record = element
        tokens = self._tokenizer.encode(
            step_text(record, self._config, rng),
            max_tokens=self._config.max_tokens,
            max_words=self._config.max_words,
            truncate=True,
        )
        return {
            "image": load_image(record, self._config),
            "token_ids": tokens.token_ids,
            "word_ids": tokens.word_ids,
            "token_mask": tokens.token_mask,
            "sentence_ids": tokens.sentence_ids,
            "record": np.array(index, np.int32),
            "words_cut": np.array(tokens.cut, np.int32),
        }
