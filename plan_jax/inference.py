"""A trained model in use: `Plan.load(run).ground(image, phrase)`. The run directory is its only input."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from plan_jax import forward
from plan_jax.alignment.reference import compete
from plan_jax.batches import in_batches, over_pairs
from plan_jax.checkpoint import chosen_step, load_variables, saved_steps
from plan_jax.config import Config, load_config
from plan_jax.data.image import model_input, read_image
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError
from plan_jax.model import initial_variables
from plan_jax.sharding import replicated
from plan_jax.types import ImageFeatures, TextFeatures
from plan_jax.weights import own
from plan_jax.weights.pretrained import starting_variables

Image = str | Path | np.ndarray  # a file (PNG, JPEG, DICOM) or gray levels [H W] uint8


@dataclasses.dataclass(frozen=True)
class GroundingMap:
    """Where in an image a phrase points.

    Attributes:
        map: [H W] similarity, 0 to 1, at the image's own size; below 0 only `against` others or as a mean of words.
        image: [H W] uint8, the image as read.
        phrase: the query.
        words: the words of the phrase, within the sentence of `evaluation.prompt`.
        word_importance: [L] weight of each word in the map; sums to 1.
        score: similarity of image and phrase, as in `Plan.similarity`.
    """

    map: np.ndarray
    image: np.ndarray
    phrase: str
    words: tuple[str, ...]
    word_importance: np.ndarray
    score: float


@dataclasses.dataclass(frozen=True)
class WordMaps:
    """Where in an image each word of a text points.

    Attributes:
        maps: [L H W] similarity of every word, at the image's own size.
        image: [H W] uint8, the image as read.
        text: as given; words that the encoder's limit cuts have no map.
        spans: (start, end) of each word in the text, in characters.
        importance: [L] weight of each word; sums to 1.
    """

    maps: np.ndarray
    image: np.ndarray
    text: str
    spans: tuple[tuple[int, int], ...]
    importance: np.ndarray


@dataclasses.dataclass(frozen=True)
class Plan:
    """A model with its tokenizer and parameters, ready to score and to ground.

    Features and scores lie on the host as numpy arrays. With a `mesh` (see `over`) its devices share the work.
    """

    config: Config
    tokenizer: Tokenizer
    variables: Any
    step: int
    mesh: Mesh | None = None

    @staticmethod
    def load(directory: str | Path, checkpoint: str = "latest") -> "Plan":
        """A checkpoint of a run directory, or a model that `export --to safetensors` wrote.

        Args:
            directory: the run's, or that of the exported model, which is one model alone.
            checkpoint: "latest", "best" (of lowest validation loss), or the number of its steps.

        Raises:
            InputError: the folder is neither, or has no such checkpoint.
        """
        directory = Path(directory)
        config = load_config(directory / "config.json")
        shapes = jax.eval_shape(functools.partial(initial_variables, config), config.seed)
        if checkpoint == "latest" and (directory / own.FILE).is_file() and not saved_steps(directory):
            variables, step = own.load_model(directory / own.FILE, shapes)
        else:
            step = chosen_step(directory, checkpoint)
            variables = load_variables(directory, step, jax.tree.map(_on_first_device, shapes))
        return Plan(config, Tokenizer.load(directory / "tokenizer.json"), variables, step)

    def untrained(self) -> "Plan":
        """The same model before its first step: random, but for the published weights that it began with."""
        fresh = dataclasses.replace(self, variables=starting_variables(self.config)[0], step=0)
        return fresh if self.mesh is None else fresh.over(self.mesh)

    def over(self, mesh: Mesh) -> "Plan":
        """The same model spread over the devices of a mesh (`plan_jax.sharding`): each has a part of the images."""
        return dataclasses.replace(self, variables=jax.device_put(self.variables, replicated(mesh)), mesh=mesh)

    def similarity(self, images: Sequence[Image], phrases: Sequence[str]) -> np.ndarray:
        """How well every phrase, as it is, fits every image: [I R], a weighted sum of global and local similarity."""
        _refuse_none(images)
        squares = np.stack([model_input(_gray(image), self.config.data)[0] for image in images])
        return self.score(self.encode_images(squares[..., None]), self.encode_texts(phrases))

    def ground(self, image: Image, phrase: str, *, against: Sequence[str] = ()) -> GroundingMap:
        """Where `phrase` is in `image`, at the image's own size.

        Args:
            image: a file (PNG, JPEG, DICOM) or gray levels [H W] uint8.
            phrase: what to look for.
            against: other findings that the image may show; the map gives way to theirs (`alignment.compete`).

        Raises:
            InputError: the image cannot be read, or the phrase is empty or longer than the text encoder reads.
        """
        texts = self.encode_phrases([phrase])
        gray = _gray(image)
        square, letterbox = model_input(gray, self.config.data)
        features = self.encode_images(square[None, ..., None])
        maps, importance = self.ground_features(features, texts)
        if against:
            rivals = self.ground_all(features, self.encode_phrases(against))[0]
            maps = np.asarray(compete(jnp.asarray(maps), jnp.asarray(rivals)[:, None], config=self.config.evaluation))
        words = self._tokens(self._prompted(phrase), truncate=False).words
        return GroundingMap(
            map=letterbox.map_to_original(maps[0]),
            image=gray,
            phrase=phrase,
            words=words,
            word_importance=importance[0][: len(words)],
            score=float(self.score(features, self.encode_texts([phrase]))[0, 0]),
        )

    def ground_words(self, image: Image, text: str) -> WordMaps:
        """Where each word of a report or phrase points in `image`, read as it is, at the image's own size.

        Raises:
            InputError: the image cannot be read, or the text has no word.
        """
        tokens = self._tokens(text, truncate=True)
        if not tokens.words:
            raise InputError("text must contain a word, got none; write at least one letter or digit")
        gray = _gray(image)
        square, letterbox = model_input(gray, self.config.data)
        features = self.encode_images(square[None, ..., None])
        maps, importance = forward.ground_words(features, self.encode_texts([text], truncate=True), config=self.config)
        count = len(tokens.words)
        return WordMaps(
            maps=np.stack(
                [letterbox.map_to_original(of) for of in np.asarray(maps[0, :count]).reshape(-1, *features.grid)]
            ),
            image=gray,
            text=text,
            spans=tokens.spans,
            importance=np.asarray(importance[0, :count]),
        )

    def encode_images(self, images: np.ndarray) -> ImageFeatures:
        """Features of model inputs [I H W 1] uint8, computed in batches of one compiled shape."""
        return self._in_batches(functools.partial(forward.encode_image, self.variables, config=self.config), images)

    def encoder_features(self, images: np.ndarray) -> np.ndarray:
        """[I C] the image encoder's last map, averaged, of model inputs [I H W 1] uint8: what a linear probe reads."""
        return self._in_batches(functools.partial(forward.encoder_features, self.variables, config=self.config), images)

    def encode_texts(self, texts: Sequence[str], *, truncate: bool = False) -> TextFeatures:
        """Features of texts; one that is longer than the text encoder reads is an error unless `truncate`."""
        _refuse_none(texts)
        tokens = [self._tokens(text, truncate=truncate) for text in texts]
        names = ("token_ids", "word_ids", "token_mask", "sentence_ids")
        columns = tuple(np.stack([getattr(t, name) for t in tokens]) for name in names)
        encode = functools.partial(forward.encode_text, self.variables, config=self.config)
        return self._in_batches(encode, *columns)

    def encode_phrases(self, phrases: Sequence[str]) -> TextFeatures:
        """Features of phrases to be grounded, each put into the sentence of `evaluation.prompt`."""
        return self.encode_texts([self._prompted(phrase) for phrase in phrases])

    def score(self, images: ImageFeatures, texts: TextFeatures) -> np.ndarray:
        """Image-text scores [I R] of features."""
        score = functools.partial(forward.score, config=self.config)
        return over_pairs(score, images, texts, size=self.config.evaluation.block, mesh=self.mesh)

    def ground_features(self, images: ImageFeatures, texts: TextFeatures) -> tuple[np.ndarray, np.ndarray]:
        """Grounding maps [R h w] and word importances [R L] of text r in image r."""
        ground = functools.partial(forward.ground, config=self.config)
        maps, importance = self._in_batches(ground, images, texts)
        return maps.reshape(len(maps), *images.grid), importance

    def ground_all(self, images: ImageFeatures, texts: TextFeatures) -> np.ndarray:
        """Grounding maps [I R h w] of every text in every image."""
        ground = functools.partial(forward.ground_all, config=self.config)
        maps = over_pairs(ground, images, texts, size=self.config.evaluation.batch_size, mesh=self.mesh)
        return maps.reshape(*maps.shape[:2], *images.grid)

    def global_maps(self, images: np.ndarray, texts: TextFeatures, image_of: np.ndarray) -> np.ndarray:
        """[R h w] how much each cell of image `image_of[r]` adds to its global similarity with text r."""
        encode = functools.partial(forward.global_cells, self.variables, config=self.config)
        cells = self._in_batches(encode, images)
        return np.einsum("rhwd,rd->rhw", cells[image_of], np.asarray(texts.pooled))

    def with_alignment(self, **fields: Any) -> "Plan":
        """The same model with other values of some fields of `config.alignment`, such as rounds."""
        alignment = dataclasses.replace(self.config.alignment, **fields)
        return dataclasses.replace(self, config=dataclasses.replace(self.config, alignment=alignment))

    def _in_batches(self, function: Callable, *arguments: Any) -> Any:
        return in_batches(function, arguments, size=self.config.evaluation.batch_size, mesh=self.mesh)

    def _prompted(self, phrase: str) -> str:
        return prompted(phrase, prompt=self.config.evaluation.prompt)

    def _tokens(self, text: str, *, truncate: bool):
        data = self.config.data
        return self.tokenizer.encode(text, max_tokens=data.max_tokens, max_words=data.max_words, truncate=truncate)


def prompted(phrase: str, *, prompt: str) -> str:
    """The sentence in which a phrase is grounded, as `evaluation.prompt` has it. InputError: it holds no word."""
    if not any(letter.isalnum() for letter in phrase):
        raise InputError("phrase must contain a word, got none; write at least one letter or digit")
    return prompt.replace("{}", phrase.strip().removesuffix(".") if prompt.endswith(".") else phrase)


def _on_first_device(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """A checkpoint of any mesh, read onto one device."""
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _refuse_none(items: Sequence) -> None:
    if not len(items):
        raise InputError("at least one image and one text must be given, got none; pass some")


def _gray(image: Image) -> np.ndarray:
    if not isinstance(image, np.ndarray):
        return read_image(Path(image))
    if image.ndim != 2 or image.dtype != np.uint8:
        raise InputError(
            f"an image array must be [H W] uint8, got {image.shape} {image.dtype}; convert it or pass a file"
        )
    return image
