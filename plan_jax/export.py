"""A trained model for other programs: its encoders under the names of torchvision, timm and transformers, the whole
model as safetensors, and grounding as a StableHLO program."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax import export as jax_export
from jaxtyping import Array, Bool, Float, Int, UInt8

from plan_jax.config import TextEncoderConfig, save_config
from plan_jax.encoders.bert import TOKEN_TYPES
from plan_jax.errors import InputError
from plan_jax.forward import grounding_maps
from plan_jax.geometry import loaded_side
from plan_jax.inference import Plan
from plan_jax.model import GRAY_MEAN, GRAY_STD, PlanModel
from plan_jax.weights import own
from plan_jax.weights.links import give
from plan_jax.weights.pretrained import links_of, part_of
from plan_jax.weights.tensors import write_tensors
from plan_jax.weights.vit_names import torchvision_name

PLATFORMS = ("cpu", "cuda", "tpu")
PROGRAM = "ground.stablehlo"

Written = list[str]  # names of the files, in the order of interest


def export(workdir: Path, to: str, out: Path, *, checkpoint: str = "latest") -> Written:
    """Writes a run's checkpoint for another program and returns the names of the files.

    Args:
        workdir: the run directory.
        to: one of TARGETS.
        out: the folder to write, made if needed.
        checkpoint: as `Plan.load` takes it.

    Raises:
        InputError: the run's encoder does not exist in that library, or the folder cannot be written.
    """
    plan = Plan.load(workdir, checkpoint)
    try:
        out.mkdir(parents=True, exist_ok=True)
        return TARGETS[to](plan, out)
    except OSError as error:
        raise InputError(f"--out must be a folder that can be written, got {out}: {error.strerror}") from error


def _image_encoder(plan: Plan, out: Path) -> Written:
    """model.safetensors by torchvision's names, and how images must be prepared."""
    encoder, data = plan.config.image_encoder, plan.config.data
    size, side = data.image_size, loaded_side(data.image_size, data.crop)
    links, _, _ = links_of(plan.config, "image_encoder")
    tensors = give(links, part_of(plan.variables, "image_encoder"))
    if encoder.kind == "vit":
        tensors = {torchvision_name(name): value for name, value in tensors.items()}
    write_tensors(out / own.FILE, tensors)
    preparation = {
        "size": size,
        "resize": f"{data.fit_side} side to {side} (area), centred on zeros",
        "crop": f"the middle {size} x {size} of {side} x {side}",
        "channels": encoder.channels,
        "values": "gray levels divided by 255, less mean, divided by std; the same in every channel",
        "mean": GRAY_MEAN,
        "std": GRAY_STD,
    }
    return [own.FILE, _write_json(out / "preprocessing.json", preparation)]


def _text_encoder(plan: Plan, out: Path) -> Written:
    """A folder that transformers' BertModel and BertTokenizerFast open."""
    config = plan.config.text_encoder
    links, _, _ = links_of(plan.config, "text_encoder")
    write_tensors(out / own.FILE, give(links, part_of(plan.variables, "text_encoder")))
    plan.tokenizer.save(out / "tokenizer.json")
    pieces = sorted(plan.tokenizer.vocabulary.items(), key=lambda piece: piece[1])
    (out / "vocab.txt").write_text("".join(f"{piece}\n" for piece, _ in pieces), encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": True, "model_max_length": config.max_positions}
    return [
        own.FILE,
        _write_json(out / "config.json", _transformers_config(config)),
        "vocab.txt",
        "tokenizer.json",
        _write_json(out / "tokenizer_config.json", settings),
    ]


def _transformers_config(config: TextEncoderConfig) -> dict[str, Any]:
    return {
        "architectures": ["BertModel"],
        "model_type": "bert",
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "intermediate_size": config.intermediate,
        "max_position_embeddings": config.max_positions,
        "type_vocab_size": TOKEN_TYPES,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-12,
        "hidden_dropout_prob": config.dropout,
        "attention_probs_dropout_prob": config.dropout,
    }


def _model(plan: Plan, out: Path) -> Written:
    """All parameters and statistics by our own names; `Plan.load` opens the folder."""
    own.save_model(out / own.FILE, plan.variables, step=plan.step)
    save_config(out / "config.json", plan.config)
    plan.tokenizer.save(out / "tokenizer.json")
    return [own.FILE, "config.json", "tokenizer.json"]


def _program(plan: Plan, out: Path) -> Written:
    """Images and tokens in, heat maps out; the parameters are inside, the number of pairs is free."""
    data = plan.config.data
    (pairs,) = jax_export.symbolic_shape("pairs")
    text = (pairs, data.max_tokens)
    inputs = {
        "image": jax.ShapeDtypeStruct((pairs, data.image_size, data.image_size, 1), jnp.uint8),
        "token_ids": jax.ShapeDtypeStruct(text, jnp.int32),
        "word_ids": jax.ShapeDtypeStruct(text, jnp.int32),
        "token_mask": jax.ShapeDtypeStruct(text, jnp.bool_),
        "sentence_ids": jax.ShapeDtypeStruct(text, jnp.int32),
    }
    exported = jax_export.export(jax.jit(grounding_program(plan)), platforms=PLATFORMS)(*inputs.values())
    (out / PROGRAM).write_bytes(exported.serialize())
    plan.tokenizer.save(out / "tokenizer.json")
    about = {
        "inputs": {name: f"{of.dtype.name} [{', '.join(map(str, of.shape))}]" for name, of in inputs.items()},
        "outputs": {
            name: f"{of.dtype.name} [{', '.join(map(str, of.shape))}]"
            for name, of in zip(("map", "word_importance"), exported.out_avals, strict=True)
        },
        "platforms": list(PLATFORMS),
        "prompt": plan.config.evaluation.prompt,
    }
    return [PROGRAM, _write_json(out / "ground.json", about), "tokenizer.json"]


def grounding_program(plan: Plan) -> Callable[..., tuple[Float[Array, "B h w"], Float[Array, "B L"]]]:
    """The function that is exported: the grounding map of every pair, and its word importances."""
    model = PlanModel(plan.config)

    def ground(
        image: UInt8[Array, "B H W 1"],
        token_ids: Int[Array, "B T"],
        word_ids: Int[Array, "B T"],
        token_mask: Bool[Array, "B T"],
        sentence_ids: Int[Array, "B T"],
    ) -> tuple[Array, Array]:
        texts: Any = model.apply(plan.variables, token_ids, word_ids, token_mask, sentence_ids, method="encode_text")
        images: Any = model.apply(plan.variables, image, method="encode_image")
        maps, importance = grounding_maps(images, texts, config=plan.config)
        return maps.reshape(-1, *images.grid), importance

    return ground


TARGETS: dict[str, Callable[[Plan, Path], Written]] = {
    "torchvision": _image_encoder,
    "hf-bert": _text_encoder,
    "safetensors": _model,
    "stablehlo": _program,
}


def _write_json(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content, indent=2) + "\n")
    return path.name
