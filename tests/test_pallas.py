"""The fused kernels, interpreted, against the reference; how reports share a sheet; and that the kernels can be built.

That they are fast, and that what the compilers of TPU and GPU make of them is right, only such a machine can show.
"""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import oracle
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from test_alignment import ARRAYS, CASES, EMPTY, MASK, ROWS, assert_all_close, config_of, cotangent_of, problems, ragged

from plan_jax.alignment import pallas, pallas_gpu, pallas_tpu, reference
from plan_jax.alignment.pallas_gpu_kernel import dot_of_halves
from plan_jax.alignment.pallas_pack import most_sheets, pack, put, take
from plan_jax.alignment.similarity import best_here, word_patch_similarity
from plan_jax.config import AlignmentConfig
from plan_jax.errors import InputError

KERNELS = {"tpu": pallas_tpu, "gpu": pallas_gpu}
each_kernel = pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)


def scores_and_gradients(arrays: oracle.Arrays, config: AlignmentConfig, kernels=None, dtype=jnp.float32):
    """z and the gradients of sum(cotangent * z): of the reference, or of interpreted kernels."""
    images, texts = arrays.features(dtype)

    def score(patch, word, word_logit):
        if kernels is not None:
            return pallas.fused(config, pallas.interpreted(kernels), patch, word, word_logit, texts.mask)
        return reference.all_pairs(config, patch, word, word_logit, texts.mask)

    def both(cotangent, *inputs):
        z, pull = jax.vjp(score, *inputs)
        return {"z": z, "gradient": dict(zip(("patch", "word", "word_logit"), pull(cotangent), strict=True))}

    run = jax.jit(both, compiler_options=oracle.QUICK)  # anew for each call: some tests change the kernels' constants
    cotangent = jnp.asarray(cotangent_of(arrays), jnp.float32)
    return jax.tree.map(np.asarray, run(cotangent, images.patch, texts.word, texts.word_logit))


@functools.cache
def expected_of(config: AlignmentConfig):
    return scores_and_gradients(ARRAYS, config)


# The mathematics of a tile is one for both. The GPU has no patch importance.
KERNELS_OF_CASES = [(pallas_tpu, *case.values) for case in CASES[::2]]
KERNELS_OF_CASES += [(pallas_gpu, config_of(row)) for row in ROWS if not row[4]]


@pytest.mark.parametrize(("kernels", "config"), KERNELS_OF_CASES)
def test_scores_and_gradients_are_those_of_the_reference_and_padding_is_never_read(kernels, config):
    word, word_logit = np.where(MASK[..., None], ARRAYS.word, np.nan), np.where(MASK, ARRAYS.word_logit, np.nan)
    found = scores_and_gradients(ARRAYS._replace(word=word, word_logit=word_logit), config, kernels)
    assert_all_close(found, expected_of(config))
    assert np.all(found["z"][:, EMPTY] == 0)
    assert np.all(found["gradient"]["word"][~MASK] == 0)
    assert np.all(found["gradient"]["word_logit"][~MASK] == 0)


LENGTHS = {
    "several sheets": [3, 40, 1, 0, 17, 40, 2, 2, 39, 25, 30, 9, 0, 7, 40, 40, 38, 5],
    "more reports than lanes": [1, 0, 2] * 44,
    "no words at all": [0, 0, 0],
}


@each_kernel
@pytest.mark.parametrize(
    ("name", "alone"), [("several sheets", False), *((name, True) for name in LENGTHS)], ids=lambda x: str(x)
)
def test_how_tiles_are_gone_through_changes_nothing(kernels, name, alone, monkeypatch):
    """Sums over images and over sheets are made at once, or one image at a time by one program each."""
    if alone:
        monkeypatch.setattr(pallas_tpu, "GROUP_BYTES", 0)
        monkeypatch.setattr(pallas_gpu, "PROGRAMS", 1)
    lengths, config = LENGTHS[name], config_of(ROWS[5 if kernels is pallas_tpu else 7])
    arrays = oracle.random_arrays(0, 2, ragged(lengths, len(lengths), max(1, *lengths)), patches=5, dim=3)
    assert_all_close(scores_and_gradients(arrays, config, kernels), scores_and_gradients(arrays, config), 2e-5)


@each_kernel
def test_patches_and_dimensions_may_take_more_than_one_tile(kernels):
    config = config_of(ROWS[4])
    arrays = oracle.random_arrays(0, 1, MASK[:2], patches=129, dim=130)
    assert_all_close(scores_and_gradients(arrays, config, kernels), scores_and_gradients(arrays, config))


