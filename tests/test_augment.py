"""Random views of training images: against slices, cv2 and the same draws elsewhere."""

import dataclasses
import functools

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax
import oracle
import pytest

from plan_jax import augment as module
from plan_jax.augment import Views, augment
from plan_jax.config import AugmentConfig, Config, DataConfig, LossConfig
from plan_jax.errors import InputError
from plan_jax.losses import plan_loss
from plan_jax.sharding import make_mesh, over_data
from plan_jax.train.skip import no_losses
from plan_jax.train.state import TrainState
from plan_jax.train.step import train_step
from plan_jax.types import Batch, ImageFeatures, TextFeatures

SIDE, SIZE, COUNT = 40, 30, 16
KINDS = {
    "crop": AugmentConfig(),
    "scale": AugmentConfig(scale=0.3),
    "rotation": AugmentConfig(rotation=12.0),
    "gray levels": AugmentConfig(gain=0.3, gamma=0.3),
    "everything": AugmentConfig(scale=0.3, rotation=12.0, gain=0.3, gamma=0.3),
}


quick = functools.partial(jax.jit, compiler_options=oracle.QUICK)
compiled = quick(augment, static_argnames="config")  # always of COUNT images: one program per configuration
draw_views = quick(module.draw_views, static_argnums=0, static_argnames="config")
affine, relit = quick(module.affine, static_argnums=1), quick(module.relit)
scaled, turned = quick(module.scaled, static_argnums=2), quick(module.turned, static_argnums=2)


def config_of(kind: str = "crop", *, crop: float = SIZE / SIDE, seed: int = 3) -> Config:
    return Config(seed=seed, data=DataConfig(image_size=SIZE, crop=crop), augment=KINDS[kind])


def loaded(side: int = SIDE) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (COUNT, side, side, 1), np.uint8)


def smooth(side: int) -> np.ndarray:
    """Soft spots, so that cv2's coordinates of 1/32 pixel cost less than a gray level, and nothing looks mirrored."""
    y, x = np.mgrid[:side, :side] / side
    spots = sum(a * np.exp(-((x - u) ** 2 + (y - v) ** 2) / 0.03) for a, u, v in ((200, 0.3, 0.3), (120, 0.7, 0.4)))
    return np.clip(spots + 40 * x, 0, 255).astype(np.float32)


def view(*, corner=(5, 2), scale=1.0, angle=0.0) -> Views:
    """One view, degrees given."""
    one = np.ones(1, np.float32)
    return Views(np.array([corner]), scale * one, np.float32(np.deg2rad(angle)) * one, one, one)


