"""From published weights through a run and out again, and what other programs make of it."""

import json
import string

import jax
import numpy as np
import pytest
from conftest import CONFIG
from golden import cases
from jax import export as jax_export

from plan_jax.__main__ import main
from plan_jax.config import Config, ImageEncoderConfig, TextEncoderConfig
from plan_jax.data.text import Tokenizer
from plan_jax.inference import Plan
from plan_jax.types import ImageFeatures
from plan_jax.weights.bert_names import bert_links
from plan_jax.weights.links import give
from plan_jax.weights.pretrained import part_of
from plan_jax.weights.resnet_names import resnet_links
from plan_jax.weights.tensors import read_tensors, write_tensors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
LETTERS = string.ascii_lowercase + string.digits + ".,:;-"
VOCABULARY = [*SPECIAL, "nodule", "seen", *LETTERS, *(f"##{letter}" for letter in string.ascii_lowercase)]
IMAGE = ImageEncoderConfig(block="basic", stages=(1, 1), width=4, local_stage=1, channels=3)
TEXT = TextEncoderConfig(len(VOCABULARY), hidden=8, layers=2, heads=2, intermediate=12, max_positions=128)
FIELDS = (
    "--config.data.batch_size=4",
    "--config.mesh.devices=1",
    "--config.data.image_size=32",
    "--config.image_encoder.stem=imagenet",
    "--config.image_encoder.block=basic",
    "--config.image_encoder.width=4",
    "--config.image_encoder.channels=3",
    "--config.image_encoder.batch_norm=frozen",
    "--config.text_encoder.hidden=8",
    "--config.text_encoder.heads=2",
    "--config.text_encoder.layers=2",
    "--config.text_encoder.intermediate=12",
    "--config.text_encoder.max_positions=128",
    "--config.train.steps=1",
    "--config.optim.learning_rate=0",
)


