import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan_jax.errors import InputError
from plan_jax.geometry import Letterbox

sides = st.integers(1, 5000)
inputs = st.integers(1, 600)
small = st.integers(1, 40)
coordinate = st.floats(-100, 6000)
boxes = st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=1, max_size=5)


def value_at(grid, x, y):
    """Bilinear interpolation between cell centres, constant beyond them: the definition, one point at a time."""
    h, w = grid.shape
    column, row = min(max(x * w - 0.5, 0), w - 1), min(max(y * h - 0.5, 0), h - 1)
    left, upper = int(column), int(row)
    right, lower = min(left + 1, w - 1), min(upper + 1, h - 1)
    a, b = column - left, row - upper
    return (1 - b) * ((1 - a) * grid[upper, left] + a * grid[upper, right]) + b * (
        (1 - a) * grid[lower, left] + a * grid[lower, right]
    )


@given(sides, sides, inputs)
def test_fit_keeps_the_whole_image_centred_with_the_long_side_filling_the_input(height, width, size):
    box = Letterbox.fit(height, width, size)
    assert max(box.content_height, box.content_width) == size
    assert min(box.content_height, box.content_width) >= 1
    assert 0 <= size - box.content_height - 2 * box.top <= 1
    assert 0 <= size - box.content_width - 2 * box.left <= 1
    exact = np.array([height, width]) * size / max(height, width)
    assert np.all(np.abs(np.maximum(exact, 1) - [box.content_height, box.content_width]) <= 0.5)


def test_fit_on_a_case_worked_by_hand():
    box = Letterbox.fit(300, 200, 90)
    assert (box.content_height, box.content_width, box.top, box.left) == (90, 60, 0, 15)
    assert box.scale_x == box.scale_y == 0.3
    np.testing.assert_allclose(box.boxes_to_model(np.array([10, 20, 200, 300])), [18, 6, 75, 90])


@given(sides, sides, inputs)
def test_the_corners_of_the_image_land_on_whole_pixels(height, width, size):
    box = Letterbox.fit(height, width, size)
    corners = box.boxes_to_model(np.array([0, 0, width, height]))
    expected = [box.left, box.top, box.left + box.content_width, box.top + box.content_height]
    np.testing.assert_allclose(corners, expected, atol=1e-9)


@given(sides, sides, inputs, boxes)
def test_boxes_come_back_from_the_model_to_a_millionth_of_a_pixel(height, width, size, boxes):
    box, boxes = Letterbox.fit(height, width, size), np.array(boxes)
    np.testing.assert_allclose(box.boxes_to_original(box.boxes_to_model(boxes)), boxes, rtol=0, atol=1e-6)
    np.testing.assert_allclose(box.boxes_to_model(box.boxes_to_original(boxes)), boxes, rtol=0, atol=1e-6)


def test_boxes_of_any_leading_shape_keep_it():
    box = Letterbox.fit(30, 20, 9)
    assert box.boxes_to_model(np.zeros((2, 5, 4))).shape == (2, 5, 4)
    assert box.boxes_to_original(np.zeros((0, 4))).shape == (0, 4)


@given(small, small, small, small, small, st.floats(-5, 5))
def test_a_constant_map_stays_constant(height, width, size, h, w, value):
    full = Letterbox.fit(height, width, size).map_to_original(np.full((h, w), value))
    assert full.shape == (height, width)
    np.testing.assert_allclose(full, value, atol=1e-12)


