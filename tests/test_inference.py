import contextlib
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import jax
import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom import uid

import plan_jax
from plan_jax.data.image import model_input, read_image
from plan_jax.errors import InputError
from plan_jax.inference import Plan
from plan_jax.sharding import make_mesh

PHRASES = ("nodule in the left upper zone", "fracture", "no effusion is seen")


def picture(height: int, width: int, seed: int = 0) -> np.ndarray:
    """Smooth gray levels: JPEG keeps them nearly as they are."""
    noise = np.random.default_rng(seed).normal(size=(height, width))
    smooth = cv2.GaussianBlur(noise, (0, 0), 6)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX).astype(np.uint8)


def write_png16(path: Path, gray: np.ndarray) -> None:
    cv2.imwrite(str(path), gray.astype(np.uint16) * 257)


def write_dicom(path: Path, gray: np.ndarray) -> None:
    """12 significant bits, no window."""
    meta = pydicom.dataset.FileMetaDataset()
    meta.MediaStorageSOPClassUID = uid.SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = uid.generate_uid(entropy_srcs=["a test"])
    meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    dataset = pydicom.FileDataset(str(path), {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID, dataset.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    dataset.Rows, dataset.Columns = gray.shape
    dataset.SamplesPerPixel, dataset.PhotometricInterpretation = 1, "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation = 16, 12, 11, 0
    dataset.PixelData = (gray.astype(np.uint16) * 16).tobytes()
    dataset.save_as(path, enforce_file_format=True)


WRITERS = {
    "png": lambda path, gray: cv2.imwrite(str(path), gray),
    "jpg": lambda path, gray: Image.fromarray(gray).save(path, quality=97),
    "16.png": write_png16,
    "dcm": write_dicom,
}


@contextlib.contextmanager
def away(folder: Path) -> Iterator[None]:
    """The folder is gone for a while."""
    hidden = folder.rename(folder.with_name("hidden"))
    try:
        yield
    finally:
        hidden.rename(folder)


@pytest.mark.parametrize("size", [(32, 32), (50, 70), (300, 20), (1, 1), (7, 640)])
def test_a_map_has_the_size_of_its_image(size, plan):
    gray = picture(*size)
    found = plan.ground(gray, PHRASES[0])
    assert found.map.shape == size
    assert np.isfinite(found.map).all()
    assert np.abs(found.map).max() <= 1 + 1e-5
    np.testing.assert_array_equal(found.image, gray)


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_of_any_kind_gives_the_map_of_its_pixels(kind, plan, tmp_path):
    gray = picture(90, 61)
    path = tmp_path / f"film.{kind}"
    WRITERS[kind](path, gray)
    found = plan.ground(path, PHRASES[0])
    np.testing.assert_array_equal(found.image, read_image(path))
    assert np.abs(found.image.astype(int) - gray).max() <= (8 if kind == "jpg" else 1)
    np.testing.assert_allclose(found.map, plan.ground(found.image, PHRASES[0]).map, atol=1e-6)
    assert plan.ground(str(path), PHRASES[0]).score == found.score


def test_a_map_is_told_with_the_words_and_their_weights(plan):
    found = plan.ground(picture(40, 40), "Nodule, in the left-upper zone.")
    assert found.phrase == "Nodule, in the left-upper zone."
    assert found.words == ("there", "is", "Nodule", "in", "the", "left", "upper", "zone")
    assert found.word_importance.shape == (8,)
    assert (found.word_importance >= 0).all()
    assert found.word_importance.sum() == pytest.approx(1, abs=1e-5)


def test_a_map_depends_on_the_phrase_and_on_the_image(plan):
    one, other = picture(40, 40), picture(40, 40, seed=1)
    assert np.abs(plan.ground(one, PHRASES[0]).map - plan.ground(one, PHRASES[1]).map).max() > 0.01
    assert np.abs(plan.ground(one, PHRASES[0]).map - plan.ground(other, PHRASES[0]).map).max() > 0.01


def test_similarity_is_that_of_every_pair_alone(plan):
    images = [picture(40, 40, seed=seed) for seed in range(3)] + [picture(90, 61)]
    together = plan.similarity(images, PHRASES)
    assert together.shape == (4, 3)
    pairs = [[plan.similarity([image], [phrase])[0, 0] for phrase in PHRASES] for image in images]
    np.testing.assert_allclose(together, pairs, atol=2e-6)
    assert np.ptp(together) > 0.01
    assert plan.ground(images[3], PHRASES[1]).score == pytest.approx(pairs[3][1], abs=2e-6)


def test_more_images_than_a_batch_are_scored_alike(plan):
    """The batches of 64 are cut and filled up: neither may show."""
    few = [picture(32, 32, seed=seed) for seed in range(4)]
    many = plan.similarity([few[index % 4] for index in range(70)], PHRASES[:1])
    np.testing.assert_allclose(many[:, 0], np.resize(plan.similarity(few, PHRASES[:1])[:, 0], 70), atol=2e-6)


def test_other_numbers_of_images_and_phrases_compile_nothing_new(plan, compilations):
    def similarity(images: int, phrases: int):
        squares = np.zeros((images, 32, 32, 1), np.uint8)
        plan.score(plan.encode_images(squares), plan.encode_texts([f"nodule {n}" for n in range(phrases)]))

    similarity(65, 270)
    before = len(compilations)
    for images, phrases in ((90, 300), (256, 257), (129, 65)):
        similarity(images, phrases)
    assert len(compilations) == before


def test_eight_devices_answer_as_one(plan):
    images = [picture(40, 40, seed=seed) for seed in range(11)]
    spread = plan.over(make_mesh())
    assert len(jax.tree.leaves(spread.variables)[0].sharding.device_set) == len(jax.devices()) == 8
    np.testing.assert_allclose(spread.similarity(images, PHRASES), plan.similarity(images, PHRASES), atol=1e-5)
    squares = np.stack([model_input(image, plan.config.data)[0] for image in images])[..., None]
    np.testing.assert_allclose(spread.encoder_features(squares), plan.encoder_features(squares), atol=1e-5)
    features, texts = spread.encode_images(squares), spread.encode_phrases(PHRASES * 4)
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves((features, texts)))
    pairs = features, jax.tree.map(lambda leaf: leaf[:11], texts)
    np.testing.assert_allclose(spread.ground_features(*pairs)[0], plan.ground_features(*pairs)[0], atol=1e-5)
    fresh = spread.untrained()
    assert len(jax.tree.leaves(fresh.variables)[0].sharding.device_set) == 8


def test_the_features_of_a_probe_are_those_before_the_projection(plan):
    squares = np.stack([picture(32, 32, seed=seed) for seed in range(3)])[..., None]
    found = plan.encoder_features(squares)
    head = plan.variables["params"]["image_projection"]
    projected = found @ np.asarray(head["kernel"]) + np.asarray(head["bias"])
    expected = projected / np.linalg.norm(projected, axis=1, keepdims=True)
    np.testing.assert_allclose(plan.encode_images(squares).pooled, expected, atol=1e-5)


def test_files_and_arrays_may_be_mixed(plan, tmp_path):
    gray = picture(33, 44)
    cv2.imwrite(str(tmp_path / "film.png"), gray)
    scores = plan.similarity([tmp_path / "film.png", gray, str(tmp_path / "film.png")], ["cavity"])
    np.testing.assert_allclose(scores, scores[0, 0], atol=1e-6)


def test_the_run_directory_is_the_only_input(trained, phantom_data, plan, tmp_path):
    expected = plan.ground(picture(50, 60), PHRASES[0])
    moved = shutil.copytree(trained.workdir, tmp_path / "elsewhere")
    with away(phantom_data), away(trained.workdir):
        found = plan_jax.Plan.load(str(moved)).ground(picture(50, 60), PHRASES[0])
    np.testing.assert_array_equal(found.map, expected.map)
    assert found.score == expected.score


def test_the_untrained_model_is_the_one_before_the_first_step(plan):
    fresh = plan.untrained()
    assert (fresh.step, plan.step) == (0, 300)
    image = picture(40, 40)
    assert np.abs(fresh.ground(image, PHRASES[0]).map - plan.ground(image, PHRASES[0]).map).max() > 0.01
    np.testing.assert_array_equal(fresh.ground(image, "cavity").map, plan.untrained().ground(image, "cavity").map)


@pytest.mark.parametrize("phrase", ["", "  \n", "...", "nodule " * 25])
def test_a_phrase_without_a_word_or_too_long_is_refused(phrase, plan):
    with pytest.raises(InputError, match="phrase must"):
        plan.ground(picture(32, 32), phrase)


def test_a_phrase_is_never_cut(plan):
    """24 words are what the tiny configuration reads, two of them of the prompt; a longer phrase is refused above."""
    assert len(plan.ground(picture(32, 32), "nodule " * 22).words) == 24


def test_a_phrase_is_grounded_as_the_sentence_of_the_prompt(plan):
    image = picture(32, 32)
    bare = dataclasses.replace(plan.config.evaluation, prompt="{}")
    unprompted = dataclasses.replace(plan, config=dataclasses.replace(plan.config, evaluation=bare))
    found = plan.ground(image, "nodule on the left")
    same = unprompted.ground(image, "there is nodule on the left.")
    np.testing.assert_array_equal(found.map, same.map)
    assert found.words == same.words
    assert unprompted.ground(image, "nodule on the left").words == found.words[2:]


@pytest.mark.parametrize(
    "image", [np.zeros((4, 4)), np.zeros((4, 4, 3), np.uint8), np.zeros((4, 4), np.uint16), np.zeros((0, 4), np.uint8)]
)
def test_an_array_that_is_no_gray_image_is_refused(image, plan):
    with pytest.raises(InputError, match=r"\[H W\] uint8"):
        plan.ground(image, "nodule")


@pytest.mark.parametrize(("images", "phrases"), [([], ["nodule"]), ([np.zeros((4, 4), np.uint8)], [])])
def test_nothing_to_score_is_refused(images, phrases, plan):
    with pytest.raises(InputError, match="at least one"):
        plan.similarity(images, phrases)


def test_a_folder_that_is_no_run_is_refused(tmp_path, trained):
    with pytest.raises(InputError, match=r"config\.json"):
        Plan.load(tmp_path)
    shutil.copy(trained.workdir / "config.json", tmp_path)
    with pytest.raises(InputError, match="checkpoint"):
        Plan.load(tmp_path)
    shutil.copytree(trained.workdir / "checkpoints", tmp_path / "checkpoints")
    with pytest.raises(InputError, match=r"tokenizer\.json"):
        Plan.load(tmp_path)


def test_with_a_crop_the_model_sees_the_middle_and_the_rest_of_the_map_is_background(plan):
    """Of 64 x 64 pixels loaded as they are, a model of 32 px sees the middle, as an image of its own would be seen."""
    config = dataclasses.replace(plan.config, data=dataclasses.replace(plan.config.data, crop=0.5))
    image, middle = picture(64, 64), np.s_[16:48, 16:48]
    found = dataclasses.replace(plan, config=config).ground(image, PHRASES[0])
    alone = plan.ground(np.ascontiguousarray(image[middle]), PHRASES[0])
    np.testing.assert_allclose(found.map[middle], alone.map, atol=1e-6)
    assert found.score == pytest.approx(alone.score, abs=1e-5)
    around = np.ones((64, 64), bool)
    around[middle] = False
    assert (found.map[around] == found.map.min()).all()
    assert np.ptp(alone.map) > 0
