"""What a person wants to know of a build: what went in, what came out, what was left out and why, classes, texts.

Counts only: no text of a report and no name of a patient.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from plan_jax.data.records import Record
from plan_jax.data.repeats import first_alike

NO_LABEL = "(no label)"


class Tally:
    """Counts over the records of every split, one split after the other."""

    def __init__(self):
        self._labels: dict[str, Counter[str]] = {}
        self._words: dict[str, list[int]] = {}
        self._marked: dict[str, Counter[str]] = {}
        self._texts: list[tuple[str, str, str]] = []  # split, study, text

    def add(self, split: str, records: Iterable[Record]) -> None:
        """Counts the records of a split; a report that several images share counts as often as they are."""
        labels, words, marked = Counter(), [], Counter({"phrases": 0, "boxes": 0, "masks": 0})
        for record in records:
            labels.update(record.labels or (NO_LABEL,))
            words.append(len(record.report.split()))
            for phrase in record.phrases:
                marked.update(phrases=1, boxes=len(phrase.boxes), masks=phrase.mask is not None)
            if record.report:
                self._texts.append((split, record.study, record.report))
        self._labels[split], self._words[split], self._marked[split] = labels, words, marked

    def summary(self) -> dict[str, Any]:
        """For the manifest: labels, words per report, phrases with boxes and masks by split, and repeated texts."""
        return {
            "labels": {split: dict(sorted(found.items())) for split, found in self._labels.items()},
            "words": {split: _spread(words) for split, words in self._words.items()},
            "marked": {split: dict(found) for split, found in self._marked.items()},
            "repeated_texts": self._repeats(),
        }

    def _repeats(self) -> dict[str, int]:
        """Of different studies."""
        studies = {study: (split, text) for split, study, text in self._texts}
        splits, texts = [split for split, _ in studies.values()], [text for _, text in studies.values()]
        again = [(index, first) for index, first in enumerate(first_alike(texts)) if first != index]
        other = sum(splits[index] != splits[first] for index, first in again)
        return {"studies": len(texts), "near_an_earlier_one": len(again), "which_is_in_another_split": other}


def report_lines(manifest: Mapping[str, Any]) -> list[str]:
    """The report of a build, a line each."""
    splits, summary, dropped = manifest["splits"], manifest["summary"], manifest["dropped"]
    out = sum(counts["records"] for counts in splits.values())
    name, version = manifest["name"], manifest["version"]
    lines = [f"{name} {version}: {out + sum(dropped.values())} rows in, {out} records out"]
    lines += [f"  left out: {rows} rows, {reason}" for reason, rows in dropped.items()]
    for split, counts in splits.items():
        words, marked = summary["words"][split], summary["marked"][split]
        lines.append(f"{split}: {counts['records']} records of {counts['patients']} patients")
        if words["without"] < counts["records"]:
            lines.append(
                f"  reports: {words['without']} records without; words: median {words['median']}, "
                f"95 % have at most {words['p95']}, longest {words['max']}"
            )
        if marked["phrases"]:
            lines.append(f"  phrases: {marked['phrases']}, boxes: {marked['boxes']}, masks: {marked['masks']}")
    lines += _label_lines(summary["labels"], {split: counts["records"] for split, counts in splits.items()})
    again = summary["repeated_texts"]
    if again["near_an_earlier_one"]:
        lines.append(
            f"texts: {again['near_an_earlier_one']} of {again['studies']} studies repeat the report of another, or "
            f"nearly; {again['which_is_in_another_split']} of them one in another split"
        )
    return lines


def _label_lines(labels: Mapping[str, Mapping[str, int]], records: Mapping[str, int]) -> list[str]:
    """A row for each label, a column for each split: records and their share of the split."""
    names = sorted({name for found in labels.values() for name in found})
    if set(names) <= {NO_LABEL}:
        return []
    width = max(map(len, names))
    lines = ["labels".ljust(width + 2) + "".join(f"{split:>18}" for split in records)]
    for name in names:
        counts = {split: labels[split].get(name, 0) for split in records}
        cells = (f"{count:>9} {100 * count / records[split]:6.1f} %" for split, count in counts.items())
        lines.append(f"  {name:<{width}}" + "".join(cells))
    return lines


def _spread(words: Sequence[int]) -> dict[str, int]:
    """Of the reports that have words."""
    some = [count for count in words if count]
    median, p95 = (int(np.percentile(some, share)) if some else 0 for share in (50, 95))
    return {"without": len(words) - len(some), "median": median, "p95": p95, "max": max(some, default=0)}