@pytest.mark.parametrize(("kernels", "row"), [(pallas_tpu, 3), (pallas_tpu, 9), (pallas_gpu, 9)])
def test_operands_in_bfloat16_agree_to_a_hundredth(kernels, row):
    """At dimensions in use: with few of them, three rounds make more of what rounding the features alone does."""
    config = config_of(ROWS[row])
    arrays = oracle.random_arrays(1, 2, MASK, patches=49, dim=128)
    expected = scores_and_gradients(arrays, config)
    found = scores_and_gradients(arrays, dataclasses.replace(config, dtype="bfloat16"), kernels)
    np.testing.assert_allclose(found["z"], expected["z"], atol=1e-2)
    for name, gradient in expected["gradient"].items():
        assert np.linalg.norm(found["gradient"][name] - gradient) < 1e-2 * np.linalg.norm(gradient)
        assert found["gradient"][name].dtype == np.float32


def test_bfloat16_features_have_bfloat16_gradients_computed_in_float32():
    config = config_of(ROWS[9])
    images, texts = ARRAYS.features(jnp.bfloat16)
    rounded = ARRAYS._replace(patch=images.patch, word=texts.word, word_logit=texts.word_logit)
    found, expected = (
        scores_and_gradients(ARRAYS, config, pallas_tpu, jnp.bfloat16),
        scores_and_gradients(rounded, config),
    )
    np.testing.assert_allclose(found["z"], expected["z"], atol=1e-5)
    for name, gradient in found["gradient"].items():
        assert gradient.dtype == jnp.bfloat16
        np.testing.assert_allclose(gradient.astype(np.float32), expected["gradient"][name], rtol=1e-2, atol=1e-5)


@settings(max_examples=3)  # each compiles
@given(problems(), st.sampled_from(list(KERNELS)))
def test_kernels_are_the_reference_for_any_shape_and_mask(problem, name):
    arrays, config = problem
    config = dataclasses.replace(config, importance=config.importance if name == "tpu" else 0.0)
    assert_all_close(scores_and_gradients(arrays, config, KERNELS[name]), scores_and_gradients(arrays, config), 2e-5)


def test_the_product_of_halves_is_that_of_float32():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(16, 64)).astype(np.float32), rng.normal(size=(32, 64)).astype(np.float32)
    found = dot_of_halves(jnp.asarray(x), jnp.asarray(y), (1, 1))
    bound = 2**-15 * np.abs(x) @ np.abs(y).T
    assert np.all(np.abs(found - x.astype(float) @ y.T.astype(float)) < bound)


