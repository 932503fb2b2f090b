"""Weights of other projects: read under every name they are published with, or refused with the reason."""

import dataclasses
import json
import os
import pickle
import struct
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import serialization
from golden import cases
from hypothesis import given, settings
from hypothesis import strategies as st

from plan_jax.config import Config, ImageEncoderConfig, TextEncoderConfig
from plan_jax.encoders.resnet import ResNet
from plan_jax.errors import InputError
from plan_jax.model import initial_variables
from plan_jax.weights.bert_names import bert_links
from plan_jax.weights.links import give, take
from plan_jax.weights.pretrained import part_of, starting_tokenizer, starting_variables
from plan_jax.weights.resnet_names import resnet_links
from plan_jax.weights.source import find_weights
from plan_jax.weights.tensors import read_tensors, write_tensors

IMAGE = ImageEncoderConfig(block="basic", stages=(1, 1), width=4, local_stage=1, channels=3)
TEXT = TextEncoderConfig(vocab_size=30, hidden=8, layers=2, heads=2, intermediate=12, max_positions=16, dropout=0.0)
BASE = Config(image_encoder=IMAGE, text_encoder=TEXT)
BASE = dataclasses.replace(BASE, data=dataclasses.replace(BASE.data, image_size=32, max_tokens=8))
VOCABULARY = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrstuvwxy"]


def with_weights(**sources):
    """The configuration with these weights, by encoder."""
    fields = {name: dataclasses.replace(getattr(BASE, name), weights=str(path)) for name, path in sources.items()}
    return dataclasses.replace(BASE, **fields)


@pytest.fixture(scope="module")
def theirs():
    """{encoder: the tensors of such a network by the names of torchvision or transformers}."""
    variables = jax.eval_shape(partial(initial_variables, BASE), 0)
    links = {"image_encoder": resnet_links(IMAGE), "text_encoder": bert_links(TEXT)}
    tensors = {}
    for encoder, table in links.items():
        zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), part_of(variables, encoder))
        tensors[encoder] = {name: cases.drawn(name, np.shape(value)) for name, value in give(table, zeros).items()}
    return tensors


EXTRA = {"fc.weight": np.ones((5, 8), "f4"), "bn1.num_batches_tracked": np.array(7, "i8")}


def assert_read(config, encoder, tensors):
    """The network begins with these numbers, bit for bit."""
    variables, (origin,) = starting_variables(config)
    links = resnet_links(config.image_encoder) if encoder == "image_encoder" else bert_links(config.text_encoder)
    for name, value in give(links, part_of(variables, encoder)).items():
        np.testing.assert_array_equal(value, tensors[name])
    return origin


def test_every_tensor_is_read_and_what_is_not_is_listed(theirs, tmp_path):
    write_tensors(tmp_path / "model.safetensors", theirs["image_encoder"] | EXTRA)
    origin = assert_read(with_weights(image_encoder=tmp_path), "image_encoder", theirs["image_encoder"])
    assert origin.unused == ("bn1.num_batches_tracked", "fc.weight")
    assert origin.used == len(theirs["image_encoder"])
    assert "unused: bn1.num_batches_tracked, fc.weight" in str(origin)


def test_only_the_named_encoder_is_no_longer_random(theirs, tmp_path):
    write_tensors(tmp_path / "model.safetensors", theirs["image_encoder"])
    random = initial_variables(BASE, 0)
    variables, _ = starting_variables(with_weights(image_encoder=tmp_path))
    same = jax.tree.map(lambda a, b: bool((np.asarray(a) == np.asarray(b)).all()), random, variables)["params"]
    encoder = same.pop("image_encoder")
    assert all(jax.tree.leaves(same))
    assert not any(jax.tree.leaves(encoder))