@given(small, small, small, small, small, st.integers(0, 2**32 - 1))
def test_every_pixel_has_the_value_at_its_own_place_in_the_input(height, width, size, h, w, seed):
    box, grid = Letterbox.fit(height, width, size), np.random.default_rng(seed).normal(size=(h, w))
    full = box.map_to_original(grid)
    for row, column in {(0, 0), (height // 2, width // 3), (height - 1, 0), (height // 4, width - 1)}:
        centre = [column + 0.5, row + 0.5, 0, 0]
        x, y = box.boxes_to_model(np.array(centre))[:2] / size
        np.testing.assert_allclose(full[row, column], value_at(grid, x, y), atol=1e-9)


def test_twofold_enlargement_on_a_case_worked_by_hand():
    full = Letterbox.fit(4, 4, 2).map_to_original(np.array([[0.0, 4.0], [8.0, 12.0]]))
    np.testing.assert_allclose(full, [[0, 1, 3, 4], [2, 3, 5, 6], [6, 7, 9, 10], [8, 9, 11, 12]])


def test_a_map_that_is_linear_in_x_stays_linear_inside():
    box = Letterbox.fit(500, 400, 64)
    grid = np.tile((np.arange(16) + 0.5) * 4, (16, 1))  # each cell holds the model x of its centre
    centres = np.arange(400) + 0.5
    expected = centres * box.scale_x + box.left
    inside = (expected > 2) & (expected < 62)
    full = box.map_to_original(grid)
    np.testing.assert_allclose(full[:, inside], np.tile(expected[inside], (500, 1)), atol=1e-9)
    assert inside.sum() == 400  # the padding left and right is wider than half a cell


def test_an_image_of_the_input_size_gives_plain_bilinear_enlargement():
    grid = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float32)
    full = Letterbox.fit(64, 64, 64).map_to_original(grid)
    np.testing.assert_allclose(full, cv2.resize(grid, (64, 64), interpolation=cv2.INTER_LINEAR), atol=1e-5)


def test_a_grid_of_the_image_size_comes_back_unchanged():
    grid = np.random.default_rng(0).normal(size=(64, 64))
    np.testing.assert_array_equal(Letterbox.fit(64, 64, 64).map_to_original(grid), grid)


def test_a_batch_of_maps_equals_the_maps_one_by_one():
    box, grids = Letterbox.fit(31, 20, 16), np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    full = box.map_to_original(grids)
    assert full.shape == (2, 3, 31, 20)
    for i in range(2):
        for j in range(3):
            np.testing.assert_allclose(full[i, j], box.map_to_original(grids[i, j]), atol=1e-12)


def test_the_interpolation_is_two_matrices_whose_rows_sum_to_one():
    box, grid = Letterbox.fit(31, 20, 16), np.random.default_rng(0).normal(size=(4, 5))
    rows, cols = box.interpolation((4, 5))
    np.testing.assert_allclose(rows.sum(1), 1)
    np.testing.assert_allclose(cols.sum(1), 1)
    np.testing.assert_allclose(box.map_to_original(grid), rows @ grid @ cols.T)


def test_pixels_outside_a_crop_take_the_minimum_of_their_map():
    crop = Letterbox(height=8, width=8, size=4, content_height=8, content_width=8, top=-2, left=-3)
    grids = np.stack([np.full((2, 2), 5.0), np.array([[1.0, 2.0], [3.0, -7.0]])])
    full = crop.map_to_original(grids)
    outside = np.ones((8, 8), bool)
    outside[2:6, 3:7] = False  # the input shows rows 2-5 and columns 3-6
    assert np.all(full[0] == 5)
    assert np.all(full[1][outside] == -7)
    np.testing.assert_allclose(full[1][2:6, 3:7], Letterbox.fit(4, 4, 4).map_to_original(grids[1]))


def test_maps_of_low_precision_or_whole_numbers_are_interpolated_in_floating_point():
    box = Letterbox.fit(4, 4, 4)
    assert box.map_to_original(np.eye(2, dtype=np.float16)).dtype == np.float32
    assert box.map_to_original(np.array([[0, 1]]))[0, 1] == 0.25


@pytest.mark.parametrize("sizes", [(0, 5, 5), (5, 0, 5), (5, 5, 0), (-1, 5, 5)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(InputError, match="at least 1"):
        Letterbox.fit(*sizes)
