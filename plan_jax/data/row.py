"""What a data set's tables say of one image: all of a record but its pixels, cheap to make and to hand to a process."""

from dataclasses import dataclass
from pathlib import Path

from plan_jax.data.records import Phrase


@dataclass(frozen=True)
class Row:
    """An image and what is known of it.

    Attributes:
        key: unique in the data set; may appear in messages, so never a patient's name.
        patient: splits are disjoint by it.
        study: the images of one study share a report.
        image: the file as published.
        where: file and line that it comes from, such as "train.csv line 12", for messages and reports.
        sections: (name, text) of the report, in the order of the report.
        labels: names of the classes that are present.
        phrases: what can be grounded, boxes (x0, y0, x1, y1) in pixels of `frame`, without masks.
        frame: (height, width) of the pixels that boxes and masks count; None for those of the image itself.
        runs: a mask for each phrase as run lengths ("start length start length ...", relative, column by column, as
            SIIM-ACR writes them), or empty.
    """

    key: str
    patient: str
    study: str
    image: Path
    where: str
    sections: tuple[tuple[str, str], ...] = ()
    labels: tuple[str, ...] = ()
    phrases: tuple[Phrase, ...] = ()
    frame: tuple[int, int] | None = None
    runs: tuple[str, ...] = ()
