"""The losses of held-out pairs, and pictures of what their phrases find, while a run goes on.

Every process holds the same pairs and calls the same methods: each computes the part of its devices, and all get the
results. The text of reports is read, never shown; phrases that come with boxes are.
"""

import dataclasses
import functools
import sys
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, UInt8
from tqdm import tqdm

from plan_jax import forward
from plan_jax.batches import in_batches, on_mesh
from plan_jax.config import Config
from plan_jax.data.image import decode_image, model_input
from plan_jax.data.records import Record, open_split, read_manifest
from plan_jax.data.text import Tokenizer, split_sentences
from plan_jax.geometry import Letterbox
from plan_jax.hosts import is_first
from plan_jax.inference import prompted
from plan_jax.losses import plan_loss
from plan_jax.plots import Box, beside
from plan_jax.types import ImageFeatures, TextFeatures

SPLIT = "validation"
COLUMNS = ("token_ids", "word_ids", "token_mask", "sentence_ids")  # of PlanModel.encode_text


def open_validation(config: Config, tokenizer: Tokenizer, *, mesh: Mesh) -> "Validation | None":
    """Some pairs of `data.dir`, or None where `train.validate_every` is 0 or, told on stderr, where there are too few.

    They are `train.validation_pairs` of its validation split, evenly spaced, or all where there are fewer.

    Args:
        config: `data`, `train` and `evaluation` are used.
        tokenizer: of the run.
        mesh: over which all is computed.

    Raises:
        InputError: the data is damaged.
    """
    if not config.train.validate_every:
        return None
    records = _records(config)
    told = sum(any(map(str.isalnum, record.report)) for record in records)
    if told < 2:  # a contrastive loss compares
        if is_first():
            reason = f"{SPLIT} pairs must be at least 2 with a report, got {told} from {config.data.dir}"
            tqdm.write(f"no validation: {reason}", file=sys.stderr)
        return None
    return Validation(records, config, tokenizer, mesh=mesh)


@dataclasses.dataclass(frozen=True)
class _Query:
    """What is looked for in the film of a row, and what may be written and drawn beside it."""

    row: int
    text: str
    caption: str = ""
    boxes: tuple[Box, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Shown:
    """A query with its film, and where that went in the model's input."""

    query: _Query
    film: UInt8[np.ndarray, "H W"]
    letterbox: Letterbox


class Validation:
    """Pairs as evaluation sees them: the middle of the film, the whole report cut where the text encoder ends.

    Pairs without a word are added up to a multiple of the mesh's devices. They take no part in a loss, so that it is
    that of the same pairs on any number of devices.
    """

    def __init__(self, records: Sequence[Record], config: Config, tokenizer: Tokenizer, *, mesh: Mesh):
        self._mesh, missing = mesh, -len(records) % mesh.size
        queries = {query.row: query for query in _queries(records, config)[: config.train.pictures]}
        squares, self._shown = [], []
        bar = tqdm(records, desc="validation pairs", unit="image", delay=1.0, disable=not is_first())
        for row, record in enumerate(bar):
            film = decode_image(record.image, name=record.key)
            square, letterbox = model_input(film, config.data)
            squares.append(square)
            if row in queries:
                self._shown.append(_Shown(queries[row], film, letterbox))
        self._images = np.stack(squares + squares[-1:] * missing)[..., None]  # [P H W 1]
        self._texts = _columns([*(record.report for record in records), *[""] * missing], config, tokenizer)
        phrases = [shown.query.text for shown in self._shown]
        self._phrases = _columns(phrases, config, tokenizer) if phrases else ()

    def measure(self, variables: Any, config: Config) -> dict[str, float]:
        """validation_loss and its parts, validation_global_loss, ...: of all pairs as one batch, without dropout.

        Args:
            variables: parameters and batch statistics, on the mesh or alike on every process.
            config: with the alignment and the loss to be used.
        """
        images = self._encode_images(variables, self._images, config)
        texts = self._encode_texts(variables, self._texts, config)
        with jax.set_mesh(self._mesh):
            found = _losses(*on_mesh((images, texts), self._mesh), config=config)
        return {f"{SPLIT}_{name}": float(value) for name, value in found.items()}

    def pictures(self, variables: Any, config: Config) -> list[UInt8[np.ndarray, "h w 3"]]:
        """Films beside the map of a phrase, as RGB; fewer than `train.pictures` where there are no more.

        Pairs with true boxes come first, with one of their phrases as the caption. Of others the first sentence of the
        report is looked for, and not written.
        """
        if not self._shown:
            return []
        images = self._encode_images(variables, self._images[[shown.query.row for shown in self._shown]], config)
        texts = self._encode_texts(variables, self._phrases, config)
        maps, _ = self._in_batches(functools.partial(forward.ground, config=config), (images, texts), config)
        return [
            beside(
                shown.film,
                shown.letterbox.map_to_original(found.reshape(images.grid)),
                boxes=shown.query.boxes,
                caption=shown.query.caption,
            )
            for shown, found in zip(self._shown, maps, strict=True)
        ]

    def _encode_images(self, variables: Any, squares: np.ndarray, config: Config) -> ImageFeatures:
        return self._in_batches(functools.partial(forward.encode_image, variables, config=config), (squares,), config)

    def _encode_texts(self, variables: Any, columns: tuple[np.ndarray, ...], config: Config) -> TextFeatures:
        return self._in_batches(functools.partial(forward.encode_text, variables, config=config), columns, config)

    def _in_batches(self, function: Any, arguments: tuple, config: Config) -> Any:
        return in_batches(function, arguments, size=config.evaluation.batch_size, mesh=self._mesh)


@functools.partial(jax.jit, static_argnames="config")
def _losses(images: ImageFeatures, texts: TextFeatures, *, config: Config) -> dict[str, Array]:
    return plan_loss(images, texts, config=config)[1]


def _records(config: Config) -> list[Record]:
    """The chosen records; none where there is no such split."""
    if SPLIT not in read_manifest(config.data.dir)["splits"]:
        return []
    split = open_split(config.data.dir, SPLIT)
    count = min(config.train.validation_pairs, len(split))
    return [split[number * len(split) // count] for number in range(count)]


def _columns(texts: Sequence[str], config: Config, tokenizer: Tokenizer) -> tuple[np.ndarray, ...]:
    """Tokens of texts, each [R T]."""
    limits = {"max_tokens": config.data.max_tokens, "max_words": config.data.max_words}
    tokens = [tokenizer.encode(text, **limits, truncate=True) for text in texts]
    return tuple(np.stack([getattr(of, name) for of in tokens]) for name in COLUMNS)


def _queries(records: Sequence[Record], config: Config) -> list[_Query]:
    """One of every record that can be drawn; those with boxes first."""

    def found() -> Iterator[_Query]:
        for row, record in enumerate(records):
            placed = next((of for of in record.phrases if of.boxes and any(map(str.isalnum, of.text))), None)
            if placed is not None:
                asked = prompted(placed.text, prompt=config.evaluation.prompt)
                yield _Query(row, asked, caption=placed.text, boxes=placed.boxes)
            elif sentences := split_sentences(record.report):
                yield _Query(row, sentences[0])

    return sorted(found(), key=lambda query: not query.boxes)
