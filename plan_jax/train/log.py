"""A run's metrics: one JSON object per line, and TensorBoard."""

import json
from pathlib import Path

from tensorboardX import SummaryWriter


class MetricsLog:
    """Appends to metrics.jsonl and tensorboard/. Lines of steps after `step` (of a run that was killed) are dropped."""

    def __init__(self, workdir: Path, *, step: int):
        path = workdir / "metrics.jsonl"
        _keep_until(path, step)
        self._file = path.open("a")
        self._board = SummaryWriter(str(workdir / "tensorboard"), purge_step=step + 1)

    def write(self, step: int, metrics: dict[str, float]) -> None:
        """One line, flushed, so that a kill loses nothing that was shown."""
        self._file.write(json.dumps({"step": step, **metrics}) + "\n")
        self._file.flush()
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
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
