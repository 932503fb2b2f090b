"""The variables a run starts from: random numbers, and published weights where the config names some."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from plan_jax.config import Config
from plan_jax.data.records import file_hash
from plan_jax.data.text import Tokenizer
from plan_jax.errors import InputError
from plan_jax.model import initial_variables
from plan_jax.weights import bert_names, resnet_names, vit_names
from plan_jax.weights.links import Link, replaced, some, take
from plan_jax.weights.source import find_vocabulary, find_weights
from plan_jax.weights.tensors import read_tensors

ENCODERS = ("image_encoder", "text_encoder")


@dataclasses.dataclass(frozen=True)
class Origin:
    """Where the numbers of an encoder come from; what a run writes down.

    Attributes:
        encoder: image_encoder or text_encoder.
        source: as the config names it.
        file: name and SHA-256 of the file that was read.
        prefix: what stood before their names.
        used: how many of their tensors were read.
        unused: the names of all others.
        summed: first kernels for three channels that were summed to one.
    """

    encoder: str
    source: str
    file: str
    sha256: str
    prefix: str
    used: int
    unused: tuple[str, ...]
    summed: tuple[str, ...]

    def __str__(self) -> str:
        others = f"; unused: {some(self.unused)}" if self.unused else ""
        channels = f"; channels summed: {', '.join(self.summed)}" if self.summed else ""
        return f"{self.encoder}: {self.used} tensors of {self.source} ({self.file}){channels}{others}"


def starting_variables(config: Config) -> tuple[Any, tuple[Origin, ...]]:
    """Parameters and batch statistics before the first step, and the origin of those that are not random.

    Raises:
        InputError: weights that the config names cannot be had, or do not fit the configured encoder.
    """
    shapes = jax.eval_shape(functools.partial(initial_variables, config), config.seed)
    named = [encoder for encoder in ENCODERS if getattr(config, encoder).weights]
    loaded = [_loaded(shapes, config, encoder) for encoder in named]  # before the rest is drawn, which takes longer
    variables = initial_variables(config, config.seed)
    for encoder, (values, _) in zip(named, loaded, strict=True):
        part = replaced(part_of(variables, encoder), values)
        variables = {name: {**tree, encoder: part[name]} if name in part else tree for name, tree in variables.items()}
    return variables, tuple(origin for _, origin in loaded)


def starting_tokenizer(config: Config) -> Tokenizer | None:
    """The tokenizer of the text encoder's published weights, whose rows are its pieces; None without such weights."""
    source = config.text_encoder.weights
    return Tokenizer.load(find_vocabulary(source, field="text_encoder.weights")) if source else None


def links_of(config: Config, encoder: str) -> tuple[list[Link], Sequence[str], Callable[[str], str]]:
    """The table of an encoder's architecture, the names that tell it, and what brings other spellings to its names."""
    if encoder == "text_encoder":
        return bert_names.bert_links(config.text_encoder), bert_names.ANCHORS, bert_names.modern_name
    if config.image_encoder.kind == "vit":
        return vit_names.vit_links(config.image_encoder), vit_names.ANCHORS, vit_names.timm_name
    return resnet_names.resnet_links(config.image_encoder), resnet_names.ANCHORS, str


def without_prefix(
    tensors: Mapping[str, np.ndarray], anchors: Sequence[str], *, prefix: str, where: str, field: str
) -> tuple[str, dict[str, np.ndarray]]:
    """(prefix, the tensors below it by the rest of their names): checkpoints keep an encoder as a part of their model.

    `prefix` "" finds the one below which all of `anchors` stand.

    Raises:
        InputError: there is none, or more than one.
    """
    found = sorted(
        start
        for start in (name.removesuffix(anchors[0]) for name in tensors if name.endswith(anchors[0]))
        if (not start or start.endswith(".")) and all(start + anchor in tensors for anchor in anchors)
    )
    if prefix:
        found = [start for start in found if start == prefix]
    if len(found) > 1:
        raise InputError(f"{where} must hold one such encoder, got several, below {', '.join(found)}; set {field}")
    if not found:
        below = f" below {prefix}" if prefix else ""
        raise InputError(
            f"{where} must hold the tensors {' and '.join(anchors)}{below}, got none such; the weights are of another "
            "architecture: change the config or the weights"
        )
    return found[0], {
        name.removeprefix(found[0]): value for name, value in tensors.items() if name.startswith(found[0])
    }


def part_of(variables: Any, encoder: str) -> Any:
    """An encoder's own variables."""
    return {collection: tree[encoder] for collection, tree in variables.items() if encoder in tree}


def _loaded(shapes: Any, config: Config, encoder: str) -> tuple[Any, Origin]:
    """An encoder's numbers from its weights, for variables of these shapes."""
    settings = getattr(config, encoder)
    path = find_weights(settings.weights, field=f"{encoder}.weights")
    where = f"{encoder}.weights ({path})"
    links, anchors, modern = links_of(config, encoder)
    found = read_tensors(path)
    published = {modern(name): name for name in found}
    tensors = {name: found[theirs] for name, theirs in published.items()}
    prefix, own = without_prefix(
        tensors, anchors, prefix=settings.weights_prefix, where=where, field=f"{encoder}.weights_prefix"
    )
    taken = take(own, links, part_of(shapes, encoder), where=where)
    read = {prefix + link.name for link in links}
    origin = Origin(
        encoder=encoder,
        source=settings.weights,
        file=path.name,
        sha256=file_hash(path),
        prefix=prefix,
        used=len(links),
        unused=tuple(sorted(theirs for name, theirs in published.items() if name not in read)),
        summed=tuple(published[prefix + name] for name in taken.summed),
    )
    return taken.values, origin
