"""A run's metrics: one JSON object per line, and TensorBoard."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from tensorboardX import SummaryWriter


class MetricsLog:
    """Appends to metrics.jsonl and tensorboard/. Lines of steps after `step` (of a run that was killed) are dropped.

    Where it is not `enabled`, as on all processes but the first, nothing is opened and nothing written.
    """

    def __init__(self, workdir: Path, *, step: int, enabled: bool = True):
        self._file = self._board = None
        if not enabled:
            return
        path = workdir / "metrics.jsonl"
        _keep_until(path, step)
        self._file = path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line, flushed, so that a kill loses nothing that was shown; null for NaN and infinity, not in JSON."""
        if self._file is None or self._board is None:
            return
        values = {name: value if math.isfinite(value) else None for name, value in metrics.items()}
        self._file.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def write_images(self, step: int, images: Sequence[UInt8[np.ndarray, "h w 3"]]) -> None:
        """RGB pictures to TensorBoard, as grounding/0, grounding/1, ...; none to metrics.jsonl."""
        if self._board is None:
            return
        for number, image in enumerate(images):
            self._board.add_image(f"grounding/{number}", image, step, dataformats="HWC")
        self._board.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
        if self._board is not None:
            self._board.close()


def _keep_until(path: Path, step: int) -> None:
    """Rewrites the file with its whole lines up to `step`."""
    if not path.is_file():
        return
    kept = []
    for line in path.read_text().splitlines():
        try:
            if json.loads(line)["step"] <= step:
                kept.append(line + "\n")
        except (json.JSONDecodeError, KeyError, TypeError):
            continue  # the last line of a killed run may be cut
    whole = path.with_suffix(".jsonl.tmp")
    whole.write_text("".join(kept))
    whole.replace(path)
