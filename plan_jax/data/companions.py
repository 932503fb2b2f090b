"""What a build writes beside the shards, read from them: the counts of the manifest, report.txt, tokenizer.json and
contact_sheet.png."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from plan_jax.data.records import Record, Split, open_split, read_manifest
from plan_jax.data.report import Tally
from plan_jax.data.sheet import contact_sheet
from plan_jax.data.text import Tokenizer, train_wordpiece

VOCAB_SIZE = 8192  # at most: a small corpus stops at the pieces that occur twice
SHEET_IMAGES = 24
TOKENIZER, SHEET, REPORT = "tokenizer.json", "contact_sheet.png", "report.txt"


def write_companions(directory: Path, tokenizer: Tokenizer | None, *, caption: str) -> dict[str, Any]:
    """Writes the tokenizer and the sheet, both from the train split or the first there is, and returns the counts.

    A given tokenizer is used as it is.
    """
    counts = read_manifest(directory)["splits"]
    splits = {name: open_split(directory, name) for name in counts}
    first = next(iter(splits.values()))
    if tokenizer is None:
        tokenizer = train_wordpiece((record.report for record in _records(first)), vocab_size=VOCAB_SIZE)
    tokenizer.save(directory / TOKENIZER)
    shown = [first[i] for i in range(min(SHEET_IMAGES, len(first)))]
    contact_sheet(shown, caption=caption, path=directory / SHEET)
    tally, total = Tally(), sum(map(len, splits.values()))
    with tqdm(total=total, unit="record", desc="count", file=sys.stderr, mininterval=1, leave=False) as bar:
        for name, split in splits.items():
            tally.add(name, _told(_records(split), bar))
    return tally.summary()


def _records(split: Split) -> Iterator[Record]:
    return (split[i] for i in range(len(split)))


def _told(records: Iterator[Record], bar: tqdm) -> Iterator[Record]:
    for record in records:
        bar.update()
        yield record
