"""What a class is called in a zero-shot prompt: fixed lists, so that a score never depends on a draw.

A class has the prompts of its data set, where there are such; else those of its name; else it is asked for by its own
name. All lists but GLoRIA's words are [ours]:

- CheXpert 5x200: GLoRIA's words for severity, kind and place (gloria/constants.py in github.com/marshuang80/gloria;
  Huang et al., ICCV 2021). GLoRIA draws a few of their combinations; here are all of them, once each, their spelling
  corrected.
- the phantom: the names that its reports use, all of them.
- every other class: the ways in which reports name it.
"""

import itertools

from plan_jax.data.chexpert_5x200 import CheXpert5x200
from plan_jax.data.phantom_text import SYNONYMS
from plan_jax.evaluation.prompt_words import CHEXPERT_5X200, NAMES


def prompts_of(name: str, data_set: str = "") -> tuple[str, ...]:
    """The prompts of a class, in the data set of that name; distinct and in a fixed order.

    Without a data set the phantom's names come before those of real films.
    """
    if data_set == CheXpert5x200.name and name in CHEXPERT_5X200:
        combined = (" ".join(filter(None, words)) for words in itertools.product(*CHEXPERT_5X200[name]))
        return tuple(dict.fromkeys(combined))
    if data_set in ("", "phantom") and name in SYNONYMS:
        return tuple(f"there is {synonym}" for synonym in SYNONYMS[name])
    return NAMES.get(name, (f"there is {name.lower()}",))
