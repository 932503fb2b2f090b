"""PlanModel with a tiny configuration: what its features promise, against numpy and the encoders run on their own."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest

from plan_jax.config import AlignmentConfig, Config, DataConfig, ImageEncoderConfig, TextEncoderConfig
from plan_jax.encoders.bert import Bert
from plan_jax.encoders.resnet import ResNet
from plan_jax.model import PlanModel, initial_variables, merge_pieces
from plan_jax.types import Batch

WORDS, PATCH = 5, 4
CONFIG = Config(
    data=DataConfig(image_size=16, max_tokens=9, max_words=WORDS),
    image_encoder=ImageEncoderConfig(
        stem="patchify", patch=PATCH, width=4, stages=(1, 1), block="basic", local_stage=1
    ),
    text_encoder=TextEncoderConfig(
        vocab_size=30, hidden=8, layers=1, heads=2, intermediate=16, max_positions=16, dropout=0.0
    ),
    alignment=AlignmentConfig(dim=6),
)
MODEL = PlanModel(CONFIG)
ROWS, COLUMNS = 6, 10  # of the grid of IMAGES: not square, so that rows and columns cannot be swapped
IMAGES = np.random.default_rng(0).integers(0, 256, (2, ROWS * PATCH, COLUMNS * PATCH, 1), np.uint8)

# Two reports: [CLS] a b##b , c [SEP] and padding; [CLS] a [SEP] and padding.
WORD_IDS = np.array([[-1, 0, 1, 1, -1, 2, -1, -1, -1], [-1, 0, -1, -1, -1, -1, -1, -1, -1]], np.int32)
TOKEN_MASK = np.array([[1] * 7 + [0] * 2, [1] * 3 + [0] * 6], bool)
TOKEN_IDS = np.where(TOKEN_MASK, np.random.default_rng(1).integers(1, 30, TOKEN_MASK.shape), 0).astype(np.int32)


@functools.cache
def first_draw():
    return initial_variables(CONFIG, 0)


@functools.cache
def variables():
    """Parameters and statistics in which no scale is 1 and no bias 0, so that an omission shows."""
    rng = np.random.default_rng(2)

    def fill(path, leaf):
        if path[-1].key in ("scale", "var"):
            return rng.uniform(0.5, 1.5, leaf.shape).astype(np.float32)
        return np.asarray(leaf + 0.3 * rng.normal(size=leaf.shape), np.float32)

    return jax.tree_util.tree_map_with_path(fill, first_draw())


@functools.partial(jax.jit, static_argnames=("config", "train"), compiler_options=oracle.QUICK)
def _encode_image(variables, image, config, train):
    model = PlanModel(config)
    return model.apply(variables, image, train=train, method="encode_image", mutable=["batch_stats"])


def encode_image(image, *, config=CONFIG, train=False):
    """(features, variables that the call changed)."""
    return _encode_image(variables(), jnp.asarray(image), config, train)


@functools.partial(jax.jit, static_argnames="config", compiler_options=oracle.QUICK)
def _encode_text(variables, *columns, config):
    return PlanModel(config).apply(variables, *columns, method="encode_text")


def encode_text(token_ids=TOKEN_IDS, word_ids=WORD_IDS, token_mask=TOKEN_MASK, *, sentence_ids=None, config=CONFIG):
    sentence_ids = np.where(token_mask, 0, -1) if sentence_ids is None else sentence_ids
    columns = (token_ids, word_ids, token_mask, sentence_ids)
    return _encode_text(variables(), *map(jnp.asarray, columns), config=config)


def assert_close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found, expected, rtol=tolerance, atol=tolerance)


def dense(parameters, x):
    return x @ np.asarray(parameters["kernel"], np.float64) + np.asarray(parameters.get("bias", 0.0), np.float64)


def test_the_feature_of_a_word_is_the_mean_of_its_pieces():
    token = jnp.array([[[1.0, 9.0], [2.0, 0.0], [4.0, 6.0], [5.0, 7.0], [8.0, 8.0]]])
    word, mask = merge_pieces(token, jnp.array([[-1, 0, 0, 2, 7]]), words=4)  # word 1 has no piece, 7 is past the end
    assert mask.tolist() == [[True, False, True, False]]
    assert word.tolist() == [[[3.0, 3.0], [0.0, 0.0], [5.0, 7.0], [0.0, 0.0]]]


def test_pieces_of_a_word_need_not_be_neighbours_and_reports_do_not_mix():
    token = jnp.arange(6.0).reshape(2, 3, 1)
    word, mask = merge_pieces(token, jnp.array([[1, 0, 1], [0, 0, 0]]), words=2)
    assert word[..., 0].tolist() == [[1.0, 1.0], [4.0, 0.0]]
    assert mask.tolist() == [[True, True], [True, False]]


def test_every_feature_has_length_one_and_padding_words_length_zero():
    images, _ = encode_image(IMAGES)
    texts = encode_text()
    assert images.grid == (ROWS, COLUMNS)
    assert images.patch.shape == (2, ROWS * COLUMNS, 6)
    assert texts.word.shape == (2, WORDS, 6)
    for feature in (images.pooled, images.patch, texts.pooled):
        assert_close(jnp.linalg.norm(feature, axis=-1), np.ones(feature.shape[:-1]))
    assert texts.mask.tolist() == [[True, True, True, False, False], [True, False, False, False, False]]
    assert_close(jnp.linalg.norm(texts.word, axis=-1), np.asarray(texts.mask, float))
    assert np.all(np.asarray(texts.word)[~np.asarray(texts.mask)] == 0)


def test_patch_features_are_the_projected_map_row_by_row_and_the_global_feature_the_projected_mean():
    params, statistics = variables()["params"], variables()["batch_stats"]
    pixels = (IMAGES / 255.0 - 0.449) / 0.226
    encoder = {"params": params["image_encoder"], "batch_stats": statistics["image_encoder"]}
    maps = ResNet(CONFIG.image_encoder).apply(encoder, jnp.asarray(pixels, jnp.float32), train=False)
    g = params["patch_projection"]
    images, _ = encode_image(IMAGES)
    local, last = (np.asarray(x, np.float64) for x in (maps[0], maps[-1]))
    for i, row, column in np.ndindex(2, ROWS, COLUMNS):
        hidden = dense(g["Dense_0"], local[i, row, column])
        hidden = (hidden - hidden.mean()) / np.sqrt(hidden.var() + 1e-6)
        hidden = np.maximum(hidden * g["LayerNorm_0"]["scale"] + g["LayerNorm_0"]["bias"], 0)
        assert_close(images.patch[i, row * COLUMNS + column], oracle.unit(dense(g["Dense_1"], hidden)))
    for i in range(2):
        mean = last[i].mean(axis=(0, 1))
        assert_close(images.pooled[i], oracle.unit(dense(params["image_projection"], mean)))


@pytest.mark.parametrize(("row", "column"), [(1, 7), (0, 0), (5, 9), (3, 2)])
def test_a_bright_patch_changes_only_the_patch_features_around_it(row, column):
    image = np.zeros((1, ROWS * PATCH, COLUMNS * PATCH, 1), np.uint8)
    dark = encode_image(image)[0].patch
    image[:, row * PATCH : (row + 1) * PATCH, column * PATCH : (column + 1) * PATCH] = 255
    bright = encode_image(image)[0].patch
    changed = np.any(np.asarray(bright != dark), axis=-1).reshape(ROWS, COLUMNS)
    assert changed[row, column]
    for r, c in np.argwhere(changed):
        assert max(abs(r - row), abs(c - column)) <= 2  # two 3x3 convolutions after the stem


def test_word_features_are_projected_means_of_their_pieces_and_the_global_feature_that_of_all_pieces():
    parameters = variables()["params"]
    token = Bert(CONFIG.text_encoder).apply({"params": parameters["text_encoder"]}, TOKEN_IDS, TOKEN_MASK, train=False)
    token = np.asarray(token, np.float64)
    texts = encode_text()
    for report in range(2):
        every = token[report][TOKEN_MASK[report]].mean(axis=0)
        assert_close(texts.pooled[report], oracle.unit(dense(parameters["text_projection"], every)))
        for word in range(WORD_IDS[report].max() + 1):
            mean = token[report][WORD_IDS[report] == word].mean(axis=0)
            assert_close(texts.word[report, word], oracle.unit(dense(parameters["word_projection"], mean)))
            assert_close(texts.word_logit[report, word], dense(parameters["word_score"], mean)[0])


def test_more_padding_tokens_never_change_a_feature():
    def padded(x, filling):
        return np.concatenate([x, np.full((2, 4), filling, x.dtype)], axis=1)

    found, wide = encode_text(), encode_text(padded(TOKEN_IDS, 17), padded(WORD_IDS, -1), padded(TOKEN_MASK, False))
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-6), wide, found)


def test_what_stands_under_the_padding_never_changes_a_feature():
    found, dirty = encode_text(), encode_text(np.where(TOKEN_MASK, TOKEN_IDS, 29))
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-6), dirty, found)


def test_with_sentence_context_a_word_does_not_depend_on_other_sentences():
    """And with report context it does, so that the field changes something."""
    sentences = np.array([[0, 0, 0, 0, 1, 1, 1, -1, -1], [0] * 3 + [-1] * 6])
    changed = np.where(sentences == 1, 7, TOKEN_IDS)
    encoder = dataclasses.replace(CONFIG.text_encoder, context="sentence")
    own = dataclasses.replace(CONFIG, text_encoder=encoder)
    first = WORD_IDS[0, :4].max()  # the last word of the first sentence
    for config, same in ((own, True), (CONFIG, False)):
        before = encode_text(sentence_ids=sentences, config=config).word[0, first]
        after = encode_text(changed, sentence_ids=sentences, config=config).word[0, first]
        assert np.allclose(before, after, atol=1e-6) == same


@pytest.mark.parametrize("words", [2, 8])
def test_more_or_fewer_words_leave_the_features_of_those_they_share(words):
    found = encode_text()
    other = encode_text(config=dataclasses.replace(CONFIG, data=dataclasses.replace(CONFIG.data, max_words=words)))
    assert other.word.shape[1] == words
    shared = min(words, WORDS)
    assert_close(other.word[:, :shared], found.word[:, :shared], 1e-6)
    assert_close(other.word_logit[:, :shared], found.word_logit[:, :shared], 1e-6)
    assert_close(other.pooled, found.pooled, 1e-6)
    assert not np.any(other.mask[:, shared:])


def test_a_report_without_words_has_finite_features_and_an_empty_mask():
    texts = encode_text(word_ids=np.full_like(WORD_IDS, -1))
    assert not np.any(texts.mask)
    assert np.all(np.asarray(texts.word) == 0)
    assert all(np.all(np.isfinite(x)) for x in jax.tree.leaves(texts))


def test_an_image_is_encoded_the_same_in_any_company():
    together, _ = encode_image(IMAGES)
    alone, _ = encode_image(IMAGES[1:])
    assert_close(alone.patch[0], together.patch[1])
    assert_close(alone.pooled[0], together.pooled[1])


def test_batch_statistics_change_only_in_training_and_only_in_what_is_returned():
    before = jax.tree.map(np.array, variables())
    _, evaluated = encode_image(IMAGES, train=False)
    _, trained = encode_image(IMAGES, train=True)
    jax.tree.map(np.testing.assert_array_equal, variables(), before)
    jax.tree.map(np.testing.assert_array_equal, evaluated["batch_stats"], before["batch_stats"])
    same = jax.tree.map(np.array_equal, trained["batch_stats"], before["batch_stats"])
    assert not any(jax.tree.leaves(same))


def test_a_batch_is_its_images_and_its_texts():
    batch = Batch(
        image=jnp.asarray(IMAGES),
        token_ids=jnp.asarray(TOKEN_IDS),
        word_ids=jnp.asarray(WORD_IDS),
        token_mask=jnp.asarray(TOKEN_MASK),
        sentence_ids=jnp.zeros_like(jnp.asarray(TOKEN_IDS)),
        record=jnp.arange(2),
        words_cut=jnp.zeros(2, jnp.int32),
    )
    features = jax.jit(functools.partial(PlanModel(CONFIG).apply, train=False), compiler_options=oracle.QUICK)
    images, texts = features(variables(), batch)
    jax.tree.map(lambda x, y: assert_close(x, y, 1e-6), (images, texts), (encode_image(IMAGES)[0], encode_text()))


def test_encoders_in_bfloat16_still_give_float32_features_near_those_of_float32():
    config = dataclasses.replace(
        CONFIG,
        image_encoder=dataclasses.replace(CONFIG.image_encoder, dtype="bfloat16"),
        text_encoder=dataclasses.replace(CONFIG.text_encoder, dtype="bfloat16"),
    )
    found = encode_image(IMAGES, config=config)[0], encode_text(config=config)
    expected = encode_image(IMAGES)[0], encode_text()
    for half, full in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert half.dtype == full.dtype
        np.testing.assert_allclose(np.asarray(half, float), np.asarray(full, float), atol=0.1)


def test_initial_variables_are_drawn_from_the_seed():
    draws = [first_draw(), *(initial_variables(CONFIG, seed) for seed in (0, 1))]
    jax.tree.map(np.testing.assert_array_equal, draws[0], draws[1])
    kernels = [draw["params"]["word_projection"]["kernel"] for draw in draws]
    assert not np.array_equal(kernels[0], kernels[2])
    assert set(draws[0]) == {"params", "batch_stats"}
    assert {x.dtype for x in jax.tree.leaves(draws[0])} == {jnp.dtype(jnp.float32)}
