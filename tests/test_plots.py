import base64
import dataclasses
import html.parser
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest

from plan_jax.gallery import write_gallery
from plan_jax.plots import BOX, Example, beside, contrast, overlay, save_figure, save_overlay, with_boxes
from plan_jax.tables.results import grounding_table

HOSTILE = '<script>alert("x")</script> & $\\frac$ </p><img src=x onerror=y>'


def example(phrase="a nodule", *, pointing=1.0, shape=(16, 16)):
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, shape).astype(np.uint8)
    return Example(image, rng.normal(0, 0.2, shape), ((2.0, 3.0, 7.0, 9.0),), phrase, "nodule", -0.5, pointing)


def test_pictures_are_loaded_without_matplotlib():
    code = (
        "import sys, plan_jax.plots, plan_jax.gallery, plan_jax.tables.results; sys.exit('matplotlib' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1], check=False).returncode == 0


def test_contrast_runs_from_the_median_to_the_highest_value():
    np.testing.assert_allclose(contrast(np.array([[-4.0, -3.0, 1.0, 3.0, 5.0]])), [[0, 0, 0, 0.25, 1]])
    np.testing.assert_array_equal(contrast(np.full((3, 3), 0.7)), np.zeros((3, 3)))


def test_contrast_does_not_change_with_offset_and_scale():
    values = np.random.default_rng(0).normal(size=(9, 9))
    np.testing.assert_allclose(contrast(3 * values - 5), contrast(values), atol=1e-12)


def test_colour_grows_with_contrast_and_the_lower_half_has_none():
    values = np.repeat(np.array([0.0, 0.0, 0.0, 0.5, 1.0])[None], 5, axis=0)
    picture = overlay(np.full((5, 5), 100, np.uint8), values, side=5).astype(int)
    none, half, full = picture[2, 0], picture[2, 3], picture[2, 4]
    assert none.tolist() == [100, 100, 100]
    assert full[0] - full[2] > half[0] - half[2] > 0  # orange: more red than blue


def test_small_images_grow_by_a_whole_factor_and_large_ones_shrink():
    assert overlay(np.zeros((64, 64), np.uint8), np.zeros((64, 64))).shape == (320, 320, 3)
    assert overlay(np.zeros((60, 100), np.uint8), np.zeros((60, 100))).shape == (180, 300, 3)
    assert overlay(np.zeros((3000, 2000), np.uint8), np.zeros((3000, 2000))).shape == (320, 213, 3)
    assert with_boxes(np.zeros((64, 64), np.uint8)).dtype == np.uint8


def test_boxes_are_drawn_where_they_are():
    image = np.zeros((32, 32), np.uint8)
    picture = with_boxes(image, boxes=[(8.0, 4.0, 24.0, 12.0)])
    yellow = np.argwhere((picture == BOX).all(-1)) / 10  # 32 pixels grow to 320
    np.testing.assert_allclose(yellow.min(0), (4, 8), atol=0.3)
    np.testing.assert_allclose(yellow.max(0), (12, 24), atol=0.3)
    assert image.max() == 0


def test_a_map_of_another_size_is_refused():
    with pytest.raises(ValueError, match="image's size"):
        overlay(np.zeros((4, 4), np.uint8), np.zeros((2, 2)))


def test_a_saved_overlay_is_a_picture_whatever_the_phrase_holds(tmp_path):
    item = example()
    path = tmp_path / "new" / "overlay.out"
    save_overlay(path, item.image, item.grounding_map, phrase=HOSTILE + " word" * 200, boxes=item.boxes)
    picture = cv2.imread(str(path))
    assert picture.shape[1] > picture.shape[0] > 300


def test_a_figure_holds_one_column_per_example(tmp_path):
    save_figure(tmp_path / "two.png", [example(HOSTILE), example()])
    save_figure(tmp_path / "four.png", [example()] * 4)
    two, four = (cv2.imread(str(tmp_path / name)).shape for name in ("two.png", "four.png"))
    assert four[0] == two[0]
    assert four[1] > 1.6 * two[1]


def test_a_picture_stands_beside_its_map_with_the_caption_above_if_there_is_one():
    item = example()
    pair = np.concatenate(
        [with_boxes(item.image, boxes=item.boxes), overlay(item.image, item.grounding_map, boxes=item.boxes)], axis=1
    )
    np.testing.assert_array_equal(beside(item.image, item.grounding_map, boxes=item.boxes, caption=""), pair)
    for caption in ("a nodule", HOSTILE + " word" * 200, "Überlänge " * 9):
        picture = beside(item.image, item.grounding_map, boxes=item.boxes, caption=caption)
        strip = picture[: len(picture) - len(pair)]
        np.testing.assert_array_equal(picture[len(strip) :], pair)
        assert strip.max() > 200
        assert (strip[:, -8:] == strip[0, -1]).all()  # letters do not run over the edge


class Tags(html.parser.HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.seen, self.open, self.text = [], [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.seen.append((tag, dict(attrs)))
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_gallery_is_one_file_and_escapes_hostile_text(tmp_path):
    path = tmp_path / "gallery.html"
    summary = grounding_table({"n": 3, "cnr_signed": {"value": 1.0, "low": 0.5, "high": 1.5}})
    write_gallery(path, [example(HOSTILE), example(pointing=0.0)], title=HOSTILE, summary=summary)
    page = path.read_text()
    tags = Tags(page)
    assert tags.open == []
    assert "script" not in [tag for tag, _ in tags.seen]
    images = [attributes for tag, attributes in tags.seen if tag == "img"]
    assert len(images) == 4
    assert all(attributes["src"].startswith("data:image/png;base64,") for attributes in images)
    assert not any(name.startswith("on") for _, attributes in tags.seen for name in attributes)
    assert re.search(r"(href|src|url)\s*[=(]\s*[\"']?(https?:|//)", page) is None
    assert "".join(tags.text).count(HOSTILE) == 3  # title, heading, phrase: shown as it is
    assert "[0.50, 1.50]" in page


def test_the_gallery_groups_hits_and_misses_in_the_given_order(tmp_path):
    items = [example("miss one", pointing=0), example("hit one"), example("miss two", pointing=0), example("hit two")]
    write_gallery(tmp_path / "gallery.html", items, title="t")
    text = "".join(Tags((tmp_path / "gallery.html").read_text()).text)
    order = [text.index(word) for word in ("Successes", "hit one", "hit two", "Failures", "miss one", "miss two")]
    assert order == sorted(order)
    assert "signed CNR -0.50" in text


def test_a_gallery_picture_holds_the_overlay(tmp_path):
    item = example()
    write_gallery(tmp_path / "gallery.html", [item], title="t")
    sources = re.findall(r"base64,([^\"]+)", (tmp_path / "gallery.html").read_text())
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(sources[1]), np.uint8), cv2.IMREAD_COLOR)
    expected = overlay(item.image, item.grounding_map, boxes=item.boxes, side=256)
    np.testing.assert_array_equal(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), expected)


def test_the_gallery_shows_the_refinement_of_one_phrase_with_the_contrast_of_every_round(tmp_path):
    plain = example(phrase="plain")
    rounds = tuple((plain.grounding_map * k, cnr) for k, cnr in ((1, 0.25), (2, 1.5), (3, -2.75)))
    refined = dataclasses.replace(plain, phrase="a refined one", rounds=rounds)
    path = tmp_path / "gallery.html"
    write_gallery(path, [plain], title="none")
    assert "round by round" not in path.read_text()
    write_gallery(path, [plain, refined], title="some")
    strip = path.read_text().split("round by round")[1].split("</section>")[0]
    assert "a refined one" in strip
    assert strip.count("<img") == 3
    assert [cnr in strip for cnr in ("0.25", "1.50", "-2.75")] == [True] * 3


def test_an_empty_gallery_says_so(tmp_path):
    write_gallery(tmp_path / "gallery.html", [], title="t")
    assert (tmp_path / "gallery.html").read_text().count("None among these examples") == 2