def drawn(links, variables):
    return {name: cases.drawn(name, np.shape(value)) for name, value in give(links, variables).items()}


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """{encoder: a folder as torchvision's or BioClinicalBERT's, of tiny networks}."""
    from plan_jax.model import initial_variables

    config = Config(image_encoder=IMAGE, text_encoder=TEXT)
    shapes = jax.eval_shape(lambda: initial_variables(config, 0))
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    folders = {}
    for encoder, links in (("image_encoder", resnet_links(IMAGE)), ("text_encoder", bert_links(TEXT))):
        folders[encoder] = tmp_path_factory.mktemp(encoder)
        write_tensors(folders[encoder] / "model.safetensors", drawn(links, part_of(zeros, encoder)))
    (folders["text_encoder"] / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n")
    return folders


@pytest.fixture(scope="module")
def run(published, phantom_data, tmp_path_factory):
    """A run that began with published weights, after one step at a learning rate of 0."""
    workdir = tmp_path_factory.mktemp("run")
    sources = [f"--config.{encoder}.weights={folder}" for encoder, folder in published.items()]
    call = ["train", "--config", str(CONFIG), "--workdir", str(workdir), f"--config.data.dir={phantom_data}"]
    assert main([*call, *sources, *FIELDS]) == 0
    return workdir


def exported(run, to, out):
    assert main(["export", "--workdir", str(run), "--to", to, "--out", str(out)]) == 0
    return out


def assert_same_bytes(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert (value.dtype, value.shape) == (other[name].dtype, other[name].shape)
        assert value.tobytes() == other[name].tobytes()


@pytest.mark.parametrize(("encoder", "to"), [("image_encoder", "torchvision"), ("text_encoder", "hf-bert")])
def test_an_imported_encoder_goes_out_byte_for_byte(encoder, to, run, published, tmp_path):
    out = exported(run, to, tmp_path)
    theirs = read_tensors(published[encoder] / "model.safetensors")
    assert_same_bytes(read_tensors(out / "model.safetensors"), theirs)


def test_the_preparation_of_images_is_told_in_full(run, tmp_path):
    told = json.loads((exported(run, "torchvision", tmp_path) / "preprocessing.json").read_text())
    assert (told["size"], told["resize"]) == (32, "long side to 32 (area), centred on zeros")
    assert told["crop"] == "the middle 32 x 32 of 32 x 32"


def test_the_run_reads_words_by_the_vocabulary_of_the_weights(run):
    assert Tokenizer.load(run / "tokenizer.json").vocabulary == {piece: i for i, piece in enumerate(VOCABULARY)}


def test_the_run_writes_down_where_its_weights_come_from(run, published):
    image, text = json.loads((run / "weights.json").read_text())
    assert (image["encoder"], text["encoder"]) == ("image_encoder", "text_encoder")
    assert image["source"] == str(published["image_encoder"])
    assert image["unused"] == text["unused"] == []


def test_a_run_continues_without_the_files_it_began_with(run, published, phantom_data, tmp_path, capsys):
    for folder in published.values():
        folder.rename(folder.with_name(folder.name + "-away"))
    try:
        sources = [f"--config.{encoder}.weights={folder}" for encoder, folder in published.items()]
        call = ["train", "--config", str(CONFIG), "--workdir", str(run), f"--config.data.dir={phantom_data}"]
        assert main([*call, *sources, *FIELDS]) == 0
        assert "finished" in capsys.readouterr().out
        assert main([*call[:3], "--workdir", str(tmp_path), *call[5:], *sources, *FIELDS]) == 2
        assert "encoder.weights must be a file, a folder or OWNER/NAME" in capsys.readouterr().err
    finally:
        for folder in published.values():
            folder.with_name(folder.name + "-away").rename(folder)


def test_the_text_encoder_s_folder_opens_again_as_weights(run, published, tmp_path):
    out = exported(run, "hf-bert", tmp_path)
    assert (out / "vocab.txt").read_bytes() == (published["text_encoder"] / "vocab.txt").read_bytes()
    config = json.loads((out / "config.json").read_text())
    assert (config["model_type"], config["hidden_size"], config["vocab_size"]) == ("bert", 8, len(VOCABULARY))


def test_the_text_encoder_computes_the_same_in_transformers(run, tmp_path):
    torch = pytest.importorskip("torch", reason="transformers runs on PyTorch, which is not installed")
    pytest.importorskip("transformers.models.bert.modeling_bert", reason="needs transformers", exc_type=ImportError)
    import transformers  # pyright: ignore[reportMissingImports]

    out = exported(run, "hf-bert", tmp_path)
    model = transformers.BertModel.from_pretrained(out, add_pooling_layer=False).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    plan, text = Plan.load(run), "Nodule seen."
    tokens = plan.tokenizer.encode(text, max_tokens=48, max_words=40, truncate=False)
    ids = tokenizer(text)["input_ids"]
    assert ids == tokens.token_ids[tokens.token_mask].tolist()
    from plan_jax.encoders.bert import Bert

    got = Bert(plan.config.text_encoder).apply(
        part_of(plan.variables, "text_encoder"),
        tokens.token_ids[None],
        tokens.token_mask[None],
        tokens.sentence_ids[None],
        train=False,
    )
    with torch.no_grad():
        want = model(torch.tensor([ids])).last_hidden_state.numpy()
    np.testing.assert_allclose(got[:, : len(ids)], want, rtol=1e-4, atol=1e-4)


def test_the_image_encoder_opens_in_torchvision_strictly(run, tmp_path):
    torch = pytest.importorskip("torch", reason="torchvision runs on PyTorch, which is not installed")
    models = pytest.importorskip("torchvision.models", reason="needs torchvision", exc_type=(ImportError, RuntimeError))
    out = exported(run, "torchvision", tmp_path)
    state = {name: torch.tensor(value) for name, value in read_tensors(out / "model.safetensors").items()}
    assert state.keys() <= models.resnet18(weights=None).state_dict().keys()


@pytest.fixture(scope="module")
def pairs(run):
    """(plan, images, texts) of three pairs."""
    plan, rng = Plan.load(run), np.random.default_rng(0)
    images = rng.integers(0, 256, (3, 32, 32, 1)).astype(np.uint8)
    texts = ["nodule in the left lung.", "seen", "a nodule is seen. no fracture."]
    return plan, images, [plan.tokenizer.encode(t, max_tokens=48, max_words=40, truncate=False) for t in texts]


def test_the_grounding_program_gives_the_same_heat_maps_for_any_number_of_pairs(run, pairs, tmp_path):
    plan, images, tokens = pairs
    program = jax_export.deserialize((exported(run, "stablehlo", tmp_path) / "ground.stablehlo").read_bytes())
    assert set(program.platforms) == {"cpu", "cuda", "tpu"}
    names = ("token_ids", "word_ids", "token_mask", "sentence_ids")
    columns = [np.stack([getattr(t, name) for t in tokens]) for name in names]
    features = plan.encode_images(images)
    texts = plan.encode_texts(["nodule in the left lung.", "seen", "a nodule is seen. no fracture."])
    assert isinstance(features, ImageFeatures)
    want, importance = plan.ground_features(features, texts)
    for count in (3, 1):
        got, shares = program.call(images[:count], *(column[:count] for column in columns))
        np.testing.assert_allclose(got, want[:count], rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(shares, importance[:count], rtol=1e-5, atol=1e-6)


def test_the_whole_model_opens_as_a_plan_with_the_same_bits(run, tmp_path):
    whole, again = Plan.load(run), Plan.load(exported(run, "safetensors", tmp_path))
    assert (again.step, again.config) == (whole.step, whole.config)
    jax.tree.map(np.testing.assert_array_equal, again.variables, whole.variables)


def test_a_patchify_stem_does_not_pass_for_torchvision_s(trained, tmp_path, capsys):
    assert main(["export", "--workdir", str(trained.workdir), "--to", "torchvision", "--out", str(tmp_path)]) == 2
    assert "image_encoder.stem must be imagenet" in capsys.readouterr().err


def test_a_damaged_model_file_is_refused(run, tmp_path, capsys):
    out = exported(run, "safetensors", tmp_path)
    content = (out / "model.safetensors").read_bytes()
    (out / "model.safetensors").write_bytes(content[:-5])
    capsys.readouterr()
    assert main(["ground", "--workdir", str(out), "--image", "x.png", "--phrase", "nodule", "--out", "y.png"]) == 2
    assert "whole safetensors file" in capsys.readouterr().err


def test_every_word_has_its_own_map_of_the_image_s_size(run, tmp_path, pairs):
    import cv2

    cv2.imwrite(str(tmp_path / "film.png"), np.full((40, 60), 90, np.uint8))
    plan = pairs[0]
    each = plan.ground_words(tmp_path / "film.png", "A nodule is seen, twice.")
    assert [each.text[start:end] for start, end in each.spans] == ["A", "nodule", "is", "seen", "twice"]
    assert each.maps.shape == (5, 40, 60)
    assert each.importance.sum() == pytest.approx(1, abs=1e-5)
    call = ["ground", "--workdir", str(run), "--image", str(tmp_path / "film.png"), "--phrase", each.text]
    assert main([*call, "--words", "--out", str(tmp_path / "words.png")]) == 0
    assert cv2.imread(str(tmp_path / "words.png")).shape[2] == 3
    assert main([*call, "--words", "--against", "bulla", "--out", str(tmp_path / "words.png")]) == 2


def test_the_map_of_a_phrase_of_one_word_is_that_word_s(pairs):
    plan, images, _ = pairs
    gray = images[0, ..., 0]
    bare = plan.with_alignment(word_keep=1.0)
    one = bare.ground_words(gray, "nodule").maps[0]
    features = bare.encode_images(images[:1])
    want, _ = bare.ground_features(features, bare.encode_texts(["nodule"]))
    np.testing.assert_allclose(one.max(), want.max(), rtol=0.2)
