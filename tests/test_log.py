import json
import math

import numpy as np
from tensorboardX.proto.event_pb2 import Event

from plan_jax.data.image import decode_image
from plan_jax.train.log import MetricsLog


def events(workdir) -> list:
    """What TensorBoard is told: records of a length (8 bytes), its checksum (4), an event and its checksum (4)."""
    found = []
    for path in (workdir / "tensorboard").iterdir():
        data, at = path.read_bytes(), 0
        while at < len(data):
            length = int.from_bytes(data[at : at + 8], "little")
            found.append(Event.FromString(data[at + 12 : at + 12 + length]))
            at += 16 + length
    return found


def test_what_is_not_finite_is_null_and_every_line_is_json(tmp_path):
    def refuse(constant: str):
        raise AssertionError(f"{constant} is not in JSON")

    with MetricsLog(tmp_path, step=0) as log:
        log.write(1, {"loss": math.nan, "gradient_norm": math.inf, "skipped": 1, "learning_rate": 0.5})
        log.write(2, {"loss": 0.25, "gradient_norm": -math.inf, "skipped": 0, "learning_rate": 0.5})
    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines == [
        {"step": 1, "loss": None, "gradient_norm": None, "skipped": 1, "learning_rate": 0.5},
        {"step": 2, "loss": 0.25, "gradient_norm": None, "skipped": 0, "learning_rate": 0.5},
    ]


def test_pictures_go_to_tensorboard_under_their_number_and_step(tmp_path):
    pictures = [np.full((4, 6, 3), 40 * number, np.uint8) for number in (1, 2)]
    with MetricsLog(tmp_path, step=0) as log:
        log.write(7, {"loss": 1.0})
        log.write_images(7, pictures)
        log.write_images(8, [])
    shown = {
        value.tag: (event.step, value.image.width, value.image.height, value.image.encoded_image_string)
        for event in events(tmp_path)
        for value in event.summary.value
        if value.HasField("image")
    }
    assert {tag: of[:3] for tag, of in shown.items()} == {"grounding/0": (7, 6, 4), "grounding/1": (7, 6, 4)}
    for number, picture in enumerate(pictures):
        np.testing.assert_array_equal(decode_image(shown[f"grounding/{number}"][3], name="picture"), picture[..., 0])
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 7, "loss": 1.0}\n'


def test_a_log_that_is_not_enabled_leaves_the_folder_as_it_is(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 9}\n')
    with MetricsLog(tmp_path, step=3, enabled=False) as log:
        log.write(4, {"loss": 1.0})
        log.write_images(4, [np.zeros((4, 4, 3), np.uint8)])
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 9}\n'