@pytest.mark.parametrize(
    "prefix", ["", "gloria.img_encoder.model.", "img_encoder_q.model.", "encoder.encoder.", "visual.trunk."]
)
def test_an_encoder_is_found_below_the_names_of_gloria_mgca_and_others(prefix, theirs, tmp_path):
    other = {"text.weight": np.ones(3, "f4"), "gloria.text_encoder.conv1.weight": np.ones(3, "f4")}
    write_tensors(tmp_path / "w.safetensors", {prefix + k: v for k, v in theirs["image_encoder"].items()} | other)
    config = with_weights(image_encoder=tmp_path / "w.safetensors")
    origin = assert_read(config, "image_encoder", theirs["image_encoder"])
    assert (origin.prefix, origin.unused) == (prefix, tuple(sorted(other)))


def test_of_two_encoders_in_one_file_the_prefix_chooses(theirs, tmp_path):
    two = {start + k: v for start in ("q.", "k.") for k, v in theirs["image_encoder"].items()}
    write_tensors(tmp_path / "w.safetensors", two)
    config = with_weights(image_encoder=tmp_path / "w.safetensors")
    with pytest.raises(InputError, match=r"below k\., q\.; set image_encoder\.weights_prefix"):
        starting_variables(config)
    config = dataclasses.replace(config, image_encoder=dataclasses.replace(config.image_encoder, weights_prefix="k."))
    assert assert_read(config, "image_encoder", theirs["image_encoder"]).prefix == "k."


def flax_state(tensors):
    """The same as a Flax tree, as flax_model.msgpack holds it: kernels [in, out], scale, embedding."""
    tree = {}
    for name, value in tensors.items():
        *modules, leaf = name.split(".")
        if "embeddings" in modules[-1]:
            leaf = "embedding"
        elif leaf == "weight":
            leaf, value = ("scale", value) if "LayerNorm" in name else ("kernel", value.T)
        node = tree
        for module in ["bert", *modules]:
            node = node.setdefault(module, {})
        node[leaf] = np.ascontiguousarray(value)
    return tree


def test_bert_is_read_from_flax_msgpack(theirs, tmp_path):
    state = flax_state(theirs["text_encoder"])
    (tmp_path / "flax_model.msgpack").write_bytes(serialization.msgpack_serialize(state))
    assert assert_read(with_weights(text_encoder=tmp_path), "text_encoder", theirs["text_encoder"]).prefix == "bert."


def test_the_first_release_s_names_of_the_norms_are_known(theirs, tmp_path):
    old = {
        "bert." + name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in theirs["text_encoder"].items()
    }
    write_tensors(tmp_path / "model.safetensors", old)
    assert_read(with_weights(text_encoder=tmp_path), "text_encoder", theirs["text_encoder"])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64"])
def test_other_precisions_become_float32(dtype, theirs, tmp_path):
    narrow = {name: np.asarray(value, jnp.dtype(dtype)) for name, value in theirs["text_encoder"].items()}
    write_tensors(tmp_path / "model.safetensors", narrow)
    wide = {name: value.astype("f4") for name, value in narrow.items()}
    assert_read(with_weights(text_encoder=tmp_path), "text_encoder", wide)


def test_a_first_kernel_for_colour_is_summed_for_gray_images_only_where_one_channel_is_wanted(theirs, tmp_path):
    write_tensors(tmp_path / "model.safetensors", theirs["image_encoder"])
    config = with_weights(image_encoder=tmp_path)
    gray = dataclasses.replace(config, image_encoder=dataclasses.replace(config.image_encoder, channels=1))
    three, _ = starting_variables(config)
    one, (origin,) = starting_variables(gray)
    assert origin.summed == ("conv1.weight",)
    image = np.random.default_rng(0).normal(size=(1, 32, 32, 1)).astype("f4")
    maps = [
        ResNet(c.image_encoder).apply(part_of(v, "image_encoder"), x, train=False)[-1]
        for c, v, x in ((config, three, image), (config, three, image.repeat(3, axis=-1)), (gray, one, image))
    ]
    for other in maps[1:]:
        np.testing.assert_allclose(other, maps[0], rtol=1e-4, atol=1e-5)


def test_the_vocabulary_beside_the_weights_is_the_run_s(theirs, tmp_path):
    write_tensors(tmp_path / "model.safetensors", theirs["text_encoder"])
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    for source in (tmp_path, tmp_path / "model.safetensors"):
        tokenizer = starting_tokenizer(with_weights(text_encoder=source))
        assert tokenizer.vocabulary == {piece: i for i, piece in enumerate(VOCABULARY)}
    assert starting_tokenizer(BASE) is None


