"""What a data set's tables say of one image: all of a record but its pixels, cheap to make and to hand to a process.

A data set is one file with one `RowSet`: it turns the published tables into rows and counts what it leaves out. What
follows (reading, shrinking and encoding the image, scaling boxes, drawing masks, writing shards) is the same for all.
"""

import abc
from collections import Counter
from collections.abc import Mapping, Sequence
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


class RowSet(abc.ABC):
    """The tables of one data set, read.

    Attributes:
        name: of the data set, as on the command line.
        version: raised whenever the rows of the same files change.
        summary: one sentence on what the data is and where it comes from (with the citation).
        classes: the names that `Row.labels` may hold, in a fixed order.
        dropped: how many rows of the tables were left out, by reason; counted while `rows` runs.
    """

    name: str
    version: str
    summary: str
    classes: tuple[str, ...] = ()

    def __init__(self, raw: Path, *, seed: int = 0):
        """Opens nothing yet: `raw` is the folder of the published files, `seed` of splits that are drawn."""
        self.raw, self.seed = raw, seed
        self.dropped: Counter[str] = Counter()

    @abc.abstractmethod
    def inputs(self) -> Sequence[Path]:
        """The tables (not the images) that decide the rows; their SHA-256 names the build.

        Raises:
            InputError: the raw folder is not as published; says which file is missing.
        """

    @abc.abstractmethod
    def rows(self) -> Mapping[str, Sequence[Row]]:
        """Split (of plan_jax.data.records.SPLITS) -> its rows, in an order that depends on the tables and seed alone.

        A row of a table that gives none is counted in `dropped`, by a short reason. Images are not opened, but that
        their files exist is checked.

        Raises:
            InputError: a table is damaged beyond the single row, naming file and line; or no row is left.
        """
