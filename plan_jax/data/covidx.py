"""Data set `covidx`: COVIDx9A, films that are normal, of pneumonia or of COVID-19.

Wang, Lin, Wong, COVID-Net, Scientific Reports 10, 2020; the films come from several collections, which the last word of
a line names. The raw folder has train_COVIDx9A.txt and test_COVIDx9A.txt, and the images in train/ and test/. There is
no header and no quoting.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from plan_jax.data.csv_table import read_text
from plan_jax.data.dealing import deal_around_test, with_images
from plan_jax.data.row import Row
from plan_jax.data.rows import RowSet
from plan_jax.errors import InputError

LISTS = {"train": "train_COVIDx9A.txt", "test": "test_COVIDx9A.txt"}
CLASSES = ("normal", "pneumonia", "COVID-19")  # 0, 1, 2


class CovidX(RowSet):
    """The test list is the test split; the patients of the train list are dealt to the others.

    A patient in both lists is kept in test. The same number in two collections is taken for the same patient: it costs
    a few films, the contrary might leak some.
    """

    name, version = "covidx", "1.0.0"
    summary = "COVIDx9A: films that are normal, of pneumonia or of COVID-19 (Wang, Lin and Wong, 2020)."
    classes = CLASSES

    def inputs(self) -> Sequence[Path]:
        paths = [self.raw / name for name in LISTS.values()]
        for path in paths:
            if not path.is_file():
                raise InputError(
                    f"--raw must hold {' and '.join(LISTS.values())}, got no {path.name} in {self.raw}; give another"
                )
        return paths

    def rows(self) -> Mapping[str, Sequence[Row]]:
        self.dropped.clear()
        train, test = (self._rows_of(part, path) for part, path in zip(LISTS, self.inputs(), strict=True))
        splits = deal_around_test(train, test, seed=self.seed, dropped=self.dropped)
        return with_images(splits, dropped=self.dropped, table=self.raw / LISTS["train"])

    def _rows_of(self, part: str, path: Path) -> list[Row]:
        rows: dict[str, Row] = {}
        for number, line in enumerate(read_text(path).split("\n"), 1):
            words = line.split()
            if not words:
                continue
            row = _row(words, self.raw / part, where=f"{path.name} line {number}")
            reason = row if isinstance(row, str) else "image of an earlier row" if row.key in rows else ""
            if isinstance(row, str) or reason:
                self.dropped[reason] += 1
            else:
                rows[row.key] = row
        return list(rows.values())


def _row(words: Sequence[str], folder: Path, *, where: str) -> Row | str:
    """The row of a line "patient file class source", or why there is none; the name of the file may hold spaces."""
    if len(words) < 4:
        return "fewer than four words"
    patient, *parts, name, _ = words
    known = [known for known in CLASSES if known.lower() == name.lower()]
    if not known:
        return "unknown class"
    file = " ".join(parts)
    if Path(file).name != file:
        return "file name with a folder"
    key = f"{folder.name}/{file}"
    return Row(key=key, patient=patient, study=key, image=folder / file, where=where, labels=(known[0],))