# What must be refused.


def refused(config, match):
    with pytest.raises(InputError, match=match):
        starting_variables(config)


def test_another_size_names_both_shapes(theirs, tmp_path):
    write_tensors(tmp_path / "model.safetensors", theirs["text_encoder"])
    config = with_weights(text_encoder=tmp_path)
    smaller = dataclasses.replace(config, text_encoder=dataclasses.replace(config.text_encoder, vocab_size=29))
    refused(smaller, r"word_embeddings\.weight must have the shape \(29, 8\) of params/word/embedding.*got \(30, 8\)")


def test_another_depth_names_what_is_missing(theirs, tmp_path):
    write_tensors(tmp_path / "model.safetensors", theirs["image_encoder"])
    config = with_weights(image_encoder=tmp_path)
    deeper = dataclasses.replace(config, image_encoder=dataclasses.replace(config.image_encoder, stages=(2, 1)))
    refused(deeper, r"none named layer1\.1\.conv1\.weight, layer1\.1\.bn1\.weight.*and \d+ more")


def test_another_architecture_is_told_from_its_names(theirs, tmp_path):
    write_tensors(tmp_path / "model.safetensors", theirs["text_encoder"])
    refused(with_weights(image_encoder=tmp_path), r"the tensors conv1\.weight and layer1\.0\.conv1\.weight, got none")


def test_numbers_that_are_not_finite_are_refused_by_name(theirs, tmp_path):
    broken = theirs["text_encoder"] | {"embeddings.LayerNorm.bias": np.full(8, np.nan, "f4")}
    write_tensors(tmp_path / "model.safetensors", broken)
    refused(with_weights(text_encoder=tmp_path), r"embeddings\.LayerNorm\.bias must be finite")


def test_a_patchify_stem_has_no_published_weights(theirs, tmp_path):
    write_tensors(tmp_path / "model.safetensors", theirs["image_encoder"])
    config = with_weights(image_encoder=tmp_path)
    patchify = dataclasses.replace(config, image_encoder=dataclasses.replace(config.image_encoder, stem="patchify"))
    refused(patchify, r"image_encoder\.stem must be imagenet")


@pytest.mark.parametrize(
    ("source", "words"),
    [("no/such/folder/x", "must be a file, a folder or OWNER/NAME"), ("EMPTY", "with model.safetensors or flax_model")],
)
def test_a_source_that_is_nothing_says_what_could_be(source, words, tmp_path):
    with pytest.raises(InputError, match=words):
        find_weights(str(tmp_path) if source == "EMPTY" else source, field="image_encoder.weights")


