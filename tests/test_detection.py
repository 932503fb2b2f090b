"""The detector's head, targets, loss and suppression, each beside a plain loop."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from plan_jax.config import Config, DetectionConfig, ImageEncoderConfig
from plan_jax.detection.anchors import anchors_of
from plan_jax.detection.boxes import decode, iou, suppress
from plan_jax.detection.detect import original_boxes
from plan_jax.detection.head import YoloHead, scales_of
from plan_jax.detection.loss import Boxes, assign, yolo_loss
from plan_jax.errors import InputError
from plan_jax.geometry import Letterbox

CLASSES = 3
SIZE = 64
GRIDS = (2, 4, 8)  # coarsest first

compiled_assign = jax.jit(assign, static_argnames=("grid", "size", "ignore_iou"))
compiled_decode = jax.jit(decode, static_argnames="size")
compiled_iou = jax.jit(iou)
compiled_suppress = jax.jit(suppress, static_argnames="config")
compiled_loss = jax.jit(jax.value_and_grad(yolo_loss, has_aux=True), static_argnames="config")


def config(**fields) -> DetectionConfig:
    return dataclasses.replace(DetectionConfig(), image_size=SIZE, **fields)


def random_boxes(rng: np.random.Generator, *shape: int, size: float = SIZE) -> np.ndarray:
    corners = np.sort(rng.uniform(0, size, (*shape, 2, 2)), axis=-2)
    return corners.reshape(*shape, 4).astype(np.float32)


def plain_iou(a, b) -> float:
    width = max(0.0, min(a[2], b[2]) - max(a[0], b[0]))
    height = max(0.0, min(a[3], b[3]) - max(a[1], b[1]))
    union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - width * height
    return width * height / union if union > 0 else 0.0


# Overlap


def test_the_overlap_is_that_of_a_plain_computation():
    rng = np.random.default_rng(0)
    one, other = random_boxes(rng, 20), random_boxes(rng, 30)
    found = compiled_iou(jnp.asarray(one)[:, None], jnp.asarray(other)[None])
    np.testing.assert_allclose(found, [[plain_iou(a, b) for b in other] for a in one], atol=1e-6)


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ((0, 0, 2, 2), (0, 0, 2, 2), 1),
        ((0, 0, 2, 2), (1, 0, 3, 2), 1 / 3),
        ((0, 0, 1, 1), (1, 0, 2, 1), 0),  # one edge in common
        ((0, 0, 0, 0), (0, 0, 0, 0), 0),
        ((0, 0, 4, 4), (1, 1, 1, 1), 0),
    ],
)
def test_the_overlap_of_boxes_worked_by_hand(one, other, expected):
    assert float(compiled_iou(jnp.array(one, float), jnp.array(other, float))) == pytest.approx(expected)


# Suppression


def plain_suppression(box, score, label, settings: DetectionConfig) -> list[int]:
    order = sorted(range(len(score)), key=lambda n: (-score[n], n))[: settings.candidates]
    stays: list[int] = []
    for number in order:
        if score[number] < settings.lowest_score:
            continue
        rivals = (other for other in stays if label[other] == label[number])
        if all(plain_iou(box[number], box[other]) < settings.nms_iou for other in rivals):
            stays.append(number)
    return stays[: settings.kept]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize(("candidates", "kept", "nms_iou"), [(100, 100, 0.3), (20, 100, 0.5), (100, 4, 0.05)])
def test_what_stays_is_what_a_plain_loop_keeps(seed, candidates, kept, nms_iou):
    rng = np.random.default_rng(seed)
    settings = config(candidates=candidates, kept=kept, nms_iou=nms_iou, lowest_score=0.2)
    box, label = random_boxes(rng, 2, 60), rng.integers(0, CLASSES, (2, 60)).astype(np.int32)
    score = (rng.integers(0, 20, (2, 60)) / 20).astype(np.float32)  # with ties
    found = compiled_suppress(jnp.asarray(box), jnp.asarray(score), jnp.asarray(label), config=settings)
    found = jax.device_get(found)
    for image in range(2):
        expected = plain_suppression(box[image], score[image], label[image], settings)
        count = len(expected)
        np.testing.assert_array_equal(found.mask[image], np.arange(found.mask.shape[1]) < count)
        np.testing.assert_array_equal(found.box[image, :count], box[image, expected])
        np.testing.assert_array_equal(found.score[image, :count], score[image, expected])
        np.testing.assert_array_equal(found.label[image, :count], label[image, expected])


def test_a_box_that_was_dropped_drops_no_other():
    """b overlaps a, c overlaps b but not a: c stays, for b is gone."""
    box = jnp.array([[[0, 0, 10, 10], [4, 0, 14, 10], [8, 0, 18, 10]]], float)
    found = compiled_suppress(
        box, jnp.array([[0.9, 0.8, 0.7]]), jnp.zeros((1, 3), jnp.int32), config=config(nms_iou=0.4)
    )
    np.testing.assert_array_equal(np.asarray(found.score)[np.asarray(found.mask)], np.float32([0.9, 0.7]))


def test_equal_boxes_of_different_classes_all_stay_and_without_any_score_none_does():
    box, label = jnp.ones((1, 3, 4)), jnp.array([[0, 1, 2]])
    assert compiled_suppress(box, jnp.full((1, 3), 0.5), label, config=config()).mask.all()
    assert not compiled_suppress(box, jnp.zeros((1, 3)), label, config=config()).mask.any()


# Answers to boxes


def test_the_answers_of_a_cell_are_a_box_worked_by_hand():
    """x and y at the middle of the cell (row 1, column 2) of a 4 x 4 grid of 16 px, the size of the second anchor."""
    answers = np.full((1, 4, 4, 3, 5 + CLASSES), -100.0, np.float32)
    answers[0, 1, 2, 1] = [0, 0, math.log(2), 0, 100, -100, 100, -100]
    anchors = np.array([[[8, 8], [10, 12], [30, 30]]], np.float32)
    box, score, label = compiled_decode((jnp.asarray(answers),), anchors=anchors, size=SIZE)
    assert box.shape == (1, 48, 4)
    best = int(score[0].argmax())
    np.testing.assert_allclose(box[0, best], [40 - 10, 24 - 6, 40 + 10, 24 + 6], rtol=1e-5)
    assert (float(score[0, best]), int(label[0, best])) == (1.0, 1)
    assert float(score[0].sum()) == pytest.approx(1)


def test_the_score_is_that_of_a_box_times_its_class_and_of_one_class_that_of_a_box():
    answers = np.zeros((1, 1, 1, 3, 7), np.float32)
    anchors = np.ones((1, 3, 2), np.float32)
    _, score, _ = compiled_decode((jnp.asarray(answers),), anchors=anchors, size=SIZE)
    np.testing.assert_allclose(score, np.full((1, 3), 0.25))
    _, score, _ = compiled_decode((jnp.asarray(answers[..., :6]),), anchors=anchors, size=SIZE)
    np.testing.assert_allclose(score, np.full((1, 3), 0.5))


def test_a_box_is_finite_whatever_the_head_says():
    answers = jnp.full((1, 2, 2, 3, 5 + CLASSES), 1e4)
    box, score, _ = compiled_decode((answers,), anchors=np.ones((1, 3, 2), np.float32), size=SIZE)
    assert jnp.isfinite(box).all()
    assert jnp.isfinite(score).all()


def test_targets_read_as_answers_are_the_boxes_again():
    rng = np.random.default_rng(1)
    anchors = anchors_of(config(), 3)
    for box in random_boxes(rng, 5):
        boxes = Boxes(box[None, None], np.array([[1]]), np.array([[True]]))
        for own, side in zip(anchors, GRIDS, strict=True):
            targets = compiled_assign(boxes, anchors=own, grid=(side, side), size=SIZE, ignore_iou=0.5)
            place = np.clip(np.asarray(targets.place), 1e-6, 1 - 1e-6)
            logits = np.concatenate([np.log(place / (1 - place)), targets.size], axis=-1)
            sure = np.where(targets.holds, 100.0, -100.0)[..., None]
            label = 100.0 * (2 * np.eye(CLASSES)[np.asarray(targets.label)] - 1)
            said = np.concatenate([logits, sure, label], axis=-1).astype(np.float32)
            found, score, said = compiled_decode((said,), anchors=own[None], size=SIZE)
            (only,) = np.flatnonzero(np.asarray(score[0]) > 0.5)
            np.testing.assert_allclose(found[0, only], box, atol=1e-3)
            assert int(said[0, only]) == 1


def test_boxes_go_to_the_square_and_back_and_end_at_the_edges():
    rng = np.random.default_rng(2)
    for height, width in ((100, 60), (33, 128), (64, 64)):
        letterbox = Letterbox.fit(height, width, SIZE)
        boxes = random_boxes(rng, 20, size=min(height, width))
        back = original_boxes(letterbox.boxes_to_model(boxes), np.array([height, width]), size=SIZE)
        np.testing.assert_allclose(back, boxes, atol=1e-9)
        whole = original_boxes(np.array([[-50.0, -50, 200, 200]]), np.array([height, width]), size=SIZE)
        np.testing.assert_array_equal(whole, [[0, 0, width, height]])


# Targets and loss


def plain_targets(box, label, mask, anchors, side, ignore_iou) -> dict[tuple[int, int, int], tuple | None]:
    """(row, column, anchor) -> what it answers for, or None where it is ignored; all others are background."""
    found, ignored, stride = {}, set(), SIZE / side
    for (x0, y0, x1, y1), own, real in zip(box.tolist(), label.tolist(), mask.tolist(), strict=True):
        if not real:
            continue
        x, y, width, height = (x0 + x1) / 2 / stride, (y0 + y1) / 2 / stride, x1 - x0, y1 - y0
        column, row = min(int(x), side - 1), min(int(y), side - 1)
        overlaps = [plain_iou((0, 0, width, height), (0, 0, *anchor)) for anchor in anchors.tolist()]
        ignored |= {(row, column, n) for n, overlap in enumerate(overlaps) if overlap > ignore_iou}
        best = overlaps.index(max(overlaps))
        sizes = math.log(width / anchors[best][0]), math.log(height / anchors[best][1])
        found[row, column, best] = (x - column, y - row, *sizes, own)
    return dict.fromkeys(ignored) | found


@pytest.fixture
def truth() -> Boxes:
    """Three images: of 5 boxes, two of them in one cell and one that touches the corner; of 2; of none."""
    rng = np.random.default_rng(3)
    box, label = random_boxes(rng, 3, 6), rng.integers(0, CLASSES, (3, 6)).astype(np.int32)
    box[0, 1] = box[0, 0] + 0.25
    edge = np.nextafter(np.float32(SIZE), np.float32(0))
    box[0, 2] = (edge, edge, SIZE, SIZE)  # its centre rounds to the far edge
    mask = np.arange(6)[None] < np.array([5, 2, 0])[:, None]
    return Boxes(jnp.asarray(box), jnp.asarray(label), jnp.asarray(mask))


@pytest.mark.parametrize("ignore_iou", [0.2, 0.5])
def test_who_answers_for_a_box_is_what_a_plain_loop_says(truth, ignore_iou):
    for own, side in zip(anchors_of(config(), 3), GRIDS, strict=True):
        targets = compiled_assign(truth, anchors=own, grid=(side, side), size=SIZE, ignore_iou=ignore_iou)
        targets = jax.device_get(targets)
        for image in range(3):
            columns = (np.asarray(each[image]) for each in (truth.box, truth.label, truth.mask))
            expected = plain_targets(*columns, own, side, ignore_iou)
            for cell in np.ndindex(side, side, 3):
                place = (image, *cell)
                answer = expected.get(cell)
                assert bool(targets.holds[place]) is (answer is not None)
                assert bool(targets.background[place]) is (cell not in expected)
                said = (*targets.place[place], *targets.size[place], targets.label[place])
                np.testing.assert_allclose(said, answer or np.zeros(5), atol=1e-4)


def cross_entropy(logit: float, target: float) -> float:
    return max(logit, 0) - logit * target + math.log1p(math.exp(-abs(logit)))


def plain_loss(outputs, truth: Boxes, anchors, settings: DetectionConfig) -> float:
    total = 0.0
    for output, own in zip(outputs, anchors, strict=True):
        output = np.asarray(output)
        side, cells = output.shape[1], output[..., 0].size
        for image in range(len(output)):
            columns = (np.asarray(each[image]) for each in (truth.box, truth.label, truth.mask))
            expected = plain_targets(*columns, own, side, settings.ignore_iou)
            for cell in np.ndindex(side, side, 3):
                said = [float(value) for value in output[(image, *cell)]]
                if cell not in expected:
                    total += settings.background_weight * cross_entropy(said[4], 0) / cells
                elif (answer := expected[cell]) is not None:
                    places = sum(cross_entropy(said[n], answer[n]) for n in range(2))
                    sizes = sum((said[n] - answer[n]) ** 2 for n in (2, 3))
                    classes = [cross_entropy(said[5 + n], float(n == answer[4])) for n in range(CLASSES)]
                    total += settings.xy_weight * places / cells + settings.wh_weight * sizes / cells
                    total += settings.object_weight * cross_entropy(said[4], 1) / cells
                    total += settings.class_weight * sum(classes) / CLASSES / cells
    return total


def answers(seed: int) -> tuple[jnp.ndarray, ...]:
    rng = np.random.default_rng(seed)
    shapes = [(3, side, side, 3, 5 + CLASSES) for side in GRIDS]
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


@pytest.mark.parametrize("fields", [{}, {"ignore_iou": 0.2, "wh_weight": 1.0, "background_weight": 2.0}])
def test_the_loss_is_that_of_a_plain_loop(truth, fields):
    settings = config(**fields)
    anchors = anchors_of(settings, 3)
    (loss, parts), _ = compiled_loss(answers(4), truth, anchors=anchors, config=settings)
    assert float(loss) == pytest.approx(plain_loss(answers(4), truth, anchors, settings), rel=1e-5)
    weights = {name: getattr(settings, f"{name}_weight") for name in ("xy", "wh", "object", "background", "class")}
    assert float(loss) == pytest.approx(sum(weights[name] * float(parts[f"{name}_loss"]) for name in weights), rel=1e-5)


def test_padding_boxes_changes_nothing(truth):
    anchors = anchors_of(config(), 3)
    filled = jax.tree.map(lambda leaf: jnp.where(jnp.expand_dims(truth.mask, range(2, leaf.ndim)), leaf, 7), truth)
    garbage = Boxes(filled.box.at[2].set(jnp.nan), filled.label, truth.mask)
    longer = jax.tree.map(lambda leaf: jnp.pad(leaf, [(0, 0), (0, 9), *[(0, 0)] * (leaf.ndim - 2)]), garbage)
    (value, _), gradient = compiled_loss(answers(5), truth, anchors=anchors, config=config())
    for boxes in (garbage, longer):
        (other, _), changed = compiled_loss(answers(5), boxes, anchors=anchors, config=config())
        assert float(other) == float(value)
        jax.tree.map(np.testing.assert_array_equal, changed, gradient)


def test_without_any_box_only_background_costs():
    none = Boxes(jnp.zeros((3, 6, 4)), jnp.zeros((3, 6), jnp.int32), jnp.zeros((3, 6), bool))
    (loss, parts), _ = compiled_loss(answers(6), none, anchors=anchors_of(config(), 3), config=config())
    assert {name for name, value in parts.items() if value} == {"background_loss"}
    assert float(loss) == pytest.approx(0.5 * float(parts["background_loss"]))


# Head and anchors


def test_the_coarsest_scale_has_the_largest_anchors_scaled_to_the_input():
    anchors = anchors_of(dataclasses.replace(DetectionConfig(), image_size=208), 3)
    assert anchors[:, 0].tolist() == [[58, 45], [15, 30.5], [5, 6.5]]
    assert anchors_of(config(), 2).shape == (2, 3, 2)
    with pytest.raises(InputError, match="anchors must hold 18 numbers"):
        anchors_of(config(anchors=(10, 13, 16, 30)), 3)


def drawn_head(sides: tuple[int, ...]):
    """A head, its maps, and variables drawn at random: all positive, so that every change can be seen."""
    maps = [jnp.ones((2, side, side, 4 + side)) for side in sides]
    head, rng = YoloHead(CLASSES, 4), np.random.default_rng(7)
    shapes = jax.eval_shape(lambda: head.init(jax.random.key(0), maps, train=False))
    return head, maps, jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(leaf.dtype), shapes)


@pytest.mark.parametrize("sides", [(2,), (8, 4), (8, 4, 2)])
def test_the_head_answers_at_every_scale_coarsest_first(sides):
    head, maps, variables = drawn_head(sides)
    outputs = jax.eval_shape(lambda: head.apply(variables, maps, train=False))
    assert [output.shape for output in outputs] == [(2, side, side, 3, 5 + CLASSES) for side in reversed(sides)]


def test_a_scale_sees_the_coarser_ones_and_not_the_finer_ones():
    head, maps, variables = drawn_head((4, 2))
    apply = jax.jit(lambda *maps: head.apply(variables, maps, train=False))
    outputs = apply(*maps)
    seen = apply(maps[0], 2 * maps[1])
    assert all((one != other).any() for one, other in zip(outputs, seen, strict=True))
    coarse, fine = apply(2 * maps[0], maps[1])
    np.testing.assert_array_equal(coarse, outputs[0])
    assert (fine != outputs[1]).any()


def test_an_encoder_without_stages_and_a_size_that_they_do_not_divide_are_refused():
    whole = Config()
    assert scales_of(whole) == 3
    small = dataclasses.replace(whole, image_encoder=ImageEncoderConfig(stem="patchify", patch=4, stages=(1, 1)))
    assert scales_of(small) == 2
    with pytest.raises(InputError, match="kind must be resnet for detection"):
        scales_of(dataclasses.replace(whole, image_encoder=ImageEncoderConfig(kind="vit")))
    with pytest.raises(InputError, match="image_size must be a multiple of 32"):
        scales_of(dataclasses.replace(whole, detection=DetectionConfig(image_size=200)))
