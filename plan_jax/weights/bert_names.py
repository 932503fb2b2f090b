"""transformers' names of a BERT's tensors and ours."""

import re

from plan_jax.config import TextEncoderConfig
from plan_jax.weights.links import DENSE, SAME, Link

ANCHORS = ("embeddings.word_embeddings.weight", "encoder.layer.0.attention.self.query.weight")
_OLD_NORM = {"gamma": "weight", "beta": "bias"}  # as converted from the first, TensorFlow, release

_EMBEDDINGS = {
    "word_embeddings.weight": ("word", "embedding"),
    "position_embeddings.weight": ("position", "embedding"),
    "token_type_embeddings.weight": ("token_type", "embedding"),
    "LayerNorm.weight": ("embedding_norm", "scale"),
    "LayerNorm.bias": ("embedding_norm", "bias"),
}
_DENSE = {
    "attention.self.query": ("attention", "query"),
    "attention.self.key": ("attention", "key"),
    "attention.self.value": ("attention", "value"),
    "attention.output.dense": ("attention", "output"),
    "intermediate.dense": ("intermediate",),
    "output.dense": ("output",),
}
_NORMS = {"attention.output.LayerNorm": "attention_norm", "output.LayerNorm": "output_norm"}


def bert_links(config: TextEncoderConfig) -> list[Link]:
    """All tensors but the pooler and the heads of its pretraining."""
    links = [Link(f"embeddings.{name}", (("params", *path),), SAME) for name, path in _EMBEDDINGS.items()]
    for layer in range(config.layers):
        theirs, ours = f"encoder.layer.{layer}", ("params", "layers")
        for name, path in _DENSE.items():
            links.append(Link(f"{theirs}.{name}.weight", ((*ours, *path, "kernel"),), DENSE, layer))
            links.append(Link(f"{theirs}.{name}.bias", ((*ours, *path, "bias"),), SAME, layer))
        for name, norm in _NORMS.items():
            links.append(Link(f"{theirs}.{name}.weight", ((*ours, norm, "scale"),), SAME, layer))
            links.append(Link(f"{theirs}.{name}.bias", ((*ours, norm, "bias"),), SAME, layer))
    return links


def modern_name(name: str) -> str:
    """A tensor's name as transformers writes it today."""
    return re.sub(r"(?<=LayerNorm\.)(gamma|beta)$", lambda old: _OLD_NORM[old[0]], name)