def test_without_a_network_the_error_says_what_to_download_and_where_to_put_it(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(
        InputError, match=r"download model\.safetensors or .* of some/encoder .*put the files in a folder"
    ):
        find_weights("some/encoder", field="text_encoder.weights")


@pytest.mark.parametrize("suffix", ["safetensors", "msgpack", "bin"])
def test_cut_and_damaged_files_are_refused_at_every_length(suffix, theirs, tmp_path):
    whole = tmp_path / f"whole.{suffix}"
    if suffix == "safetensors":
        write_tensors(whole, theirs["text_encoder"])
    elif suffix == "msgpack":
        whole.write_bytes(serialization.msgpack_serialize(flax_state(theirs["text_encoder"])))
    else:
        torch = pytest.importorskip("torch", reason="PyTorch files are read by PyTorch, which is not installed")
        torch.save({name: torch.tensor(value) for name, value in theirs["text_encoder"].items()}, whole)
    content = whole.read_bytes()
    for end in (0, 1, 7, 8, 50, len(content) // 2, len(content) - 1):
        cut = tmp_path / f"cut.{suffix}"
        cut.write_bytes(content[:end])
        with pytest.raises(InputError, match="cut"):
            read_tensors(cut)


def read_or_refused(path):
    """Whether the file gave arrays, or an error that names it."""
    try:
        return all(isinstance(value, np.ndarray) for value in read_tensors(path).values())
    except InputError as error:
        return str(path) in str(error)


@settings(max_examples=150, deadline=None)
@given(suffix=st.sampled_from(["safetensors", "msgpack"]), content=st.binary(max_size=200))
def test_any_bytes_are_tensors_or_a_clear_error(suffix, content, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / f"fuzz.{suffix}"
    path.write_bytes(content)
    assert read_or_refused(path)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_flipped_bytes_are_tensors_or_a_clear_error(data, tmp_path_factory):
    folder = tmp_path_factory.getbasetemp()
    tensors = {"a.kernel": np.arange(6, dtype="f4").reshape(2, 3), "b": {"scale": np.ones(2, "f4")}}
    content = bytearray(serialization.msgpack_serialize(tensors))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = folder / "flipped.msgpack"
    path.write_bytes(content)
    assert read_or_refused(path)


def test_a_header_of_absurd_length_takes_no_memory(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(InputError, match="whole safetensors file"):
        read_tensors(tmp_path / "w.safetensors")


class Mine:
    """A pickle that would run code."""

    def __reduce__(self):
        return os.mkdir, ("ran",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "w.pth", "w.ckpt", "w.msgpack", "w.safetensors"])
def test_a_pickle_that_would_run_code_runs_nothing(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_bytes(pickle.dumps({"conv1.weight": Mine()}))
    with pytest.raises(InputError):
        read_tensors(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_torch_archive_that_would_run_code_runs_nothing(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason="needs PyTorch to write its archive")
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"conv1.weight": torch.ones(1)}, "hyper_parameters": Mine()}, tmp_path / "w.ckpt")
    with pytest.raises(InputError, match="tensors only"):
        read_tensors(tmp_path / "w.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_torch_file_is_read_below_its_state_dict(theirs, tmp_path):
    torch = pytest.importorskip("torch", reason="needs PyTorch to write and read its archive")
    state = {"model." + name: torch.tensor(value) for name, value in theirs["image_encoder"].items()}
    torch.save({"epoch": 3, "state_dict": state}, tmp_path / "w.ckpt")
    config = with_weights(image_encoder=tmp_path / "w.ckpt")
    assert assert_read(config, "image_encoder", theirs["image_encoder"]).prefix == "model."


def test_a_torch_file_without_torch_says_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    (tmp_path / "pytorch_model.bin").write_bytes(b"x")
    with pytest.raises(InputError, match=r"take model\.safetensors or flax_model\.msgpack"):
        read_tensors(tmp_path / "pytorch_model.bin")


def test_taking_covers_every_parameter_of_the_encoders():
    variables = jax.eval_shape(partial(initial_variables, BASE), 0)
    for encoder, links in (("image_encoder", resnet_links(IMAGE)), ("text_encoder", bert_links(TEXT))):
        part = part_of(variables, encoder)
        paths = {tuple(key.key for key in keys) for keys, _ in jax.tree_util.tree_leaves_with_path(part)}
        assert {path for link in links for path in link.paths} == paths


def test_what_was_taken_is_given_back_bit_for_bit(theirs):
    shapes = part_of(jax.eval_shape(partial(initial_variables, BASE), 0), "text_encoder")
    values = take(theirs["text_encoder"], bert_links(TEXT), shapes, where="here").values
    tree = jax.tree_util.tree_map_with_path(lambda keys, _: values[tuple(k.key for k in keys)], shapes)
    given = give(bert_links(TEXT), tree)
    assert given.keys() == theirs["text_encoder"].keys()
    assert all(given[name].tobytes() == value.tobytes() for name, value in theirs["text_encoder"].items())


def test_origins_are_plain_json(theirs, tmp_path):
    write_tensors(tmp_path / "model.safetensors", theirs["image_encoder"] | EXTRA)
    _, origins = starting_variables(with_weights(image_encoder=tmp_path))
    (written,) = json.loads(json.dumps([dataclasses.asdict(origin) for origin in origins]))
    assert written["file"] == "model.safetensors"
    assert len(written["sha256"]) == 64
