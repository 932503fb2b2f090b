"""The numbers of other methods: plan_jax/reference_results.json, where each carries the source it was read in."""

import dataclasses
import json
from pathlib import Path

from plan_jax.errors import InputError

FILE = Path(__file__).parents[1] / "reference_results.json"
FIELDS = {"task", "data_set", "method", "metric", "value", "source"}
SOURCE_FIELDS = ("title", "id", "table")  # id: arXiv or DOI


@dataclasses.dataclass(frozen=True)
class Reference:
    """What is known of other methods.

    Attributes:
        methods: in the order of the rows.
        variants: those of them that are shown only where they have a number.
        numbers: (task, data set, method, metric) -> value.
        sources: (task, method) -> where its numbers were read, as arXiv id or DOI.
    """

    methods: tuple[str, ...]
    variants: frozenset[str]
    numbers: dict[tuple[str, str, str, str], float]
    sources: dict[tuple[str, str], tuple[str, ...]]


def read_reference(path: Path = FILE) -> Reference:
    """The numbers of a file. InputError: one has no source, is of no method in the list, is none, or is there twice."""
    content = json.loads(path.read_text(encoding="utf-8"))
    numbers, sources = {}, {}
    for row in content["numbers"]:
        name = json.dumps(row)
        if row.keys() != FIELDS or not isinstance(row["value"], int | float) or isinstance(row["value"], bool):
            raise InputError(f"{path}: a number must have {', '.join(sorted(FIELDS))}, got {name}; correct it")
        source = content["sources"].get(row["source"], {})
        if any(not str(source.get(field, "")).strip() for field in SOURCE_FIELDS):
            raise InputError(f"{path}: a source must have {', '.join(SOURCE_FIELDS)}, got none for {name}; read one")
        key = (row["task"], row["data_set"], row["method"], row["metric"])
        if row["method"] not in content["methods"] or key in numbers:
            raise InputError(f"{path}: a number must be of a listed method and once, got {name}; correct it")
        numbers[key] = row["value"]
        of_method = sources.setdefault((row["task"], row["method"]), [])
        if source["id"] not in of_method:
            of_method.append(source["id"])
    by_method = {key: tuple(ids) for key, ids in sources.items()}
    return Reference(tuple(content["methods"]), frozenset(content["variants"]), numbers, by_method)
