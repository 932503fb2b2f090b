"""The arms of the ablation: the method with all of its parts, the config file's form, and each with one change."""

import dataclasses
import difflib
from typing import Any

from ml_collections import ConfigDict

from plan_jax.config import Config, freeze
from plan_jax.errors import InputError

Fields = dict[str, str | int | float | bool | tuple[float, ...]]  # dotted name of a config field -> its value

# Every part of the method that the paper names, switched on, on top of the config file: in forms that learn [ours].
PLAN: Fields = {
    "alignment.rounds": 2,
    "alignment.word_importance": "text",
    "alignment.word_keep": 0.5,
    "alignment.importance": 1.0,
}
ARMS: dict[str, Fields] = {
    "plan": PLAN,
    "static": PLAN | {"alignment.rounds": 0},
    "global_only": PLAN | {"loss.local_weight": 0.0},
    "no_history": PLAN | {"alignment.history": 0.0},
    # All words: with uniform importance, word_keep would keep the first words of a report.
    "no_word_importance": PLAN | {"alignment.word_importance": "uniform", "alignment.word_keep": 1.0},
    "no_patch_importance": PLAN | {"alignment.importance": 0.0},
    "all_words": PLAN | {"alignment.word_keep": 1.0},
    # The config file as it is.
    "default": {},
    # With one of its choices taken back.
    "soft_temperatures": {
        "loss.local_temperature": 0.07,
        "loss.global_temperature": 0.1,
        "alignment.region_temperature": 0.125,
    },
    "patch_importance": {"alignment.importance": 1.0},
    "half_the_words": {"alignment.word_keep": 0.5},
    "pair_importance": {"alignment.word_importance": "pair"},
    "uniform_importance": {"alignment.word_importance": "uniform"},
    "logsumexp": {"alignment.aggregation": "logsumexp"},
    "plain_region": {"alignment.region_norm": False},
    "report_context": {"text_encoder.context": "report"},
    "one_temperature": {"alignment.early_temperatures": ()},
    "even_taps": {"image_encoder.side_taps": 1.0},
    "wide_view": {"image_encoder.block": "basic"},
    "no_global": {"loss.global_weight": 0.0},
    # With refinement rounds, in the ways that were tried to make them help.
    "rounds_1": {"alignment.rounds": 1},
    "rounds_2": {"alignment.rounds": 2},
    "deep_rounds": {"alignment.rounds": 2, "loss.deep_supervision": 1.0},
    "late_rounds": {"alignment.rounds": 2, "train.rounds_from": 0.65},
    "late_gentle_rounds": {"alignment.rounds": 2, "train.rounds_from": 0.65, "alignment.evidence": 0.25},
}


def arm_config(base: Config, arm: str) -> Config:
    """`base` with the fields of an arm, through the configuration's own checks; everything else stays.

    InputError for an unknown arm, or one whose values the configuration refuses.
    """
    if arm not in ARMS:
        near = difflib.get_close_matches(arm, ARMS, n=1)
        hint = f"did you mean {near[0]}?" if near else "choose some of them"
        raise InputError(f"an arm must be one of {', '.join(ARMS)}, got {arm!r}; {hint}")
    config = base
    for field, value in ARMS[arm].items():
        config = _replaced(config, field, value)
    return freeze(ConfigDict(dataclasses.asdict(config)))


def _replaced(group: Any, field: str, value: Any) -> Any:
    """A configuration (or a group of it) with one dotted field changed."""
    name, _, rest = field.partition(".")
    return dataclasses.replace(group, **{name: _replaced(getattr(group, name), rest, value) if rest else value})
