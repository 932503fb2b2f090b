"""A plain PyTorch loader of films and reports, as a baseline: what a competent person writes for this task.

A `Dataset` over image files in a folder and their reports in a list; Pillow opens, decodes to gray and reduces with its
box filter, which averages areas as ours does (but takes pixels whole) and is Pillow's fastest that does not alias; the
square is filled up with zeros; the `tokenizers` library cuts and pads the report; `DataLoader` stacks. It has the page
cache warm and no augmentation, like ours. It does less than ours in the text: no words or sentences of the pieces, no
reordering.
"""

import importlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from PIL import Image

from plan_jax.geometry import Letterbox

ENDLESS = 10**9  # samples of an epoch, so that none ends while the clock runs


class Films:
    """Map-style data set: {"image": uint8 [1 size size], "token_ids", "token_mask": int64 [max_tokens]}.

    files, reports: image i and its report. tokenizer: path of a tokenizer.json.
    """

    def __init__(self, files: Sequence[Path], reports: Sequence[str], *, tokenizer: Path, size: int, max_tokens: int):
        self._files, self._reports, self._size = list(files), list(reports), size
        self._tokenizer = tokenizers.Tokenizer.from_file(str(tokenizer))
        self._tokenizer.enable_truncation(max_tokens)
        self._tokenizer.enable_padding(length=max_tokens, pad_id=self._tokenizer.token_to_id("[PAD]"))

    def __len__(self) -> int:
        return len(self._files)

    def __getitem__(self, index: int) -> dict[str, Any]:
        torch = importlib.import_module("torch")  # in every process
        with Image.open(self._files[index]) as film:
            gray = film.convert("L")
        box = Letterbox.fit(gray.height, gray.width, self._size)
        content = gray.resize((box.content_width, box.content_height), Image.Resampling.BOX)
        square = Image.new("L", (self._size, self._size))
        square.paste(content, (box.left, box.top))
        encoding = self._tokenizer.encode(self._reports[index])
        return {
            "image": torch.from_numpy(np.array(square)).unsqueeze(0),
            "token_ids": torch.tensor(encoding.ids),
            "token_mask": torch.tensor(encoding.attention_mask),
        }


def torch_batches(torch: Any, films: Films, *, batch_size: int, workers: int) -> Iterator[dict[str, Any]]:
    """Shuffled batches without end, from `DataLoader` with its defaults."""
    sampler = torch.utils.data.RandomSampler(films, replacement=True, num_samples=ENDLESS)
    loader = torch.utils.data.DataLoader(films, batch_size=batch_size, sampler=sampler, num_workers=workers)
    return iter(loader)


def format_of(data: bytes) -> str:
    """ "png" or "jpeg", of an encoded image."""
    return "jpeg" if data.startswith(b"\xff\xd8") else "png"


def write_files(images: Iterable[bytes], folder: Path) -> None:
    """Encoded images as files, byte for byte; the order of their names is theirs."""
    folder.mkdir(parents=True)
    for index, data in enumerate(images):
        (folder / f"{index:06d}.{format_of(data)}").write_bytes(data)
