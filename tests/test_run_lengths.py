import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from plan_jax.data.run_lengths import decode_runs, encode_runs, mask_box, read_runs
from plan_jax.errors import InputError

# Of an image 4 high and 3 wide, column by column: two pixels, then after three more one pixel, then the last two.
TEXT = "1 2 3 1 3 2"
MASK = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 1], [0, 0, 1]], bool)


def test_a_mask_worked_by_hand():
    np.testing.assert_array_equal(decode_runs(TEXT, height=4, width=3), MASK)
    assert encode_runs(MASK) == TEXT
    assert read_runs(TEXT, pixels=12).tolist() == [[1, 3], [6, 7], [10, 12]]
    assert mask_box(MASK) == (0, 1, 3, 4)


def test_a_needless_run_is_joined_to_the_one_before():
    assert encode_runs(decode_runs(" 1 1 0 1  3 1 3 2 ", height=4, width=3)) == TEXT


@given(arrays(bool, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_a_mask_comes_back_from_its_text_and_the_text_from_its_mask(mask):
    text = encode_runs(mask)
    if not mask.any():
        assert text == ""
        return
    decoded = decode_runs(text, height=mask.shape[0], width=mask.shape[1])
    np.testing.assert_array_equal(decoded, mask)
    assert encode_runs(decoded) == text
    x0, y0, x1, y1 = map(int, mask_box(mask))
    assert mask[y0:y1, x0:x1].sum() == mask.sum()
    for side in (mask[y0], mask[y1 - 1], mask[:, x0], mask[:, x1 - 1]):
        assert side.any()


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 40)), min_size=1, max_size=12), st.integers(0, 40))
def test_a_text_without_needless_runs_comes_back(runs, first):
    text = " ".join(f"{start} {length}" for start, length in [(first, runs[0][1]), *runs[1:]])
    assert encode_runs(decode_runs(text, height=32, width=32)) == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "pairs of start and length, got 0 numbers"),
        ("5 2 1", "pairs of start and length, got 3 numbers"),
        ("-1", "numbers of at most 9 digits, got '-1'"),
        ("1 -2", "numbers of at most 9 digits, got '-2'"),
        ("1 2.0", "numbers of at most 9 digits, got '2.0'"),
        ("1 x", "numbers of at most 9 digits, got 'x'"),
        ("1 \u0662", "numbers of at most 9 digits, got"),  # a digit of another script
        ("1 1_0", "numbers of at most 9 digits, got '1_0'"),
        ("1 " + "9" * 5000, "must be numbers of at most 9 digits, got '9{20}';"),
        ("1 0", "lengths of at least 1, got 0"),
        ("1048575 2", "must end within 1048576 pixels, got 1048577"),
        ("999999999 999999999", "must end within 1048576 pixels"),
        ("0 1 " * 1_100_000, "must fit 1048576 pixels, got 4400000 characters"),
    ],
)
def test_what_is_no_mask_is_an_error_that_says_why(text, message):
    with pytest.raises(InputError, match=message):
        decode_runs(text, height=1024, width=1024)


@given(st.text(st.sampled_from("0123456789 -.eEx\0\u0662"), max_size=40))
def test_any_text_is_a_mask_or_an_error(text):
    try:
        mask = decode_runs(text, height=64, width=64)
    except InputError:
        mask = np.ones((64, 64), bool)
    assert mask.shape == (64, 64)
    assert mask.any()


def test_an_empty_mask_has_no_box():
    with pytest.raises(InputError, match="must have a pixel that is set"):
        mask_box(np.zeros((3, 3), bool))