def test_without_an_accelerator_a_kernel_is_interpreted():
    config = config_of(ROWS[3])
    config = dataclasses.replace(config, implementation="pallas")
    z = word_patch_similarity(*ARRAYS.features(), config=config)
    np.testing.assert_allclose(z, expected_of(config)["z"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("platform", "kernel", "row", "dtype"),
    [
        ("tpu", {"tpu_custom_call"}, 3, "float32"),
        ("tpu", {"tpu_custom_call"}, 9, "bfloat16"),
        ("cuda", {"xla.gpu.triton"}, 7, "float32"),
        ("cuda", {"xla.gpu.triton"}, 9, "bfloat16"),
    ],
)
def test_kernels_are_lowered_for_machines_that_are_not_here(platform, kernel, row, dtype):
    """Up to the compiler of the accelerator: every operation has to have a form in the language of its kernels."""
    images, texts = oracle.random_arrays(0, 2, np.ones((3, 40), bool), patches=70, dim=10).features()
    config = dataclasses.replace(config_of(ROWS[row]), dtype=dtype)

    def total(patch, word, word_logit):
        run = pallas.compiled(KERNELS["gpu" if platform == "cuda" else platform])
        return pallas.fused(config, run, patch, word, word_logit, texts.mask).sum()

    traced = jax.jit(jax.grad(total, argnums=(0, 1, 2))).trace(images.patch, texts.word, texts.word_logit)
    program = traced.lower(lowering_platforms=(platform,)).as_text()
    assert {name for name in ("tpu_custom_call", "xla.gpu.triton") if name in program} == kernel


@functools.partial(jax.jit, static_argnames=("rows", "lanes"))
def _round_trip(mask, rows, lanes):
    number = jnp.arange(1.0, mask.size + 1).reshape(mask.shape)
    sheets = pack(mask, rows=rows, lanes=lanes)
    packed = take(number, sheets)
    return sheets, packed, put(packed, sheets, number), number


def sheets_by_hand(lengths, rows: int, lanes: int) -> list[list[int]]:
    """A report opens a new sheet when the last has no room for it, or belongs to the lanes before."""
    sheets = [[]]
    for report, length in enumerate(lengths):
        if sum(lengths[r] for r in sheets[-1]) + length > rows or (report and report % lanes == 0):
            sheets.append([])
        sheets[-1].append(report)
    return sheets


@example([40] * 23)
@example([21] * 23)
@example([0] * 23)
@given(st.lists(st.integers(0, 40), min_size=23, max_size=23))
def test_sheets_hold_each_word_once_and_as_many_reports_as_fit(lengths):
    mask, rows, lanes = ragged(lengths, 23, 40), 40, 16
    sheets, packed, back, number = jax.tree.map(np.asarray, _round_trip(jnp.asarray(mask), rows, lanes))
    expected = sheets_by_hand(lengths, rows, lanes)
    assert sheets.count == len(expected) <= most_sheets(23, 40, rows=rows, lanes=lanes) == len(packed)
    for sheet, reports in enumerate(expected):
        assert sheets.base[sheet] == reports[0] // lanes * lanes
        assert sheets.rows[sheet] == sum(lengths[r] for r in reports)
        assert packed[sheet, : sheets.rows[sheet]].tolist() == number[reports][mask[reports]].tolist()
        own = np.repeat(reports, [lengths[r] for r in reports])
        assert (sheets.lane[sheet, : sheets.rows[sheet]] + sheets.base[sheet]).tolist() == own.tolist()
    unused = np.arange(rows) >= sheets.rows[:, None]
    assert np.all(packed[unused] == 0)
    assert np.all(sheets.lane[unused] == -1)
    assert np.all(sheets.rows[len(expected) :] == 0)
    np.testing.assert_array_equal(back, np.where(mask, number, 0))


@pytest.mark.parametrize("kernels", KERNELS.values(), ids=KERNELS)
def test_short_reports_share_a_sheet_and_long_ones_have_room(kernels):
    assert kernels.sheet_rows(1, 3) < kernels.sheet_rows(1000, 3) == kernels.ROWS
    assert kernels.sheet_rows(2, 300) >= 300


def test_most_of_a_tile_is_words_where_reports_differ():
    """Reports of 5 to 97 words, as real ones are: what kernels compute, as a multiple of what the words need."""
    lengths = np.random.default_rng(0).integers(5, 98, size=256)
    mask = jnp.asarray(np.arange(97) < lengths[:, None])
    tpu = _round_trip(mask, pallas_tpu.ROWS, pallas_tpu.LANES)[0]
    gpu = _round_trip(mask, pallas_gpu.ROWS, pallas_gpu.LANES)[0]
    assert int(tpu.count) * pallas_tpu.ROWS < 1.25 * lengths.sum()
    assert np.sum(-(-np.asarray(gpu.rows) // pallas_gpu.PART)) * pallas_gpu.PART < 1.2 * lengths.sum()
    assert mask.size > 1.8 * lengths.sum()  # every report padded to the longest


@pytest.mark.parametrize(
    ("platform", "kind", "importance", "expected"),
    [
        ("cpu", "cpu", 0.0, "scan"),
        ("tpu", "TPU v5 lite", 1.0, "pallas"),
        ("tpu", "TPU v4", 0.0, "scan"),
        ("gpu", "NVIDIA H100 80GB HBM3", 0.0, "pallas"),
        ("gpu", "NVIDIA H100 80GB HBM3", 1.0, "scan"),
    ],
)
def test_the_kernel_is_picked_by_platform(monkeypatch, platform, kind, importance, expected):
    device = SimpleNamespace(platform=platform, device_kind=kind)
    monkeypatch.setattr(jax.sharding, "get_abstract_mesh", lambda: SimpleNamespace(abstract_device=device))
    config = AlignmentConfig(importance=importance)
    assert best_here(config) == expected
    if platform == "gpu" and importance:
        images, texts = ARRAYS.features()
        with pytest.raises(InputError, match="importance must be 0 for the fused kernel on a GPU"):
            pallas.all_pairs(config, images.patch, texts.word, texts.word_logit, texts.mask)
