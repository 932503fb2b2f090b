"""ArrayRecord to `Batch`: shuffled, sharded by process, deterministic, resumable (Grain).

The position of a run is one number, the index of the next sample over all processes; it does not depend on the number
of workers or processes, so a run may continue with others.
"""

from collections.abc import Iterator

import grain
import jax
import numpy as np
from absl import flags
from grain.experimental import ElasticIterator

from plan_jax.config import DataConfig
from plan_jax.data.image import decode_image, letterbox_image
from plan_jax.data.processes import follow_main_process
from plan_jax.data.records import Record, Split
from plan_jax.data.text import Tokenizer, split_sentences
from plan_jax.errors import InputError
from plan_jax.types import Batch

READ_AHEAD = 8  # batches that the threads of a process, or of each worker, hold ready


class TrainBatches:
    """Endless batches of this process's share of a split, reshuffled every epoch.

    `state` is what a checkpoint stores; `seek` continues from its position.
    """

    def __init__(self, split: Split, tokenizer: Tokenizer, config: DataConfig, *, seed: int):
        shards, self._workers = jax.process_count(), config.workers
        if len(split) < config.batch_size or config.batch_size % shards:
            raise InputError(
                f"data.batch_size must be a multiple of {shards} (processes) and at most {len(split)} (records), "
                f"got {config.batch_size}; change data.batch_size"
            )
        samples = (
            grain.MapDataset.source(_Indexed(split))
            .seed(seed)
            .shuffle()
            .repeat()
            .random_map(_Example(tokenizer, config))
        )
        if not flags.FLAGS.is_parsed():  # Grain's workers read flags that only absl's own main would parse
            flags.FLAGS.mark_as_parsed()
        workers = grain.MultiprocessingOptions(num_workers=config.workers) if config.workers else None
        self._iterator = ElasticIterator(
            samples,
            config.batch_size,
            grain.sharding.ShardOptions(shard_index=jax.process_index(), shard_count=shards),
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
        return {"position": position, "workers": self._workers, "processes": jax.process_count()}

    def seek(self, position: int) -> None:
        """Continues from a stored position."""
        self._iterator.set_state({"global_next_index": position})

    def close(self) -> None:
        """Stops the reading threads and workers."""
        self._iterator.close()


def load_image(record: Record, size: int) -> np.ndarray:
    """A record's image in the model's square: [size size 1] uint8."""
    square, _ = letterbox_image(decode_image(record.image, name=record.key), size)
    return square[..., None]


class _Indexed:
    """A split whose items know their index."""

    def __init__(self, split: Split):
        self._split = split

    def __len__(self) -> int:
        return len(self._split)

    def __getitem__(self, index: int) -> tuple[int, Record]:
        return index, self._split[index]


class _Example(grain.transforms.RandomMap):
    """A record to the arrays of one batch row."""

    def __init__(self, tokenizer: Tokenizer, config: DataConfig):
        self._tokenizer, self._config = tokenizer, config

    def __setstate__(self, state: dict) -> None:
        vars(self).update(state)
        follow_main_process()  # Grain offers no other place to run code when a worker starts

    def random_map(self, element: tuple[int, Record], rng: np.random.Generator) -> dict[str, np.ndarray]:
        index, record = element
        text = record.report
        if self._config.sentences == "shuffled":
            sentences = split_sentences(text)
            text = " ".join(sentences[i] for i in rng.permutation(len(sentences)))
        tokens = self._tokenizer.encode(
            text, max_tokens=self._config.max_tokens, max_words=self._config.max_words, truncate=True
        )
        return {
            "image": load_image(record, self._config.image_size),
            "token_ids": tokens.token_ids,
            "word_ids": tokens.word_ids,
            "token_mask": tokens.token_mask,
            "sentence_ids": tokens.sentence_ids,
            "record": np.array(index, np.int32),
            "words_cut": np.array(tokens.cut, np.int32),
        }
