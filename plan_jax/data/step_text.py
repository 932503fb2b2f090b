"""What a training step reads of a report. Evaluation and inference read the whole report, whatever is chosen here."""

import numpy as np

from plan_jax.config import DataConfig
from plan_jax.data.records import Record
from plan_jax.data.text import split_sentences


def step_text(record: Record, config: DataConfig, rng: np.random.Generator) -> str:
    """The text of one step, as `config.text` and `config.sentences` say; "" for a report without sentences.

    `some` draws how many sentences first, each number from one to all alike, then which; they keep their order.
    """
    text = _section(record, config.text)
    if config.sentences == "all":
        return text
    sentences = split_sentences(text)
    return " ".join(sentences[i] for i in _chosen(len(sentences), config.sentences, rng))


def _section(record: Record, name: str) -> str:
    """The section of that name; the whole report where that is what is asked for, or where it holds no sentence."""
    if name == "report":
        return record.report
    found = " ".join(text for section, text in record.sections if section == name)
    return found if split_sentences(found) else record.report


def _chosen(count: int, how: str, rng: np.random.Generator) -> list[int]:
    """Which of `count` sentences, and in which order."""
    order = [int(i) for i in rng.permutation(count)]
    if how == "one":
        return order[:1]
    if how == "some" and count:
        return sorted(order[: rng.integers(1, count + 1)])
    return order
