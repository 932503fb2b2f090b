import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from plan_jax.data.image import letterbox_image, put_image
from plan_jax.errors import InputError
from plan_jax.evaluation.grounding import box_mask
from plan_jax.geometry import Letterbox, loaded_side

sides = st.integers(1, 5000)
inputs = st.integers(1, 600)
small = st.integers(1, 40)
coordinate = st.floats(-100, 6000)
boxes = st.lists(st.tuples(coordinate, coordinate, coordinate, coordinate), min_size=1, max_size=5)


def drawn(count: int, *, longest: int, largest: int, seed: int = 0):
    """Seeded draws of (generator, letterbox): sizes of any order of magnitude, any crop and fit."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        height, width = np.exp(rng.uniform(0, np.log(longest + 1), 2)).astype(int).tolist()
        crop, fit = rng.choice([1.0, 0.875, rng.uniform(0.2, 1)]), rng.choice(["long", "short"])
        yield rng, Letterbox.fit(height, width, int(rng.integers(1, largest)), crop=float(crop), fit=str(fit))


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


def test_boxes_come_back_whatever_is_cropped_and_whichever_side_fits():
    for rng, box in drawn(5000, longest=6000, largest=600):
        boxes = rng.uniform(-100, 6000, (3, 4))
        there_and_back = box.boxes_to_original(box.boxes_to_model(boxes))
        np.testing.assert_allclose(there_and_back, boxes, rtol=0, atol=1e-6)


def test_maps_come_back_at_the_size_of_the_original_whatever_is_cropped():
    for rng, box in drawn(2000, longest=150, largest=80):
        h, w = rng.integers(1, 12, 2)
        grid = rng.normal(size=(2, h, w))
        full = box.map_to_original(grid)
        assert full.shape == (2, box.height, box.width)
        assert np.isfinite(full).all()
        assert (full >= grid.min((1, 2), keepdims=True) - 1e-12).all()
        assert (full <= grid.max((1, 2), keepdims=True) + 1e-12).all()


def test_the_model_sees_the_middle_of_the_square_that_training_loads():
    rng = np.random.default_rng(0)
    for _ in range(2000):
        (height, width), size = rng.integers(1, 6000, 2).tolist(), int(rng.integers(1, 600))
        crop, fit = float(rng.uniform(0.2, 1)), str(rng.choice(["long", "short"]))
        box, side = Letterbox.fit(height, width, size, crop=crop, fit=fit), loaded_side(size, crop)
        whole = Letterbox.fit(height, width, side, fit=fit)
        assert (box.content_height, box.content_width) == (whole.content_height, whole.content_width)
        assert (whole.top - box.top, whole.left - box.left) == ((side - size) // 2,) * 2


def test_the_crop_of_the_protocol_worked_by_hand():
    box = Letterbox.fit(1024, 768, 224, crop=0.875)  # long side 256, then the middle 224
    assert loaded_side(224, 0.875) == 256
    assert (box.content_height, box.content_width, box.top, box.left) == (256, 192, -16, 16)
    np.testing.assert_allclose(box.boxes_to_model(np.array([0, 64, 768, 960])), [16, 0, 208, 224])
    short = Letterbox.fit(1024, 768, 448, crop=0.875, fit="short")  # short side 512 (BioViL)
    assert (short.content_height, short.content_width) == (683, 512)
    assert (short.top, short.left) == ((512 - 683) // 2 - 32, -32)


@pytest.mark.parametrize("crop", [1.0, 0.875, 0.6])
@pytest.mark.parametrize("fit", ["long", "short"])
def test_a_rectangle_covers_the_pixels_that_its_box_covers(crop, fit):
    """The share of each pixel that the scaled box covers, against what area averaging made of a drawn rectangle."""
    rng = np.random.default_rng(1)
    for _ in range(60):
        size = int(rng.integers(8, 48))
        height, width = rng.integers(2 * size, 6 * size, 2)  # large enough to shrink, so that pixels are means of areas
        rows, columns = (np.sort(rng.choice(side + 1, 2, replace=False)) for side in (height, width))
        image = np.zeros((height, width), np.uint8)
        image[rows[0] : rows[1], columns[0] : columns[1]] = 255
        square, box = letterbox_image(image, size, crop=crop, fit=fit)
        x0, y0, x1, y1 = box.boxes_to_model(np.array([columns[0], rows[0], columns[1], rows[1]]))
        edges = np.arange(size)
        down = np.clip(np.minimum(y1, edges + 1) - np.maximum(y0, edges), 0, 1)
        across = np.clip(np.minimum(x1, edges + 1) - np.maximum(x0, edges), 0, 1)
        np.testing.assert_allclose(square / 255, np.outer(down, across), atol=1.5 / 255)


def test_the_mask_of_a_box_lies_where_the_box_lies():
    """A mask put into the square, and the box scaled and then drawn there: the same pixels but for rounded edges."""
    for rng, box in drawn(400, longest=300, largest=80, seed=2):
        if max(box.content_height, box.content_width) > 4000:
            continue
        x0, x1 = np.sort(rng.integers(0, box.width + 1, 2))
        y0, y1 = np.sort(rng.integers(0, box.height + 1, 2))
        mask = box_mask(((x0, y0, x1, y1),), box.height, box.width)
        inside = put_image(mask.astype(np.uint8) * 255, box) > 127
        scaled = box.boxes_to_model(np.array([x0, y0, x1, y1], float))
        inward = 0.51 * np.array([1, 1, -1, -1])
        smaller, larger = scaled + inward * max(1, box.scale_x, box.scale_y), scaled - inward  # enlarged edges are soft
        assert not (inside & ~box_mask((larger,), box.size, box.size)).any()
        if min(x1 - x0, y1 - y0) * min(box.scale_x, box.scale_y) > 2:
            assert not (box_mask((smaller,), box.size, box.size) & ~inside).any()


def test_the_edge_of_a_map_comes_back_where_the_edge_of_its_box_does():
    for rng, box in drawn(1000, longest=200, largest=60, seed=3):
        first, end = np.sort(rng.choice(box.size + 1, 2, replace=False))
        if not 2 <= end - first < box.size:  # a map without an edge has no background
            continue
        stripes = np.zeros((2, box.size, box.size))
        stripes[0, first:end], stripes[1, :, first:end] = 1, 1
        edges = box.boxes_to_original(np.array([first, first, end, end], float)).reshape(2, 2)
        view = box.boxes_to_original(np.array([0.0, 0.0, box.size, box.size])).reshape(2, 2)
        centres = np.arange(box.width) + 0.5, np.arange(box.height) + 0.5
        if not all(((c > view[0, axis]) & (c < view[1, axis])).any() for axis, c in enumerate(centres)):
            continue  # a few pixels, so much enlarged that no centre is seen
        for axis, c in enumerate(centres):
            found = box.map_to_original(stripes[1 - axis]).max(axis)
            low, high = (f(edges[k, axis], view[k, axis]) for k, f in enumerate((max, min)))
            clear = np.minimum(np.abs(c - low), np.abs(c - high)) > 1e-6  # a tie at the edge is neither
            np.testing.assert_array_equal((found > 0.5)[clear], ((c > low) & (c < high))[clear])


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


@pytest.mark.parametrize("crop", [0.0, -0.5, 1.01, float("nan")])
def test_a_crop_that_is_no_share_is_refused(crop):
    with pytest.raises(InputError, match="crop must be above 0 and at most 1"):
        Letterbox.fit(5, 5, 5, crop=crop)


def test_a_fit_that_is_no_side_is_refused():
    with pytest.raises(InputError, match="fit must be one of long, short, got 'wide'"):
        Letterbox.fit(5, 5, 5, fit="wide")


@pytest.mark.parametrize("sizes", [(0, 5, 5), (5, 0, 5), (5, 5, 0), (-1, 5, 5)])
def test_sizes_below_one_are_refused(sizes):
    with pytest.raises(InputError, match="at least 1"):
        Letterbox.fit(*sizes)