def by_cv2(image: np.ndarray, *, corner, scale, angle, size) -> np.ndarray:
    """The same view as cv2 draws it: turned clockwise about the crop's centre and enlarged, then cut out."""
    middle = (corner[1] + size / 2 - 0.5, corner[0] + size / 2 - 0.5)  # of pixel indices, not edges
    matrix = cv2.getRotationMatrix2D(middle, -angle, scale)
    matrix[:, 2] -= corner[1], corner[0]
    return cv2.warpAffine(image, matrix, (size, size), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


# What is drawn


def test_nothing_is_touched_where_everything_is_seen_and_nothing_is_asked_for():
    images = loaded(SIZE)
    assert augment(images, 7, config=config_of(crop=1.0)) is images


def test_a_crop_is_a_slice_of_the_loaded_bytes_at_its_place():
    config, images = config_of(), loaded()
    for step in range(5):
        seen, places = compiled(images, step, config=config), draw_views(COUNT, step, config=config).corner
        assert (seen.shape, seen.dtype) == ((COUNT, SIZE, SIZE, 1), np.uint8)
        for image, found, (top, left) in zip(images, np.asarray(seen), np.asarray(places), strict=True):
            np.testing.assert_array_equal(found, image[top : top + SIZE, left : left + SIZE])


@pytest.fixture(scope="module")
def many() -> Views:
    return jax.device_get(draw_views(12000, 0, config=config_of("everything")))


def test_crops_reach_every_place_equally_often(many):
    count = np.zeros((SIDE - SIZE + 1,) * 2)
    np.add.at(count, (many.corner[:, 0], many.corner[:, 1]), 1)  # fails beyond the last place
    assert count.min() > 0.5 * count.mean()
    assert count.max() < 1.5 * count.mean()


def test_draws_fill_their_ranges_and_favour_no_side(many):
    for drawn in (many.scale, many.gain, many.gamma):
        assert 1 / 1.3 - 1e-6 <= drawn.min() < 1 / 1.29
        assert 1.29 < drawn.max() <= 1.3 + 1e-6
        assert abs(np.log(drawn).mean()) < 0.01
    assert 11.9 < np.rad2deg(np.abs(many.angle).max()) <= 12 + 1e-4
    assert abs(np.rad2deg(many.angle).mean()) < 0.3


def test_a_setting_that_is_switched_on_changes_no_other_draw_and_neither_do_more_rows(many):
    plain = draw_views(COUNT, 0, config=config_of())
    np.testing.assert_array_equal(many.corner[:COUNT], plain.corner)
    for field in ("scale", "gain", "gamma"):
        assert (getattr(plain, field) == 1).all()
    assert not plain.angle.any()


def test_no_view_is_a_mirror_image_even_at_the_widest_settings():
    rng, count = np.random.default_rng(0), 5000
    scale, angle = np.exp2(rng.uniform(-1, 1, count)), np.deg2rad(rng.uniform(-45, 45, count))
    corner, one = rng.integers(0, SIDE - SIZE, (count, 2)), np.ones(count, np.float32)
    matrix = affine(Views(corner, scale.astype(np.float32), angle.astype(np.float32), one, one), SIZE)
    assert (np.linalg.det(matrix[:, :, :2]) > 0).all()
    assert (matrix[:, 0, 0] > 0).all()  # left stays left


@pytest.mark.parametrize("kind", ["crop", "everything"])
def test_a_bright_left_side_stays_on_the_left_in_every_view(kind):
    images = np.full((COUNT, SIDE, SIDE, 1), 40, np.uint8)
    images[:, :, : SIDE // 2] = 200
    for step in range(20):
        seen = np.asarray(compiled(images, step, config=config_of(kind)), np.float32)
        assert (seen[:, :, : SIZE // 2].mean((1, 2, 3)) > seen[:, :, SIZE // 2 :].mean((1, 2, 3)) + 10).all()


# How it is made


@pytest.mark.parametrize("angle", [-30.0, -7.0, 3.0, 12.0])
@pytest.mark.parametrize("scale", [0.8, 1.0, 1.25])
def test_a_turned_view_is_that_of_cv2(angle, scale):
    image = smooth(SIDE)
    drawn = view(scale=scale, angle=angle)
    found = turned(image[None, ..., None], affine(drawn, SIZE), SIZE)[0, ..., 0]
    np.testing.assert_allclose(found, by_cv2(image, corner=(5, 2), scale=scale, angle=angle, size=SIZE), atol=1.0)


@pytest.mark.parametrize("scale", [0.5, 0.75, 1.0, 1.5, 2.0])
def test_a_scaled_view_is_that_of_cv2_and_that_of_the_gather(scale):
    image = smooth(SIDE)
    matrix = affine(view(scale=scale), SIZE)
    found = scaled(image[None, ..., None], matrix, SIZE)[0, ..., 0]
    np.testing.assert_allclose(found, by_cv2(image, corner=(5, 2), scale=scale, angle=0.0, size=SIZE), atol=1.0)
    np.testing.assert_allclose(found, turned(image[None, ..., None], matrix, SIZE)[0, ..., 0], atol=1e-3)


def test_a_quarter_turn_of_whole_pixels_goes_clockwise():
    image = loaded(6)[:1].astype(np.float32)
    found = turned(image, affine(view(corner=(0, 0), angle=90.0), 6), 6)
    np.testing.assert_allclose(found[0, ..., 0], np.rot90(image[0, ..., 0], -1), atol=1e-2)


def test_outside_of_the_loaded_square_there_is_black():
    white = np.full((1, 8, 8, 1), 255, np.uint8)
    for make in (scaled, turned):
        seen = make(white, affine(view(corner=(0, 0), scale=0.5), 8), 8)[0, ..., 0]  # a square of 4 px in the middle
        np.testing.assert_allclose(seen[2:6, 2:6], 255)
        assert seen.sum() == pytest.approx(16 * 255)


def test_half_the_size_still_reads_every_pixel():
    for pixel in range(8):
        image = np.zeros((1, 8, 8, 1), np.float32)
        image[:, :, pixel] = 100
        assert scaled(image, affine(view(corner=(0, 0), scale=0.5), 8), 8).sum() == pytest.approx(4 * 50)


def test_gray_levels_follow_gain_and_gamma_and_black_stays_black():
    levels = np.arange(256, dtype=np.uint8).reshape(1, 16, 16, 1)
    found = np.asarray(relit(np.repeat(levels, 3, 0), jnp.array([1.0, 1.5, 0.7]), jnp.array([1.0, 1.0, 2.0])))
    np.testing.assert_allclose(found[0], levels[0], atol=1e-3)
    np.testing.assert_allclose(found[1], np.minimum(1.5 * levels[0], 255), atol=1e-3)
    np.testing.assert_allclose(found[2], 0.7 * levels[0].astype(float) ** 2 / 255, atol=1e-3)
    assert not found[:, 0, 0].any()


@pytest.mark.parametrize("kind", KINDS)
def test_values_stay_gray_levels(kind):
    images = loaded()
    images[:2] = np.array([0, 255]).reshape(2, 1, 1, 1)
    seen = np.asarray(compiled(images, 2, config=config_of(kind)))
    assert seen.shape == (COUNT, SIZE, SIZE, 1)
    assert seen.dtype == (np.uint8 if kind == "crop" else np.float32)
    assert np.isfinite(seen).all()
    assert seen.min() >= 0
    assert seen.max() <= 255 * (1 + 1e-6)
    assert not seen[0].any()


# What a draw depends on


@pytest.mark.parametrize("kind", ["crop", "everything"])
def test_a_row_depends_on_the_step_and_its_place_alone(kind):
    config, images = config_of(kind), loaded()
    seen = np.asarray(compiled(images, 5, config=config))
    np.testing.assert_array_equal(compiled(images, 5, config=config), seen)
    half = COUNT // 2
    others = np.concatenate([255 - images[:half], images[half:]])
    np.testing.assert_array_equal(compiled(others, 5, config=config)[half:], seen[half:])
    other_step = np.asarray(compiled(images, 6, config=config))
    assert all((a != b).any() for a, b in zip(other_step, seen, strict=True))
    same_image = np.asarray(compiled(np.stack([images[0]] * COUNT), 5, config=config))
    assert len({row.tobytes() for row in same_image}) > COUNT / 2


def test_another_seed_draws_other_views(many):
    other = draw_views(12000, 0, config=config_of("everything", seed=4))
    assert all((a != b).any() for a, b in zip(jax.tree.leaves(many), jax.tree.leaves(other), strict=True))


@pytest.mark.parametrize("kind", ["crop", "scale", "everything"])
def test_several_devices_see_what_one_sees_and_send_nothing(kind):
    config, images = config_of(kind), loaded()
    mesh = make_mesh(jax.devices()[:4])
    with jax.set_mesh(mesh):
        spread = jax.device_put(images, over_data(mesh))
        program = compiled.lower(spread, jnp.int32(5), config=config).compile()
        seen = program(spread, jnp.int32(5))
    assert {shard.data.shape for shard in seen.addressable_shards} == {(COUNT // 4, SIZE, SIZE, 1)}
    np.testing.assert_allclose(seen, compiled(images, 5, config=config), atol=1e-3)
    text = program.as_text()
    assert not [name for name in ("all-gather", "all-reduce", "collective-permute", "all-to-all") if name in text]


def test_all_steps_are_one_program():
    traced = []

    @quick
    def seen(images, step):
        traced.append(step)
        return augment(images, step, config=config_of())

    for step in range(3):
        seen(loaded(), jnp.int32(step))
    assert len(traced) == 1


@pytest.mark.parametrize("side", [SIZE, SIDE + 1])
def test_images_loaded_at_another_side_are_refused(side):
    with pytest.raises(InputError, match=f"must be 40 x 40 x 1 .* got {side} x {side} x 1"):
        augment(loaded(side), 0, config=config_of())


# In a step of training


class Linear:
    """A network whose features are sums of the pixels it is given: what it learns tells what it saw."""

    def apply(self, variables, batch: Batch, **_):
        weights = variables["params"]["kernel"]
        pooled = batch.image.astype(jnp.float32).reshape(COUNT, -1) @ weights / 1e4  # [B D]
        word = jnp.zeros((COUNT, 1, weights.shape[1]))
        texts = TextFeatures(jnp.eye(COUNT, weights.shape[1]), word, word[..., 0], jnp.ones((COUNT, 1), bool))
        return (ImageFeatures(pooled, word, (1, 1)), texts), {}


def test_a_step_learns_from_the_views_and_changes_their_draws_with_the_step():
    config = dataclasses.replace(config_of("everything"), loss=LossConfig(local_weight=0.0))
    model, optimizer = Linear(), optax.sgd(1.0)
    kernel = np.random.default_rng(1).normal(size=(SIZE * SIZE, 5)).astype(np.float32)
    none = np.zeros((COUNT, 1), np.int32)
    batch = Batch(loaded(), none, none, none.astype(bool), none, none[:, 0], none[:, 0])
    step = train_step.lower(
        TrainState(jnp.int32(0), {"kernel": kernel}, {}, optimizer.init({"kernel": kernel}), no_losses()),
        batch,
        model=model,
        optimizer=optimizer,
        config=config,
    ).compile(oracle.QUICK)

    @quick
    @functools.partial(jax.value_and_grad, argnums=0)
    def loss_of(kernel, images):
        features, _ = model.apply({"params": {"kernel": kernel}}, dataclasses.replace(batch, image=images))
        return plan_loss(*features, config=config)[0]

    losses = []
    for number in (0, 7):
        state = TrainState(
            jnp.int32(number), {"kernel": jnp.array(kernel)}, {}, optimizer.init({"kernel": kernel}), no_losses()
        )
        state, metrics = step(state, batch)
        views = compiled(batch.image, number, config=dataclasses.replace(config, loss=LossConfig()))
        loss, gradient = loss_of(kernel, views)
        assert metrics["loss"] == pytest.approx(float(loss), rel=1e-4)
        np.testing.assert_allclose(kernel - state.params["kernel"], gradient, atol=1e-4)
        assert np.abs(gradient).max() > 1e-2
        losses.append(float(loss))
    assert losses[0] != losses[1]
